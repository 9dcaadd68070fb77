//! The converted model, as a rope over the original's bytes: what did not change is not re-encoded.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use nz_onnx::codec::allocation::Folded;
use prost::Message;

use super::base::{BaseBlob, PlanBase};
use super::carried::Carried;
use super::decide::{Compression, Decision};
use super::depths::DepthBytes;
use super::fold;
use super::names::Names;
use super::nodes::{self, Reading, ReadingBase, Rewrite};
use super::recipe;
use super::rope::Rope;
use crate::onnx::graph::Part;
use crate::onnx::proto::{self, dtype};
use crate::onnx::wire::Scanner;
use crate::onnx::{Attribute, DOMAIN, Error, Graph, GraphId, Model, Node, Origin, Result, Weight, WeightId};

/// Version of the operator set [`DOMAIN`].
const OPSET: i64 = 1;
/// Value of the metadata key `nz.format`: the blob format version.
const FORMAT: &str = "1.0";

/// Where a weight's bytes are in the converted model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In the data file.
    External {
        /// First byte, a multiple of 64 KiB.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// In the model: for small ones.
    Inline(Vec<u8>),
    /// In the base's data file, where [`Plan::base`] says: it is the base's own.
    InBase,
    /// The same blob as that weight's, whose placement is one of the others.
    SameAs(WeightId),
}

/// A weight in a form of [`super::fold`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Which.
    pub how: Folded,
    /// XXH3 of its bytes.
    pub checksum: u64,
    /// Whether the weight comes back bit for bit.
    pub exact: bool,
}

/// What to make of a model.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What happens to each weight, in the order of [`Model::weights`].
    pub decisions: Vec<Decision>,
    /// For each compressed weight its blob, for each kept one with external data its elements.
    pub placements: BTreeMap<WeightId, Placement>,
    /// The weights stored in a form of [`super::fold`], which their placements hold. Their decisions are to keep them.
    pub folded: BTreeMap<WeightId, Form>,
    /// Name of the data file, which lies beside the converted model.
    pub data_file_name: String,
    /// Further `metadata_props`; those named `nz.format`, `nz.tool`, `nz.source_sha256` and `nz.restore` are
    /// added by [`build`].
    pub metadata: Vec<(String, String)>,
    /// Channels a block in the weights of `com.microsoft.nchwc` nodes, if the model has any: the library refuses it
    /// where ONNX Runtime takes another number.
    pub nchwc_block: Option<u32>,
    /// What weights come from a base, if any.
    pub base: Option<PlanBase>,
    /// What blobs take with each layer, if they were to get some; else empty.
    pub depths: DepthBytes,
}

impl Plan {
    /// The placement of a weight, [`Placement::SameAs`] followed, and the weight it belongs to.
    pub(crate) fn place(&self, id: WeightId) -> Result<(WeightId, &Placement)> {
        let missing = || Error::Internal(format!("weight {} has no placement", id.0));
        match self.placements.get(&id).ok_or_else(missing)? {
            Placement::SameAs(root) => match self.placements.get(root).ok_or_else(missing)? {
                Placement::SameAs(_) => Err(Error::Internal(format!("weight {} is tied twice over", id.0))),
                found => Ok((*root, found)),
            },
            found => Ok((id, found)),
        }
    }

    /// The base's blob that a weight is, or that its blob is a delta to.
    pub(crate) fn base_of(&self, root: WeightId) -> Option<(&PlanBase, BaseBlob)> {
        let base = self.base.as_ref()?;
        Some((base, *base.blobs.get(&root)?))
    }

    /// Whether the model that is made needs the library.
    fn needs_library(&self) -> bool {
        self.nchwc_block.is_some() || self.compressed().next().is_some()
    }

    pub(crate) fn compressed(&self) -> impl Iterator<Item = (WeightId, &Compression)> {
        self.decisions.iter().enumerate().filter_map(|(i, decision)| match decision {
            Decision::Compress(compression) => Some((WeightId(i), compression)),
            Decision::Keep { .. } | Decision::Fold { .. } => None,
        })
    }

