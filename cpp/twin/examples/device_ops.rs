//! `libdevice_ops.so`: the ops as ONNX Runtime's CUDA provider has them, but on the CPU provider and over the kernels as
//! `cpp/simt` runs them. So tests see the ops' own logic, from the header that is read back to the last tile, in a real
//! ONNX Runtime without a GPU.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nz_cpp_twin::simt::{self, Grid};
use nz_onnx::cuda::job::Launch;
use nz_onnx::cuda::port::{Device, DeviceError, RowCopy, StatusWord};
use nz_onnx::cuda::{DecodeArguments, EncodeArguments, ProductArguments};

/// Device memory is the process's own.
#[derive(Default)]
struct Twin {
    /// What was allocated, by address.
    allocated: Mutex<HashMap<u64, Layout>>,
    /// Launches so far: each has another order of warps and lanes.
    launches: AtomicU64,
}

impl Twin {
    fn run<A: bytemuck::Pod>(&self, launch: &Launch<A>) -> Result<(), DeviceError> {
        let (x, y) = launch.grid;
        let seed = self.launches.fetch_add(1, Ordering::Relaxed);
        let grid = Grid { x, y, threads: launch.threads, shared: launch.shared as usize, seed };
        // SAFETY: the caller vouches for what the arguments name.
        let outcome =
            unsafe { simt::launch(launch.kernel.name(), &grid, bytemuck::bytes_of(&launch.arguments)) };
        outcome.map_err(|reason| DeviceError::Driver { what: "running a kernel", reason })
    }
}

struct Word(Box<AtomicU32>);

impl StatusWord for Word {
    fn address(&self) -> u64 {
        std::ptr::from_ref(&*self.0) as u64
    }

    fn take(&self) -> u32 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl Device for Twin {
    fn allocate(&self, bytes: u64) -> Result<u64, DeviceError> {
        let refusal =
            || DeviceError::Driver { what: "taking device memory", reason: format!("{bytes} bytes") };
        let layout = Layout::from_size_align(bytes.max(1) as usize, 256)
            .map_err(|_: std::alloc::LayoutError| refusal())?;
        // SAFETY: the size is not 0.
        let address = unsafe { alloc(layout) } as u64;
        if address == 0 {
            return Err(refusal());
        }
        // What nobody has written shows in results.
        // SAFETY: new memory of this length.
        unsafe { std::ptr::write_bytes(address as *mut u8, 0xff, layout.size()) };
        self.allocated.lock().unwrap_or_else(PoisonError::into_inner).insert(address, layout);
        Ok(address)
    }

    unsafe fn free(&self, address: u64) {
        let layout = self.allocated.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
        // SAFETY: from `allocate`, and removed from the list with this.
        unsafe { dealloc(address as *mut u8, layout.expect("memory of this device")) };
    }

    unsafe fn read(&self, from: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    unsafe fn write(&self, bytes: &[u8], to: u64) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    unsafe fn wait(&self, _: *mut c_void) -> Result<(), DeviceError> {
        Ok(())
    }

    unsafe fn copy_rows(&self, _: *mut c_void, copy: RowCopy) -> Result<(), DeviceError> {
        for row in 0..copy.rows {
            let (from, to) = (copy.from + row * copy.from_pitch, copy.to + row * copy.to_pitch);
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, copy.width as usize) };
        }
        Ok(())
    }

    unsafe fn decode(&self, _: *mut c_void, launch: &Launch<DecodeArguments>) -> Result<(), DeviceError> {
        self.run(launch)
    }

    unsafe fn multiply(&self, _: *mut c_void, launch: &Launch<ProductArguments>) -> Result<(), DeviceError> {
        self.run(launch)
    }

    unsafe fn encode(&self, _: *mut c_void, launch: &Launch<EncodeArguments>) -> Result<(), DeviceError> {
        self.run(launch)
    }

    fn status(&self) -> Result<Box<dyn StatusWord>, DeviceError> {
        Ok(Box::new(Word(Box::new(AtomicU32::new(0)))))
    }
}

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
