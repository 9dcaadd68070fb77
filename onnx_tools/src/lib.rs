//! The parts of the `nz-onnx` command: reading ONNX models, deciding what to compress, rewriting.

pub mod cli;
pub mod delta;
pub mod onnx;
pub mod pipeline;
pub mod report;
pub mod rewrite;
pub mod staged;
