//! Kernels on a CUDA device: the driver, loaded when it is asked for, and launches on the caller's stream.

use std::collections::HashMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::{CudaContext, CudaFunction, DriverError, LaunchConfig, PushKernelArg, result, sys};
use cudarc::nvrtc::Ptx;

use super::cubin;
use super::job::{Kernel, Launch};
use super::layout::{
    DecodeArguments, DeltaDecodeArguments, DeltaProductArguments, EncodeArguments, ProductArguments,
};
use super::nvrtc;
use super::port::{Device, RowCopy, StatusWord};
use super::product::tensor::SHARED_LIMIT;

pub use super::port::DeviceError;

/// The kernels as PTX for compute capability 7.5, but for [`TENSOR`]: drivers from 520 on make code for their device of it.
const MODULES: [(&str, &str); 5] = [
    ("decode", include_str!("../../cpp/ptx/decode.ptx")),
    ("delta", include_str!("../../cpp/ptx/delta.ptx")),
    ("encode", include_str!("../../cpp/ptx/encode.ptx")),
    ("gemv", include_str!("../../cpp/ptx/gemv.ptx")),
    (TENSOR, include_str!("../../cpp/ptx/tensor.ptx")),
];
/// The module that is for this compute capability or a later one.
const TENSOR: &str = "tensor";
const TENSOR_CAPABILITY: (i32, i32) = (8, 0);

/// Whether this machine has a CUDA driver.
pub fn is_driver_present() -> bool {
    // SAFETY: looks for the library by its name and for nothing else.
    unsafe { sys::is_culib_present() }
}

/// The kernels, loaded into the primary context of a device: the one that ONNX Runtime uses.
///
/// Making one takes memory and time for compiling, so it is done when a session is made; launching does neither, so a
/// launch can be captured in a CUDA graph.
pub struct Kernels {
    context: Arc<CudaContext>,
    functions: HashMap<Kernel, CudaFunction>,
}

/// Runs `call`, which goes into the driver. cudarc panics when the driver is too old to have a function.
fn driver<T>(what: &'static str, call: impl FnOnce() -> Result<T, DriverError>) -> Result<T, DeviceError> {
    let outcome = catch_unwind(AssertUnwindSafe(call));
    let reason = match outcome {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "a function is missing: the driver is too old, version 520 or later is needed".to_owned(),
    };
    Err(DeviceError::Driver { what, reason })
}

impl Kernels {
    /// Loads the kernels into the primary context of device `ordinal`.
    ///
    /// # Errors
    /// There is no driver or no such device, or the driver does not take the kernels; or [`nvrtc::NVRTC_VARIABLE`] asks for
    /// NVRTC, and it is not there.
    pub fn load(ordinal: usize) -> Result<Self, DeviceError> {
        if !is_driver_present() {
            return Err(DeviceError::NoDriver);
        }
        let context = driver("the device's primary context", || CudaContext::new(ordinal))?;
        // SAFETY: all memory is the caller's; there are no events of cudarc's whose order could matter.
        unsafe { context.disable_event_tracking() };
        let mut functions = HashMap::new();
        let compiled = nvrtc::is_wanted()?;
        let capability = driver("the device's capability", || context.compute_capability())?;
        for (name, source) in MODULES {
            if name == TENSOR && capability < TENSOR_CAPABILITY {
                continue;
            }
            let load = |code| driver("loading the kernels", || context.load_module(code));
            let module = if compiled {
                load(nvrtc::compile(name, capability)?)?
            } else {
                // A driver that does not take the machine code takes the PTX.
                let code =
                    cubin::code_for(name, capability).map(|code| load(Ptx::from_binary(code.to_vec())));
                match code {
                    Some(Ok(module)) => module,
                    _ => load(Ptx::from_src(source))?,
                }
            };
            for kernel in
                Kernel::ALL.into_iter().filter(|kernel| source.contains(&format!(" {}(", kernel.name())))
            {
                let function = driver("finding a kernel", || module.load_function(kernel.name()))?;
                if name == TENSOR {
                    let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                    driver("asking for shared memory", || {
                        function.set_attribute(limit, SHARED_LIMIT as i32)
                    })?;
                }
                functions.insert(kernel, function);
            }
        }
        Ok(Kernels { context, functions })
    }

    /// The primary context that the kernels are in.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Puts a launch on `stream`, a `cudaStream_t` or `CUstream` of this device. Returns before the kernel has run.
    ///
    /// # Safety
    /// The stream is alive, and so is all memory that the arguments name until the stream has passed the launch; it may
    /// be used as `cpp/include/nz_cuda.h` says.
    ///
    /// # Errors
    /// The driver refuses the launch.
    pub unsafe fn launch<A: bytemuck::Pod>(
        &self,
        stream: *mut c_void,
        launch: &Launch<A>,
    ) -> Result<(), DeviceError> {
        let function = self.functions.get(&launch.kernel);
        let function = function.ok_or_else(|| DeviceError::Driver {
            what: "launching a kernel",
            reason: format!("no module has {}", launch.kernel.name()),
        })?;
        let config = LaunchConfig {
            grid_dim: (launch.grid.0, launch.grid.1, 1),
            block_dim: (launch.threads, 1, 1),
            shared_mem_bytes: launch.shared,
        };
        driver("launching a kernel", || {
            self.context.bind_to_thread()?;
            // SAFETY: the caller's stream stays his; it is only used for this launch.
            let stream = unsafe { self.context.wrap_borrowed_stream(stream.cast()) };
            let arguments = ByValue(launch.arguments);
            let mut builder = stream.launch_builder(function);
            builder.arg(&arguments);
            // SAFETY: a launch has the struct that its kernel takes; the caller vouches for what that points to.
            unsafe { builder.launch(config) }.map(|_| ())
        })
    }
}

