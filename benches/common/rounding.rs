//! What is done to weights before they are measured.

use nz_onnx::codec::{Coding, EncodeOptions, GridStep, survey, survey_codebooks, survey_grid};
use nz_onnx::format::TensorSpec;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    Lossless,
    Mantissa(u8),
    Grid {
        raw_bits: u8,
    },
    /// The rung of its ladder.
    Codebook(u8),
}

impl Rounding {
    /// The mantissa bits that are kept, if they are cut.
    pub fn mantissa_bits(self) -> Option<u8> {
        match self {
            Rounding::Mantissa(k) => Some(k),
            _ => None,
        }
    }

    /// The coding of `source` so rounded.
    ///
    /// # Panics
    /// The weights are none of `spec`, or such as a grid or codebooks cannot hold.
    pub fn coding(self, source: &[u8], spec: &TensorSpec, options: &EncodeOptions) -> Coding {
        match self {
            Rounding::Grid { raw_bits } => survey_grid(source, spec, options)
                .expect("valid input")
                .expect("weights that a grid can hold")
                .coding(GridStep { cell: 0, raw_bits }),
            Rounding::Codebook(rung) => survey_codebooks(source, spec, options)
                .expect("valid input")
                .expect("weights that codebooks can hold")
                .coding(GridStep { cell: usize::from(rung % 4), raw_bits: rung / 4 }),
            Rounding::Lossless | Rounding::Mantissa(_) => {
                survey(source, spec, options).expect("valid input").coding(self.mantissa_bits())
            }
        }
    }
}
