//! Which weights of a graph can be taken: those that every reader can read compressed.

use std::collections::{HashMap, HashSet};

use super::graph::{Graph, Identity, Node, Value};
use crate::format::{GATHER_BLOCK, MAX_BLOCK, MAX_RANK, TensorSpec};
use crate::ort::fence::Result;
use crate::ort::kernels::Activation;

/// Ops that run slower over a compressed weight than they do at their best, and are taken where a session asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SlowOps {
    pub conv: bool,
    pub lstm: bool,
    pub gru: bool,
}

/// A weight and all the nodes that read it.
pub(super) struct Claim<'a> {
    pub name: String,
    pub identity: Identity,
    pub value: Value<'a>,
    /// As the model has it.
    pub shape: Vec<u64>,
    /// As it is stored: the shape may be that of a matrix that holds the same elements.
    pub spec: TensorSpec,
    /// In bytes.
    pub size: u64,
    /// Whether all that its nodes read is a row here and there.
    pub gathered: bool,
    pub uses: Vec<Use<'a>>,
    /// Initializers that are its transpose, by name; their readers are among the uses.
    pub turned: Vec<(String, Identity)>,
}

impl Claim<'_> {
    /// Weights a block. A product reads all of the weight, and that twice as fast in long blocks.
    pub fn block_len(&self) -> u32 {
        if self.gathered { GATHER_BLOCK } else { MAX_BLOCK }
    }
}

/// A node, and the names of all weights that it must read compressed if it reads one so.
#[derive(Clone)]
pub(super) struct Use<'a> {
    pub node: Node<'a>,
    pub together: Vec<String>,
}

/// How a node reads a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// As columns of a matrix `[K, N]`, which has the weight's elements in their order.
    Columns(u64, u64),
    /// As rows, one after the other.
    Rows,
    /// As rows, one here and one there.
    Gathered,
}

/// A weight that a node could read compressed, and which input it is.
struct Read<'a> {
    value: Value<'a>,
    input: usize,
    order: Order,
}

/// The readers of one initializer.
struct Readers<'a> {
    name: String,
    value: Value<'a>,
    uses: Vec<(Use<'a>, usize, Order)>,
}

/// The weights of at least `min_size` bytes that can be taken, in the order of the nodes.
///
/// ONNX Runtime frees an initializer once every node that reads it has packed it, so a weight that anything else reads
/// stays as it is. `has_kernel` says whether a node's version and types are supported.
pub(super) fn find<'a>(
    graph: &Graph<'a>,
    min_size: u64,
    slow: SlowOps,
    has_kernel: impl Fn(&Node<'a>) -> Result<bool>,
) -> Result<Vec<Claim<'a>>> {
    let (mut readers, mut by_name): (Vec<Readers<'a>>, HashMap<String, usize>) = Default::default();
    let nested = graph.is_nested()?;
    for node in graph.nodes()? {
        let reads = weights(&node, slow, nested)?;
        if reads.is_empty() || !has_kernel(&node)? {
            continue;
        }
        let together: Vec<String> = reads.iter().map(|read| read.value.name()).collect::<Result<_>>()?;
        for (Read { value, input, order }, name) in reads.into_iter().zip(&together) {
            let at = *by_name.entry(name.clone()).or_insert(readers.len());
            if at == readers.len() {
                readers.push(Readers { name: name.clone(), value, uses: Vec::new() });
            }
            readers[at].uses.push((Use { node, together: together.clone() }, input, order));
        }
    }
    let mut claims = Vec::new();
    for weight in readers {
        claims.extend(weight.claim(min_size)?);
    }
    let mut taken = vec![true; claims.len()];
    agree(&claims, &mut taken);
    let mut taken = taken.into_iter();
    claims.retain(|_| taken.next().unwrap_or(false));
    Ok(claims)
}

/// Leaves those of the weights `taken` that some reader reads together with another that is not.
pub(super) fn agree(claims: &[Claim<'_>], taken: &mut [bool]) {
    loop {
        let names: HashSet<&str> =
            claims.iter().zip(&*taken).filter(|(_, taken)| **taken).map(|(c, _)| c.name.as_str()).collect();
        let mut changed = false;
        for (claim, taken) in claims.iter().zip(&mut *taken) {
            let whole = |u: &Use<'_>| u.together.iter().all(|name| names.contains(name.as_str()));
            if *taken && !claim.uses.iter().all(whole) {
                (*taken, changed) = (false, true);
            }
        }
        if !changed {
            return;
        }
    }
}

/// The weights that a node could read compressed; all of them, or none.
fn weights<'a>(node: &Node<'a>, slow: SlowOps, nested: bool) -> Result<Vec<Read<'a>>> {
    let (domain, op) = node.op()?;
    // In the body of a node ONNX Runtime keeps originals beside what is packed. A blob must at least take the place of a
    // packed copy that the CPU's provider would have.
    if nested && !matches!(op, "MatMul" | "FusedMatMul" | "Gemm" | "FusedGemm" | "Attention" | "LSTM" | "GRU")
    {
        return Ok(Vec::new());
    }
    let is_known = || node.text(c"activation").is_none_or(|name| Activation::is_known(&name));
    let is_zero = |name| node.int(name).unwrap_or(0) == 0;
    let (activation, wanted): (usize, &[usize]) = match (domain, op) {
        ("", "MatMul" | "Gemm") => (0, &[1]),
        ("com.microsoft", "FusedMatMul") if is_zero(c"transBatchA") && is_zero(c"transBatchB") => (0, &[1]),
        ("com.microsoft", "Attention") if is_usual_attention(node)? => (0, &[1]),
        ("com.microsoft", "FusedGemm") if is_known() => (0, &[1]),
        ("com.microsoft", "FusedConv") if slow.conv && is_known() => (0, &[1]),
        ("", "Gather") => (1, &[0]),
        ("", "Conv") if slow.conv => (0, &[1]),
        ("", "LSTM") if slow.lstm && is_usual(node, &["sigmoid", "tanh", "tanh"])? => (0, &[1, 2]),
        ("", "GRU") if slow.gru && is_usual(node, &["sigmoid", "tanh"])? => (0, &[1, 2]),
        _ => return Ok(Vec::new()),
    };
    let inputs = node.inputs()?;
    let at = |index: usize| inputs.get(index).copied().flatten();
    let Some(activation) = at(activation) else { return Ok(Vec::new()) };
    if activation.is_constant()? {
        return Ok(Vec::new());
    }
    let mut reads = Vec::new();
    for &input in wanted {
        let Some(value) = at(input) else { return Ok(Vec::new()) };
        if !value.is_constant()? || value.is_outer()? || value.is_output()? {
            return Ok(Vec::new());
        }
        let Some((_, shape)) = value.tensor()? else { return Ok(Vec::new()) };
        let Some(order) = order(node, op, &shape) else { return Ok(Vec::new()) };
        reads.push(Read { value, input, order });
    }
    Ok(reads)
}

