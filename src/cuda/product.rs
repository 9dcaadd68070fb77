//! Products of few rows with a weight that stays compressed: sums of parts, then their sum.

pub(super) mod tensor;

use super::job::{
    DeviceWeight, Kernel, Launch, MAX_GRID_Y, WeightMemory, check_address, element, unsupported,
};
use super::layout::{
    EVEN_THREADS, MAX_ROWS, MAX_TILE, ProductArguments, SUMS_SIZE, TILE_BLOCKS, TILE_ROWS, WARP_SLOTS,
    WEIGHTS_SIZE,
};
use crate::error::{Error, Result};
use crate::format::{Dtype, Layout};

/// Shared memory that any device has without being asked for more.
pub(super) const SHARED_LIMIT: u32 = 48 << 10;
/// Threads of a block that multiplies tiles: one for each column.
const TILE_THREADS: u32 = MAX_TILE;

/// Rows of X that a product straight from the blob has, at most, without tensor cores.
pub const MOST_ROWS: u32 = MAX_ROWS;
/// The same of one with tensor cores.
pub const MOST_TENSOR_ROWS: u32 = tensor::MOST_ROWS;

/// Device memory of a product's operands: addresses, as integers.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// Type of X and Y.
    pub dtype: Dtype,
    /// X, `[m, k]`, row by row, at a multiple of 16.
    pub x: u64,
    /// Y, `[m, n]`, row by row, at a multiple of its elements' size.
    pub y: u64,
    /// [`Product::partial_bytes`] of memory, at a multiple of 4.
    pub partial: u64,
    /// A 32-bit word in which kernels set bits for [`super::job::check_status`].
    pub status: u64,
    /// Factor of the product.
    pub alpha: f32,
    /// What is added.
    pub addend: Option<Addend>,
}

/// A matrix `[m, n]` times a factor.
#[derive(Clone, Copy, Debug)]
pub struct Addend {
    /// The factor.
    pub beta: f32,
    /// The matrix's first element, of Y's type.
    pub address: u64,
    /// Elements from one row to the next.
    pub row_stride: u64,
    /// Elements from one column to the next.
    pub column_stride: u64,
}

/// How a product of `m` rows is computed: `Y = X W` with a weight `[k, n]` in column tiles, `Y = X W^T` with a row-major
/// weight `[n, k]`.
#[derive(Clone, Copy, Debug)]
pub struct Product<'w> {
    weight: &'w DeviceWeight,
    arguments: ProductArguments,
    blocks: u32,
    tiles: u32,
    is_tensor: bool,
}

impl DeviceWeight {
    /// Plans a product of `m` rows.
    ///
    /// # Errors
    /// The weight is no matrix, or of integers, or `m` is not 1 to 8. [`Error::Unsupported`]: it has to be decoded and
    /// multiplied then, since tiles are wider than 256, or sums longer than 2^31.
    pub fn product(&self, m: u32) -> Result<Product<'_>> {
        if !(1..=MAX_ROWS).contains(&m) {
            return Err(Error::invalid(format!("a product of {m} rows, 1 to {MAX_ROWS} can be")));
        }
        if self.dtype.is_integer() {
            return Err(Error::invalid(format!("a product with {} weights", self.dtype.name())));
        }
        let &[outer, inner] = self.shape.as_slice() else {
            return Err(Error::invalid(format!("a product with a weight of shape {:?}", self.shape)));
        };
        let mut arguments = ProductArguments { m, ..Default::default() };
        let tiles = match self.layout {
            Layout::RowMajor => {
                (arguments.n, arguments.k, arguments.is_rows) = (outer, inner, 1);
                if inner > i32::MAX as u64 {
                    return Err(unsupported("sums of over 2^31 products"));
                }
                arguments.chunk_segments = (WARP_SLOTS - 1) / inner as u32 + 2;
                arguments.block_chunks = self.arguments.block_len.div_ceil(WARP_SLOTS);
                if inner.is_multiple_of(WARP_SLOTS.into()) {
                    arguments.row_chunks = inner as u32 / WARP_SLOTS;
                    arguments.row_reciprocal = u32::MAX / arguments.row_chunks;
                }
                1
            }
            Layout::ColumnTiles { tile } => {
                (arguments.k, arguments.n) = (outer, inner);
                let tiles = inner.div_ceil(tile.into());
                if tile > MAX_TILE || tiles > MAX_GRID_Y / 2 {
                    return Err(unsupported("tiles of over 256 columns, or 32768 tiles"));
                }
                let blocks = u64::from(self.arguments.blocks_per_tile);
                let split_blocks = blocks.div_ceil(TILE_BLOCKS.div_ceil(tiles).min(blocks));
                arguments.tile_width = tile;
                arguments.split_blocks = split_blocks as u32;
                arguments.splits = blocks.div_ceil(split_blocks) as u32;
                tiles as u32
            }
        };
        let product =
            Product { weight: self, arguments, blocks: self.block_count(), tiles, is_tensor: false };
        if product.shared() > SHARED_LIMIT {
            return Err(unsupported("records and a product in the shared memory of 48 KiB"));
        }
        Ok(product)
    }
}

