//! What each weight of a model would cost, before anything is encoded.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::mpsc;

use nz_onnx::codec::{self, Coding, EncodeOptions, GridStep, Profile};
use nz_onnx::format::{Dtype, Layout, TensorSpec, Transform};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::allocation::{Candidate, Encoding, Grids};
use super::overlap::{Budget, Share};
use super::planning::Rounding;
use crate::onnx::{Error, Model, Result, Weight, WeightId};
use crate::report::Progress;
use crate::rewrite::{Compression, Decision};

/// Weights of the same content, layout and block length: they share one blob.
#[derive(Debug, Clone)]
pub struct Group {
    /// The weights, in the model's order; the first is where the blob is.
    pub weights: Vec<WeightId>,
    /// What the blob costs at each precision.
    pub candidate: Candidate,
    /// How the blob is coded at 0, 1, ... mantissa bits, and lossless at the end; in the end only as it was chosen.
    codings: Vec<Coding>,
    /// The same for each grid.
    grids: Vec<(GridStep, Coding)>,
}

impl Group {
    /// Forgets all codings but the one chosen.
    pub(super) fn choose(&mut self, encoding: Encoding) {
        let lossless = self.codings.len().saturating_sub(1);
        let chosen = match encoding {
            Encoding::Keep(_) => None,
            Encoding::Lossless => self.codings.get(lossless).cloned(),
            Encoding::Mantissa(k) => self.codings.get(usize::from(k)).cloned(),
            Encoding::Grid(step) => {
                self.grids.iter().find(|(s, _)| *s == step).map(|(_, coding)| coding.clone())
            }
        };
        self.grids = Vec::new();
        self.codings = chosen.into_iter().collect();
    }

    /// Whether the coding chosen is one of codebooks.
    pub(super) fn is_in_codebooks(&self) -> bool {
        self.coding().is_ok_and(|coding| coding.transform() == Transform::Codebook)
    }

    /// The coding chosen.
    pub(super) fn coding(&self) -> Result<&Coding> {
        match self.codings.as_slice() {
            [coding] => Ok(coding),
            _ => Err(Error::Internal(format!("weights {:?} have no coding yet", self.weights))),
        }
    }
}

/// What is known about a model before allocation.
#[derive(Debug)]
pub struct Surveyed {
    /// Weights that may be compressed.
    pub groups: Vec<Group>,
    /// Bytes of all other weights.
    pub kept_bytes: u64,
}

/// A weight that has been read.
struct Read<'a> {
    weight: &'a Weight,
    compression: &'a Compression,
    bytes: Vec<u8>,
    hash: u128,
    _memory: Share,
}

/// Reads each weight that `decisions` would compress, and surveys it for `profile` while the next ones are read.
///
/// # Errors
/// A weight cannot be read.
pub fn survey(
    model: &Model,
    decisions: &[Decision],
    profile: Profile,
    rounding: Rounding,
    progress: &Progress,
) -> Result<Surveyed> {
    let wanted = || {
        let weights = model.weights().iter().zip(decisions);
        weights.filter_map(|(weight, decision)| match decision {
            Decision::Compress(compression) => Some((weight, compression)),
            Decision::Keep { .. } => None,
        })
    };
    let mut step = progress.step("surveying", wanted().map(|(w, _)| w.bytes).sum());
    // A seed that nobody can know beforehand: two weights cannot be made to collide on purpose.
    let seed = RandomState::new().hash_one(0u64);
    let budget = Budget::new(wanted().map(|(w, _)| w.bytes).max().unwrap_or(0));
    let (sender, weights) = mpsc::channel();
    let groups = std::thread::scope(|scope| {
        scope.spawn(move || {
            for (weight, compression) in wanted() {
                let memory = budget.take(weight.bytes);
                let read = model.read_weight(weight).map(|bytes| {
                    let hash = xxh3_128_with_seed(&bytes, seed);
                    Read { weight, compression, bytes, hash, _memory: memory }
                });
                // Nobody listens any more when surveying has failed.
                if sender.send(read).is_err() {
                    return;
                }
            }
        });
        if rayon::current_num_threads() > 1 {
            // The model's document and its metadata will want it. A failure shows then.
            scope.spawn(|| drop(model.sha256()));
        }
        let mut by_content: HashMap<(u128, Dtype, Layout, Vec<u64>, u32), usize> = HashMap::new();
        let mut groups: Vec<Group> = Vec::new();
        for read in weights {
            let Read { weight, compression, bytes, hash, .. } = &read?;
            let TensorSpec { dtype, layout, shape } = compression.spec.clone();
            let key = (*hash, dtype, layout, shape, compression.block_len);
            if let Some(&group) = by_content.get(&key) {
                let group = &mut groups[group];
                group.weights.push(weight.id);
                group.candidate.copies += 1;
            } else {
                by_content.insert(key, groups.len());
                let group = group(bytes, weight.id, compression, profile, rounding);
                groups.push(group.map_err(|e| Error::codec(model.path(), &weight.name, e))?);
            }
            step.advance(weight.bytes);
        }
        Ok::<_, Error>(groups)
    })?;
    let kept = model.weights().iter().zip(decisions).filter(|(_, d)| matches!(d, Decision::Keep { .. }));
    let kept_bytes = kept.fold(0u64, |sum, (w, _)| sum.saturating_add(w.bytes));
    Ok(Surveyed { groups, kept_bytes })
}

