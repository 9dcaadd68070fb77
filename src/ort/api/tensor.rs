//! Tensors of the host's.

use std::borrow::Cow;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use ort_sys::OrtValue;

use super::{Api, element};
use crate::format::Dtype;
use crate::ort::fence::{Failure, Result};

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
