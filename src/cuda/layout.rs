//! The structs of `cpp/include/nz_cuda.h`, field by field. A test compares both sides.

use bytemuck::{Pod, Zeroable};

use crate::format::MAX_LAYERS;

/// Slots that a warp decodes.
pub(super) const WARP_SLOTS: u32 = 512;
/// `NZ_CUDA_EVEN_THREADS`.
pub(super) const EVEN_THREADS: u32 = 128;
/// `NZ_CUDA_LEAN_THREADS`.
pub(super) const LEAN_THREADS: u32 = 128;
/// `NZ_CUDA_TENSOR_THREADS`, `NZ_CUDA_TENSOR_TILE` and `NZ_CUDA_TENSOR_SQUARE`.
pub(super) const TENSOR_THREADS: u32 = 512;
pub(super) const TENSOR_TILE: u32 = 17_408;
pub(super) const TENSOR_SQUARE: u32 = 33_792;
/// `NZ_CUDA_SELECTORS_SIZE`.
pub(super) const SELECTORS_SIZE: u32 = 1696;
/// `NZ_CUDA_SELECTOR_FACTORS`.
pub(super) const SELECTOR_FACTORS: u32 = 0x3c34_1c01;
/// Bytes of shared memory for counts of escapes, a verdict, and which units the block has.
pub(super) const COUNTS_SIZE: usize = 144 + 16;
/// Bytes behind a record or tail in shared memory.
pub(super) const PADDING: usize = 16;
/// Bytes in front of a layer's planes in shared memory.
pub(super) const LAYER_HEAD: usize = 16;
/// Flag of [`BlockEntry::known`].
pub(super) const CUT: u8 = 128;
/// Bytes of shared memory between the words of a unit and the room that its base and its records take in turn.
pub(super) const VERDICT_SIZE: u32 = 16;
/// Bit of the status word: the planes of a record did not fill it.
pub(super) const DAMAGED_RECORD: u32 = 1;
/// Bit of the status word: an index named no row.
pub(super) const INDEX_OUT_OF_RANGE: u32 = 2;
/// Slots in stored order.
pub(super) const STORED: u32 = 0;
/// Column tiles that follow each other, as one matrix in ONNX order.
pub(super) const ROW_MAJOR: u32 = 1;
/// Rows that indices name.
pub(super) const GATHER: u32 = 2;
/// Rows of X that a product takes, at most.
pub(super) const MAX_ROWS: u32 = 8;
/// Rows of X that a thread block takes of a product with tiles.
pub(super) const TILE_ROWS: u32 = 4;
/// Thread blocks that the tiles of a product are split into, about.
pub(super) const TILE_BLOCKS: u64 = 1024;
/// The widest tile that a product takes.
pub(super) const MAX_TILE: u32 = 256;
/// Bytes of shared memory for the sums of warps.
pub(super) const SUMS_SIZE: u32 = 8192;
/// Bytes of shared memory for the weights of a block.
pub(super) const WEIGHTS_SIZE: u32 = 16_384;

/// `NzCudaBlock`: one block of a blob, in a table on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(16))]
pub struct BlockEntry {
    /// Its first slot in stored order.
    pub first_slot: u64,
    /// Where its record starts in the payload, in units of 4 bytes.
    pub offset: u32,
    /// Size of the record in units of 4 bytes.
    pub record: u16,
    /// Raw bits of a weight that are known with all layers that are read, and 128 if there are more.
    pub known: u8,
    /// Mantissa bits in the record.
    pub m: u8,
}

