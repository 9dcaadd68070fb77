//! What all kernels on one device share: the device itself, and scratch memory for each stream.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::cuda::port::{Device, DeviceError};
use crate::ort::fence::{Failure, Result};

/// Parts of a scratch are at multiples of so many bytes.
pub(super) const ALIGN: u64 = 256;

/// What `outcome` is to the host.
pub(super) fn told<T>(outcome: std::result::Result<T, DeviceError>) -> Result<T> {
    outcome.map_err(|error| Failure::fail(error.to_string()))
}

/// Memory of the device, freed with this value.
pub(super) struct Memory {
    device: Arc<dyn Device>,
    pub address: u64,
    len: u64,
}

impl Memory {
    fn new(device: &Arc<dyn Device>, len: u64) -> Result<Self> {
        Ok(Memory { address: told(device.allocate(len))?, device: Arc::clone(device), len })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: from this device. Whoever drops it knows that the device is done with it.
        unsafe { self.device.free(self.address) };
    }
}

/// What all kernels on one device share.
pub(crate) struct Shared {
    device: Arc<dyn Device>,
    /// The most scratch that a kernel is known to need.
    reserved: AtomicU64,
    /// The scratch of each stream. It is taken when a stream is first used, so before ONNX Runtime captures a graph.
    scratch: Mutex<HashMap<usize, Arc<Mutex<Option<Memory>>>>>,
}

static SHARED: Mutex<Vec<(usize, Weak<Shared>)>> = Mutex::new(Vec::new());

impl Shared {
    /// That of the device with this number.
    pub fn of(ordinal: usize) -> Result<Arc<Self>> {
        let mut all = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.iter().find(|(known, _)| *known == ordinal);
        if let Some(shared) = known.and_then(|(_, shared)| shared.upgrade()) {
            return Ok(shared);
        }
        let device = super::device(ordinal)?;
        let shared = Shared { device, reserved: AtomicU64::new(0), scratch: Mutex::default() };
        let shared = Arc::new(shared);
        all.retain(|(known, _)| *known != ordinal);
        all.push((ordinal, Arc::downgrade(&shared)));
        Ok(shared)
    }

    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// `bytes` in new memory of the device.
    pub fn upload(&self, bytes: &[u8]) -> Result<Memory> {
        let memory = Memory::new(&self.device, bytes.len() as u64)?;
        // SAFETY: new memory of this length.
        told(unsafe { self.device.write(bytes, memory.address) })?;
        Ok(memory)
    }

    /// Notes that a kernel will need so much scratch.
    pub fn reserve(&self, bytes: u64) {
        self.reserved.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Has `work` put launches on `stream` that use a scratch of `bytes` bytes, whose address it is given.
    ///
    /// All kernels on a stream use the same memory, one after the other as the stream does; the lock keeps apart those
    /// that are put there at the same time.
    pub fn with_scratch<T>(
        &self,
        stream: *mut c_void,
        bytes: u64,
        work: impl FnOnce(u64) -> Result<T>,
    ) -> Result<T> {
        let slot = {
            let mut all = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(stream as usize).or_default())
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_none_or(|memory| memory.len < bytes) {
            if slot.is_some() {
                // SAFETY: the host's stream, alive during this call. What is on it may still use the old memory.
                told(unsafe { self.device.wait(stream) })?;
                *slot = None;
            }
            let wanted = bytes.max(self.reserved.load(Ordering::Relaxed));
            *slot = Some(Memory::new(&self.device, wanted)?);
        }
        match &*slot {
            Some(memory) => work(memory.address),
            None => Err(Failure::fail("internal error: a stream without scratch")),
        }
    }
}
