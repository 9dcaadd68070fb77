//! How each weight that can be taken is coded, if that pays: by the same rule as `nz-onnx convert` has.

use std::path::Path;
use std::sync::Arc;

use super::claim::{Claim, agree};
use super::graph::Bytes;
use super::options::{Aim, Rounding};
use super::session::{Log, Shared};
use super::slot::{Recipe, Slot};
use super::store::{Content, Key, KeyMaker};
use crate::codec::allocation::{Candidate, Encoding, Grids, MIN_SAVING, Target, allocate};
use crate::codec::{self, Coding, EncodeOptions, GridStep, Profile, Survey};
use crate::error::Error;
use crate::ort::fence::{Failure, Result};

/// What is decided about the weights of a graph.
pub(super) struct Plan {
    /// One per claim; nothing where compressing does not pay.
    pub slots: Vec<Option<Arc<Slot>>>,
    /// Why the session cannot be had as it was asked for.
    pub failure: Option<Failure>,
}

/// A decision about one weight.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    Keep,
    /// How exact, and how that is coded, where the whole weight has been looked at.
    Encode(Precision, Option<Coding>),
}

/// How exact a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Precision {
    Lossless,
    Mantissa(u8),
    Grid(GridStep),
}

const KEEP: u8 = 255;
const LOSSLESS: u8 = 254;
/// The first of the bytes that stand for grids.
const GRIDS: u8 = 64;

impl Precision {
    fn to_byte(self) -> u8 {
        match self {
            Precision::Lossless => LOSSLESS,
            Precision::Mantissa(bits) => bits,
            Precision::Grid(step) => GRIDS + step.number(),
        }
    }

    /// What encodes like that.
    fn options(self, claim: &Claim<'_>, profile: Profile) -> EncodeOptions {
        let (mantissa_bits, grid) = match self {
            Precision::Lossless => (None, None),
            Precision::Mantissa(bits) => (Some(bits), None),
            Precision::Grid(step) => (None, Some(step)),
        };
        EncodeOptions { mantissa_bits, grid, block_len: claim.block_len(), profile }
    }
}

impl Decision {
    fn to_byte(&self) -> u8 {
        match self {
            Decision::Keep => KEEP,
            Decision::Encode(precision, _) => precision.to_byte(),
        }
    }

    /// Bytes that stand for nothing are those of a damaged file.
    fn from_byte(byte: u8) -> Option<Self> {
        let precision = match byte {
            KEEP => return Some(Decision::Keep),
            LOSSLESS => Precision::Lossless,
            bits @ 0..GRIDS => Precision::Mantissa(bits),
            _ => Precision::Grid(GridStep::from_number(byte - GRIDS)?),
        };
        Some(Decision::Encode(precision, None))
    }
}

/// Decides about `claims` of a model in `folder`.
pub(super) fn plan<'a>(
    claims: &[Claim<'a>],
    folder: Option<&Path>,
    aim: &Aim,
    shared: &Arc<Shared>,
    log: &Log,
) -> Result<Plan> {
    let bytes = |claim: &Claim<'a>| match claim.value.bytes(folder, claim.spec.dtype, claim.size) {
        Ok(bytes) => Some(bytes),
        Err(failure) => {
            // ONNX Runtime will say the same of it, or knows better.
            log.warn(&format!("weight '{}' is left as it is: {failure}", claim.name));
            None
        }
    };
    let mut contents = vec![None; claims.len()];
    if shared.store.is_some() {
        for (claim, content) in claims.iter().zip(&mut contents) {
            let Some(bytes) = bytes(claim) else { continue };
            *content = Some(shared.on_all_cores(|| Content::of(bytes.as_slice()))?);
        }
    }
    let key = plan_key(claims, &contents, aim);
    let known = shared.store.as_ref().and_then(|store| store.load_decisions(&key, claims.len()));
    let known = known.and_then(|bytes| bytes.into_iter().map(Decision::from_byte).collect());
    let mut failure = None;
    let mut decisions: Vec<Decision> = match known {
        Some(decisions) => decisions,
        None => {
            let (decisions, unreachable) = decide(claims, aim, shared, bytes)?;
            failure = unreachable;
            if let (Some(store), None) = (&shared.store, &failure) {
                store.save_decisions(&key, &decisions.iter().map(Decision::to_byte).collect::<Vec<_>>());
            }
            decisions
        }
    };
    let mut taken: Vec<bool> = decisions.iter().map(|decision| *decision != Decision::Keep).collect();
    agree(claims, &mut taken);
    decisions
        .iter_mut()
        .zip(taken)
        .filter(|(_, taken)| !taken)
        .for_each(|(decision, _)| *decision = Decision::Keep);
    let slots = claims.iter().zip(contents).zip(decisions).map(|((claim, content), decision)| {
        let Decision::Encode(precision, coding) = decision else { return None };
        let key = content.map(|content| blob_key(claim, content, precision, aim.profile));
        let (shape, spec) = (claim.shape.clone(), claim.spec.clone());
        let recipe = Recipe { shape, spec, options: precision.options(claim, aim.profile), coding, key };
        Some(Arc::new(Slot::new(claim.name.clone(), recipe, Arc::clone(shared))))
    });
    Ok(Plan { slots: slots.collect(), failure })
}

