//! Weights that stay constants of ONNX Runtime's and are stored shorter: [`crate::rewrite::fold`].

use nz_onnx::codec::allocation::Folded;
use xxhash_rust::xxh3::xxh3_64;

use super::allocation::Candidate;
use super::check::Match;
use crate::onnx::{Error, Model, Result, Source, Storage, Weight};
use crate::report::json;
use crate::rewrite::{BlobFile, Constant, Form, Recipe, RecipeBlob, fold};

/// What the forms of a weight would cost.
///
/// # Errors
/// It cannot be read.
pub fn candidate(model: &Model, weight: &Weight) -> Result<Candidate> {
    let source = model.read_weight(weight)?;
    let ways = fold::ways(&weight.shape).filter_map(|how| {
        let stored = fold::encode(&source, how, &weight.shape)?;
        let found = fold::decode(&stored, how, fold::scales(how, &weight.shape))?;
        Some((how, stored.len() as u64, fold::error(&source, &found).noise))
    });
    Ok(Candidate::folded(weight.elements, ways.collect()))
}

/// A weight in a form, checked, and what is to be known of it.
///
/// # Errors
/// It is no weight for this form.
pub fn encode(weight: &Weight, source: &[u8], how: Folded) -> Result<(Vec<u8>, Form, Match)> {
    let failed =
        || Error::Internal(format!("weight {:?} does not fit the form that was foreseen", weight.name));
    let stored = fold::encode(source, how, &weight.shape).ok_or_else(failed)?;
    let found = compare(&stored, source, how, &weight.shape).ok_or_else(failed)?;
    let form = Form { how, checksum: xxh3_64(&stored), exact: found.lossless };
    Ok((stored, form, found))
}

/// How far a form is from its source; none if it is not the source's.
fn compare(stored: &[u8], source: &[u8], how: Folded, shape: &[u64]) -> Option<Match> {
    let found =
        fold::decode(stored, how, fold::scales(how, shape)).filter(|found| found.len() == source.len())?;
    let errors = fold::error(source, &found);
    let rms = (errors.energy / (source.len() / 4) as f64).sqrt();
    fold::is_of(stored, source, how, shape).then_some(Match {
        lossless: errors.exact,
        max_relative_error: errors.relative,
        max_error_to_rms: (errors.largest > 0.0).then_some(errors.largest / rms),
        snr_db: (errors.noise > 0.0).then(|| -10.0 * errors.noise.log10()),
    })
}

/// The name of a form, as reports have it.
pub fn name(how: Folded) -> &'static str {
    match how {
        Folded::Half => "constant float16",
        Folded::Rows => "constant int8 per row",
        Folded::Whole => "constant int8",
    }
}

/// The weights of a converted model that are stored so.
pub fn of(model: &Model) -> Vec<RecipeBlob> {
    // Without a recipe nothing is known of them but the tensors that they are made of.
    let blobs = Recipe::read(model).map(|recipe| recipe.blobs()).unwrap_or_default();
    blobs.into_iter().filter(|blob| blob.constant.is_some()).collect()
}

/// Checks those of `model`, against `original` if there is one.
///
/// # Errors
/// A weight of the original cannot be read.
pub fn check(model: &Model, original: Option<&Model>) -> Result<Vec<json::BlobCheck>> {
    let mut checks = Vec::new();
    for blob in of(model) {
        let Some(constant) = blob.constant else { continue };
        let mut check = json::BlobCheck {
            name: blob.name.clone(),
            checksum_ok: false,
            matches_original: original.map(|_| false),
            lossless: constant.exact,
            max_relative_error: None,
            snr_db: None,
            compensated: false,
            problem: None,
        };
        match bytes(model, &blob, &constant) {
            Err(error) => check.problem = Some(error.to_string()),
            Ok(stored) => {
                check.checksum_ok = true;
                if let Some(original) = original {
                    compare_with(original, &blob, &stored, constant.how, &mut check)?;
                }
            }
        }
        checks.push(check);
    }
    Ok(checks)
}

fn compare_with(
    original: &Model,
    blob: &RecipeBlob,
    stored: &[u8],
    how: Folded,
    check: &mut json::BlobCheck,
) -> Result<()> {
    let named = |w: &&Weight| w.name == blob.name;
    let weight = original.weights().get(blob.weight.0).filter(named);
    let Some(weight) = weight.or_else(|| original.weights().iter().find(named)) else {
        check.problem = Some("the original has no weight of this name".to_string());
        return Ok(());
    };
    let source = original.read_weight(weight)?;
    match compare(stored, &source, how, &weight.shape) {
        None => check.problem = Some("is not what the original's weight becomes".to_string()),
        Some(found) => {
            check.matches_original = Some(true);
            check.max_relative_error = Some(found.max_relative_error);
            check.snr_db = found.snr_db;
        }
    }
    Ok(())
}

/// Scales and elements of a constant of `model`.
fn bytes(model: &Model, blob: &RecipeBlob, constant: &Constant) -> Result<Vec<u8>> {
    if blob.file == BlobFile::Model {
        return constant.bytes(model.source(), blob.offset, blob.len);
    }
    let holder = model.weights().iter().find_map(|weight| match &weight.storage {
        Storage::External { path, offset, .. } if *offset == blob.offset => Some(path),
        _ => None,
    });
    let missing = || Error::corrupt(model.path(), format!("weight {:?} has no data file", blob.name));
    constant.bytes(&Source::open(holder.ok_or_else(missing)?)?, blob.offset, blob.len)
}

/// Whether a tensor of a converted model is one that its constants are made of.
pub fn is_part(weight: &Weight, constants: &[RecipeBlob]) -> bool {
    let (file, at) = match &weight.storage {
        Storage::Plain(range) => (BlobFile::Model, range.start),
        Storage::External { offset, .. } => (BlobFile::Data, *offset),
        _ => return false,
    };
    let is_at = |blob: &RecipeBlob| {
        let scales = blob.constant.filter(|constant| constant.scales > 0).map(|constant| constant.scales_at);
        blob.file == file && (blob.offset == at || scales == Some(at))
    };
    constants.iter().any(is_at)
}
