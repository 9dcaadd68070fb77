//! `onnx.proto` as far as the tests write it, and short ways to build models.

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub struct ModelProto {
    #[prost(int64, optional, tag = "1")]
    pub ir_version: Option<i64>,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<Opset>,
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<Entry>,
    #[prost(string, optional, tag = "6")]
    pub doc_string: Option<String>,
    #[prost(string, optional, tag = "1000")]
    pub unknown: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Opset {
    #[prost(string, optional, tag = "1")]
    pub domain: Option<String>,
    #[prost(int64, optional, tag = "2")]
    pub version: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    #[prost(string, optional, tag = "1")]
    pub key: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub value: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "13")]
    pub value_info: Vec<ValueInfo>,
    #[prost(bytes = "vec", optional, tag = "2000")]
    pub unknown: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, optional, tag = "3")]
    pub name: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub op_type: Option<String>,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    #[prost(string, optional, tag = "6")]
    pub doc_string: Option<String>,
    #[prost(string, optional, tag = "7")]
    pub domain: Option<String>,
    #[prost(uint64, optional, tag = "3000")]
    pub unknown: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AttributeProto {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    #[prost(bytes = "vec", optional, tag = "4")]
    pub s: Option<Vec<u8>>,
    #[prost(message, optional, tag = "5")]
    pub t: Option<TensorProto>,
    #[prost(message, optional, tag = "6")]
    pub g: Option<GraphProto>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    #[prost(bytes = "vec", repeated, tag = "9")]
    pub strings: Vec<Vec<u8>>,
    #[prost(int32, optional, tag = "20")]
    pub r#type: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, optional, tag = "2")]
    pub data_type: Option<i32>,
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    #[prost(int32, repeated, tag = "5")]
    pub int32_data: Vec<i32>,
    #[prost(string, optional, tag = "8")]
    pub name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "9")]
    pub raw_data: Option<Vec<u8>>,
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<Entry>,
    #[prost(int32, optional, tag = "14")]
    pub data_location: Option<i32>,
}

/// `TensorProto` as proto2 writers write it: one tag an element.
#[derive(Clone, PartialEq, Message)]
pub struct UnpackedTensor {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, optional, tag = "2")]
    pub data_type: Option<i32>,
    #[prost(float, repeated, packed = "false", tag = "4")]
    pub float_data: Vec<f32>,
    #[prost(int32, repeated, packed = "false", tag = "5")]
    pub int32_data: Vec<i32>,
    #[prost(string, optional, tag = "8")]
    pub name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ValueInfo {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<Type>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Type {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorType {
    #[prost(int32, optional, tag = "1")]
    pub elem_type: Option<i32>,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Shape {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dim>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Dim {
    #[prost(int64, optional, tag = "1")]
    pub dim_value: Option<i64>,
}

/// Weights that look trained, different for each seed.
pub fn floats(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| 0.1 * (uniform() + uniform() + uniform() + uniform())).collect()
}

fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&d| d as i64).collect()
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn raw(name: &str, shape: &[usize], seed: u64) -> TensorProto {
    let values = floats(shape.iter().product(), seed);
    TensorProto {
        dims: dims(shape),
        data_type: Some(1),
        name: Some(name.into()),
        raw_data: Some(f32_bytes(&values)),
        ..Default::default()
    }
}

pub fn float_data(name: &str, shape: &[usize], seed: u64) -> TensorProto {
    let float_data = floats(shape.iter().product(), seed);
    TensorProto { float_data, raw_data: None, ..raw(name, shape, seed) }
}

/// 16-bit patterns of plausible weights: float16 (`10`) or bfloat16 (`16`).
pub fn halves(count: usize, dtype: i32, seed: u64) -> Vec<u16> {
    let values = floats(count, seed).into_iter();
    match dtype {
        10 => values.map(|v| half::f16::from_f32(v).to_bits()).collect(),
        _ => values.map(|v| half::bf16::from_f32(v).to_bits()).collect(),
    }
}

pub fn half_raw(name: &str, shape: &[usize], dtype: i32, seed: u64) -> TensorProto {
    let bits = halves(shape.iter().product(), dtype, seed);
    let raw_data = Some(bits.iter().flat_map(|v| v.to_le_bytes()).collect());
    TensorProto { data_type: Some(dtype), raw_data, ..raw(name, shape, seed) }
}

pub fn half_int32(name: &str, shape: &[usize], dtype: i32, seed: u64) -> TensorProto {
    let int32_data = halves(shape.iter().product(), dtype, seed).into_iter().map(i32::from).collect();
    TensorProto { data_type: Some(dtype), raw_data: None, int32_data, ..raw(name, shape, seed) }
}

pub fn external(name: &str, shape: &[usize], location: &str, offset: usize) -> TensorProto {
    let len = shape.iter().product::<usize>() * 4;
    let entry = |k: &str, v: String| Entry { key: Some(k.into()), value: Some(v) };
    TensorProto {
        dims: dims(shape),
        data_type: Some(1),
        name: Some(name.into()),
        external_data: vec![
            entry("location", location.into()),
            entry("offset", offset.to_string()),
            entry("length", len.to_string()),
        ],
        data_location: Some(1),
        ..Default::default()
    }
}

pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: outputs.iter().map(|s| s.to_string()).collect(),
        op_type: Some(op.into()),
        ..Default::default()
    }
}

impl NodeProto {
    pub fn int(mut self, name: &str, i: i64) -> Self {
        self.attribute.push(AttributeProto {
            name: Some(name.into()),
            i: Some(i),
            r#type: Some(2),
            ..Default::default()
        });
        self
    }

    /// With one more attribute, a string if there is one value.
    pub fn text(mut self, name: &str, values: &[&str]) -> Self {
        let bytes = |v: &&str| v.as_bytes().to_vec();
        let (s, strings) = match values {
            [value] => (Some(bytes(value)), Vec::new()),
            _ => (None, values.iter().map(bytes).collect()),
        };
        let r#type = Some(if s.is_some() { 3 } else { 8 });
        self.attribute.push(AttributeProto {
            name: Some(name.into()),
            s,
            strings,
            r#type,
            ..Default::default()
        });
        self
    }

    pub fn ints(mut self, name: &str, ints: &[i64]) -> Self {
        self.attribute.push(AttributeProto {
            name: Some(name.into()),
            ints: ints.to_vec(),
            r#type: Some(7),
            ..Default::default()
        });
        self
    }

    pub fn body(mut self, name: &str, g: GraphProto) -> Self {
        self.attribute.push(AttributeProto {
            name: Some(name.into()),
            g: Some(g),
            r#type: Some(5),
            ..Default::default()
        });
        self
    }

    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }
}

pub fn constant(output: &str, tensor: TensorProto) -> NodeProto {
    let mut n = node("Constant", &[], &[output]);
    n.attribute.push(AttributeProto {
        name: Some("value".into()),
        t: Some(tensor),
        r#type: Some(4),
        ..Default::default()
    });
    n
}

pub fn info(name: &str, elem_type: i32, shape: &[i64]) -> ValueInfo {
    let dim = shape.iter().map(|&d| Dim { dim_value: (d >= 0).then_some(d) }).collect();
    ValueInfo {
        name: Some(name.into()),
        r#type: Some(Type {
            tensor_type: Some(TensorType { elem_type: Some(elem_type), shape: Some(Shape { dim }) }),
        }),
    }
}

pub fn model(ir: i64, opset: i64, graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(ir),
        graph: Some(graph),
        opset_import: vec![Opset { domain: Some(String::new()), version: Some(opset) }],
        ..Default::default()
    }
}
