//! A device whose memory is the process's own, and whose kernels run on the CPU.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nz_cpp_twin::sass::{Program, Work};
use nz_cpp_twin::simt::{self, Grid};
use nz_onnx::cuda::job::Launch;
use nz_onnx::cuda::port::{Device, DeviceError, RowCopy, StatusWord};
use nz_onnx::cuda::{
    DecodeArguments, DeltaDecodeArguments, DeltaProductArguments, EncodeArguments, ProductArguments,
};

/// What lies on both sides of an allocation, and must stay there.
const GUARD: u8 = 0xa5;
/// As long as allocations are aligned.
const GUARD_LEN: usize = 256;

/// Told of a launch that encodes.
pub type Hook = Box<dyn Fn(&Twin, &Launch<EncodeArguments>) + Send + Sync>;

/// What kernels are run with in place of their sources, and what they have done.
struct MachineCode {
    program: Program,
    done: Mutex<Vec<(&'static str, Work)>>,
}

/// Device memory is the process's own.
#[derive(Default)]
pub struct Twin {
    /// Bytes of what was allocated, by address.
    allocated: Mutex<HashMap<u64, usize>>,
    /// Launches so far: each has another order of warps and lanes.
    launches: AtomicU64,
    /// Called in front of each launch that encodes, and behind it.
    around_encode: Option<[Hook; 2]>,
    /// The kernel that is run, if not all are.
    only: Option<&'static str>,
    machine_code: Option<MachineCode>,
}

/// The layout of so many bytes between guards.
fn guarded(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.checked_add(2 * GUARD_LEN)?, GUARD_LEN).ok()
}

impl Twin {
    /// A device that calls `before` in front of each launch that encodes, and `behind` after it.
    #[allow(dead_code)] // not of use to the ops
    pub fn around_encode(before: Hook, behind: Hook) -> Self {
        Twin { around_encode: Some([before, behind]), ..Twin::default() }
    }

    /// A device that runs machine code.
    #[allow(dead_code)] // not of use to the ops
    pub fn running(program: Program) -> Self {
        Twin { machine_code: Some(MachineCode { program, done: Mutex::default() }), ..Twin::default() }
    }

    /// The same of a single kernel: others are refused.
    #[allow(dead_code)] // not of use to the ops
    pub fn running_only(program: Program, kernel: &'static str) -> Self {
        Twin { only: Some(kernel), ..Twin::running(program) }
    }

    /// What its machine code has done since the last time, launch by launch.
    #[allow(dead_code)] // not of use to the ops
    pub fn take_work(&self) -> Vec<(&'static str, Work)> {
        let Some(MachineCode { done, .. }) = &self.machine_code else { return Vec::new() };
        std::mem::take(&mut done.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The bytes from `address` to the end of the allocation that it is in.
    #[allow(dead_code)] // not of use to the ops
    pub fn bytes_at(&self, address: u64) -> Vec<u8> {
        let allocated = self.allocated.lock().unwrap_or_else(PoisonError::into_inner);
        let inside =
            allocated.iter().find(|&(&start, &bytes)| (start..start + bytes as u64).contains(&address));
        let (&start, &bytes) = inside.expect("memory of this device");
        let len = start as usize + bytes - address as usize;
        // SAFETY: within what was allocated, and nothing runs now.
        unsafe { std::slice::from_raw_parts(address as *const u8, len) }.to_vec()
    }

    fn run<A: bytemuck::Pod>(&self, launch: &Launch<A>) -> Result<(), DeviceError> {
        let (x, y) = launch.grid;
        let seed = self.launches.fetch_add(1, Ordering::Relaxed);
        let grid = Grid { x, y, threads: launch.threads, shared: launch.shared as usize, seed };
        let (name, arguments) = (launch.kernel.name(), bytemuck::bytes_of(&launch.arguments));
        if self.only.is_some_and(|only| only != name) {
            return Err(DeviceError::Driver {
                what: "running a kernel",
                reason: format!("{name} is left out"),
            });
        }
        let outcome = match &self.machine_code {
            Some(MachineCode { program, done }) => {
                // SAFETY: the caller vouches for what the arguments name.
                unsafe { program.launch(name, &grid, arguments) }.map(|work| {
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((name, work));
                })
            }
            // SAFETY: the same.
            None => unsafe { simt::launch(name, &grid, arguments) },
        };
        outcome.map_err(|reason| DeviceError::Driver { what: "running a kernel", reason })
    }
}

/// A word that is its own device's.
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
    fn has_tensor_cores(&self) -> bool {
        true
    }

    fn allocate(&self, bytes: u64) -> Result<u64, DeviceError> {
        let refusal =
            || DeviceError::Driver { what: "taking device memory", reason: format!("{bytes} bytes") };
        let layout = guarded(bytes as usize).ok_or_else(refusal)?;
        // SAFETY: the size is not 0.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return Err(refusal());
        }
        // SAFETY: new memory of this length. What nobody has written shows in results.
        let address = unsafe {
            std::ptr::write_bytes(start, GUARD, layout.size());
            let inner = start.add(GUARD_LEN);
            std::ptr::write_bytes(inner, 0xff, bytes as usize);
            inner as u64
        };
        self.allocated.lock().unwrap_or_else(PoisonError::into_inner).insert(address, bytes as usize);
        Ok(address)
    }

    unsafe fn free(&self, address: u64) {
        let removed = self.allocated.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
        let bytes = removed.expect("memory of this device");
        let start = (address - GUARD_LEN as u64) as *mut u8;
        // SAFETY: from `allocate`, and removed from the list with this.
        unsafe {
            let all = std::slice::from_raw_parts(start, bytes + 2 * GUARD_LEN);
            let (front, rest) = all.split_at(GUARD_LEN);
            let intact = front.iter().chain(&rest[bytes..]).all(|&byte| byte == GUARD);
            dealloc(start, guarded(bytes).expect("as in `allocate`"));
            assert!(intact, "a kernel wrote beside {bytes} bytes that were allocated");
        }
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

    unsafe fn decode_delta(
        &self,
        _: *mut c_void,
        launch: &Launch<DeltaDecodeArguments>,
    ) -> Result<(), DeviceError> {
        self.run(launch)
    }

    unsafe fn multiply(&self, _: *mut c_void, launch: &Launch<ProductArguments>) -> Result<(), DeviceError> {
        self.run(launch)
    }

    unsafe fn multiply_delta(
        &self,
        _: *mut c_void,
        launch: &Launch<DeltaProductArguments>,
    ) -> Result<(), DeviceError> {
        self.run(launch)
    }

    unsafe fn encode(&self, _: *mut c_void, launch: &Launch<EncodeArguments>) -> Result<(), DeviceError> {
        if let Some([before, _]) = &self.around_encode {
            before(self, launch);
        }
        self.run(launch)?;
        if let Some([_, behind]) = &self.around_encode {
            behind(self, launch);
        }
        Ok(())
    }

    fn status(&self) -> Result<Box<dyn StatusWord>, DeviceError> {
        Ok(Box::new(Word(Box::new(AtomicU32::new(0)))))
    }
}
