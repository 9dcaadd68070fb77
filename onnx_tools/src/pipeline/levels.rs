//! Which outputs are levels: rounded to integers as the last that is done to them.
//!
//! Another order of summation then makes a number the next one here and there, which is as little as an error can be.
//! Classes and indices are integers too, but of them the next one is another.

use std::collections::HashMap;

use crate::onnx::proto::dtype;
use crate::onnx::{GraphId, Model, Node};

/// Ops whose output has the values of their first input.
const SAME: [&str; 14] = [
    "Concat",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "MaxPool",
    "Pad",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];
/// Ops that images go through before a Cast makes them integers.
const SCALES: [&str; 12] =
    ["Add", "Ceil", "Clip", "Div", "Floor", "Max", "Min", "Mul", "Relu", "Round", "Sigmoid", "Sub"];

/// Whether this output of the model is quantised, or an image of 8 bits.
pub fn is_rounded_last(model: &Model, output: &str) -> bool {
    let graph = model.graph(GraphId(0));
    let makers: HashMap<&str, &Node> = graph
        .nodes
        .iter()
        .flat_map(|node| node.outputs.iter().map(move |name| (name.as_str(), node)))
        .collect();
    let maker = |name: &str| {
        let mut node = *makers.get(name)?;
        // As many steps as there are nodes, or it is a ring.
        for _ in &graph.nodes {
            if !SAME.contains(&node.op.as_str()) {
                break;
            }
            node = *makers.get(node.inputs.first()?.as_str())?;
        }
        Some(node)
    };
    let Some(node) = maker(output) else { return false };
    match node.op.as_str() {
        "QuantizeLinear" | "DynamicQuantizeLinear" => true,
        "Cast" => {
            let to = i32::try_from(node.int("to", 0)).unwrap_or(0);
            let from = node.inputs.first().and_then(|name| maker(name));
            [dtype::UINT8, dtype::INT8].contains(&to)
                && from.is_some_and(|from| SCALES.contains(&from.op.as_str()))
        }
        op => op.starts_with("QLinear"),
    }
}
