//! A model's graph, as ONNX Runtime shows it to a provider.

use std::ffi::{CStr, c_char};
use std::fs::File;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::ptr;

use memmap2::Mmap;
use ort_sys::{OrtGraph, OrtNode, OrtOpAttr, OrtOpAttrType, OrtValueInfo, os_char};

use super::EpApi;
use crate::format::Dtype;
use crate::ort::api::{Tensor, element};
use crate::ort::fence::{Failure, Result};

/// A graph; it lives for one call of ONNX Runtime's, `'a`.
#[derive(Clone, Copy)]
pub(super) struct Graph<'a> {
    api: EpApi,
    raw: *const OrtGraph,
    lifetime: PhantomData<&'a OrtGraph>,
}

/// A node of it.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    api: EpApi,
    raw: *const OrtNode,
    lifetime: PhantomData<&'a OrtGraph>,
}

/// A value that nodes read.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    api: EpApi,
    raw: *const OrtValueInfo,
    lifetime: PhantomData<&'a OrtGraph>,
}

/// Where an initializer's data is, while a session is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// At this offset of a file.
    File(PathBuf, i64),
    /// At this address.
    Memory(u64),
}

/// Where an initializer's bytes are.
pub(super) enum Bytes<'a> {
    /// In memory that ONNX Runtime keeps.
    Loaded(&'a [u8]),
    /// In a file. It is mapped only while somebody looks.
    Mapped(Mmap, Range<usize>),
}

impl Bytes<'_> {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Loaded(bytes) => bytes,
            Bytes::Mapped(map, range) => &map[range.clone()],
        }
    }
}

impl<'a> Graph<'a> {
    /// # Safety
    /// `raw` is a graph of this host that lives for `'a`.
    pub unsafe fn new(api: EpApi, raw: *const OrtGraph) -> Self {
        Graph { api, raw, lifetime: PhantomData }
    }

    /// Whether it is the body of a node of another graph.
    pub fn is_nested(&self) -> Result<bool> {
        let mut parent = ptr::null();
        // SAFETY: the graph is live.
        self.api.check(unsafe { (self.api.table().Graph_GetParentNode)(self.raw, &mut parent) })?;
        Ok(!parent.is_null())
    }

    /// The folder of the model's file, if it has one.
    pub fn folder(&self) -> Result<Option<PathBuf>> {
        let mut path = ptr::null();
        // SAFETY: the graph is live and keeps the string.
        let path = unsafe {
            self.api.check((self.api.table().Graph_GetModelPath)(self.raw, &mut path))?;
            path_of(path)
        };
        Ok(path.as_deref().and_then(Path::parent).map(Path::to_owned))
    }

    /// The nodes.
    pub fn nodes(&self) -> Result<Vec<Node<'a>>> {
        let mut count = 0;
        // SAFETY: the graph is live; the host writes `count` pointers to a buffer of that size.
        let nodes = unsafe {
            self.api.check((self.api.table().Graph_GetNumNodes)(self.raw, &mut count))?;
            let mut nodes = vec![ptr::null(); count];
            self.api.check((self.api.table().Graph_GetNodes)(self.raw, nodes.as_mut_ptr(), count))?;
            nodes
        };
        Ok(nodes.into_iter().map(|raw| Node { api: self.api, raw, lifetime: PhantomData }).collect())
    }
}

impl<'a> Node<'a> {
    /// The node to the host; the same node has the same address.
    pub fn raw(&self) -> *const OrtNode {
        self.raw
    }

    /// Domain and op type. The domain of ONNX's own ops is empty.
    pub fn op(&self) -> Result<(&'a str, &'a str)> {
        let (mut domain, mut op): (*const c_char, *const c_char) = (ptr::null(), ptr::null());
        // SAFETY: the node is live and keeps its C strings for as long.
        unsafe {
            self.api.check((self.api.table().Node_GetDomain)(self.raw, &mut domain))?;
            self.api.check((self.api.table().Node_GetOperatorType)(self.raw, &mut op))?;
            let text = |text: *const c_char| {
                if text.is_null() { "" } else { CStr::from_ptr(text).to_str().unwrap_or("") }
            };
            Ok((text(domain), text(op)))
        }
    }

