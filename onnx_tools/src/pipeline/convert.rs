//! Converts a model: encode, verify, write beside, check, rename.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use nz_onnx::codec::{self, Coding};
use nz_onnx::format::Header;

use super::allocation::{Encoding, Target};
use super::compensate::Compensated;
use super::inspect::Coded;
use super::layering::Layers;
use super::optimize::{OptimizeOptions, Optimized, optimize};
use super::overlap::{Budget, Share};
use super::paths::OutputFiles;
use super::planning::{Choice, Options, Prepared};
use super::trial::{Tried, best, only};
use super::writer::{Task, Writer};
use super::{check, constants};
use crate::delta::shared::{Shared, SharedBase, delta_name};
use crate::onnx::{Error, Model, Result, Weight, WeightId};
use crate::report::{Progress, json};
use crate::rewrite::{BaseBlob, Compression, Decision, DepthBytes, Placement, PlanBase, UseKind};
use crate::staged::{Staged, commit};

/// How to convert.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// What to choose.
    pub plan: Options,
    /// A converted model from whose data file weights are taken, as they are or with a delta.
    pub base: Option<PathBuf>,
    /// Let ONNX Runtime optimise the model first.
    pub optimize: Option<OptimizeOptions>,
    /// The model to write; beside the input if none.
    pub output: Option<PathBuf>,
    /// Replace files that exist.
    pub force: bool,
    /// Write nothing.
    pub dry_run: bool,
}

/// A blob as it came out.
struct Encoded {
    bytes: u64,
    found: check::Match,
    base: Option<OfBase>,
    /// Bytes at each depth, if blobs get layers.
    depths: Vec<u64>,
}

/// What a weight has of the base.
#[derive(Debug, Clone)]
struct OfBase {
    blob: BaseBlob,
    encoding: &'static str,
}

/// Converts the model at `path`.
///
/// # Errors
/// Whatever it is, nothing lies under the final names then, or what lay there before.
pub fn convert(path: &Path, options: &ConvertOptions, progress: &Progress) -> Result<json::Convert> {
    let files = OutputFiles::converted(path, options.output.as_deref())?;
    let model = Model::open(path)?;
    if !options.dry_run {
        files.check(&model, options.force)?;
    }
    drop(model);
    let optimized =
        options.optimize.as_ref().map(|how| optimize(path, &files.model, how, progress)).transpose()?;
    let Some(optimized) = optimized else {
        return convert_to(path, None, &files, options, progress);
    };
    convert_to(&optimized.path, Some(&optimized), &files, options, progress)
        .map_err(|e| optimized.rename(path, e))
}

/// Converts the model at `path`, which may be another one as optimised.
fn convert_to(
    path: &Path,
    optimized: Option<&Optimized>,
    files: &OutputFiles,
    options: &ConvertOptions,
    progress: &Progress,
) -> Result<json::Convert> {
    let base = options.base.as_deref().map(|base| SharedBase::open(base, files)).transpose()?;
    let Tried { prepared, compensated, document: trial } = match &options.plan.calibrate {
        Some(how) => best(path, &options.plan, how, progress)?,
        None => only(path, &options.plan, progress)?,
    };
    let compensated = compensated.as_ref();
    let writer = Writer::new(files, options.dry_run);
    let layers = options.plan.layers.as_ref();
    let how = How { base: base.as_ref(), layers, compensated };
    let (encoded, writer, placements) = transfer(&prepared, how, writer, progress)?;
    let mut document = document(&prepared, base.as_ref(), &encoded, options.plan.target)?;
    if let Some(trial) = trial {
        document.warnings.extend(trial.shortfall());
        document.trial = Some(trial);
    }
    if let Some(optimized) = optimized {
        document.input = optimized.input();
        document.optimized = Some(optimized.document());
        document.warnings.extend(optimized.remark(document.totals.bytes_after));
    }
    if options.dry_run {
        return Ok(document);
    }
    let base = base.map(|base| plan_base(&base, &encoded)).filter(|base| !base.blobs.is_empty());
    let depths = DepthBytes::new(encoded.into_iter().map(|(id, encoded)| (id, encoded.depths)));
    let hashes = compensated.map(Compensated::hashes).unwrap_or_default();
    let staged = writer.finish(&prepared, placements, base, depths, hashes, optimized)?;
    document.output = Some(json::Output {
        path: files.model.display().to_string(),
        data_path: staged.data.as_ref().map(|_| files.data.display().to_string()),
        bytes: staged.model.position() + staged.data.as_ref().map_or(0, Staged::position),
    });
    if staged.data.is_none() && files.data.exists() {
        let stale =
            format!("{} belongs to no model any more: this one needs no data file", files.data.display());
        document.warnings.push(stale);
    }
    commit(staged.data.into_iter().chain([staged.model]).collect(), options.force)?;
    Ok(document)
}