/// How a node reads a weight of this shape, if it can.
fn order(node: &Node<'_>, op: &str, shape: &[u64]) -> Option<Order> {
    let transposed = node.int(c"transB").unwrap_or(0) != 0;
    match (op, shape) {
        ("MatMul" | "Gemm" | "FusedMatMul" | "FusedGemm" | "Attention", &[k, n]) if !transposed => {
            Some(Order::Columns(k, n))
        }
        ("Gemm" | "FusedMatMul" | "FusedGemm", [_, _]) => Some(Order::Rows),
        ("MatMul", [batch @ .., k, n]) if shape.len() <= MAX_RANK => {
            let rows = batch.iter().try_fold(*k, |rows, &d| rows.checked_mul(d));
            rows.map(|rows| Order::Columns(rows, *n))
        }
        ("Gather", shape) if (2..=MAX_RANK).contains(&shape.len()) => {
            let axis = node.int(c"axis").unwrap_or(0);
            (axis == 0 || axis == -(shape.len() as i64)).then_some(Order::Gathered)
        }
        ("LSTM" | "GRU", [_, _, _]) => Some(Order::Rows),
        // Not a depthwise one, of one input channel a group: it has few weights, and a kernel of its own.
        ("Conv" | "FusedConv", shape) if (3..=5).contains(&shape.len()) => {
            (shape[1] > 1 || node.int(c"group").unwrap_or(1) == 1).then_some(Order::Rows)
        }
        _ => None,
    }
}

/// An LSTM or GRU as nearly all are: the default activations, no peepholes.
fn is_usual(node: &Node<'_>, default: &[&str]) -> Result<bool> {
    let inputs = node.inputs()?;
    let absent = |input: usize| inputs.get(input).is_none_or(Option::is_none);
    let usual =
        |names: Vec<String>| names.iter().zip(default.iter().cycle()).all(|(a, b)| a.eq_ignore_ascii_case(b));
    Ok(absent(7)
        && (!node.has(c"activations") || node.strings(c"activations").is_some_and(usual))
        && [c"clip", c"activation_alpha", c"activation_beta"].iter().all(|name| !node.has(name))
        && [c"input_forget", c"layout"].iter().all(|name| node.int(name).unwrap_or(0) == 0))
}

/// An attention over its own input alone, as encoders have it: nothing is kept from run to run.
fn is_usual_attention(node: &Node<'_>) -> Result<bool> {
    let inputs = node.inputs()?;
    let absent = |input: usize| inputs.get(input).is_none_or(Option::is_none);
    // A size that the kernel would refuse is the CPU provider's to judge.
    let sizes = node.ints(c"qkv_hidden_sizes");
    let fits = sizes.is_none_or(|sizes| matches!(sizes[..], [queries, keys, _] if queries == keys));
    let zero = |name| node.int(name).unwrap_or(0) == 0;
    let one = node.output_count()? == 1;
    Ok(absent(4) && absent(6) && fits && one && zero(c"do_rotary") && zero(c"past_present_share_buffer"))
}

impl<'a> Readers<'a> {
    /// The weight, if it is large enough and nobody else reads it.
    fn claim(self, min_size: u64) -> Result<Option<Claim<'a>>> {
        let Some((dtype, shape)) = self.value.tensor()? else { return Ok(None) };
        let orders = || self.uses.iter().map(|(.., order)| *order);
        let gathered = orders().all(|order| order == Order::Gathered);
        let columns = orders().find(|order| matches!(order, Order::Columns(..)));
        // A blob has one order.
        let fits = |order| match order {
            Order::Rows => columns.is_none(),
            Order::Columns(..) => columns == Some(order),
            Order::Gathered => columns.is_none() || shape.len() == 2,
        };
        if !orders().all(fits) {
            return Ok(None);
        }
        let spec = match columns {
            Some(Order::Columns(k, n)) => TensorSpec::columns(dtype, k, n),
            _ => TensorSpec::row_major(dtype, &shape),
        };
        let Ok(size) = spec.bytes() else { return Ok(None) };
        let known: HashSet<_> = self.uses.iter().map(|(u, input, _)| (u.node.raw(), *input as i64)).collect();
        if size < min_size.max(1) || !self.value.consumers()?.iter().all(|consumer| known.contains(consumer))
        {
            return Ok(None);
        }
        let identity = self.value.identity()?;
        let Readers { name, value, uses } = self;
        let uses = uses.into_iter().map(|(u, ..)| u).collect();
        let turned = Vec::new();
        Ok(Some(Claim { name, identity, value, shape, spec, size, gathered, uses, turned }))
    }
}
