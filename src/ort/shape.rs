//! Output shapes, inferred when a model is loaded.
//!
//! Inference is a help to ONNX Runtime's optimizers, never a check: whatever is not known stays unknown, and
//! nothing here makes a model fail to load. Kernels check the real shapes.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use ort_sys::{ONNXTensorElementDataType as ElementType, OrtOpAttrType, OrtShapeInferContext};

use super::api::Api;
use super::fence::Result;
use crate::format::MAX_RANK;

/// A dimension of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dim {
    /// A number.
    Known(i64),
    /// The same, whatever it is, wherever the name stands.
    Named(String),
    /// Anything.
    Unknown,
}

/// What a node says about itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    /// Attribute `shape`.
    pub weight: Vec<i64>,
    /// Attribute `transA`.
    pub trans_a: bool,
    /// Attribute `transB`.
    pub trans_b: bool,
    /// The shapes of the inputs, where the rank is known.
    pub inputs: Vec<Option<Vec<Dim>>>,
}

impl Query {
    fn columns(&self) -> Option<Dim> {
        let &[k, n] = self.weight.as_slice() else { return None };
        Some(Dim::Known(if self.trans_b { k } else { n }))
    }
}

/// `nz.Decode`: the weight's rank, and no more.
///
/// Where all shapes are known ONNX Runtime plans the memory of a run as a whole, and keeps that next to what
/// the first run took: for weights of different sizes two to three times the memory (measured with 1.17, 1.20
/// and 1.31). With shapes that it does not know it allocates a weight when it is decoded and frees it after its
/// consumer. The price is that MatMul + Add is not fused behind a `Decode`.
pub(crate) fn decode(query: &Query) -> Option<Vec<Dim>> {
    Some(vec![Dim::Unknown; query.weight.len()])
}

/// `nz.DecodeMatMul`: that of `X`, but for the last dimension.
pub(crate) fn matmul(query: &Query) -> Option<Vec<Dim>> {
    let (_, batch) = query.inputs.first()?.as_ref()?.split_last()?;
    let columns = query.columns()?;
    Some(batch.iter().cloned().chain([columns]).collect())
}

/// `nz.DecodeGemm`: rows of `A`, columns of the weight.
pub(crate) fn gemm(query: &Query) -> Option<Vec<Dim>> {
    let rows = match query.inputs.first()?.as_deref() {
        Some([m, k]) => if query.trans_a { k } else { m }.clone(),
        _ => Dim::Unknown,
    };
    Some(vec![rows, query.columns()?])
}

/// `nz.DecodeGather`: that of the indices, then the weight's without its first dimension.
pub(crate) fn gather(query: &Query) -> Option<Vec<Dim>> {
    let indices = query.inputs.get(1)?.as_ref()?;
    let (_, row) = query.weight.split_first()?;
    Some(indices.iter().cloned().chain(row.iter().map(|&d| Dim::Known(d))).collect())
}

/// `nz.DecodeLSTM`, all steps: `[steps, directions, batch, hidden]`.
pub(crate) fn lstm_sequence(query: &Query) -> Option<Vec<Dim>> {
    let [directions, batch, hidden] = lstm_state(query)?.try_into().ok()?;
    let steps = match query.inputs.first()?.as_deref() {
        Some([steps, ..]) => steps.clone(),
        _ => Dim::Unknown,
    };
    Some(vec![steps, directions, batch, hidden])
}

/// `nz.DecodeLSTM`, the last step: `[directions, batch, hidden]`.
pub(crate) fn lstm_state(query: &Query) -> Option<Vec<Dim>> {
    let &[directions, gates, _] = query.weight.as_slice() else { return None };
    let batch = match query.inputs.first()?.as_deref() {
        Some([_, batch, _]) => batch.clone(),
        _ => Dim::Unknown,
    };
    Some(vec![Dim::Known(directions), batch, Dim::Known(gates / 4)])
}

/// A node whose output shapes the host asks for.
pub(crate) struct ShapeContext {
    api: Api,
    raw: *mut OrtShapeInferContext,
}

impl ShapeContext {
    /// # Safety
    /// `raw` is the context of an `InferOutputShapeFn` call, and this value does not outlive the call.
    pub unsafe fn new(api: Api, raw: *mut OrtShapeInferContext) -> Self {
        ShapeContext { api, raw }
    }

