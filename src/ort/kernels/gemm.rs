//! `nz.DecodeGemm`: `Y = alpha * A * W + beta * C`, as ONNX `Gemm`.

use super::activation::Activation;
use super::matmul::Matrix;
use super::product::{Product, View};
use crate::ort::api::{KernelContext, KernelInfo};
use crate::ort::fence::{Failure, Result};
use crate::ort::ops::Kernel;
use crate::ort::weight::Weight;

/// The kernel of one node.
pub(crate) struct Gemm {
    weight: Weight,
    matrix: Matrix,
    alpha: f32,
    beta: f32,
    trans_a: bool,
    activation: Activation,
}

impl Gemm {
    /// The kernel of the node that `info` describes.
    pub fn new(info: &KernelInfo<'_>) -> Result<Self> {
        let (weight, matrix) = Matrix::new(info)?;
        Ok(Gemm::with(info, weight, matrix, Activation::None))
    }

    /// The kernel of an ONNX `Gemm`, or a `FusedGemm`, with this weight as input 1.
    pub fn packed(info: &KernelInfo<'_>, weight: Weight) -> Result<Self> {
        let matrix = Matrix::packed(info, &weight)?;
        Ok(Gemm::with(info, weight, matrix, Activation::of(info)?))
    }

    fn with(info: &KernelInfo<'_>, weight: Weight, matrix: Matrix, activation: Activation) -> Self {
        let (alpha, beta) = (info.float(c"alpha").unwrap_or(1.0), info.float(c"beta").unwrap_or(1.0));
        let trans_a = info.int(c"transA").unwrap_or(0) != 0;
        Gemm { weight, matrix, alpha, beta, trans_a, activation }
    }
}

/// `C` spread over `[m, n]`: its strides, or nothing if its shape does not go with that.
fn spread(dims: &[i64], m: usize, n: usize) -> Option<(usize, usize)> {
    let (rows, columns) = match *dims {
        [] => (1, 1),
        [columns] => (1, columns),
        [rows, columns] => (rows, columns),
        _ => return None,
    };
    let (m, n) = (m as i64, n as i64);
    if (rows != 1 && rows != m) || (columns != 1 && columns != n) {
        return None;
    }
    let row_stride = if rows == 1 { 0 } else { columns as usize };
    Some((row_stride, usize::from(columns != 1)))
}

/// Rows of `A` with this shape, `[M, K]` or, transposed, `[K, M]`.
pub(crate) fn rows_of(dims: &[i64], k: usize, trans_a: bool) -> Result<usize> {
    let shape = match *dims {
        [m, inner] if !trans_a => Some((m as usize, inner)),
        [inner, m] if trans_a => Some((m as usize, inner)),
        _ => None,
    };
    let rows = shape.filter(|&(_, inner)| inner == k as i64).map(|(m, _)| m);
    rows.ok_or_else(|| {
        let wanted = if trans_a { format!("[{k}, M]") } else { format!("[M, {k}]") };
        Failure::invalid(format!(
            "A (input 0) has shape {dims:?}, but the weight has K = {k}: it must be {wanted}"
        ))
    })
}

/// The strides of a `C` with this shape, spread over `[m, n]`.
pub(crate) fn addend_strides(dims: &[i64], m: usize, n: usize) -> Result<(usize, usize)> {
    spread(dims, m, n).ok_or_else(|| {
        Failure::invalid(format!("C (input 2) has shape {dims:?}, which does not broadcast to [{m}, {n}]"))
    })
}

impl Kernel for Gemm {
    fn compute(&self, mut context: KernelContext<'_>) -> Result<()> {
        let Matrix { k, n, transposed } = self.matrix;
        let weight = self.weight.bind(&context)?;
        let a = context.required(0)?;
        let m = rows_of(a.dims(), k, self.trans_a)?;
        let values = a.floats()?;
        let c = context.input(if self.weight.has_base() { 3 } else { 2 })?;
        let c = match &c {
            None => None,
            Some(c) => {
                let (row_stride, column_stride) = addend_strides(c.dims(), m, n)?;
                Some((c.floats()?, row_stride, column_stride))
            }
        };
        let addend = c.as_ref().filter(|_| self.beta != 0.0).map(|(data, row_stride, column_stride)| {
            (self.beta, View { data, row_stride: *row_stride, column_stride: *column_stride })
        });
        let workers = context.workers();
        context.fill_output(a.element(), &[m as i64, n as i64], |y| {
            if m == 0 {
                return Ok(());
            }
            let (row_stride, column_stride) = if self.trans_a { (1, m) } else { (k, 1) };
            let x = View { data: &values, row_stride, column_stride };
            let (alpha, first_row, height) = (self.alpha, 0, if transposed { n } else { k });
            Product { m, k, n, x, alpha, addend, transposed, first_row, height }.run(&weight, &workers, y)?;
            self.activation.apply(y);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn c_spreads_as_in_onnx() {
        assert_eq!(spread(&[], 3, 4), Some((0, 0)));
        assert_eq!(spread(&[1], 3, 4), Some((0, 0)));
        assert_eq!(spread(&[4], 3, 4), Some((0, 1)));
        assert_eq!(spread(&[1, 4], 3, 4), Some((0, 1)));
        assert_eq!(spread(&[3, 1], 3, 4), Some((1, 0)));
        assert_eq!(spread(&[3, 4], 3, 4), Some((4, 1)));
        assert_eq!(spread(&[3], 3, 4), None);
        assert_eq!(spread(&[4, 3], 3, 4), None);
        assert_eq!(spread(&[1, 3, 4], 3, 4), None);
    }
}
