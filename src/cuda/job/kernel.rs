//! The kernels of `cpp/cuda`, by name.

use crate::format::Dtype;

/// A kernel of `cpp/cuda`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Decodes to floats of this type.
    Decode(Dtype),
    /// The same to bfloat16 or float32, where a warp decodes each block on its own.
    DecodeLean(Dtype),
    /// Decodes integers of 8 bits.
    Integers,
    /// Decodes deltas.
    Delta,
    /// Sums up parts of a product with a row-major weight; `many`: of up to 8 rows, else of one.
    Rows {
        /// More than one row.
        many: bool,
    },
    /// The same, with a weight in column tiles; `many`: four rows a thread block.
    Tiles {
        /// More than one row.
        many: bool,
    },
    /// [`Kernel::Rows`] of deltas.
    DeltaRows {
        /// More than one row.
        many: bool,
    },
    /// [`Kernel::Tiles`] of deltas.
    DeltaTiles {
        /// More than one row.
        many: bool,
    },
    /// Adds up the parts of a product.
    Sum,
    /// Sums up parts of a product of one row with tensor cores.
    TensorRow,
    /// The same of up to so many rows: 8, 16, 32 or 64.
    TensorRows(u32),
    /// The same with a weight in column tiles, of 1 row or up to so many: 8, 16 or 32.
    TensorTiles(u32),
    /// Counts what the words of a tensor are like.
    Survey,
    /// Measures the records that blocks are coded in.
    Measure,
    /// Writes them.
    Write,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Kernel; 28] = [
        Kernel::Decode(Dtype::F32),
        Kernel::Decode(Dtype::F16),
        Kernel::Decode(Dtype::Bf16),
        Kernel::DecodeLean(Dtype::F32),
        Kernel::DecodeLean(Dtype::Bf16),
        Kernel::Integers,
        Kernel::Delta,
        Kernel::Rows { many: false },
        Kernel::Rows { many: true },
        Kernel::Tiles { many: false },
        Kernel::Tiles { many: true },
        Kernel::DeltaRows { many: false },
        Kernel::DeltaRows { many: true },
        Kernel::DeltaTiles { many: false },
        Kernel::DeltaTiles { many: true },
        Kernel::Sum,
        Kernel::TensorRow,
        Kernel::TensorRows(8),
        Kernel::TensorRows(16),
        Kernel::TensorRows(32),
        Kernel::TensorRows(64),
        Kernel::TensorTiles(1),
        Kernel::TensorTiles(8),
        Kernel::TensorTiles(16),
        Kernel::TensorTiles(32),
        Kernel::Survey,
        Kernel::Measure,
        Kernel::Write,
    ];

    /// Its name in the compiled module.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Decode(Dtype::F32) => "nz_decode_float32",
            Kernel::Decode(Dtype::F16) => "nz_decode_float16",
            Kernel::Decode(Dtype::Bf16) => "nz_decode_bfloat16",
            Kernel::DecodeLean(Dtype::F32) => "nz_decode_lean_float32",
            Kernel::DecodeLean(_) => "nz_decode_lean_bfloat16",
            Kernel::Integers | Kernel::Decode(Dtype::U8 | Dtype::I8) => "nz_decode_integer",
            Kernel::Delta => "nz_delta_decode",
            Kernel::Rows { many: false } => "nz_gemv_rows_1",
            Kernel::Rows { many: true } => "nz_gemv_rows_8",
            Kernel::Tiles { many: false } => "nz_gemv_tiles_1",
            Kernel::Tiles { many: true } => "nz_gemv_tiles_4",
            Kernel::DeltaRows { many: false } => "nz_delta_rows_1",
            Kernel::DeltaRows { many: true } => "nz_delta_rows_8",
            Kernel::DeltaTiles { many: false } => "nz_delta_tiles_1",
            Kernel::DeltaTiles { many: true } => "nz_delta_tiles_4",
            Kernel::Sum => "nz_gemv_sum",
            Kernel::TensorRow => "nz_tensor_row",
            Kernel::TensorRows(..=8) => "nz_tensor_rows_8",
            Kernel::TensorRows(..=16) => "nz_tensor_rows_16",
            Kernel::TensorRows(..=32) => "nz_tensor_rows_32",
            Kernel::TensorRows(_) => "nz_tensor_rows_64",
            Kernel::TensorTiles(..=1) => "nz_tensor_tiles_1",
            Kernel::TensorTiles(..=8) => "nz_tensor_tiles_8",
            Kernel::TensorTiles(..=16) => "nz_tensor_tiles_16",
            Kernel::TensorTiles(_) => "nz_tensor_tiles_32",
            Kernel::Survey => "nz_survey",
            Kernel::Measure => "nz_measure",
            Kernel::Write => "nz_write",
        }
    }
}
