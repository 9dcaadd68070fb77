//! Where a model's weights lie and in what form.

use std::ops::Range;
use std::path::PathBuf;

use nz_onnx::format::Dtype;
use prost::Message;

use super::error::{Error, Result};
use super::external;
use super::graph::{GraphId, Skeleton};
use super::proto::{self, dtype};
use super::wire::{Scanner, Value};

/// Number of a weight in [`super::Model::weights`]: by position in the file, so the same for the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WeightId(pub usize);

/// What makes a weight a value of its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `graph.initializer[index]`.
    Initializer {
        /// Index in [`super::Graph::initializers`].
        index: usize,
    },
    /// Attribute `value` of the `Constant` node `graph.node[node]`.
    Constant {
        /// Index in [`super::Graph::nodes`].
        node: usize,
    },
}

/// A tensor stored in the model: an initializer or the value of a `Constant` node, of any dtype.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Its number.
    pub id: WeightId,
    /// Name of the value it is in its graph.
    pub name: String,
    /// The graph it is defined in.
    pub graph: GraphId,
    /// Initializer or `Constant` node.
    pub origin: Origin,
    /// `TensorProto.DataType`.
    pub onnx_dtype: i32,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    /// Elements in all.
    pub elements: u64,
    /// Size in bytes of the elements, as `raw_data` would hold them (for strings, as stored).
    pub bytes: u64,
    /// Where they are.
    pub storage: Storage,
    /// The whole `TensorProto` message, without tag and length.
    pub message: Range<u64>,
}

/// Where the elements of a tensor are and in what form. Ranges are in the model's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Little-endian elements: `raw_data`, or packed `float_data` of a float32 tensor.
    Plain(Range<u64>),
    /// Unpacked `float_data`: a tag byte before each little-endian float32. The range starts at the first tag.
    TaggedFloats(Range<u64>),
    /// float16 or bfloat16 patterns as packed varints in `int32_data`.
    Varints(Range<u64>),
    /// The same unpacked: a tag byte before each. The range starts at the first tag.
    TaggedVarints(Range<u64>),
    /// In another file.
    External {
        /// The file: the model's folder joined with `location`.
        path: PathBuf,
        /// As written in the model.
        location: String,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// No elements.
    Empty,
    /// Typed data of another dtype, or data in several pieces: kept as it is.
    Other,
}

impl Weight {
    /// The dtype if it is one that can be compressed.
    pub fn dtype(&self) -> Option<Dtype> {
        Dtype::from_onnx(self.onnx_dtype)
    }

    /// The dtype in words, "int64" say.
    pub fn dtype_name(&self) -> &'static str {
        dtype_name(self.onnx_dtype)
    }

    /// Whether its elements are in another file.
    pub fn is_external(&self) -> bool {
        matches!(self.storage, Storage::External { .. })
    }
}

/// Name of a `TensorProto.DataType`.
pub fn dtype_name(onnx_dtype: i32) -> &'static str {
    const NAMES: [&str; 25] = [
        "undefined",
        "float32",
        "uint8",
        "int8",
        "uint16",
        "int16",
        "int32",
        "int64",
        "string",
        "bool",
        "float16",
        "float64",
        "uint32",
        "uint64",
        "complex64",
        "complex128",
        "bfloat16",
        "float8e4m3fn",
        "float8e4m3fnuz",
        "float8e5m2",
        "float8e5m2fnuz",
        "uint4",
        "int4",
        "float4e2m1",
        "float8e8m0",
    ];
    usize::try_from(onnx_dtype).ok().and_then(|i| NAMES.get(i).copied()).unwrap_or("unknown")
}

/// Size of `elements` elements in `raw_data`; `None` for strings, unknown dtypes and on overflow.
pub fn raw_size(onnx_dtype: i32, elements: u64) -> Option<u64> {
    let bits = match onnx_dtype {
        2 | 3 | 9 | 17..=20 | 24 => 8,
        4 | 5 | 10 | 16 => 16,
        1 | 6 | 12 => 32,
        7 | 11 | 13 | 14 => 64,
        15 => 128,
        21..=23 => 4,
        _ => return None,
    };
    Some(elements.checked_mul(bits)?.div_ceil(8))
}

/// A `TensorProto` as found in a file, before it is known whose value it is.
#[derive(Clone, Debug)]
pub(crate) struct FoundTensor {
    pub name: String,
    pub onnx_dtype: i32,
    pub shape: Vec<u64>,
    pub elements: u64,
    pub bytes: u64,
    pub storage: Storage,
    pub message: Range<u64>,
}

/// Consecutive fields of one number, coalesced so that a million unpacked elements cost nothing.
#[derive(Default)]
struct Runs {
    packed: Vec<Range<u64>>,
    tagged: Vec<Range<u64>>,
}

