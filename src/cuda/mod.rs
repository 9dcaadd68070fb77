//! Decoding and encoding on a CUDA device: what is told to the kernels in `cpp/cuda`, and their launch.
//!
//! [`job`] prepares launches and needs no device: tests run the same launches on the CPU. [`port`] is what the ops need of
//! a device. With the feature `cuda`, `device` loads the kernels into a driver and launches them on a stream of the
//! caller's.

#[cfg(feature = "cuda")]
mod cubin;
#[cfg(feature = "cuda")]
pub mod device;
pub mod encode;
pub mod job;
mod layout;
#[cfg(feature = "cuda")]
pub mod nvrtc;
pub mod port;
pub mod product;

pub use encode::{EncodeError, Encoded, encode};
pub use layout::{
    BlockEntry, DecodeArguments, DeltaArguments, DeltaDecodeArguments, DeltaProductArguments,
    EncodeArguments, ProductArguments, WeightArguments,
};
