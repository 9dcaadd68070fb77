//! From weights to blobs and back.
//!
//! A weight is split in a small-alphabet symbol, its exponent, and raw bits, its sign and the mantissa bits
//! worth keeping. The symbols go through a tiered cascade ([`cascade`]), the raw bits into planes. The method
//! of keeping exponents entropy-coded is NeuZip's (arXiv 2410.20650).

pub mod allocation;
pub mod cascade;
mod codebook;
mod decode;
mod delta;
mod encode;
mod grid;
mod integer;
mod layers;
mod lossless;
pub(crate) mod offload;
mod overlay;
pub mod reference;
mod survey;
pub mod word;

pub use cascade::Profile;
pub use codebook::{CodebookSurvey, survey_codebooks};
pub use decode::{Decoder, decode};
pub use delta::{decode_delta, encode_delta, encode_delta_to_blob};
pub use encode::{EncodeOptions, encode, encode_as, encode_into, fitting_coding, load_slots};
pub use grid::{CELLS, GridRounding, GridStep, GridSurvey, recode, survey_grid};
pub use integer::integer_coding;
pub use layers::{layer, layers_bound};
pub use overlay::{DeltaDecoder, check_base};
pub use survey::{Coding, Survey, survey, survey_sample};
pub use word::max_relative_error;
