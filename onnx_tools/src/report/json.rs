//! The documents that `--json` prints. Their fields are a promise: a change that breaks a reader is a new schema.

use serde::Serialize;

/// The file that a command read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Input {
    /// As given.
    pub path: String,
    /// Bytes of the model file, without its external data.
    pub bytes: u64,
    /// SHA-256 of the model file, in hexadecimal.
    pub sha256: String,
}

/// The files that a command wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Output {
    /// The model.
    pub path: String,
    /// Its data file, if it has one.
    pub data_path: Option<String>,
    /// Bytes of both.
    pub bytes: u64,
}

/// How ONNX Runtime optimised a model before it was converted; the weights in the document are the optimised model's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Optimized {
    /// "portable" or "native".
    pub level: &'static str,
    /// Version of the ONNX Runtime that did it.
    pub ort_version: String,
    /// Channels a block; none if the model runs on any CPU.
    pub nchwc_block: Option<u32>,
    /// Bytes of all weights before it was optimised.
    pub original_weight_bytes: u64,
}

/// One of the models of a size that convert chose among.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Candidate {
    /// Whether bytes were allotted by what calibration had found; else by weights' places in the model.
    pub calibrated: bool,
    /// Whether weights on a grid were compensated by the inputs, not by the rule that is there without.
    pub compensated: bool,
    /// How far outputs are above their errors on the inputs left out, in decibels, on average over inputs; none if there
    /// are no such inputs, or no errors.
    pub snr_db: Option<f64>,
    /// Whether it is the one that was taken.
    pub taken: bool,
}

/// How convert chose among models of the size asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trial {
    /// Inputs that weights were calibrated and rounded for.
    pub calibrated_on: usize,
    /// Inputs that had no part in that, by which models were compared.
    pub compared_on: usize,
    /// The models.
    pub candidates: Vec<Candidate>,
}

impl Trial {
    /// What there was too little of.
    pub fn shortfall(&self) -> Option<String> {
        (self.compared_on == 0).then(|| {
            let inputs = super::units::count(self.calibrated_on, "input");
            format!(
                "none of {inputs} could be left out to compare by: this is what these alone say; give 3 or more, better 16"
            )
        })
    }
}

/// Sums over all weights of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Totals {
    /// Weights of the model, of any dtype.
    pub weights: usize,
    /// Those that are compressed.
    pub compressed: usize,
    /// Bytes of all weights before.
    pub bytes_before: u64,
    /// Bytes of all weights after, kept ones included.
    pub bytes_after: u64,
    /// After over before.
    pub ratio: f64,
    /// Bits a weight, on average over the weights that are stored compressed; 0 without any.
    pub bits_per_weight: f64,
    /// Whether no weight was changed.
    pub lossless: bool,
    /// The largest over all weights.
    pub max_relative_error: f64,
    /// The least over all weights; none if none is known.
    pub least_snr_db: Option<f64>,
}

/// Whether a weight is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// Stored as a blob.
    Compressed,
    /// Left as it was.
    Kept,
}

/// One weight of a conversion.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tensor {
    /// Name of the initializer, or of the Constant node's output.
    pub name: String,
    /// ONNX dtype: "float32", "int8".
    pub dtype: String,
    /// Dimensions.
    pub shape: Vec<u64>,
    /// Bytes before.
    pub bytes_before: u64,
    /// Bytes after; 0 for a copy of a weight that is stored elsewhere.
    pub bytes_after: u64,
    /// `8 * bytes_after` over the number of weights.
    pub bits_per_weight: f64,
    /// "float-split lossless", "float-split k=12", "grid k=5"; none if kept.
    pub encoding: Option<String>,
    /// Whether the weight comes back bit for bit.
    pub lossless: bool,
    /// Largest `|a - b| / |a|`, measured; 0 if lossless. Without a bound on a grid, where a weight near zero can change
    /// by any multiple of itself.
    pub max_relative_error: f64,
    /// Largest `|a - b|` over the root of the weights' mean square, measured; none if lossless, and in a plan.
    pub max_error_to_rms: Option<f64>,
    /// The energy of the weights over that of the errors, in decibels; none if lossless.
    pub snr_db: Option<f64>,
    /// What happened.
    pub decision: Decision,
    /// Why; none where there is nothing to say.
    pub reason: Option<String>,
}

/// What `convert` did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Convert {
    /// "nz-onnx.convert/1".
    pub schema: &'static str,
    /// The model.
    pub input: Input,
    /// What was written; none for a dry run.
    pub output: Option<Output>,
    /// How the model was optimised first; none if it was not.
    pub optimized: Option<Optimized>,
    /// What it was chosen among; none without inputs to calibrate with.
    pub trial: Option<Trial>,
    /// Sums.
    pub totals: Totals,
    /// All weights, in the model's order.
    pub tensors: Vec<Tensor>,
    /// What fell short.
    pub warnings: Vec<String>,
}

/// A node that reads a weight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Consumer {
    /// Name of the node; may be empty.
    pub node: String,
    /// Its op type.
    pub op: String,
    /// The op that will read the blob instead; none if kept.
    pub becomes: Option<String>,
}