/// What the plan takes from the base.
fn plan_base(base: &SharedBase, encoded: &BTreeMap<WeightId, Encoded>) -> PlanBase {
    let blobs = encoded.iter().filter_map(|(id, encoded)| Some((*id, encoded.base.as_ref()?.blob)));
    PlanBase { blobs: blobs.collect(), ..base.plan() }
}

/// What weights become besides blobs of their own.
#[derive(Clone, Copy)]
struct How<'a> {
    base: Option<&'a SharedBase>,
    layers: Option<&'a Layers>,
    compensated: Option<&'a Compensated>,
}

/// A weight that has been read, with the memory that it and its blob take.
struct Read {
    source: Vec<u8>,
    /// As it was rounded to make good other weights' errors, if it was.
    rounded: Option<Vec<u8>>,
    memory: Share,
}

type Transferred<'a> = (BTreeMap<WeightId, Encoded>, Writer<'a>, BTreeMap<WeightId, Placement>);

/// Encodes what is to be encoded and puts everything in its place: while one weight is encoded and checked, the next
/// ones are read and the ones before are written.
fn transfer<'a>(
    prepared: &Prepared,
    how: How<'_>,
    mut writer: Writer<'a>,
    progress: &Progress,
) -> Result<Transferred<'a>> {
    let (weights, dry_run) = (prepared.model.weights(), writer.dry_run);
    let mut step = progress.step("encoding", weights.iter().map(|w| work(prepared, w)).sum());
    let budget = Budget::new(weights.iter().map(|w| work(prepared, w)).max().unwrap_or(0));
    let (to_encoder, reads) = mpsc::channel::<Result<Read>>();
    let (to_writer, tasks) = mpsc::channel::<(&Weight, Task)>();
    std::thread::scope(|scope| {
        scope.spawn(move || read_ahead(prepared, how.compensated, &budget, &to_encoder));
        let writing = scope.spawn(move || {
            let mut placements = BTreeMap::new();
            for (weight, task) in tasks {
                placements.insert(weight.id, writer.perform(&prepared.model, weight, task)?);
            }
            Ok((writer, placements))
        });
        let mut encoded: BTreeMap<WeightId, Encoded> = BTreeMap::new();
        let mut tasks = weights.iter().filter_map(|weight| {
            let task = match (&prepared.choices[weight.id.0], &prepared.decisions[weight.id.0]) {
                (Choice::Encoded { copy_of: Some(first), .. }, _) => Ok(Task::SameAs(*first)),
                (Choice::Encoded { group, encoding, .. }, Decision::Compress(compression)) => next(&reads)
                    .and_then(|read| encode(prepared, how, weight, compression, *group, read))
                    .map(|Made { blob, found, base, depths, memory }| {
                        let coded = match &base {
                            Some(base) => base.encoding.to_string(),
                            None => Coded::of(*encoding, found.lossless).name(),
                        };
                        let bytes = blob.as_ref().map_or(0, Vec::len) as u64;
                        progress
                            .note(&format!("{}: {} -> {bytes} bytes, {coded}", weight.name, weight.bytes));
                        encoded.insert(weight.id, Encoded { bytes, found, base, depths });
                        blob.map_or(Task::InBase, |blob| Task::Place { blob, form: None, memory })
                    }),
                (Choice::Encoded { encoding: Encoding::Folded(how), .. }, _) => next(&reads)
                    .and_then(|Read { source, memory, .. }| {
                        Ok((constants::encode(weight, &source, *how)?, memory))
                    })
                    .map(|((blob, form, found), memory)| {
                        let bytes = blob.len() as u64;
                        encoded.insert(weight.id, Encoded { bytes, found, base: None, depths: Vec::new() });
                        Task::Place { blob, form: Some(form), memory }
                    }),
                _ if weight.is_external() && !dry_run => Ok(Task::Copy),
                _ => return None,
            };
            step.advance(work(prepared, weight));
            Some(task.map(|task| (weight, task)))
        });
        // A writer that takes no more has an error to tell.
        let done = tasks.try_for_each(|task| {
            task.map(|task| to_writer.send(task).is_ok()).and_then(|sent| {
                if sent { Ok(()) } else { Err(Error::Internal("writing has stopped".to_string())) }
            })
        });
        drop((to_writer, reads));
        let written = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (writer, placements) = written?;
        done?;
        Ok((encoded, writer, placements))
    })
}

