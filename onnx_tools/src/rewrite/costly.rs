//! Weights that cost much speed for the bytes that they would save, and are better left alone.
//!
//! A `nz.Decode` node takes some microseconds however small its weight is. And ONNX Runtime lays constant weights of
//! convolutions out in channel blocks, with kernels to match; a convolution whose weight is decoded goes without. What
//! that costs grows with the positions that the filter is applied to: the first layers of an image model hold a few
//! per cent of its weights and most of the loss.

use std::collections::HashMap;

use super::decide::{Compression, Decision, UseKind};
use super::normalise::has_nchwc;
use crate::onnx::scope::{Definition, Scope, ValueKey};
use crate::onnx::{Graph, GraphId, Model, Node, ValueInfo, Weight};

/// At most one part in this many of a model's weight bytes is left alone for the sake of speed.
const SHARE: u64 = 16;
/// Weights that cost less than this are compressed, in seconds a byte and run: a `nz.Decode` node of 16 KiB.
const LEAST_COST: f64 = NODE_COST / 16384.0;
/// What a node costs, in seconds a run.
const NODE_COST: f64 = 4e-6;
/// What a convolution without channel blocks loses at one position, in seconds a byte of its weight: half of the time
/// that it takes at 50 billion multiplications and additions a second.
const POSITION_COST: f64 = 0.5 * 2.0 / 4.0 / 50e9;
/// A side of an image whose size the model leaves open.
const OPEN_SIDE: u64 = 224;

/// Keeps those weights of `decisions` that cost most speed for the bytes they save; those that `may_fold` allows may be
/// stored shorter all the same.
pub(super) fn keep_costly(
    model: &Model,
    scope: &Scope<'_>,
    decisions: &mut [Decision],
    may_fold: impl Fn(&Weight) -> bool,
) {
    // Where weights are in channel blocks already, decoding them loses nothing.
    let positions = (!has_nchwc(model)).then(|| Positions::new(model, scope));
    let mut costly: Vec<Costly> = decisions
        .iter()
        .enumerate()
        .filter_map(|(index, decision)| match decision {
            Decision::Compress(compression) => {
                let positions = positions.as_ref().and_then(|p| p.of_weight(compression)).unwrap_or(0.0);
                let nodes =
                    compression.uses.iter().filter(|u| matches!(u.kind, UseKind::Decode { .. })).count();
                let bytes = model.weights()[index].bytes;
                let cost = positions * POSITION_COST + nodes as f64 * NODE_COST / bytes as f64;
                Some(Costly { index, bytes, positions, cost })
            }
            Decision::Keep { .. } | Decision::Fold { .. } => None,
        })
        .filter(|costly| costly.cost >= LEAST_COST)
        .collect();
    // By cost, then in the model's order: the sort is stable.
    costly.sort_by(|a, b| b.cost.total_cmp(&a.cost));
    let all = model.weights().iter().fold(0u64, |sum, w| sum.saturating_add(w.bytes));
    let mut left = all / SHARE;
    for Costly { index, bytes, positions, .. } in costly {
        if bytes <= left {
            left -= bytes;
            let reason = if positions * POSITION_COST < LEAST_COST {
                "small, and not read by an op that multiplies as it decodes: slower for few bytes saved"
                    .to_string()
            } else {
                format!(
                    "weight of a convolution over a large image, which would be slower for few bytes saved (about \
                     {positions:.0} positions)"
                )
            };
            let folds = may_fold(&model.weights()[index]);
            decisions[index] = if folds { Decision::Fold { reason } } else { Decision::Keep { reason } };
        }
    }
}

/// A weight, and what compressing it costs in seconds a byte.
struct Costly {
    index: usize,
    bytes: u64,
    /// That it is applied to, as a convolution's.
    positions: f64,
    cost: f64,
}

/// Roughly how many positions, height times width, the values of a model have.
struct Positions<'m> {
    model: &'m Model,
    known: HashMap<ValueKey<'m>, f64>,
}

