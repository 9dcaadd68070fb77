//! Runs a converted model beside its original and compares what they give.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nz_onnx::format::Dtype;

use super::levels;
use super::runtime::compare::Distance;
use super::runtime::inputs::{Open, Slot};
use super::runtime::session::Ran;
use super::runtime::{Array, Loaded, Runtime, inputs, locate};
use crate::onnx::{DOMAIN, Error, Model, Result, Weight};
use crate::report::json;

/// Largest relative error of an output when no weight was changed and all are float32: what another order of
/// summation makes of it.
const TOLERANCE_F32: f64 = 1e-5;
/// The same with float16 or bfloat16 weights.
const TOLERANCE_F16: f64 = 1e-3;
/// Symbolic dimensions of random inputs, tried in turn: their size, and whether only the last of an input have it.
const OPEN: [(i64, bool); 7] =
    [(1, false), (8, false), (8, true), (64, false), (64, true), (512, false), (512, true)];
/// Integers of random inputs are below this, tried in turn for each of the sizes: segments of sentences are 0 or 1.
const BELOW: [u64; 2] = [10, 2];

/// How to run the models.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// An `.npz` file, a folder of `.npy` files or one of `.npz` files; random inputs if none.
    pub inputs: Option<PathBuf>,
    /// Shapes of random inputs.
    pub shapes: BTreeMap<String, Vec<i64>>,
    /// Seed of random inputs.
    pub seed: u64,
    /// Largest error of an output relative to its largest magnitude; a default if none.
    pub tolerance: Option<f64>,
    /// libnz_onnx.
    pub library: Option<PathBuf>,
    /// Threads of a session.
    pub threads: Option<u16>,
}

/// The user's ONNX Runtime.
pub(super) struct Ort {
    path: PathBuf,
    pub(super) runtime: Runtime,
}

impl Ort {
    /// Loads libonnxruntime, as the user names it or where it is found.
    pub(super) fn load(named: Option<&Path>, threads: Option<u16>) -> Result<Ort> {
        let path = locate::require_onnxruntime(named)?;
        let runtime = Runtime::load(&path, threads)?;
        Ok(Ort { path, runtime })
    }
}

/// Runs both models on the same inputs; none, and a problem more, if the converted one does not run.
///
/// # Errors
/// The original does not run, or inputs do not fit it.
pub(super) fn run(
    converted: &Model,
    original: &Model,
    ort: &Ort,
    blobs: &[json::BlobCheck],
    options: &RunOptions,
    problems: &mut Vec<String>,
) -> Result<Option<json::RunCheck>> {
    let library = locate::require_library(options.library.as_deref())?;
    // Nodes that read a weight: the first one, which only says what the model needs, has no input.
    let custom_nodes = (converted.graphs().iter().flat_map(|g| &g.nodes))
        .filter(|n| n.domain == DOMAIN && !n.inputs.is_empty())
        .count();
    let runtime = &ort.runtime;
    let refused =
        |what: String| Error::unsupported(original.path(), format!("ONNX Runtime does not load it: {what}"));
    let mut session = runtime.open(original.path(), None).map_err(refused)?;
    let (given, expected) = expected(&mut session, options).map_err(|e| match e {
        Refused::Inputs(error) => error,
        Refused::Run(what) => Error::Usage(format!(
            "{}: ONNX Runtime does not run it on these inputs: {what}\nhelp: give other shapes with --shape, or real \
             inputs with --inputs",
            original.path().display()
        )),
    })?;
    drop(session);

    // A session exists only if every node has a kernel: with the library registered, those of domain nz too.
    let outcome =
        runtime.open(converted.path(), Some(&library)).and_then(|mut session| run_all(&mut session, &given));
    let found = match outcome {
        Ok(found) => found,
        Err(what) => {
            problems.push(format!("ONNX Runtime does not load and run the converted model: {what}"));
            return Ok(None);
        }
    };
    let usual = default_tolerance(original, blobs);
    let mut tolerance = options.tolerance.or(usual);
    let levels = |name: &str| options.tolerance.is_none() && levels::is_rounded_last(original, name);
    let mut checks = check_outputs(&expected, &found, tolerance, levels);
    let mut own_error = None;
    if options.tolerance.is_none()
        && let Some(usual) = usual
        && checks.iter().any(|check| check.problem.is_none() && check.within_tolerance == Some(false))
    {
        // Some nets answer to the order of summation alone: then that is the measure.
        let unoptimized = runtime
            .open_unoptimized(original.path())
            .and_then(|mut session| run_all(&mut session, &given))
            .map_err(refused)?;
        let own = check_outputs(&expected, &unoptimized, None, |_| false);
        let own = own.iter().filter_map(|check| check.max_error_to_largest).fold(0.0, f64::max);
        (own_error, tolerance) = (Some(own), Some(usual.max(2.0 * own)));
        checks = check_outputs(&expected, &found, tolerance, levels);
    }
    let seconds = |ran: &[Ran]| ran.iter().map(|ran| ran.time.as_secs_f64()).sum();
    Ok(Some(json::RunCheck {
        ort_lib: ort.path.display().to_string(),
        library: library.display().to_string(),
        custom_nodes,
        runs: given.len(),
        tolerance,
        own_error,
        original_seconds: seconds(&expected),
        converted_seconds: seconds(&found),
        outputs: checks,
    }))
}

