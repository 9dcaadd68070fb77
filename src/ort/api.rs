//! The host's API table behind safe functions, and the views that callbacks are handed.
//!
//! The pointers come from ONNX Runtime, once per callback; the view types bind them to the callback's lifetime.

use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ort_sys::{
    OrtApi, OrtErrorCode, OrtKernelContext, OrtKernelInfo, OrtSessionOptions, OrtStatusPtr,
    OrtTensorTypeAndShapeInfo, OrtValue,
};

use bytemuck::AnyBitPattern;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use super::cache::Cache;
use super::depth::Limit;
use super::fence::{self, Failure, Result};
use crate::format::Dtype;

/// Element types as numbers: the host may know more of them than the enum in `ort-sys` does.
pub(crate) mod element {
    /// float32.
    pub const FLOAT: i32 = 1;
    /// uint8.
    pub const UINT8: i32 = 2;
    /// int8.
    pub const INT8: i32 = 3;
    /// int32.
    pub const INT32: i32 = 6;
    /// int64.
    pub const INT64: i32 = 7;
    /// float16.
    pub const FLOAT16: i32 = 10;
    /// bfloat16.
    pub const BFLOAT16: i32 = 16;
}

/// The function table of the ONNX Runtime that loaded us, at [`super::API_LEVEL`] or, for error reports only,
/// at a lower one. Such tables live as long as the process.
#[derive(Clone, Copy)]
pub(crate) struct Api(&'static OrtApi, HostVersion);

/// The host's minor version: 31 in 1.31.1. Its major version is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostVersion(pub u32);

impl HostVersion {
    /// The version in the text that the host gives; one that cannot be read counts as the newest.
    pub fn parse(text: &str) -> Self {
        HostVersion(text.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or(u32::MAX))
    }
}

impl Api {
    /// # Safety
    /// `table` is null or was returned by `OrtApiBase::GetApi`.
    pub unsafe fn new(table: *const OrtApi, version: HostVersion) -> Option<Self> {
        // SAFETY: the caller's promise; tables are static data of the host.
        unsafe { table.as_ref() }.map(|table| Api(table, version))
    }

    /// The host's version.
    pub fn host(self) -> HostVersion {
        self.1
    }

    /// The table itself, for calls that have no wrapper here.
    pub fn table(self) -> &'static OrtApi {
        self.0
    }

    /// A new status owned by whoever receives it.
    pub fn status(self, code: OrtErrorCode, message: String) -> OrtStatusPtr {
        let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
        // SAFETY: the message is a C string that the host copies.
        unsafe { (self.0.CreateStatus)(code, message.as_ptr()) }
    }

    /// Turns a status of the host's into a result, and releases it.
    pub fn check(self, status: OrtStatusPtr) -> Result<()> {
        if status.0.is_null() {
            return Ok(());
        }
        // SAFETY: a non-null status is ours: read its message, copy it, release it once.
        let message = unsafe {
            let text = CStr::from_ptr((self.0.GetErrorMessage)(status.0)).to_string_lossy().into_owned();
            (self.0.ReleaseStatus)(status.0);
            text
        };
        Err(Failure::fail(message))
    }

    /// An entry of the session options' configuration, if it is there.
    ///
    /// # Safety
    /// `options` are live session options of this host.
    pub unsafe fn session_option(
        self,
        options: *const OrtSessionOptions,
        key: &CStr,
    ) -> Result<Option<String>> {
        let mut found = 0;
        // SAFETY: `options` are live, the key is a C string, and `string` passes null or a buffer of `size` bytes.
        unsafe {
            self.check((self.0.HasSessionConfigEntry)(options, key.as_ptr(), &mut found))?;
            if found == 0 {
                return Ok(None);
            }
            self.string(|out, size| (self.0.GetSessionConfigEntry)(options, key.as_ptr(), out, size))
                .map(Some)
        }
    }

    /// Dimensions and element type of a type and shape object.
    ///
    /// # Safety
    /// `info` is a live object of this host.
    pub unsafe fn dimensions(self, info: *const OrtTensorTypeAndShapeInfo) -> Result<Vec<i64>> {
        let mut rank = 0;
        // SAFETY: `info` is live; the host writes `rank` numbers to a buffer of that size.
        unsafe {
            self.check((self.0.GetDimensionsCount)(info, &mut rank))?;
            let mut dims = vec![0i64; rank];
            self.check((self.0.GetDimensions)(info, dims.as_mut_ptr(), rank))?;
            Ok(dims)
        }
    }

    /// Reads a string through a function that reports the size it wants, final zero included.
    fn string(self, mut read: impl FnMut(*mut c_char, &mut usize) -> OrtStatusPtr) -> Result<String> {
        let mut size = 0;
        self.check(read(ptr::null_mut(), &mut size))?;
        let mut bytes = vec![0u8; size];
        self.check(read(bytes.as_mut_ptr().cast(), &mut size))?;
        let len = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
    }
}

