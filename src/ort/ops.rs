//! The table of ops, and the callbacks through which ONNX Runtime uses them.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use ort_sys::{
    ONNXTensorElementDataType as ElementType, OrtApi, OrtCustomOp,
    OrtCustomOpInputOutputCharacteristic as Presence, OrtKernelContext, OrtKernelInfo, OrtMemType,
    OrtShapeInferContext, OrtStatusPtr,
};

use super::api::{Api, KernelContext, KernelInfo};
use super::cache::Cache;
use super::depth::Limit;
use super::fence::{self, Failure, Result};
use super::kernels::{Decode, Gather, Gemm, Lstm, MatMul, Notice};
use super::shape::{self, Dim, Query, ShapeContext};
use super::{API_LEVEL, DOMAIN};
use crate::format::Dtype;

pub(super) const FLOAT: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
pub(super) const FLOAT16: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
pub(super) const BFLOAT16: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
pub(super) const UINT8: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
pub(super) const INT8: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
/// To ONNX Runtime: a tensor of any element type. On the CPU it is registered type by type: see [`Op::each`].
pub(super) const ANY: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
pub(super) const REQUIRED: Presence = Presence::INPUT_OUTPUT_REQUIRED;
pub(super) const OPTIONAL: Presence = Presence::INPUT_OUTPUT_OPTIONAL;

