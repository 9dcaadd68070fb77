//! Which activations are mostly above 0, as far as the nodes that make them say.

use crate::onnx::scope::{Definition, Scope};
use crate::onnx::{GraphId, Node};

/// Ops that give what is mostly above 0.
const POSITIVE: [&str; 15] = [
    "Relu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Gelu",
    "FastGelu",
    "BiasGelu",
    "QuickGelu",
    "Softmax",
    "MaxPool",
    "AveragePool",
    "GlobalMaxPool",
    "GlobalAveragePool",
    "Exp",
    "Softplus",
];
/// Ops that give what they take, in another shape.
const SHAPING: [&str; 6] = ["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"];
/// What GELU and SiLU are written with: near one bound where their input is below 0, near the other above.
const STEPS: [&str; 3] = ["Erf", "Sigmoid", "HardSigmoid"];
/// Nodes of such a step, and of a change of shape: a broken file's nodes may go round in circles.
const AROUND_A_STEP: usize = 8;
const MOST: usize = 64;

/// A value, by the graph that it is defined in or one within, and its name.
type Value<'m> = (GraphId, &'m str);

/// Whether a value is mostly above 0, or mostly below.
pub(super) fn is_positive<'m>(scope: &Scope<'m>, value: Value<'m>) -> bool {
    let mut value = value;
    for _ in 0..MOST {
        let Some((graph, node)) = scope.maker(value.0, value.1) else { return false };
        if POSITIVE.contains(&node.op.as_str()) || is_self_gated(scope, graph, node) {
            return true;
        }
        let from = match SHAPING.contains(&node.op.as_str()) {
            true => node.inputs.first().map(String::as_str),
            false => scaled(scope, graph, node),
        };
        let Some(from) = from else { return false };
        value = (graph, from);
    }
    false
}

/// What a node multiplies with a number or divides by one, if it does so.
fn scaled<'m>(scope: &Scope<'m>, graph: GraphId, node: &'m Node) -> Option<&'m str> {
    let [first, second] = &node.inputs[..] else { return None };
    let is_number = |name: &str| scope.weight(graph, name).is_some_and(|weight| weight.elements == 1);
    match node.op.as_str() {
        "Mul" | "Div" if is_number(second) => Some(first),
        "Mul" if is_number(first) => Some(second),
        _ => None,
    }
}

/// Whether a node gives `x` times a step that depends on `x`, as GELU and SiLU do.
fn is_self_gated<'m>(scope: &Scope<'m>, graph: GraphId, node: &'m Node) -> bool {
    let ("Mul", [first, second]) = (node.op.as_str(), &node.inputs[..]) else { return false };
    let defined = |(graph, name): Value<'m>| scope.resolve(graph, name).map(|(owner, _)| (owner, name));
    let unscaled = |value: Value<'m>| {
        let of_node = scope.maker(value.0, value.1);
        let from = of_node.and_then(|(graph, node)| Some((graph, scaled(scope, graph, node)?)));
        defined(from.unwrap_or(value))
    };
    let is_step_of = |x: &'m str, gate: &'m str| {
        let (x, mut at, mut stepped) = (unscaled((graph, x)), (graph, gate), false);
        for _ in 0..AROUND_A_STEP {
            if stepped && defined(at) == x {
                return true;
            }
            let Some((graph, node)) = scope.maker(at.0, at.1) else { return false };
            stepped |= STEPS.contains(&node.op.as_str());
            let is_made = |name: &&String| {
                !matches!(scope.resolve(graph, name), None | Some((_, Definition::Weight(_))))
            };
            let Some(from) = node.inputs.iter().find(is_made) else { return false };
            at = (graph, from);
        }
        false
    };
    is_step_of(first, second) || is_step_of(second, first)
}
