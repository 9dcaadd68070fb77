//! What happens to each weight, and why.

use std::collections::{BTreeMap, BTreeSet};

use nz_onnx::format::{Dtype, GATHER_BLOCK, MAX_BLOCK, MAX_RANK, TensorSpec};

use super::carried::{self, Carried};
use super::constness::Variables;
use super::costly;
use super::normalise::{NCHWC, has_nchwc};
use super::ops;
use super::rules::Rules;
use crate::onnx::proto::dtype;
use crate::onnx::scope::{Definition, Reader, Scope};
use crate::onnx::{Error, GraphId, Model, Node, Origin, Result, Storage, Weight, payload};

/// The most Identity, Cast and Transpose nodes of one weight that are looked through.
const MAX_ALIASES: usize = 256;
/// The first operator set whose Cast and Mul are those that [`super::fold`] needs.
const FOLD_OPSET: i64 = 7;

/// What happens to a weight.
#[derive(Clone, Debug)]
pub enum Decision {
    /// It stays as it is.
    Keep {
        /// Why, in plain words.
        reason: String,
    },
    /// It stays a constant, which may be stored in one of the forms of [`super::fold`].
    Fold {
        /// Why it is no blob, in plain words.
        reason: String,
    },
    /// It becomes a blob, and every node that reads it is rewritten.
    Compress(Compression),
}

/// Why a weight is no blob.
enum Refusal {
    /// It is to stay as it is.
    Keep(String),
    /// What reads it wants a constant.
    Constant(String),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Refusal::Keep(reason)
    }
}

/// How a weight is compressed and what reads it then.
#[derive(Clone, Debug)]
pub struct Compression {
    /// Dtype, shape and layout of the blob.
    pub spec: TensorSpec,
    /// Weights a block.
    pub block_len: u32,
    /// Every reader.
    pub uses: Vec<Use>,
    /// Identity, Cast and Transpose nodes of the weight that are no longer needed.
    pub dropped: Vec<(GraphId, usize)>,
    /// Variables of loops that hold the weight and are no longer needed: bodies read the blob.
    pub carried: Vec<Carried>,
    /// Shape nodes of the weight, and what they give.
    pub shapes: Vec<((GraphId, usize), Vec<i64>)>,
}

/// One reader of a weight and how it is rewritten.
#[derive(Clone, Debug)]
pub struct Use {
    /// The node and its input.
    pub reader: Reader,
    /// Element type that the node reads: the weight's, or float32 behind a Cast.
    pub dtype: Dtype,
    /// Whether the node reads the transposed weight.
    pub transposed: bool,
    /// The DequantizeLinear node between the weight and the reader: it goes to the reader with the weight.
    pub dequantize: Option<(GraphId, usize)>,
    /// The op that decodes it.
    pub kind: UseKind,
}

/// The op that decodes a weight for one reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UseKind {
    /// `nz.DecodeMatMul` in place of the node.
    MatMul {
        /// The blob holds `[N, K]`.
        trans_b: bool,
    },
    /// `nz.DecodeGemm` in place of the node.
    Gemm {
        /// The blob holds `[N, K]`.
        trans_b: bool,
    },
    /// `nz.DecodeGather` in place of the node.
    Gather,
    /// `nz.DecodeLSTM` in place of the node if both of its weights are compressed, else `nz.Decode` before it.
    Lstm {
        /// As in [`UseKind::Decode`].
        after: String,
    },
    /// `nz.Decode` before the node.
    Decode {
        /// The activation that it waits for, an input of the node.
        after: String,
    },
}

impl UseKind {
    /// The op's name, with its domain.
    pub fn op(&self) -> &'static str {
        match self {
            UseKind::MatMul { .. } => "nz.DecodeMatMul",
            UseKind::Gemm { .. } => "nz.DecodeGemm",
            UseKind::Gather => "nz.DecodeGather",
            UseKind::Lstm { .. } => "nz.DecodeLSTM",
            UseKind::Decode { .. } => "nz.Decode",
        }
    }
}

