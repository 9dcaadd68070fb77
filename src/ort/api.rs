//! The host's API table behind safe functions, and the views that callbacks are handed.
//!
//! The pointers come from ONNX Runtime, once per callback; the view types bind them to the callback's lifetime.

mod context;
mod info;
mod tensor;

use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::sync::OnceLock;

use ort_sys::{OrtApi, OrtErrorCode, OrtSessionOptions, OrtStatusPtr, OrtTensorTypeAndShapeInfo};

use super::fence::{Failure, Result};

pub(crate) use context::{KernelContext, Workers};
pub(crate) use info::KernelInfo;
pub(crate) use tensor::Tensor;

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
