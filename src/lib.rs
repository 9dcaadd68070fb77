//! nz-onnx: ONNX weights that stay compressed in memory.
//!
//! The crate is two things in one: the codec ([`codec`], over the container in [`mod@format`] and the
//! primitives in [`arch`]) and, with the feature `ort`, the custom op library that ONNX Runtime loads
//! (`libnz_onnx.so`). Imports point downward in this order: `ort`, `codec`, `arch`, `format`, `error`.
//!
//! ```
//! use nz_onnx::codec::{self, EncodeOptions};
//! use nz_onnx::format::{Dtype, TensorSpec};
//!
//! let weights: Vec<u8> = (0..4096).flat_map(|i| (i as f32 * 1e-3).sin().to_le_bytes()).collect();
//! let spec = TensorSpec::row_major(Dtype::F32, &[64, 64]);
//! let blob = codec::encode(&weights, &spec, &EncodeOptions::default())?;
//! assert!(blob.len() < weights.len());
//! assert_eq!(codec::decode(&blob)?, weights);
//! # Ok::<(), nz_onnx::error::Error>(())
//! ```

pub mod arch;
pub mod codec;
pub mod cuda;
pub mod error;
pub mod format;
pub mod nchwc;
#[cfg(feature = "ort")]
pub mod ort;

/// This library's version, as in `Cargo.toml`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
