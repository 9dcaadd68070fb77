//! The command line as clap sees it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::values::{
    ShapeArg, parse_bits, parse_bytes, parse_decibels, parse_error, parse_layers, parse_ratio, parse_shape,
    parse_tolerance,
};
use crate::pipeline::layering::Layers;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  input/output or internal error
  2  wrong usage
  3  the ratio, size or bits asked for cannot be reached; nothing was written
  4  a file is corrupt, or a check failed
  5  the model uses something that this version does not handle";

const EXAMPLES: &str = "\
Examples:
  nz-onnx convert model.onnx                    half the weight bytes -> model.nz.onnx
  nz-onnx convert model.onnx --lossless         no weight changes
  nz-onnx plan model.onnx --ratio 0.4           what would happen to each weight, and why
  nz-onnx verify model.nz.onnx --original model.onnx --run
  nz-onnx restore model.nz.onnx                 back to a plain ONNX model";

const CONVERT_EXAMPLES: &str = "\
Examples:
  nz-onnx convert model.onnx
  nz-onnx convert model.onnx --lossless -o out/model.nz.onnx
  nz-onnx convert model.onnx --ratio 0.4 --exclude 'lm_head.*'
  nz-onnx convert model.onnx --size 300MiB
  nz-onnx convert model.onnx --ratio 0.2 --transform grid --calibrate inputs.npz
  nz-onnx convert model.onnx --max-error 0.01
  nz-onnx convert model.onnx --mantissa-bits 8 --min-size 64KiB --json
  nz-onnx convert model.onnx --optimize native
  nz-onnx convert model.onnx --lossless --layers    one file for several budgets
  nz-onnx convert tuned.onnx --base model.nz.onnx   shares weights with the base -> tuned.nz.onnx
  nz-onnx convert tuned.onnx --base model.onnx      to store or send -> tuned.nzd

Without a target (--lossless, --ratio, --size, --bits, --max-error, --snr or
--mantissa-bits) it is half the weight bytes: per weight the most exact encoding
that gets there, lossless where lossless is enough. Where that is out of reach the
model is written all the same, with a warning. A target that you name is a
requirement; bytes then go where they spare the outputs the most error.

--calibrate runs the model in ONNX Runtime twice for each weight and input, on a
copy in the folder for temporary files. Every third input is left out. Up to four
models of the size asked for are then run on these, and the one is written whose
outputs are closest: bytes allotted by what calibration has found or evenly, each
compensated by inputs or by a rule (--compensate=on or off: by inputs only, or not).
Compensation is for weights on a grid that MatMul, Gemm and Conv multiply with. They
are rounded together, so that one may be further from the original's than half a step;
verify says which, and how far they are. Without inputs it goes by the rule: that the
errors of a sum, and of a convolution's window, should add up to nothing. With one or
two inputs there is nothing to choose by; 16 are better. plan shows what calibration
has found, and does not choose. With --calibration FILE another size of the same model
need not wait for it again.

--optimize runs ONNX Runtime's optimiser first: what it does with constants it
cannot do with compressed weights later. It loads the model whole, so convert then
needs the memory that a session does. Bytes and ratios are those of the optimised
model, and restore gives back that one. A native model that has convolutions holds
their weights in the layout of this CPU, and is refused on CPUs with another. ONNX
Runtime is taken from --ort-lib, ORT_DYLIB_PATH, the active virtual environment, or
the Python package onnxruntime, in this order.";

/// Compress the weights of an ONNX model; ONNX Runtime decodes them while it runs.
#[derive(Debug, Parser)]
#[command(name = "nz-onnx", version, after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"), max_term_width = 110)]
pub struct Cli {
    /// Options of every subcommand.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every subcommand.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Common options")]
pub struct Global {
    /// Print one JSON document to stdout, and nothing else
    #[arg(long, global = true)]
    pub json: bool,
    /// No summary, progress or warnings; errors still show
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more about each tensor and each step, on stderr
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Threads to use [default: all cores]
    #[arg(long, global = true, allow_negative_numbers = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Progress bar on stderr: auto (if it is a terminal) or never
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_possible_values = true)]
    pub progress: When,
    /// Colours: auto (on a terminal, unless NO_COLOR is set) or never
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_possible_values = true)]
    pub color: When,
}

