//! `nz.DecodeMatMul` and `nz.DecodeGemm` on a device: for few rows straight from the blob; else a set of tiles is decoded to
//! scratch and multiplied by ONNX Runtime's own `Gemm`, set after set.

use std::ffi::c_void;
use std::ops::Range;

use super::host::{DeviceMatrix, GemmAttributes, HostGemm};
use super::shared::{ALIGN, told};
use super::weight::{Bound, Resident, Weight};
use crate::cuda::job::Output;
use crate::cuda::port::RowCopy;
use crate::cuda::product::{Addend, MOST_ROWS, Operands, Product};
use crate::format::{Dtype, Layout};
use crate::ort::api::{KernelContext, KernelInfo, Tensor, element};
use crate::ort::fence::{Failure, Result};
use crate::ort::kernels::{Matrix, addend_strides, rows_of};
use crate::ort::ops::Kernel;
use crate::ort::weight::Stored;

/// Bytes of decoded weights that a set of tiles has, unless one tile has more.
const SET_BYTES: usize = 64 << 20;

/// Rows of a product straight from the blob with tensor cores, at most. Kernels take 64; what they read of X with more than these
/// makes them, on paper, no faster than decoding and a product (docs/cuda.md, "The roofline").
const TENSOR_ROWS: u32 = 32;

/// A node's product.
struct Multiply {
    weight: Weight,
    k: usize,
    n: usize,
    attributes: GemmAttributes,
    /// Why there is none is told when it is needed: few rows do without.
    gemm: Result<HostGemm>,
}

/// The left operand, `[m, k]` or, for a product that transposes it, `[k, m]`; and what is added.
struct Call<'a> {
    dtype: Dtype,
    m: usize,
    x: &'a Tensor<'a>,
    y: u64,
    /// `C`: address, rows and columns.
    addend: Option<&'a DeviceMatrix>,
}

fn dtype_of(tensor: &Tensor<'_>) -> Result<Dtype> {
    match tensor.element() {
        element::FLOAT => Ok(Dtype::F32),
        element::FLOAT16 => Ok(Dtype::F16),
        element::BFLOAT16 => Ok(Dtype::Bf16),
        other => Err(Failure::invalid(format!(
            "float32, float16 or bfloat16 expected, found element type {other}"
        ))),
    }
}

impl Multiply {
    fn new(info: &KernelInfo<'_>, dtype: Dtype, attributes: GemmAttributes, addend: bool) -> Result<Self> {
        let stored = if attributes.trans_b { Stored::Rows } else { Stored::Tiles };
        let weight = Weight::new(info, 1, Some(2), stored)?;
        let Matrix { k, n, .. } = Matrix::of(weight.shape(), attributes.trans_b)?;
        let gemm = HostGemm::new(info, dtype, attributes, addend);
        if let Some(resident) = weight.constant() {
            let planned = resident.weight();
            let few = planned.product(MOST_ROWS).map_or(0, |product| product.partial_bytes());
            let with_tensor_cores = [1, TENSOR_ROWS]
                .map(|m| planned.tensor_product(m, dtype).map_or(0, |product| product.partial_bytes()));
            let [one, more] = with_tensor_cores;
            resident.shared.reserve(few.max(one).max(more).max(weight_room(resident, dtype, k, n)));
        }
        Ok(Multiply { weight, k, n, attributes, gemm })
    }

    fn run(&self, context: &KernelContext<'_>, bound: &Bound, call: &Call<'_>) -> Result<()> {
        if call.m == 0 {
            return Ok(());
        }
        let stream = context.stream()?;
        match self.few_rows(&bound.resident, call) {
            Some(product) => self.multiply(stream, bound, &product, call),
            None => self.decode_and_multiply(stream, context, bound, call),
        }
    }

    /// The plan of a product straight from the blob, if there is one.
    fn few_rows<'w>(&self, resident: &'w Resident, call: &Call<'_>) -> Option<Product<'w>> {
        let in_order = call.m == 1 || !self.attributes.trans_a;
        if !in_order || call.m > TENSOR_ROWS as usize || !call.x.address().is_multiple_of(16) {
            return None;
        }
        let (weight, m) = (resident.weight(), call.m as u32);
        let has_tensor_cores = resident.device().has_tensor_cores();
        let with_them = if has_tensor_cores { weight.tensor_product(m, call.dtype) } else { None };
        with_them.or_else(|| weight.product(m).ok())
    }

