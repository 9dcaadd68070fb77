//! Products with tensor cores: of bfloat16 with bfloat16 weights whose blocks warps decode on their own.

mod tiles;

use super::super::job::{DeviceWeight, Kernel, lean_shared_of_windows};
use super::super::layout::{
    LEAN_THREADS, ProductArguments, SELECTORS_SIZE, TENSOR_THREADS, TENSOR_TILE, WARP_SLOTS, WeightArguments,
};
use crate::format::{Dtype, Layout, MAX_BLOCK};

/// Slots that a warp has ready at a time.
const PASS: u32 = MAX_BLOCK / 4;
/// Shared memory that all devices with these kernels have, if they are asked for it.
pub(in crate::cuda) const SHARED_LIMIT: u32 = 96 << 10;
/// The most rows of X.
pub(super) const MOST_ROWS: u32 = 64;

/// What kernels are told of a product of `m` rows, if there is one for it.
pub(super) fn plan(weight: &DeviceWeight, m: u32, dtype: Dtype) -> Option<ProductArguments> {
    let &[n, k] = weight.shape.as_slice() else { return None };
    if dtype != Dtype::Bf16 || !weight.is_lean() {
        return None;
    }
    if let Layout::ColumnTiles { tile } = weight.layout {
        return tiles::plan(weight, tile, m);
    }
    if k > i32::MAX as u64 {
        return None;
    }
    let arguments = ProductArguments { n, k, m, ..Default::default() };
    match m {
        1 => one_row(arguments),
        2..=MOST_ROWS => many_rows(arguments),
        _ => None,
    }
}

fn one_row(arguments: ProductArguments) -> Option<ProductArguments> {
    let k = arguments.k;
    if !k.is_multiple_of(WARP_SLOTS.into()) {
        return None;
    }
    let row_chunks = k as u32 / WARP_SLOTS;
    Some(ProductArguments {
        is_rows: 1,
        chunk_segments: 1,
        // One sum a block, or one for each part of a block that is in one row.
        block_chunks: if k.is_multiple_of(MAX_BLOCK.into()) { 1 } else { MAX_BLOCK / WARP_SLOTS },
        row_chunks,
        row_reciprocal: u32::MAX / row_chunks,
        ..arguments
    })
}

/// Rows that are whole blocks, or blocks that are whole rows.
fn many_rows(arguments: ProductArguments) -> Option<ProductArguments> {
    let ProductArguments { n, k, .. } = arguments;
    let block = u64::from(MAX_BLOCK);
    // Kernels have 32 bits for a place in X.
    if 2 * k * u64::from(arguments.m) > u32::MAX.into() {
        return None;
    }
    let (splits, block_rows) = match k {
        _ if k.is_multiple_of(block) => (k / block, 1),
        _ if k >= PASS.into() && block.is_multiple_of(k) => (1, block / k),
        _ => return None,
    };
    Some(ProductArguments {
        splits: splits as u32,
        items: u32::try_from(n / block_rows).ok()?,
        row_passes: 4 / block_rows as u32,
        ..arguments
    })
}

/// Kernel, grid and threads of the first launch; the weight has `blocks`.
pub(super) fn launch(arguments: &ProductArguments, blocks: u32) -> (Kernel, (u32, u32), u32) {
    match arguments.m {
        _ if arguments.is_tiled() => tiles::launch(arguments),
        1 => (Kernel::TensorRow, (blocks.div_ceil(LEAN_THREADS / 32), 1), LEAN_THREADS),
        m => {
            let kernel = Kernel::TensorRows(m.next_power_of_two().max(8));
            let tiles = arguments.items.div_ceil(TENSOR_THREADS / 32);
            (kernel, (tiles * arguments.splits, 1), TENSOR_THREADS)
        }
    }
}

/// Bytes of shared memory that it takes: tails and literals of each warp, or what is decoded in place of the literals.
pub(super) fn shared(arguments: &ProductArguments, weight: &WeightArguments) -> u32 {
    match arguments.m {
        _ if arguments.is_tiled() => tiles::shared(arguments, weight),
        1 => lean_shared_of_windows(weight),
        _ => {
            let tails = TENSOR_THREADS / 32 * weight.tail_room;
            SELECTORS_SIZE + tails + tails.max(TENSOR_TILE)
        }
    }
}
