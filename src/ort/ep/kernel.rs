//! The provider's kernels: ONNX's own ops over weights that this library compressed.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use ort_sys::{
    ONNXTensorElementDataType as ElementType, OrtAllocator, OrtKernelContext, OrtKernelInfo, OrtStatusPtr,
    OrtValue,
};

use super::provider::Provider;
use super::slot::Reading;
use super::{EpApi, PROVIDER_C};
use crate::format::Dtype;
use crate::ort::api::{Api, HostVersion, KernelContext, KernelInfo, Tensor};
use crate::ort::ep_sys::{
    EP_API_LEVEL, OrtDataType, OrtKernelImpl, OrtKernelRegistry, OrtSharedPrePackedWeightCache,
};
use crate::ort::fence::{self, Failure, Result};
use crate::ort::kernels::{Attention, Buffers, Conv, Gather, Gemm, Gru, Lstm, MatMul};
use crate::ort::ops::Kernel;
use crate::ort::weight::Weight;

const FLOAT: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
const FLOAT16: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
const BFLOAT16: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
const INT32: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
const INT64: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;

/// An op that the provider runs.
struct Definition {
    domain: &'static CStr,
    op: &'static CStr,
    /// First and last opset of each version of the op that is supported.
    versions: &'static [(c_int, c_int)],
    /// The inputs that hold weights.
    weights: &'static [usize],
    /// What type parameter `T` may be, up to opset 12 and from 13 on.
    floats: [&'static [ElementType]; 2],
    /// Other type parameters and what they may be.
    others: &'static [(&'static CStr, &'static [ElementType])],
    create: fn(&KernelInfo<'_>, &Weights<'_>) -> Result<Box<dyn Kernel>>,
}

/// The weights of a node that is being created.
struct Weights<'a> {
    readings: &'a [Reading],
    inputs: &'static [usize],
    host: HostVersion,
}

impl Weights<'_> {
    /// The one in that place among them.
    fn get(&self, at: usize) -> Weight {
        Weight::packed(self.readings[at].clone(), self.inputs[at], self.host)
    }

    /// What kernels of the session work in.
    fn buffers(&self) -> Arc<Buffers> {
        Arc::clone(self.readings[0].slot.buffers())
    }

    /// Its type.
    fn dtype(&self, at: usize) -> Dtype {
        self.readings[at].slot.spec().dtype
    }
}

const NEWEST: c_int = c_int::MAX;
const FLOAT_ONLY: [&[ElementType]; 2] = [&[FLOAT]; 2];
const FLOATS: [&[ElementType]; 2] = [&[FLOAT, FLOAT16], &[FLOAT, FLOAT16, BFLOAT16]];

static DEFINITIONS: [Definition; 10] = [
    Definition {
        domain: c"",
        op: c"MatMul",
        versions: &[(1, 8), (9, 12), (13, NEWEST)],
        weights: &[1],
        floats: FLOATS,
        others: &[],
        create: |info, weights| Ok(Box::new(MatMul::packed(info, weights.get(0))?)),
    },
    Definition {
        domain: c"com.microsoft",
        op: c"FusedMatMul",
        versions: &[(1, NEWEST)],
        weights: &[1],
        floats: FLOATS,
        others: &[],
        create: |info, weights| Ok(Box::new(MatMul::packed(info, weights.get(0))?)),
    },
    Definition {
        domain: c"",
        op: c"Gemm",
        versions: &[(7, 8), (9, 10), (11, 12), (13, NEWEST)],
        weights: &[1],
        floats: FLOATS,
        others: &[],
        create: |info, weights| Ok(Box::new(Gemm::packed(info, weights.get(0))?)),
    },
    Definition {
        domain: c"",
        op: c"Gather",
        versions: &[(1, 10), (11, 12), (13, NEWEST)],
        weights: &[0],
        floats: FLOATS,
        others: &[(c"Tind", &[INT32, INT64])],
        create: |_, weights| Ok(Box::new(Gather::packed(weights.get(0), weights.dtype(0))?)),
    },
    Definition {
        domain: c"",
        op: c"Conv",
        versions: &[(1, 10), (11, 21), (22, NEWEST)],
        weights: &[1],
        floats: FLOATS,
        others: &[],
        create: |info, weights| Ok(Box::new(Conv::packed(info, weights.get(0), weights.buffers())?)),
    },
    Definition {
        domain: c"",
        op: c"LSTM",
        versions: &[(7, 13), (14, 21), (22, NEWEST)],
        weights: &[1, 2],
        floats: FLOAT_ONLY,
        others: &[(c"T1", &[INT32])],
        create: |info, weights| Ok(Box::new(Lstm::packed(info, weights.get(0), weights.get(1))?)),
    },
    Definition {
        domain: c"",
        op: c"GRU",
        versions: &[(7, 13), (14, 21), (22, NEWEST)],
        weights: &[1, 2],
        floats: FLOAT_ONLY,
        others: &[(c"T1", &[INT32])],
        create: |info, weights| Ok(Box::new(Gru::packed(info, weights.get(0), weights.get(1))?)),
    },
    Definition {
        domain: c"com.microsoft",
        op: c"FusedGemm",
        versions: &[(1, NEWEST)],
        weights: &[1],
        floats: FLOAT_ONLY,
        others: &[],
        create: |info, weights| Ok(Box::new(Gemm::packed(info, weights.get(0))?)),
    },
    Definition {
        domain: c"com.microsoft",
        op: c"FusedConv",
        versions: &[(1, NEWEST)],
        weights: &[1],
        floats: FLOAT_ONLY,
        others: &[],
        create: |info, weights| Ok(Box::new(Conv::packed(info, weights.get(0), weights.buffers())?)),
    },
    Definition {
        domain: c"com.microsoft",
        op: c"Attention",
        versions: &[(1, NEWEST)],
        weights: &[1],
        floats: FLOAT_ONLY,
        others: &[(c"M", &[INT32])],
        create: |info, weights| Ok(Box::new(Attention::packed(info, weights.get(0))?)),
    },
];

