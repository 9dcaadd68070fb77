//! Checks a converted model: checksums, weights against the original's, outputs in ONNX Runtime.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use nz_onnx::codec::{Decoder, DeltaDecoder};
use nz_onnx::error::Error as CodecError;
use nz_onnx::format::TensorSpec;
use xxhash_rust::xxh3::xxh3_128;

use super::optimize::{self, Level, Optimized};
use super::outputs::{Ort, RunOptions, run};
use super::{check, constants, inspect};
use crate::onnx::{Error, Model, Result, Storage, Weight};
use crate::report::{Progress, json};
use crate::rewrite::{BlobFile, Recipe, RecipeBlob, base};

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
            Some(Ort::load(options.ort_lib.as_deref(), options.run.as_ref().and_then(|run| run.threads))?)
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
                    checks.push(compared(original, &source.name, Some(source), bytes)?);
                }
                // A small blob that several graphs read is in each of them; the recipe names one.
                if sources.is_empty() {
                    checks.push(compared(original, &blob.name, None, bytes)?);
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
        compensated: false,
        problem: decoded.err().map(|e| e.to_string()),
    }
}

/// A blob against the weight that it was made of: the one of that number, or else of that name.
fn compared(
    original: &Model,
    name: &str,
    source: Option<&RecipeBlob>,
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
    let weight = source.and_then(|source| original.weights().get(source.weight.0)).filter(named);
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
    let compensated = source.and_then(|source| source.compensated);
    let found = match compensated {
        None => bytes.against(&elements, &spec),
        // Which values it should have only the inputs would tell that it was rounded for; which weight it was of, the hash.
        Some(hash) if hash == xxh3_128(&elements) => check::distance(bytes.blob, &elements, &spec),
        Some(_) => Err(CodecError::Corrupt("was made of other weights than the original's".to_string())),
    };
    Ok(match found {
        Ok(found) => json::BlobCheck {
            matches_original: Some(true),
            max_relative_error: Some(found.max_relative_error),
            snr_db: found.snr_db,
            compensated: compensated.is_some(),
            ..own
        },
        Err(error) => differs(error.to_string()),
    })
}
