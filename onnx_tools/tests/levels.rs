//! Which outputs may differ by one level without an error.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use onnx_tools::onnx::Model;
use onnx_tools::pipeline::levels::is_rounded_last;
use prost::Message;
use support::build::{GraphProto, NodeProto, info, model, node};

const FLOAT: i32 = 1;
const UINT8: i64 = 2;
const INT64: i64 = 7;

/// Whether output `y` of these nodes is rounded last.
fn is_rounded(nodes: Vec<NodeProto>) -> bool {
    let graph = GraphProto {
        node: nodes,
        input: vec![info("x", FLOAT, &[1, 4])],
        output: vec![info("y", FLOAT, &[1, 4])],
        ..Default::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model(8, 17, graph).encode_to_vec()).unwrap();
    is_rounded_last(&Model::open(&path).unwrap(), "y")
}

#[test]
fn quantised_outputs_and_images_are() {
    let quantize = node("QuantizeLinear", &["x", "scale", "zero"], &["q"]);
    assert!(is_rounded(vec![node("QuantizeLinear", &["x", "scale", "zero"], &["y"])]));
    assert!(is_rounded(vec![quantize.clone(), node("Reshape", &["q", "shape"], &["y"])]));
    assert!(is_rounded(vec![node("QLinearConv", &["x", "s", "z", "w"], &["y"])]));
    assert!(is_rounded(vec![
        node("Clip", &["x", "low", "high"], &["c"]),
        node("Transpose", &["c"], &["t"]),
        node("Cast", &["t"], &["y"]).int("to", UINT8),
    ]));
    assert!(!is_rounded(vec![quantize, node("DequantizeLinear", &["q", "scale", "zero"], &["y"])]));
}

#[test]
fn classes_and_floats_are_not() {
    assert!(!is_rounded(vec![node("Relu", &["x"], &["y"])]));
    assert!(!is_rounded(vec![node("ArgMax", &["x"], &["y"])]));
    assert!(!is_rounded(
        vec![node("ArgMax", &["x"], &["c"]), node("Cast", &["c"], &["y"]).int("to", UINT8),]
    ));
    assert!(!is_rounded(vec![node("Round", &["x"], &["r"]), node("Cast", &["r"], &["y"]).int("to", INT64)]));
    assert!(!is_rounded(vec![node("Identity", &["x"], &["y"])]));
    assert!(!is_rounded(Vec::new()));
}