/// Bytes that a weight makes work for.
fn work(prepared: &Prepared, weight: &Weight) -> u64 {
    match &prepared.choices[weight.id.0] {
        Choice::Encoded { copy_of: None, .. } => weight.bytes,
        _ => 0,
    }
}

/// Reads the weights to be encoded, in order, as the budget lets it.
fn read_ahead(
    prepared: &Prepared,
    compensated: Option<&Compensated>,
    budget: &Arc<Budget>,
    to_encoder: &mpsc::Sender<Result<Read>>,
) {
    for weight in prepared.model.weights() {
        let Choice::Encoded { copy_of: None, group, encoding } = &prepared.choices[weight.id.0] else {
            continue;
        };
        let size = match encoding {
            // Shorter than the weight; a group of one has no coding then.
            Encoding::Folded(_) => Ok(weight.bytes),
            _ => prepared.groups[*group].coding().map(Coding::size),
        };
        let read = size.and_then(|size| {
            let memory = budget.take(weight.bytes.saturating_add(size));
            let source = prepared.model.read_weight(weight)?;
            let rounded = compensated.map(|all| all.read(weight.id)).transpose()?.flatten();
            Ok(Read { source, rounded, memory })
        });
        let failed = read.is_err();
        // Nobody listens any more when encoding has failed.
        if to_encoder.send(read).is_err() || failed {
            return;
        }
    }
}

fn next(reads: &mpsc::Receiver<Result<Read>>) -> Result<Read> {
    reads.recv().unwrap_or_else(|_| Err(Error::Internal("reading has stopped".to_string())))
}

/// One weight's blob, compared with the weight, and the memory that it takes.
struct Made {
    /// None if it is the base's.
    blob: Option<Vec<u8>>,
    found: check::Match,
    base: Option<OfBase>,
    depths: Vec<u64>,
    memory: Share,
}