/// Threads that the machine offers this process. The session may use fewer: ONNX Runtime does not tell.
pub(crate) fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// The input of an op of deltas that is the base's blob.
const BASE_INPUT: usize = 2;

/// What the host knows of a node when it creates the node's kernel.
#[derive(Clone, Copy)]
pub(crate) struct KernelInfo<'a> {
    pub(super) api: Api,
    pub(super) raw: *const OrtKernelInfo,
    cache: Option<&'a Arc<Cache>>,
    base: Option<usize>,
    limit: Option<Limit>,
    lifetime: PhantomData<&'a OrtKernelInfo>,
}

impl<'a> KernelInfo<'a> {
    /// # Safety
    /// `raw` is the live kernel info of a `CreateKernelV2` call that lasts for `'a`.
    pub unsafe fn new(api: Api, raw: *const OrtKernelInfo, cache: Option<&'a Arc<Cache>>) -> Self {
        KernelInfo { api, raw, cache, base: None, limit: None, lifetime: PhantomData }
    }

    /// The same of an op whose blob is a delta.
    pub fn of_delta(self) -> Self {
        KernelInfo { base: Some(BASE_INPUT), ..self }
    }

    /// The input that is the base's blob, if the op's blob is a delta.
    pub fn base(&self) -> Option<usize> {
        self.base
    }

    /// The same for a session that reads no more of layered weights than `limit`.
    pub fn within(self, limit: Option<Limit>) -> Self {
        KernelInfo { limit, ..self }
    }

    /// The most that the session reads of layered weights; `None`: all.
    pub fn limit(&self) -> Option<Limit> {
        self.limit
    }

