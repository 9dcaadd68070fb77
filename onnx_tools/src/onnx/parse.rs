//! From wire fields to graphs, nodes and weights.

use std::ops::Range;

use prost::Message;

use super::error::Result;
use super::graph::{Attribute, Graph, GraphField, GraphId, GraphSlot, Node, Part, Skeleton, value_info};
use super::proto;
use super::tensor::{self, FoundTensor, Origin, Weight, WeightId};
use super::wire::{Field, MAX_DEPTH, Scanner};

/// Walks `GraphProto` messages and collects what it finds.
pub(crate) struct Parser<'a> {
    scanner: Scanner<'a>,
    graphs: Vec<Graph>,
    weights: Vec<Weight>,
    stray_external: Option<String>,
}

impl<'a> Parser<'a> {
    pub(crate) fn new(scanner: Scanner<'a>) -> Self {
        Parser { scanner, graphs: Vec::new(), weights: Vec::new(), stray_external: None }
    }

    /// The graphs and weights found so far.
    pub(crate) fn take(&mut self) -> (Vec<Graph>, Vec<Weight>) {
        (std::mem::take(&mut self.graphs), std::mem::take(&mut self.weights))
    }

    /// A tensor with external data in a place where it cannot be followed.
    pub(crate) fn stray_external(self) -> Option<String> {
        self.stray_external
    }

    /// Reads the graph in `body`, which is at `depth` messages below the model.
    pub(crate) fn graph(
        &mut self,
        body: Range<u64>,
        parent: Option<(GraphId, usize)>,
        depth: usize,
    ) -> Result<GraphId> {
        if depth > MAX_DEPTH {
            return Err(self
                .scanner
                .bad(body.start, format!("graphs nest deeper than {MAX_DEPTH} messages")));
        }
        let id = GraphId(self.graphs.len());
        let mut graph = Graph {
            id,
            parent,
            name: String::new(),
            body: body.clone(),
            fields: Vec::new(),
            nodes: Vec::new(),
            initializers: Vec::new(),
            sparse: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            value_info: Vec::new(),
        };
        // Bodies found on the way get the numbers behind this one.
        self.graphs.push(graph.clone());
        let mut at = body.start;
        while let Some(field) = self.scanner.field(&mut at, body.end)? {
            let part = match (field.number, field.bytes().cloned()) {
                (1, Some(message)) => {
                    let index = graph.nodes.len();
                    let node = self.node(message, Some((id, index)), depth + 1)?;
                    graph.nodes.push(node);
                    Part::Node(index)
                }
                (5, Some(message)) => {
                    let index = graph.initializers.len();
                    let found = tensor::scan(&mut self.scanner, message)?;
                    let name = found.name.clone();
                    graph.initializers.push(self.weight(found, name, id, Origin::Initializer { index }));
                    Part::Initializer(index)
                }
                (11, Some(message)) => {
                    graph.inputs.push(value_info(&mut self.scanner, &message)?);
                    Part::Input(graph.inputs.len() - 1)
                }
                (12, Some(message)) => {
                    graph.outputs.push(value_info(&mut self.scanner, &message)?);
                    Part::Output(graph.outputs.len() - 1)
                }
                (13, Some(message)) => {
                    graph.value_info.push(value_info(&mut self.scanner, &message)?);
                    Part::ValueInfo(graph.value_info.len() - 1)
                }
                (2, Some(message)) => {
                    graph.name = self.string(&message, &field)?;
                    Part::Other
                }
                (15, Some(message)) => {
                    graph.sparse.push(self.sparse(message)?);
                    Part::Other
                }
                _ => Part::Other,
            };
            graph.fields.push(GraphField { whole: field.whole, part });
        }
        self.graphs[id.0] = graph;
        Ok(id)
    }

    /// Looks through a model-local function for external data; functions are otherwise left alone.
    pub(crate) fn function(&mut self, body: Range<u64>) -> Result<()> {
        let mut at = body.start;
        while let Some(field) = self.scanner.field(&mut at, body.end)? {
            if let (7, Some(message)) = (field.number, field.bytes().cloned()) {
                self.node(message, None, 1)?;
            }
        }
        let (_, weights) = self.take();
        for weight in weights.iter().filter(|w| w.is_external()) {
            self.stray_external.get_or_insert_with(|| weight.name.clone());
        }
        Ok(())
    }

