//! The blob container: what a compressed tensor looks like in bytes (`docs/format.md` is the contract).
//!
//! Safe code only. Nothing here knows how weights are coded; it knows where things lie and whether they fit.

mod blocks;
mod codebook;
mod delta;
mod header;
mod layers;
mod plane;
mod unit;

pub use blocks::Blocks;
pub use codebook::{CODEBOOK_ENTRIES, Codebook};
pub use delta::{Delta, Residual};
pub(crate) use header::{ALIGN, MAX_TIERS, header_bound};
pub use header::{Header, Sections, Tier, payload_hash};
pub(crate) use layers::LAYER_ALIGN;
pub use layers::{Layer, MAX_LAYERS, layer_planes};
pub use plane::{field_planes, plane_bytes};
pub use unit::{Unit, Units};

use crate::error::{Error, Result};

/// The first bytes of every blob.
pub const MAGIC: [u8; 4] = [0x89, b'N', b'Z', b'B'];
/// The newest format version that this library writes, and the newest major it reads.
pub const VERSION: (u8, u8) = (1, 3);
/// Weights in a block unless asked otherwise, and the most there can be.
pub const MAX_BLOCK: u32 = 4096;
/// Weights in a block of a tensor whose rows are gathered: few rows then decode little besides.
pub const GATHER_BLOCK: u32 = 1024;
/// The most dimensions a tensor can have.
pub const MAX_RANK: usize = 8;
/// Mantissa bits that share the head field with the sign.
pub const HEAD_BITS: u8 = 7;
/// The most raw bits that a level on a grid has: with its symbol and the bit of a centred one, float32 still holds it.
pub const GRID_BITS: u8 = 15;
/// The most raw bits that an integer has, beside its sign: all.
pub const INTEGER_BITS: u8 = 7;

/// Element type of a coded tensor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of binary32.
    Bf16,
    /// An unsigned byte.
    U8,
    /// A signed byte.
    I8,
}

impl Dtype {
    /// The number of this type in ONNX `TensorProto.DataType`.
    pub fn onnx(self) -> i32 {
        match self {
            Dtype::F32 => 1,
            Dtype::F16 => 10,
            Dtype::Bf16 => 16,
            Dtype::U8 => 2,
            Dtype::I8 => 3,
        }
    }

    /// The type with this ONNX number, if it is one that we code.
    pub fn from_onnx(code: i32) -> Option<Self> {
        let all = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::U8, Dtype::I8];
        all.into_iter().find(|d| d.onnx() == code)
    }

    /// Bytes an element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::U8 | Dtype::I8 => 1,
        }
    }

    /// Explicit mantissa bits; none of an integer.
    pub fn mantissa_bits(self) -> u8 {
        match self {
            Dtype::F32 => 23,
            Dtype::F16 => 10,
            Dtype::Bf16 => 7,
            Dtype::U8 | Dtype::I8 => 0,
        }
    }

    /// The name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
            Dtype::U8 => "uint8",
            Dtype::I8 => "int8",
        }
    }

    /// Whether weights of this type are integers, and not floats.
    pub fn is_integer(self) -> bool {
        matches!(self, Dtype::U8 | Dtype::I8)
    }

    /// Bits of an integer that are changed so that it is signed: uint8 is taken as the distance from 128.
    pub(crate) fn word_flip(self) -> u8 {
        if self == Dtype::U8 { 0x80 } else { 0 }
    }
}

/// How weights become symbols and raw bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Transform {
    /// Exponent, sign and mantissa of the word.
    Split,
    /// The same, with 23 exponent codes that nothing else uses for subnormals, by the place of their top bit.
    NormalisedSplit,
    /// Levels of a uniform grid: symbol and raw bits are those of a level.
    Grid,
    /// What is left once another tensor is known, its base: see [`Delta`].
    Delta,
    /// Integers: symbol and raw bits are those of a magnitude.
    Integer,
    /// Values of a codebook: the symbol says which.
    Codebook,
}

impl Transform {
    /// The minor format version that has it first: what a blob states, so that what it needs is all that it asks for.
    pub(crate) fn minor(self) -> u8 {
        match self {
            Transform::Split | Transform::NormalisedSplit => 0,
            Transform::Grid => 1,
            Transform::Delta | Transform::Integer | Transform::Codebook => 2,
        }
    }

    /// The most raw bits of a weight, beside its sign.
    pub(crate) fn most_bits(self, dtype: Dtype) -> u8 {
        match self {
            Transform::Split | Transform::NormalisedSplit => dtype.mantissa_bits(),
            Transform::Grid => GRID_BITS,
            Transform::Delta | Transform::Codebook => 0,
            Transform::Integer => INTEGER_BITS,
        }
    }
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

/// The row of a tile that a slot lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GridRow {
    /// Its number.
    pub row: u64,
    /// How far the slot is from its start.
    pub column: u64,
    /// Its length in this tile: a multiple of 64.
    pub columns: u64,
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

    /// A matrix `[k, n]` that products go through column by column, in tiles as wide as suits one so wide.
    pub fn columns(dtype: Dtype, k: u64, n: u64) -> Self {
        TensorSpec::column_tiles(dtype, k, n, if n >= 1024 { 256 } else { 128 })
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

    /// The rows that can have units of their own on a grid: those of a matrix in column tiles, all of which are
    /// multiples of 64 columns wide.
    pub fn grid_rows(&self) -> Option<u64> {
        match (self.layout, self.shape.as_slice()) {
            (Layout::ColumnTiles { .. }, &[rows, columns]) if columns.is_multiple_of(64) => Some(rows),
            _ => None,
        }
    }

    /// Where `slot` is, if rows can have units of their own.
    pub fn grid_row(&self, slot: u64) -> Option<GridRow> {
        let (Layout::ColumnTiles { tile }, Some(rows)) = (self.layout, self.grid_rows()) else { return None };
        let width = u64::from(tile).min(self.shape[1]);
        let left = slot / (rows * width) * width;
        let columns = width.min(self.shape[1] - left);
        let inside = slot - left * rows;
        Some(GridRow { row: inside / columns, column: inside % columns, columns })
    }

    /// Bytes of the plain tensor.
    ///
    /// # Errors
    /// As [`TensorSpec::elements`].
    pub fn bytes(&self) -> Result<u64> {
        Ok(self.elements()? * self.dtype.size() as u64)
    }
}