/// The inputs of one run, by name.
type Inputs = BTreeMap<String, Array>;

/// Why the original gives nothing to compare with.
enum Refused {
    Inputs(Error),
    /// What ONNX Runtime says.
    Run(String),
}

/// The inputs of a comparison, and what the original makes of them. Random ones get larger until it runs: many models
/// take no sound of one sample and no image of one pixel.
fn expected(
    session: &mut Loaded,
    options: &RunOptions,
) -> std::result::Result<(Vec<Inputs>, Vec<Ran>), Refused> {
    let slots = session.inputs().map_err(Refused::Inputs)?;
    if let Some(path) = &options.inputs {
        let given = inputs::given(path, &slots).map_err(Refused::Inputs)?;
        let ran = run_all(session, &given).map_err(Refused::Run)?;
        return Ok((given, ran));
    }
    let is_open =
        |slot: &Slot| !options.shapes.contains_key(&slot.name) && slot.shape.iter().skip(1).any(|&d| d < 0);
    let tries = if slots.iter().any(is_open) { &OPEN[..] } else { &OPEN[..1] };
    let mut first = None;
    let integers = if slots.iter().any(Slot::is_integer) { &BELOW[..] } else { &BELOW[..1] };
    let all = tries
        .iter()
        .flat_map(|&(size, only_last)| integers.iter().map(move |&below| Open { size, only_last, below }));
    for open in all {
        let random = inputs::random(&slots, &options.shapes, open, options.seed).map_err(Refused::Inputs)?;
        let given = vec![random];
        match run_all(session, &given) {
            Ok(ran) => return Ok((given, ran)),
            Err(what) => first = first.or(Some(what)),
        }
    }
    Err(Refused::Run(first.unwrap_or_default()))
}

/// Runs a model on each of the inputs.
fn run_all(session: &mut Loaded, inputs: &[Inputs]) -> std::result::Result<Vec<Ran>, String> {
    inputs.iter().map(|inputs| session.run(inputs)).collect()
}

/// An output of a run, if it has one of that name.
fn output<'a>(ran: &'a Ran, name: &str) -> Option<&'a std::result::Result<Array, String>> {
    ran.outputs.iter().find(|(n, _)| n == name).map(|(_, output)| output)
}