    /// Reads a node; `place` is its graph and index, or `None` in a function.
    fn node(&mut self, body: Range<u64>, place: Option<(GraphId, usize)>, depth: usize) -> Result<Node> {
        let mut leaf = Skeleton::new(16 << 20);
        let mut fields = Vec::new();
        let mut at = body.start;
        while let Some(field) = self.scanner.field(&mut at, body.end)? {
            match field.number {
                1..=4 | 7 => leaf.push(&mut self.scanner, &field)?,
                5 => fields.push(field),
                _ => {}
            }
        }
        let node = proto::Node::decode(leaf.bytes())
            .map_err(|e| self.scanner.bad(body.start, format!("a node cannot be read: {e}")))?;
        let domain = node.domain.unwrap_or_default();
        let mut node = Node {
            body,
            name: node.name.unwrap_or_default(),
            op: node.op_type.unwrap_or_default(),
            domain: if domain == "ai.onnx" { String::new() } else { domain },
            inputs: node.input,
            outputs: node.output,
            attributes: Vec::with_capacity(fields.len()),
        };
        for field in fields {
            let attribute = self.attribute(field, &node, place, depth + 1)?;
            node.attributes.push(attribute);
        }
        Ok(node)
    }

    fn attribute(
        &mut self,
        field: Field,
        node: &Node,
        place: Option<(GraphId, usize)>,
        depth: usize,
    ) -> Result<Attribute> {
        let Some(body) = field.bytes().cloned() else {
            return Err(self.scanner.bad(field.whole.start, "an attribute is not a message".to_string()));
        };
        let mut leaf = Skeleton::new(1 << 20);
        let mut graphs = Vec::new();
        let mut tensors = Vec::new();
        let mut single = 0;
        let mut at = body.start;
        while let Some(inner) = self.scanner.field(&mut at, body.end)? {
            match (inner.number, inner.bytes().cloned()) {
                (1 | 2 | 3 | 20 | 21, _) => leaf.push(&mut self.scanner, &inner)?,
                // Values as long as this (tree ensembles) are not the permutations, axes and names read here.
                (4 | 8 | 9, _) if leaf.bytes().len() < 64 << 10 && leaf.fits(&inner) => {
                    leaf.push(&mut self.scanner, &inner)?;
                }
                (number @ (5 | 10), Some(message)) => {
                    single += usize::from(number == 5);
                    tensors.push(tensor::scan(&mut self.scanner, message)?);
                }
                (number @ (6 | 11), Some(message)) => {
                    single += usize::from(number == 6);
                    let id = self.graph(message, place, depth + 1)?;
                    graphs.push((id, GraphSlot { number, whole: inner.whole }));
                }
                (22 | 23, Some(message)) => drop(self.sparse(message)?),
                _ => {}
            }
        }
        if single > 1 {
            return Err(self.scanner.bad(field.whole.start, "an attribute has two values".to_string()));
        }
        let leaf = proto::Attribute::decode(leaf.bytes())
            .map_err(|e| self.scanner.bad(body.start, format!("an attribute cannot be read: {e}")))?;
        let is_constant = node.domain.is_empty() && node.op == "Constant" && leaf.name() == "value";
        match (place, node.outputs.first()) {
            (Some((graph, index)), Some(output)) if is_constant && tensors.len() == 1 => {
                for found in tensors {
                    self.weight(found, output.clone(), graph, Origin::Constant { node: index });
                }
            }
            _ => tensors.iter().for_each(|found| self.note_external(found)),
        }
        Ok(Attribute { whole: field.whole, body, leaf, graphs })
    }

    fn weight(&mut self, found: FoundTensor, name: String, graph: GraphId, origin: Origin) -> WeightId {
        let id = WeightId(self.weights.len());
        self.weights.push(Weight {
            id,
            name,
            graph,
            origin,
            onnx_dtype: found.onnx_dtype,
            shape: found.shape,
            elements: found.elements,
            bytes: found.bytes,
            storage: found.storage,
            message: found.message,
        });
        id
    }

    /// Name of the sparse tensor in `message`.
    fn sparse(&mut self, message: Range<u64>) -> Result<String> {
        let mut name = String::new();
        let mut at = message.start;
        while let Some(field) = self.scanner.field(&mut at, message.end)? {
            if let (number @ (1 | 2), Some(inner)) = (field.number, field.bytes().cloned()) {
                let found = tensor::scan(&mut self.scanner, inner)?;
                self.note_external(&found);
                if number == 1 {
                    name = found.name;
                }
            }
        }
        Ok(name)
    }

    fn note_external(&mut self, found: &FoundTensor) {
        if matches!(found.storage, tensor::Storage::External { .. }) {
            self.stray_external.get_or_insert_with(|| found.name.clone());
        }
    }

    fn string(&mut self, range: &Range<u64>, field: &Field) -> Result<String> {
        let mut bytes = Vec::new();
        if range.end - range.start > 1 << 20 {
            return Err(self.scanner.bad(field.whole.start, "a name is longer than 1 MiB".to_string()));
        }
        self.scanner.append(range, &mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.scanner.bad(range.start, "a name is not UTF-8".to_string()))
    }
}
