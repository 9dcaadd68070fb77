//! How much the outputs suffer from an error of each weight, by its place in the model: where nothing was measured.

use std::collections::BTreeSet;

use super::survey::Group;
use crate::onnx::scope::Scope;
use crate::onnx::{GraphId, Model, Node, WeightId};

/// The first convolution of pictures or sounds: all that comes behind it sees its errors. Measured on inputs, 3 to 28 times the
/// others' in nets for pictures.
const FIRST: f64 = 16.0;
/// Constants, which are weights of depthwise convolutions above all: an output is a sum of few of them, so that errors do
/// not make good each other. Measured, 1.3 to 12 times the others'.
const CONSTANT: f64 = 4.0;
/// Weights of a gate, which squeezes a tensor to one number a channel and multiplies it with what comes of that: a sigmoid
/// takes most of their errors away. Measured, on average a third of those around them in a classifier of lines of text, and a 30th in a
/// detector of text.
const GATE: f64 = 0.25;
/// What queries and keys of attention are made with: their products go into a softmax. Measured in a net for sentences, a
/// third of those of values and what mixes them, and a tenth of those of the two products that follow.
const QUERY: f64 = 0.25;
/// Ops that values are taken to be made by; others give them another form.
const ENDS: [&str; 7] = ["MatMul", "Gemm", "Conv", "Gather", "Softmax", "LSTM", "GRU"];
/// Values that are looked at behind a softmax, or a query.
const LOOKED_AT: usize = 64;
/// Nodes between an input and what is still the first convolution, and those of a gate.
const BETWEEN: usize = 8;

/// Sets the sensitivities of weights that grids or constants are chosen among for.
pub(super) fn judge(model: &Model, groups: &mut [Group]) {
    let scope = Scope::new(model);
    let (gates, queries) = (gates(model, &scope), queries(model, &scope));
    for group in groups {
        let candidate = &group.candidate;
        let of_kind = match (candidate.folded.is_empty(), candidate.grids.is_some()) {
            (false, _) => CONSTANT,
            (true, true) if group.weights.iter().any(|&id| is_first(model, &scope, id)) => FIRST,
            (true, true) => 1.0,
            (true, false) => continue,
        };
        let all_in = |place: &BTreeSet<WeightId>| group.weights.iter().all(|id| place.contains(id));
        group.candidate.sensitivity = match (all_in(&gates), all_in(&queries)) {
            (true, _) => GATE * of_kind,
            (false, true) => QUERY * of_kind,
            (false, false) => of_kind,
        };
    }
}

/// The weights of all gates.
fn gates(model: &Model, scope: &Scope) -> BTreeSet<WeightId> {
    let mut found = BTreeSet::new();
    for graph in model.graphs() {
        for node in graph.nodes.iter().filter(|node| node.op == "Mul") {
            if let [first, second] = &node.inputs[..] {
                for (gate, gated) in [(first, second), (second, first)] {
                    found.extend(gate_of(scope, graph.id, gate, gated).into_iter().flatten());
                }
            }
        }
    }
    found
}

/// The weights that all queries and keys are made with, and no values.
fn queries(model: &Model, scope: &Scope) -> BTreeSet<WeightId> {
    let weights = |(graph, node): (GraphId, &Node)| {
        let names = node.inputs.iter().take(2).filter(|_| ["MatMul", "Gemm"].contains(&node.op.as_str()));
        names.filter_map(|name| scope.weight(graph, name)).map(|weight| weight.id).collect::<Vec<_>>()
    };
    let mut found = BTreeSet::new();
    for graph in model.graphs() {
        for softmax in graph.nodes.iter().filter(|node| node.op == "Softmax") {
            let (Some(from), Some(to)) = (softmax.inputs.first(), softmax.outputs.first()) else { continue };
            let products = |(_, node): &(GraphId, &Node)| node.op == "MatMul";
            let scores = ends(scope, graph.id, [from]).into_iter().filter(products);
            let readers = scope.readers(graph.id, to).iter();
            let mixes = readers.map(|r| (r.graph, &model.graph(r.graph).nodes[r.node])).filter(products);
            let made = |(graph, node): (GraphId, &'_ Node)| {
                let inputs: Vec<&String> = node.inputs.iter().filter(|name| *name != to).collect();
                ends(scope, graph, inputs).into_iter().flat_map(weights).collect::<Vec<_>>()
            };
            let values: BTreeSet<WeightId> = mixes.flat_map(made).collect();
            // Without values it is no attention.
            if !values.is_empty() {
                found.extend(scores.flat_map(made).filter(|id| !values.contains(id)));
            }
        }
    }
    found
}

/// The nodes of [`ENDS`] that values are made with, through others.
fn ends<'m>(
    scope: &Scope<'m>,
    graph: GraphId,
    values: impl IntoIterator<Item = &'m String>,
) -> Vec<(GraphId, &'m Node)> {
    let mut left: Vec<(GraphId, &str)> = values.into_iter().map(|name| (graph, name.as_str())).collect();
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    while let Some(value) = left.pop().filter(|_| seen.len() < LOOKED_AT) {
        let Some((graph, node)) = scope.maker(value.0, value.1).filter(|_| seen.insert(value)) else {
            continue;
        };
        match ENDS.contains(&node.op.as_str()) {
            true => found.push((graph, node)),
            false => left.extend(node.inputs.iter().map(|name| (graph, name.as_str()))),
        }
    }
    found
}

/// The weights from `gated`, squeezed, to `gate`, if that is made so.
fn gate_of(scope: &Scope, graph: GraphId, gate: &str, gated: &str) -> Option<Vec<WeightId>> {
    let (mut at, mut weights) = ((graph, gate), Vec::new());
    for _ in 0..BETWEEN {
        let (owner, node) = scope.maker(at.0, at.1)?;
        let (from, others) = node.inputs.split_first()?;
        if ["GlobalAveragePool", "ReduceMean"].contains(&node.op.as_str()) {
            return (from == gated).then_some(weights);
        }
        weights.extend(others.iter().filter_map(|name| scope.weight(owner, name)).map(|weight| weight.id));
        at = (owner, from);
    }
    None
}

fn is_first(model: &Model, scope: &Scope, id: WeightId) -> bool {
    let (weight, graph) = (model.weight(id), model.graph(GraphId(0)));
    let reads = |node: &&Node| node.op == "Conv" && node.inputs.get(1) == Some(&weight.name);
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
