//! What the commands do, without how they talk: each takes options and gives a document of [`crate::report`].

mod apart;
pub mod calibrate;
pub mod check;
mod compensate;
pub mod constants;
pub mod convert;
pub mod env;
pub mod inspect;
pub mod layering;
pub mod levels;
mod measured;
pub mod optimize;
pub mod outputs;
pub mod overlap;
pub mod paths;
pub mod planning;
mod replica;
pub mod restore;
mod roles;
pub mod runtime;
pub mod survey;
mod trial;
pub mod verify;
mod writer;

pub use nz_onnx::codec::allocation;
