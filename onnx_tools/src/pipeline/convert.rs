//! Converts a model: encode, verify, write beside, check, rename.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use nz_onnx::codec::{self, Decoder};
use rayon::prelude::*;

use super::allocation::Target;
use super::check;
use super::inspect::Coded;
use super::layering::Layers;
use super::optimize::{OptimizeOptions, Optimized, optimize};
use super::overlap::{Budget, Share};
use super::paths::OutputFiles;
use super::planning::{Choice, Options, Prepared, prepare};
use crate::onnx::{Error, Model, Result, Source, Storage, Weight, WeightId};
use crate::report::{Progress, json};
use crate::rewrite::splice::Plan;
use crate::rewrite::{Compression, Decision, Placement, build};
use crate::staged::{Staged, commit};

/// Alignment of a blob in the data file: ONNX Runtime maps it at that granularity.
const ALIGNMENT: u64 = 64 << 10;
/// Smaller blobs stay in the model.
const INLINE_BELOW: u64 = 64 << 10;
/// Bytes that may stay in the model in all: they are in memory until it is written.
const INLINE_IN_ALL: u64 = 24 << 20;
/// Bytes of blobs that are written before they must be on the disk.
const SYNC_EVERY: u64 = 64 << 20;

/// How to convert.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// What to choose.
    pub plan: Options,
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
    let prepared = prepare(path, &options.plan, progress)?;
    let writer = Writer { files, dry_run: options.dry_run, data: None, inline: 0, unsynced: 0 };
    let layers = options.plan.layers.as_ref();
    let (encoded, writer, placements) = transfer(&prepared, layers, writer, progress)?;
    let mut document = document(&prepared, &encoded, options.plan.target)?;
    if let Some(optimized) = optimized {
        document.input = optimized.input();
        document.optimized = Some(optimized.document());
        document.warnings.extend(optimized.remark(document.totals.bytes_after));
    }
    if options.dry_run {
        return Ok(document);
    }
    let staged = writer.finish(&prepared, placements, optimized)?;
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

/// A weight that has been read, with the memory that it and its blob take.
struct Read {
    source: Vec<u8>,
    memory: Share,
}

/// What the writer is to do about a weight.
enum Task {
    Place { blob: Vec<u8>, memory: Share },
    SameAs(WeightId),
    Copy,
}

type Transferred<'a> = (BTreeMap<WeightId, Encoded>, Writer<'a>, BTreeMap<WeightId, Placement>);

