//! `nz.DecodeMatMul` and ONNX `MatMul`: `Y = X * W`, with batch dimensions as in ONNX `MatMul`.

use super::product::{Product, View};
use crate::ort::api::{KernelContext, KernelInfo, Tensor};
use crate::ort::fence::{Failure, Result};
use crate::ort::ops::Kernel;
use crate::ort::weight::{Bound, Stored, Weight};

/// The kernel of one node.
pub(crate) struct MatMul {
    weight: Weight,
    matrix: Matrix,
    /// Dimensions of the weight before those of the matrix.
    batch: Vec<i64>,
    alpha: f32,
    /// Whether the last two dimensions of `X` are `[K, M]`, if it has two.
    trans_a: bool,
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

    /// The weight of an ONNX node, by its `transB`.
    pub fn packed(info: &KernelInfo<'_>, weight: &Weight) -> Result<Matrix> {
        Matrix::of(weight.shape(), (info.int(c"transB").unwrap_or(0) != 0) ^ weight.is_turned())
    }

    /// A weight of a shape that ends with `[N, K]` if `transposed` and `[K, N]` otherwise.
    pub fn of(shape: &[u64], transposed: bool) -> Result<Matrix> {
        let &[.., rows, columns] = shape else {
            return Err(Failure::fail(format!("shape {shape:?} is that of no matrix")));
        };
        let size = |dim: u64| {
            // `isize`, so that strides and dimensions fit in all that they are passed on as.
            isize::try_from(dim)
                .map(|d| d as usize)
                .map_err(|_| Failure::fail(format!("dimension {dim} is too large")))
        };
        let (rows, columns) = (size(rows)?, size(columns)?);
        let (k, n) = if transposed { (columns, rows) } else { (rows, columns) };
        Ok(Matrix { k, n, transposed })
    }
}

impl MatMul {
    /// The kernel of the node that `info` describes.
    pub fn new(info: &KernelInfo<'_>) -> Result<Self> {
        let (weight, matrix) = Matrix::new(info)?;
        Ok(MatMul { weight, matrix, batch: Vec::new(), alpha: 1.0, trans_a: false })
    }

    /// The kernel of an ONNX `MatMul`, or a `FusedMatMul` that transposes no batches, with this weight as input 1.
    pub fn packed(info: &KernelInfo<'_>, weight: Weight) -> Result<Self> {
        let alpha = info.float(c"alpha").unwrap_or(1.0);
        let matrix = Matrix::packed(info, &weight)?;
        let batch = weight.shape().iter().rev().skip(2).rev().map(|&d| d as i64).collect();
        let trans_a = info.int(c"transA").unwrap_or(0) != 0;
        Ok(MatMul { weight, matrix, batch, alpha, trans_a })
    }

    /// The products of a batch of matrices, each with its own rows of `x`.
    fn batched(&self, context: &mut KernelContext<'_>, weight: &Bound<'_>, x: &Tensor<'_>) -> Result<()> {
        let Matrix { k, n, transposed } = self.matrix;
        let (rows, batch) = match *x.dims() {
            [_] => (None, &[][..]),
            [ref batch @ .., _, m] if self.trans_a => (Some(m), batch),
            [ref batch @ .., m, _] => (Some(m), batch),
            [] => (None, &[][..]),
        };
        let all = broadcast(batch, &self.batch).ok_or_else(|| {
            let (found, weight) = (x.dims(), self.weight.shape());
            Failure::invalid(format!(
                "X (input 0) has shape {found:?}, which does not go with that of B, {weight:?}"
            ))
        })?;
        let m = rows.unwrap_or(1) as usize;
        let dims: Vec<i64> = all.iter().copied().chain(rows).chain([n as i64]).collect();
        let values = x.floats()?;
        let workers = context.workers();
        let height = self.batch.iter().product::<i64>() as usize * if transposed { n } else { k };
        context.fill_output(x.element(), &dims, |y| {
            for (index, y) in y.chunks_exact_mut((m * n).max(1)).enumerate() {
                let (of_x, of_w) = (place(index, &all, batch), place(index, &all, &self.batch));
                let data = &values[of_x * m * k..][..m * k];
                let (row_stride, column_stride) = if self.trans_a { (1, m) } else { (k, 1) };
                let x = View { data, row_stride, column_stride };
                let (alpha, first_row) = (self.alpha, of_w * k);
                let product = Product { m, k, n, x, alpha, addend: None, transposed, first_row, height };
                product.run(weight, &workers, y)?;
            }
            Ok(())
        })
    }
}

