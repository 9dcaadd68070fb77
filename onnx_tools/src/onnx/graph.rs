//! Graphs, nodes and values: their names in memory, their bytes as ranges of the file.
//!
//! A *skeleton* is a message without its large fields. It is what prost gets to decode; the ranges of the
//! large fields are kept beside it.

use std::ops::Range;

use prost::Message;

use super::error::Result;
use super::proto;
use super::tensor::WeightId;
use super::wire::{Field, Scanner};

/// Number of a graph in [`super::Model::graphs`]: 0 is the main graph, a body comes after the graph around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GraphId(pub usize);

/// A graph: the model's own or the body of an If, Loop or Scan.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Its number.
    pub id: GraphId,
    /// The graph whose node it is a body of, and that node's index.
    pub parent: Option<(GraphId, usize)>,
    /// Name, often empty.
    pub name: String,
    /// The `GraphProto` message, without tag and length.
    pub body: Range<u64>,
    /// Every field of the message in file order.
    pub fields: Vec<GraphField>,
    /// Nodes in file order.
    pub nodes: Vec<Node>,
    /// Initializers in file order.
    pub initializers: Vec<WeightId>,
    /// Names of the sparse initializers.
    pub sparse: Vec<String>,
    /// Graph inputs.
    pub inputs: Vec<ValueInfo>,
    /// Graph outputs.
    pub outputs: Vec<ValueInfo>,
    /// What the file says about other values.
    pub value_info: Vec<ValueInfo>,
}

/// A field of a `GraphProto`.
#[derive(Clone, Debug)]
pub struct GraphField {
    /// Tag, length and value.
    pub whole: Range<u64>,
    /// What it holds.
    pub part: Part,
}

/// What a field of a `GraphProto` holds; the number is an index in the graph's vector of that kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A node.
    Node(usize),
    /// An initializer.
    Initializer(usize),
    /// A graph input.
    Input(usize),
    /// A graph output.
    Output(usize),
    /// An entry of `value_info`.
    ValueInfo(usize),
    /// Anything else.
    Other,
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// The `NodeProto` message, without tag and length.
    pub body: Range<u64>,
    /// Name, often empty.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Operator set; empty for ONNX's own, also where the file says `ai.onnx`.
    pub domain: String,
    /// Values read; an empty name is an optional input left out.
    pub inputs: Vec<String>,
    /// Values made; an empty name is one left out.
    pub outputs: Vec<String>,
    /// Attributes.
    pub attributes: Vec<Attribute>,
}

/// An attribute of a node.
#[derive(Clone, Debug)]
pub struct Attribute {
    /// The field in its node: tag, length and value.
    pub whole: Range<u64>,
    /// The `AttributeProto` message, without tag and length.
    pub body: Range<u64>,
    /// Its numbers and strings.
    pub leaf: proto::Attribute,
    /// Graphs in it, and each one's field in the attribute.
    pub graphs: Vec<(GraphId, GraphSlot)>,
}

/// Where a graph lies in an attribute.
#[derive(Clone, Debug)]
pub struct GraphSlot {
    /// 6 for `g`, 11 for `graphs`.
    pub number: u32,
    /// Tag, length and value.
    pub whole: Range<u64>,
}

/// A graph input or output, or what is known about a value.
#[derive(Clone, Debug)]
pub struct ValueInfo {
    /// Name of the value.
    pub name: String,
    /// `TensorProto.DataType`, if it is a tensor and the file says.
    pub elem_type: Option<i32>,
    /// Dimensions if it is a tensor and the file says; `None` for a dimension that is not a number.
    pub shape: Option<Vec<Option<u64>>>,
}

impl Node {
    /// The attribute of that name.
    pub fn attribute(&self, name: &str) -> Option<&proto::Attribute> {
        self.attributes.iter().map(|a| &a.leaf).find(|leaf| leaf.name() == name)
    }

    /// An integer attribute, or `default` when it is absent.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).and_then(|a| a.i).unwrap_or(default)
    }

    /// A float attribute, or `default` when it is absent.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.attribute(name).and_then(|a| a.f).unwrap_or(default)
    }

    /// The name, or what else tells the node: "MatMul of output \"y\"".
    pub fn label(&self) -> String {
        match (self.name.is_empty(), self.outputs.first()) {
            (false, _) => self.name.clone(),
            (true, Some(output)) => format!("{} of output {output:?}", self.op),
            (true, None) => self.op.clone(),
        }
    }
}

/// The bytes of a message's small fields.
pub(crate) struct Skeleton {
    bytes: Vec<u8>,
    limit: usize,
}

impl Skeleton {
    /// At most `limit` bytes: more is not a model that anyone made on purpose.
    pub(crate) fn new(limit: usize) -> Self {
        Skeleton { bytes: Vec::new(), limit }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn fits(&self, field: &Field) -> bool {
        let len = field.whole.end - field.whole.start;
        (self.limit - self.bytes.len()) as u64 >= len
    }

    pub(crate) fn push(&mut self, scanner: &mut Scanner<'_>, field: &Field) -> Result<()> {
        if !self.fits(field) {
            let what =
                format!("field {} makes its message's names longer than {} bytes", field.number, self.limit);
            return Err(scanner.bad(field.whole.start, what));
        }
        scanner.append(&field.whole, &mut self.bytes)
    }
}

/// Reads the `ValueInfoProto` in `message`.
pub(crate) fn value_info(scanner: &mut Scanner<'_>, message: &Range<u64>) -> Result<ValueInfo> {
    let mut leaf = Skeleton::new(1 << 20);
    let mut at = message.start;
    while let Some(field) = scanner.field(&mut at, message.end)? {
        if matches!(field.number, 1 | 2) {
            leaf.push(scanner, &field)?;
        }
    }
    let info = proto::ValueInfo::decode(leaf.bytes())
        .map_err(|e| scanner.bad(message.start, format!("a value's type cannot be read: {e}")))?;
    let tensor = info.r#type.and_then(|t| t.tensor_type);
    let shape = tensor
        .as_ref()
        .and_then(|t| t.shape.as_ref())
        .map(|shape| shape.dim.iter().map(|d| d.dim_value.and_then(|v| u64::try_from(v).ok())).collect());
    Ok(ValueInfo { name: info.name.unwrap_or_default(), elem_type: tensor.and_then(|t| t.elem_type), shape })
}
