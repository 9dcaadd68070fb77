//! The converted model, as a rope over the original's bytes: what did not change is not re-encoded.

mod plan;
mod tensors;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use prost::Message;

use super::base::PlanBase;
use super::carried::Carried;
use super::decide::Decision;
use super::names::Names;
use super::nodes::{self, Reading, ReadingBase, Rewrite};
use super::recipe;
use super::rope::Rope;
use crate::onnx::graph::Part;
use crate::onnx::proto;
use crate::onnx::wire::Scanner;
use crate::onnx::{Attribute, DOMAIN, Error, Graph, GraphId, Model, Node, Origin, Result, Weight, WeightId};

pub use plan::{Form, Placement, Plan};

/// Version of the operator set [`DOMAIN`].
const OPSET: i64 = 1;

/// The converted model. Write it with [`Rope::write_to`].
pub fn build(model: &Model, plan: &Plan) -> Result<Rope> {
    if model.is_converted() {
        return Err(Error::unsupported(model.path(), "already converted"));
    }
    if plan.decisions.len() != model.weights().len() {
        return Err(Error::Internal("a plan for another model".to_string()));
    }
    let mut splicer = Splicer::new(model, plan)?;
    let graph = splicer.graph(GraphId(0))?;
    let mut out = Rope::new();
    out.source(0..model.graph_field().start);
    out.field(7, graph);
    out.source(model.graph_field().end..model.source().len());
    if plan.needs_library() {
        let opset = proto::OperatorSetId { domain: Some(DOMAIN.to_string()), version: Some(OPSET) };
        out.field(8, owned(&opset));
    }
    let tool = format!("nz-onnx {}", nz_onnx::VERSION);
    let (major, minor) = plan.format;
    let format = format!("{major}.{minor}");
    for (key, value) in [("nz.format", &*format), ("nz.tool", &tool), ("nz.source_sha256", model.sha256()?)] {
        metadata(&mut out, key, value);
    }
    let of_base = plan.base.as_ref().map(PlanBase::metadata);
    for (key, value) in plan.metadata.iter().chain(of_base.iter().flatten()) {
        metadata(&mut out, key, value);
    }
    // Last, so that it stands behind everything it refers to.
    let restore = recipe::Recipe::new(model, plan, &out)?.to_text();
    metadata(&mut out, recipe::KEY, &restore);
    Ok(out)
}

fn metadata(out: &mut Rope, key: &str, value: &str) {
    out.field(
        14,
        owned(&proto::StringStringEntry { key: Some(key.to_string()), value: Some(value.to_string()) }),
    );
}

fn owned(message: &impl Message) -> Rope {
    let mut rope = Rope::new();
    rope.owned(&message.encode_to_vec());
    rope
}

struct Splicer<'a> {
    model: &'a Model,
    plan: &'a Plan,
    names: Names,
    /// By graph and node.
    rewrites: HashMap<(GraphId, usize), Rewrite<'a>>,
    dropped: BTreeSet<(GraphId, usize)>,
    /// Variables of loops that are gone.
    carried: Vec<Carried>,
    /// What takes the place of Shape nodes that are gone.
    shapes: BTreeMap<(GraphId, usize), &'a [i64]>,
    /// `Constant` nodes with external data.
    external_constants: HashMap<(GraphId, usize), WeightId>,
    /// Blobs that each graph holds, and their names there. ONNX Runtime takes a body's constants from that
    /// body only, so a blob is an initializer of every graph that reads it; in the data file it is one.
    blobs: BTreeMap<(GraphId, WeightId), String>,
    /// The same of the base's blobs that those are deltas to.
    bases: BTreeMap<(GraphId, WeightId), String>,
}