    fn multiply(
        &self,
        stream: *mut c_void,
        bound: &Bound,
        product: &Product<'_>,
        call: &Call<'_>,
    ) -> Result<()> {
        let resident = &bound.resident;
        resident.shared.with_scratch(stream, product.partial_bytes(), |partial| {
            let addend = call.addend.map(|c| Addend {
                beta: self.attributes.beta,
                address: c.address,
                row_stride: if c.rows == 1 { 0 } else { c.columns as u64 },
                column_stride: u64::from(c.columns != 1),
            });
            let operands = Operands {
                dtype: call.dtype,
                x: call.x.address(),
                y: call.y,
                partial,
                status: bound.resident.status(),
                alpha: self.attributes.alpha,
                addend,
            };
            // SAFETY: the host's stream; the scratch lives as long as the node, operands until the host is done with it.
            unsafe { bound.multiply(stream, product, operands) }
        })
    }

    fn decode_and_multiply(
        &self,
        stream: *mut c_void,
        context: &KernelContext<'_>,
        bound: &Bound,
        call: &Call<'_>,
    ) -> Result<()> {
        let (resident, n, m) = (&bound.resident, self.n, call.m);
        let dtype = call.dtype;
        if dtype != bound.resident.dtype && dtype != Dtype::F32 {
            return Err(Failure::fail(format!(
                "products of {m} rows of {} with a weight of {} are not possible on CUDA: convert a model whose weights \
                 have the type that it computes in",
                dtype.name(),
                bound.resident.dtype.name()
            )));
        }
        let gemm = self.gemm.as_ref().map_err(|failure| failure.clone().at("ONNX Runtime's own Gemm"))?;
        let width = set_width(bound.resident.weight().layout(), dtype, self.k, n);
        let room = weight_room(&bound.resident, dtype, self.k, n);
        let (rows, size) = (m as u64, dtype.size() as u64);
        // Where a set is not the whole of the product, its part of Y and C is made next to the weights.
        let part = if width == n { 0 } else { aligned(rows * width as u64 * size) };
        resident.shared.with_scratch(stream, room + 2 * part, |scratch| {
            for first in (0..n).step_by(width) {
                let columns = first..n.min(first + width);
                self.decode(stream, bound, dtype, columns.clone(), scratch)?;
                let (b_rows, b_columns) =
                    if self.attributes.trans_b { (columns.len(), self.k) } else { (self.k, columns.len()) };
                let b = DeviceMatrix { dtype, address: scratch, rows: b_rows, columns: b_columns };
                let (a_rows, a_columns) = if self.attributes.trans_a { (self.k, m) } else { (m, self.k) };
                let a = DeviceMatrix { dtype, address: call.x.address(), rows: a_rows, columns: a_columns };
                let copy = |from, from_pitch, to, to_pitch| RowCopy {
                    from,
                    from_pitch: size * from_pitch as u64,
                    to,
                    to_pitch: size * to_pitch as u64,
                    width: size * columns.len() as u64,
                    rows,
                };
                let c = match call.addend {
                    Some(c) if columns.len() != n && c.columns != 1 => {
                        let from = c.address + size * first as u64;
                        let address = if c.rows == 1 { from } else { scratch + room + part };
                        if c.rows != 1 {
                            // SAFETY: C has m rows of n elements here; the scratch has room for m of a set.
                            told(unsafe {
                                resident.device().copy_rows(stream, copy(from, n, address, columns.len()))
                            })?;
                        }
                        Some(DeviceMatrix { address, columns: columns.len(), ..*c })
                    }
                    whole => whole.copied(),
                };
                let whole = columns.len() == n;
                let address = if whole { call.y } else { scratch + room };
                let y = DeviceMatrix { dtype, address, rows: m, columns: columns.len() };
                // SAFETY: operands live until the host is done with the node, the scratch as long as the node.
                unsafe { gemm.run(context, call.x, (&a, &b, c.as_ref()), &y) }?;
                if !whole {
                    let to = call.y + size * first as u64;
                    // SAFETY: as for C.
                    told(unsafe {
                        resident.device().copy_rows(stream, copy(address, columns.len(), to, n))
                    })?;
                }
            }
            Ok(())
        })
    }

    /// Decodes columns of the right-hand side: whole tiles, or rows of a weight stored as `[n, k]`.
    fn decode(
        &self,
        stream: *mut c_void,
        bound: &Bound,
        dtype: Dtype,
        columns: Range<usize>,
        address: u64,
    ) -> Result<()> {
        let out = Output { dtype, address, status: bound.resident.status() };
        let (first, count, k) = (columns.start as u64, columns.len() as u64, self.k as u64);
        // SAFETY: the host's stream; the scratch lives as long as the node.
        unsafe {
            bound.decode(stream, |weight, memory| match weight.layout() {
                Layout::ColumnTiles { .. } => weight.decode_columns(memory, out, first, count),
                Layout::RowMajor => weight.decode_slots(memory, out, first * k, count * k),
            })
        }
    }
}

fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGN)
}

