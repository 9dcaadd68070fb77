//! Rounding that looks at the inputs: each weight on a grid is rounded so that it makes good what the others of its sum
//! have lost, on activations that the user's inputs give. Sizes and blobs stay as they are; outputs get closer.
//!
//! Weights of MatMul, Gemm and Conv whose readers are all such; by inputs, those in the model's main graph. A part of the inputs that the
//! rounding has not seen tells whether it helps; if it does not, weights are rounded each by itself.

mod gram;
mod positive;
mod reads;
mod round;
mod rule;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek, SeekFrom, Write};
use std::path::PathBuf;

use ndarray::Array2;
use nz_onnx::codec::{self, Coding, EncodeOptions, GridRounding, word};
use nz_onnx::format::Transform;
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_128;

use self::gram::Gram;
use self::reads::{Reads, Vectors};
use self::round::{Factor, damage};
use self::rule::Rule;
use super::allocation::{Encoding, Target};
use super::calibrate::Compensate;
use super::planning::{Chosen, Known, Options, Rounding};
use super::replica::Replica;
use super::runtime::Array;
use super::runtime::array::is_float;
use super::survey::{Group, size_of};
use crate::onnx::scope::Scope;
use crate::onnx::{Error, Model, Result, Weight, WeightId};
use crate::report::Progress;
use crate::rewrite::{Compression, Decision};
use crate::staged::Folder;

/// What is added to the diagonal of `x x'`, over its mean: activations are few, and those of a rounded model are a little
/// different. The one that serves unseen inputs best is taken.
const DAMPINGS: [f64; 2] = [0.3, 1.0];
/// So much less error on unseen inputs there must be.
const LEAST_GAIN: f64 = 0.05;
/// Columns of a weight by which that is judged, and that are rounded by one task.
const COLUMNS: usize = 64;
/// Bytes of sums that one series of runs may gather.
const AT_ONCE: usize = 1 << 29;
/// Levels change, so that a blob may become larger by this part, and by so many bytes where it is small.
const ROOM: u64 = 256;
const LEAST_ROOM: u64 = 8;

/// By how much a blob of `size` may grow.
fn room(size: u64) -> u64 {
    (size / ROOM).max(LEAST_ROOM)
}

impl Options {
    /// Whether weights may be rounded with compensation: where there are grids, and no bound is promised for weights.
    pub(super) fn may_compensate(&self) -> bool {
        let free =
            matches!(self.target, Target::Default | Target::Ratio(_) | Target::Size(_) | Target::Bits(_));
        self.compensate != Compensate::Off && free && matches!(self.rounding, Rounding::Grid | Rounding::Auto)
    }
}

impl Options {
    /// How weights are compensated without a choice.
    pub(super) fn rule(&self) -> Option<Compensation> {
        self.may_compensate().then_some(match self.compensate {
            Compensate::On => Compensation::ByInputs,
            Compensate::Auto | Compensate::Off => Compensation::ByRule,
        })
    }
}

fn reads_of(model: &Model, scope: &Scope, decisions: &[Decision], group: &Group) -> Option<Reads> {
    let of = |&id: &WeightId| match decisions.get(id.0) {
        Some(Decision::Compress(compression)) => Some((model.weight(id), compression)),
        _ => None,
    };
    let weights: Vec<(&Weight, &Compression)> = group.weights.iter().map(of).collect::<Option<_>>()?;
    reads::of(model, scope, weights)
}

/// How weights may be compensated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compensation {
    /// By what activations mostly have in common.
    ByRule,
    /// By those that inputs give.
    ByInputs,
}

/// Adds to the sizes of weights that may be compensated what that may cost.
pub(super) fn make_room(model: &Model, decisions: &[Decision], groups: &mut [Group], how: Compensation) {
    let scope = Scope::new(model);
    for group in groups {
        let may =
            |reads: &Reads| how == Compensation::ByInputs && reads.has_inputs() || reads.has_rule(&scope);
        if reads_of(model, &scope, decisions, group).as_ref().is_some_and(may) {
            let grids = group.candidate.grids.iter_mut();
            grids.flat_map(|grids| &mut grids.steps).for_each(|(_, size, _)| *size += room(*size));
        }
    }
}

/// Weights as they were rounded, in a temporary file.
#[derive(Debug)]
pub(super) struct Compensated {
    file: PathBuf,
    places: BTreeMap<WeightId, Place>,
    _folder: Folder,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    len: u64,
    /// XXH3 of the weight before.
    hash: u128,
}

