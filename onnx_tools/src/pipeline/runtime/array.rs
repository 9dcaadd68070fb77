//! A tensor of any dtype as plain bytes.

use half::{bf16, f16};
use ort::value::TensorElementType;

/// Dtype, shape and little-endian, row-major elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    /// Element type.
    pub dtype: TensorElementType,
    /// Dimensions, outermost first.
    pub shape: Vec<i64>,
    /// The elements. Strings, which only outputs have, are each their length in 8 bytes and their text.
    pub bytes: Vec<u8>,
}

/// Bytes an element, for the dtypes that ONNX Runtime hands over element by element.
pub fn element_size(dtype: TensorElementType) -> Option<usize> {
    use TensorElementType::*;
    Some(match dtype {
        Bool | Uint8 | Int8 => 1,
        Uint16 | Int16 | Float16 | Bfloat16 => 2,
        Float32 | Int32 | Uint32 => 4,
        Float64 | Int64 | Uint64 => 8,
        _ => return None,
    })
}

/// Product of dimensions; `None` if one is negative or the product overflows.
pub fn elements(shape: &[i64]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?))
}

/// Whether the dtype is a float one.
pub fn is_float(dtype: TensorElementType) -> bool {
    use TensorElementType::*;
    matches!(dtype, Float16 | Bfloat16 | Float32 | Float64)
}

impl Array {
    /// The elements as numbers. 64-bit integers beyond 2^53 lose their low bits.
    pub fn numbers(&self) -> Vec<f64> {
        use TensorElementType::*;
        fn read<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
            bytes.as_chunks::<N>().0.iter().map(|b| number(*b)).collect()
        }
        let b = &self.bytes;
        match self.dtype {
            Float32 => read(b, |x| f64::from(f32::from_le_bytes(x))),
            Float64 => read(b, f64::from_le_bytes),
            Float16 => read(b, |x| f16::from_le_bytes(x).to_f64()),
            Bfloat16 => read(b, |x| bf16::from_le_bytes(x).to_f64()),
            Int8 => read(b, |x| f64::from(i8::from_le_bytes(x))),
            Int16 => read(b, |x| f64::from(i16::from_le_bytes(x))),
            Uint16 => read(b, |x| f64::from(u16::from_le_bytes(x))),
            Int32 => read(b, |x| f64::from(i32::from_le_bytes(x))),
            Uint32 => read(b, |x| f64::from(u32::from_le_bytes(x))),
            Int64 => read(b, |x| i64::from_le_bytes(x) as f64),
            Uint64 => read(b, |x| u64::from_le_bytes(x) as f64),
            // Bool and uint8; other dtypes do not become an `Array`.
            _ => b.iter().map(|&x| f64::from(x)).collect(),
        }
    }
}