/// What runs a node. One kernel serves concurrent executions.
pub(crate) trait Kernel: Send + Sync {
    /// Executes the node.
    fn compute(&self, context: KernelContext<'_>) -> Result<()>;
}

/// The provider of definitions that are there for the op's schema alone: no kernel of it is ever created.
///
/// An op that may be float16, but has no float16 kernel on the CPU, is what ONNX Runtime's own MatMul is: it puts
/// casts around such nodes itself, and takes those out that cancel with its casts around their neighbours. Casts
/// that a model brings along it must leave.
const SCHEMA_ONLY: &CStr = c"NzExecutionProvider";

impl Definition {
    /// Whether `others` has the op for the same element type, too.
    pub fn is_among(&self, others: &[Definition]) -> bool {
        others.iter().any(|other| other.name == self.name && other.element as i32 == self.element as i32)
    }
}

/// What is known of an output's shape, if anything.
type Infer = fn(&Query) -> Option<Vec<Dim>>;

/// An op as `docs/ops.md` has it, for one element type, which all its outputs have.
pub(crate) struct Definition {
    pub(super) name: &'static CStr,
    /// The execution provider that runs it; the CPU's if there is none.
    pub(super) provider: Option<&'static CStr>,
    pub(super) inputs: &'static [(ElementType, Presence)],
    pub(super) element: ElementType,
    pub(super) outputs: &'static [(Presence, Infer)],
    pub(super) create: fn(&KernelInfo<'_>) -> Result<Box<dyn Kernel>>,
}

/// All ops of the domain, with their kernels on the CPU.
pub(crate) static DEFINITIONS: [Definition; 18] = [
    Definition {
        name: c"Decode",
        provider: None,
        inputs: &[(UINT8, REQUIRED), (ANY, REQUIRED)],
        element: FLOAT,
        outputs: &[(REQUIRED, shape::decode)],
        create: |info| Ok(Box::new(Decode::new(info)?)),
    },
    Definition {
        name: c"DecodeMatMul",
        provider: None,
        inputs: &[(FLOAT, REQUIRED), (UINT8, REQUIRED)],
        element: FLOAT,
        outputs: &[(REQUIRED, shape::matmul)],
        create: |info| Ok(Box::new(MatMul::new(info)?)),
    },
    Definition {
        name: c"DecodeMatMul",
        provider: Some(SCHEMA_ONLY),
        inputs: &[(FLOAT16, REQUIRED), (UINT8, REQUIRED)],
        element: FLOAT16,
        outputs: &[(REQUIRED, shape::matmul)],
        create: |info| Ok(Box::new(MatMul::new(info)?)),
    },
    Definition {
        name: c"DecodeGemm",
        provider: None,
        inputs: &[(FLOAT, REQUIRED), (UINT8, REQUIRED), (FLOAT, OPTIONAL)],
        element: FLOAT,
        outputs: &[(REQUIRED, shape::gemm)],
        create: |info| Ok(Box::new(Gemm::new(info)?)),
    },
    Definition {
        name: c"DecodeGemm",
        provider: Some(SCHEMA_ONLY),
        inputs: &[(FLOAT16, REQUIRED), (UINT8, REQUIRED), (FLOAT16, OPTIONAL)],
        element: FLOAT16,
        outputs: &[(REQUIRED, shape::gemm)],
        create: |info| Ok(Box::new(Gemm::new(info)?)),
    },
    Definition {
        name: c"DecodeGather",
        provider: None,
        inputs: &[(UINT8, REQUIRED), (ANY, REQUIRED)],
        element: FLOAT,
        outputs: &[(REQUIRED, shape::gather)],
        create: |info| Ok(Box::new(Gather::new(info)?)),
    },
    Definition {
        name: c"DecodeInt8",
        provider: None,
        inputs: &[(UINT8, REQUIRED), (ANY, REQUIRED)],
        element: INT8,
        outputs: &[(REQUIRED, shape::decode)],
        create: |info| Ok(Box::new(Decode::of_integers(info, Dtype::I8)?)),
    },
    Definition {
        name: c"DecodeGatherInt8",
        provider: None,
        inputs: &[(UINT8, REQUIRED), (ANY, REQUIRED)],
        element: INT8,
        outputs: &[(REQUIRED, shape::gather)],
        create: |info| Ok(Box::new(Gather::of_integers(info, Dtype::I8)?)),
    },
    Definition {
        name: c"DecodeUint8",
        provider: None,
        inputs: &[(UINT8, REQUIRED), (ANY, REQUIRED)],
        element: UINT8,
        outputs: &[(REQUIRED, shape::decode)],
        create: |info| Ok(Box::new(Decode::of_integers(info, Dtype::U8)?)),
    },
    Definition {
        name: c"DecodeGatherUint8",
        provider: None,
        inputs: &[(UINT8, REQUIRED), (ANY, REQUIRED)],
        element: UINT8,
        outputs: &[(REQUIRED, shape::gather)],
        create: |info| Ok(Box::new(Gather::of_integers(info, Dtype::U8)?)),
    },
    Definition {
        name: c"DecodeLSTM",
        provider: None,
        inputs: &[
            (FLOAT, REQUIRED),
            (UINT8, REQUIRED),
            (UINT8, REQUIRED),
            (FLOAT, OPTIONAL),
            (FLOAT, OPTIONAL),
            (FLOAT, OPTIONAL),
        ],
        element: FLOAT,
        outputs: &[
            (OPTIONAL, shape::lstm_sequence),
            (OPTIONAL, shape::lstm_state),
            (OPTIONAL, shape::lstm_state),
        ],
        create: |info| Ok(Box::new(Lstm::new(info)?)),
    },
    Definition {
        name: c"DecodeDelta",
        provider: None,
        inputs: &[(UINT8, REQUIRED), (ANY, REQUIRED), (UINT8, REQUIRED)],
        element: FLOAT,
        outputs: &[(REQUIRED, shape::decode)],
        create: |info| Ok(Box::new(Decode::new(&info.of_delta())?)),
    },
    Definition {
        name: c"DecodeDeltaMatMul",
        provider: None,
        inputs: &[(FLOAT, REQUIRED), (UINT8, REQUIRED), (UINT8, REQUIRED)],
        element: FLOAT,
        outputs: &[(REQUIRED, shape::matmul)],
        create: |info| Ok(Box::new(MatMul::new(&info.of_delta())?)),
    },
    Definition {
        name: c"DecodeDeltaMatMul",
        provider: Some(SCHEMA_ONLY),
        inputs: &[(FLOAT16, REQUIRED), (UINT8, REQUIRED), (UINT8, REQUIRED)],
        element: FLOAT16,
        outputs: &[(REQUIRED, shape::matmul)],
        create: |info| Ok(Box::new(MatMul::new(&info.of_delta())?)),
    },
    Definition {
        name: c"DecodeDeltaGemm",
        provider: None,
        inputs: &[(FLOAT, REQUIRED), (UINT8, REQUIRED), (UINT8, REQUIRED), (FLOAT, OPTIONAL)],
        element: FLOAT,
        outputs: &[(REQUIRED, shape::gemm)],
        create: |info| Ok(Box::new(Gemm::new(&info.of_delta())?)),
    },
    Definition {
        name: c"DecodeDeltaGemm",
        provider: Some(SCHEMA_ONLY),
        inputs: &[(FLOAT16, REQUIRED), (UINT8, REQUIRED), (UINT8, REQUIRED), (FLOAT16, OPTIONAL)],
        element: FLOAT16,
        outputs: &[(REQUIRED, shape::gemm)],
        create: |info| Ok(Box::new(Gemm::new(&info.of_delta())?)),
    },
    Definition {
        name: c"DecodeDeltaGather",
        provider: None,
        inputs: &[(UINT8, REQUIRED), (ANY, REQUIRED), (UINT8, REQUIRED)],
        element: FLOAT,
        outputs: &[(REQUIRED, shape::gather)],
        create: |info| Ok(Box::new(Gather::new(&info.of_delta())?)),
    },
    Definition {
        name: c"register_libnz_onnx_so_before_loading_this_model",
        provider: None,
        inputs: &[],
        element: FLOAT,
        outputs: &[(REQUIRED, |_| Some(Vec::new()))],
        create: |info| Ok(Box::new(Notice::new(info)?)),
    },
];

/// What [`ANY`] stands for on the CPU. There is no float8, which builds of ONNX Runtime may lack, and no int4, which
/// older versions do not know.
const TYPES: [ElementType; 14] = [
    FLOAT,
    FLOAT16,
    BFLOAT16,
    UINT8,
    INT8,
    ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
    ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
    ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
    ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
    ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
    ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
    ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
    ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
    ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
];

/// An op as one host sees it. The host holds the address of `raw`, the first field, and so of the whole.
#[repr(C)]
pub(crate) struct Op {
    raw: OrtCustomOp,
    api: Api,
    definition: &'static Definition,
    provider: Option<&'static CStr>,
    /// What [`ANY`] among the inputs stands for.
    any: ElementType,
    cache: Option<Arc<Cache>>,
    /// The most that is read of layered weights.
    limit: Option<Limit>,
}

/// A kernel and what its callbacks need beside it.
struct Instance {
    api: Api,
    /// Op and node, for messages.
    label: String,
    kernel: Box<dyn Kernel>,
}

impl Op {
    /// The op in the shape that `api`'s host takes.
    pub fn new(api: Api, definition: &'static Definition, cache: Option<Arc<Cache>>) -> Self {
        let raw = OrtCustomOp {
            version: API_LEVEL,
            CreateKernel: None,
            GetName: Some(get_name),
            GetExecutionProviderType: Some(get_execution_provider),
            GetInputType: Some(get_input_type),
            GetInputTypeCount: Some(get_input_count),
            GetOutputType: Some(get_output_type),
            GetOutputTypeCount: Some(get_output_count),
            KernelCompute: None,
            KernelDestroy: Some(destroy),
            GetInputCharacteristic: Some(get_input_presence),
            GetOutputCharacteristic: Some(get_output_presence),
            GetInputMemoryType: Some(get_memory_type),
            GetVariadicInputMinArity: Some(get_one),
            GetVariadicInputHomogeneity: Some(get_one),
            GetVariadicOutputMinArity: Some(get_one),
            GetVariadicOutputHomogeneity: Some(get_one),
            CreateKernelV2: Some(create),
            KernelComputeV2: Some(compute),
            InferOutputShapeFn: Some(infer),
            GetStartVersion: Some(get_one),
            GetEndVersion: Some(get_end_version),
        };
        Op { raw, api, definition, provider: definition.provider, any: ANY, cache, limit: None }
    }

