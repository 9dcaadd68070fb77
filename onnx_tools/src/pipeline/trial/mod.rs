//! Several models of the size asked for are tried on inputs that had no part in making them, and the one whose outputs
//! are closest to the original's is taken.
//!
//! What calibration finds and compensation gains is true of the inputs that they saw. Mostly other inputs agree, but not
//! where those were few, or where outputs are saturated.

mod score;

use std::path::Path;

use nz_onnx::codec;

use self::score::Score;
use super::allocation::{Encoding, Target};
use super::calibrate::{CalibrateOptions, Compensate};
use super::compensate::{By, Compensated, Compensation, compensate};
use super::constants;
use super::planning::{Choice, Chosen, Known, Options, Prepared};
use super::replica::Replica;
use super::runtime::session::Ran;
use crate::onnx::{Error, Result};
use crate::report::{Progress, json};
use crate::rewrite::{Decision, fold};

/// The model that was taken.
pub(super) struct Tried {
    /// What is to happen to its weights.
    pub prepared: Prepared,
    /// Those that were rounded with compensation.
    pub compensated: Option<Compensated>,
    /// What it was chosen among, if there was a choice.
    pub document: Option<json::Trial>,
}

impl Tried {
    /// A model that nothing was changed in beyond what is planned.
    fn planned(prepared: Prepared) -> Tried {
        Tried { prepared, compensated: None, document: None }
    }
}

/// How one of the models is made.
#[derive(Debug, Clone, Copy)]
struct Way {
    calibrated: bool,
    compensated: Option<Compensation>,
}

/// What came of a way.
struct Made {
    chosen: Chosen,
    compensated: Option<Compensated>,
}

/// The ways there are, the ones first that are taken where there is nothing to choose by.
fn ways(options: &Options) -> Vec<Way> {
    let compensated: &[_] = match (options.may_compensate(), options.compensate) {
        (false, _) => &[None],
        (true, Compensate::On) => &[Some(Compensation::ByInputs)],
        (true, _) => &[Some(Compensation::ByRule), Some(Compensation::ByInputs)],
    };
    let of = |&compensated: &Option<_>| [true, false].map(|calibrated| Way { calibrated, compensated });
    compensated.iter().flat_map(of).collect()
}

/// A model of the size asked for from the one at `path`, without inputs.
///
/// # Errors
/// The model cannot be read or converted, or what the user asked for is out of reach.
pub(super) fn only(path: &Path, options: &Options, progress: &Progress) -> Result<Tried> {
    let known = Known::survey(path, options, progress)?;
    let mut chosen = known.choose(None, options.rule(), options.target);
    let mut compensated = None;
    if !chosen.allocation.reached {
        // What compensation may cost can be too much for the size.
        chosen = known.choose(None, None, options.target);
    } else if options.may_compensate() {
        compensated = compensate(&known, &mut chosen, options, By::Rule, progress)?;
    }
    Ok(Tried { prepared: known.prepared(chosen, options.target)?, compensated, document: None })
}

/// Makes models of the size asked for from the one at `path`, and takes the closest.
///
/// # Errors
/// The model cannot be read, converted or run on the inputs, or what the user asked for is out of reach.
pub(super) fn best(
    path: &Path,
    options: &Options,
    how: &CalibrateOptions,
    progress: &Progress,
) -> Result<Tried> {
    let known = Known::survey(path, options, progress)?;
    let mut ways = ways(options);
    // What cannot be reached need not be calibrated.
    let first = known.choose(None, ways[0].compensated, options.target);
    if !first.allocation.reached && options.target != Target::Default {
        return known.prepared(first, options.target).map(Tried::planned);
    }
    let replica = Replica::make(&known.model, how)?;
    let sensitivities = known.measure(&replica, how.kept.as_deref(), progress)?;
    let expected = replica.run_left_out()?;
    let mut document = json::Trial {
        calibrated_on: replica.seen.len(),
        compared_on: replica.left_out.len(),
        candidates: Vec::new(),
    };
    if expected.is_empty() {
        ways.truncate(1);
    } else {
        // What needs no inputs is taken unless another is closer.
        ways.sort_by_key(|way| (way.compensated == Some(Compensation::ByInputs), way.calibrated));
    }
    let mut stage = Stage { known: &known, replica: &replica, shown: vec![None; known.groups().len()] };
    let mut taken: Option<(usize, Made, Option<Score>)> = None;
    for way in ways {
        let sensitivities = Some(sensitivities.as_slice()).filter(|_| way.calibrated);
        let mut chosen = known.choose(sensitivities, way.compensated, options.target);
        // What compensation may cost can be too much for the size.
        if !chosen.allocation.reached && options.target != Target::Default {
            continue;
        }
        let by = match way.compensated {
            None => None,
            Some(Compensation::ByRule) => Some(By::Rule),
            Some(Compensation::ByInputs) => {
                stage.clear()?;
                Some(By::Inputs(&replica))
            }
        };
        let compensated = by.map(|by| compensate(&known, &mut chosen, options, by, progress)).transpose()?;
        let compensated = compensated.flatten();
        if way.compensated == Some(Compensation::ByInputs) && compensated.is_none() && taken.is_some() {
            continue;
        }
        let made = Made { chosen, compensated };
        let score = match expected.is_empty() {
            true => None,
            false => Some(Score::new(&expected, &stage.show(&made, progress)?)),
        };
        let place = document.candidates.len();
        document.candidates.push(json::Candidate {
            calibrated: way.calibrated,
            compensated: way.compensated == Some(Compensation::ByInputs) && made.compensated.is_some(),
            snr_db: score.as_ref().and_then(Score::snr_db),
            taken: false,
        });
        let is_closer = |best: &Option<Score>| {
            score.as_ref().zip(best.as_ref()).is_some_and(|(score, best)| score.is_closer(best))
        };
        if taken.as_ref().is_none_or(|(.., best)| is_closer(best)) {
            taken = Some((place, made, score));
        }
    }
    drop(replica);
    let Some((place, Made { chosen, compensated }, _)) = taken else {
        return Err(Error::Internal("there is no way to convert".to_string()));
    };
    document.candidates[place].taken = true;
    let prepared = known.prepared(chosen, options.target)?;
    Ok(Tried { prepared, compensated, document: Some(document) })
}