/// What ONNX Runtime looks kernels up in.
pub(super) struct Registry {
    api: EpApi,
    raw: *mut OrtKernelRegistry,
}

/// What a kernel of the registry is made with.
pub(super) struct Maker {
    provider: *const Provider,
    definition: &'static Definition,
}

impl Registry {
    /// A registry of all ops, for kernels of `provider`; the makers must live as long as it.
    ///
    /// # Safety
    /// Registry and makers do not outlive the provider.
    pub unsafe fn new(api: EpApi, provider: *const Provider) -> Result<(Registry, Box<[Maker]>)> {
        let mut raw = ptr::null_mut();
        // SAFETY: the registry is ours until it is dropped.
        api.check(unsafe { (api.ep().CreateKernelRegistry)(&mut raw) })?;
        let registry = Registry { api, raw };
        let makers: Box<[Maker]> =
            DEFINITIONS.iter().map(|definition| Maker { provider, definition }).collect();
        for maker in &makers {
            for &versions in maker.definition.versions {
                registry.add(maker, versions)?;
            }
        }
        Ok((registry, makers))
    }

    /// The registry to the host.
    pub fn raw(&self) -> *const OrtKernelRegistry {
        self.raw
    }

    fn add(&self, maker: &Maker, (first, last): (c_int, c_int)) -> Result<()> {
        let (api, ep, definition) = (self.api, self.api.ep(), maker.definition);
        let floats = definition.floats[usize::from(first >= 13 || !definition.domain.is_empty())];
        let mut builder = ptr::null_mut();
        // SAFETY: the builder is ours until its release.
        api.check(unsafe { (ep.CreateKernelDefBuilder)(&mut builder) })?;
        // SAFETY: builder and definition are live, strings are C strings that the host copies; the maker's address is
        // only handed back to `create`.
        let added = unsafe {
            (|| {
                api.check((ep.KernelDefBuilder_SetOperatorType)(builder, definition.op.as_ptr()))?;
                api.check((ep.KernelDefBuilder_SetDomain)(builder, definition.domain.as_ptr()))?;
                api.check((ep.KernelDefBuilder_SetSinceVersion)(builder, first, last))?;
                api.check((ep.KernelDefBuilder_SetExecutionProvider)(builder, PROVIDER_C.as_ptr()))?;
                for (name, types) in [(c"T", floats)].iter().chain(definition.others) {
                    let types: Vec<_> = types.iter().map(|&t| data_type(api, t)).collect::<Result<_>>()?;
                    let constrain = ep.KernelDefBuilder_AddTypeConstraint;
                    api.check(constrain(builder, name.as_ptr(), types.as_ptr(), types.len()))?;
                }
                let mut built = ptr::null_mut();
                api.check((ep.KernelDefBuilder_Build)(builder, &mut built))?;
                let state = ptr::from_ref(maker).cast_mut().cast::<c_void>();
                let added = api.check((ep.KernelRegistry_AddKernel)(self.raw, built, create, state));
                (ep.ReleaseKernelDef)(built);
                added
            })()
        };
        // SAFETY: released once, after its last use.
        unsafe { (ep.ReleaseKernelDefBuilder)(builder) };
        added
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // SAFETY: ours, released once; the host has a copy of what it needs.
        unsafe { (self.api.ep().ReleaseKernelRegistry)(self.raw) };
    }
}