impl Compensated {
    fn new() -> Result<Self> {
        let folder = Folder::create(&std::env::temp_dir().join("nz-onnx.compensate"))?;
        let file = folder.path().join("weights");
        File::create(&file).map_err(|e| Error::io(&file, "create", e))?;
        Ok(Compensated { file, places: BTreeMap::new(), _folder: folder })
    }

    fn push(&mut self, id: WeightId, source: &[u8], rounded: &[u8]) -> Result<()> {
        let end = self.places.values().map(|place| place.offset + place.len).max().unwrap_or(0);
        let written = OpenOptions::new().append(true).open(&self.file).and_then(|mut f| f.write_all(rounded));
        written.map_err(|e| Error::io(&self.file, "write a rounded weight", e))?;
        let place = Place { offset: end, len: rounded.len() as u64, hash: xxh3_128(source) };
        self.places.insert(id, place);
        Ok(())
    }

    /// The elements of a weight as they are to be encoded, if it is one of these.
    ///
    /// # Errors
    /// The temporary file cannot be read.
    pub fn read(&self, id: WeightId) -> Result<Option<Vec<u8>>> {
        let Some(place) = self.places.get(&id) else { return Ok(None) };
        let mut bytes = vec![0; place.len as usize];
        let read = File::open(&self.file).and_then(|mut file| {
            file.seek(SeekFrom::Start(place.offset))?;
            file.read_exact(&mut bytes)
        });
        read.map_err(|e| Error::io(&self.file, "read a rounded weight", e))?;
        Ok(Some(bytes))
    }

    /// Whether a weight is one of these.
    pub fn has(&self, id: WeightId) -> bool {
        self.places.contains_key(&id)
    }

    /// XXH3 of each of these weights as it was.
    pub fn hashes(&self) -> BTreeMap<WeightId, u128> {
        self.places.iter().map(|(id, place)| (*id, place.hash)).collect()
    }
}

/// Weights that are multiplied with the same activations, by their groups' numbers.
#[derive(Debug)]
struct Batch {
    reads: Reads,
    members: Vec<usize>,
}

impl Batch {
    fn bytes(&self) -> usize {
        16 * self.reads.groups * self.reads.len * self.reads.len
    }
}

/// What weights are rounded by.
#[derive(Clone, Copy)]
pub(super) enum By<'a> {
    /// What activations mostly have in common.
    Rule,
    /// Those that the inputs give. The copy of the model must be as the model is.
    Inputs(&'a Replica<'a>),
}

/// Rounds the weights that are to be on a grid, and fits their codings; `None` if there are none to round so.
///
/// # Errors
/// The model does not run, or there is no room in the folder for temporary files.
pub(super) fn compensate(
    known: &Known,
    chosen: &mut Chosen,
    options: &Options,
    by: By,
    progress: &Progress,
) -> Result<Option<Compensated>> {
    let scope = Scope::new(&known.model);
    let mut batches: Vec<Batch> = Vec::new();
    for (number, (group, encoding)) in chosen.groups.iter().zip(&chosen.allocation.encodings).enumerate() {
        let on_grid = matches!(encoding, Encoding::Grid(_))
            && group.coding().is_ok_and(|coding| coding.transform() == Transform::Grid);
        let Some(reads) = reads_of(&known.model, &scope, &known.decisions, group).filter(|_| on_grid) else {
            continue;
        };
        let same = |b: &&mut Batch| {
            (b.reads.len, b.reads.groups, &b.reads.from) == (reads.len, reads.groups, &reads.from)
        };
        match batches.iter_mut().find(same) {
            Some(batch) => batch.members.push(number),
            None => batches.push(Batch { reads, members: vec![number] }),
        }
    }
    if batches.is_empty() {
        return Ok(None);
    }
    let bytes = |batch: &Batch| batch.members.iter().map(|&g| chosen.groups[g].candidate.bytes).sum::<u64>();
    let mut step = progress.step("rounding", batches.iter().map(bytes).sum());
    let (mut compensated, mut codings) = (Compensated::new()?, Vec::new());
    let mut rest = &batches[..];
    while !rest.is_empty() {
        let mut room = AT_ONCE;
        let fits = |batch: &&Batch| {
            let left = room.checked_sub(batch.bytes());
            room = left.unwrap_or(0);
            left.is_some()
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (now, later) = rest.split_at(count);
        let grams = match by {
            By::Inputs(replica) => grams_of(replica, now)?,
            By::Rule => vec![None; now.len()],
        };
        for (batch, grams) in now.iter().zip(grams) {
            let round =
                Round { known, scope: &scope, chosen, options, batch, grams: grams.as_deref(), progress };
            codings.extend(round.run(&mut compensated)?);
            step.advance(bytes(batch));
        }
        rest = later;
    }
    codings.into_iter().for_each(|(group, coding)| chosen.groups[group].replace(coding));
    Ok(Some(compensated).filter(|compensated| !compensated.places.is_empty()))
}

/// The weights of one batch, and what there is to round them by.
struct Round<'a> {
    known: &'a Known,
    scope: &'a Scope<'a>,
    chosen: &'a Chosen,
    options: &'a Options,
    batch: &'a Batch,
    /// What inputs say, for each group; without, rounding is by the rule.
    grams: Option<&'a [Gram]>,
    progress: &'a Progress,
}

