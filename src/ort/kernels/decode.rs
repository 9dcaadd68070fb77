//! `nz.Decode`: the whole weight, row-major.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::plan::is_small;
use super::scratch;
use crate::format::{Dtype, Layout};
use crate::ort::api::{KernelContext, KernelInfo, Workers, threads};
use crate::ort::fence::{Failure, Result};
use crate::ort::ops::Kernel;
use crate::ort::weight::{Bound, Stored, Weight};

/// The least weights a task, when there are several.
const LEAST: usize = 1 << 15;

/// The kernel of one node.
pub(crate) struct Decode {
    weight: Weight,
    dims: Vec<i64>,
    /// Of the output, if it is of integers.
    integers: bool,
}

impl Decode {
    /// The kernel of the node that `info` describes.
    pub fn new(info: &KernelInfo<'_>) -> Result<Self> {
        Ok(Decode::with(Weight::new(info, 0, None, Stored::Any)?, false))
    }

    /// The same for a weight of integers of `dtype`.
    pub fn of_integers(info: &KernelInfo<'_>, dtype: Dtype) -> Result<Self> {
        Ok(Decode::with(Weight::new(info, 0, None, Stored::Integers(dtype))?, true))
    }

    fn with(weight: Weight, integers: bool) -> Self {
        let dims = weight.shape().iter().map(|&d| d as i64).collect();
        Decode { weight, dims, integers }
    }
}

impl Kernel for Decode {
    fn compute(&self, mut context: KernelContext<'_>) -> Result<()> {
        let weight = self.weight.bind(&context)?;
        let workers = context.workers();
        if self.integers {
            let out: &mut [u8] = context.only_output(&self.dims)?;
            return rows_of(&weight, &workers, out, |first, out| weight.decode_elements(first, out));
        }
        let out = context.only_output(&self.dims)?;
        match weight.header().spec.layout {
            Layout::RowMajor => rows_of(&weight, &workers, out, |first, out| weight.decode(first, out)),
            Layout::ColumnTiles { tile } => tiles_of(&weight, &workers, tile, out),
        }
    }
}

/// Weights, or rows of them, that a task gets.
fn share(len: usize) -> usize {
    if is_small(len, 0) { len } else { len.div_ceil(4 * threads()).max(LEAST) }
}

/// Decodes a row-major weight: `decode` decodes from a slot on. A task gets whole blocks.
fn rows_of<T: Send>(
    weight: &Bound<'_>,
    workers: &Workers<'_>,
    out: &mut [T],
    decode: impl Fn(usize, &mut [T]) -> Result<()> + Sync,
) -> Result<()> {
    let share = share(out.len()).next_multiple_of(weight.header().block_len as usize).max(1);
    let parts: Vec<_> = out.chunks_mut(share).map(Mutex::new).collect();
    workers.run(parts.len(), |index| {
        let mut part = parts[index].lock().unwrap_or_else(PoisonError::into_inner);
        decode(index * share, &mut part)
    })
}

/// Decodes a weight in column tiles to row-major order. A task gets whole rows.
fn tiles_of(weight: &Bound<'_>, workers: &Workers<'_>, tile: u32, out: &mut [f32]) -> Result<()> {
    let header = weight.header();
    let row = header.spec.shape[1] as usize;
    // Blocks of a full tile are this many rows, or a divisor of them.
    let rows = share(out.len()).div_ceil(row).next_multiple_of((header.block_len / tile).max(1) as usize);
    let parts: Vec<Mutex<&mut [f32]>> = out.chunks_mut(rows.saturating_mul(row)).map(Mutex::new).collect();
    workers.run(parts.len(), |index| {
        let mut part = parts[index].lock().unwrap_or_else(PoisonError::into_inner);
        let rows = index * rows..index * rows + part.len() / row;
        untile(weight, tile as usize, rows, &mut part)
    })
}

/// Decodes `rows` of a weight in column tiles to row-major order.
fn untile(weight: &Bound<'_>, tile: usize, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
    let &[k, n] = weight.header().spec.shape.as_slice() else {
        return Err(Failure::fail("internal error: column tiles of something that is not a matrix"));
    };
    let (k, n) = (k as usize, n as usize);
    for first in (0..n).step_by(tile) {
        let width = tile.min(n - first);
        // A tile may be as wide as the blob says; a step is what fits in the scratch.
        let step = (scratch::CAPACITY / width).max(1);
        for start in rows.clone().step_by(step) {
            let count = step.min(rows.end - start);
            scratch::with(count * width, |values| {
                weight.decode(first * k + start * width, values)?;
                let out = out[(start - rows.start) * n..].chunks_mut(n);
                for (row, values) in out.zip(values.chunks(width)) {
                    row[first..first + width].copy_from_slice(values);
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}