    /// Where the session may keep decoded weights.
    pub fn cache(&self) -> Option<&'a Arc<Cache>> {
        self.cache
    }

    /// The host's version.
    pub fn host(&self) -> HostVersion {
        self.api.1
    }

    /// The node's name, which may be empty.
    pub fn node_name(&self) -> Result<String> {
        // SAFETY: `raw` is live; `string` passes null or a buffer of `size` bytes.
        self.api.string(|out, size| unsafe { (self.api.0.KernelInfo_GetNodeName)(self.raw, out, size) })
    }

    /// The name of the value that input `index` is connected to.
    pub fn input_name(&self, index: usize) -> Result<String> {
        // SAFETY: as in `node_name`.
        self.api
            .string(|out, size| unsafe { (self.api.0.KernelInfo_GetInputName)(self.raw, index, out, size) })
    }

    /// An integer attribute, if the node has it.
    pub fn int(&self, name: &CStr) -> Option<i64> {
        let mut value = 0;
        // SAFETY: `raw` is live, `name` a C string.
        let status =
            unsafe { (self.api.0.KernelInfoGetAttribute_int64)(self.raw, name.as_ptr(), &mut value) };
        self.api.check(status).ok().map(|()| value)
    }

    /// A float attribute, if the node has it.
    pub fn float(&self, name: &CStr) -> Option<f32> {
        let mut value = 0.0;
        // SAFETY: `raw` is live, `name` a C string.
        let status =
            unsafe { (self.api.0.KernelInfoGetAttribute_float)(self.raw, name.as_ptr(), &mut value) };
        self.api.check(status).ok().map(|()| value)
    }

    /// A string attribute, if the node has it.
    pub fn text(&self, name: &CStr) -> Option<String> {
        // SAFETY: `raw` is live, `name` a C string; `string` passes null or a buffer of `size` bytes.
        let read = |out, size: &mut usize| unsafe {
            (self.api.0.KernelInfoGetAttribute_string)(self.raw, name.as_ptr(), out, size)
        };
        self.api.string(read).ok()
    }

    /// An attribute of floats, if the node has it.
    pub fn floats(&self, name: &CStr) -> Option<Vec<f32>> {
        let (mut count, get) = (0, self.api.0.KernelInfoGetAttributeArray_float);
        // SAFETY: `raw` is live; the host writes at most `count` numbers to a buffer of that size.
        unsafe {
            self.api.check(get(self.raw, name.as_ptr(), ptr::null_mut(), &mut count)).ok()?;
            let mut values = vec![0f32; count];
            self.api.check(get(self.raw, name.as_ptr(), values.as_mut_ptr(), &mut count)).ok()?;
            values.truncate(count);
            Some(values)
        }
    }

    /// An attribute of integers.
    pub fn ints(&self, name: &CStr) -> Result<Vec<i64>> {
        let (mut count, get) = (0, self.api.0.KernelInfoGetAttributeArray_int64);
        // SAFETY: `raw` is live; the host writes at most `count` numbers to a buffer of that size.
        unsafe {
            self.api.check(get(self.raw, name.as_ptr(), ptr::null_mut(), &mut count))?;
            let mut values = vec![0i64; count];
            self.api.check(get(self.raw, name.as_ptr(), values.as_mut_ptr(), &mut count))?;
            values.truncate(count);
            Ok(values)
        }
    }

    /// Input `index`, if it is an initializer of the node's own graph.
    pub fn constant_input(&self, index: usize) -> Result<Option<Tensor<'a>>> {
        let (mut is_constant, mut value): (c_int, *const OrtValue) = (0, ptr::null());
        // SAFETY: `raw` is live. A constant outlives the session, so it outlives `'a`.
        unsafe {
            let get = self.api.0.KernelInfoGetConstantInput_tensor;
            self.api.check(get(self.raw, index, &mut is_constant, &mut value))?;
            if is_constant == 0 || value.is_null() {
                return Ok(None);
            }
            Tensor::new(self.api, value).map(Some)
        }
    }
}

/// One execution of a node.
pub(crate) struct KernelContext<'a> {
    pub(super) api: Api,
    pub(super) raw: *mut OrtKernelContext,
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

/// A tensor. Its elements can be looked at if they are in CPU memory.
pub(crate) struct Tensor<'a> {
    element: i32,
    dims: Vec<i64>,
    count: usize,
    value: *const OrtValue,
    data: *const c_void,
    lifetime: PhantomData<&'a OrtValue>,
}

/// Types that any bytes are a value of, with their number in ONNX.
pub(crate) trait Element: Copy {
    /// The type's number.
    const TYPE: i32;
    /// The type's name.
    const NAME: &'static str;
}

macro_rules! element {
    ($type:ty, $number:expr, $name:literal) => {
        impl Element for $type {
            const TYPE: i32 = $number;
            const NAME: &'static str = $name;
        }
    };
}
element!(f32, element::FLOAT, "float32");
element!(f16, element::FLOAT16, "float16");
element!(bf16, element::BFLOAT16, "bfloat16");
element!(u8, element::UINT8, "uint8");
element!(i8, element::INT8, "int8");
element!(i32, element::INT32, "int32");
element!(i64, element::INT64, "int64");