impl Round<'_> {
    /// Rounds them, as far as that helps; gives the groups that it did for and their codings.
    fn run(&self, compensated: &mut Compensated) -> Result<Vec<(usize, Coding)>> {
        let Round { known, chosen, batch, progress, .. } = self;
        let mut codings = Vec::new();
        let has_rule = batch.reads.has_rule(self.scope);
        let rule = has_rule.then(|| Rule::new(batch.reads.len, batch.reads.window()));
        if rule.is_none() && self.grams.is_none() {
            return Ok(codings);
        }
        let judges = self.grams.map(Judges::new);
        for &number in &batch.members {
            let (id, coding) = (chosen.groups[number].weights[0], chosen.groups[number].coding()?.clone());
            let weight = known.model.weight(id);
            let Decision::Compress(compression) = &known.decisions[id.0] else { continue };
            let source = known.model.read_weight(weight)?;
            let failed = |e| Error::codec(known.model.path(), &weight.name, e);
            let Some(matrix) = Matrix::new(&source, compression, &coding, batch).map_err(failed)? else {
                continue;
            };
            let (rounded, gain) = match self.grams.zip(judges.as_ref()) {
                Some((grams, judges)) => match matrix.rounded(grams, judges, rule.as_ref()) {
                    Some((rounded, gain)) => (rounded, Some(gain)),
                    None => (None, None),
                },
                None => (matrix.rounded_by(|_| rule.as_ref().into()), None),
            };
            let Some(rounded) = rounded else {
                progress.note(&format!("{}: rounded each weight by itself", weight.name));
                continue;
            };
            let encode = EncodeOptions {
                block_len: compression.block_len,
                profile: self.options.profile,
                ..EncodeOptions::default()
            };
            let fitted = codec::recode(&rounded, &compression.spec, &encode, &coding).map_err(failed)?;
            let before = size_of(&source, compression, &coding).map_err(failed)?;
            let after = fitted.as_ref().map(|fitted| size_of(&rounded, compression, fitted)).transpose();
            let fits = after.map_err(failed)?.is_some_and(|after| after <= before + room(before));
            let Some(fitted) = fitted.filter(|_| fits) else {
                progress.note(&format!("{}: rounded each weight by itself, which is smaller", weight.name));
                continue;
            };
            if let Some(gain) = gain {
                progress.note(&format!("{}: {gain:.1} dB closer on inputs not seen", weight.name));
            }
            compensated.push(id, &source, &rounded)?;
            codings.push((number, fitted));
        }
        Ok(codings)
    }
}

/// At each damping, of each half of the inputs.
type OfDampings = [[Option<Factor>; 2]; DAMPINGS.len()];

/// Factors by which a rounding is judged, for each group.
struct Judges {
    factors: Vec<OfDampings>,
}

impl Judges {
    fn new(grams: &[Gram]) -> Self {
        let of = |gram: &Gram| {
            DAMPINGS.map(|damping| [0, 1].map(|half: usize| Factor::new(&gram.halves[half], damping)))
        };
        Judges { factors: grams.par_iter().map(of).collect() }
    }
}

/// What of errors is made good by the weights that are rounded later.
#[derive(Clone, Copy)]
enum Feedback<'a> {
    Nothing,
    Rule(&'a Rule),
    Inputs(&'a Factor),
}

impl<'a> From<Option<&'a Rule>> for Feedback<'a> {
    fn from(rule: Option<&'a Rule>) -> Self {
        rule.map_or(Feedback::Nothing, Feedback::Rule)
    }
}

