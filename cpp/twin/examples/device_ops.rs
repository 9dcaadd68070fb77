//! `libdevice_ops.so`: the ops as ONNX Runtime's CUDA provider has them, but on the CPU provider and over the kernels as
//! `cpp/simt` runs them. So tests see the ops' own logic, from the header that is read back to the last tile, in a real
//! ONNX Runtime without a GPU.

#[path = "../tests/common/twin.rs"]
mod twin;

use std::sync::Arc;

use twin::Twin;

/// Runs when the library is loaded, so before ONNX Runtime calls `RegisterCustomOps`, which is nz-onnx's own.
extern "C" fn start() {
    nz_onnx::ort::emulate(Arc::new(Twin::default()));
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

/// Keeps the entry point in the library.
#[used]
static ENTRY: unsafe extern "system" fn(
    *mut ort_sys::OrtSessionOptions,
    *const ort_sys::OrtApiBase,
) -> ort_sys::OrtStatusPtr = nz_onnx::ort::RegisterCustomOps;
