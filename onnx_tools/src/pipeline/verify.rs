//! Checks a converted model: checksums, weights against the original's, outputs in ONNX Runtime.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use nz_onnx::codec::{Decoder, DeltaDecoder};
use nz_onnx::error::Error as CodecError;
use nz_onnx::format::{Dtype, TensorSpec};

use super::optimize::{self, Level, Optimized};
use super::runtime::compare::Distance;
use super::runtime::inputs::{Open, Slot};
use super::runtime::session::Ran;
use super::runtime::{Array, Loaded, Runtime, inputs, locate};
use super::{check, constants, inspect};
use crate::onnx::{DOMAIN, Error, Model, Result, Storage, Weight, WeightId};
use crate::report::{Progress, json};
use crate::rewrite::{BlobFile, Recipe, RecipeBlob, base};

/// Largest relative error of an output when no weight was changed and all are float32: what another order of
/// summation makes of it.
const TOLERANCE_F32: f64 = 1e-5;
/// The same with float16 or bfloat16 weights.
const TOLERANCE_F16: f64 = 1e-3;
/// Symbolic dimensions of random inputs, tried in turn.
const OPEN: [Open; 7] = {
    const fn open(size: i64, only_last: bool) -> Open {
        Open { size, only_last }
    }
    let [a, b, c] = [open(8, false), open(64, false), open(512, false)];
    [open(1, false), a, open(8, true), b, open(64, true), c, open(512, true)]
};

/// What to check.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// The model that the converted one was made from.
    pub original: Option<PathBuf>,
    /// libonnxruntime as the user names it, to run both and to optimise the original as the converted one was.
    pub ort_lib: Option<PathBuf>,
    /// How to run both, if they are to be run.
    pub run: Option<RunOptions>,
}

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

/// Checks the converted model at `path`. Failed checks are in the document; `ok` says whether there are any.
///
/// # Errors
/// A check could not be made: files that cannot be read, blobs of a later version, no ONNX Runtime, inputs that
/// do not fit.
pub fn verify(path: &Path, options: &VerifyOptions, progress: &Progress) -> Result<json::Verify> {
    if options.run.is_some() && options.original.is_none() {
        return Err(Error::Usage(
            "--run compares outputs with those of the original\nhelp: name it with --original; `nz-onnx restore` \
             can make it from the converted model"
                .to_string(),
        ));
    }
    let model = Model::open(path)?;
    if !inspect::is_converted(&model) {
        return Err(Error::Usage(format!(
            "{}: is not a converted model\nhelp: `nz-onnx convert` makes one",
            path.display()
        )));
    }
    let original = options.original.as_deref().map(Model::open).transpose()?;
    let made_from = model.metadata(optimize::ORIGINAL_SHA256).or(model.metadata("nz.source_sha256"));
    if let Some(original) = &original
        && made_from.is_some_and(|hash| original.sha256().is_ok_and(|h| h != hash))
    {
        progress.warn(&format!(
            "{} is not byte for byte the model that {} was made from",
            original.path().display(),
            path.display()
        ));
    }
    let ort = match &original {
        Some(_) if options.run.is_some() || model.metadata(optimize::LEVEL).is_some() => {
            Some(Ort::load(options)?)
        }
        _ => None,
    };
    let reference = match original {
        Some(original) => Some(Reference::new(&model, original, ort.as_ref(), options.run.is_some())?),
        None => None,
    };
    let weights = reference.as_ref().and_then(Reference::weights);
    let mut problems = Vec::new();
    match base::open_checked(&model) {
        Err(error @ Error::Corrupt { .. }) => problems.push(error.to_string()),
        outcome => drop(outcome?),
    }
    let mut blobs = check_blobs(&model, weights, progress)?;
    blobs.extend(constants::check(&model, weights)?);
    let run = match (&options.run, &reference, &ort) {
        (Some(options), Some(reference), Some(ort)) => {
            run(&model, &reference.original, ort, &blobs, options, &mut problems)?
        }
        _ => None,
    };
    let outputs_ok = run.as_ref().is_none_or(|run| {
        run.outputs.iter().all(|o| o.problem.is_none() && o.within_tolerance != Some(false))
    });
    Ok(json::Verify {
        schema: "nz-onnx.verify/1",
        path: path.display().to_string(),
        original: options.original.as_ref().map(|p| p.display().to_string()),
        compared_with: reference.as_ref().and_then(Reference::name),
        not_compared: reference.and_then(|r| r.weights.err()),
        ok: problems.is_empty() && outputs_ok && blobs.iter().all(|b| b.problem.is_none()),
        blobs,
        run,
        problems,
    })
}

/// The user's ONNX Runtime.
struct Ort {
    path: PathBuf,
    runtime: Runtime,
}

