//! What `convert --base` did, and what `inspect` and `verify` find in a delta file: documents and their texts.

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

/// A file that a delta file names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct File {
    /// Of a model its name, of a data file the location by which the model calls it.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
}

/// A weight of a delta file, or what lies between weights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// Index in [`Inspect::files`].
    pub file: usize,
    /// Name of the weight; none between weights.
    pub weight: Option<String>,
    /// Its dtype, where it is stored as a blob.
    pub dtype: Option<&'static str>,
    /// Its dimensions, likewise.
    pub shape: Option<Vec<u64>>,
    /// Bytes in the model.
    pub bytes_before: u64,
    /// Bytes in the delta file.
    pub bytes_after: u64,
    /// As in [`Tensor`]; "delta" where a blob is too damaged to say more.
    pub encoding: String,
    /// Whether a blob has the checksums that it states; none of what is no blob.
    pub checksum_ok: Option<bool>,
}

/// What is in a delta file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspect {
    /// "nz-onnx.inspect-delta/1".
    pub schema: &'static str,
    /// The file.
    pub path: String,
    /// Its bytes.
    pub bytes: u64,
    /// The tool that wrote it.
    pub tool: String,
    /// The base's files, its model first.
    pub base: Vec<File>,
    /// The files that it restores, the model first.
    pub files: Vec<File>,
    /// What those consist of, in order.
    pub parts: Vec<Part>,
}

/// What came of restoring one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The file.
    #[serde(flatten)]
    pub file: File,
    /// What is wrong; none if it comes back with its SHA-256.
    pub problem: Option<String>,
}

/// Whether a delta file is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verify {
    /// "nz-onnx.verify-delta/1".
    pub schema: &'static str,
    /// The delta file.
    pub path: String,
    /// The base that was found.
    pub base: Option<String>,
    /// Whether all files come back.
    pub ok: bool,
    /// Every file that it restores.
    pub files: Vec<Verified>,
}

/// What a delta file is and what is in it.
pub fn inspect(document: &Inspect, style: Style) -> String {
    use Align::{Left, Right};
    let mut text = format!(
        "{}: a delta file of {}, {}\n",
        style.bold(&printable(&document.path)),
        printable(&document.tool),
        units::bytes(document.bytes)
    );
    for (what, files) in [("base", &document.base), ("restores", &document.files)] {
        for file in files {
            let (name, bytes) = (printable(&file.name), units::bytes(file.bytes));
            text += &format!("  {what:9} {name}, {bytes}, SHA-256 {}\n", file.sha256);
        }
    }
    let mut table = Table::new(&[
        ("weight", Left),
        ("dtype", Left),
        ("shape", Left),
        ("encoding", Left),
        ("before", Right),
        ("after", Right),
        ("checksum", Left),
    ]);
    let mut between = (0, 0);
    for part in &document.parts {
        let Some(weight) = &part.weight else {
            between = (between.0 + part.bytes_before, between.1 + part.bytes_after);
            continue;
        };
        table.row(vec![
            weight.clone(),
            part.dtype.unwrap_or_default().to_string(),
            part.shape.as_ref().map_or(String::new(), |shape| units::shape(shape)),
            part.encoding.clone(),
            units::bytes(part.bytes_before),
            units::bytes(part.bytes_after),
            part.checksum_ok.map_or("", |ok| if ok { "ok" } else { "WRONG" }).to_string(),
        ]);
    }
    let (before, after) = (units::bytes(between.0), units::bytes(between.1));
    text + &format!("\n{}\nBetween weights: {before}, stored in {after}.\n", table.render(0))
}

/// What was checked and what came of it.
pub fn verify(document: &Verify, elapsed: Duration, style: Style) -> String {
    let mut text = format!("{}\n", style.bold(&printable(&document.path)));
    if let Some(base) = &document.base {
        text += &format!("base      {} has the SHA-256 that it should\n", printable(base));
    }
    for Verified { file, problem } in &document.files {
        let name = printable(&file.name);
        text += &match problem {
            None => format!("restores  {name} with SHA-256 {}\n", file.sha256),
            Some(problem) => format!("{} {name}: {}\n", style.bad("wrong:"), printable(problem)),
        };
    }
    let verdict =
        if document.ok { style.good("All checks passed.") } else { style.bad("Verification failed.") };
    text + &format!("{verdict} Took {}.\n", units::elapsed(elapsed))
}