/// Whether to show something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// Where it suits the terminal.
    Auto,
    /// Not at all.
    Never,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a model with compressed weights
    #[command(after_help = format!("{CONVERT_EXAMPLES}\n\n{EXIT_CODES}"))]
    Convert(ConvertArgs),
    /// Show what convert would do to each weight, and why
    #[command(after_help = EXIT_CODES)]
    Plan(PlanArgs),
    /// Show what is in a converted model, a plain model, a delta file or a blob file
    #[command(after_help = EXIT_CODES)]
    Inspect(InspectArgs),
    /// Check a converted model: checksums, weights, and outputs in ONNX Runtime; or a delta file
    #[command(after_help = format!("{VERIFY_EXAMPLES}\n\n{EXIT_CODES}"))]
    Verify(VerifyArgs),
    /// Write a converted model back as a plain one
    #[command(after_help = EXIT_CODES)]
    Restore(RestoreArgs),
    /// Show versions, the library's path and what this machine offers
    #[command(after_help = EXIT_CODES)]
    Env(EnvArgs),
}

const VERIFY_EXAMPLES: &str = "\
Examples:
  nz-onnx verify model.nz.onnx                                  checksums
  nz-onnx verify model.nz.onnx --original model.onnx            and every weight
  nz-onnx verify model.nz.onnx --original model.onnx --run      and the outputs of both models
  nz-onnx verify tuned.nzd --base model.onnx                    that the model comes back
  nz-onnx verify model.nz.onnx --original model.onnx --run --shape input_ids=1,16 --inputs sample.npz

ONNX Runtime (1.17 or later) is taken from --ort-lib, ORT_DYLIB_PATH, the active
virtual environment, or the Python package onnxruntime, in this order.";

/// How exact the weights must stay.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub struct TargetArgs {
    /// Change no weight
    #[arg(long)]
    pub lossless: bool,
    /// Weight bytes after over before that must be reached, for instance 0.4; exit 3 if they cannot
    #[arg(long, allow_negative_numbers = true, value_name = "R", value_parser = parse_ratio)]
    pub ratio: Option<f64>,
    /// Weight bytes after that must be reached, with a unit or without: 300MiB, 1GB; exit 3 if they cannot
    #[arg(long, allow_negative_numbers = true, value_name = "BYTES", value_parser = parse_bytes)]
    pub size: Option<u64>,
    /// Bits a weight that must be reached, on average over the weights that are compressed; exit 3 if they cannot
    #[arg(long, allow_negative_numbers = true, value_name = "B", value_parser = parse_bits)]
    pub bits: Option<f64>,
    /// The fewest bytes at which no weight changes by more than this part of itself, for instance 0.01
    #[arg(long, allow_negative_numbers = true, value_name = "E", value_parser = parse_error)]
    pub max_error: Option<f64>,
    /// The fewest bytes at which each tensor's energy is so many decibels above that of its error
    #[arg(long, allow_negative_numbers = true, value_name = "DB", value_parser = parse_decibels)]
    pub snr: Option<f64>,
    /// Round every weight to K mantissa bits (float32 has 23, float16 10, bfloat16 7)
    #[arg(long, allow_negative_numbers = true, value_name = "K", value_parser = clap::value_parser!(u8).range(0..=23))]
    pub mantissa_bits: Option<u8>,
}

/// How weights are rounded that must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TransformArg {
    /// To fewer mantissa bits: no weight's relative error passes a bound
    Cut,
    /// To a uniform grid: the least error in all, with no bound for weights near zero
    Grid,
    /// To whichever has the least error in all at the same size
    Auto,
    /// To the values of codebooks, up to 5 bits a weight
    Codebook,
}

impl TransformArg {
    /// What is meant where none is named. Those who name bytes or an error in all want the closest answers; the
    /// others get a bound for each weight.
    pub fn usual(target: &TargetArgs) -> TransformArg {
        match target.size.is_some() || target.bits.is_some() || target.snr.is_some() {
            true => TransformArg::Auto,
            false => TransformArg::Cut,
        }
    }
}

/// When weights on a grid are rounded with compensation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CompensateArg {
    /// Where it helps.
    Auto,
    /// In any case.
    On,
    /// Never.
    Off,
}

