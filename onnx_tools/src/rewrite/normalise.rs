//! What ONNX Runtime's optimiser leaves to chance or behind, put right, so that the same model gives the same bytes.

use std::collections::{BTreeSet, HashMap, HashSet};

use prost::Message;

use super::nodes::without;
use super::rope::Rope;
use super::splice::edited;
use crate::onnx::graph::Part;
use crate::onnx::proto;
use crate::onnx::wire::Scanner;
use crate::onnx::{Attribute, Graph, GraphId, Model, Node, Result};

/// Domain of the ops on blocks of channels.
pub const NCHWC: &str = "com.microsoft.nchwc";
/// The first IR version in which an initializer need not be a graph input.
const IR_VERSION: i64 = 4;
/// The field of a `ModelProto` that imports an operator set.
const OPSET_IMPORT: u32 = 8;
/// The field of a `ModelProto` that holds a function.
const FUNCTIONS: u32 = 25;

/// Whether any node of the model works on blocks of channels.
pub fn has_nchwc(model: &Model) -> bool {
    model.graphs().iter().flat_map(|graph| &graph.nodes).any(|node| node.domain == NCHWC)
}

/// The optimised `model` in a form that depends on its content alone.
///
/// - Nodes are in the order in which a depth-first walk from the outputs meets them, and nodes that reorder channels
///   have no name: ONNX Runtime makes these by a walk over a hash table of addresses.
/// - Before IR version 4 an initializer is a graph input too. Those that the optimiser did away with stay as inputs,
///   which every caller then would have to give. `defaults`, the names of the original's initializers, are no inputs
///   of the model made here, which has IR version 4.
/// - Operator sets that no node is of are not imported: ONNX Runtime lists all those that it knows, and older versions
///   refuse a model for the version of a set that it does not use.
///
/// # Errors
/// The file cannot be read.
pub fn normalise(model: &Model, defaults: &HashSet<String>) -> Result<Rope> {
    let is_old = model.ir_version() < IR_VERSION;
    let normaliser = Normaliser { model, dropped: if is_old { Some(defaults) } else { None } };
    let mut scanner = Scanner::new(model.source());
    let (mut at, mut fields) = (0, Vec::new());
    while let Some(field) = scanner.field(&mut at, model.source().len())? {
        fields.push(field);
    }
    let has_functions = fields.iter().any(|field| field.number == FUNCTIONS);
    let mut out = Rope::new();
    for field in fields {
        if field.whole == *model.graph_field() {
            out.field(7, normaliser.graph(GraphId(0))?);
        } else if let (OPSET_IMPORT, Some(body)) = (field.number, field.bytes()) {
            // Nodes of functions are not known here.
            if has_functions || is_used(model, &model.source().read(body)?) {
                out.source(field.whole);
            }
        } else if is_old && field.number == 1 {
            let version = proto::ModelHeader { ir_version: Some(IR_VERSION), ..Default::default() };
            out.owned(&version.encode_to_vec());
        } else {
            out.source(field.whole);
        }
    }
    Ok(out)
}

/// Whether any node is of this operator set; ONNX's own is always of use, and so is what cannot be read.
fn is_used(model: &Model, opset: &[u8]) -> bool {
    proto::OperatorSetId::decode(opset).map_or(true, |opset| {
        let nodes = || model.graphs().iter().flat_map(|graph| &graph.nodes);
        matches!(opset.domain(), "" | "ai.onnx") || nodes().any(|node| node.domain == opset.domain())
    })
}

struct Normaliser<'a> {
    model: &'a Model,
    /// Inputs of the main graph that go.
    dropped: Option<&'a HashSet<String>>,
}

