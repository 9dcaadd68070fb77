//! Delta files: a model as what tells it from another one, its base. `docs/delta.md` is the contract.
//!
//! A delta file is for storing and sending. It is no model: [`restore()`] makes the model again, byte for byte, with the
//! help of the base. [`shared`] is the form that ONNX Runtime loads.

mod base;
mod check;
mod container;
mod parts;
mod restore;
pub mod shared;
mod write;

pub use check::{inspect, verify};
pub use container::is_delta;
pub use restore::restore;
pub use write::{DeltaOptions, convert};