/// Columns of a right-hand side `[k, n]` that are decoded at a time: whole tiles.
fn set_width(layout: Layout, dtype: Dtype, k: usize, n: usize) -> usize {
    let unit = match layout {
        Layout::ColumnTiles { tile } => tile as usize,
        Layout::RowMajor => 1,
    };
    let fitting = SET_BYTES / dtype.size() / k.max(1);
    (fitting / unit * unit).max(unit).min(n)
}

/// Bytes of the decoded weights of a set.
fn weight_room(resident: &Resident, dtype: Dtype, k: usize, n: usize) -> u64 {
    let width = set_width(resident.weight().layout(), dtype, k, n);
    aligned(k as u64 * width as u64 * dtype.size() as u64)
}

/// `Y = X * W`, batch dimensions of `X` as in ONNX `MatMul`.
pub(super) struct MatMul(Multiply);

impl MatMul {
    /// The kernel of the node that `info` describes, for operands of `dtype`.
    pub fn new(info: &KernelInfo<'_>, dtype: Dtype) -> Result<Self> {
        let trans_b = info.int(c"transB").unwrap_or(0) != 0;
        let attributes = GemmAttributes { alpha: 1.0, beta: 1.0, trans_a: false, trans_b };
        Ok(MatMul(Multiply::new(info, dtype, attributes, false)?))
    }
}

impl Kernel for MatMul {
    fn compute(&self, context: KernelContext<'_>) -> Result<()> {
        let Multiply { weight, k, n, .. } = &self.0;
        let bound = weight.bind(&context)?;
        let x = context.required(0)?;
        let Some((_, batch)) = x.dims().split_last().filter(|(last, _)| **last == *k as i64) else {
            return Err(Failure::invalid(format!(
                "X (input 0) has shape {:?}, but the weight has K = {k}: the last dimension must be {k}",
                x.dims()
            )));
        };
        let dims: Vec<i64> = batch.iter().copied().chain([*n as i64]).collect();
        let y = context.output_address(0, &dims)?;
        let (dtype, m) = (dtype_of(&x)?, x.count() / k);
        self.0.run(&context, &bound, &Call { dtype, m, x: &x, y, addend: None })
    }
}

/// Which input of a `DecodeGemm` is C: the base's blob comes before it.
fn addend_input(has_base: bool) -> usize {
    2 + usize::from(has_base)
}

/// `Y = alpha * A * W + beta * C`, as ONNX `Gemm`.
pub(super) struct Gemm(Multiply);

impl Gemm {
    /// The kernel of the node that `info` describes, for operands of `dtype`.
    pub fn new(info: &KernelInfo<'_>, dtype: Dtype) -> Result<Self> {
        let attributes = GemmAttributes {
            alpha: info.float(c"alpha").unwrap_or(1.0),
            beta: info.float(c"beta").unwrap_or(1.0),
            trans_a: info.int(c"transA").unwrap_or(0) != 0,
            trans_b: info.int(c"transB").unwrap_or(0) != 0,
        };
        let addend = info.input_count()? > addend_input(info.base().is_some());
        Ok(Gemm(Multiply::new(info, dtype, attributes, addend)?))
    }
}

impl Kernel for Gemm {
    fn compute(&self, context: KernelContext<'_>) -> Result<()> {
        let Multiply { weight, k, n, attributes, .. } = &self.0;
        let bound = weight.bind(&context)?;
        let a = context.required(0)?;
        let m = rows_of(a.dims(), *k, attributes.trans_a)?;
        let dtype = dtype_of(&a)?;
        let c = match context.input(addend_input(weight.has_base()))? {
            None => None,
            Some(c) => {
                let (row_stride, column_stride) = addend_strides(c.dims(), m, *n)?;
                Some(DeviceMatrix {
                    dtype,
                    address: c.address(),
                    rows: if row_stride == 0 { 1 } else { m },
                    columns: if column_stride == 0 { 1 } else { *n },
                })
            }
        };
        let y = context.output_address(0, &[m as i64, *n as i64])?;
        self.0.run(&context, &bound, &Call { dtype, m, x: &a, y, addend: c.as_ref() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_whole_tiles_within_their_bytes() {
        let tiles = Layout::ColumnTiles { tile: 256 };
        assert_eq!(set_width(tiles, Dtype::Bf16, 4096, 4096), 4096);
        assert_eq!(set_width(tiles, Dtype::Bf16, 8192, 14_336), 4096);
        assert_eq!(set_width(tiles, Dtype::F32, 10_000, 14_336), 1536);
        assert_eq!(set_width(tiles, Dtype::F32, 1 << 20, 1000), 256, "one tile at least");
        assert_eq!(set_width(tiles, Dtype::F32, 1 << 20, 100), 100);
        assert_eq!(set_width(Layout::RowMajor, Dtype::F32, 1 << 20, 1000), 16);
        assert_eq!(set_width(Layout::RowMajor, Dtype::F32, 1 << 30, 1000), 1);
    }
}
