//! Kernels on a CUDA device: the driver, loaded when it is asked for, and launches on the caller's stream.

use std::collections::HashMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, DriverError, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;

use super::job::{Kernel, Launch};

/// The kernels as PTX for compute capability 7.5: drivers from 520 on make code for their device of it.
const MODULES: [&str; 2] = [include_str!("../../cpp/ptx/decode.ptx"), include_str!("../../cpp/ptx/gemv.ptx")];

/// Why the device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no CUDA driver on this machine.
    #[error(
        "CUDA was asked for, but there is no CUDA driver (libcuda.so.1) on this machine: install one, or run on the CPU"
    )]
    NoDriver,
    /// The driver does not do what was asked of it.
    #[error("CUDA driver: {what}: {reason}")]
    Driver {
        /// What was to be done.
        what: &'static str,
        /// The driver's own words.
        reason: String,
    },
}

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
    /// There is no driver or no such device, or the driver does not take the kernels.
    pub fn load(ordinal: usize) -> Result<Self, DeviceError> {
        if !is_driver_present() {
            return Err(DeviceError::NoDriver);
        }
        let context = driver("the device's primary context", || CudaContext::new(ordinal))?;
        // SAFETY: all memory is the caller's; there are no events of cudarc's whose order could matter.
        unsafe { context.disable_event_tracking() };
        let mut functions = HashMap::new();
        for source in MODULES {
            let module = driver("loading the kernels", || context.load_module(Ptx::from_src(source)))?;
            for kernel in
                Kernel::ALL.into_iter().filter(|kernel| source.contains(&format!(" {}(", kernel.name())))
            {
                let function = driver("finding a kernel", || module.load_function(kernel.name()))?;
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
