//! The blob container: what a compressed tensor looks like in bytes (`docs/format.md` is the contract).
//!
//! Safe code only. Nothing here knows how weights are coded; it knows where things lie and whether they fit.

mod blocks;
mod header;
mod plane;

pub use blocks::Blocks;
pub(crate) use header::{ALIGN, MAX_TIERS, header_bound};
pub use header::{Header, Sections, Tier, payload_hash};
pub use plane::{field_planes, plane_bytes};

use crate::error::{Error, Result};

/// The first bytes of every blob.
pub const MAGIC: [u8; 4] = [0x89, b'N', b'Z', b'B'];
/// The format version that this library writes, and the newest major it reads.
pub const VERSION: (u8, u8) = (1, 0);
/// Weights in a block unless asked otherwise, and the most there can be.
pub const MAX_BLOCK: u32 = 4096;
/// Mantissa bits that share the head field with the sign.
pub const HEAD_BITS: u8 = 7;
/// Element type of a coded tensor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of binary32.
    Bf16,
}

impl Dtype {
    /// The number of this type in ONNX `TensorProto.DataType`.
    pub fn onnx(self) -> i32 {
        match self {
            Dtype::F32 => 1,
            Dtype::F16 => 10,
            Dtype::Bf16 => 16,
        }
    }

    /// The type with this ONNX number, if it is one that we code.
    pub fn from_onnx(code: i32) -> Option<Self> {
        [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().find(|d| d.onnx() == code)
    }

    /// Bytes an element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// Explicit mantissa bits.
    pub fn mantissa_bits(self) -> u8 {
        match self {
            Dtype::F32 => 23,
            Dtype::F16 => 10,
            Dtype::Bf16 => 7,
        }
    }

    /// The name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
        }
    }
}

/// How weights become symbols and raw bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Transform {
    /// Exponent, sign and mantissa of the word.
    Split,
    /// The same, with 23 exponent codes that nothing else uses for subnormals, by the place of their top bit.
    NormalisedSplit,
}

/// In which order the weights of a tensor are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Layout {
    /// As in ONNX: the last dimension runs fastest.
    RowMajor,
    /// A matrix `[K, N]` cut into tiles of `tile` columns, each tile row by row.
    ColumnTiles {
        /// Columns a tile; a multiple of 64.
        tile: u32,
    },
}

/// Dtype, shape and layout of a tensor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorSpec {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Stored order.
    pub layout: Layout,
}

impl TensorSpec {
    /// A tensor of any rank, stored in ONNX order.
    pub fn row_major(dtype: Dtype, shape: &[u64]) -> Self {
        TensorSpec { dtype, shape: shape.to_vec(), layout: Layout::RowMajor }
    }

    /// A matrix `[k, n]`, stored in tiles of `tile` columns.
    pub fn column_tiles(dtype: Dtype, k: u64, n: u64, tile: u32) -> Self {
        TensorSpec { dtype, shape: vec![k, n], layout: Layout::ColumnTiles { tile } }
    }

    /// Number of weights.
    ///
    /// # Errors
    /// The product overflows, or is zero.
    pub fn elements(&self) -> Result<u64> {
        let product = self.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        match product {
            Some(0) => Err(Error::invalid(format!("shape {:?} has no elements", self.shape))),
            Some(n) if n <= u64::MAX / 64 => Ok(n),
            _ => Err(Error::invalid(format!("shape {:?} is too large", self.shape))),
        }
    }

    /// Bytes of the plain tensor.
    ///
    /// # Errors
    /// As [`TensorSpec::elements`].
    pub fn bytes(&self) -> Result<u64> {
        Ok(self.elements()? * self.dtype.size() as u64)
    }
}