    /// The weights that are not in the converted model as they were.
    pub(crate) fn changed(&self) -> impl Iterator<Item = WeightId> {
        self.compressed().map(|(id, _)| id).chain(self.folded.keys().copied())
    }
}

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
    for (key, value) in [("nz.format", FORMAT), ("nz.tool", &tool), ("nz.source_sha256", model.sha256()?)] {
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
        let here = (id, WeightId(0))..=(id, WeightId(usize::MAX));
        let bases = self.bases.range(here.clone()).map(|(key, name)| (key, name, &Placement::InBase));
        let blobs = self.blobs.range(here).map(|(key, name)| Ok((key, name, self.plan.place(key.1)?.1)));
        for blob in blobs.chain(bases.map(Ok)).collect::<Result<Vec<_>>>()? {
            let ((_, root), name, placement) = blob;
            let len = match placement {
                Placement::External { len, .. } => *len,
                Placement::Inline(bytes) => bytes.len() as u64,
                Placement::InBase => self.plan.base_of(*root).map_or(0, |(_, blob)| blob.len),
                Placement::SameAs(_) => 0,
            };
            let dim = i64::try_from(len).map_err(|_| Error::Internal("a blob beyond 63 bits".to_string()))?;
            let mut tensor = owned(&proto::Tensor {
                dims: vec![dim],
                data_type: Some(dtype::UINT8),
                name: Some(name.clone()),
                ..Default::default()
            });
            tensor.append(self.data(*root, placement)?);
            out.field(5, tensor);
            // Before IR 4 every initializer of the main graph is an input too; a body's inputs are its node's.
            if is_old && id == GraphId(0) {
                out.field(11, owned(&value_info(name, dtype::UINT8, vec![dim])));
            }
        }
        for ((_, node), shape) in self.shapes.range((id, 0)..=(id, usize::MAX)) {
            let (name, rank) = (&graph.nodes[*node].outputs[0], shape.len() as i64);
            let tensor = proto::Tensor {
                dims: vec![rank],
                data_type: Some(dtype::INT64),
                name: Some(name.clone()),
                raw_data: Some(shape.iter().flat_map(|dim| dim.to_le_bytes()).collect()),
                ..Default::default()
            };
            out.field(5, owned(&tensor));
            if is_old && id == GraphId(0) {
                out.field(11, owned(&value_info(name, dtype::INT64, vec![rank])));
            }
        }
        Ok(out)
    }

    /// Appends the nodes that make a weight out of its form to `nodes`, under its own name; returns the tensors, as fields
    /// of the graph.
    fn fold(&mut self, weight: &Weight, how: Folded, is_old: bool, nodes: &mut Rope) -> Result<Rope> {
        let broken = || Error::Internal(format!("weight {:?} is in no form to be folded", weight.name));
        let (_, placement) = self.plan.place(weight.id)?;
        let len = match placement {
            Placement::External { len, .. } => *len,
            Placement::Inline(bytes) => bytes.len() as u64,
            Placement::InBase | Placement::SameAs(_) => 0,
        };
        let shape =
            weight.shape.iter().map(|&dim| i64::try_from(dim)).collect::<std::result::Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| broken())?;
        let (scales, elements) = fold::parts(len, fold::scales(how, &weight.shape)).ok_or_else(broken)?;
        let is_half = how == Folded::Half;
        let stored =
            self.names.fresh(&format!("{}.nz.{}", weight.name, if is_half { "half" } else { "levels" }));
        let mut tensors = vec![(
            stored.clone(),
            if is_half { dtype::FLOAT16 } else { dtype::INT8 },
            shape.clone(),
            elements,
        )];
        if is_half {
            nodes.append(nodes::cast_up(&mut self.names, &stored, &weight.name));
        } else {
            let scale = self.names.fresh(&format!("{}.nz.scale", weight.name));
            nodes.append(nodes::scaled(&mut self.names, &stored, &scale, &weight.name));
            // One for each index of the first dimension, or for all.
            let rows =
                (how == Folded::Rows).then(|| (0..shape.len()).map(|i| if i == 0 { shape[0] } else { 1 }));
            tensors.push((scale, dtype::FLOAT, rows.into_iter().flatten().collect(), scales));
        }
        let mut out = Rope::new();
        for (name, dtype, dims, part) in tensors {
            if is_old && weight.graph == GraphId(0) {
                out.field(11, owned(&value_info(&name, dtype, dims.clone())));
            }
            let fields =
                proto::Tensor { dims, data_type: Some(dtype), name: Some(name), ..Default::default() };
            let mut tensor = owned(&fields);
            tensor.append(self.part(weight.id, placement, part)?);
            out.field(5, tensor);
        }
        Ok(out)
    }

    /// The fields of a tensor that say that its data is a part of what is placed there.
    fn part(&self, id: WeightId, placement: &Placement, part: Range<u64>) -> Result<Rope> {
        let part = match placement {
            Placement::External { offset, .. } => {
                Placement::External { offset: offset + part.start, len: part.end - part.start }
            }
            Placement::Inline(bytes) => {
                Placement::Inline(bytes[part.start as usize..part.end as usize].to_vec())
            }
            same @ (Placement::SameAs(_) | Placement::InBase) => same.clone(),
        };
        self.data(id, &part)
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

    /// The tensor message of a kept weight whose data moves from one external file to another.
    fn moved(&self, weight: &Weight) -> Result<Rope> {
        let mut out = Rope::new();
        let mut scanner = Scanner::new(self.model.source());
        let mut at = weight.message.start;
        while let Some(field) = scanner.field(&mut at, weight.message.end)? {
            if !matches!(field.number, 9 | 13 | 14) {
                out.source(field.whole);
            }
        }
        let (root, placement) = self.plan.place(weight.id)?;
        out.append(self.data(root, placement)?);
        Ok(out)
    }

    /// The fields of a tensor that say where its data is.
    fn data(&self, root: WeightId, placement: &Placement) -> Result<Rope> {
        let mut out = Rope::new();
        let external = |location: &str, offset: u64, len: u64| {
            let entry = |key: &str, value: String| proto::StringStringEntry {
                key: Some(key.to_string()),
                value: Some(value),
            };
            owned(&proto::Tensor {
                external_data: vec![
                    entry("location", location.to_string()),
                    entry("offset", offset.to_string()),
                    entry("length", len.to_string()),
                ],
                data_location: Some(1),
                ..Default::default()
            })
        };
        match placement {
            Placement::External { offset, len } => {
                out.append(external(&self.plan.data_file_name, *offset, *len));
            }
            Placement::InBase => {
                let of_base = self.plan.base_of(root);
                let (base, blob) = of_base.ok_or_else(|| {
                    Error::Internal(format!("weight {} is said to be in a base that has it not", root.0))
                })?;
                out.append(external(&base.file, blob.offset, blob.len));
            }
            Placement::Inline(bytes) => {
                let mut raw = Rope::new();
                raw.inline(root, bytes);
                out.field(9, raw);
            }
            Placement::SameAs(_) => {}
        }
        Ok(out)
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

fn value_info(name: &str, elem_type: i32, dims: Vec<i64>) -> proto::ValueInfo {
    let dim = |dim: i64| proto::Dimension { dim_value: Some(dim), dim_param: None };
    let shape = proto::TensorShape { dim: dims.into_iter().map(dim).collect() };
    proto::ValueInfo {
        name: Some(name.to_string()),
        r#type: Some(proto::Type {
            tensor_type: Some(proto::TensorType { elem_type: Some(elem_type), shape: Some(shape) }),
        }),
    }
}
