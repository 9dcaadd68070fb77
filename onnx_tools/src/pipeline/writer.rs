//! Writes a converted model: blobs as they come, then the model, under temporary names; and reads them again.

use std::collections::BTreeMap;

use nz_onnx::codec::{Decoder, DeltaDecoder};
use rayon::prelude::*;

use super::allocation::Encoding;
use super::optimize::Optimized;
use super::overlap::Share;
use super::paths::OutputFiles;
use super::planning::{Choice, Prepared};
use crate::onnx::{Error, Model, Result, Source, Storage, Weight, WeightId};
use crate::rewrite::splice::Plan;
use crate::rewrite::{Decision, DepthBytes, Form, Placement, PlanBase, build};
use crate::staged::Staged;

/// Alignment of a blob in the data file: ONNX Runtime maps it at that granularity.
const ALIGNMENT: u64 = 64 << 10;
/// Smaller blobs stay in the model.
const INLINE_BELOW: u64 = 64 << 10;
/// Bytes that may stay in the model in all: they are in memory until it is written.
const INLINE_IN_ALL: u64 = 24 << 20;
/// Bytes of blobs that are written before they must be on the disk.
const SYNC_EVERY: u64 = 64 << 20;

/// The least format version.
const FORMAT: (u8, u8) = (1, 0);

/// What the writer is to do about a weight.
pub(super) enum Task {
    Place { blob: Vec<u8>, form: Option<Form>, memory: Share },
    InBase,
    SameAs(WeightId),
    Copy,
}

/// Puts blobs where they belong: in the data file, or aside for the model.
pub(super) struct Writer<'a> {
    files: &'a OutputFiles,
    pub(super) dry_run: bool,
    data: Option<Staged>,
    inline: u64,
    unsynced: u64,
    /// The greatest format version of a blob.
    format: (u8, u8),
    /// The weights that stay constants.
    folded: BTreeMap<WeightId, Form>,
}

/// Both files, whole and synced, under their temporary names.
pub(super) struct Finished {
    pub(super) data: Option<Staged>,
    pub(super) model: Staged,
}

impl<'a> Writer<'a> {
    /// A writer of these files; `dry_run`: of none.
    pub(super) fn new(files: &'a OutputFiles, dry_run: bool) -> Self {
        Writer { files, dry_run, data: None, inline: 0, unsynced: 0, format: FORMAT, folded: BTreeMap::new() }
    }

    /// Does what is to be done about a weight; says where it is then.
    pub(super) fn perform(&mut self, model: &Model, weight: &Weight, task: Task) -> Result<Placement> {
        match task {
            Task::SameAs(first) => Ok(Placement::SameAs(first)),
            Task::InBase => Ok(Placement::InBase),
            Task::Copy => self.copy(model, weight),
            Task::Place { blob, form, memory } => {
                if let (None, [_, _, _, _, major, minor, ..]) = (form, &blob[..]) {
                    self.format = self.format.max((*major, *minor));
                }
                self.folded.extend(form.map(|form| (weight.id, form)));
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
    pub(super) fn finish(
        self,
        prepared: &Prepared,
        placements: BTreeMap<WeightId, Placement>,
        base: Option<PlanBase>,
        depths: DepthBytes,
        compensated: BTreeMap<WeightId, u128>,
        optimized: Option<&Optimized>,
    ) -> Result<Finished> {
        let name = self.files.data.file_name().unwrap_or_default();
        let decisions =
            prepared.decisions.iter().zip(&prepared.choices).map(|(decision, choice)| match choice {
                Choice::Kept { reason } => Decision::Keep { reason: reason.clone() },
                Choice::Encoded { .. } => decision.clone(),
            });
        let folded = self.folded;
        let plan = Plan {
            decisions: decisions.collect(),
            placements,
            folded,
            data_file_name: name.to_string_lossy().into_owned(),
            format: base.as_ref().map_or(self.format, |base| self.format.max(base.format)),
            metadata: optimized.map_or(Vec::new(), |o| o.origin.metadata()),
            nchwc_block: optimized.and_then(|o| o.origin.nchwc_block),
            base,
            depths,
            compensated,
        };
        let mut model = Staged::create(&self.files.model)?;
        build(&prepared.model, &plan)?.stream(&prepared.model, |chunk| model.write(chunk))?;
        drop(plan);
        model.sync()?;
        if let Some(data) = &self.data {
            data.sync()?;
        }
        let files = Finished { data: self.data, model };
        files.check(prepared, &name.to_string_lossy())?;
        Ok(files)
    }
}

impl Finished {
    /// Reads both files again: the model must parse, and every blob have its checksums.
    fn check(&self, prepared: &Prepared, data_name: &str) -> Result<()> {
        let broken = |what: String| {
            Error::Internal(format!(
                "{}: the model written is broken: {what}",
                prepared.model.path().display()
            ))
        };
        let written = Model::open(self.model.temp_path()).map_err(|e| broken(e.to_string()))?;
        let data = self.data.as_ref().map(|d| Source::open(d.temp_path())).transpose()?;
        let blobs = written.blobs();
        let is_blob = |choice: &Choice| match choice {
            Choice::Kept { .. } | Choice::Encoded { encoding: Encoding::Folded(_), .. } => false,
            Choice::Encoded { .. } => true,
        };
        let compressed = prepared.choices.iter().any(is_blob);
        if compressed == blobs.is_empty() {
            return Err(broken(format!("{} blobs in it", blobs.len())));
        }
        // At most one blob a thread is in memory.
        blobs.par_iter().try_for_each(|blob| {
            let weight = written.weight(blob.weight);
            let bytes = match (&weight.storage, &data) {
                (Storage::External { location, offset, length, .. }, Some(data)) if location == data_name => {
                    data.read(&(*offset..*offset + *length))
                }
                _ => written.read_weight(weight),
            };
            let bytes = bytes.map_err(|e| broken(e.to_string()))?;
            let bad = |e: nz_onnx::error::Error| broken(format!("blob {:?}: {e}", weight.name));
            match blob.base {
                None => Decoder::open(&bytes).map(drop).map_err(bad),
                Some(base) => {
                    let base = written.read_weight(written.weight(base));
                    let base = base.map_err(|e| broken(e.to_string()))?;
                    DeltaDecoder::open(&bytes, &base).map(drop).map_err(bad)
                }
            }
        })
    }
}
