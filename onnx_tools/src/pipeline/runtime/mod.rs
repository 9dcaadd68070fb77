//! Running models in the user's ONNX Runtime, in this process, for `verify --run` and `--optimize`.

pub mod array;
pub mod compare;
pub mod inputs;
pub mod locate;
pub mod npy;
mod probe;
pub mod session;

pub use array::Array;
pub use session::{Loaded, Runtime};