impl<'m> Positions<'m> {
    fn new(model: &'m Model, scope: &Scope<'m>) -> Self {
        let mut found = Positions { model, known: HashMap::new() };
        for input in &model.graph(GraphId(0)).inputs {
            if let Some(positions) = of_image(input) {
                found.known.insert((GraphId(0), input.name.as_str()), positions);
            }
        }
        // A body comes after the graph around it, a node after those that it reads from.
        for graph in model.graphs() {
            let stated: HashMap<&str, f64> = (graph.value_info.iter().chain(&graph.outputs))
                .filter_map(|info| Some((info.name.as_str(), of_channels_first(info)?)))
                .collect();
            for node in &graph.nodes {
                found.node(scope, graph, node, &stated);
            }
        }
        found
    }

    fn node(&mut self, scope: &Scope<'m>, graph: &'m Graph, node: &'m Node, stated: &HashMap<&str, f64>) {
        let input = |name: &'m String| {
            let (owner, definition) = scope.resolve(graph.id, name)?;
            let variable = !matches!(definition, Definition::Weight(_));
            self.known.get(&(owner, name.as_str())).copied().filter(|_| variable)
        };
        let largest = node.inputs.iter().filter_map(input).reduce(f64::max);
        let Some(positions) = largest.map(|positions| positions * scale(node)) else { return };
        for output in node.outputs.iter().filter(|o| !o.is_empty()) {
            let positions = stated.get(output.as_str()).copied().unwrap_or(positions);
            self.known.insert((graph.id, output.as_str()), positions);
        }
    }

    /// The most positions that a weight is applied to, if only two-dimensional convolutions read it.
    fn of_weight(&self, compression: &Compression) -> Option<f64> {
        if compression.spec.shape.len() != 4 {
            return None;
        }
        let of_use = |u: &super::decide::Use| {
            let node = &self.model.graph(u.reader.graph).nodes[u.reader.node];
            let is_weight = u.reader.input == 1 && matches!(u.kind, UseKind::Decode { .. });
            if !is_weight || !matches!(node.op.as_str(), "Conv" | "FusedConv") {
                return None;
            }
            self.known.get(&(u.reader.graph, node.outputs.first()?.as_str())).copied()
        };
        let all: Option<Vec<f64>> = compression.uses.iter().map(of_use).collect();
        all?.into_iter().reduce(f64::max)
    }
}

/// By how much a node multiplies the positions of what it reads.
fn scale(node: &Node) -> f64 {
    let strides = || {
        let strides = node.attribute("strides").map(|a| a.ints.as_slice()).unwrap_or_default();
        strides.iter().map(|&s| s.max(1) as f64).product::<f64>()
    };
    let block = || (node.int("blocksize", 1).max(1) as f64).powi(2);
    match node.op.as_str() {
        "Conv" | "FusedConv" | "MaxPool" | "AveragePool" | "LpPool" => 1.0 / strides(),
        "ConvTranspose" => strides(),
        "SpaceToDepth" => 1.0 / block(),
        "DepthToSpace" => block(),
        // By how much is in another tensor; twice each side is what networks do.
        "Resize" | "Upsample" => 4.0,
        "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" | "Shape" | "Size" => 0.0,
        _ => 1.0,
    }
}

/// Positions of a graph input that is an image, wherever its channels are: of three sides they are the shortest.
fn of_image(input: &ValueInfo) -> Option<f64> {
    let [_, sides @ ..] = input.shape.as_deref()? else { return None };
    let sides: Vec<u64> = sides.iter().map(|side| side.unwrap_or(OPEN_SIDE)).collect();
    let channels = *sides.iter().min()?;
    (sides.len() == 3 && channels > 0)
        .then(|| sides.iter().map(|&s| s as f64).product::<f64>() / channels as f64)
}

/// Positions of a value inside the model, where the file states its shape.
fn of_channels_first(info: &ValueInfo) -> Option<f64> {
    match info.shape.as_deref()? {
        [_, _, Some(height), Some(width)] => Some(*height as f64 * *width as f64),
        _ => None,
    }
}