/// Decides for every weight of `model`, in the order of [`Model::weights`]. Fails where the model cannot be
/// converted at all: converted already, or external data missing or out of place.
pub fn decide(model: &Model, rules: &Rules) -> Result<Vec<Decision>> {
    if model.is_converted() {
        return Err(Error::unsupported(
            model.path(),
            "already converted; convert the original, or get it back with `nz-onnx restore`",
        ));
    }
    if let Some(tensor) = model.stray_external() {
        return Err(Error::unsupported(
            model.path(),
            format!(
                "tensor {tensor:?} has external data but is neither an initializer nor a Constant; \
                 save the model with that tensor inside"
            ),
        ));
    }
    model.check_external_data()?;
    let scope = Scope::new(model);
    let carried = carried::all(model, &scope);
    let variables = Variables::new(model, &scope, &carried);
    let decider = Decider { model, rules, scope, carried, variables };
    let mut decisions: Vec<Decision> =
        model.weights().iter().map(|weight| decider.weight(weight)).collect::<Result<_>>()?;
    // Whoever names weights wants those.
    if !rules.names_weights() {
        costly::keep_costly(model, &decider.scope, &mut decisions, |weight| decider.may_fold(weight));
    }
    Ok(decisions)
}

struct Decider<'a> {
    model: &'a Model,
    rules: &'a Rules,
    scope: Scope<'a>,
    /// Variables that loops hand on as they are, by who gives them their initial value.
    carried: BTreeMap<Reader, Carried>,
    variables: Variables<'a>,
}

/// What a weight looks like at the end of a chain of Identity, Cast and Transpose nodes.
#[derive(Clone, Copy)]
struct View {
    dtype: Dtype,
    transposed: bool,
    /// The DequantizeLinear that it has been through.
    dequantize: Option<(GraphId, usize)>,
}

#[derive(Default)]
struct Found {
    uses: Vec<Use>,
    dropped: BTreeSet<(GraphId, usize)>,
    carried: Vec<Carried>,
    shapes: Vec<((GraphId, usize), Vec<i64>)>,
}

impl<'a> Decider<'a> {
    fn weight(&self, weight: &'a Weight) -> Result<Decision> {
        let keep = |reason: String| Ok(Decision::Keep { reason });
        let Some(dtype) = weight.dtype() else {
            return keep(format!("{}, not a float16, bfloat16 or float32", weight.dtype_name()));
        };
        if dtype.is_integer() && !self.rules.integers() {
            return keep(format!("{}, not a float16, bfloat16 or float32", dtype.name()));
        }
        if let Some(reason) = self.fixed(weight) {
            return keep(reason);
        }
        let mut found = Found::default();
        let view = View { dtype, transposed: false, dequantize: None };
        match self.readers(weight, weight.graph, &weight.name, view, &mut found) {
            Ok(()) => {}
            Err(Refusal::Constant(reason))
                if self.may_fold(weight) && payload::is_canonical(self.model, weight)? =>
            {
                return Ok(Decision::Fold { reason });
            }
            Err(Refusal::Keep(reason) | Refusal::Constant(reason)) => return keep(reason),
        }
        if found.uses.is_empty() {
            return keep("nothing reads it".to_string());
        }
        if !payload::is_canonical(self.model, weight)? {
            return keep("stored in a form that could not be restored byte for byte".to_string());
        }
        Ok(Decision::Compress(self.lay_out(weight, dtype, found)))
    }

    /// The reasons that do not depend on who reads the weight.
    fn fixed(&self, weight: &Weight) -> Option<String> {
        let graph = self.model.graph(weight.graph);
        if let Some(reason) = self.rules.refuses(&weight.name) {
            return Some(reason.to_string());
        }
        if weight.elements == 0 {
            return Some("no elements".to_string());
        }
        if weight.bytes < self.rules.min_size() {
            return Some(format!("smaller than {} bytes", self.rules.min_size()));
        }
        if weight.shape.len() > MAX_RANK {
            return Some(format!("{} dimensions, more than {MAX_RANK}", weight.shape.len()));
        }
        if weight.storage == Storage::Other {
            return Some("its data is in several pieces or in fields not meant for its dtype".to_string());
        }
        if self.scope.resolve(weight.graph, &weight.name)
            != Some((weight.graph, Definition::Weight(weight.id)))
        {
            return Some("its name means another value too".to_string());
        }
        let is_default = self.model.ir_version() >= 4
            && matches!(weight.origin, Origin::Initializer { .. })
            && graph.inputs.iter().any(|input| input.name == weight.name);
        if is_default {
            return Some("a default that the caller may replace (also a graph input)".to_string());
        }
        self.scope.is_output(weight.graph, &weight.name).then(|| "a graph output".to_string())
    }