/// A struct that a kernel takes by value.
#[repr(transparent)]
struct ByValue<A>(A);

// SAFETY: plain data with the layout of the kernel's parameter.
unsafe impl<A: bytemuck::Pod> cudarc::driver::DeviceRepr for ByValue<A> {}

impl Kernels {
    /// Runs `call` with the context current on this thread.
    fn bound<T>(
        &self,
        what: &'static str,
        call: impl FnOnce() -> Result<T, DriverError>,
    ) -> Result<T, DeviceError> {
        driver(what, || {
            self.context.bind_to_thread()?;
            call()
        })
    }
}

impl Device for Kernels {
    fn has_tensor_cores(&self) -> bool {
        self.functions.contains_key(&Kernel::TensorRow)
    }

    fn allocate(&self, bytes: u64) -> Result<u64, DeviceError> {
        // SAFETY: new memory that nobody reads before it is written.
        self.bound("taking device memory", || unsafe { result::malloc_sync(bytes as usize) })
    }

    unsafe fn free(&self, address: u64) {
        // There is nobody to tell of a failure. SAFETY: the caller's promise.
        let _: Result<(), DeviceError> =
            self.bound("freeing device memory", || unsafe { result::free_sync(address) });
    }

    unsafe fn read(&self, from: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        self.bound("reading device memory", || unsafe { result::memcpy_dtoh_sync(out, from) })
    }

    unsafe fn write(&self, bytes: &[u8], to: u64) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        self.bound("writing device memory", || unsafe { result::memcpy_htod_sync(to, bytes) })
    }

    unsafe fn wait(&self, stream: *mut c_void) -> Result<(), DeviceError> {
        let mut capture = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the caller's promise, and a place for the answer. Waiting would spoil the capture; asking does not.
        self.bound("asking whether a stream is captured", || unsafe {
            sys::cuStreamIsCapturing(stream.cast(), &mut capture).result()
        })?;
        if capture != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
            return Err(DeviceError::Captured);
        }
        // SAFETY: the caller's promise.
        self.bound("waiting for a stream", || unsafe { result::stream::synchronize(stream.cast()) })
    }

    unsafe fn copy_rows(&self, stream: *mut c_void, copy: RowCopy) -> Result<(), DeviceError> {
        let device = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: device,
            srcHost: std::ptr::null(),
            srcDevice: copy.from,
            srcArray: std::ptr::null_mut(),
            srcPitch: copy.from_pitch as usize,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: device,
            dstHost: std::ptr::null_mut(),
            dstDevice: copy.to,
            dstArray: std::ptr::null_mut(),
            dstPitch: copy.to_pitch as usize,
            WidthInBytes: copy.width as usize,
            Height: copy.rows as usize,
        };
        // SAFETY: the caller's promise; the struct is read during the call.
        self.bound("copying device memory", || unsafe {
            sys::cuMemcpy2DAsync_v2(&copy, stream.cast()).result()
        })
    }

    unsafe fn decode(
        &self,
        stream: *mut c_void,
        launch: &Launch<DecodeArguments>,
    ) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, launch) }
    }

    unsafe fn decode_delta(
        &self,
        stream: *mut c_void,
        launch: &Launch<DeltaDecodeArguments>,
    ) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, launch) }
    }

    unsafe fn multiply(
        &self,
        stream: *mut c_void,
        launch: &Launch<ProductArguments>,
    ) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, launch) }
    }

    unsafe fn multiply_delta(
        &self,
        stream: *mut c_void,
        launch: &Launch<DeltaProductArguments>,
    ) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, launch) }
    }

    unsafe fn encode(
        &self,
        stream: *mut c_void,
        launch: &Launch<EncodeArguments>,
    ) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, launch) }
    }

    fn status(&self) -> Result<Box<dyn StatusWord>, DeviceError> {
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
        let word = self.bound("taking memory that host and device share", || {
            // SAFETY: the memory is used for nothing but a word, and freed by `MappedWord`.
            let host = unsafe { result::malloc_host(size_of::<u32>(), flags) }?;
            let host = host.cast::<AtomicU32>();
            // SAFETY: new memory, aligned to a page.
            unsafe { host.write(AtomicU32::new(0)) };
            let mut word = MappedWord { context: Arc::clone(&self.context), host, device: 0 };
            // SAFETY: the address that was just returned.
            unsafe { sys::cuMemHostGetDevicePointer_v2(&mut word.device, host.cast(), 0) }.result()?;
            Ok(word)
        })?;
        Ok(Box::new(word))
    }
}

/// A word of page-locked memory that the device sees, too.
struct MappedWord {
    context: Arc<CudaContext>,
    host: *mut AtomicU32,
    device: u64,
}

// SAFETY: the word is atomic, and its address may be used on any thread.
unsafe impl Send for MappedWord {}
// SAFETY: as above.
unsafe impl Sync for MappedWord {}

impl StatusWord for MappedWord {
    fn address(&self) -> u64 {
        self.device
    }

    fn take(&self) -> u32 {
        // SAFETY: it lives as long as `self`.
        unsafe { &*self.host }.swap(0, Ordering::AcqRel)
    }
}

impl Drop for MappedWord {
    fn drop(&mut self) {
        // There is nobody to tell of a failure.
        let _: Result<(), DeviceError> = driver("freeing memory", || {
            self.context.bind_to_thread()?;
            // SAFETY: from `malloc_host`; no kernel that has it is left.
            unsafe { result::free_host(self.host.cast()) }
        });
    }
}
