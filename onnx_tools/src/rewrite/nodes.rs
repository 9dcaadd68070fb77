//! The nodes around a compressed weight.

use nz_onnx::format::Dtype;
use prost::Message;

use super::decide::{Use, UseKind};
use super::names::Names;
use super::rope::Rope;
use crate::onnx::proto::{self, attribute_type, dtype};
use crate::onnx::wire::Scanner;
use crate::onnx::{DOMAIN, Error, Model, Node, Result, Weight};

/// Field `node` of a graph.
const NODE: u32 = 1;

/// ONNX Runtime gives this prefix to the casts that it puts around float16 nodes where it computes in float32
/// all the same, and takes a pair of them out again. Ours, behind decoded float16 weights, are of the same kind:
/// with the prefix they vanish in the same way, and weights are decoded to what is computed in.
const CAST_PREFIX: &str = "InsertedPrecisionFreeCast_";

/// The op of the first node of a converted model. It does nothing; without the library it is what ONNX Runtime
/// names as not registered.
const NOTICE: &str = "register_libnz_onnx_so_before_loading_this_model";

/// The node that says what a converted model needs: the library, channel blocks of a size, if any are in it, and what all
/// blobs take with each layer, if that is known.
pub(crate) fn notice(names: &mut Names, nchwc_block: Option<u32>, depth_bytes: Vec<i64>) -> Rope {
    let mut body = Rope::new();
    let node = proto::Node {
        output: vec![names.fresh("nz.notice")],
        op_type: Some(NOTICE.to_string()),
        domain: Some(DOMAIN.to_string()),
        attribute: nchwc_block
            .map(|size| int("nchwc_block", i64::from(size)))
            .into_iter()
            .chain(depths(DEPTH_BYTES, depth_bytes))
            .collect(),
        ..Default::default()
    };
    body.owned(&node.encode_to_vec());
    body
}

/// The attribute that says what all blobs take at each depth of a node's.
const DEPTH_BYTES: &str = "depth_bytes";
/// The same for the second blob of a node.
const SECOND_DEPTH_BYTES: &str = "R_depth_bytes";

/// How one node is rewritten: by a fused op, or by `nz.Decode` before it.
#[derive(Debug, Default)]
pub(crate) struct Rewrite<'a> {
    readings: Vec<Reading<'a>>,
}

impl<'a> Rewrite<'a> {
    /// One more weight that the node reads.
    pub fn add(&mut self, reading: Reading<'a>) {
        self.readings.push(reading);
    }

    /// The weights that the op in place of the node takes, in the order of its inputs, and those that are decoded
    /// before it.
    fn split(&self) -> (Vec<&Reading<'a>>, Vec<&Reading<'a>>) {
        let (mut fused, mut decoded): (Vec<_>, Vec<_>) =
            self.readings.iter().partition(|r| !matches!(r.usage.kind, UseKind::Decode { .. }));
        // An LSTM has two weights, and its op takes no other.
        if fused.len() == 1 && matches!(fused[0].usage.kind, UseKind::Lstm { .. }) {
            decoded.append(&mut fused);
        }
        fused.sort_by_key(|r| r.usage.reader.input);
        (fused, decoded)
    }
}

/// A use of a weight and the name of its blob where it is read.
#[derive(Clone, Debug)]
pub(crate) struct Reading<'a> {
    pub weight: &'a Weight,
    pub usage: &'a Use,
    pub blob: String,
    pub base: Option<ReadingBase>,
    /// What all blobs take at each depth of this one: [`super::DepthBytes::of`].
    pub depth_bytes: Vec<i64>,
}

/// The base's blob that a weight is, or that its blob is a delta to.
#[derive(Clone, Debug)]
pub(crate) struct ReadingBase {
    /// Its file.
    pub file: String,
    /// What tells it from any other.
    pub hash: u64,
    /// Its name where the weight is read, if the weight's blob is a delta.
    pub delta: Option<String>,
}