impl Normaliser<'_> {
    fn graph(&self, id: GraphId) -> Result<Rope> {
        let graph = self.model.graph(id);
        let mut order = Some(order(self.model, graph));
        let mut out = Rope::new();
        for field in &graph.fields {
            match field.part {
                Part::Node(_) => {
                    for index in order.take().unwrap_or_default() {
                        out.field(1, self.node(&graph.nodes[index])?);
                    }
                }
                Part::Input(i)
                    if id == GraphId(0)
                        && self.dropped.is_some_and(|names| names.contains(&graph.inputs[i].name)) => {}
                _ => out.source(field.whole.clone()),
            }
        }
        Ok(out)
    }

    fn node(&self, node: &Node) -> Result<Rope> {
        if node.domain == NCHWC && node.op.starts_with("Reorder") {
            return without(self.model, node, &[3]);
        }
        let edits = node.attributes.iter().filter(|a| !a.graphs.is_empty());
        let edits = edits.map(|a| Ok((a.whole.clone(), self.bodies(a)?))).collect::<Result<_>>()?;
        Ok(edited(&node.body, edits))
    }

    /// An attribute that holds graphs, as a field of its node.
    fn bodies(&self, attribute: &Attribute) -> Result<Rope> {
        let mut edits = Vec::new();
        for (id, slot) in &attribute.graphs {
            let mut field = Rope::new();
            field.field(slot.number, self.graph(*id)?);
            edits.push((slot.whole.clone(), field));
        }
        let mut out = Rope::new();
        out.field(5, edited(&attribute.body, edits));
        Ok(out)
    }
}

/// The nodes of `graph`, each behind those it reads from, as a depth-first walk from the outputs meets them.
fn order(model: &Model, graph: &Graph) -> Vec<usize> {
    let mut makers: HashMap<&str, usize> = HashMap::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        makers.extend(node.outputs.iter().filter(|o| !o.is_empty()).map(|o| (o.as_str(), index)));
    }
    let mut order = Vec::with_capacity(graph.nodes.len());
    let mut met = vec![false; graph.nodes.len()];
    let outputs = graph.outputs.iter().filter_map(|o| makers.get(o.name.as_str()).copied());
    // Nodes that no output needs follow by the names of what they make.
    let rest: BTreeSet<(&[String], usize)> =
        graph.nodes.iter().enumerate().map(|(index, node)| (node.outputs.as_slice(), index)).collect();
    for root in outputs.chain(rest.into_iter().map(|(_, index)| index)) {
        // A node, what it reads from, and how much of that was looked at. A stack of our own: chains are long.
        let mut stack = vec![];
        let enter = |index: usize, met: &mut [bool]| {
            (!std::mem::replace(&mut met[index], true))
                .then(|| (index, parents(model, graph, index, &makers), 0))
        };
        stack.extend(enter(root, &mut met));
        while let Some((index, parents, at)) = stack.last_mut() {
            match parents.get(*at) {
                Some(&parent) => {
                    *at += 1;
                    stack.extend(enter(parent, &mut met));
                }
                None => {
                    order.push(*index);
                    stack.pop();
                }
            }
        }
    }
    order
}

/// The nodes of `graph` that node `index` reads from, through its bodies too.
fn parents(model: &Model, graph: &Graph, index: usize, makers: &HashMap<&str, usize>) -> Vec<usize> {
    let node = &graph.nodes[index];
    let mut found: Vec<usize> = node.inputs.iter().filter_map(|i| makers.get(i.as_str()).copied()).collect();
    let mut bodies: Vec<GraphId> =
        node.attributes.iter().flat_map(|a| &a.graphs).map(|(id, _)| *id).collect();
    while let Some(id) = bodies.pop() {
        let body = model.graph(id);
        let outputs = body.outputs.iter().map(|o| &o.name);
        let names = body.nodes.iter().flat_map(|n| &n.inputs).chain(outputs);
        found.extend(names.filter_map(|name| makers.get(name.as_str()).copied()).filter(|&p| p != index));
        bodies
            .extend(body.nodes.iter().flat_map(|n| &n.attributes).flat_map(|a| &a.graphs).map(|(id, _)| *id));
    }
    found
}