/// What ONNX Runtime does first.
#[derive(Debug, Clone, Args)]
pub struct OptimizeArgs {
    /// Let ONNX Runtime optimise the model first, which then loads it whole: off; portable, for any CPU; native, for
    /// CPUs like this one, as fast as it gets
    #[arg(long, value_name = "LEVEL", default_value = "off", hide_possible_values = true)]
    pub optimize: OptimizeLevel,
    /// libonnxruntime to optimise or calibrate with
    #[arg(long, value_name = "FILE")]
    pub ort_lib: Option<PathBuf>,
}

/// How far the model is optimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OptimizeLevel {
    /// Not at all.
    Off,
    /// For any CPU.
    Portable,
    /// For CPUs like this one.
    Native,
}

/// What blobs are made for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ProfileArg {
    /// Smallest.
    #[default]
    Compact,
    /// Fastest to decode, about 1.1 bits a weight larger: for processors without AVX-512
    Fast,
    /// Fastest to decode on a GPU, about 0.3 bits a weight larger
    Gpu,
}

/// Which weights to leave alone.
#[derive(Debug, Clone, Args)]
pub struct SelectArgs {
    /// Leave smaller weights alone; bytes, or with a unit: 4096, 4KiB, 1MiB
    #[arg(long, allow_negative_numbers = true, value_name = "BYTES", value_parser = parse_bytes, default_value = "4096")]
    pub min_size: u64,
    /// Compress int8 and uint8 weights of quantised models too, without loss: by a sixth, at the price of speed
    #[arg(long)]
    pub integers: bool,
    /// Compress only weights whose name matches; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Leave weights alone whose name matches; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Leave the weights of nodes alone whose name matches; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub exclude_nodes: Vec<String>,
}

/// How weights are coded.
#[derive(Debug, Clone, Args)]
pub struct CodingArgs {
    /// Size or speed of the encoded weights
    #[arg(long, value_enum, value_name = "PROFILE", default_value_t)]
    pub profile: ProfileArg,
    /// How to round weights where they must be: cut (mantissa bits: the relative error of each weight has a bound), grid
    /// (a uniform grid: the least error in all), auto (whichever is closer at the same size), or codebook (values found by
    /// k-means, for 5 bits a weight and less) [default: auto with --size, --bits and --snr, else cut]
    #[arg(long, value_name = "HOW", hide_possible_values = true, conflicts_with_all = ["lossless", "mantissa_bits"])]
    pub transform: Option<TransformArg>,
    /// Measure in ONNX Runtime how much the outputs suffer from an error of each weight, on these inputs, and spend bytes
    /// so that those of them that were left out of it come out closest: an .npz file or a folder of .npy files, one array per graph input; or a folder of .npz files
    #[arg(long, value_name = "PATH", conflicts_with_all = ["lossless", "mantissa_bits", "max_error", "snr"])]
    pub calibrate: Option<PathBuf>,
    /// Keep what --calibrate measures of each weight in this file, and take from it what was measured before of the same
    /// model on the same inputs, by `plan` or for another size. A file of another model or of other inputs is replaced
    #[arg(long, value_name = "FILE", requires = "calibrate")]
    pub calibration: Option<PathBuf>,
    /// Round weights on a grid (--transform grid or auto) so that each makes good what others of its sum have lost: auto (by
    /// a rule, or on the inputs of --calibrate where outputs are closer for it on those left out), on (by inputs) or off
    /// [default: auto]
    #[arg(long, value_name = "WHEN", hide_possible_values = true, num_args = 0..=1,
        require_equals = true, default_missing_value = "on")]
    pub compensate: Option<CompensateArg>,
    /// Cut weights of 64 KiB and more after so many bits each behind the sign (mantissa bits; on a grid, bits below a level's
    /// symbol), and put what is below into layers that a session need not read: nz.weights_mib says how many MiB all
    /// weights may take, nz.bits how many bits each. Up to three numbers [default: 3,7,15]
    #[arg(long, value_name = "BITS", num_args = 0..=1, require_equals = true, default_missing_value = "3,7,15",
        value_parser = parse_layers)]
    pub layers: Option<Layers>,
}