/// A weight as a matrix that activations are multiplied with.
struct Matrix<'a> {
    /// Row-major elements.
    values: Vec<f64>,
    rounding: GridRounding,
    compression: &'a Compression,
    over_first: bool,
    rows: usize,
    /// Columns of a group.
    columns: usize,
}

impl<'a> Matrix<'a> {
    fn new(
        source: &[u8],
        compression: &'a Compression,
        coding: &Coding,
        batch: &Batch,
    ) -> nz_onnx::error::Result<Option<Self>> {
        let spec = &compression.spec;
        let Some(rounding) = GridRounding::new(spec, compression.block_len, coding)? else { return Ok(None) };
        let mut words = vec![0; spec.elements()? as usize];
        word::load(spec.dtype, source, &mut words);
        let values: Vec<f64> = words.into_iter().map(|word| f32::from_bits(word).into()).collect();
        let Reads { over_first, len, groups, .. } = batch.reads;
        let columns = values.len() / (len * groups);
        Ok(Some(Matrix { values, rounding, compression, over_first, rows: len, columns }))
    }

    /// The place of a weight among the elements.
    fn element(&self, group: usize, row: usize, column: usize) -> usize {
        match self.over_first {
            true => row * self.columns + column,
            false => (group * self.columns + column) * self.rows + row,
        }
    }

    /// Some columns as they are, and as they are rounded.
    fn columns(&self, group: usize, columns: &[usize], feedback: Feedback) -> (Array2<f64>, Array2<f64>) {
        let element = |(row, column): (usize, usize)| self.element(group, row, columns[column]);
        let wanted = Array2::from_shape_fn((self.rows, columns.len()), |at| self.values[element(at)]);
        let round = |row: usize, column: usize, value: f64| {
            f64::from(self.rounding.round(element((row, column)), value))
        };
        let rounded = match feedback {
            Feedback::Inputs(factor) => factor.compensated(wanted.view(), round),
            Feedback::Rule(rule) => rule.compensated(wanted.view(), round),
            Feedback::Nothing => {
                Array2::from_shape_fn(wanted.dim(), |(row, column)| round(row, column, wanted[(row, column)]))
            }
        };
        (wanted, rounded)
    }

    /// What makes the least error on the half of the inputs that it does not know, the rule or a damping, and by how many
    /// decibels that is less than with each weight by itself; `None` if it is not.
    fn judge(&self, grams: &[Gram], judges: &Judges, rule: Option<&Rule>) -> Option<(Option<f64>, f64)> {
        let count = self.columns.min(COLUMNS);
        let columns: Vec<usize> = (0..count).map(|i| i * self.columns / count).collect();
        let errors = |group: usize, feedback: Feedback| {
            let (wanted, rounded) = self.columns(group, &columns, feedback);
            wanted - rounded
        };
        // By itself, by the rule, then at each damping.
        let of_group = |(group, (gram, factors)): (usize, (&Gram, &OfDampings))| {
            let unlearnt = |feedback: Feedback| {
                let errors = errors(group, feedback);
                damage(&gram.halves[0], &errors) + damage(&gram.halves[1], &errors)
            };
            let mut found = vec![unlearnt(Feedback::Nothing), unlearnt(rule.into())];
            found.extend(factors.iter().map(|halves| {
                let of_half = |half: usize| {
                    let factor = halves[half].as_ref()?;
                    Some(damage(&gram.halves[1 - half], &errors(group, Feedback::Inputs(factor))))
                };
                of_half(0).zip(of_half(1)).map_or(f64::INFINITY, |(a, b)| a + b)
            }));
            found
        };
        let of_groups: Vec<Vec<f64>> =
            grams.par_iter().zip(&judges.factors).enumerate().map(of_group).collect();
        // In order: sums must not depend on the number of threads.
        let sum = |place: usize| of_groups.iter().map(|found| found[place]).sum::<f64>();
        let (alone, by_rule) = (sum(0), sum(1));
        let dampings = (0..DAMPINGS.len()).map(|i| (Some(DAMPINGS[i]), sum(i + 2)));
        let best = dampings.min_by(|a, b| a.1.total_cmp(&b.1));
        let gains = |error: f64, beside: f64| error < (1.0 - LEAST_GAIN) * beside && error > 0.0;
        best.filter(|(_, error)| gains(*error, alone.min(by_rule)))
            .or(Some((None, by_rule)).filter(|_| gains(by_rule, alone)))
            .map(|(how, error)| (how, 10.0 * (alone / error).log10()))
    }