impl<'a> Splicer<'a> {
    fn new(model: &'a Model, plan: &'a Plan) -> Result<Self> {
        let mut splicer = Splicer {
            model,
            plan,
            names: Names::new(model),
            rewrites: HashMap::new(),
            dropped: BTreeSet::new(),
            carried: Vec::new(),
            shapes: BTreeMap::new(),
            external_constants: HashMap::new(),
            blobs: BTreeMap::new(),
            bases: BTreeMap::new(),
        };
        for weight in model.weights().iter().filter(|w| w.is_external()) {
            if let Origin::Constant { node } = weight.origin {
                splicer.external_constants.insert((weight.graph, node), weight.id);
            }
        }
        for &id in plan.folded.keys() {
            let weight = model.weight(id);
            if let Origin::Constant { node } = weight.origin {
                splicer.dropped.insert((weight.graph, node));
            }
        }
        for (id, compression) in plan.compressed() {
            let weight = model.weight(id);
            let (root, placement) = plan.place(id)?;
            splicer.dropped.extend(&compression.dropped);
            splicer.carried.extend(&compression.carried);
            splicer.shapes.extend(compression.shapes.iter().map(|(node, shape)| (*node, shape.as_slice())));
            if let Origin::Constant { node } = weight.origin {
                splicer.dropped.insert((weight.graph, node));
            }
            for usage in &compression.uses {
                let graph = usage.reader.graph;
                let names = &mut splicer.names;
                let blob = splicer
                    .blobs
                    .entry((graph, root))
                    .or_insert_with(|| names.fresh(&format!("{}.nz", model.weight(root).name)))
                    .clone();
                let base = plan.base_of(root).map(|(base, blob)| {
                    let delta = (*placement != Placement::InBase).then(|| {
                        let fresh = || names.fresh(&format!("{}.nz.base", model.weight(root).name));
                        splicer.bases.entry((graph, root)).or_insert_with(fresh).clone()
                    });
                    ReadingBase { file: base.file.clone(), hash: blob.hash, delta }
                });
                let rewrite = splicer.rewrites.entry((graph, usage.reader.node)).or_default();
                rewrite.add(Reading { weight, usage, blob, base, depth_bytes: plan.depths.of(root) });
            }
        }
        Ok(splicer)
    }

    /// The message of a graph.
    fn graph(&mut self, id: GraphId) -> Result<Rope> {
        let graph = self.model.graph(id);
        let is_old = self.model.ir_version() < 4;
        let vanished = self.vanished(graph);
        let mut out = Rope::new();
        let notice = id == GraphId(0) && self.plan.needs_library();
        let mut constants = Rope::new();
        let mut is_first = true;
        for field in &graph.fields {
            if is_first && matches!(field.part, Part::Node(_)) {
                if notice {
                    out.field(
                        1,
                        nodes::notice(&mut self.names, self.plan.nchwc_block, self.plan.depths.totals()),
                    );
                }
                // Before all that may read them.
                for (&weight, form) in &self.plan.folded {
                    let weight = self.model.weight(weight);
                    if weight.graph == id {
                        constants.append(self.fold(weight, form.how, is_old, &mut out)?);
                    }
                }
                is_first = false;
            }
            let replaced = match field.part {
                Part::Node(i) if self.dropped.contains(&(id, i)) || self.shapes.contains_key(&(id, i)) => {
                    Some(Rope::new())
                }
                Part::Input(i) if self.carried.iter().any(|c| c.body == id && c.body_input == i) => {
                    Some(Rope::new())
                }
                Part::Output(i) if self.carried.iter().any(|c| c.body == id && c.body_output == i) => {
                    Some(Rope::new())
                }
                Part::Node(i) => self.node(graph, i)?,
                Part::Initializer(i) => self.initializer(self.model.weight(graph.initializers[i]))?,
                Part::Input(i) if is_old && vanished.contains(graph.inputs[i].name.as_str()) => {
                    Some(Rope::new())
                }
                Part::ValueInfo(i) if vanished.contains(graph.value_info[i].name.as_str()) => {
                    Some(Rope::new())
                }
                _ => None,
            };
            match replaced {
                Some(rope) => out.append(rope),
                None => out.source(field.whole.clone()),
            }
        }
        out.append(constants);
        out.append(self.blobs(id, is_old)?);
        out.append(self.shapes(id, is_old));
        Ok(out)
    }