/// The shape that two batches have together, if they go together.
fn broadcast(a: &[i64], b: &[i64]) -> Option<Vec<i64>> {
    let rank = a.len().max(b.len());
    let dim = |of: &[i64], axis: usize| (axis + of.len()).checked_sub(rank).map_or(1, |axis| of[axis]);
    let both = |axis| match (dim(a, axis), dim(b, axis)) {
        (1, other) | (other, 1) => Some(other),
        (a, b) => (a == b).then_some(a),
    };
    (0..rank).map(both).collect()
}

/// Which element of a batch `of` is the one at `index` of the batch `all`, over which it is spread.
fn place(index: usize, all: &[i64], of: &[i64]) -> usize {
    let (mut rest, mut place, mut stride) = (index, 0, 1);
    for (axis, &dim) in all.iter().enumerate().rev() {
        let at = rest % dim as usize;
        rest /= dim as usize;
        if let Some(own) = (axis + of.len()).checked_sub(all.len()) {
            place += if of[own] == 1 { 0 } else { at * stride };
            stride *= of[own] as usize;
        }
    }
    place
}

impl Kernel for MatMul {
    fn compute(&self, mut context: KernelContext<'_>) -> Result<()> {
        let Matrix { k, n, transposed } = self.matrix;
        let weight = self.weight.bind(&context)?;
        let x = context.required(0)?;
        // As in ONNX Runtime, a vector is never transposed.
        let trans_a = self.trans_a && x.dims().len() > 1;
        let inner = x.dims().iter().rev().nth(usize::from(trans_a));
        if inner != Some(&(k as i64)) {
            let which = if trans_a { "last dimension but one" } else { "last dimension" };
            return Err(Failure::invalid(format!(
                "X (input 0) has shape {:?}, but the weight has K = {k}: the {which} must be {k}",
                x.dims()
            )));
        }
        if trans_a || !self.batch.is_empty() {
            return self.batched(&mut context, &weight, &x);
        }
        let batch = &x.dims()[..x.dims().len() - 1];
        let values = x.floats()?;
        let m = values.len() / k;
        let dims: Vec<i64> = batch.iter().copied().chain([n as i64]).collect();
        let workers = context.workers();
        context.fill_output(x.element(), &dims, |y| {
            if m == 0 {
                return Ok(());
            }
            let x = View { data: &values, row_stride: k, column_stride: 1 };
            let (alpha, first_row, height) = (self.alpha, 0, if transposed { n } else { k });
            Product { m, k, n, x, alpha, addend: None, transposed, first_row, height }
                .run(&weight, &workers, y)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{broadcast, place};

    #[test]
    fn batches_spread_as_in_onnx() {
        assert_eq!(broadcast(&[], &[3]), Some(vec![3]));
        assert_eq!(broadcast(&[5, 1], &[3]), Some(vec![5, 3]));
        assert_eq!(broadcast(&[1], &[2, 4]), Some(vec![2, 4]));
        assert_eq!(broadcast(&[0], &[1]), Some(vec![0]));
        assert_eq!(broadcast(&[2], &[3]), None);
        let all = [2, 3, 4];
        for index in 0..24 {
            let (a, b, c) = (index / 12, index / 4 % 3, index % 4);
            assert_eq!(place(index, &all, &[2, 3, 4]), index);
            assert_eq!(place(index, &all, &[3, 1]), b);
            assert_eq!(place(index, &all, &[2, 1, 4]), a * 4 + c);
            assert_eq!(place(index, &all, &[]), 0);
        }
    }
}