/// One weight of a plan: sizes are upper bounds, errors are bounds, nothing is encoded yet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedTensor {
    /// The fields of a conversion; `max_relative_error` is a bound, null where there is none, `snr_db` an estimate.
    #[serde(flatten)]
    pub tensor: Tensor,
    /// Who reads it.
    pub consumers: Vec<Consumer>,
    /// Error of the outputs for an error of the weight, both as energy over energy; none without --calibrate.
    pub sensitivity: Option<f64>,
}

/// A place on the curve of size against error: what `--size` would give with so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Bytes of all weights, kept ones included: an upper bound.
    pub bytes_after: u64,
    /// The same over the bytes before.
    pub ratio: f64,
    /// Bits a weight, on average over those that are compressed.
    pub bits_per_weight: f64,
    /// The most that a weight changes by, over itself; null where a grid is among the encodings.
    pub max_relative_error: f64,
    /// The least exact weight's energy over that of its error, in decibels; none if all are lossless.
    pub least_snr_db: Option<f64>,
    /// The same of the outputs, in decibels, as far as the weights tell: what bytes were allotted for.
    pub output_snr_db: Option<f64>,
}

/// What `convert` would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// "nz-onnx.plan/1".
    pub schema: &'static str,
    /// The model.
    pub input: Input,
    /// How it was optimised first; none if it was not.
    pub optimized: Option<Optimized>,
    /// Sums; `max_relative_error` is a bound, null where there is none.
    pub totals: Totals,
    /// All weights, in the model's order.
    pub tensors: Vec<PlannedTensor>,
    /// What there is to choose from, from lossless down.
    pub curve: Vec<Point>,
    /// What falls short.
    pub warnings: Vec<String>,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A model with blobs.
    Converted,
    /// A model without.
    Plain,
    /// One blob.
    Blob,
}

/// One tier of a blob's cascade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tier {
    /// Bits a code.
    pub width: u8,
    /// Exponents that have a code.
    pub symbols: Vec<u8>,
}

/// One blob.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Blob {
    /// Initializer that holds it; none for a bare file.
    pub name: Option<String>,
    /// The weights that it stands for.
    pub weights: Vec<String>,
    /// Format version, "1.0".
    pub format: String,
    /// dtype of the weight.
    pub dtype: String,
    /// Shape of the weight.
    pub shape: Vec<u64>,
    /// "row-major", or "column-tiles 256".
    pub layout: String,
    /// Weights a block.
    pub block_len: u32,
    /// The cascade.
    pub tiers: Vec<Tier>,
    /// "float-split lossless", "float-split k=12", "grid k=5".
    pub encoding: String,
    /// Mantissa bits kept; on a grid, raw bits of a level.
    pub mantissa_bits: u8,
    /// Bytes of the weight.
    pub weight_bytes: u64,
    /// Bytes of the blob.
    pub bytes: u64,
    /// `8 * bytes` over the number of weights.
    pub bits_per_weight: f64,
    /// Whether the weight comes back bit for bit.
    pub lossless: bool,
    /// How much of it a session can read, the least first; none if it has no layers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub depths: Vec<Depth>,
    /// Whether the payload has the checksum that the header states.
    pub checksum_ok: bool,
}

/// A blob up to the end of one of its layers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Depth {
    /// Raw bits, beside the sign, that are known of a weight.
    pub raw_bits: u8,
    /// Bytes that are read.
    pub bytes: u64,
    /// `8 * bytes` over the number of weights: the least `nz.bits` for it.
    pub bits_per_weight: f64,
}

/// A weight that is no blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlainWeight {
    /// Name of the initializer.
    pub name: String,
    /// ONNX dtype.
    pub dtype: String,
    /// Dimensions.
    pub shape: Vec<u64>,
    /// Bytes.
    pub bytes: u64,
}

/// A weight that is no blob and is stored shorter than it was: ONNX Runtime makes it out again as it loads the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Constant {
    /// Name of the weight.
    pub name: String,
    /// "constant float16", "constant int8 per row", "constant int8".
    pub encoding: String,
    /// Bytes stored.
    pub bytes: u64,
    /// Whether the weight comes back bit for bit.
    pub lossless: bool,
}

/// What `inspect` found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspect {
    /// "nz-onnx.inspect/1".
    pub schema: &'static str,
    /// The file.
    pub path: String,
    /// Its bytes.
    pub bytes: u64,
    /// What it is.
    pub kind: Kind,
    /// `nz.*` entries of the model's metadata.
    pub metadata: std::collections::BTreeMap<String, String>,
    /// The blobs.
    pub blobs: Vec<Blob>,
    /// The weights that are no blobs, but stored shorter; none in most models.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub constants: Vec<Constant>,
    /// The weights that are no blobs.
    pub weights: Vec<PlainWeight>,
}