    /// Names of values that the converted graph no longer has.
    fn vanished(&self, graph: &'a Graph) -> BTreeSet<&'a str> {
        let weights = self.plan.changed().map(|id| self.model.weight(id));
        let mut names: BTreeSet<&str> =
            weights.filter(|w| w.graph == graph.id).map(|w| w.name.as_str()).collect();
        for (_, node) in self.dropped.range((graph.id, 0)..=(graph.id, usize::MAX)) {
            names.extend(graph.nodes[*node].outputs.iter().map(String::as_str));
        }
        for carried in &self.carried {
            names.extend(carried.start(self.model).filter(|_| carried.body == graph.id));
            names.extend(carried.last(self.model).filter(|(at, _)| *at == graph.id).map(|(_, name)| name));
        }
        names
    }

    /// What takes the place of a node, or `None` if it stays.
    fn node(&mut self, graph: &Graph, index: usize) -> Result<Option<Rope>> {
        let node = &graph.nodes[index];
        let mut edits = Vec::new();
        for attribute in &node.attributes {
            if let Some(rope) = self.bodies(attribute)? {
                edits.push((attribute.whole.clone(), rope));
            }
        }
        edits.extend(self.without_carried((graph.id, index), node)?);
        if let Some(id) = self.external_constants.get(&(graph.id, index)) {
            edits.extend(self.constant(&node.attributes, self.model.weight(*id))?);
        }
        let body = (!edits.is_empty()).then(|| edited(&node.body, edits));
        match (self.rewrites.remove(&(graph.id, index)), body) {
            (None, None) => Ok(None),
            (None, Some(body)) => {
                let mut out = Rope::new();
                out.field(1, body);
                Ok(Some(out))
            }
            (Some(change), body) => {
                if body.is_some() {
                    return Err(Error::Internal(format!("node {:?} has bodies and a weight", node.label())));
                }
                nodes::rewrite(self.model, &mut self.names, node, &change).map(Some)
            }
        }
    }

    /// Removes the inputs and outputs of variables that are gone.
    fn without_carried(&self, at: (GraphId, usize), node: &Node) -> Result<Vec<(Range<u64>, Rope)>> {
        let mut edits = Vec::new();
        let gone: Vec<&Carried> = self.carried.iter().filter(|carried| carried.node == at).collect();
        if gone.is_empty() {
            return Ok(edits);
        }
        let mut scanner = Scanner::new(self.model.source());
        let (mut position, mut inputs, mut outputs) = (node.body.start, 0.., 0..);
        while let Some(field) = scanner.field(&mut position, node.body.end)? {
            let is_gone = match field.number {
                1 => inputs.next().is_some_and(|i: usize| gone.iter().any(|c| c.input == i)),
                2 => outputs.next().is_some_and(|i: usize| gone.iter().any(|c| c.output == i)),
                _ => false,
            };
            if is_gone {
                edits.push((field.whole, Rope::new()));
            }
        }
        Ok(edits)
    }

    /// An attribute whose graphs changed, as a field of its node.
    fn bodies(&mut self, attribute: &Attribute) -> Result<Option<Rope>> {
        let mut edits = Vec::new();
        for (id, slot) in &attribute.graphs {
            let body = self.model.graph(*id).body.clone();
            let rope = self.graph(*id)?;
            let mut same = Rope::new();
            same.source(body);
            if rope != same {
                let mut field = Rope::new();
                field.field(slot.number, rope);
                edits.push((slot.whole.clone(), field));
            }
        }
        if edits.is_empty() {
            return Ok(None);
        }
        let mut out = Rope::new();
        out.field(5, edited(&attribute.body, edits));
        Ok(Some(out))
    }

    /// What takes the place of an initializer, or `None` if it stays.
    fn initializer(&self, weight: &Weight) -> Result<Option<Rope>> {
        let is_folded = self.plan.folded.contains_key(&weight.id);
        if is_folded || matches!(self.plan.decisions[weight.id.0], Decision::Compress(_)) {
            return Ok(Some(Rope::new()));
        }
        if !weight.is_external() {
            return Ok(None);
        }
        let mut out = Rope::new();
        out.field(5, self.moved(weight)?);
        Ok(Some(out))
    }

    /// The changed attribute of a kept `Constant` with external data.
    fn constant(&self, attributes: &[Attribute], weight: &Weight) -> Result<Option<(Range<u64>, Rope)>> {
        let inside =
            |a: &&Attribute| a.body.start <= weight.message.start && weight.message.end <= a.body.end;
        let Some(attribute) = attributes.iter().find(inside) else {
            return Ok(None);
        };
        let mut scanner = Scanner::new(self.model.source());
        let mut at = attribute.body.start;
        while let Some(field) = scanner.field(&mut at, attribute.body.end)? {
            if field.bytes() == Some(&weight.message) {
                let (mut tensor, mut out) = (Rope::new(), Rope::new());
                tensor.field(field.number, self.moved(weight)?);
                out.field(5, edited(&attribute.body, vec![(field.whole, tensor)]));
                return Ok(Some((attribute.whole.clone(), out)));
            }
        }
        Ok(None)
    }
}

/// The message in `body` with some of its fields replaced.
pub(crate) fn edited(body: &Range<u64>, mut edits: Vec<(Range<u64>, Rope)>) -> Rope {
    edits.sort_by_key(|(range, _)| range.start);
    let mut out = Rope::new();
    let mut at = body.start;
    for (range, rope) in edits {
        out.source(at..range.start);
        out.append(rope);
        at = range.end;
    }
    out.source(at..body.end);
    out
}