/// `NzCudaWeight`: a weight on the device. Pointers are device addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct WeightArguments {
    /// The blob's first byte.
    pub blob: u64,
    /// Its table of blocks.
    pub blocks: u64,
    /// Bytes of the blob.
    pub blob_len: u64,
    /// Where the payload starts in the blob.
    pub payload: u64,
    /// Weights.
    pub elements: u64,
    /// Weights a block.
    pub block_len: u32,
    /// Blocks of a whole tile.
    pub blocks_per_tile: u32,
    /// Tiers of the cascade.
    pub tiers: u32,
    /// The transform, as in the header; of no account in a delta.
    pub transform: u32,
    /// Bytes of shared memory for a record.
    pub record_room: u32,
    /// Bytes of shared memory for the symbols of a tier behind the first.
    pub tail_room: u32,
    /// Bits of a code, by tier.
    pub tier_widths: [u8; 8],
    /// Whether there are one or two tiers of 2-bit codes, transform 1, and blocks of 4096 weights: 0 or 1.
    pub is_even: u32,
    /// Zero.
    pub unused: u32,
    /// The symbol of each code, by tier.
    pub symbols: [[u8; 16]; 8],
    /// On a grid and with codebooks: units, of 16 bits each.
    pub units: u64,
    /// The same: whose units, 0 the tensor's, 1 of each block, 2 of each row.
    pub units_of: u32,
    /// On a grid, and of integers: raw bits.
    pub raw_bits: u32,
    /// The tensor's own type: 0 float32, 1 float16, 2 bfloat16, 3 uint8, 4 int8.
    pub element: u32,
    /// Units of rows: columns of a whole tile.
    pub tile_width: u32,
    /// Units of rows: columns of the tensor.
    pub columns: u64,
    /// On a grid and with codebooks: slots of a whole tile, all when row-major.
    pub tile_slots: u64,
    /// With codebooks: their values, 64 float32 numbers each.
    pub books: u64,
    /// With codebooks: that of each unit, a byte each.
    pub groups: u64,
    /// With layers: where each block is in each that is read, then where it ends, in units of 4 bytes.
    pub layer_offsets: u64,
    /// With layers: where each that is read starts in the blob.
    pub layer_starts: [u64; MAX_LAYERS],
    /// With layers: raw bits that weights have with each.
    pub layer_bits: [u8; 4],
    /// Layers that are read.
    pub layers: u32,
    /// With layers: where each is in the shared memory for a record.
    pub layer_at: [u32; MAX_LAYERS],
    /// With layers: where mantissas go there that are put together.
    pub joined_at: u32,
    /// On a grid: raw bits that are known.
    pub known_bits: u32,
    /// Zero.
    pub padding: u32,
    /// What four codes are looked up in, where a warp can decode each block on its own; else 0.
    pub selectors: u64,
}

/// `NzCudaDecode`: the argument of the decode kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct DecodeArguments {
    /// What is decoded.
    pub weight: WeightArguments,
    /// Where to, at a multiple of 16.
    pub out: u64,
    /// A word of status bits.
    pub status: u64,
    /// Which of the three orders.
    pub order: u32,
    /// Stored order: the block that `first_slot` lies in. Row-major: the first tile's first block.
    pub first_block: u32,
    /// Stored order: the first slot wanted.
    pub first_slot: u64,
    /// Stored order: slots wanted.
    pub slots: u64,
    /// Row-major: columns of those tiles.
    pub columns: u64,
    /// Row-major: columns of a whole tile.
    pub tile_width: u32,
    /// Row-major: tiles.
    pub tiles: u32,
    /// Gather: the indices.
    pub indices: u64,
    /// Gather: how many.
    pub index_count: u64,
    /// Rows of the matrix.
    pub rows: u64,
    /// Gather: weights a row.
    pub row_len: u64,
    /// Gather: bytes an index.
    pub index_size: u32,
    /// Where a warp decodes each block on its own: blocks of each tile, or all that are wanted.
    pub lean_blocks: u32,
}

/// `NzCudaProduct`: the argument of the product kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct ProductArguments {
    /// W.
    pub weight: WeightArguments,
    /// X, `[m, k]`.
    pub x: u64,
    /// Y, `[m, n]`.
    pub y: u64,
    /// Sums of parts, float32.
    pub partial: u64,
    /// A word of status bits.
    pub status: u64,
    /// Length of the sums.
    pub k: u64,
    /// Columns of Y.
    pub n: u64,
    /// Rows of X and Y.
    pub m: u32,
    /// Type of X and Y: 0 float32, 1 float16, 2 bfloat16.
    pub x_type: u32,
    /// Whether W is stored as `[n, k]`, row-major: 0 or 1.
    pub is_rows: u32,
    /// Rows: sums that a chunk has room for.
    pub chunk_segments: u32,
    /// Rows: chunks a block.
    pub block_chunks: u32,
    /// Rows: chunks of a row of W, or 0 where that is no whole number.
    pub row_chunks: u32,
    /// Rows: `floor((2^32 - 1) / row_chunks)`, or 0.
    pub row_reciprocal: u32,
    /// Tiles: columns of a whole tile.
    pub tile_width: u32,
    /// Tiles: parts that a tile is summed up in.
    pub splits: u32,
    /// Tiles: blocks a part.
    pub split_blocks: u32,
    /// C, of X's type, or 0.
    pub c: u64,
    /// Elements from one row of C to the next.
    pub c_row_stride: u64,
    /// Elements from one column of C to the next.
    pub c_column_stride: u64,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of C.
    pub beta: f32,
    /// Many rows with tensor cores: rows of W, or blocks where a block has several rows.
    pub items: u32,
    /// The same: parts of 1024 slots that a block has of a row, 1, 2 or 4.
    pub row_passes: u32,
}

