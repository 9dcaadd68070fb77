//! `nz.DecodeMatMul`: `Y = X * W`, batch dimensions of `X` as in ONNX `MatMul`.

use super::product::{Product, View};
use crate::ort::api::{KernelContext, KernelInfo};
use crate::ort::fence::{Failure, Result};
use crate::ort::ops::Kernel;
use crate::ort::weight::{Stored, Weight};

/// The kernel of one node.
pub(crate) struct MatMul {
    weight: Weight,
    matrix: Matrix,
}

/// The weight as a right-hand side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Matrix {
    pub k: usize,
    pub n: usize,
    pub transposed: bool,
}

impl Matrix {
    /// Reads the weight (input 1) and `transB` of a node of this library's own ops.
    pub fn new(info: &KernelInfo<'_>) -> Result<(Weight, Matrix)> {
        let transposed = info.int(c"transB").unwrap_or(0) != 0;
        let stored = if transposed { Stored::Rows } else { Stored::Tiles };
        let weight = Weight::new(info, 1, Some(2), stored)?;
        let matrix = Matrix::of(weight.shape(), transposed)?;
        Ok((weight, matrix))
    }

    /// A weight of this shape, `[N, K]` if `transposed` and `[K, N]` otherwise.
    pub fn of(shape: &[u64], transposed: bool) -> Result<Matrix> {
        let size = |axis: usize| {
            let dim = shape.get(axis).copied().unwrap_or(1);
            // `isize`, so that strides and dimensions fit in all that they are passed on as.
            isize::try_from(dim)
                .map(|d| d as usize)
                .map_err(|_| Failure::fail(format!("dimension {dim} is too large")))
        };
        let (rows, columns) = (size(0)?, size(1)?);
        let (k, n) = if transposed { (columns, rows) } else { (rows, columns) };
        Ok(Matrix { k, n, transposed })
    }
}

impl MatMul {
    /// The kernel of the node that `info` describes.
    pub fn new(info: &KernelInfo<'_>) -> Result<Self> {
        let (weight, matrix) = Matrix::new(info)?;
        Ok(MatMul { weight, matrix })
    }

    /// The kernel of an ONNX `MatMul` with this weight as input 1.
    pub fn packed(weight: Weight) -> Result<Self> {
        let matrix = Matrix::of(weight.shape(), false)?;
        Ok(MatMul { weight, matrix })
    }
}

impl Kernel for MatMul {
    fn compute(&self, mut context: KernelContext<'_>) -> Result<()> {
        let Matrix { k, n, transposed } = self.matrix;
        let weight = self.weight.bind(&context)?;
        let x = context.required(0)?;
        let Some((_, batch)) = x.dims().split_last().filter(|(last, _)| **last == k as i64) else {
            return Err(Failure::invalid(format!(
                "X (input 0) has shape {:?}, but the weight has K = {k}: the last dimension must be {k}",
                x.dims()
            )));
        };
        let values = x.floats()?;
        let m = values.len() / k;
        let dims: Vec<i64> = batch.iter().copied().chain([n as i64]).collect();
        let workers = context.workers();
        context.fill_output(x.element(), &dims, |y| {
            if m == 0 {
                return Ok(());
            }
            let x = View { data: &values, row_stride: k, column_stride: 1 };
            Product { m, k, n, x, alpha: 1.0, addend: None, transposed, first: 0 }.run(&weight, &workers, y)
        })
    }
}