/// Where to write.
#[derive(Debug, Clone, Args)]
pub struct OutputArgs {
    /// The model to write; its data file has the same name and ".data" [default: beside the input, X.nz.onnx or
    /// X.restored.onnx]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace files that exist
    #[arg(long)]
    pub force: bool,
}

/// Options of `convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// The ONNX model
    pub model: PathBuf,
    /// How exact.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Which weights.
    #[command(flatten)]
    pub select: SelectArgs,
    /// What comes first.
    #[command(flatten)]
    pub optimize: OptimizeArgs,
    /// Where to.
    #[command(flatten)]
    pub output: OutputArgs,
    /// How coded.
    #[command(flatten)]
    pub coding: CodingArgs,
    /// Write what tells the model from FILE, another one of which it was made, such as by fine-tuning. If FILE is a converted
    /// model in the same folder: X.nz.onnx, whose weights are those of FILE's data file, changed as they are decoded; both
    /// models loaded together have FILE's weights in memory once. Else X.nzd, of which `restore` makes the model again, and
    /// which ONNX Runtime does not load. Either way no weight changes
    #[arg(long, value_name = "FILE", conflicts_with_all = ["TargetArgs", "SelectArgs", "OptimizeArgs", "profile", "transform", "layers",
        "calibrate", "compensate"])]
    pub base: Option<PathBuf>,
    /// Do everything but write
    #[arg(long)]
    pub dry_run: bool,
}

/// Options of `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The ONNX model
    pub model: PathBuf,
    /// How exact.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Which weights.
    #[command(flatten)]
    pub select: SelectArgs,
    /// What comes first.
    #[command(flatten)]
    pub optimize: OptimizeArgs,
    /// How coded.
    #[command(flatten)]
    pub coding: CodingArgs,
}

/// Options of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A converted model, a plain model, a delta file or a blob
    pub file: PathBuf,
}

/// Options of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The converted model, or a delta file
    pub model: PathBuf,
    /// The base of a delta file [default: looked for in its folder]
    #[arg(long, value_name = "FILE")]
    pub base: Option<PathBuf>,
    /// The model it was made from: compare every weight
    #[arg(long, value_name = "FILE")]
    pub original: Option<PathBuf>,
    /// Run both models in ONNX Runtime and compare their outputs; needs --original
    #[arg(long)]
    pub run: bool,
    /// Inputs for --run: an .npz file or a folder of .npy files, one array per graph input; or a folder of .npz files,
    /// one run each [default: random]
    #[arg(long, value_name = "PATH", requires = "run")]
    pub inputs: Option<PathBuf>,
    /// Shape of a random input, as NAME=2,64; may be repeated [default: 1 for each symbolic dimension, or what the
    /// original runs with: 8, 64 or 512 behind the first]
    #[arg(long, value_name = "NAME=DIMS", value_parser = parse_shape, requires = "run")]
    pub shape: Vec<ShapeArg>,
    /// Seed of the random inputs
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 0, requires = "run")]
    pub seed: u64,
    /// Largest error of an output, relative to its largest magnitude [default: 1e-5, or 1e-3 if the model has
    /// float16 or bfloat16 weights, when no weight was changed, and one level of outputs that are quantised or images of
    /// 8 bits; else outputs are reported only]
    #[arg(long, allow_negative_numbers = true, value_name = "T", value_parser = parse_tolerance, requires = "run")]
    pub tolerance: Option<f64>,
    /// libonnxruntime to use
    #[arg(long, value_name = "FILE", requires = "original")]
    pub ort_lib: Option<PathBuf>,
    /// libnz_onnx to register [default: the one beside this program]
    #[arg(long, value_name = "FILE", requires = "run")]
    pub library: Option<PathBuf>,
}

/// Options of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The converted model, or a delta file
    pub model: PathBuf,
    /// The base of a delta file [default: looked for in its folder]
    #[arg(long, value_name = "FILE")]
    pub base: Option<PathBuf>,
    /// Where to.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of `env`.
#[derive(Debug, Args)]
pub struct EnvArgs {
    /// libonnxruntime to look at
    #[arg(long, value_name = "FILE")]
    pub ort_lib: Option<PathBuf>,
}
