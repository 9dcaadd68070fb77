//! A model: its graphs and where its weights lie.

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use prost::Message;

use super::error::{Error, Result};
use super::graph::{Graph, GraphId, Skeleton};
use super::parse::Parser;
use super::payload;
use super::proto;
use super::source::Source;
use super::tensor::{Weight, WeightId};
use super::wire::Scanner;

/// The operator domain of this project's ops.
pub const DOMAIN: &str = "nz";

/// An ONNX model in a file. Weights stay in the file until they are asked for.
#[derive(Debug)]
pub struct Model {
    source: Source,
    header: proto::ModelHeader,
    graph_field: Range<u64>,
    graphs: Vec<Graph>,
    weights: Vec<Weight>,
    stray_external: Option<String>,
    sha256: OnceLock<String>,
}

/// A compressed weight in a converted model.
#[derive(Clone, Debug)]
pub struct Blob {
    /// The `uint8` initializer that holds it.
    pub weight: WeightId,
    /// Name of the weight it was made of: the initializer's without `.nz` and what follows.
    pub name: String,
    /// Labels of the nodes that decode it.
    pub nodes: Vec<String>,
    /// The initializer that holds the blob that it is a delta to, if it is one.
    pub base: Option<WeightId>,
}

impl Model {
    /// Reads the structure of the model at `path`.
    pub fn open(path: &Path) -> Result<Model> {
        let source = Source::open(path)?;
        if source.len() == 0 {
            return Err(Error::corrupt(path, "not an ONNX model: the file is empty"));
        }
        let mut scanner = Scanner::new(&source);
        let mut leaf = Skeleton::new(1 << 30);
        let mut graph = None;
        let mut functions = Vec::new();
        let mut at = 0;
        while let Some(field) = scanner.field(&mut at, source.len())? {
            match (field.number, field.bytes()) {
                (1 | 2 | 3 | 8 | 14, _) => leaf.push(&mut scanner, &field)?,
                (7, Some(_)) if graph.is_some() => {
                    return Err(scanner.bad(field.whole.start, "the model has a second graph".to_string()));
                }
                (7, Some(body)) => graph = Some((field.whole.clone(), body.clone())),
                (25, Some(body)) => functions.push(body.clone()),
                _ => {}
            }
        }
        let header = proto::ModelHeader::decode(leaf.bytes())
            .map_err(|e| scanner.bad(0, format!("the model's header cannot be read: {e}")))?;
        let (Some((graph_field, body)), Some(_)) = (graph, header.ir_version) else {
            return Err(Error::corrupt(path, "not an ONNX model: it has no ir_version or no graph"));
        };
        let mut parser = Parser::new(scanner);
        parser.graph(body, None, 0)?;
        let (graphs, weights) = parser.take();
        for function in functions {
            parser.function(function)?;
        }
        let stray_external = parser.stray_external();
        Ok(Model { source, header, graph_field, graphs, weights, stray_external, sha256: OnceLock::new() })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// The model's file.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// SHA-256 of the model's file in lower-case hexadecimal; read through once, then remembered.
    pub fn sha256(&self) -> Result<&str> {
        if let Some(known) = self.sha256.get() {
            return Ok(known);
        }
        let hash = self.source.sha256()?;
        Ok(self.sha256.get_or_init(|| hash))
    }

    /// `ir_version`.
    pub fn ir_version(&self) -> i64 {
        self.header.ir_version()
    }

    /// Tool that wrote the model, if it says.
    pub fn producer(&self) -> &str {
        self.header.producer_name()
    }

    /// Version of the operator set `domain`, if the model imports it.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        self.header.opset_import.iter().find(|o| o.domain() == domain).map(|o| o.version())
    }

    /// The value of a `metadata_props` key; of the last one if there are more.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata_props.iter().rfind(|e| e.key() == key).map(|e| e.value())
    }

    /// Whether this project's ops are in it.
    pub fn is_converted(&self) -> bool {
        self.opset(DOMAIN).is_some()
    }

    /// The field that holds the main graph: tag, length and value.
    pub fn graph_field(&self) -> &Range<u64> {
        &self.graph_field
    }

    /// All graphs, the main graph first.
    pub fn graphs(&self) -> &[Graph] {
        &self.graphs
    }

    /// The graph of that number.
    pub fn graph(&self, id: GraphId) -> &Graph {
        &self.graphs[id.0]
    }

    /// All weights: initializers and `Constant` nodes of all graphs, of all dtypes.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// The weight of that number.
    pub fn weight(&self, id: WeightId) -> &Weight {
        &self.weights[id.0]
    }

    /// A tensor with external data that is neither initializer nor `Constant`, if there is one; such a
    /// model cannot be moved to other data files.
    pub fn stray_external(&self) -> Option<&str> {
        self.stray_external.as_deref()
    }

    /// The elements of `weight`: row-major, little-endian, in its dtype.
    pub fn read_weight(&self, weight: &Weight) -> Result<Vec<u8>> {
        payload::read(self, weight)
    }

    /// Writes the same bytes to `out` without loading them; `name` is what `out` is called in an error.
    /// For a tensor of a dtype that is never compressed it works only where the data is external or raw.
    pub fn copy_weight(&self, weight: &Weight, out: &mut dyn Write, name: &Path) -> Result<u64> {
        payload::copy(self, weight, out, name)
    }

    /// Checks that every external data file is there, is in the model's folder and is long enough.
    pub fn check_external_data(&self) -> Result<()> {
        self.weights
            .iter()
            .filter(|w| w.is_external())
            .try_for_each(|w| payload::open_external(self, w).map(drop))
    }

    /// The blobs of a converted model; empty for another.
    pub fn blobs(&self) -> Vec<Blob> {
        let mut blobs: Vec<Blob> = Vec::new();
        for graph in &self.graphs {
            for node in graph.nodes.iter().filter(|n| n.domain == DOMAIN) {
                let inputs: &[usize] = match node.op.as_str() {
                    "DecodeMatMul" | "DecodeGemm" | "DecodeDeltaMatMul" | "DecodeDeltaGemm" => &[1],
                    "DecodeLSTM" => &[1, 2],
                    _ => &[0],
                };
                let input = |at: usize| node.inputs.get(at).and_then(|name| self.find_weight(graph.id, name));
                for weight in inputs.iter().filter_map(|&at| input(at)) {
                    match blobs.iter_mut().find(|b| b.weight == weight) {
                        Some(blob) => blob.nodes.push(node.label()),
                        None => {
                            let name = &self.weight(weight).name;
                            let name =
                                name.rsplit_once(".nz").map_or(name.as_str(), |(stem, _)| stem).to_string();
                            let base = if node.op.starts_with("DecodeDelta") { input(2) } else { None };
                            blobs.push(Blob { weight, name, nodes: vec![node.label()], base });
                        }
                    }
                }
            }
        }
        blobs
    }

    fn find_weight(&self, from: GraphId, name: &str) -> Option<WeightId> {
        let mut graph = Some(from);
        while let Some(id) = graph {
            let here = self.weights.iter().find(|w| w.graph == id && w.name == name);
            if let Some(weight) = here {
                return Some(weight.id);
            }
            graph = self.graph(id).parent.map(|(parent, _)| parent);
        }
        None
    }
}
