//! Where a weight is multiplied with activations, and how.

use std::collections::BTreeSet;

use super::positive::is_positive;
use crate::onnx::scope::Scope;
use crate::onnx::{GraphId, Model, Node, Weight};
use crate::rewrite::{Compression, Use};

/// The most weights in a product: the memory goes with the square.
const MOST: usize = 8192;

/// How the vectors that are multiplied with a weight lie in a tensor of activations.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Vectors {
    /// The last dimension.
    Last,
    /// The last but one, or the only one.
    LastButOne,
    /// The windows of a convolution.
    Windows(Windows),
}

/// A convolution.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Windows {
    /// Groups of channels.
    pub groups: usize,
    /// For each spatial dimension: size, stride, dilation.
    pub kernel: Vec<[usize; 3]>,
    pub padding: Padding,
}

/// What is added around the input of a convolution.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Padding {
    /// So much before and behind each dimension.
    Explicit(Vec<[usize; 2]>),
    /// As much as makes outputs as large as inputs, over strides; what is odd comes last, or first.
    Same {
        /// First.
        lower: bool,
    },
}

/// A weight as a matrix that activations are multiplied with, and the activations.
#[derive(Debug, Clone)]
pub(super) struct Reads {
    /// Whether sums run over the first dimension, not over the last ones.
    pub over_first: bool,
    /// Weights in a sum.
    pub len: usize,
    /// Groups, each with as many of the outputs.
    pub groups: usize,
    /// Activations: the graph that they are defined in, their names there, and how they lie.
    pub from: BTreeSet<(GraphId, String, Vectors)>,
}

impl Reads {
    /// Whether the rule without inputs is for these activations: those of convolutions, which have neighbours, and those that
    /// are known to be above 0. What an LSTM or a normalisation gives has no mean to speak of.
    pub fn has_rule<'a>(&'a self, scope: &Scope<'a>) -> bool {
        self.from.iter().all(|(graph, name, vectors)| {
            matches!(vectors, Vectors::Windows(_)) || is_positive(scope, (*graph, name))
        })
    }

    /// Whether inputs can say something of these activations: those of bodies cannot be asked for.
    pub fn has_inputs(&self) -> bool {
        self.from.iter().all(|(graph, ..)| *graph == GraphId(0))
    }

    /// Weights in a row that activations of one channel are multiplied with.
    pub fn window(&self) -> usize {
        let of = |vectors: &Vectors| match vectors {
            Vectors::Windows(windows) => windows.kernel.iter().map(|[size, ..]| size).product(),
            Vectors::Last | Vectors::LastButOne => 1,
        };
        let mut windows = self.from.iter().map(|(.., vectors)| of(vectors));
        let first = windows.next().unwrap_or(1);
        if windows.all(|window| window == first) { first } else { 1 }
    }
}

/// The reads of the weights `weights`, which have the same content; `None` if one is read in another way.
pub(super) fn of<'a>(
    model: &Model,
    scope: &Scope,
    weights: impl IntoIterator<Item = (&'a Weight, &'a Compression)>,
) -> Option<Reads> {
    let mut found: Option<Reads> = None;
    for (weight, compression) in weights {
        for of_use in &compression.uses {
            let one = read(model, scope, weight, of_use)?;
            found = match found {
                None => Some(one),
                Some(mut all)
                    if (all.over_first, all.len, all.groups) == (one.over_first, one.len, one.groups) =>
                {
                    all.from.extend(one.from);
                    Some(all)
                }
                Some(_) => return None,
            };
        }
    }
    found.filter(|reads| reads.len <= MOST)
}

fn read(model: &Model, scope: &Scope, weight: &Weight, of_use: &Use) -> Option<Reads> {
    if of_use.dequantize.is_some() {
        return None;
    }
    let node = model.graph(of_use.reader.graph).nodes.get(of_use.reader.node)?;
    let shape: Vec<usize> = weight.shape.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    let (own, other) = (of_use.reader.input, |input: usize| node.inputs.get(input).filter(|n| !n.is_empty()));
    let flag = |name: &str| node.int(name, 0) != 0;
    let from = |input: usize, vectors: Vectors| {
        let name = other(input)?;
        let (owner, _) = scope.resolve(of_use.reader.graph, name)?;
        Some([(owner, name.clone(), vectors)].into())
    };
    // `first`: sums run over the first dimension of what the node reads.
    let matrix = |first: bool, input: usize, vectors: Vectors| {
        let &[rows, columns] = &shape[..] else { return None };
        let over_first = first != of_use.transposed;
        let len = if over_first { rows } else { columns };
        Some(Reads { over_first, len, groups: 1, from: from(input, vectors)? })
    };
    let across = |last: bool| if last { Vectors::Last } else { Vectors::LastButOne };
    match (node.domain.as_str(), node.op.as_str(), own) {
        ("", "MatMul", 1) => matrix(true, 0, Vectors::Last),
        ("", "MatMul", 0) => matrix(false, 1, Vectors::LastButOne),
        ("" | "com.microsoft", "Gemm" | "FusedGemm", 1) => {
            matrix(!flag("transB"), 0, across(!flag("transA")))
        }
        ("" | "com.microsoft", "Gemm" | "FusedGemm", 0) => matrix(flag("transA"), 1, across(flag("transB"))),
        ("com.microsoft", "FusedMatMul", 1) if !flag("transBatchA") && !flag("transBatchB") => {
            matrix(!flag("transB"), 0, across(!flag("transA")))
        }
        ("" | "com.microsoft", "Conv" | "FusedConv", 1) if !of_use.transposed => {
            let windows = windows(node, &shape)?;
            let (len, groups) = (shape[1..].iter().product(), windows.groups);
            Some(Reads { over_first: false, len, groups, from: from(0, Vectors::Windows(windows))? })
        }
        _ => None,
    }
}

fn windows(node: &Node, shape: &[usize]) -> Option<Windows> {
    let sizes = shape.get(2..).filter(|sizes| !sizes.is_empty())?;
    let groups = usize::try_from(node.int("group", 1)).ok()?;
    let ints = |name: &str, len: usize, otherwise: usize| match node.attribute(name) {
        None => Some(vec![otherwise; len]),
        Some(attribute) if attribute.ints.len() == len => {
            attribute.ints.iter().map(|&value| usize::try_from(value).ok()).collect()
        }
        Some(_) => None,
    };
    let (strides, dilations) = (ints("strides", sizes.len(), 1)?, ints("dilations", sizes.len(), 1)?);
    let kernel: Vec<_> = (0..sizes.len()).map(|d| [sizes[d], strides[d], dilations[d]]).collect();
    let padding = match node.attribute("auto_pad").and_then(|a| a.s.as_deref()) {
        None | Some(b"" | b"NOTSET") => {
            let pads = ints("pads", 2 * sizes.len(), 0)?;
            Padding::Explicit((0..sizes.len()).map(|d| [pads[d], pads[sizes.len() + d]]).collect())
        }
        Some(b"VALID") => Padding::Explicit(vec![[0, 0]; sizes.len()]),
        Some(b"SAME_UPPER") => Padding::Same { lower: false },
        Some(b"SAME_LOWER") => Padding::Same { lower: true },
        Some(_) => return None,
    };
    let fits = groups > 0 && shape[0].is_multiple_of(groups) && kernel.iter().flatten().all(|&n| n > 0);
    fits.then_some(Windows { groups, kernel, padding })
}
