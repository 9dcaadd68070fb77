//! `nz.DecodeGather`: the rows asked for, and no others.

use std::sync::{Mutex, PoisonError};

use super::plan::is_small;
use crate::format::{Dtype, Layout};
use crate::ort::api::{KernelContext, KernelInfo, Tensor, Workers, element, threads};
use crate::ort::fence::{Failure, Result};
use crate::ort::ops::Kernel;
use crate::ort::weight::{Bound, Stored, Weight};

/// The kernel of one node.
pub(crate) struct Gather {
    weight: Weight,
    rows: usize,
    /// Weights a row.
    row_len: usize,
    row_dims: Vec<i64>,
    /// Of the output: float32, or what the weight has.
    dtype: Dtype,
}

impl Gather {
    /// The kernel of the node that `info` describes.
    pub fn new(info: &KernelInfo<'_>) -> Result<Self> {
        Gather::with(Weight::new(info, 0, None, Stored::Rows)?, Dtype::F32)
    }

    /// The same for a weight of integers of `dtype`.
    pub fn of_integers(info: &KernelInfo<'_>, dtype: Dtype) -> Result<Self> {
        Gather::with(Weight::new(info, 0, None, Stored::Integers(dtype))?, dtype)
    }

    /// The kernel of an ONNX `Gather` along the first axis of this weight of `dtype`, input 0.
    pub fn packed(weight: Weight, dtype: Dtype) -> Result<Self> {
        Gather::with(weight, dtype)
    }

    fn with(weight: Weight, dtype: Dtype) -> Result<Self> {
        let too_large = || Failure::fail(format!("shape {:?} is too large", weight.shape()));
        let (&rows, row) = weight.shape().split_first().ok_or_else(too_large)?;
        let row_len =
            row.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).and_then(|n| usize::try_from(n).ok());
        let (row_len, rows) =
            (row_len.ok_or_else(too_large)?, usize::try_from(rows).map_err(|_| too_large())?);
        let row_dims = row.iter().map(|&d| d as i64).collect();
        Ok(Gather { rows, row_len, row_dims, weight, dtype })
    }

    /// The rows that `indices` name.
    fn rows(&self, indices: &Tensor<'_>) -> Result<Vec<usize>> {
        let row = |index: i64| {
            let rows = self.rows as i64;
            if (-rows..rows).contains(&index) {
                return Ok((if index < 0 { index + rows } else { index }) as usize);
            }
            let message = format!("index {index} (input 1) is out of range: from {} to {}", -rows, rows - 1);
            Err(Failure::invalid(message))
        };
        match indices.element() {
            element::INT32 => indices.values::<i32>()?.iter().map(|&i| row(i.into())).collect(),
            element::INT64 => indices.values::<i64>()?.iter().map(|&i| row(i)).collect(),
            other => Err(Failure::invalid(format!(
                "indices (input 1) must be int32 or int64, found element type {other}"
            ))),
        }
    }
}

impl Kernel for Gather {
    fn compute(&self, mut context: KernelContext<'_>) -> Result<()> {
        let weight = self.weight.bind(&context)?;
        let indices = context.required(1)?;
        let rows = self.rows(&indices)?;
        let dims: Vec<i64> = indices.dims().iter().chain(&self.row_dims).copied().collect();
        let workers = context.workers();
        match self.dtype {
            Dtype::F32 => {
                let out = context.only_output(&dims)?;
                self.gather(&weight, &rows, &workers, out, |first, out| weight.decode(first, out))
            }
            Dtype::F16 | Dtype::Bf16 => {
                let decode =
                    |first, out: &mut [u16]| weight.decode_elements(first, bytemuck::cast_slice_mut(out));
                self.gather(&weight, &rows, &workers, context.only_output(&dims)?, decode)
            }
            Dtype::U8 | Dtype::I8 => {
                let decode = |first, out: &mut [u8]| weight.decode_elements(first, out);
                self.gather(&weight, &rows, &workers, context.only_output(&dims)?, decode)
            }
        }
    }
}

impl Gather {
    /// Sets `out` to `rows`; `decode` decodes from a slot on.
    fn gather<T: Send>(
        &self,
        weight: &Bound<'_>,
        rows: &[usize],
        workers: &Workers<'_>,
        out: &mut [T],
        decode: impl Fn(usize, &mut [T]) -> Result<()> + Sync,
    ) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        // A row costs at least a block, however short it is.
        let cost = rows.len().saturating_mul(self.row_len.max(weight.header().block_len as usize));
        let share = if is_small(cost, 0) { rows.len() } else { rows.len().div_ceil(4 * threads()) };
        let tasks: Vec<_> =
            rows.chunks(share).zip(out.chunks_mut(share * self.row_len)).map(Mutex::new).collect();
        workers.run(tasks.len(), |index| {
            let mut task = tasks[index].lock().unwrap_or_else(PoisonError::into_inner);
            let (rows, out) = &mut *task;
            if let Layout::ColumnTiles { tile } = weight.header().spec.layout {
                let rows = rows.iter().zip(out.chunks_mut(self.row_len));
                return rows.into_iter().try_for_each(|(&row, out)| {
                    (0..self.row_len)
                        .step_by(tile as usize)
                        .zip(out.chunks_mut(tile as usize))
                        .try_for_each(|(first, out)| decode(first * self.rows + row * out.len(), out))
                });
            }
            let mut done = 0;
            // Rows that follow each other share blocks: they are decoded together.
            for run in rows.chunk_by(|a, b| a + 1 == *b) {
                let part = &mut out[done * self.row_len..(done + run.len()) * self.row_len];
                decode(run[0] * self.row_len, part)?;
                done += run.len();
            }
            Ok(())
        })
    }
}
