//! What a node runs with: its inputs, its outputs and the session's threads.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use bytemuck::AnyBitPattern;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use ort_sys::{OrtKernelContext, OrtValue};

use super::{Api, Tensor, element};
use crate::ort::fence::{self, Failure, Result};

/// One execution of a node.
pub(crate) struct KernelContext<'a> {
    pub(in crate::ort) api: Api,
    pub(in crate::ort) raw: *mut OrtKernelContext,
    lifetime: PhantomData<&'a OrtKernelContext>,
}

impl<'a> KernelContext<'a> {
    /// # Safety
    /// `raw` is the live context of a `KernelComputeV2` call that lasts for `'a`.
    pub unsafe fn new(api: Api, raw: *mut OrtKernelContext) -> Self {
        KernelContext { api, raw, lifetime: PhantomData }
    }

    /// Input `index`, or nothing if the node leaves it out.
    pub fn input(&self, index: usize) -> Result<Option<Tensor<'a>>> {
        let (mut count, mut value): (usize, *const OrtValue) = (0, ptr::null());
        // SAFETY: `raw` is live; inputs live as long as the call.
        unsafe {
            self.api.check((self.api.0.KernelContext_GetInputCount)(self.raw, &mut count))?;
            if index >= count {
                return Ok(None);
            }
            self.api.check((self.api.0.KernelContext_GetInput)(self.raw, index, &mut value))?;
            if value.is_null() { Ok(None) } else { Tensor::new(self.api, value).map(Some) }
        }
    }

    /// Input `index`, which the op's declaration calls required.
    pub fn required(&self, index: usize) -> Result<Tensor<'a>> {
        self.input(index)?.ok_or_else(|| Failure::invalid(format!("input {index} is missing")))
    }

    /// Allocates the node's first output, whose elements are as long as a `T`, and hands it out.
    ///
    /// Takes the context mutably, so that there is one such slice at a time.
    pub fn only_output<T: AnyBitPattern>(&mut self, dims: &[i64]) -> Result<&mut [T]> {
        self.output(0, dims)?.ok_or_else(|| Failure::invalid("output 0 is missing"))
    }

    /// The same for output `index`, or nothing if the node leaves it out.
    pub fn output<T: AnyBitPattern>(&mut self, index: usize, dims: &[i64]) -> Result<Option<&mut [T]>> {
        let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
        let count = count.filter(|&n| n <= isize::MAX as usize / size_of::<T>());
        let count = count.ok_or_else(|| Failure::invalid(format!("output shape {dims:?} is too large")))?;
        let (mut value, mut data): (*mut OrtValue, *mut c_void) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: `raw` is live; the host allocates what `dims` asks for, aligned for any element type. The
        // memory is ours until the call returns. Its bytes may be uninitialised to the host; any bit pattern
        // is a `T`, and kernels write each element before anybody reads it.
        unsafe {
            let get = self.api.0.KernelContext_GetOutput;
            self.api.check(get(self.raw, index, dims.as_ptr(), dims.len(), &mut value))?;
            if value.is_null() {
                return Ok(None);
            }
            if count == 0 {
                return Ok(Some(&mut []));
            }
            self.api.check((self.api.0.GetTensorMutableData)(value, &mut data))?;
            if data.is_null() {
                return Err(Failure::fail("ONNX Runtime gave no memory for the output"));
            }
            Ok(Some(std::slice::from_raw_parts_mut(data.cast(), count)))
        }
    }

    /// Allocates the node's only output, of floats of type `element`, and has `fill` set it; the shorter types are
    /// rounded to at the end.
    pub fn fill_output(
        &mut self,
        element: i32,
        dims: &[i64],
        fill: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<()> {
        if element == element::FLOAT {
            return fill(self.only_output(dims)?);
        }
        let out = self.only_output::<u16>(dims)?;
        let mut values = vec![0f32; out.len()];
        fill(&mut values)?;
        if element == element::FLOAT16 {
            out.reinterpret_cast_mut::<f16>().convert_from_f32_slice(&values);
        } else {
            out.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(&values);
        }
        Ok(())
    }

    /// A handle with which to run tasks while an output is borrowed.
    pub fn workers(&self) -> Workers<'a> {
        Workers { api: self.api, raw: self.raw, lifetime: PhantomData }
    }
}

/// The session's intra-op threads.
pub(crate) struct Workers<'a> {
    api: Api,
    raw: *const OrtKernelContext,
    lifetime: PhantomData<&'a OrtKernelContext>,
}

/// What the host's worker threads share: the task and the first failure, by task number.
struct Job<'f, F> {
    task: &'f F,
    failure: Mutex<Option<(usize, Failure)>>,
}

unsafe extern "C" fn run_task<F: Fn(usize) -> Result<()> + Sync>(job: *mut c_void, index: usize) {
    // SAFETY: `job` is the `Job<F>` that `Workers::run` keeps alive until all tasks are done; it is only read.
    let job = unsafe { &*job.cast_const().cast::<Job<'_, F>>() };
    if let Err(failure) = fence::catch(|| (job.task)(index)) {
        let mut first = job.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|(at, _)| index < *at) {
            *first = Some((index, failure));
        }
    }
}

impl Workers<'_> {
    /// Runs `task(0..count)` on the session's threads and this one, and waits. All tasks run even if some
    /// fail; the failure of the lowest task is reported.
    pub fn run<F: Fn(usize) -> Result<()> + Sync>(&self, count: usize, task: F) -> Result<()> {
        if count <= 1 {
            return if count == 1 { task(0) } else { Ok(()) };
        }
        let mut job = Job { task: &task, failure: Mutex::new(None) };
        // SAFETY: the context is live; the call returns after the last task, so `job` outlives its uses, and
        // `F: Sync` lets several threads use it.
        let status = unsafe {
            let parallel_for = self.api.0.KernelContext_ParallelFor;
            parallel_for(self.raw, run_task::<F>, count, 0, ptr::from_mut(&mut job).cast())
        };
        self.api.check(status)?;
        match job.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, failure)) => Err(failure),
            None => Ok(()),
        }
    }
}