/// Encodes what is to be encoded and puts everything in its place: while one weight is encoded and checked, the next
/// ones are read and the ones before are written.
fn transfer<'a>(
    prepared: &Prepared,
    layers: Option<&Layers>,
    mut writer: Writer<'a>,
    progress: &Progress,
) -> Result<Transferred<'a>> {
    let (weights, dry_run) = (prepared.model.weights(), writer.dry_run);
    let mut step = progress.step("encoding", weights.iter().map(|w| work(prepared, w)).sum());
    let budget = Budget::new(weights.iter().map(|w| work(prepared, w)).max().unwrap_or(0));
    let (to_encoder, reads) = mpsc::channel::<Result<Read>>();
    let (to_writer, tasks) = mpsc::channel::<(&Weight, Task)>();
    std::thread::scope(|scope| {
        scope.spawn(move || read_ahead(prepared, &budget, &to_encoder));
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
                    .and_then(|read| encode(prepared, weight, (compression, layers), *group, read))
                    .map(|(blob, found, memory)| {
                        progress.note(&format!(
                            "{}: {} -> {} bytes, {}",
                            weight.name,
                            weight.bytes,
                            blob.len(),
                            Coded::of(*encoding, found.lossless).name()
                        ));
                        encoded.insert(weight.id, Encoded { bytes: blob.len() as u64, found });
                        Task::Place { blob, memory }
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
fn read_ahead(prepared: &Prepared, budget: &Arc<Budget>, to_encoder: &mpsc::Sender<Result<Read>>) {
    for weight in prepared.model.weights() {
        let Choice::Encoded { copy_of: None, group, .. } = &prepared.choices[weight.id.0] else { continue };
        let read = prepared.groups[*group].coding().and_then(|coding| {
            let memory = budget.take(weight.bytes.saturating_add(coding.size()));
            let source = prepared.model.read_weight(weight)?;
            Ok(Read { source, memory })
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
fn encode(
    prepared: &Prepared,
    weight: &Weight,
    (compression, layers): (&Compression, Option<&Layers>),
    group: usize,
    Read { source, mut memory }: Read,
) -> Result<(Vec<u8>, check::Match, Share)> {
    let (model, Compression { spec, block_len, .. }) = (&prepared.model, compression);
    let coding = prepared.groups[group].coding()?;
    let failed = |e| Error::codec(model.path(), &weight.name, e);
    let mut blob = codec::encode_as(&source, spec, *block_len, coding).map_err(failed)?;
    if let Some(layers) = layers {
        blob = layers.apply(blob, &source, spec).map_err(failed)?;
    }
    let found = check::against_source(&blob, &source, spec).map_err(|e| {
        // The encoder is at fault here, not the file; or the file has changed since it was surveyed.
        Error::Internal(format!(
            "{}: tensor {:?} does not decode to its source: {e}",
            model.path().display(),
            weight.name
        ))
    })?;
    drop(source);
    memory.shrink(weight.bytes);
    Ok((blob, found, memory))
}

fn document(
    prepared: &Prepared,
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
            prepared.tensor(weight, encoded.get(&holder).map(|e| (e.bytes, e.found)))
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

/// Puts blobs where they belong: in the data file, or aside for the model.
struct Writer<'a> {
    files: &'a OutputFiles,
    dry_run: bool,
    data: Option<Staged>,
    inline: u64,
    unsynced: u64,
}

/// Both files, whole and synced, under their temporary names.
struct Finished {
    data: Option<Staged>,
    model: Staged,
}

impl Writer<'_> {
    fn perform(&mut self, model: &Model, weight: &Weight, task: Task) -> Result<Placement> {
        match task {
            Task::SameAs(first) => Ok(Placement::SameAs(first)),
            Task::Copy => self.copy(model, weight),
            Task::Place { blob, memory } => {
                let placement = self.place(blob);
                drop(memory);
                placement
            }
        }
    }

    fn place(&mut self, blob: Vec<u8>) -> Result<Placement> {
        let len = blob.len() as u64;
        if self.dry_run {
            return Ok(Placement::External { offset: 0, len });
        }
        if self.is_inline(len) {
            return Ok(Placement::Inline(blob));
        }
        let data = self.data()?;
        let offset = data.position();
        data.write(&blob)?;
        // The disk works while the next blobs are encoded, not only at the end.
        self.unsynced += len;
        if self.unsynced >= SYNC_EVERY
            && let Some(data) = &self.data
        {
            data.sync()?;
            self.unsynced = 0;
        }
        Ok(Placement::External { offset, len })
    }

    /// The elements of a kept weight whose data was in another file.
    fn copy(&mut self, model: &Model, weight: &Weight) -> Result<Placement> {
        if self.is_inline(weight.bytes) {
            return Ok(Placement::Inline(model.read_weight(weight)?));
        }
        let name = self.files.data.clone();
        let data = self.data()?;
        let offset = data.position();
        let len = model.copy_weight(weight, data, &name)?;
        Ok(Placement::External { offset, len })
    }

    fn is_inline(&mut self, len: u64) -> bool {
        let fits = len < INLINE_BELOW && self.inline + len <= INLINE_IN_ALL;
        if fits {
            self.inline += len;
        }
        fits
    }

    /// The data file, made when first needed and filled up to the next blob's offset.
    fn data(&mut self) -> Result<&mut Staged> {
        let staged = match self.data.take() {
            Some(staged) => staged,
            None => Staged::create(&self.files.data)?,
        };
        let staged = self.data.insert(staged);
        staged.align(ALIGNMENT)?;
        Ok(staged)
    }

    /// Writes the model and reads both files again.
    fn finish(
        self,
        prepared: &Prepared,
        placements: BTreeMap<WeightId, Placement>,
        optimized: Option<&Optimized>,
    ) -> Result<Finished> {
        let name = self.files.data.file_name().unwrap_or_default();
        let decisions =
            prepared.decisions.iter().zip(&prepared.choices).map(|(decision, choice)| match choice {
                Choice::Kept { reason } => Decision::Keep { reason: reason.clone() },
                Choice::Encoded { .. } => decision.clone(),
            });
        let plan = Plan {
            decisions: decisions.collect(),
            placements,
            data_file_name: name.to_string_lossy().into_owned(),
            metadata: optimized.map_or(Vec::new(), |o| o.origin.metadata()),
            nchwc_block: optimized.and_then(|o| o.origin.nchwc_block),
        };
        let mut model = Staged::create(&self.files.model)?;
        build(&prepared.model, &plan)?.stream(&prepared.model, |chunk| model.write(chunk))?;
        drop(plan);
        model.sync()?;
        if let Some(data) = &self.data {
            data.sync()?;
        }
        let files = Finished { data: self.data, model };
        files.check(prepared)?;
        Ok(files)
    }
}

impl Finished {
    /// Reads both files again: the model must parse, and every blob have its checksums.
    fn check(&self, prepared: &Prepared) -> Result<()> {
        let broken = |what: String| {
            Error::Internal(format!(
                "{}: the model written is broken: {what}",
                prepared.model.path().display()
            ))
        };
        let written = Model::open(self.model.temp_path()).map_err(|e| broken(e.to_string()))?;
        let data = self.data.as_ref().map(|d| Source::open(d.temp_path())).transpose()?;
        let blobs = written.blobs();
        let compressed = prepared.choices.iter().any(|c| matches!(c, Choice::Encoded { .. }));
        if compressed == blobs.is_empty() {
            return Err(broken(format!("{} blobs in it", blobs.len())));
        }
        // At most one blob a thread is in memory.
        blobs.par_iter().try_for_each(|blob| {
            let weight = written.weight(blob.weight);
            let bytes = match (&weight.storage, &data) {
                (Storage::External { offset, length, .. }, Some(data)) => {
                    data.read(&(*offset..*offset + *length))
                }
                _ => written.read_weight(weight),
            };
            let bytes = bytes.map_err(|e| broken(e.to_string()))?;
            Decoder::open(&bytes).map_err(|e| broken(format!("blob {:?}: {e}", weight.name)))?;
            Ok(())
        })
    }
}