    /// Asks each output's function and declares the shape, if it comes to one.
    pub fn answer(&self, outputs: impl Iterator<Item = fn(&Query) -> Option<Vec<Dim>>>) -> Result<()> {
        let query = Query {
            weight: self.ints(c"shape")?,
            trans_a: self.flag(c"transA"),
            trans_b: self.flag(c"transB"),
            inputs: self.inputs()?,
        };
        let element = self.output_type()?;
        for (index, infer) in outputs.enumerate() {
            if let Some(dims) = infer(&query) {
                self.declare(index, &dims, element)?;
            }
        }
        Ok(())
    }

    /// The outputs' element type: float16 for a node that computes on float16, float32 for all others.
    fn output_type(&self) -> Result<ElementType> {
        let (table, mut info, mut element) = (self.api.table(), ptr::null_mut(), 0i32);
        // SAFETY: the context is live and keeps `info`. A C enum is written as an int; reading it as one stays
        // defined for types we do not know.
        unsafe {
            self.api.check((table.ShapeInferContext_GetInputTypeShape)(self.raw, 0, &mut info))?;
            self.api.check((table.GetTensorElementType)(info, ptr::from_mut(&mut element).cast()))?;
        }
        let half = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
        Ok(if element == half as i32 { half } else { ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT })
    }

    fn ints(&self, name: &CStr) -> Result<Vec<i64>> {
        let (mut attribute, mut bytes) = (ptr::null(), 0);
        let mut values = [0i64; MAX_RANK];
        let table = self.api.table();
        // SAFETY: the context is live; the host writes at most the size given, and an attribute of another
        // type is an error or an empty list to it.
        unsafe {
            self.api.check((table.ShapeInferContext_GetAttribute)(
                self.raw,
                name.as_ptr(),
                &mut attribute,
            ))?;
            let (kind, data) = (OrtOpAttrType::ORT_OP_ATTR_INTS, values.as_mut_ptr().cast::<c_void>());
            self.api.check((table.ReadOpAttr)(attribute, kind, data, size_of_val(&values), &mut bytes))?;
        }
        Ok(values[..(bytes / size_of::<i64>()).min(MAX_RANK)].to_vec())
    }

    fn flag(&self, name: &CStr) -> bool {
        let (mut attribute, mut bytes, mut value) = (ptr::null(), 0, 0i64);
        let table = self.api.table();
        // SAFETY: as in `ints`.
        let read = unsafe {
            self.api
                .check((table.ShapeInferContext_GetAttribute)(self.raw, name.as_ptr(), &mut attribute))
                .and_then(|()| {
                    let data = ptr::from_mut(&mut value).cast();
                    let kind = OrtOpAttrType::ORT_OP_ATTR_INT;
                    self.api.check((table.ReadOpAttr)(attribute, kind, data, size_of::<i64>(), &mut bytes))
                })
        };
        read.is_ok() && value != 0
    }

    fn inputs(&self) -> Result<Vec<Option<Vec<Dim>>>> {
        let mut count = 0;
        // SAFETY: the context is live.
        let status = unsafe { (self.api.table().ShapeInferContext_GetInputCount)(self.raw, &mut count) };
        self.api.check(status)?;
        (0..count).map(|index| self.input(index)).collect()
    }

    fn input(&self, index: usize) -> Result<Option<Vec<Dim>>> {
        let table = self.api.table();
        let mut info = ptr::null_mut();
        // SAFETY: the context is live and keeps `info`; the names live as long as it. `names` has one slot for
        // each dimension.
        unsafe {
            self.api.check((table.ShapeInferContext_GetInputTypeShape)(self.raw, index, &mut info))?;
            let dims = self.api.dimensions(info)?;
            let mut names: Vec<*const c_char> = vec![ptr::null(); dims.len()];
            self.api.check((table.GetSymbolicDimensions)(info, names.as_mut_ptr(), names.len()))?;
            let dim = |(&value, &name): (&i64, &*const c_char)| match name {
                _ if value >= 0 => Dim::Known(value),
                name if name.is_null() || *name == 0 => Dim::Unknown,
                name => Dim::Named(CStr::from_ptr(name).to_string_lossy().into_owned()),
            };
            // The host shows a tensor of unknown rank as one of rank 0.
            Ok((!dims.is_empty()).then(|| dims.iter().zip(&names).map(dim).collect()))
        }
    }

