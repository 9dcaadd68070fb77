//! What a node is made with.

use std::ffi::{CStr, c_int};
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use ort_sys::{OrtKernelInfo, OrtValue};

use super::{Api, HostVersion, Tensor};
use crate::ort::cache::Cache;
use crate::ort::depth::Limit;
use crate::ort::fence::Result;

/// The input of an op of deltas that is the base's blob.
const BASE_INPUT: usize = 2;

/// What the host knows of a node when it creates the node's kernel.
#[derive(Clone, Copy)]
pub(crate) struct KernelInfo<'a> {
    pub(in crate::ort) api: Api,
    pub(in crate::ort) raw: *const OrtKernelInfo,
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