impl Reading<'_> {
    /// The name of the base's blob, if the weight's is a delta to it.
    fn delta(&self) -> Option<&String> {
        self.base.as_ref()?.delta.as_ref()
    }

    /// What comes behind "Decode" in the name of the op.
    fn infix(&self) -> &'static str {
        if self.delta().is_some() { "Delta" } else { "" }
    }

    /// What the node says of the weight.
    fn attributes(&self) -> Vec<proto::Attribute> {
        let depths = depths(DEPTH_BYTES, self.depth_bytes.clone());
        std::iter::once(shape(self.weight)).chain(depths).chain(self.base_attributes()).collect()
    }

    /// What it says of the base.
    fn base_attributes(&self) -> Vec<proto::Attribute> {
        let Some(base) = &self.base else { return Vec::new() };
        let file = proto::Attribute {
            name: Some("base_file".to_string()),
            s: Some(base.file.clone().into_bytes()),
            r#type: Some(attribute_type::STRING),
            ..Default::default()
        };
        // A delta has the hash itself.
        let hash = base.delta.is_none().then(|| int("base_hash", base.hash as i64));
        std::iter::once(file).chain(hash).collect()
    }
}

/// The node fields that take the place of `node`.
pub(crate) fn rewrite(model: &Model, names: &mut Names, node: &Node, change: &Rewrite<'_>) -> Result<Rope> {
    let mut out = Rope::new();
    let mut inputs = node.inputs.clone();
    let (fused, decoded) = change.split();
    for reading in decoded {
        inputs[reading.usage.reader.input] = decode(model, names, reading, &mut out)?;
    }
    match fused[..] {
        [] => out.field(NODE, rename(model, node, &inputs)?),
        [reading] => fuse(model, names, node, reading, inputs, &mut out)?,
        [input, recurrent] if matches!(input.usage.kind, UseKind::Lstm { .. }) => {
            out.field(NODE, lstm(model, node, [input, recurrent], inputs)?);
        }
        _ => return Err(Error::Internal("two weights fused into one node".to_string())),
    }
    Ok(out)
}

/// Appends the nodes that decode a weight for one reader; returns the name of the decoded value.
fn decode(model: &Model, names: &mut Names, reading: &Reading<'_>, out: &mut Rope) -> Result<String> {
    let (UseKind::Decode { after } | UseKind::Lstm { after }) = &reading.usage.kind else {
        return Ok(reading.blob.clone());
    };
    let weight = &reading.weight.name;
    let mut value = names.fresh(&format!("{weight}.nz.decoded"));
    push(
        out,
        proto::Node {
            input: [&reading.blob, after].into_iter().chain(reading.delta()).cloned().collect(),
            output: vec![value.clone()],
            name: Some(names.fresh(&format!("{weight}.nz.decode"))),
            op_type: Some(format!("Decode{}{}", reading.infix(), of_integers(reading.weight))),
            domain: Some(DOMAIN.to_string()),
            attribute: reading.attributes(),
        },
    );
    if reading.usage.transposed {
        let transposed = names.fresh(&format!("{weight}.nz.transposed"));
        push(
            out,
            proto::Node {
                input: vec![value],
                output: vec![transposed.clone()],
                name: Some(names.fresh(&format!("{weight}.nz.transpose"))),
                op_type: Some("Transpose".to_string()),
                attribute: vec![ints("perm", vec![1, 0])],
                domain: None,
            },
        );
        value = transposed;
    }
    if let Some((graph, index)) = reading.usage.dequantize {
        let node = &model.graph(graph).nodes[index];
        let mut inputs = node.inputs.clone();
        inputs[0] = value;
        value = names.fresh(&format!("{weight}.nz.dequantized"));
        let mut body = Rope::new();
        let fields = proto::Node { input: inputs, output: vec![value.clone()], ..Default::default() };
        body.owned(&fields.encode_to_vec());
        body.append(without(model, node, &[1, 2, 3])?);
        out.field(NODE, body);
    } else if reading.usage.dtype.is_integer() {
        // Read as it is.
    } else if reading.usage.dtype != Dtype::F32 {
        value = cast(names, &value, reading.usage.dtype, &format!("{weight}.nz.cast"), out);
    }
    Ok(value)
}

/// What the names of ops end in that decode to integers.
fn of_integers(weight: &Weight) -> &'static str {
    match weight.dtype() {
        Some(Dtype::U8) => "Uint8",
        Some(Dtype::I8) => "Int8",
        _ => "",
    }
}

