//! `nz.Decode`: the whole weight, row-major.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::plan::is_small;
use super::scratch;
use crate::format::Layout;
use crate::ort::api::{KernelContext, KernelInfo, threads};
use crate::ort::fence::{Failure, Result};
use crate::ort::ops::Kernel;
use crate::ort::weight::{Bound, Stored, Weight};

/// The least weights a task, when there are several.
const LEAST: usize = 1 << 15;

/// The kernel of one node.
pub(crate) struct Decode {
    weight: Weight,
    dims: Vec<i64>,
}

impl Decode {
    /// The kernel of the node that `info` describes.
    pub fn new(info: &KernelInfo<'_>) -> Result<Self> {
        let weight = Weight::new(info, 0, None, Stored::Any)?;
        let dims = weight.shape().iter().map(|&d| d as i64).collect();
        Ok(Decode { weight, dims })
    }
}

impl Kernel for Decode {
    fn compute(&self, mut context: KernelContext<'_>) -> Result<()> {
        let weight = self.weight.bind(&context)?;
        let workers = context.workers();
        let out = context.only_output(&self.dims)?;
        let header = weight.header();
        // A task gets whole rows, or with one row only, whole blocks.
        let row = match header.spec.layout {
            Layout::ColumnTiles { .. } => header.spec.shape[1] as usize,
            Layout::RowMajor => header.block_len as usize,
        };
        let share =
            if is_small(out.len(), 0) { out.len() } else { out.len().div_ceil(4 * threads()).max(LEAST) };
        let rows = match header.spec.layout {
            // Blocks of a full tile are this many rows, or a divisor of them.
            Layout::ColumnTiles { tile } => {
                share.div_ceil(row).next_multiple_of((header.block_len / tile).max(1) as usize)
            }
            Layout::RowMajor => share.div_ceil(row),
        };
        let parts: Vec<Mutex<&mut [f32]>> =
            out.chunks_mut(rows.saturating_mul(row)).map(Mutex::new).collect();
        workers.run(parts.len(), |index| {
            let mut part = parts[index].lock().unwrap_or_else(PoisonError::into_inner);
            match header.spec.layout {
                Layout::RowMajor => weight.decode(index * rows * row, &mut part),
                Layout::ColumnTiles { tile } => {
                    let rows = index * rows..index * rows + part.len() / row;
                    untile(&weight, tile as usize, rows, &mut part)
                }
            }
        })
    }
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