    /// The same op, reading no more of layered weights than `limit`.
    pub fn within(self, limit: Option<Limit>) -> Self {
        Op { limit, ..self }
    }

    /// The same op for each type that its inputs may have, if any is of any type; else just the op.
    ///
    /// With float16 it is there for its schema alone. What takes float16 on the CPU keeps the casts that ONNX Runtime
    /// puts around the neighbours from cancelling: a `Decode` behind a convolution would have its output made
    /// float16, and float32 again for the next one.
    pub fn each(self) -> impl Iterator<Item = Self> {
        let any = self.provider.is_none()
            && self.definition.inputs.iter().any(|input| input.0 as i32 == ANY as i32);
        let types: &[ElementType] = if any { &TYPES } else { &[ANY] };
        types.iter().map(move |&any| {
            let provider = if any as i32 == FLOAT16 as i32 { Some(SCHEMA_ONLY) } else { self.provider };
            Op { any, provider, cache: self.cache.clone(), ..self }
        })
    }

    /// The same op, for the CPU's provider.
    pub fn on_cpu(self) -> Self {
        Op { provider: None, ..self }
    }

    /// What `CustomOpDomain_Add` takes.
    pub fn raw(&self) -> *const OrtCustomOp {
        ptr::from_ref(self).cast()
    }
}

/// # Safety
/// `op` is a pointer that [`Op::raw`] returned, of an `Op` that is never freed.
unsafe fn op(op: *const OrtCustomOp) -> &'static Op {
    // SAFETY: `raw` casts from the whole `Op`, which `super` leaks.
    unsafe { &*op.cast::<Op>() }
}

unsafe extern "system" fn create(
    this: *const OrtCustomOp,
    _api: *const OrtApi,
    info: *const OrtKernelInfo,
    out: *mut *mut c_void,
) -> OrtStatusPtr {
    // SAFETY: the host passes back what it was given at registration.
    let op = unsafe { op(this) };
    fence::guard(op.api, || {
        // SAFETY: `info` is live during this call.
        let info = unsafe { KernelInfo::new(op.api, info, op.cache.as_ref()) }.within(op.limit);
        let (name, node) = (op.definition.name.to_string_lossy(), info.node_name().unwrap_or_default());
        let label = format!("{DOMAIN}.{name} node '{node}'");
        let kernel = (op.definition.create)(&info).map_err(|failure| failure.at(&label))?;
        let instance = Box::new(Instance { api: op.api, label, kernel });
        // SAFETY: `out` is where the host wants the kernel; `destroy` takes it back.
        unsafe { out.write(Box::into_raw(instance).cast()) };
        Ok(())
    })
}

unsafe extern "system" fn compute(kernel: *mut c_void, context: *mut OrtKernelContext) -> OrtStatusPtr {
    // SAFETY: `kernel` comes from `create`; it is only read, by however many threads.
    let instance = unsafe { &*kernel.cast_const().cast::<Instance>() };
    // SAFETY: `context` is live during this call, and used by it alone.
    let context = unsafe { KernelContext::new(instance.api, context) };
    fence::guard(instance.api, || {
        fence::catch(|| instance.kernel.compute(context)).map_err(|failure| failure.at(&instance.label))
    })
}

unsafe extern "system" fn destroy(kernel: *mut c_void) {
    let drop = || {
        if !kernel.is_null() {
            // SAFETY: `kernel` comes from `create`, and the host is done with it.
            drop(unsafe { Box::from_raw(kernel.cast::<Instance>()) });
        }
        Ok(())
    };
    // There is nobody to report a panic to; it must not leave this function all the same.
    let _: std::result::Result<(), Failure> = fence::catch(drop);
}

unsafe extern "system" fn infer(
    this: *const OrtCustomOp,
    context: *mut OrtShapeInferContext,
) -> OrtStatusPtr {
    // SAFETY: as in `create`.
    let op = unsafe { op(this) };
    // A failure means that the shape stays unknown. The host does not look at the status, nor free it.
    let _: std::result::Result<(), Failure> = fence::catch(|| {
        // SAFETY: `context` is live during this call.
        unsafe { ShapeContext::new(op.api, context) }
            .answer(op.definition.outputs.iter().map(|output| output.1))
    });
    OrtStatusPtr::default()
}

unsafe extern "system" fn get_name(this: *const OrtCustomOp) -> *const c_char {
    // SAFETY: as in `create`.
    unsafe { op(this) }.definition.name.as_ptr()
}

unsafe extern "system" fn get_execution_provider(this: *const OrtCustomOp) -> *const c_char {
    // Null stands for the CPU. SAFETY: as in `create`.
    unsafe { op(this) }.provider.map_or(ptr::null(), CStr::as_ptr)
}

unsafe extern "system" fn get_input_count(this: *const OrtCustomOp) -> usize {
    // SAFETY: as in `create`.
    unsafe { op(this) }.definition.inputs.len()
}

unsafe extern "system" fn get_input_type(this: *const OrtCustomOp, index: usize) -> ElementType {
    // SAFETY: as in `create`.
    let op = unsafe { op(this) };
    let element = op.definition.inputs.get(index).map_or(ANY, |input| input.0);
    if element as i32 == ANY as i32 { op.any } else { element }
}

unsafe extern "system" fn get_input_presence(this: *const OrtCustomOp, index: usize) -> Presence {
    // SAFETY: as in `create`.
    unsafe { op(this) }.definition.inputs.get(index).map_or(REQUIRED, |input| input.1)
}

unsafe extern "system" fn get_output_count(this: *const OrtCustomOp) -> usize {
    // SAFETY: as in `create`.
    unsafe { op(this) }.definition.outputs.len()
}

unsafe extern "system" fn get_output_type(this: *const OrtCustomOp, _: usize) -> ElementType {
    // SAFETY: as in `create`.
    unsafe { op(this) }.definition.element
}

unsafe extern "system" fn get_output_presence(this: *const OrtCustomOp, index: usize) -> Presence {
    // SAFETY: as in `create`.
    unsafe { op(this) }.definition.outputs.get(index).map_or(REQUIRED, |output| output.0)
}

unsafe extern "system" fn get_memory_type(_: *const OrtCustomOp, _: usize) -> OrtMemType {
    OrtMemType::OrtMemTypeDefault
}

unsafe extern "system" fn get_one(_: *const OrtCustomOp) -> c_int {
    1
}

unsafe extern "system" fn get_end_version(_: *const OrtCustomOp) -> c_int {
    c_int::MAX
}
