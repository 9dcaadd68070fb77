//! Values that a Loop or a Scan hands from turn to turn as they are.
//!
//! TensorFlow's and Paddle's exporters give a loop its weights so: as initial values of variables that no turn changes.

use std::collections::BTreeMap;

use crate::onnx::scope::{Definition, Reader, Scope, ValueKey};
use crate::onnx::{Graph, GraphId, Model, Node};

/// The most Identity nodes between a variable and what a body hands on.
const MAX_IDENTITIES: usize = 16;

/// A variable of a loop that keeps its initial value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Graph and index of the Loop or Scan.
    pub node: (GraphId, usize),
    /// Its body.
    pub body: GraphId,
    /// The node's input with the initial value.
    pub input: usize,
    /// The node's output with the last value.
    pub output: usize,
    /// The body's input.
    pub body_input: usize,
    /// The body's output.
    pub body_output: usize,
}

impl Carried {
    /// The variable that `reader` gives its initial value to, if `reader` does that and no turn changes it.
    pub fn of(model: &Model, scope: &Scope<'_>, reader: Reader) -> Option<Carried> {
        let node = &model.graph(reader.graph).nodes[reader.node];
        let carried = Self::variable(model, node, reader)?;
        let body = model.graph(carried.body);
        let (start, end) = (&body.inputs.get(carried.body_input)?.name, carried.end(model)?);
        let mut name = end;
        for _ in 0..=MAX_IDENTITIES {
            if name == start {
                let is_own =
                    scope.resolve(body.id, name) == Some((body.id, Definition::Input(carried.body_input)));
                // What is handed on twice would be missed when one of the two is gone.
                let handed_on = |name: &str| {
                    let names = |graph: &Graph| graph.outputs.iter().filter(|o| o.name == name).count();
                    let means_it =
                        |graph: &&Graph| scope.resolve(graph.id, name).is_some_and(|(at, _)| at == body.id);
                    model.graphs().iter().filter(means_it).map(names).sum::<usize>()
                };
                let once = handed_on(end) == 1 && (end == start || handed_on(start) == 0);
                return (is_own && once).then_some(carried);
            }
            let Some((owner, Definition::Node(index))) = scope.resolve(body.id, name) else { return None };
            let identity = &body.nodes[index];
            if owner != body.id || identity.op != "Identity" || !identity.domain.is_empty() {
                return None;
            }
            name = identity.inputs.first()?;
        }
        None
    }

    /// The variable at an input of a node, whatever becomes of it.
    fn variable(model: &Model, node: &Node, reader: Reader) -> Option<Carried> {
        if !node.domain.is_empty() || !matches!(node.op.as_str(), "Loop" | "Scan") {
            return None;
        }
        let graphs = &node.attributes.iter().find(|a| a.leaf.name() == "body")?.graphs;
        let [(id, _)] = graphs[..] else { return None };
        let body: &Graph = model.graph(id);
        let (input, body_input, output, body_output) = match node.op.as_str() {
            // Inputs: how often, whether at all, variables. A body has the turn's number and makes the condition.
            "Loop" => (reader.input, reader.input, reader.input.checked_sub(2)?, reader.input - 1),
            // Inputs: variables, then what is gone through. (Before opset 9 lengths come first: one input more.)
            _ => {
                let variables =
                    node.inputs.len().checked_sub(usize::try_from(node.int("num_scan_inputs", 0)).ok()?)?;
                let is_variable = reader.input < variables && body.inputs.len() == node.inputs.len();
                let at = is_variable.then_some(reader.input)?;
                (at, at, at, at)
            }
        };
        let node = (reader.graph, reader.node);
        Some(Carried { node, body: id, input, output, body_input, body_output })
    }

    /// The body's name for the variable at the start of a turn.
    pub fn start<'m>(&self, model: &'m Model) -> Option<&'m str> {
        model.graph(self.body).inputs.get(self.body_input).map(|value| value.name.as_str())
    }

    /// The body's name for it at the end.
    pub fn end<'m>(&self, model: &'m Model) -> Option<&'m str> {
        model.graph(self.body).outputs.get(self.body_output).map(|value| value.name.as_str())
    }

    /// The initial value.
    pub fn initial<'m>(&self, model: &'m Model) -> ValueKey<'m> {
        let (graph, node) = self.node;
        (graph, &model.graph(graph).nodes[node].inputs[self.input])
    }

    /// The value after the loop, if anybody may read it.
    pub fn last<'m>(&self, model: &'m Model) -> Option<ValueKey<'m>> {
        let (graph, node) = self.node;
        let name = model.graph(graph).nodes[node].outputs.get(self.output)?;
        (!name.is_empty()).then_some((graph, name))
    }
}

/// All such variables of a model, by who gives them their initial value.
pub fn all(model: &Model, scope: &Scope<'_>) -> BTreeMap<Reader, Carried> {
    let inputs = model.graphs().iter().flat_map(|graph| {
        graph.nodes.iter().enumerate().flat_map(move |(node, n)| {
            (0..n.inputs.len()).map(move |input| Reader { graph: graph.id, node, input })
        })
    });
    inputs.filter_map(|reader| Some((reader, Carried::of(model, scope, reader)?))).collect()
}