/// The copy of the model, with the weights of one way after the other.
struct Stage<'a> {
    known: &'a Known,
    replica: &'a Replica<'a>,
    /// What each group's weights are now, if not as they were.
    shown: Vec<Option<Shown>>,
}

/// What a weight in the copy is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shown {
    /// As every way has it that has this encoding.
    Plain(Encoding),
    /// As one way has it.
    Own,
}

impl Stage<'_> {
    /// Runs the copy with the weights that `made` gives.
    fn show(&mut self, made: &Made, progress: &Progress) -> Result<Vec<Ran>> {
        let groups = &made.chosen.groups;
        let mut step = progress.step("trying", groups.iter().map(|group| group.candidate.bytes).sum());
        for (number, group) in groups.iter().enumerate() {
            let id = group.weights[0];
            let shown = match &made.chosen.choices[id.0] {
                Choice::Kept { .. } => None,
                Choice::Encoded { .. } if made.compensated.as_ref().is_some_and(|all| all.has(id)) => {
                    Some(Shown::Own)
                }
                Choice::Encoded { encoding: Encoding::Lossless, .. } => None,
                Choice::Encoded { encoding, .. } => Some(Shown::Plain(*encoding)),
            };
            if shown != self.shown[number] || shown == Some(Shown::Own) {
                self.write(number, &self.decoded(made, number)?)?;
                self.shown[number] = shown;
            }
            step.advance(group.candidate.bytes);
        }
        self.replica.run_left_out()
    }

    /// Makes the copy as the model is.
    fn clear(&mut self) -> Result<()> {
        for number in 0..self.shown.len() {
            if self.shown[number].take().is_some() {
                let weight = self.known.model.weight(self.known.groups()[number].weights[0]);
                self.write(number, &self.known.model.read_weight(weight)?)?;
            }
        }
        Ok(())
    }

    fn write(&self, number: usize, bytes: &[u8]) -> Result<()> {
        let mut weights = self.known.groups()[number].weights.iter().map(|&id| self.known.model.weight(id));
        weights.try_for_each(|weight| self.replica.write(weight, bytes))
    }

    /// The elements of a group's weights as the converted model will decode them.
    fn decoded(&self, made: &Made, number: usize) -> Result<Vec<u8>> {
        let (model, group) = (&self.known.model, &made.chosen.groups[number]);
        let weight = model.weight(group.weights[0]);
        let source = model.read_weight(weight)?;
        match (&made.chosen.choices[weight.id.0], &self.known.decisions[weight.id.0]) {
            (Choice::Kept { .. } | Choice::Encoded { encoding: Encoding::Lossless, .. }, _) => Ok(source),
            (Choice::Encoded { encoding: Encoding::Folded(how), .. }, _) => {
                let (stored, ..) = constants::encode(weight, &source, *how)?;
                let scales = fold::scales(*how, &weight.shape);
                fold::decode(&stored, *how, scales)
                    .ok_or_else(|| Error::Internal(format!("weight {:?} does not decode", weight.name)))
            }
            (Choice::Encoded { .. }, Decision::Compress(compression)) => {
                let rounded = made.compensated.as_ref().map(|all| all.read(weight.id)).transpose()?.flatten();
                let wanted = rounded.as_ref().unwrap_or(&source);
                let blob =
                    codec::encode_as(wanted, &compression.spec, compression.block_len, group.coding()?);
                let decoded = blob.and_then(|blob| codec::decode(&blob));
                decoded.map_err(|e| Error::codec(model.path(), &weight.name, e))
            }
            (Choice::Encoded { .. }, Decision::Keep { .. } | Decision::Fold { .. }) => {
                Err(Error::Internal(format!("weight {:?} was not to be compressed", weight.name)))
            }
        }
    }
}
