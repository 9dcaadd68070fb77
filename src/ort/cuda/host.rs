//! What kernels on a device use of the host's API beside that of CPU kernels: its stream, its memory, its own Gemm.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{self, NonNull};

use ort_sys::{
    ONNXTensorElementDataType as ElementType, OrtMemoryInfo, OrtOp, OrtOpAttr, OrtOpAttrType, OrtValue,
};

use crate::format::Dtype;
use crate::ort::api::{Api, KernelContext, KernelInfo, Tensor};
use crate::ort::fence::{Failure, Result};

impl KernelContext<'_> {
    /// The stream that the node is to put its work on; null where the provider has none.
    pub(super) fn stream(&self) -> Result<*mut c_void> {
        let mut stream = ptr::null_mut();
        let get = self.api.table().KernelContext_GetGPUComputeStream;
        // SAFETY: the context is live.
        self.api.check(unsafe { get(self.raw, &mut stream) })?;
        Ok(stream)
    }

    /// Allocates output `index` in the provider's memory; where it is.
    pub(super) fn output_address(&self, index: usize, dims: &[i64]) -> Result<u64> {
        let (mut value, mut data) = (ptr::null_mut(), ptr::null_mut());
        let table = self.api.table();
        // SAFETY: the context is live; the host allocates what `dims` asks for, which is ours until the call returns.
        unsafe {
            let get = table.KernelContext_GetOutput;
            self.api.check(get(self.raw, index, dims.as_ptr(), dims.len(), &mut value))?;
            if value.is_null() {
                return Err(Failure::invalid(format!("output {index} is missing")));
            }
            self.api.check((table.GetTensorMutableData)(value, &mut data))?;
        }
        Ok(data as u64)
    }
}

impl KernelInfo<'_> {
    /// How many inputs the node has, those that it leaves out between others included.
    pub(super) fn input_count(&self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: `raw` is live.
        self.api.check(unsafe { (self.api.table().KernelInfo_GetInputCount)(self.raw, &mut count) })?;
        Ok(count)
    }
}

impl Tensor<'_> {
    /// The number of the device whose memory it is in.
    pub(super) fn device(&self, api: Api) -> Result<usize> {
        let mut id = 0;
        // SAFETY: the memory info lives with the tensor.
        api.check(unsafe { (api.table().MemoryInfoGetId)(self.memory(api)?, &mut id) })?;
        usize::try_from(id).map_err(|_| Failure::fail(format!("the blob is in the memory of device {id}")))
    }

    /// What memory it is in; lives as long as the tensor.
    fn memory(&self, api: Api) -> Result<*const OrtMemoryInfo> {
        let mut memory = ptr::null();
        // SAFETY: the value is live.
        api.check(unsafe { (api.table().GetTensorMemoryInfo)(self.value(), &mut memory) })?;
        Ok(memory)
    }
}

/// A matrix in the device's memory, row by row.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceMatrix {
    pub dtype: Dtype,
    pub address: u64,
    pub rows: usize,
    pub columns: usize,
}

/// A tensor of the host's over memory that it does not own.
struct Value {
    api: Api,
    raw: *mut OrtValue,
}

impl Value {
    /// One over `matrix`, in `memory`.
    fn over(api: Api, memory: *const OrtMemoryInfo, matrix: &DeviceMatrix) -> Result<Self> {
        let dims = [matrix.rows as i64, matrix.columns as i64];
        let mut raw = ptr::null_mut();
        // SAFETY: the host copies info and shape, notes the address, and does not look there now.
        api.check(unsafe {
            (api.table().CreateTensorWithDataAsOrtValue)(
                memory,
                matrix.address as *mut c_void,
                matrix.rows * matrix.columns * matrix.dtype.size(),
                dims.as_ptr(),
                dims.len(),
                element_type(matrix.dtype),
                &mut raw,
            )
        })?;
        Ok(Value { api, raw })
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: from `CreateTensorWithDataAsOrtValue`, released once.
        unsafe { (self.api.table().ReleaseValue)(self.raw) };
    }
}

fn element_type(dtype: Dtype) -> ElementType {
    match dtype {
        Dtype::F32 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        Dtype::F16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        Dtype::Bf16 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        Dtype::U8 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        Dtype::I8 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
    }
}

/// What ONNX says of a `Gemm`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct GemmAttributes {
    pub alpha: f32,
    pub beta: f32,
    pub trans_a: bool,
    pub trans_b: bool,
}

