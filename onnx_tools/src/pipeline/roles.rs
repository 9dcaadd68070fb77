//! How much the outputs suffer from an error of each weight, by its place in the model: where nothing was measured.

use super::survey::Group;
use crate::onnx::scope::Scope;
use crate::onnx::{GraphId, Model, WeightId};

/// The first convolution of pictures or sounds: all that comes behind it sees its errors. Measured on inputs, 3 to 28 times the
/// others' in nets for pictures.
const FIRST: f64 = 16.0;
/// Constants, which are weights of depthwise convolutions above all: an output is a sum of few of them, so that errors do
/// not make good each other. Measured, 1.3 to 12 times the others'.
const CONSTANT: f64 = 4.0;
/// Nodes between an input and what is still the first convolution.
const BETWEEN: usize = 8;

/// Sets the sensitivities of weights that grids or constants are chosen among for.
pub(super) fn judge(model: &Model, groups: &mut [Group]) {
    let scope = Scope::new(model);
    for group in groups {
        let candidate = &group.candidate;
        group.candidate.sensitivity = match (candidate.folded.is_empty(), candidate.grids.is_some()) {
            (false, _) => CONSTANT,
            (true, true) if group.weights.iter().any(|&id| is_first(model, &scope, id)) => FIRST,
            _ => continue,
        };
    }
}

fn is_first(model: &Model, scope: &Scope, id: WeightId) -> bool {
    let (weight, graph) = (model.weight(id), model.graph(GraphId(0)));
    let reads = |node: &&crate::onnx::Node| node.op == "Conv" && node.inputs.get(1) == Some(&weight.name);
    let Some(mut node) = graph.nodes.iter().find(reads).filter(|_| weight.graph == GraphId(0)) else {
        return false;
    };
    for _ in 0..BETWEEN {
        let Some(input) = node.inputs.first() else { return false };
        if graph.inputs.iter().any(|value| &value.name == input) {
            return true;
        }
        let made = scope.maker(GraphId(0), input);
        match made.filter(|(_, made)| !["Conv", "MatMul", "Gemm", "Gather"].contains(&made.op.as_str())) {
            Some((_, made)) => node = made,
            None => return false,
        }
    }
    false
}
