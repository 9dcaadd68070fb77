//! The same of weights in column tiles.

use super::super::super::job::{DeviceWeight, Kernel, MAX_GRID_Y, lean_shared};
use super::super::super::layout::{
    LEAN_THREADS, MAX_TILE, ProductArguments, SELECTORS_SIZE, TENSOR_SQUARE, TENSOR_THREADS, TILE_BLOCKS,
    WeightArguments,
};

/// The most rows of X.
const MOST_ROWS: u32 = 32;
/// Thread blocks of a product of many rows, about: two for each of an H200's multiprocessors.
const SQUARE_BLOCKS: u64 = 264;

/// What kernels are told of a product of `m` rows with a weight in tiles of `tile` columns, if there is one for it.
pub(super) fn plan(weight: &DeviceWeight, tile: u32, m: u32) -> Option<ProductArguments> {
    let &[k, n] = weight.shape.as_slice() else { return None };
    let tiles = n.div_ceil(tile.into());
    let (first, last) = (n.min(tile.into()), n - (tiles - 1) * u64::from(tile));
    let widest = u64::from(MAX_TILE);
    let is_taken = match m {
        1 => [first, last].iter().all(|width| matches!(width, 64 | 128 | 256)),
        2..=MOST_ROWS => first == widest && last == widest,
        _ => false,
    };
    if !is_taken || tiles > MAX_GRID_Y {
        return None;
    }
    // Each thread block has a whole number of blocks for each of its warps.
    let (warps, wanted) = match m {
        1 => (LEAN_THREADS / 32, TILE_BLOCKS),
        _ => (TENSOR_THREADS / 32, SQUARE_BLOCKS),
    };
    let blocks = u64::from(weight.arguments.blocks_per_tile);
    let steps = blocks.div_ceil(warps.into());
    let split_blocks = u64::from(warps) * steps.div_ceil(wanted.div_ceil(tiles).min(steps));
    Some(ProductArguments {
        n,
        k,
        m,
        tile_width: tile,
        splits: blocks.div_ceil(split_blocks) as u32,
        split_blocks: split_blocks as u32,
        ..Default::default()
    })
}

/// Kernel, grid and threads of the first launch.
pub(super) fn launch(arguments: &ProductArguments) -> (Kernel, (u32, u32), u32) {
    let tiles = arguments.n.div_ceil(arguments.tile_width.into()) as u32;
    let threads = if arguments.m == 1 { LEAN_THREADS } else { TENSOR_THREADS };
    (Kernel::TensorTiles(kernel_rows(arguments.m)), (arguments.splits, tiles), threads)
}

/// Bytes of shared memory that it takes: tails and literals of each warp; the sums of one row in the place of both, of many what
/// is decoded, and X, in the place of the literals.
pub(super) fn shared(arguments: &ProductArguments, weight: &WeightArguments) -> u32 {
    match arguments.m {
        1 => lean_shared(weight).max(LEAN_THREADS / 32 * MAX_TILE * size_of::<f32>() as u32),
        m => {
            let tails = TENSOR_THREADS / 32 * weight.tail_room;
            SELECTORS_SIZE + tails + tails.max(TENSOR_SQUARE + 32 * 16 * (kernel_rows(m) + 1))
        }
    }
}

/// The rows of X that the kernel for `m` takes.
fn kernel_rows(m: u32) -> u32 {
    if m == 1 { 1 } else { m.next_power_of_two().max(8) }
}