    /// Whether nodes may make a float32 weight whose readers all take a variable: should ONNX Runtime not fold them, the
    /// model runs all the same. A model laid out in channel blocks is to be loaded without more optimisation.
    fn may_fold(&self, weight: &Weight) -> bool {
        let takes = |reader: &Reader| {
            let node = &self.model.graph(reader.graph).nodes[reader.node];
            ops::accepts_variable(&node.domain, &node.op, reader.input) == Some(true)
        };
        weight.dtype() == Some(Dtype::F32)
            && self.model.opset("").is_some_and(|version| version >= FOLD_OPSET)
            && !has_nchwc(self.model)
            && self.scope.readers(weight.graph, &weight.name).iter().all(takes)
    }

    /// Collects the readers of the value `name` of `graph`, which is `weight` seen as `view`. An error is the
    /// reason to keep the weight.
    fn readers(
        &self,
        weight: &'a Weight,
        graph: GraphId,
        name: &'a str,
        view: View,
        found: &mut Found,
    ) -> std::result::Result<(), Refusal> {
        for &reader in self.scope.readers(graph, name) {
            let node = &self.model.graph(reader.graph).nodes[reader.node];
            if self.rules.refuses_node(&node.name) {
                return Err(format!("excluded by --exclude-nodes: read by node {:?}", node.name).into());
            }
            if let Some(&carried) = self.carried.get(&reader) {
                self.carried(weight, carried, view, found)?;
                continue;
            }
            if let Some(shape) = self.shape(weight, node, reader, view) {
                found.shapes.push(((reader.graph, reader.node), shape));
                continue;
            }
            let is_output = |output: &'a str| {
                let ends = |carried: &Carried| {
                    carried.body == reader.graph && carried.end(self.model) == Some(output)
                };
                self.scope.is_output(reader.graph, output) && !found.carried.iter().any(ends)
            };
            match alias(node, reader, weight, view) {
                Some((output, view)) if !is_output(output) => {
                    // A name given twice could make a ring, a hostile chain could be longer than the stack.
                    let is_new = found.dropped.insert((reader.graph, reader.node));
                    if !is_new || found.dropped.len() > MAX_ALIASES {
                        return Err(format!(
                            "read through a ring or over {MAX_ALIASES} Identity or Cast nodes"
                        )
                        .into());
                    }
                    self.readers(weight, reader.graph, output, view, found)?;
                }
                Some((output, _)) => {
                    return Err(format!("{} of it is graph output {output:?}", node.op).into());
                }
                None => found.uses.push(self.reader(weight, node, reader, view)?),
            }
        }
        Ok(())
    }

    /// Collects the readers of a loop's variable that is always the weight: in the loop and behind it.
    fn carried(
        &self,
        weight: &'a Weight,
        carried: Carried,
        view: View,
        found: &mut Found,
    ) -> std::result::Result<(), Refusal> {
        found.carried.push(carried);
        if let Some(start) = carried.start(self.model) {
            self.readers(weight, carried.body, start, view, found)?;
        }
        match carried.last(self.model) {
            Some((graph, last)) if self.scope.is_output(graph, last) => {
                Err(format!("a loop hands it on as graph output {last:?}").into())
            }
            Some((graph, last)) => self.readers(weight, graph, last, view, found),
            None => Ok(()),
        }
    }

    /// What a Shape node gives for the weight, if it is one.
    fn shape(&self, weight: &Weight, node: &'a Node, reader: Reader, view: View) -> Option<Vec<i64>> {
        let output = node.outputs.first().filter(|o| !o.is_empty())?;
        let is_shape = node.op == "Shape" && node.domain.is_empty() && view.dequantize.is_none();
        if !is_shape || self.scope.is_output(reader.graph, output) {
            return None;
        }
        let mut shape: Vec<i64> =
            weight.shape.iter().map(|&d| i64::try_from(d)).collect::<std::result::Result<_, _>>().ok()?;
        if view.transposed {
            shape.reverse();
        }
        // Opset 15: from `start` to `end`, both counted from the end if negative.
        let rank = shape.len() as i64;
        let at = |i: i64| (if i < 0 { i + rank } else { i }).clamp(0, rank) as usize;
        let (start, end) = (at(node.int("start", 0)), at(node.int("end", rank)));
        Some(shape.get(start..end).map(<[i64]>::to_vec).unwrap_or_default())
    }

    fn reader(
        &self,
        weight: &Weight,
        node: &'a Node,
        reader: Reader,
        view: View,
    ) -> std::result::Result<Use, Refusal> {
        let label = node.label();
        match ops::accepts_variable(&node.domain, &node.op, reader.input) {
            Some(true) => {}
            Some(false) => {
                return Err(format!(
                    "{} needs input {} to be a constant (node {label:?})",
                    node.op, reader.input
                )
                .into());
            }
            None => {
                let domain = if node.domain.is_empty() { "" } else { &format!("{}.", node.domain) };
                return Err(format!(
                    "read by {domain}{}, which is not known to work without constants (node {label:?})",
                    node.op
                )
                .into());
            }
        }
        if is_depthwise(node, reader.input, &weight.shape) {
            return Err(Refusal::Constant(format!(
                "weight of a depthwise convolution, which would be much slower (node {label:?})"
            )));
        }
        let variable = |input: usize| {
            let name = node.inputs.get(input)?;
            self.variables.has(&self.scope, reader.graph, name).then_some(name)
        };
        let Some(after) = (0..node.inputs.len()).find_map(variable) else {
            return Err(
                format!("read together with constants only, ONNX Runtime folds it (node {label:?})").into()
            );
        };
        let trans_b = |own: bool| own != view.transposed;
        let is_matrix = weight.shape.len() == 2 && !view.dtype.is_integer();
        let decode = UseKind::Decode { after: after.clone() };
        let kind = match (node.domain.as_str(), node.op.as_str(), reader.input) {
            ("", "MatMul", 1) if is_matrix => UseKind::MatMul { trans_b: trans_b(false) },
            ("com.microsoft", "FusedMatMul" | "TransposeMatMul", 1) if is_matrix && is_plain(node) => {
                UseKind::MatMul { trans_b: trans_b(node.int("transB", 0) != 0) }
            }
            ("", "Gemm", 1) if is_matrix && variable(0).is_some() => {
                UseKind::Gemm { trans_b: trans_b(node.int("transB", 0) != 0) }
            }
            ("", "Gather", 0) if weight.shape.len() >= 2 && !view.transposed => {
                let axis = node.int("axis", 0);
                if axis == 0 || axis == -(weight.shape.len() as i64) { UseKind::Gather } else { decode }
            }
            ("", "LSTM", 1 | 2) if view.dtype == Dtype::F32 && is_usual_lstm(node) => {
                UseKind::Lstm { after: after.clone() }
            }
            _ => decode,
        };
        let kind = if view.dequantize.is_some() { UseKind::Decode { after: after.clone() } } else { kind };
        let View { dtype, transposed, dequantize } = view;
        Ok(Use { reader, dtype, transposed, dequantize, kind })
    }

    /// Picks the layout. A blob has one: rows win where anything needs rows, and a reader that needs columns
    /// then gets the whole weight decoded. `nz.Decode` takes either.
    fn lay_out(&self, weight: &Weight, dtype: Dtype, mut found: Found) -> Compression {
        use UseKind::{Gather, Gemm, MatMul};
        let by_columns = |u: &Use| matches!(u.kind, MatMul { trans_b: false } | Gemm { trans_b: false });
        let by_rows = |u: &Use| matches!(u.kind, MatMul { trans_b: true } | Gemm { trans_b: true } | Gather);
        let columns = found.uses.iter().any(by_columns) && !found.uses.iter().any(by_rows);
        let spec = match weight.shape[..] {
            [k, n] if columns => TensorSpec::columns(dtype, k, n),
            _ => {
                for u in found.uses.iter_mut().filter(|u| by_columns(u)) {
                    let after = self.model.graph(u.reader.graph).nodes[u.reader.node].inputs[0].clone();
                    u.kind = UseKind::Decode { after };
                }
                TensorSpec::row_major(dtype, &weight.shape)
            }
        };
        // A product reads all of the weight, and that twice as fast in long blocks.
        let gathered = found.uses.iter().all(|u| u.kind == UseKind::Gather);
        let block_len = if gathered { GATHER_BLOCK } else { MAX_BLOCK };
        Compression {
            spec,
            block_len,
            uses: found.uses,
            dropped: found.dropped.into_iter().collect(),
            carried: found.carried,
            shapes: found.shapes,
        }
    }
}