/// Every output of the original against that of another model, over all runs; `levels` says of which ones a number is
/// allowed to be the next one.
fn check_outputs(
    expected: &[Ran],
    found: &[Ran],
    tolerance: Option<f64>,
    levels: impl Fn(&str) -> bool,
) -> Vec<json::OutputCheck> {
    let names = expected.first().into_iter().flat_map(|ran| ran.outputs.iter().map(|(name, _)| name));
    names.map(|name| check_output(name, expected, found, tolerance, levels(name))).collect()
}

/// One output of the original against that of the converted model, over all runs.
fn check_output(
    name: &str,
    expected: &[Ran],
    found: &[Ran],
    tolerance: Option<f64>,
    levels: bool,
) -> json::OutputCheck {
    let mut check = json::OutputCheck {
        name: name.to_string(),
        shape: expected.first().and_then(|ran| output(ran, name)?.as_ref().ok()).map(|e| e.shape.clone()),
        max_abs_error: None,
        max_error_to_largest: None,
        snr_db: None,
        least_cosine: None,
        top1_agreement: None,
        top5_agreement: None,
        within_tolerance: None,
        skipped: None,
        problem: None,
    };
    let mut distance = Distance::default();
    for (expected, found) in expected.iter().zip(found) {
        let compared = match (output(expected, name), output(found, name)) {
            (Some(Ok(expected)), Some(Ok(found))) => distance.add(expected, found),
            (Some(Err(what)), _) => {
                check.skipped = Some(format!("not compared: {what}"));
                return check;
            }
            (Some(Ok(_)), Some(Err(what))) => Err(what.clone()),
            (None, _) | (_, None) => Err("is missing".to_string()),
        };
        if let Err(problem) = compared {
            check.problem = Some(problem);
            return check;
        }
    }
    let finite = |value: f64| Some(value).filter(|v| v.is_finite());
    check.max_abs_error = finite(distance.absolute);
    check.max_error_to_largest = finite(distance.relative);
    check.snr_db = distance.snr_db().and_then(finite);
    check.least_cosine = distance.least_cosine;
    (check.top1_agreement, check.top5_agreement) = (distance.top1(), distance.top5());
    // Values that are not finite in one model only are wrong at any tolerance.
    check.within_tolerance = match (tolerance, distance.relative.is_finite()) {
        (_, false) => Some(false),
        (tolerance, true) => tolerance.map(|t| distance.relative <= t || levels && distance.absolute <= 1.0),
    };
    check
}

/// None where weights were rounded: how much that matters is the user's to say.
fn default_tolerance(original: &Model, blobs: &[json::BlobCheck]) -> Option<f64> {
    let short = |w: &Weight| matches!(w.dtype(), Some(Dtype::F16 | Dtype::Bf16));
    blobs.iter().all(|b| b.lossless).then(|| match original.weights().iter().any(short) {
        true => TOLERANCE_F16,
        false => TOLERANCE_F32,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ort::value::TensorElementType;

    use super::*;

    fn ran(bytes: &[u8]) -> Vec<Ran> {
        let array =
            Array { dtype: TensorElementType::Uint8, shape: vec![bytes.len() as i64], bytes: bytes.to_vec() };
        vec![Ran { outputs: vec![("y".to_string(), Ok(array))], time: Duration::ZERO }]
    }

    #[test]
    fn levels_may_be_the_next_ones() {
        let within = |found: &[u8], tolerance, levels| {
            check_output("y", &ran(&[7, 8, 9]), &ran(found), tolerance, levels).within_tolerance
        };
        assert_eq!(within(&[7, 9, 8], Some(TOLERANCE_F32), true), Some(true));
        assert_eq!(within(&[7, 9, 8], Some(TOLERANCE_F32), false), Some(false));
        assert_eq!(within(&[7, 8, 11], Some(TOLERANCE_F32), true), Some(false));
        assert_eq!(within(&[7, 8, 9], Some(TOLERANCE_F32), false), Some(true));
        assert_eq!(within(&[7, 9, 8], None, true), None);
    }
}
