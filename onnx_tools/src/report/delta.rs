//! What `convert --base` did: its document and its summary.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::json::Input;
use super::style::Style;
use super::table::{Align, Table, printable};
use super::units;
use crate::onnx;

/// What `convert --base` did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Document {
    /// "nz-onnx.delta/1".
    pub schema: &'static str,
    /// The model.
    pub input: Input,
    /// The model that it is a delta to.
    pub base: Input,
    /// The file written; none for a dry run.
    pub output: Option<String>,
    /// Bytes of the model's files.
    pub bytes_before: u64,
    /// Bytes of the delta file.
    pub bytes_after: u64,
    /// After over before.
    pub ratio: f64,
    /// All weights, in the order in which they lie in the model's files.
    pub tensors: Vec<Tensor>,
}

/// What became of a weight.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its dtype.
    pub dtype: &'static str,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// Bytes of its elements.
    pub bytes_before: u64,
    /// Bytes that it takes in the delta file.
    pub bytes_after: u64,
    /// The latter in bits, over the elements.
    pub bits_per_weight: f64,
    /// "base" (the base has the same bytes), "delta xor", "delta difference", "float-split lossless", "deflate" or
    /// "kept".
    pub encoding: &'static str,
}

impl Tensor {
    /// The entry of a weight that takes `bytes_after`.
    pub fn new(weight: &onnx::Weight, bytes_after: u64, encoding: &'static str) -> Tensor {
        Tensor {
            name: weight.name.clone(),
            dtype: weight.dtype_name(),
            shape: weight.shape.clone(),
            bytes_before: weight.bytes,
            bytes_after,
            bits_per_weight: 8.0 * bytes_after as f64 / weight.elements.max(1) as f64,
            encoding,
        }
    }
}

impl Document {
    /// The document of a delta of `bytes_after` in place of files of `bytes_before`.
    pub fn new(
        input: Input,
        base: Input,
        output: Option<String>,
        bytes_before: u64,
        bytes_after: u64,
        tensors: Vec<Tensor>,
    ) -> Document {
        let ratio = bytes_after as f64 / bytes_before.max(1) as f64;
        Document { schema: "nz-onnx.delta/1", input, base, output, bytes_before, bytes_after, ratio, tensors }
    }
}

/// The summary.
pub fn summary(document: &Document, elapsed: Duration, style: Style) -> String {
    use Align::{Left, Right};
    let output = match &document.output {
        Some(output) => style.bold(&printable(output)),
        None => style.bold("(dry run, nothing was written)"),
    };
    let mut ways: BTreeMap<&str, (usize, u64, u64)> = BTreeMap::new();
    for tensor in &document.tensors {
        let way = ways.entry(tensor.encoding).or_default();
        *way = (way.0 + 1, way.1 + tensor.bytes_before, way.2 + tensor.bytes_after);
    }
    let mut table = Table::new(&[("", Left), ("weights", Right), ("before", Right), ("after", Right)]);
    for (way, (count, before, after)) in ways {
        table.row(vec![way.to_string(), count.to_string(), units::bytes(before), units::bytes(after)]);
    }
    format!(
        "{} - {} -> {output}\n\n{}\n{} of {} ({}). {}\n`nz-onnx restore` makes the model again; it needs the base.\n\
         Took {}.\n",
        printable(&document.input.path),
        printable(&document.base.path),
        table.render(0),
        units::bytes(document.bytes_after),
        units::bytes(document.bytes_before),
        units::percent(document.bytes_after as f64, document.bytes_before as f64),
        style.good("Lossless: every byte comes back."),
        units::elapsed(elapsed)
    )
}