impl Ort {
    fn load(options: &VerifyOptions) -> Result<Ort> {
        let path = locate::require_onnxruntime(options.ort_lib.as_deref())?;
        let runtime = Runtime::load(&path, options.run.as_ref().and_then(|run| run.threads))?;
        Ok(Ort { path, runtime })
    }
}

/// What a converted model is compared with.
struct Reference {
    original: Model,
    /// The original as it was optimised before it was converted, if it was; or why there is no such model.
    weights: std::result::Result<Option<(Model, Optimized)>, String>,
}

impl Reference {
    /// `original`, optimised again if `converted` was made from it optimised. Where that gives another model, only
    /// outputs can be compared, and unless they are to be, that is an error.
    fn new(converted: &Model, original: Model, ort: Option<&Ort>, has_run: bool) -> Result<Reference> {
        let (Some(level), Some(ort)) = (converted.metadata(optimize::LEVEL), ort) else {
            return Ok(Reference { original, weights: Ok(None) });
        };
        let made_by = converted.metadata(optimize::ORT_VERSION).unwrap_or_default();
        let version = ort.runtime.version();
        let weights = match Level::from_name(level) {
            None => Err(format!(
                "this version of nz-onnx does not know the level {level:?} that it was optimised at"
            )),
            Some(_) if version != made_by => {
                Err(format!("it was optimised by ONNX Runtime {made_by}, and this is {version}"))
            }
            Some(level) => {
                let beside = std::env::temp_dir().join("nz-onnx.verify");
                let optimized = optimize::optimize_in(&ort.runtime, original.path(), &beside, level)?;
                let again = Model::open(&optimized.path)?;
                if Some(again.sha256()?) == converted.metadata("nz.source_sha256") {
                    Ok(Some((again, optimized)))
                } else {
                    Err(format!(
                        "ONNX Runtime {version} makes another model of {} here than the one that was converted",
                        original.path().display()
                    ))
                }
            }
        };
        match &weights {
            Err(why) if !has_run => Err(Error::unsupported(
                converted.path(),
                format!(
                    "the weights cannot be compared with those of {}: {why}\nhelp: name ONNX Runtime {made_by} with \
                     --ort-lib, on a machine like the one that optimised; or compare outputs with --run",
                    original.path().display()
                ),
            )),
            _ => Ok(Reference { original, weights }),
        }
    }

    /// The model with whose weights blobs are compared.
    fn weights(&self) -> Option<&Model> {
        match &self.weights {
            Ok(Some((optimized, _))) => Some(optimized),
            Ok(None) => Some(&self.original),
            Err(_) => None,
        }
    }

    /// That model in words.
    fn name(&self) -> Option<String> {
        let original = self.original.path().display();
        match &self.weights {
            Ok(Some((_, optimized))) => {
                Some(format!("{original} as ONNX Runtime {} optimises it", optimized.origin.ort_version))
            }
            Ok(None) => Some(original.to_string()),
            Err(_) => None,
        }
    }
}

/// Where a blob's bytes start: what tells blobs apart.
type Place = (BlobFile, u64);

fn check_blobs(model: &Model, original: Option<&Model>, progress: &Progress) -> Result<Vec<json::BlobCheck>> {
    let mut sources: HashMap<Place, Vec<RecipeBlob>> = HashMap::new();
    if original.is_some() {
        for blob in Recipe::read(model)?.blobs() {
            sources.entry((blob.file, blob.offset)).or_default().push(blob);
        }
    }
    let blobs = model.blobs();
    let total = blobs.iter().map(|b| model.weight(b.weight).bytes).sum();
    let mut step = progress.step("checking", total);
    let mut checks = Vec::new();
    let mut seen = HashSet::new();
    for blob in blobs {
        let holder = model.weight(blob.weight);
        let place = place(model, holder);
        if place.is_some_and(|place| !seen.insert(place)) {
            continue;
        }
        let bytes = model.read_weight(holder)?;
        let base = blob.base.map(|base| model.read_weight(model.weight(base))).transpose()?;
        let bytes = Bytes { blob: &bytes, base: base.as_deref() };
        if let Err(error @ CodecError::Unsupported(_)) = bytes.spec() {
            return Err(Error::codec(model.path(), &blob.name, error));
        }
        match original {
            None => checks.push(alone(&blob.name, bytes)),
            Some(original) => {
                let sources = place.and_then(|place| sources.remove(&place)).unwrap_or_default();
                for source in &sources {
                    checks.push(compared(original, Some(source.weight), &source.name, bytes)?);
                }
                // A small blob that several graphs read is in each of them; the recipe names one.
                if sources.is_empty() {
                    checks.push(compared(original, None, &blob.name, bytes)?);
                }
            }
        }
        step.advance(holder.bytes);
    }
    Ok(checks)
}

fn place(model: &Model, holder: &Weight) -> Option<Place> {
    match &holder.storage {
        Storage::Plain(range) => Some((BlobFile::Model, range.start)),
        Storage::External { location, offset, .. } => {
            let in_base = model.metadata(base::FILE) == Some(location);
            Some((if in_base { BlobFile::Base } else { BlobFile::Data }, *offset))
        }
        _ => None,
    }
}