/// If `node` only renames, converts to float32, transposes or dequantises a weight: its output and what that looks like.
fn alias<'n>(node: &'n Node, reader: Reader, weight: &Weight, view: View) -> Option<(&'n str, View)> {
    if !node.domain.is_empty() || reader.input != 0 || view.dequantize.is_some() {
        return None;
    }
    let is_integer = view.dtype.is_integer();
    let view = match node.op.as_str() {
        "Identity" => view,
        "DequantizeLinear" if is_integer => View { dequantize: Some((reader.graph, reader.node)), ..view },
        _ if is_integer => return None,
        "Cast" if node.int("to", 0) == i64::from(dtype::FLOAT) => View { dtype: Dtype::F32, ..view },
        "Transpose" if weight.shape.len() == 2 => match node.attribute("perm").map(|a| a.ints.as_slice()) {
            None | Some([1, 0]) => View { transposed: !view.transposed, ..view },
            _ => return None,
        },
        _ => return None,
    };
    Some((node.outputs.first().filter(|o| !o.is_empty())?, view))
}

/// A convolution with one input channel a group and more than one group. In channel blocks such a one has the same
/// kernel whether its weight is a constant or not.
fn is_depthwise(node: &Node, input: usize, shape: &[u64]) -> bool {
    let group = node.int("group", 1);
    let channels = match node.op.as_str() {
        "Conv" | "FusedConv" => shape.get(1).map(|&c| c == 1),
        "ConvTranspose" => shape.first().map(|&c| i64::try_from(c) == Ok(group)),
        _ => None,
    };
    input == 1 && group > 1 && channels == Some(true) && node.domain != NCHWC
}