fn blob_key(claim: &Claim<'_>, content: Content, precision: Precision, profile: Profile) -> Key {
    let mut maker = KeyMaker::new("nz-onnx blob");
    maker.weight(content, &claim.spec, claim.block_len());
    maker.number(precision.to_byte().into());
    maker.text(&format!("{profile:?}"));
    maker.finish()
}

fn plan_key(claims: &[Claim<'_>], contents: &[Option<Content>], aim: &Aim) -> Key {
    let mut maker = KeyMaker::new("nz-onnx plan");
    // What pays, and what a target comes to, is this version's own.
    maker.text(crate::VERSION);
    maker.text(&format!("{aim:?}"));
    for (claim, content) in claims.iter().zip(contents) {
        if let Some(content) = content {
            maker.weight(*content, &claim.spec, claim.block_len());
        }
    }
    maker.finish()
}

/// Decides about each weight; a failure where the ratio that was asked for is out of reach.
fn decide<'a>(
    claims: &[Claim<'a>],
    aim: &Aim,
    shared: &Shared,
    bytes: impl Fn(&Claim<'a>) -> Option<Bytes<'a>>,
) -> Result<(Vec<Decision>, Option<Failure>)> {
    let rounded_to = match aim.target {
        Target::Lossless => None,
        Target::MantissaBits(bits) => Some(bits),
        _ => return decide_together(claims, aim, shared, bytes),
    };
    let decide = |claim| {
        let Some(bytes) = bytes(claim) else { return Ok(Decision::Keep) };
        let options = Precision::Lossless.options(claim, aim.profile);
        // It need only pay, which a part of it can tell.
        let (bytes, spec) = (bytes.as_slice(), &claim.spec);
        let survey = shared.on_all_cores(|| codec::survey_sample(bytes, spec, &options))?;
        Ok(decide_alone(&survey.map_err(|error| of_weight(claim, error))?, claim, rounded_to))
    };
    Ok((claims.iter().map(decide).collect::<Result<_>>()?, None))
}

fn of_weight(claim: &Claim<'_>, error: Error) -> Failure {
    Failure::fail(format!("weight '{}': {error}", claim.name))
}

/// Rounded to so many mantissa bits, if that is less than all of it, where it pays.
fn decide_alone(survey: &Survey, claim: &Claim<'_>, rounded_to: Option<u8>) -> Decision {
    let lossless = survey.coding(None).size();
    let rounded = rounded_to.filter(|&bits| bits < claim.spec.dtype.mantissa_bits());
    let rounded = rounded.map(|bits| (Precision::Mantissa(bits), survey.coding(Some(bits)).size()));
    let (precision, size) =
        rounded.filter(|&(_, size)| size < lossless).unwrap_or((Precision::Lossless, lossless));
    if size as f64 <= claim.size as f64 * (1.0 - MIN_SAVING) {
        Decision::Encode(precision, None)
    } else {
        Decision::Keep
    }
}

/// A weight's codings: at 0, 1, ... mantissa bits and lossless at the end, and on grids.
struct Codings {
    claim: usize,
    cuts: Vec<Coding>,
    grids: Vec<(GridStep, Coding)>,
}

/// The same where sizes must add up: all of every weight is looked at, and precisions are allocated.
fn decide_together<'a>(
    claims: &[Claim<'a>],
    aim: &Aim,
    shared: &Shared,
    bytes: impl Fn(&Claim<'a>) -> Option<Bytes<'a>>,
) -> Result<(Vec<Decision>, Option<Failure>)> {
    let mut surveyed: Vec<Codings> = Vec::new();
    let mut candidates = Vec::new();
    for (index, claim) in claims.iter().enumerate() {
        let Some(bytes) = bytes(claim) else { continue };
        let options = Precision::Lossless.options(claim, aim.profile);
        let (bytes, spec) = (bytes.as_slice(), &claim.spec);
        let survey = shared.on_all_cores(|| codec::survey(bytes, spec, &options))?;
        let survey = survey.map_err(|error| of_weight(claim, error))?;
        let (mut candidate, cuts) = Candidate::new(&survey, spec.dtype, claim.size);
        let mut grids = Vec::new();
        if aim.rounding != Rounding::Cut {
            let survey = shared.on_all_cores(|| codec::survey_grid(bytes, spec, &options))?;
            let survey = survey.map_err(|error| of_weight(claim, error))?;
            if let Some(survey) = &survey {
                candidate.rounded_noise =
                    (0..spec.dtype.mantissa_bits()).map(|bits| survey.cut_noise(bits)).collect();
            }
            let (choices, codings) = Grids::new(survey.as_ref(), aim.rounding == Rounding::Grid);
            candidate.grids = Some(choices);
            grids = codings;
        }
        candidates.push(candidate);
        surveyed.push(Codings { claim: index, cuts, grids });
    }
    let allocation = allocate(&candidates, 0, aim.target);
    let mut decisions = vec![Decision::Keep; claims.len()];
    for (codings, encoding) in surveyed.into_iter().zip(&allocation.encodings) {
        let cut = |at: usize| codings.cuts.get(at).cloned();
        decisions[codings.claim] = match *encoding {
            // Here nothing is offered to be folded.
            Encoding::Keep(_) | Encoding::Folded(_) => Decision::Keep,
            Encoding::Lossless => {
                Decision::Encode(Precision::Lossless, cut(codings.cuts.len().saturating_sub(1)))
            }
            Encoding::Mantissa(bits) => Decision::Encode(Precision::Mantissa(bits), cut(bits.into())),
            Encoding::Grid(step) => {
                let coding = codings.grids.iter().find(|(known, _)| *known == step);
                Decision::Encode(Precision::Grid(step), coding.map(|(_, coding)| coding.clone()))
            }
        };
    }
    let before: u64 = candidates.iter().map(|candidate| candidate.bytes).sum();
    let failure = match aim.target {
        Target::Ratio(ratio) if !allocation.reached && before > 0 => {
            // Rounded up, so that asking for the number is enough.
            let best = (allocation.bytes_after as f64 / before as f64 * 1e4).ceil() / 1e4;
            Some(Failure::invalid(format!(
                "NzExecutionProvider: option ratio is '{ratio}': the {} weights that can be compressed reach no less than \
                 {best:.4}",
                candidates.len()
            )))
        }
        _ => None,
    };
    Ok((decisions, failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_survive_being_written_down() {
        let encode = |precision| Decision::Encode(precision, None);
        let cuts = (0..=23).map(|bits| encode(Precision::Mantissa(bits)));
        let grids = GridStep::all().map(|step| encode(Precision::Grid(step)));
        let all: Vec<Decision> =
            cuts.chain(grids).chain([Decision::Keep, encode(Precision::Lossless)]).collect();
        for decision in &all {
            assert_eq!(Decision::from_byte(decision.to_byte()).as_ref(), Some(decision));
        }
        let bytes: std::collections::HashSet<u8> = all.iter().map(Decision::to_byte).collect();
        assert_eq!(bytes.len(), all.len());
        assert_eq!(Decision::from_byte(200), None);
    }
}
