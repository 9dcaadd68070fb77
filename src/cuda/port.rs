//! What the ops need of a device. The driver's is `device::Kernels`; tests have one that runs the kernels on the CPU.

use std::ffi::c_void;

use super::job::Launch;
use super::layout::{
    DecodeArguments, DeltaDecodeArguments, DeltaProductArguments, EncodeArguments, ProductArguments,
};

/// Why the device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no CUDA driver on this machine.
    #[error(
        "CUDA was asked for, but there is no CUDA driver (libcuda.so.1) on this machine: install one, or run on the CPU"
    )]
    NoDriver,
    /// NVRTC was asked for, and is not there.
    #[error(
        "NZ_CUDA_NVRTC=1 asks for NVRTC, but there is no libnvrtc.so on the library path: install it, or unset the variable \
         to use the kernels as they come with this library"
    )]
    NoNvrtc,
    /// The caller's stream is captured in a CUDA graph, where it cannot be waited for.
    #[error(
        "the stream is being captured in a CUDA graph, but has to be waited for, since a weight's blob is no initializer of the \
         graph it is read in, or a tensor is to be encoded: run this without a graph, or make the blob an initializer"
    )]
    Captured,
    /// A setting is not one of those that it can be.
    #[error("environment variable {name} is '{value}': set it to 1 or 0, or unset it")]
    Setting {
        /// The variable.
        name: &'static str,
        /// What it is.
        value: String,
    },
    /// The driver does not do what was asked of it.
    #[error("CUDA driver: {what}: {reason}")]
    Driver {
        /// What was to be done.
        what: &'static str,
        /// The driver's own words.
        reason: String,
    },
}

/// Rows of bytes that are copied from one place on the device to another.
#[derive(Clone, Copy, Debug)]
pub struct RowCopy {
    /// The first row.
    pub from: u64,
    /// Bytes from one row to the next.
    pub from_pitch: u64,
    /// Where the first row goes.
    pub to: u64,
    /// Bytes from one row to the next there.
    pub to_pitch: u64,
    /// Bytes of a row.
    pub width: u64,
    /// How many rows.
    pub rows: u64,
}

/// A 32-bit word that kernels set bits in and the host reads without waiting for them.
pub trait StatusWord: Send + Sync {
    /// Its address on the device.
    fn address(&self) -> u64;

    /// The bits that kernels which are done by now have set; they are cleared.
    fn take(&self) -> u32;
}

/// A device with the kernels of `cpp/cuda`. A stream is a `cudaStream_t` or `CUstream` of the caller's.
///
/// Only [`Device::allocate`] and [`Device::status`] take memory, and only [`Device::free`], [`Device::read`],
/// [`Device::write`] and [`Device::wait`] wait, so all else can be captured in a CUDA graph.
pub trait Device: Send + Sync {
    /// Whether it has the kernels that multiply with tensor cores.
    fn has_tensor_cores(&self) -> bool;

    /// `bytes` bytes of the device's memory, at a multiple of 256.
    ///
    /// # Errors
    /// There is not that much.
    fn allocate(&self, bytes: u64) -> Result<u64, DeviceError>;

    /// Gives memory back.
    ///
    /// # Safety
    /// `address` is from [`Device::allocate`], and nothing on the device uses the memory any more.
    unsafe fn free(&self, address: u64);

    /// Copies device memory to the host, and waits until it is there.
    ///
    /// # Safety
    /// `from` is the address of `out.len()` bytes of the device, which nothing changes meanwhile.
    ///
    /// # Errors
    /// The driver refuses.
    unsafe fn read(&self, from: u64, out: &mut [u8]) -> Result<(), DeviceError>;

    /// Copies to device memory, and waits until it is there.
    ///
    /// # Safety
    /// `to` is the address of `bytes.len()` bytes of the device, which nothing uses meanwhile.
    ///
    /// # Errors
    /// The driver refuses.
    unsafe fn write(&self, bytes: &[u8], to: u64) -> Result<(), DeviceError>;

    /// Waits until all that was put on `stream` is done.
    ///
    /// # Safety
    /// The stream is alive.
    ///
    /// # Errors
    /// [`DeviceError::Captured`], which leaves the capture as it is; or work on the stream failed.
    unsafe fn wait(&self, stream: *mut c_void) -> Result<(), DeviceError>;

    /// Puts a copy within the device's memory on `stream`.
    ///
    /// # Safety
    /// The stream is alive; so is the memory until the stream has passed the copy.
    ///
    /// # Errors
    /// The driver refuses.
    unsafe fn copy_rows(&self, stream: *mut c_void, copy: RowCopy) -> Result<(), DeviceError>;

    /// Puts a launch on `stream`. Returns before the kernel has run.
    ///
    /// # Safety
    /// The stream is alive, and so is all memory that the arguments name until the stream has passed the launch; it may
    /// be used as `cpp/include/nz_cuda.h` says.
    ///
    /// # Errors
    /// The driver refuses the launch.
    unsafe fn decode(&self, stream: *mut c_void, launch: &Launch<DecodeArguments>)
    -> Result<(), DeviceError>;

    /// The same for a delta.
    ///
    /// # Safety
    /// As [`Device::decode`].
    ///
    /// # Errors
    /// As [`Device::decode`].
    unsafe fn decode_delta(
        &self,
        stream: *mut c_void,
        launch: &Launch<DeltaDecodeArguments>,
    ) -> Result<(), DeviceError>;

    /// The same for a part of a product.
    ///
    /// # Safety
    /// As [`Device::decode`].
    ///
    /// # Errors
    /// As [`Device::decode`].
    unsafe fn multiply(
        &self,
        stream: *mut c_void,
        launch: &Launch<ProductArguments>,
    ) -> Result<(), DeviceError>;

    /// The same for a part of a product with a delta.
    ///
    /// # Safety
    /// As [`Device::decode`].
    ///
    /// # Errors
    /// As [`Device::decode`].
    unsafe fn multiply_delta(
        &self,
        stream: *mut c_void,
        launch: &Launch<DeltaProductArguments>,
    ) -> Result<(), DeviceError>;

    /// The same for a step of encoding.
    ///
    /// # Safety
    /// As [`Device::decode`].
    ///
    /// # Errors
    /// As [`Device::decode`].
    unsafe fn encode(&self, stream: *mut c_void, launch: &Launch<EncodeArguments>)
    -> Result<(), DeviceError>;

    /// A new status word, all bits clear.
    ///
    /// # Errors
    /// The driver has no memory that host and device share.
    fn status(&self) -> Result<Box<dyn StatusWord>, DeviceError>;
}