impl ProductArguments {
    /// Whether W is in column tiles.
    pub(super) fn is_tiled(&self) -> bool {
        self.tile_width > 0
    }
}

/// `NzCudaDelta`: a delta to a blob, whose weight has units in place of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct DeltaArguments {
    /// The base.
    pub base: WeightArguments,
    /// Sizes of the records of the delta's blocks, in units of 4 bytes, 16 bits each.
    pub sizes: u64,
    /// Weights a block of the delta.
    pub block_len: u32,
    /// Blocks of a whole tile.
    pub blocks_per_tile: u32,
    /// The exponent from which on the base's exponents count.
    pub exponent: u32,
    /// Whether residuals are differences: 0 or 1.
    pub is_difference: u32,
    /// Bytes of shared memory that base and records take.
    pub room: u32,
    /// Zero.
    pub padding: u32,
}

/// `NzCudaDeltaDecode`: the argument of the kernel that decodes deltas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct DeltaDecodeArguments {
    /// What is decoded of which units.
    pub decode: DecodeArguments,
    /// What the units are.
    pub delta: DeltaArguments,
    /// Type of the output: 0 float32, 1 float16, 2 bfloat16.
    pub element: u32,
    /// Zero.
    pub padding: u32,
}

/// `NzCudaDeltaProduct`: the argument of the kernels that multiply with deltas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct DeltaProductArguments {
    /// The product, of units.
    pub product: ProductArguments,
    /// What the units are.
    pub delta: DeltaArguments,
}

/// What `nz_survey` counts.
pub(super) const SURVEY_COUNTS: usize = crate::codec::offload::COUNTS;
/// Bytes of shared memory that it takes.
pub(super) const SURVEY_SIZE: u32 = 4 * SURVEY_COUNTS as u32 + 32;
/// Bit of a measured block: rounding has changed a weight.
pub(super) const MEASURED_ROUNDED: u32 = 1 << 24;
/// Bit of a measured block: the coding is not for it.
pub(super) const MEASURED_MISFIT: u32 = 2 << 24;
/// Bytes of shared memory of `nz_measure` behind the places of symbols.
pub(super) const MEASURE_SIZE: u32 = 32;
/// The same of `nz_write`.
pub(super) const WRITE_SIZE: u32 = 32;
/// Bytes behind a block's codes, and symbols, in shared memory.
pub(super) const CODES_PADDING: u32 = 48;
/// Bit of the status word: a block does not have the size that it was measured with.
pub(super) const SOURCE_CHANGED: u32 = 4;

/// `NzCudaEncode`: the argument of the kernels that encode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct EncodeArguments {
    /// Row-major elements, at a multiple of their size.
    pub source: u64,
    /// Weights.
    pub elements: u64,
    /// Rows in column tiles, else 1.
    pub rows: u64,
    /// Columns in column tiles, else all weights.
    pub columns: u64,
    /// Columns of a whole tile, else all weights.
    pub tile_columns: u64,
    /// Element type: 0 float32, 1 float16, 2 bfloat16.
    pub element: u32,
    /// Weights a block.
    pub block_len: u32,
    /// Blocks of a whole tile.
    pub blocks_per_tile: u32,
    /// Whether in column tiles: 0 or 1.
    pub is_tiled: u32,
    /// Survey: blocks, or stretches of a sample.
    pub parts: u32,
    /// Survey: of how many weights of a stretch one is looked at; 0: all blocks are.
    pub sampled_of: u32,
    /// Survey: [`crate::codec::Survey`]'s counts, added to.
    pub counts: u64,
    /// The transform, as in the header: 1 or 2.
    pub transform: u32,
    /// Mantissa bits that weights are rounded to, or 23.
    pub kept: u32,
    /// Whether a subnormal is a misfit: 0 or 1.
    pub no_subnormals: u32,
    /// Tiers of the cascade.
    pub tiers: u32,
    /// Bits of a code, by tier.
    pub tier_widths: [u8; 8],
    /// By symbol: its tier times 16, and its code.
    pub places: [u8; 256],
    /// A word for each block that was measured.
    pub measured: u64,
    /// The table of blocks that are to be written.
    pub blocks: u64,
    /// Where the payload goes, at a multiple of 4.
    pub payload: u64,
    /// A word of status bits.
    pub status: u64,
    /// Bytes of shared memory for a record.
    pub record_room: u32,
    /// Zero.
    pub unused: u32,
}
