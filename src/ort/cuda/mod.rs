//! The ops for ONNX Runtime's CUDA provider, next to those of the CPU: blobs are initializers in the device's memory, and
//! kernels are put on the provider's own stream.
//!
//! All that is known of a weight is read back from the device when its kernel is created; the module with the kernels is
//! loaded then, too. An execution waits for nothing, so that it can be captured in a CUDA graph; it takes memory only
//! for a stream that it has not seen, or for a larger product than any before.

mod decode;
mod host;
mod product;
mod shared;
mod weight;

use std::ffi::CStr;
use std::sync::{Arc, OnceLock};

use crate::cuda::port::Device;
use crate::format::Dtype;
use crate::ort::fence::Result;
use crate::ort::ops::{ANY, BFLOAT16, Definition, FLOAT, FLOAT16, INT8, OPTIONAL, REQUIRED, UINT8};
use crate::ort::shape;
use decode::{Decode, Gather};
use product::{Gemm, MatMul};

/// The provider, as ONNX Runtime calls it.
const PROVIDER: &CStr = c"CUDAExecutionProvider";

macro_rules! integers {
    ($name:literal, $element:ident, $kernel:ident, $dtype:expr, $shape:expr) => {
        Definition {
            name: $name,
            provider: Some(PROVIDER),
            inputs: &[(UINT8, REQUIRED), (ANY, REQUIRED)],
            element: $element,
            outputs: &[(REQUIRED, $shape)],
            create: |info| Ok(Box::new($kernel::of_integers(info, $dtype)?)),
        }
    };
}

macro_rules! products {
    ($($element:ident: $dtype:expr),*) => { [
        Definition {
            name: c"Decode",
            provider: Some(PROVIDER),
            inputs: &[(UINT8, REQUIRED), (ANY, REQUIRED)],
            element: FLOAT,
            outputs: &[(REQUIRED, shape::decode)],
            create: |info| Ok(Box::new(Decode::new(info)?)),
        },
        Definition {
            name: c"DecodeGather",
            provider: Some(PROVIDER),
            inputs: &[(UINT8, REQUIRED), (ANY, REQUIRED)],
            element: FLOAT,
            outputs: &[(REQUIRED, shape::gather)],
            create: |info| Ok(Box::new(Gather::new(info)?)),
        },
        Definition {
            name: c"DecodeDelta",
            provider: Some(PROVIDER),
            inputs: &[(UINT8, REQUIRED), (ANY, REQUIRED), (UINT8, REQUIRED)],
            element: FLOAT,
            outputs: &[(REQUIRED, shape::decode)],
            create: |info| Ok(Box::new(Decode::new(&info.of_delta())?)),
        },
        Definition {
            name: c"DecodeDeltaGather",
            provider: Some(PROVIDER),
            inputs: &[(UINT8, REQUIRED), (ANY, REQUIRED), (UINT8, REQUIRED)],
            element: FLOAT,
            outputs: &[(REQUIRED, shape::gather)],
            create: |info| Ok(Box::new(Gather::new(&info.of_delta())?)),
        },
        integers!(c"DecodeInt8", INT8, Decode, Dtype::I8, shape::decode),
        integers!(c"DecodeGatherInt8", INT8, Gather, Dtype::I8, shape::gather),
        integers!(c"DecodeUint8", UINT8, Decode, Dtype::U8, shape::decode),
        integers!(c"DecodeGatherUint8", UINT8, Gather, Dtype::U8, shape::gather),
        $(
            Definition {
                name: c"DecodeMatMul",
                provider: Some(PROVIDER),
                inputs: &[($element, REQUIRED), (UINT8, REQUIRED)],
                element: $element,
                outputs: &[(REQUIRED, shape::matmul)],
                create: |info| Ok(Box::new(MatMul::new(info, $dtype)?)),
            },
            Definition {
                name: c"DecodeGemm",
                provider: Some(PROVIDER),
                inputs: &[($element, REQUIRED), (UINT8, REQUIRED), ($element, OPTIONAL)],
                element: $element,
                outputs: &[(REQUIRED, shape::gemm)],
                create: |info| Ok(Box::new(Gemm::new(info, $dtype)?)),
            },
            Definition {
                name: c"DecodeDeltaMatMul",
                provider: Some(PROVIDER),
                inputs: &[($element, REQUIRED), (UINT8, REQUIRED), (UINT8, REQUIRED)],
                element: $element,
                outputs: &[(REQUIRED, shape::matmul)],
                create: |info| Ok(Box::new(MatMul::new(&info.of_delta(), $dtype)?)),
            },
            Definition {
                name: c"DecodeDeltaGemm",
                provider: Some(PROVIDER),
                inputs: &[($element, REQUIRED), (UINT8, REQUIRED), (UINT8, REQUIRED), ($element, OPTIONAL)],
                element: $element,
                outputs: &[(REQUIRED, shape::gemm)],
                create: |info| Ok(Box::new(Gemm::new(&info.of_delta(), $dtype)?)),
            },
        )*
    ] };
}

/// The ops of the domain that the CUDA provider has kernels for.
pub(super) static DEFINITIONS: [Definition; 20] =
    products!(FLOAT: Dtype::F32, FLOAT16: Dtype::F16, BFLOAT16: Dtype::Bf16);

static EMULATED: OnceLock<Arc<dyn Device>> = OnceLock::new();

/// Has all sessions made from now on run these ops on the CPU provider, over `device`, in place of the CPU's own: so tests
/// run them in ONNX Runtime without a GPU. A second device is ignored.
pub fn emulate(device: Arc<dyn Device>) {
    let _: std::result::Result<(), _> = EMULATED.set(device);
}

/// Whether the ops are for the CPU provider.
pub(super) fn is_emulated() -> bool {
    EMULATED.get().is_some()
}

/// The device with this number, its kernels loaded.
#[cfg(feature = "cuda")]
fn device(ordinal: usize) -> Result<Arc<dyn Device>> {
    use std::sync::{Mutex, PoisonError};

    use crate::cuda::device::Kernels;

    /// Loaded once, since a module takes long to compile; kept as long as the process lives.
    static LOADED: Mutex<Vec<(usize, Arc<Kernels>)>> = Mutex::new(Vec::new());

    if let Some(device) = EMULATED.get() {
        return Ok(Arc::clone(device));
    }
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, device)) = loaded.iter().find(|(known, _)| *known == ordinal) {
        return Ok(Arc::clone(device) as Arc<dyn Device>);
    }
    let device = Arc::new(shared::told(Kernels::load(ordinal))?);
    loaded.push((ordinal, Arc::clone(&device)));
    Ok(device)
}

/// The device with this number: this build has none but an emulated one.
#[cfg(not(feature = "cuda"))]
fn device(_: usize) -> Result<Arc<dyn Device>> {
    let missing = || {
        crate::ort::fence::Failure::fail(
            "CUDA was asked for, but this nz-onnx was built without the feature 'cuda': build it with that, or run on the \
             CPU",
        )
    };
    EMULATED.get().cloned().ok_or_else(missing)
}