/// Appends the fused op, with casts around it where ONNX Runtime would not put them itself: products may be
/// float16, as `MatMul` may, but not bfloat16; what is gathered comes as float32.
fn fuse(
    model: &Model,
    names: &mut Names,
    node: &Node,
    reading: &Reading<'_>,
    inputs: Vec<String>,
    out: &mut Rope,
) -> Result<()> {
    let dtype = reading.usage.dtype;
    let is_product = !matches!(reading.usage.kind, UseKind::Gather);
    let casts = dtype == Dtype::Bf16 || dtype == Dtype::F16 && !is_product;
    let base = if node.name.is_empty() { &node.outputs[0] } else { &node.name };
    let mut activation = |index: usize, out: &mut Rope| match inputs.get(index) {
        Some(name) if !name.is_empty() && casts => {
            cast(names, name, Dtype::F32, &format!("{base}.nz.in{index}"), out)
        }
        Some(name) => name.clone(),
        None => String::new(),
    };
    let mut addend = None;
    let gather = match reading.weight.dtype() {
        Some(Dtype::U8) => "GatherUint8",
        Some(Dtype::I8) => "GatherInt8",
        _ => "Gather",
    };
    let (op, mut input, mut attribute) = match &reading.usage.kind {
        UseKind::MatMul { trans_b } => {
            let x = activation(0, out);
            ("MatMul", vec![x, reading.blob.clone()], vec![flag("transB", *trans_b)])
        }
        UseKind::Gemm { trans_b } => {
            let a = activation(0, out);
            let c = activation(2, out);
            let input = vec![a, reading.blob.clone()];
            addend = Some(c).filter(|c| !c.is_empty());
            let attribute = vec![
                float("alpha", node.float("alpha", 1.0)),
                float("beta", node.float("beta", 1.0)),
                flag("transA", node.int("transA", 0) != 0),
                flag("transB", *trans_b),
            ];
            ("Gemm", input, attribute)
        }
        // Indices are integers: no cast.
        _ => (gather, vec![reading.blob.clone(), inputs[1].clone()], Vec::new()),
    };
    input.extend(reading.delta().cloned().into_iter().chain(addend));
    attribute.extend(reading.attributes());
    let mut output = node.outputs.clone();
    let result = casts.then(|| {
        let float32 = names.fresh(&format!("{}.nz.f32", output[0]));
        std::mem::replace(&mut output[0], float32)
    });
    let fields = proto::Node {
        input,
        output: output.clone(),
        name: None,
        op_type: Some(format!("Decode{}{op}", reading.infix())),
        attribute,
        domain: Some(DOMAIN.to_string()),
    };
    out.field(NODE, replace(model, node, &fields)?);
    if let Some(result) = result {
        push(out, cast_node(names, &output[0], dtype, result, &format!("{base}.nz.out")));
    }
    Ok(())
}

/// Outputs of `nz.DecodeLSTM`.
const LSTM_OUTPUTS: usize = 3;