fn encode(
    prepared: &Prepared,
    How { base, layers, .. }: How<'_>,
    weight: &Weight,
    compression: &Compression,
    group: usize,
    Read { source, rounded, mut memory }: Read,
) -> Result<Made> {
    let (model, Compression { spec, block_len, .. }) = (&prepared.model, compression);
    let coding = prepared.groups[group].coding()?;
    let failed = |e| Error::codec(model.path(), &weight.name, e);
    let wanted = rounded.as_ref().unwrap_or(&source);
    let mut blob = codec::encode_as(wanted, spec, *block_len, coding).map_err(failed)?;
    let mut depths = Vec::new();
    if let Some(layers) = layers {
        blob = layers.apply(blob, wanted, spec).map_err(failed)?;
        let header = Header::parse(&blob).map_err(failed)?;
        depths = (0..=header.layers.len()).map(|depth| header.bytes_to(depth)).collect();
    }
    let checked = check::against_source(&blob, wanted, spec).and_then(|found| match &rounded {
        None => Ok(found),
        Some(_) if found.max_relative_error == 0.0 => check::distance(&blob, &source, spec),
        Some(_) => Err(nz_onnx::error::Error::Corrupt("it was rounded twice".to_string())),
    });
    let found = checked.map_err(|e| {
        // The encoder is at fault here, not the file; or the file has changed since it was surveyed.
        Error::Internal(format!(
            "{}: tensor {:?} does not decode to its source: {e}",
            model.path().display(),
            weight.name
        ))
    })?;
    // LSTMs read no deltas, and what is decoded before one is summed up in another order.
    let shares = !compression.uses.iter().any(|u| matches!(u.kind, UseKind::Lstm { .. }));
    let base = base.filter(|_| shares);
    let shared = base.map(|base| base.share(&weight.name, &source, spec, blob.len())).transpose()?.flatten();
    drop(source);
    memory.shrink(weight.bytes);
    Ok(match shared {
        None => Made { blob: Some(blob), found, base: None, depths, memory },
        Some(Shared::Same(blob)) => {
            Made { blob: None, found, base: Some(OfBase { blob, encoding: "base" }), depths, memory }
        }
        Some(Shared::Delta(of_base, blob)) => {
            let encoding = Header::parse(&blob).map_err(failed).map(|header| delta_name(&header))?;
            let base = OfBase { blob: of_base, encoding: encoding.unwrap_or("delta") };
            Made { blob: Some(blob), found, base: Some(base), depths, memory }
        }
    })
}

fn document(
    prepared: &Prepared,
    base: Option<&SharedBase>,
    encoded: &BTreeMap<WeightId, Encoded>,
    target: Target,
) -> Result<json::Convert> {
    let tensors: Vec<json::Tensor> = prepared
        .model
        .weights()
        .iter()
        .map(|weight| {
            let holder = match &prepared.choices[weight.id.0] {
                Choice::Encoded { copy_of: Some(first), .. } => *first,
                _ => weight.id,
            };
            let made = encoded.get(&holder);
            let mut tensor = prepared.tensor(weight, made.map(|e| (e.bytes, e.found)));
            if let (Some(base), Some(of_base)) = (base, made.and_then(|made| made.base.as_ref())) {
                tensor.encoding = Some(of_base.encoding.to_string());
                tensor.reason.get_or_insert_with(|| format!("taken from {}", base.file()));
            }
            tensor
        })
        .collect();
    let totals = prepared.totals(tensors.iter());
    if !keeps_to(&totals, target) {
        return Err(Error::Internal(format!("{target:?} was foreseen, and this came out: {totals:?}")));
    }
    let mut warnings: Vec<String> = prepared.shortfall(target, totals.bytes_after).into_iter().collect();
    if totals.compressed == 0 {
        warnings.push("no weight was compressed; `nz-onnx plan` says why".to_string());
    }
    Ok(json::Convert {
        schema: "nz-onnx.convert/1",
        input: prepared.input()?,
        output: None,
        optimized: None,
        trial: None,
        totals,
        tensors,
        warnings,
    })
}

/// Whether the model came out as asked for: what was foreseen must hold.
fn keeps_to(totals: &json::Totals, target: Target) -> bool {
    match target {
        Target::Ratio(ratio) => totals.bytes_after as f64 <= totals.bytes_before as f64 * ratio,
        Target::Size(bytes) => totals.bytes_after <= bytes,
        Target::Bits(bits) => totals.bits_per_weight <= bits,
        Target::MaxError(most) => totals.max_relative_error <= most,
        Target::Snr(least) => totals.least_snr_db.is_none_or(|snr| snr >= least),
        Target::Lossless => totals.lossless,
        Target::Default | Target::MantissaBits(_) => true,
    }
}