/// A blob, and the one that it is a delta to, if it is one.
#[derive(Clone, Copy)]
struct Bytes<'a> {
    blob: &'a [u8],
    base: Option<&'a [u8]>,
}

impl Bytes<'_> {
    /// Dtype, shape and layout.
    fn spec(self) -> nz_onnx::error::Result<TensorSpec> {
        match self.base {
            None => Ok(Decoder::open_unverified(self.blob)?.header().spec.clone()),
            Some(base) => Ok(DeltaDecoder::open_unverified(self.blob, base)?.header().spec.clone()),
        }
    }

    /// The weight's elements, and whether they are the original's, all checksums compared.
    fn decode(self) -> nz_onnx::error::Result<(Vec<u8>, bool)> {
        match self.base {
            None => {
                let decoder = Decoder::open(self.blob)?;
                Ok((decoder.decode_bytes(self.blob)?, decoder.header().is_lossless()))
            }
            Some(base) => Ok((DeltaDecoder::open(self.blob, base)?.decode_bytes(self.blob, base)?, true)),
        }
    }

    /// The weight against its source.
    fn against(self, elements: &[u8], spec: &TensorSpec) -> nz_onnx::error::Result<check::Match> {
        match self.base {
            None => check::against_source(self.blob, elements, spec),
            Some(_) if self.decode()?.0 == elements => Ok(check::Match::EXACT),
            Some(_) => Err(CodecError::Corrupt("decodes to other weights than the original's".to_string())),
        }
    }
}

/// A blob by itself: header, payload and decoded weight against their checksums.
fn alone(name: &str, bytes: Bytes<'_>) -> json::BlobCheck {
    let decoded = bytes.decode().map(|(_, lossless)| lossless);
    json::BlobCheck {
        name: name.to_string(),
        checksum_ok: decoded.is_ok(),
        matches_original: None,
        lossless: decoded.as_ref().is_ok_and(|lossless| *lossless),
        max_relative_error: None,
        snr_db: None,
        problem: decoded.err().map(|e| e.to_string()),
    }
}

/// A blob against the weight that it was made of: the one of that number, or else of that name.
fn compared(
    original: &Model,
    number: Option<WeightId>,
    name: &str,
    bytes: Bytes<'_>,
) -> Result<json::BlobCheck> {
    let own = alone(name, bytes);
    if !own.checksum_ok {
        return Ok(json::BlobCheck { matches_original: Some(false), ..own });
    }
    let differs = |problem: String| json::BlobCheck {
        matches_original: Some(false),
        problem: Some(problem),
        ..own.clone()
    };
    let named = |w: &&Weight| w.name == name;
    let weight = number.and_then(|id| original.weights().get(id.0)).filter(named);
    let Some(weight) = weight.or_else(|| original.weights().iter().find(named)) else {
        return Ok(differs("the original has no weight of this name".to_string()));
    };
    let failed = |e| Error::codec(original.path(), name, e);
    let spec = bytes.spec().map_err(failed)?;
    if weight.dtype() != Some(spec.dtype) || weight.shape != spec.shape {
        return Ok(differs(format!(
            "is {} {:?}, but {} {:?} in the original",
            spec.dtype.name(),
            spec.shape,
            weight.dtype_name(),
            weight.shape
        )));
    }
    let elements = original.read_weight(weight)?;
    Ok(match bytes.against(&elements, &spec) {
        Ok(found) => json::BlobCheck {
            matches_original: Some(true),
            max_relative_error: Some(found.max_relative_error),
            snr_db: found.snr_db,
            ..own
        },
        Err(error) => differs(error.to_string()),
    })
}

fn run(
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
    let mut checks = check_outputs(&expected, &found, tolerance);
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
        let own = check_outputs(&expected, &unoptimized, None);
        let own = own.iter().filter_map(|check| check.max_error_to_largest).fold(0.0, f64::max);
        (own_error, tolerance) = (Some(own), Some(usual.max(2.0 * own)));
        checks = check_outputs(&expected, &found, tolerance);
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
    for &open in tries {
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

/// Every output of the original against that of another model, over all runs.
fn check_outputs(expected: &[Ran], found: &[Ran], tolerance: Option<f64>) -> Vec<json::OutputCheck> {
    let names = expected.first().into_iter().flat_map(|ran| ran.outputs.iter().map(|(name, _)| name));
    names.map(|name| check_output(name, expected, found, tolerance)).collect()
}

/// One output of the original against that of the converted model, over all runs.
fn check_output(name: &str, expected: &[Ran], found: &[Ran], tolerance: Option<f64>) -> json::OutputCheck {
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
        (tolerance, true) => tolerance.map(|t| distance.relative <= t),
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
