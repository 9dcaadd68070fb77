//! Running models in the user's ONNX Runtime, in this process, for `verify --run`.

pub mod array;
pub mod compare;
pub mod inputs;
pub mod locate;
pub mod npy;
pub mod session;

pub use array::Array;
pub use session::{Loaded, Runtime};
