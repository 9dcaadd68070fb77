//! What the commands say: JSON documents, tables for people, progress.

pub mod convert;
mod curve;
pub mod delta;
pub mod inspect;
pub mod json;
pub mod progress;
pub mod style;
pub mod table;
pub mod units;
pub mod verify;

pub use progress::Progress;
pub use style::Style;