    /// The elements rounded with compensation by inputs, if they can be, and the decibels that it is worth; `None` if it does
    /// not help.
    fn rounded(
        &self,
        grams: &[Gram],
        judges: &Judges,
        rule: Option<&Rule>,
    ) -> Option<(Option<Vec<u8>>, f64)> {
        let (how, gain) = self.judge(grams, judges, rule)?;
        let Some(damping) = how else { return Some((self.rounded_by(|_| rule.into()), gain)) };
        let factors: Vec<Factor> =
            grams.par_iter().map(|gram| Factor::new(&gram.whole(), damping)).collect::<Option<_>>()?;
        Some((self.rounded_by(|group| Feedback::Inputs(&factors[group])), gain))
    }

    /// The elements rounded so, with the feedback of each group; `None` if they would not stay as they are.
    fn rounded_by<'b>(&self, feedback: impl Fn(usize) -> Feedback<'b> + Sync) -> Option<Vec<u8>> {
        let parts: Vec<(usize, Vec<usize>)> = (0..self.values.len() / (self.rows * self.columns))
            .flat_map(|group| {
                let columns = (0..self.columns).step_by(COLUMNS);
                columns.map(move |first| (group, (first..self.columns.min(first + COLUMNS)).collect()))
            })
            .collect();
        let found: Vec<Array2<f64>> = parts
            .par_iter()
            .map(|(group, columns)| self.columns(*group, columns, feedback(*group)).1)
            .collect();
        let mut words = vec![0; self.values.len()];
        for ((group, columns), found) in parts.iter().zip(&found) {
            for ((row, column), &value) in found.indexed_iter() {
                words[self.element(*group, row, columns[column])] = (value as f32).to_bits();
            }
        }
        // What is decoded must be on the grid wherever it is rounded again.
        let stays = |(element, &word): (usize, &u32)| {
            let value = f32::from_bits(word);
            value.is_finite() && self.rounding.round(element, value.into()).to_bits() == word
        };
        let spec = &self.compression.spec;
        let mut bytes = vec![0; words.len() * spec.dtype.size()];
        word::store(spec.dtype, &words, &mut bytes);
        words.par_iter().enumerate().all(stays).then_some(bytes)
    }
}

/// For each of `batches` its sums over the inputs to learn from; `None` if its activations are not what they seemed.
fn grams_of(replica: &Replica, batches: &[Batch]) -> Result<Vec<Option<Vec<Gram>>>> {
    let asked = batches.iter().filter(|batch| batch.reads.has_inputs());
    let names: BTreeSet<&str> =
        asked.flat_map(|batch| &batch.reads.from).map(|(_, name, _)| name.as_str()).collect();
    replica.ask_for(&names)?;
    let empty = |batch: &Batch| {
        batch.reads.has_inputs().then(|| vec![Gram::new(batch.reads.len); batch.reads.groups])
    };
    let mut found: Vec<Option<Vec<Gram>>> = batches.iter().map(empty).collect();
    let mut session = replica.open()?;
    for (number, inputs) in replica.seen.iter().enumerate() {
        let ran = session.run(inputs).map_err(|what| replica.fails(&what))?;
        let outputs: BTreeMap<&str, &Array> = ran
            .outputs
            .iter()
            .filter_map(|(name, array)| Some((name.as_str(), array.as_ref().ok()?)))
            .collect();
        let half = (replica.seen.len() > 1).then_some(number % 2);
        found.par_iter_mut().zip(batches).for_each(|(grams, batch)| {
            let added = batch.reads.from.iter().all(|(_, name, vectors)| {
                let array = inputs.get(name).or_else(|| outputs.get(name.as_str()).copied());
                let grams = grams.as_mut();
                array.zip(grams).and_then(|(array, grams)| add(grams, array, vectors, half)).is_some()
            });
            if !added {
                *grams = None;
            }
        });
    }
    replica.ask_for(&BTreeSet::new())?;
    Ok(found)
}

fn add(grams: &mut [Gram], array: &Array, vectors: &Vectors, half: Option<usize>) -> Option<()> {
    let shape: Vec<usize> = array.shape.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    let values = is_float(array.dtype).then(|| array.numbers())?;
    if values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    gram::add(grams, &values, &shape, vectors, half)
}