impl<'a> Tensor<'a> {
    /// # Safety
    /// `value` is live and unchanged for `'a`.
    pub unsafe fn new(api: Api, value: *const OrtValue) -> Result<Self> {
        let mut info = ptr::null_mut();
        // SAFETY: `value` is live; `info` is released once, after its last use.
        let (dims, element) = unsafe {
            api.check((api.0.GetTensorTypeAndShape)(value, &mut info))?;
            let mut element = 0i32;
            let dims = api.dimensions(info);
            // A C enum is written as an int; reading it as one stays defined for types we do not know.
            let status = (api.0.GetTensorElementType)(info, ptr::from_mut(&mut element).cast());
            let element = api.check(status).map(|()| element);
            (api.0.ReleaseTensorTypeAndShapeInfo)(info);
            (dims?, element?)
        };
        let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
        let count = count.ok_or_else(|| Failure::invalid(format!("input shape {dims:?} is not valid")))?;
        let mut data = ptr::null_mut();
        // SAFETY: `value` is live. The mutable accessor is the only one at this API level; it is only read.
        unsafe { api.check((api.0.GetTensorMutableData)(value.cast_mut(), &mut data))? };
        Ok(Tensor { element, dims, count, value, data, lifetime: PhantomData })
    }

    /// The dimensions, none negative.
    pub fn dims(&self) -> &[i64] {
        &self.dims
    }

    /// How many elements.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The host's own object.
    pub fn value(&self) -> *const OrtValue {
        self.value
    }

    /// Where the first element is, in whatever memory.
    pub fn address(&self) -> u64 {
        self.data as u64
    }

    /// The element type's number in ONNX Runtime ([`element`]).
    pub fn element(&self) -> i32 {
        self.element
    }

    /// The elements. They are copied if they do not lie at a multiple of their size, as in a mapped file.
    pub fn values<T: Element>(&self) -> Result<Cow<'a, [T]>> {
        let Some(data) = self.pointer::<T>()? else { return Ok(Cow::Borrowed(&[])) };
        // SAFETY: the host vouches for `count` elements of this type at `data` for `'a`, and any bytes are a
        // value of `T`; a reference is made only where the address is aligned.
        Ok(unsafe {
            if data.is_aligned() {
                Cow::Borrowed(std::slice::from_raw_parts(data, self.count))
            } else {
                Cow::Owned((0..self.count).map(|i| data.add(i).read_unaligned()).collect())
            }
        })
    }

    /// The elements of a tensor of floats of any length, as float32.
    pub fn floats(&self) -> Result<Cow<'a, [f32]>> {
        match self.element {
            element::FLOAT16 => Ok(Cow::Owned(self.values::<f16>()?.to_f32_vec())),
            element::BFLOAT16 => Ok(Cow::Owned(self.values::<bf16>()?.to_f32_vec())),
            _ => self.values::<f32>(),
        }
    }

    /// The bytes of a tensor of elements of `dtype`, never copied.
    pub fn raw(&self, dtype: Dtype) -> Result<&'a [u8]> {
        let data = match dtype {
            Dtype::F32 => self.pointer::<f32>()?.map(<*const f32>::cast),
            Dtype::F16 => self.pointer::<f16>()?.map(<*const f16>::cast),
            Dtype::Bf16 => self.pointer::<bf16>()?.map(<*const bf16>::cast),
            Dtype::U8 => self.pointer::<u8>()?,
            Dtype::I8 => self.pointer::<i8>()?.map(<*const i8>::cast),
        };
        // SAFETY: as in `values`; a byte is always aligned.
        Ok(data.map_or(&[], |data| unsafe { std::slice::from_raw_parts(data, self.count * dtype.size()) }))
    }

    /// The bytes of a uint8 tensor, never copied.
    pub fn bytes(&self) -> Result<&'a [u8]> {
        let Some(data) = self.pointer::<u8>()? else { return Ok(&[]) };
        // SAFETY: as in `values`; a byte is always aligned.
        Ok(unsafe { std::slice::from_raw_parts(data, self.count) })
    }

    /// The address of the first element, or nothing if there is none.
    fn pointer<T: Element>(&self) -> Result<Option<*const T>> {
        if self.element != T::TYPE {
            let (name, found) = (T::NAME, self.element);
            return Err(Failure::invalid(format!("{name} expected, found element type {found}")));
        }
        match (self.count, self.data.is_null()) {
            (0, _) => Ok(None),
            (_, false) => Ok(Some(self.data.cast())),
            (_, true) => Err(Failure::invalid("a tensor without memory")),
        }
    }
}
