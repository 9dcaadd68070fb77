//! Which weights of a graph can be taken: those that every reader can read compressed.

use std::collections::{HashMap, HashSet};

use super::graph::{Graph, Node, Value};
use crate::format::TensorSpec;
use crate::ort::fence::Result;

/// Weights a block where rows are gathered: few rows then decode little besides.
const GATHER_BLOCK_LEN: u32 = 1024;
/// Weights a block elsewhere.
const BLOCK_LEN: u32 = 4096;
/// The most dimensions a blob can have.
const MAX_RANK: usize = 8;

/// A weight and all the nodes that read it.
pub(super) struct Claim<'a> {
    pub name: String,
    pub value: Value<'a>,
    pub spec: TensorSpec,
    pub block_len: u32,
    /// In bytes.
    pub size: u64,
    pub nodes: Vec<Node<'a>>,
}

/// How a node reads a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// As columns of a matrix `[K, N]`.
    Columns,
    /// As rows of a matrix `[N, K]`.
    Rows,
    /// As rows, one here and one there.
    Gathered,
}

/// The readers of one initializer.
struct Readers<'a> {
    name: String,
    value: Value<'a>,
    uses: Vec<(Node<'a>, usize, Order)>,
}

/// The weights of at least `min_size` bytes that can be taken, in the order of the nodes.
///
/// ONNX Runtime frees an initializer once every node that reads it has packed it, so a weight that anything else reads
/// stays as it is. `has_kernel` says whether a node's version and types are supported.
pub(super) fn find<'a>(
    graph: &Graph<'a>,
    min_size: u64,
    has_kernel: impl Fn(&Node<'a>) -> Result<bool>,
) -> Result<Vec<Claim<'a>>> {
    let (mut readers, mut by_name): (Vec<Readers<'a>>, HashMap<String, usize>) = Default::default();
    for node in graph.nodes()? {
        let Some((value, input, order)) = weight(&node)? else { continue };
        if !has_kernel(&node)? {
            continue;
        }
        let name = value.name()?;
        let at = *by_name.entry(name.clone()).or_insert(readers.len());
        if at == readers.len() {
            readers.push(Readers { name, value, uses: Vec::new() });
        }
        readers[at].uses.push((node, input, order));
    }
    let mut claims = Vec::new();
    for weight in readers {
        claims.extend(weight.claim(min_size)?);
    }
    Ok(claims)
}

/// The weight of a node that could read it compressed, which input that is, and how it is read.
fn weight<'a>(node: &Node<'a>) -> Result<Option<(Value<'a>, usize, Order)>> {
    let ("", op) = node.op()? else { return Ok(None) };
    let (input, order) = match op {
        "MatMul" => (1, Order::Columns),
        "Gemm" if node.int(c"transB").unwrap_or(0) == 0 => (1, Order::Columns),
        "Gemm" => (1, Order::Rows),
        "Gather" => (0, Order::Gathered),
        _ => return Ok(None),
    };
    let inputs = node.inputs()?;
    let other = inputs.get(1 - input).copied().flatten();
    let (Some(weight), Some(other)) = (inputs.get(input).copied().flatten(), other) else { return Ok(None) };
    if !weight.is_constant()? || other.is_constant()? || weight.is_output()? {
        return Ok(None);
    }
    let rank = weight.tensor()?.map_or(0, |(_, dims)| dims.len());
    let fits = match order {
        Order::Columns | Order::Rows => rank == 2,
        Order::Gathered => {
            let axis = node.int(c"axis").unwrap_or(0);
            (2..=MAX_RANK).contains(&rank) && (axis == 0 || axis == -(rank as i64))
        }
    };
    Ok(fits.then_some((weight, input, order)))
}

impl<'a> Readers<'a> {
    /// The weight, if it is large enough and nobody else reads it.
    fn claim(self, min_size: u64) -> Result<Option<Claim<'a>>> {
        let Some((dtype, shape)) = self.value.tensor()? else { return Ok(None) };
        let reads = |wanted: Order| self.uses.iter().any(|(.., order)| *order == wanted);
        let spec = match (shape.as_slice(), reads(Order::Columns), reads(Order::Rows)) {
            // A blob has one order.
            (_, true, true) => return Ok(None),
            (&[k, n], true, false) => {
                TensorSpec::column_tiles(dtype, k, n, if n >= 1024 { 256 } else { 128 })
            }
            _ => TensorSpec::row_major(dtype, &shape),
        };
        let Ok(size) = spec.bytes() else { return Ok(None) };
        let known: HashSet<_> =
            self.uses.iter().map(|(node, input, _)| (node.raw(), *input as i64)).collect();
        if size < min_size.max(1) || !self.value.consumers()?.iter().all(|consumer| known.contains(consumer))
        {
            return Ok(None);
        }
        let block_len = if reads(Order::Gathered) { GATHER_BLOCK_LEN } else { BLOCK_LEN };
        let nodes = self.uses.into_iter().map(|(node, ..)| node).collect();
        Ok(Some(Claim { name: self.name, value: self.value, spec, block_len, size, nodes }))
    }
}