/// An LSTM as nearly all are: the default activations, all sequences of one length, no peepholes. What it leaves out of
/// bias and states must come last: ONNX Runtime 1.17 and 1.20 crash on a custom op with a gap among its inputs.
fn is_usual_lstm(node: &Node) -> bool {
    const DEFAULT: [&[u8]; 3] = [b"sigmoid", b"tanh", b"tanh"];
    let absent = |input: usize| node.inputs.get(input).is_none_or(String::is_empty);
    let activations = node.attribute("activations").map(|a| a.strings.as_slice()).unwrap_or_default();
    absent(4)
        && absent(7)
        && [3, 5, 6].map(absent).is_sorted()
        && activations.iter().zip(DEFAULT.iter().cycle()).all(|(a, b)| a.eq_ignore_ascii_case(b))
        && ["clip", "activation_alpha", "activation_beta"].iter().all(|name| node.attribute(name).is_none())
        && ["input_forget", "layout"].iter().all(|name| node.int(name, 0) == 0)
}

/// A FusedMatMul that is a MatMul but for `transB`.
fn is_plain(node: &Node) -> bool {
    node.float("alpha", 1.0) == 1.0
        && ["transA", "transBatchA", "transBatchB"].iter().all(|name| node.int(name, 0) == 0)
}