fn data_type(api: EpApi, element: ElementType) -> Result<*const OrtDataType> {
    let mut found = ptr::null();
    // SAFETY: the host's types are static.
    api.check(unsafe { (api.ep().GetTensorDataType)(element, &mut found) })?;
    Ok(found)
}

/// A node's kernel. The host holds the address of `table`, the first field, and so of the whole.
#[repr(C)]
struct Instance {
    table: OrtKernelImpl,
    api: Api,
    /// Op and node, for messages.
    label: String,
    kernel: Box<dyn Kernel>,
    /// Of the inputs that hold weights.
    readings: Vec<Reading>,
    weights: &'static [usize],
}

unsafe extern "system" fn create(
    state: *mut c_void,
    info: *const OrtKernelInfo,
    out: *mut *mut OrtKernelImpl,
) -> OrtStatusPtr {
    // SAFETY: `state` is a maker, which lives as long as its provider.
    let (maker, provider) = unsafe {
        let maker = &*state.cast_const().cast::<Maker>();
        (maker, &*maker.provider)
    };
    let api = provider.api().api();
    fence::guard(api, || {
        // SAFETY: the host's kernel info lives for this call.
        let info = unsafe { KernelInfo::new(api, info, None) };
        let definition = maker.definition;
        let label =
            format!("{} node '{}'", definition.op.to_string_lossy(), info.node_name().unwrap_or_default());
        let instance = || {
            let reading = |&input: &usize| provider.reading(&info.input_name(input)?);
            let readings: Vec<Reading> = definition.weights.iter().map(reading).collect::<Result<_>>()?;
            let weights = Weights { readings: &readings, inputs: definition.weights, host: info.host() };
            let kernel = (definition.create)(&info, &weights)?;
            Ok((kernel, readings))
        };
        let (kernel, readings) = instance().map_err(|failure: Failure| failure.at(&label))?;
        let table = OrtKernelImpl {
            ort_version_supported: EP_API_LEVEL,
            flags: 0,
            Compute: compute,
            Release: release,
            PrePackWeight: pack,
            SetSharedPrePackedWeight: None,
        };
        let instance =
            Box::new(Instance { table, api, label, kernel, readings, weights: definition.weights });
        // SAFETY: `out` is where the host wants the kernel; `release` takes it back.
        unsafe { out.write(Box::into_raw(instance).cast()) };
        Ok(())
    })
}

unsafe extern "system" fn pack(
    this: *mut OrtKernelImpl,
    tensor: *const OrtValue,
    input: c_int,
    _: *mut OrtAllocator,
    _: *mut OrtSharedPrePackedWeightCache,
    is_packed: *mut bool,
) -> OrtStatusPtr {
    // SAFETY: `this` comes from `create`; it is only read.
    let instance = unsafe { &*this.cast_const().cast::<Instance>() };
    fence::guard(instance.api, || {
        let at = instance.weights.iter().position(|&weight| usize::try_from(input) == Ok(weight));
        if let Some(reading) = at.and_then(|at| instance.readings.get(at)) {
            // SAFETY: the tensor lives for this call.
            let original = || unsafe { Tensor::new(instance.api, tensor) };
            reading.pack(original).map_err(|failure| failure.at(&instance.label))?;
        }
        // SAFETY: the host's place for the answer.
        unsafe { is_packed.write(at.is_some()) };
        Ok(())
    })
}

unsafe extern "system" fn compute(this: *mut OrtKernelImpl, context: *mut OrtKernelContext) -> OrtStatusPtr {
    // SAFETY: as in `pack`, by however many threads.
    let instance = unsafe { &*this.cast_const().cast::<Instance>() };
    // SAFETY: the context is live during this call, and used by it alone.
    let context = unsafe { KernelContext::new(instance.api, context) };
    fence::guard(instance.api, || {
        fence::catch(|| instance.kernel.compute(context)).map_err(|failure| failure.at(&instance.label))
    })
}

unsafe extern "system" fn release(this: *mut OrtKernelImpl) {
    let drop = || {
        if !this.is_null() {
            // SAFETY: the kernel comes from `create`, and the host is done with it.
            drop(unsafe { Box::from_raw(this.cast::<Instance>()) });
        }
        Ok(())
    };
    // There is nobody to report a panic to; it must not leave this function all the same.
    let _: Result<()> = fence::catch(drop);
}