/// One check of `verify` on a blob.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlobCheck {
    /// The weight.
    pub name: String,
    /// Whether header, payload and decoded weight have the checksums stated.
    pub checksum_ok: bool,
    /// Whether it agrees with the original's weight; none if that was not asked for.
    pub matches_original: Option<bool>,
    /// Whether the blob is lossless.
    pub lossless: bool,
    /// Largest relative error against the original; none if not compared.
    pub max_relative_error: Option<f64>,
    /// The energy of the weights over that of the errors, in decibels; none if lossless or not compared.
    pub snr_db: Option<f64>,
    /// Whether it was rounded so as to make good errors of other weights: it agrees then if it was made of the original's
    /// weight, and errors may be more than half a step of its grid.
    pub compensated: bool,
    /// What is wrong.
    pub problem: Option<String>,
}

/// One output of both models.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputCheck {
    /// Name of the graph output.
    pub name: String,
    /// Its dimensions in this run; none if it is no tensor.
    pub shape: Option<Vec<i64>>,
    /// Largest absolute difference; none if it is not a finite number.
    pub max_abs_error: Option<f64>,
    /// The same over the output's largest magnitude.
    pub max_error_to_largest: Option<f64>,
    /// The original's energy over that of the differences, in decibels; none if there are no differences.
    pub snr_db: Option<f64>,
    /// The least cosine of a row, along the last dimension, and the original's; none for what is not float.
    pub least_cosine: Option<f64>,
    /// The share of rows whose largest element is the original's; none if the output does not look like logits.
    pub top1_agreement: Option<f64>,
    /// The share of the original's five largest elements of a row that are among the row's five largest, on average;
    /// none as for `top1_agreement`.
    pub top5_agreement: Option<f64>,
    /// Whether it is within the default tolerance, or levels that differ by one; or within the one given. None without.
    pub within_tolerance: Option<bool>,
    /// Why it was not compared.
    pub skipped: Option<String>,
    /// What is wrong.
    pub problem: Option<String>,
}

/// The runs of `verify --run`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunCheck {
    /// libonnxruntime used.
    pub ort_lib: String,
    /// libnz_onnx registered.
    pub library: String,
    /// Nodes of domain `nz` in the session.
    pub custom_nodes: usize,
    /// Runs of each model, with inputs of their own.
    pub runs: usize,
    /// Largest error allowed; none: reported only.
    pub tolerance: Option<f64>,
    /// What ONNX Runtime's optimisations change the original's outputs by, to the largest; measured where the default
    /// tolerance was missed, which is then twice that.
    pub own_error: Option<f64>,
    /// Seconds of the original's runs, without session creation.
    pub original_seconds: f64,
    /// Seconds of the converted model's runs.
    pub converted_seconds: f64,
    /// The outputs.
    pub outputs: Vec<OutputCheck>,
}

/// What `verify` found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verify {
    /// "nz-onnx.verify/1".
    pub schema: &'static str,
    /// The converted model.
    pub path: String,
    /// The original, if given.
    pub original: Option<String>,
    /// What weights were compared with: the original, or the original as optimised.
    pub compared_with: Option<String>,
    /// Why they were not, although an original was given.
    pub not_compared: Option<String>,
    /// Whether all checks passed.
    pub ok: bool,
    /// The blobs.
    pub blobs: Vec<BlobCheck>,
    /// The runs, if asked for.
    pub run: Option<RunCheck>,
    /// Failed checks that belong to no single blob or output.
    pub problems: Vec<String>,
}

/// What `restore` wrote.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Restore {
    /// "nz-onnx.restore/1".
    pub schema: &'static str,
    /// The converted model.
    pub input: String,
    /// What was written.
    pub output: Output,
    /// Weights decoded.
    pub weights: usize,
    /// Whether the model is byte-identical to the one that was converted.
    pub identical: bool,
    /// Weights that are not, because they had been rounded.
    pub rounded: Vec<String>,
    /// The level at which ONNX Runtime had optimised the model before it was converted; the model restored is the
    /// optimised one.
    pub optimized: Option<String>,
}

/// What `env` found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Env {
    /// "nz-onnx.env/1".
    pub schema: &'static str,
    /// Path of libnz_onnx, for register_custom_ops_library.
    pub library: Option<String>,
    /// Version of this program.
    pub version: &'static str,
    /// Blob format version that it writes.
    pub format: String,
    /// Instruction sets that this machine has and the decoder can use.
    pub simd: Vec<&'static str>,
    /// CUDA device, if the library can use one.
    pub cuda: Option<String>,
    /// libonnxruntime that `verify --run` would use.
    pub ort_lib: Option<String>,
    /// Its version.
    pub ort_version: Option<String>,
    /// Threads.
    pub threads: usize,
}

/// A reason without what is particular to one weight: text before a colon or a parenthesis.
pub fn reason_group(reason: &str) -> &str {
    let end = [": ", " ("].iter().filter_map(|mark| reason.find(mark)).min();
    &reason[..end.unwrap_or(reason.len())]
}

/// `document` as text with a line break at its end.
pub fn render(document: &impl Serialize) -> String {
    // Documents are plain structs with string keys: they always serialize. Floats that are not finite become
    // null, and none of the fields above is allowed to be one.
    let mut text = serde_json::to_string_pretty(document).unwrap_or_default();
    text.push('\n');
    text
}
