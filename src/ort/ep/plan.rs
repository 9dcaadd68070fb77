//! How each weight that can be taken is coded, if that pays: by the same rule as `nz-onnx convert` has.

use std::path::Path;
use std::sync::Arc;

use super::claim::{Claim, agree};
use super::graph::Bytes;
use super::session::{Log, Shared};
use super::slot::{Recipe, Slot};
use super::store::{Content, Key, KeyMaker};
use crate::codec::allocation::{Candidate, Encoding, Target, allocate};
use crate::codec::{self, Coding, EncodeOptions};
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
    /// Mantissa bits, none for lossless, and how that is coded, where the whole weight has been looked at.
    Encode(Option<u8>, Option<Coding>),
}

const KEEP: u8 = 255;
const LOSSLESS: u8 = 254;

impl Decision {
    fn to_byte(&self) -> u8 {
        match self {
            Decision::Keep => KEEP,
            Decision::Encode(bits, _) => bits.unwrap_or(LOSSLESS),
        }
    }

    fn from_byte(byte: u8) -> Self {
        match byte {
            KEEP => Decision::Keep,
            LOSSLESS => Decision::Encode(None, None),
            bits => Decision::Encode(Some(bits), None),
        }
    }
}

/// Decides about `claims` of a model in `folder`.
pub(super) fn plan<'a>(
    claims: &[Claim<'a>],
    folder: Option<&Path>,
    target: Target,
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
    let key = plan_key(claims, &contents, target);
    let known = shared.store.as_ref().and_then(|store| store.load_decisions(&key, claims.len()));
    let mut failure = None;
    let mut decisions: Vec<Decision> = match known {
        Some(bytes) => bytes.into_iter().map(Decision::from_byte).collect(),
        None => {
            let (decisions, unreachable) = decide(claims, target, shared, bytes)?;
            failure = unreachable;
            if let (Some(store), None) = (&shared.store, &failure) {
                store.save_decisions(&key, &decisions.iter().map(Decision::to_byte).collect::<Vec<_>>());
            }
            decisions
        }
    };
    let mut taken: Vec<bool> = decisions.iter().map(|decision| *decision != Decision::Keep).collect();
    agree(claims, &mut taken);
    decisions.iter_mut().zip(taken).filter(|(_, taken)| !taken).for_each(|(decision, _)| *decision = Decision::Keep);
    let slots = claims.iter().zip(contents).zip(decisions).map(|((claim, content), decision)| {
        let Decision::Encode(mantissa_bits, coding) = decision else { return None };
        let key = content.map(|content| blob_key(claim, content, mantissa_bits));
        let (shape, spec, block_len) = (claim.shape.clone(), claim.spec.clone(), claim.block_len);
        let recipe = Recipe { shape, spec, block_len, mantissa_bits, coding, key };
        Some(Arc::new(Slot::new(claim.name.clone(), recipe, Arc::clone(shared))))
    });
    Ok(Plan { slots: slots.collect(), failure })
}

fn blob_key(claim: &Claim<'_>, content: Content, mantissa_bits: Option<u8>) -> Key {
    let mut maker = KeyMaker::new("nz-onnx blob");
    maker.weight(content, &claim.spec, claim.block_len);
    maker.number(mantissa_bits.map_or(u64::from(LOSSLESS), u64::from));
    maker.finish()
}

fn plan_key(claims: &[Claim<'_>], contents: &[Option<Content>], target: Target) -> Key {
    let mut maker = KeyMaker::new("nz-onnx plan");
    // What pays, and what a target comes to, is this version's own.
    maker.text(crate::VERSION);
    maker.text(&format!("{target:?}"));
    for (claim, content) in claims.iter().zip(contents) {
        if let Some(content) = content {
            maker.weight(*content, &claim.spec, claim.block_len);
        }
    }
    maker.finish()
}

/// Surveys the weights and allocates precisions; a failure where the ratio that was asked for is out of reach.
fn decide<'a>(
    claims: &[Claim<'a>],
    target: Target,
    shared: &Shared,
    bytes: impl Fn(&Claim<'a>) -> Option<Bytes<'a>>,
) -> Result<(Vec<Decision>, Option<Failure>)> {
    // Where sizes must add up, all of a weight is looked at; where a weight need only pay, a part will do.
    let whole = matches!(target, Target::Ratio(_) | Target::Default);
    let mut surveyed: Vec<(usize, Vec<Coding>)> = Vec::new();
    let mut candidates = Vec::new();
    for (index, claim) in claims.iter().enumerate() {
        let Some(bytes) = bytes(claim) else { continue };
        let options = EncodeOptions { block_len: claim.block_len, ..EncodeOptions::default() };
        let survey = if whole { codec::survey } else { codec::survey_sample };
        let spec = &claim.spec;
        let survey = shared.on_all_cores(|| survey(bytes.as_slice(), spec, &options))?;
        let survey =
            survey.map_err(|error: Error| Failure::fail(format!("weight '{}': {error}", claim.name)))?;
        let (candidate, codings) = Candidate::new(&survey, claim.spec.dtype, claim.size);
        candidates.push(candidate);
        surveyed.push((index, codings));
    }
    let allocation = allocate(&candidates, 0, target);
    let mut decisions = vec![Decision::Keep; claims.len()];
    for ((index, codings), encoding) in surveyed.into_iter().zip(&allocation.encodings) {
        let coding = |at: usize| codings.get(at).filter(|_| whole).cloned();
        decisions[index] = match *encoding {
            // No candidate here has grids.
            Encoding::Keep(_) | Encoding::Grid(_) => Decision::Keep,
            Encoding::Lossless => Decision::Encode(None, coding(codings.len().saturating_sub(1))),
            Encoding::Mantissa(bits) => Decision::Encode(Some(bits), coding(bits.into())),
        };
    }
    let before: u64 = candidates.iter().map(|candidate| candidate.bytes).sum();
    let failure = match target {
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
        for decision in [Decision::Keep, Decision::Encode(None, None), Decision::Encode(Some(0), None)] {
            assert_eq!(Decision::from_byte(decision.to_byte()), decision);
        }
    }
}