/// ONNX Runtime's own `Gemm` for the provider of a node.
pub(super) struct HostGemm {
    api: Api,
    raw: NonNull<OrtOp>,
}

// SAFETY: the host's kernels may be used by any thread, by several at once.
unsafe impl Send for HostGemm {}
// SAFETY: as above.
unsafe impl Sync for HostGemm {}

/// Attributes of an op that is created; the host copies them.
struct Attributes {
    api: Api,
    raw: Vec<*mut OrtOpAttr>,
}

impl Attributes {
    fn add<T>(&mut self, name: &CStr, value: &T, kind: OrtOpAttrType) -> Result<()> {
        let mut attribute = ptr::null_mut();
        // SAFETY: the host reads one number of this kind, which `T` is.
        self.api.check(unsafe {
            let data = ptr::from_ref(value).cast();
            (self.api.table().CreateOpAttr)(name.as_ptr(), data, 1, kind, &mut attribute)
        })?;
        self.raw.push(attribute);
        Ok(())
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        for &attribute in &self.raw {
            // SAFETY: from `CreateOpAttr`, released once.
            unsafe { (self.api.table().ReleaseOpAttr)(attribute) };
        }
    }
}

impl HostGemm {
    /// The `Gemm` for operands of `dtype`, with or without a third one.
    pub fn new(info: &KernelInfo<'_>, dtype: Dtype, what: GemmAttributes, addend: bool) -> Result<Self> {
        let (api, table) = (info.api, info.api.table());
        let mut attributes = Attributes { api, raw: Vec::new() };
        let (float, int) = (OrtOpAttrType::ORT_OP_ATTR_FLOAT, OrtOpAttrType::ORT_OP_ATTR_INT);
        attributes.add(c"alpha", &what.alpha, float)?;
        attributes.add(c"beta", &what.beta, float)?;
        attributes.add(c"transA", &i64::from(what.trans_a), int)?;
        attributes.add(c"transB", &i64::from(what.trans_b), int)?;
        let pointers: Vec<*const OrtOpAttr> = attributes.raw.iter().map(|a| a.cast_const()).collect();
        let (mut constraints, types): ([*const c_char; 1], _) = ([c"T".as_ptr()], [element_type(dtype)]);
        let mut raw = ptr::null_mut();
        // SAFETY: `info` is live; all arrays have as many items as is said.
        api.check(unsafe {
            (table.CreateOp)(
                info.raw,
                c"Gemm".as_ptr(),
                c"".as_ptr(),
                GEMM_VERSION,
                constraints.as_mut_ptr(),
                types.as_ptr(),
                1,
                pointers.as_ptr(),
                pointers.len() as c_int,
                if addend { 3 } else { 2 },
                1,
                &mut raw,
            )
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| Failure::fail("ONNX Runtime made no Gemm"))?;
        Ok(HostGemm { api, raw })
    }

    /// Puts `y = alpha * a * b + beta * c` on the stream of the node that is executed; all matrices are in the memory that
    /// the tensor `like` is in.
    ///
    /// # Safety
    /// The matrices are where they say, until the stream has passed the product.
    pub unsafe fn run(
        &self,
        context: &KernelContext<'_>,
        like: &Tensor<'_>,
        (a, b, c): (&DeviceMatrix, &DeviceMatrix, Option<&DeviceMatrix>),
        y: &DeviceMatrix,
    ) -> Result<()> {
        let memory = like.memory(self.api)?;
        let value = |matrix| Value::over(self.api, memory, matrix);
        let inputs = [Some(a), Some(b), c].into_iter().flatten().map(value).collect::<Result<Vec<_>>>()?;
        let pointers: Vec<*const OrtValue> = inputs.iter().map(|value| value.raw.cast_const()).collect();
        let y = value(y)?;
        // SAFETY: op, context and values are live; the caller vouches for what they are over.
        self.api.check(unsafe {
            let invoke = self.api.table().InvokeOp;
            let count = pointers.len() as c_int;
            invoke(context.raw, self.raw.as_ptr(), pointers.as_ptr(), count, &y.raw, 1)
        })
    }
}

/// The version of ONNX whose `Gemm` is asked for; every ONNX Runtime from 1.17 on has it for all its providers.
const GEMM_VERSION: c_int = 13;

impl Drop for HostGemm {
    fn drop(&mut self) {
        // SAFETY: from `CreateOp`, released once.
        unsafe { (self.api.table().ReleaseOp)(self.raw.as_ptr()) };
    }
}