impl DeviceWeight {
    /// Plans a product of `m` rows of `dtype` with tensor cores, if there is one: of bfloat16, for a device that has
    /// [`Device::has_tensor_cores`](super::port::Device::has_tensor_cores). The sums are another order's than those of
    /// [`DeviceWeight::product`].
    pub fn tensor_product(&self, m: u32, dtype: Dtype) -> Option<Product<'_>> {
        let arguments = tensor::plan(self, m, dtype)?;
        let product =
            Product { weight: self, arguments, blocks: self.block_count(), tiles: 1, is_tensor: true };
        (product.shared() <= tensor::SHARED_LIMIT).then_some(product)
    }
}

impl Product<'_> {
    /// Rows of X and Y.
    pub fn rows(&self) -> u32 {
        self.arguments.m
    }

    /// Bytes of memory for sums of parts. What it holds does not matter.
    pub fn partial_bytes(&self) -> u64 {
        let a = &self.arguments;
        let sums = match a.is_rows {
            1 => u64::from(self.blocks) * u64::from(a.block_chunks) * u64::from(a.chunk_segments),
            _ => u64::from(a.splits) * a.n,
        };
        4 * sums * u64::from(a.m)
    }

    /// The two launches, in order.
    ///
    /// # Errors
    /// An address is not aligned.
    pub fn launches(
        &self,
        memory: WeightMemory,
        operands: Operands,
    ) -> Result<[Launch<ProductArguments>; 2]> {
        let Operands { dtype, x, y, partial, status, alpha, addend } = operands;
        check_address(x, 16, "left operand")?;
        check_address(y, dtype.size() as u64, "output")?;
        check_address(partial, 4, "memory for sums")?;
        check_address(status, 4, "status word")?;
        let x_type = element(dtype);
        let weight = self.weight.at(memory)?;
        let mut arguments =
            ProductArguments { weight, x, y, partial, status, x_type, alpha, ..self.arguments };
        if let Some(Addend { beta, address, row_stride, column_stride }) = addend {
            check_address(address, dtype.size() as u64, "addend")?;
            (arguments.c, arguments.beta) = (address, beta);
            (arguments.c_row_stride, arguments.c_column_stride) = (row_stride, column_stride);
        }
        let many = arguments.m > 1;
        let (kernel, grid, threads) = match arguments.is_rows {
            _ if self.is_tensor => tensor::launch(&arguments, self.blocks),
            1 => (Kernel::Rows { many }, (self.blocks, 1), self.row_threads()),
            _ => (
                Kernel::Tiles { many },
                (arguments.splits, self.tiles * arguments.m.div_ceil(TILE_ROWS)),
                self.tile_threads(),
            ),
        };
        let parts = Launch { kernel, grid, threads, shared: self.shared(), arguments };
        let columns = u32::try_from(arguments.n.div_ceil(256)).map_err(|_| unsupported("2^40 columns"))?;
        let sum =
            Launch { kernel: Kernel::Sum, grid: (columns, arguments.m), threads: 256, shared: 0, arguments };
        Ok([parts, sum])
    }

    /// Threads of a block of a row-major weight.
    fn row_threads(&self) -> u32 {
        let is_short = self.weight.is_all_even() && self.arguments.row_chunks > 0;
        if is_short { EVEN_THREADS } else { self.weight.threads() }
    }

    /// Threads of a block of column tiles: one for each column, where not all blocks go the short way.
    fn tile_threads(&self) -> u32 {
        let Layout::ColumnTiles { tile } = self.weight.layout else { return TILE_THREADS };
        let width = u64::from(tile).min(self.arguments.n);
        let is_regular = matches!(width, 64 | 128 | 256) && self.arguments.n.is_multiple_of(width);
        let is_short = self.arguments.m == 1 && self.weight.is_all_even() && is_regular;
        if is_short { EVEN_THREADS } else { TILE_THREADS }
    }

    /// Bytes of shared memory of the first launch.
    fn shared(&self) -> u32 {
        if self.is_tensor {
            return tensor::shared(&self.arguments, &self.weight.arguments);
        }
        let Layout::ColumnTiles { tile } = self.weight.layout else { return self.weight.shared() };
        // As in the kernel: tiles of other widths put the weights of a block there.
        let block_len = u64::from(self.weight.arguments.block_len);
        let is_regular =
            |columns: u64| matches!(columns, 64 | 128 | 256) && block_len.is_multiple_of(columns);
        let (tile, n) = (u64::from(tile), self.arguments.n);
        let regular = is_regular(tile.min(n)) && (n <= tile || n % tile == 0 || is_regular(n % tile));
        // The short way leaves blocks that are not whole to the other one.
        let is_short = self.arguments.m == 1 && self.weight.arguments.is_even == 1;
        self.weight.shared() + if regular && !is_short { SUMS_SIZE } else { WEIGHTS_SIZE }
    }
}