    fn declare(&self, index: usize, dims: &[Dim], element: ElementType) -> Result<()> {
        // The host cannot say "unknown" here, so such a dimension gets a name that no other has.
        static FRESH: AtomicU64 = AtomicU64::new(0);
        let values: Vec<i64> =
            dims.iter().map(|d| if let Dim::Known(value) = d { *value } else { -1 }).collect();
        let names = dims.iter().map(|d| match d {
            Dim::Known(_) => String::new(),
            Dim::Named(name) => name.clone(),
            Dim::Unknown => format!("nz_unknown_{}", FRESH.fetch_add(1, Ordering::Relaxed)),
        });
        let names: Vec<CString> = names.map(|name| CString::new(name).unwrap_or_default()).collect();
        let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let (table, api) = (self.api.table(), self.api);
        let mut info = ptr::null_mut();
        // SAFETY: `info` is ours from here to its release; the host copies values and names.
        unsafe {
            api.check((table.CreateTensorTypeAndShapeInfo)(&mut info))?;
            let done = api
                .check((table.SetTensorElementType)(info, element))
                .and_then(|()| api.check((table.SetDimensions)(info, values.as_ptr(), values.len())))
                .and_then(|()| {
                    api.check((table.SetSymbolicDimensions)(info, pointers.as_mut_ptr(), pointers.len()))
                })
                .and_then(|()| {
                    api.check((table.ShapeInferContext_SetOutputTypeShape)(self.raw, index, info))
                });
            (table.ReleaseTensorTypeAndShapeInfo)(info);
            done
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Dim::{Known, Named, Unknown};

    fn query(weight: &[i64], inputs: &[Option<&[Dim]>]) -> Query {
        let inputs = inputs.iter().map(|input| input.map(<[Dim]>::to_vec)).collect();
        Query { weight: weight.to_vec(), inputs, ..Query::default() }
    }

    #[test]
    fn matmul_keeps_batch_dimensions_as_they_are() {
        let x = [Named("batch".into()), Unknown, Known(6)];
        let mut q = query(&[6, 4], &[Some(&x), None]);
        assert_eq!(matmul(&q), Some(vec![Named("batch".into()), Unknown, Known(4)]));
        q.trans_b = true;
        assert_eq!(matmul(&q), Some(vec![Named("batch".into()), Unknown, Known(6)]));
        assert_eq!(matmul(&query(&[6, 4], &[Some(&[Known(6)]), None])), Some(vec![Known(4)]));
        assert_eq!(matmul(&query(&[6, 4], &[None, None])), None);
        assert_eq!(matmul(&query(&[6], &[Some(&x), None])), None);
    }

    #[test]
    fn gemm_knows_its_rank_without_knowing_its_input() {
        let mut q = query(&[6, 4], &[Some(&[Known(3), Known(6)]), None]);
        assert_eq!(gemm(&q), Some(vec![Known(3), Known(4)]));
        q.trans_a = true;
        assert_eq!(gemm(&q), Some(vec![Known(6), Known(4)]));
        assert_eq!(gemm(&query(&[6, 4], &[None, None])), Some(vec![Unknown, Known(4)]));
    }

    #[test]
    fn decode_tells_its_rank_alone() {
        assert_eq!(decode(&query(&[8, 3, 5, 5], &[])), Some(vec![Unknown; 4]));
    }

    #[test]
    fn lstm_takes_steps_and_batch_from_its_input() {
        let x = [Named("steps".into()), Known(3), Known(5)];
        let q = query(&[2, 32, 5], &[Some(&x)]);
        assert_eq!(lstm_state(&q), Some(vec![Known(2), Known(3), Known(8)]));
        assert_eq!(lstm_sequence(&q), Some(vec![Named("steps".into()), Known(2), Known(3), Known(8)]));
        assert_eq!(lstm_state(&query(&[2, 32, 5], &[None])), Some(vec![Known(2), Unknown, Known(8)]));
        assert_eq!(lstm_state(&query(&[32, 5], &[Some(&x)])), None);
    }

    #[test]
    fn gather_puts_indices_before_the_row() {
        let q = query(&[10, 2, 3], &[None, Some(&[Named("n".into()), Known(5)])]);
        assert_eq!(gather(&q), Some(vec![Named("n".into()), Known(5), Known(2), Known(3)]));
        assert_eq!(gather(&query(&[10, 2], &[None, None])), None);
    }
}