    /// The inputs; nothing where one is left out.
    pub fn inputs(&self) -> Result<Vec<Option<Value<'a>>>> {
        let mut count = 0;
        // SAFETY: the node is live; the host writes `count` pointers to a buffer of that size.
        let inputs = unsafe {
            self.api.check((self.api.table().Node_GetNumInputs)(self.raw, &mut count))?;
            let mut inputs = vec![ptr::null(); count];
            self.api.check((self.api.table().Node_GetInputs)(self.raw, inputs.as_mut_ptr(), count))?;
            inputs
        };
        let value = |raw: *const OrtValueInfo| Value { api: self.api, raw, lifetime: PhantomData };
        Ok(inputs.into_iter().map(|raw| (!raw.is_null()).then(|| value(raw))).collect())
    }

    /// How many outputs it has.
    pub fn output_count(&self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: the node is live.
        self.api.check(unsafe { (self.api.table().Node_GetNumOutputs)(self.raw, &mut count) })?;
        Ok(count)
    }

    /// An integer attribute; nothing if the node lacks it.
    pub fn int(&self, name: &CStr) -> Option<i64> {
        let mut value = [0i64];
        let read = self.attribute(name, OrtOpAttrType::ORT_OP_ATTR_INT, &mut value)?;
        (read == size_of::<i64>()).then_some(value[0])
    }

    /// An attribute of integers; nothing if the node lacks it, or has more than a few.
    pub fn ints(&self, name: &CStr) -> Option<Vec<i64>> {
        let mut values = [0i64; 8];
        let read = self.attribute(name, OrtOpAttrType::ORT_OP_ATTR_INTS, &mut values)?;
        values.get(..read / size_of::<i64>()).map(<[i64]>::to_vec)
    }

    /// A string attribute; nothing if the node lacks it, or it has more than some hundred bytes.
    pub fn text(&self, name: &CStr) -> Option<String> {
        let mut bytes = [0u8; 256];
        let read = self.attribute(name, OrtOpAttrType::ORT_OP_ATTR_STRING, &mut bytes)?;
        let text = bytes.get(..read)?.split(|&b| b == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// Strings of an attribute; nothing if the node lacks it, or has more than some hundred bytes of them.
    pub fn strings(&self, name: &CStr) -> Option<Vec<String>> {
        let mut bytes = [0u8; 256];
        let read = self.attribute(name, OrtOpAttrType::ORT_OP_ATTR_STRINGS, &mut bytes)?;
        // Each has a zero at its end.
        let text = bytes.get(..read.checked_sub(1)?)?;
        Some(text.split(|&b| b == 0).map(|s| String::from_utf8_lossy(s).into_owned()).collect())
    }

    /// Whether the node has an attribute of that name.
    pub fn has(&self, name: &CStr) -> bool {
        self.find(name).is_some()
    }

    fn find(&self, name: &CStr) -> Option<*const OrtOpAttr> {
        let mut attribute = ptr::null();
        let get = self.api.table().Node_GetAttributeByName;
        // SAFETY: the node is live and the name a C string.
        self.api.check(unsafe { get(self.raw, name.as_ptr(), &mut attribute) }).ok()?;
        (!attribute.is_null()).then_some(attribute)
    }

    /// Reads an attribute into `out`, and says how many bytes it has; nothing if it is another kind, or longer.
    fn attribute<T>(&self, name: &CStr, kind: OrtOpAttrType, out: &mut [T]) -> Option<usize> {
        let (attribute, mut bytes) = (self.find(name)?, 0);
        let read = self.api.table().base.ReadOpAttr;
        // SAFETY: the attribute is live; the host writes at most the size given.
        let status = unsafe { read(attribute, kind, out.as_mut_ptr().cast(), size_of_val(out), &mut bytes) };
        self.api.check(status).ok().map(|()| bytes)
    }
}

impl<'a> Value<'a> {
    /// The value's name.
    pub fn name(&self) -> Result<String> {
        let mut name = ptr::null();
        // SAFETY: the value is live and keeps its name.
        unsafe {
            self.api.check((self.api.table().GetValueInfoName)(self.raw, &mut name))?;
            Ok(CStr::from_ptr(name).to_string_lossy().into_owned())
        }
    }

    /// Whether it is an initializer that no caller can replace.
    pub fn is_constant(&self) -> Result<bool> {
        let mut answer = false;
        // SAFETY: the value is live.
        let status = unsafe { (self.api.table().ValueInfo_IsConstantInitializer)(self.raw, &mut answer) };
        self.api.check(status).map(|()| answer)
    }

    /// Whether the graph gives it to its caller.
    pub fn is_output(&self) -> Result<bool> {
        let mut answer = false;
        // SAFETY: the value is live.
        self.api.check(unsafe { (self.api.table().ValueInfo_IsGraphOutput)(self.raw, &mut answer) })?;
        Ok(answer)
    }

    /// Whether it belongs to a graph around this one.
    pub fn is_outer(&self) -> Result<bool> {
        let mut answer = false;
        // SAFETY: the value is live.
        self.api.check(unsafe { (self.api.table().ValueInfo_IsFromOuterScope)(self.raw, &mut answer) })?;
        Ok(answer)
    }

    /// Type and shape, if it is a tensor of floats with a shape that is known in full.
    pub fn tensor(&self) -> Result<Option<(Dtype, Vec<u64>)>> {
        let (table, mut info, mut shape, mut element) = (self.api.table(), ptr::null(), ptr::null(), 0i32);
        // SAFETY: the value is live and keeps `info`, which keeps `shape`. A C enum is written as an int; reading it
        // as one stays defined for types we do not know.
        let dims = unsafe {
            self.api.check((table.GetValueInfoTypeInfo)(self.raw, &mut info))?;
            self.api.check((table.base.CastTypeInfoToTensorInfo)(info, &mut shape))?;
            if shape.is_null() {
                return Ok(None);
            }
            let out = ptr::from_mut(&mut element).cast();
            self.api.check((table.base.GetTensorElementType)(shape, out))?;
            self.api.api().dimensions(shape)?
        };
        let dtype = match element {
            element::FLOAT => Dtype::F32,
            element::FLOAT16 => Dtype::F16,
            element::BFLOAT16 => Dtype::Bf16,
            _ => return Ok(None),
        };
        let dims: Option<Vec<u64>> = dims.iter().map(|&d| u64::try_from(d).ok()).collect();
        Ok(dims.map(|dims| (dtype, dims)))
    }

    /// How often nodes of the graph read it, as an input or in a body of theirs.
    pub fn consumers(&self) -> Result<Vec<(*const OrtNode, i64)>> {
        let (table, mut count) = (self.api.table(), 0);
        // SAFETY: the value is live; the host writes `count` elements to buffers of that size.
        unsafe {
            self.api.check((table.ValueInfo_GetValueNumConsumers)(self.raw, &mut count))?;
            let (mut nodes, mut inputs) = (vec![ptr::null(); count], vec![0i64; count]);
            let read = table.ValueInfo_GetValueConsumers;
            self.api.check(read(self.raw, nodes.as_mut_ptr(), inputs.as_mut_ptr(), count))?;
            Ok(nodes.into_iter().zip(inputs).collect())
        }
    }

    /// What tells an initializer from all others of the session: where its data is.
    pub fn identity(&self) -> Result<Identity> {
        if let Some((path, offset, _)) = self.external()? {
            return Ok(Identity::File(path, offset));
        }
        let mut value = ptr::null();
        // SAFETY: the value is live, and so is the tensor that it stands for; its address is not followed.
        unsafe {
            self.api.check((self.api.table().ValueInfo_GetInitializerValue)(self.raw, &mut value))?;
            Ok(Identity::Memory(Tensor::new(self.api.api(), value)?.address()))
        }
    }

    /// The bytes of an initializer of `len` bytes of `dtype`. External data is read from its file in `folder`: asked for
    /// them, ONNX Runtime would load them, and not forget them before the session is made.
    pub fn bytes(&self, folder: Option<&Path>, dtype: Dtype, len: u64) -> Result<Bytes<'a>> {
        if let (Some(folder), Some((path, offset, bytes))) = (folder, self.external()?) {
            let path = folder.join(path);
            let fail = |what: String| Failure::fail(format!("external data {}: {what}", path.display()));
            let file = File::open(&path).map_err(|e| fail(e.to_string()))?;
            // SAFETY: as with ONNX Runtime, which maps the same file, nobody may shorten it while it is loaded.
            let map = unsafe { Mmap::map(&file) }.map_err(|e| fail(e.to_string()))?;
            let range = usize::try_from(offset).ok().and_then(|start| Some(start..start.checked_add(bytes)?));
            let range = range.filter(|range| range.end <= map.len() && bytes as u64 == len);
            let range = range.ok_or_else(|| {
                fail(format!(
                    "{bytes} bytes at {offset} are not the {len} bytes wanted, in {} bytes",
                    map.len()
                ))
            })?;
            // A sample would be read page by page, and everything is read soon. Only advice: it may fail.
            #[cfg(unix)]
            map.advise_range(memmap2::Advice::WillNeed, range.start, range.len()).ok();
            return Ok(Bytes::Mapped(map, range));
        }
        let mut value = ptr::null();
        // SAFETY: the value is live, and so is the tensor that it stands for.
        let tensor = unsafe {
            self.api.check((self.api.table().ValueInfo_GetInitializerValue)(self.raw, &mut value))?;
            Tensor::new(self.api.api(), value)?
        };
        tensor.raw(dtype).map(Bytes::Loaded)
    }

    /// File, offset and size of external data.
    fn external(&self) -> Result<Option<(PathBuf, i64, usize)>> {
        let (table, mut info) = (self.api.table(), ptr::null_mut());
        // SAFETY: the value is live; `info` is ours until its release and keeps the path.
        unsafe {
            self.api.check((table.ValueInfo_GetExternalInitializerInfo)(self.raw, &mut info))?;
            if info.is_null() {
                return Ok(None);
            }
            let path = path_of((table.ExternalInitializerInfo_GetFilePath)(info));
            let offset = (table.ExternalInitializerInfo_GetFileOffset)(info);
            let bytes = (table.ExternalInitializerInfo_GetByteSize)(info);
            (table.ReleaseExternalInitializerInfo)(info);
            Ok(path.map(|path| (path, offset, bytes)))
        }
    }
}

/// A path of the host's, unless it is empty.
///
/// # Safety
/// `path` is null or a string that ends with a zero.
unsafe fn path_of(path: *const os_char) -> Option<PathBuf> {
    if path.is_null() {
        return None;
    }
    #[cfg(unix)]
    let path = {
        use std::os::unix::ffi::OsStrExt;
        // SAFETY: the caller's promise.
        PathBuf::from(std::ffi::OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()))
    };
    #[cfg(windows)]
    let path = {
        use std::os::windows::ffi::OsStringExt;
        // SAFETY: the caller's promise.
        let wide = unsafe {
            let len = (0..).take_while(|&i| *path.add(i) != 0).count();
            std::slice::from_raw_parts(path, len)
        };
        PathBuf::from(std::ffi::OsString::from_wide(wide))
    };
    (!path.as_os_str().is_empty()).then_some(path)
}