/// `nz.DecodeLSTM` in place of the node.
fn lstm(
    model: &Model,
    node: &Node,
    [input, recurrent]: [&Reading<'_>; 2],
    mut inputs: Vec<String>,
) -> Result<Rope> {
    inputs[1] = input.blob.clone();
    inputs[2] = recurrent.blob.clone();
    // `sequence_lens` is left out, and so is what comes behind the states.
    if inputs.len() > 4 {
        inputs.remove(4);
    }
    inputs.truncate(6);
    while inputs.last().is_some_and(String::is_empty) {
        inputs.pop();
    }
    // ONNX Runtime 1.17 and 1.20 crash where a custom op's node ends with fewer outputs than the op has.
    let mut output = node.outputs.clone();
    output.resize(LSTM_OUTPUTS, String::new());
    let reverse = node.attribute("direction").and_then(|a| a.s.as_deref()) == Some(b"reverse");
    let fields = proto::Node {
        input: inputs,
        output,
        name: None,
        op_type: Some("DecodeLSTM".to_string()),
        attribute: [flag("reverse", reverse)]
            .into_iter()
            .chain(input.attributes())
            .chain(depths(SECOND_DEPTH_BYTES, recurrent.depth_bytes.clone()))
            .collect(),
        domain: Some(DOMAIN.to_string()),
    };
    replace(model, node, &fields)
}

/// The node as another op: name, doc string and whatever else it carries stay.
fn replace(model: &Model, node: &Node, fields: &proto::Node) -> Result<Rope> {
    let mut body = without(model, node, &[1, 2, 4, 5, 7, 8])?;
    body.owned(&fields.encode_to_vec());
    Ok(body)
}

/// The node with other inputs and all else as it is.
fn rename(model: &Model, node: &Node, inputs: &[String]) -> Result<Rope> {
    let mut body = Rope::new();
    let input = proto::Node { input: inputs.to_vec(), ..Default::default() };
    body.owned(&input.encode_to_vec());
    body.append(without(model, node, &[1])?);
    Ok(body)
}

/// The fields of a node's message but for those of the given numbers.
pub(crate) fn without(model: &Model, node: &Node, numbers: &[u32]) -> Result<Rope> {
    let mut rope = Rope::new();
    let mut scanner = Scanner::new(model.source());
    let mut at = node.body.start;
    while let Some(field) = scanner.field(&mut at, node.body.end)? {
        if !numbers.contains(&field.number) {
            rope.source(field.whole);
        }
    }
    Ok(rope)
}

fn cast(names: &mut Names, input: &str, to: Dtype, base: &str, out: &mut Rope) -> String {
    let value = names.fresh(base);
    push(out, cast_node(names, input, to, value.clone(), base));
    value
}

fn cast_node(names: &mut Names, input: &str, to: Dtype, output: String, base: &str) -> proto::Node {
    proto::Node {
        input: vec![input.to_string()],
        output: vec![output],
        name: Some(names.fresh(&format!("{CAST_PREFIX}{base}"))),
        op_type: Some("Cast".to_string()),
        attribute: vec![int("to", i64::from(to.onnx()))],
        domain: None,
    }
}

/// The node that makes the float32 weight `weight` out of float16.
pub(crate) fn cast_up(names: &mut Names, half: &str, weight: &str) -> Rope {
    let mut out = Rope::new();
    push(&mut out, constant(names, "Cast", vec![half], weight, weight));
    out
}

/// The nodes that make the float32 weight `weight` out of levels and scales.
pub(crate) fn scaled(names: &mut Names, levels: &str, scale: &str, weight: &str) -> Rope {
    let value = names.fresh(&format!("{weight}.nz.float"));
    let mut out = Rope::new();
    push(&mut out, constant(names, "Cast", vec![levels], &value, weight));
    push(&mut out, constant(names, "Mul", vec![&value, scale], weight, weight));
    out
}

/// A node that ONNX Runtime folds; a Cast is to float32.
fn constant(names: &mut Names, op: &str, inputs: Vec<&str>, output: &str, weight: &str) -> proto::Node {
    let to = (op == "Cast").then(|| int("to", i64::from(dtype::FLOAT)));
    proto::Node {
        input: inputs.into_iter().map(str::to_string).collect(),
        output: vec![output.to_string()],
        name: Some(names.fresh(&format!("{weight}.nz.{}", op.to_lowercase()))),
        op_type: Some(op.to_string()),
        attribute: to.into_iter().collect(),
        domain: None,
    }
}

fn push(out: &mut Rope, node: proto::Node) {
    let mut body = Rope::new();
    body.owned(&node.encode_to_vec());
    out.field(NODE, body);
}

fn shape(weight: &Weight) -> proto::Attribute {
    // A shape comes from int64 fields that were found not to be negative.
    ints("shape", weight.shape.iter().map(|&dim| dim as i64).collect())
}

fn depths(name: &str, bytes: Vec<i64>) -> Option<proto::Attribute> {
    (!bytes.is_empty()).then(|| ints(name, bytes))
}

fn ints(name: &str, ints: Vec<i64>) -> proto::Attribute {
    proto::Attribute {
        name: Some(name.to_string()),
        ints,
        r#type: Some(attribute_type::INTS),
        ..Default::default()
    }
}

fn int(name: &str, i: i64) -> proto::Attribute {
    proto::Attribute {
        name: Some(name.to_string()),
        i: Some(i),
        r#type: Some(attribute_type::INT),
        ..Default::default()
    }
}

fn flag(name: &str, value: bool) -> proto::Attribute {
    int(name, i64::from(value))
}

fn float(name: &str, f: f32) -> proto::Attribute {
    proto::Attribute {
        name: Some(name.to_string()),
        f: Some(f),
        r#type: Some(attribute_type::FLOAT),
        ..Default::default()
    }
}