impl Runs {
    fn push_tagged(&mut self, whole: Range<u64>) {
        match self.tagged.last_mut() {
            Some(last) if last.end == whole.start => last.end = whole.end,
            _ => self.tagged.push(whole),
        }
    }

    fn is_empty(&self) -> bool {
        self.packed.is_empty() && self.tagged.is_empty()
    }
}

/// Reads the `TensorProto` in `message`: all but its data, which stays where it is.
pub(crate) fn scan(scanner: &mut Scanner<'_>, message: Range<u64>) -> Result<FoundTensor> {
    let mut leaf = Skeleton::new(64 << 10);
    let (mut raw, mut floats, mut int32s) = (None, Runs::default(), Runs::default());
    let (mut other_bytes, mut other) = (0u64, false);
    let mut at = message.start;
    while let Some(field) = scanner.field(&mut at, message.end)? {
        match (field.number, &field.value) {
            (1 | 2 | 8 | 13 | 14, _) => leaf.push(scanner, &field)?,
            (9, Value::Bytes(_)) if raw.is_some() => {
                return Err(scanner.bad(field.whole.start, "a tensor has raw_data twice".to_string()));
            }
            (9, Value::Bytes(range)) => raw = Some(range.clone()),
            (4, Value::Bytes(range)) => floats.packed.push(range.clone()),
            (4, Value::Fixed32(_)) => floats.push_tagged(field.whole),
            (5, Value::Bytes(range)) => int32s.packed.push(range.clone()),
            (5, Value::Varint(_)) => int32s.push_tagged(field.whole),
            (3 | 6 | 7 | 10 | 11, _) => {
                other = true;
                other_bytes += field.whole.end - field.whole.start;
            }
            _ => {}
        }
    }
    let tensor = proto::Tensor::decode(leaf.bytes())
        .map_err(|e| scanner.bad(message.start, format!("a tensor cannot be read: {e}")))?;
    let name = tensor.name.clone().unwrap_or_default();
    let onnx_dtype = tensor.data_type.unwrap_or_default();
    let path = scanner.source().path();
    let bad = |what: String| Error::corrupt(path, format!("tensor {name:?}: {what}"));
    let mut shape = Vec::with_capacity(tensor.dims.len());
    for &dim in &tensor.dims {
        shape.push(u64::try_from(dim).map_err(|_| bad(format!("shape {:?} is negative", tensor.dims)))?);
    }
    let elements = shape
        .iter()
        .try_fold(1u64, |product, &dim| product.checked_mul(dim))
        .ok_or_else(|| bad(format!("shape {shape:?} has more elements than 64 bits count")))?;
    let raw_bytes = raw_size(onnx_dtype, elements);
    let bytes = raw_bytes.unwrap_or(other_bytes);

    let is_external = tensor.data_location == Some(1);
    let storage = if is_external {
        external::storage(path, &name, &tensor.external_data, raw_bytes)?
    } else if elements == 0 {
        Storage::Empty
    } else if let Some(range) = raw {
        let found = range.end - range.start;
        if let Some(expected) = raw_bytes.filter(|&expected| expected != found) {
            return Err(bad(format!(
                "{} {shape:?} needs {expected} bytes, but raw_data has {found}",
                dtype_name(onnx_dtype)
            )));
        }
        if other || !floats.is_empty() || !int32s.is_empty() { Storage::Other } else { Storage::Plain(range) }
    } else if other || (!floats.is_empty() && !int32s.is_empty()) {
        Storage::Other
    } else {
        match onnx_dtype {
            dtype::FLOAT => typed(floats, Storage::Plain, Storage::TaggedFloats),
            dtype::FLOAT16 | dtype::BFLOAT16 => typed(int32s, Storage::Varints, Storage::TaggedVarints),
            _ => Storage::Other,
        }
    };
    let stored = match &storage {
        Storage::Plain(range) => Some(range.end - range.start),
        // One tag byte and four bytes each; a longer tag makes the division miss and is refused.
        Storage::TaggedFloats(range) => Some((range.end - range.start) / 5 * 4),
        _ => None,
    };
    if let (Some(found), Some(expected)) = (stored, raw_bytes)
        && found != expected
    {
        return Err(bad(format!("float32 {shape:?} needs {expected} bytes, but float_data has {found}")));
    }
    Ok(FoundTensor { name, onnx_dtype, shape, elements, bytes, storage, message })
}

fn typed(
    mut runs: Runs,
    packed: impl Fn(Range<u64>) -> Storage,
    tagged: impl Fn(Range<u64>) -> Storage,
) -> Storage {
    match (runs.packed.pop(), runs.tagged.pop()) {
        (Some(range), None) if runs.packed.is_empty() => packed(range),
        (None, Some(range)) if runs.tagged.is_empty() => tagged(range),
        _ => Storage::Other,
    }
}
