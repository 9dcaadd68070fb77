//! A model of one node that shows how many channels ONNX Runtime puts in a block.

use ort::value::TensorElementType;
use prost::Message;

use super::Array;
use crate::onnx::proto;
use crate::rewrite::normalise::NCHWC;

/// The input's name.
pub(super) const INPUT: &str = "x";
/// The fewest channels that the op takes; it fills them up to a block.
const CHANNELS: i64 = 4;

#[derive(Clone, PartialEq, prost::Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    node: Vec<proto::Node>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "11")]
    input: Vec<proto::ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<proto::ValueInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Model {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<proto::OperatorSetId>,
}

/// `ReorderInput` of [`INPUT`]: its output has as many channels as a block.
pub(super) fn model() -> Vec<u8> {
    let value = |name: &str, dims: Option<Vec<i64>>| {
        let dimension = |n| proto::Dimension { dim_value: Some(n), dim_param: None };
        let shape = dims.map(|dims| proto::TensorShape { dim: dims.into_iter().map(dimension).collect() });
        let tensor_type = Some(proto::TensorType { elem_type: Some(proto::dtype::FLOAT), shape });
        proto::ValueInfo { name: Some(name.to_string()), r#type: Some(proto::Type { tensor_type }) }
    };
    let opset = |domain: &str, version| proto::OperatorSetId {
        domain: Some(domain.to_string()),
        version: Some(version),
    };
    let node = proto::Node {
        input: vec![INPUT.to_string()],
        output: vec!["y".to_string()],
        op_type: Some("ReorderInput".to_string()),
        domain: Some(NCHWC.to_string()),
        ..Default::default()
    };
    let graph = Graph {
        node: vec![node],
        name: "block".to_string(),
        input: vec![value(INPUT, Some(vec![1, CHANNELS, 1, 1]))],
        output: vec![value("y", None)],
    };
    Model { ir_version: 7, graph: Some(graph), opset_import: vec![opset("", 12), opset(NCHWC, 1)] }
        .encode_to_vec()
}

/// What the model takes.
pub(super) fn input() -> Array {
    Array {
        dtype: TensorElementType::Float32,
        shape: vec![1, CHANNELS, 1, 1],
        bytes: vec![0; 4 * CHANNELS as usize],
    }
}