fn group(
    bytes: &[u8],
    first: WeightId,
    compression: &Compression,
    profile: Profile,
    rounding: Rounding,
) -> nz_onnx::error::Result<Group> {
    let Compression { spec, block_len, .. } = compression;
    let options = EncodeOptions { block_len: *block_len, profile, ..EncodeOptions::default() };
    if spec.dtype.is_integer() {
        let coding = codec::integer_coding(bytes, spec, &options)?;
        let (bytes, lossless) = (bytes.len() as u64, coding.size());
        let candidate = Candidate { bytes, copies: 1, lossless, rounded: Vec::new(), floor: 0, grids: None };
        return Ok(Group { weights: vec![first], candidate, codings: vec![coding], grids: Vec::new() });
    }
    let survey = codec::survey(bytes, spec, &options)?;
    let (mut candidate, all) = Candidate::new(&survey, spec.dtype, bytes.len() as u64);
    let grids = match rounding {
        Rounding::Cut => None,
        Rounding::Codebook => {
            let (grids, codings) = codebooks(bytes, spec, &options)?;
            candidate.grids = Some(grids);
            return Ok(Group { weights: vec![first], candidate, codings: all, grids: codings });
        }
        Rounding::Grid | Rounding::Auto => Some(codec::survey_grid(bytes, spec, &options)?),
    };
    let mut codings_on_grids = Vec::new();
    candidate.grids = grids.map(|survey| {
        let bits = 0..spec.dtype.mantissa_bits();
        let rounded_noise = match &survey {
            Some(survey) => bits.map(|k| survey.cut_noise(k)).collect(),
            None => bits.map(usual_noise).collect(),
        };
        let mut steps = Vec::new();
        for (step, survey) in survey.iter().flat_map(|survey| GridStep::all().map(move |step| (step, survey)))
        {
            let coding = survey.coding(step);
            steps.push((step, coding.size(), survey.noise(step)));
            codings_on_grids.push((step, coding));
        }
        Grids { steps, rounded_noise, only: rounding == Rounding::Grid }
    });
    Ok(Group { weights: vec![first], candidate, codings: all, grids: codings_on_grids })
}

/// What codebooks would do, on the ladder that grids have otherwise.
fn codebooks(
    bytes: &[u8],
    spec: &TensorSpec,
    options: &EncodeOptions,
) -> nz_onnx::error::Result<(Grids, Vec<(GridStep, Coding)>)> {
    let survey = codec::survey_codebooks(bytes, spec, options)?;
    let (mut steps, mut codings) = (Vec::new(), Vec::new());
    if let Some(survey) = &survey {
        for step in survey.steps() {
            let coding = survey.coding(step);
            steps.push((step, coding.size(), survey.noise(step)));
            codings.push((step, coding));
        }
    }
    let rounded_noise = (0..spec.dtype.mantissa_bits()).map(usual_noise).collect();
    Ok((Grids { steps, rounded_noise, only: true }, codings))
}

/// The energy of the error of `k` mantissa bits over that of weights whose mantissas are evenly spread.
fn usual_noise(k: u8) -> f64 {
    (-2.0 * f64::from(k)).exp2() / 24.0
}
