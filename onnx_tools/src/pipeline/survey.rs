//! What each weight of a model would cost, before anything is encoded.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::mpsc;

use nz_onnx::codec::{self, Coding, EncodeOptions, GridStep, load_slots, word};
use nz_onnx::format::{Dtype, Layout, TensorSpec, Transform};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::allocation::{Candidate, Encoding, Grids, Target, allocate};
use super::overlap::{Budget, Share};
use super::planning::{Options, Rounding};
use super::{check, constants};
use crate::onnx::{Error, Model, Result, Weight, WeightId};
use crate::report::Progress;
use crate::rewrite::{Compression, Decision};

/// Weights of the same content, layout and block length, which share one blob; or one that may be stored as a constant.
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
        let chosen = self.coding_of(encoding).cloned();
        self.grids = Vec::new();
        self.codings = chosen.into_iter().collect();
    }

    /// How the blob is coded so, as long as nothing was chosen.
    pub(super) fn coding_of(&self, encoding: Encoding) -> Option<&Coding> {
        match encoding {
            Encoding::Keep(_) | Encoding::Folded(_) => None,
            Encoding::Lossless => self.codings.last(),
            Encoding::Mantissa(k) => self.codings.get(usize::from(k)),
            Encoding::Grid(step) => self.grids.iter().find(|(s, _)| *s == step).map(|(_, coding)| coding),
        }
    }

    /// Encodes and measures until what `target` has chosen keeps to it: sizes and errors are foreseen from counts and
    /// samples, and a bound that the user names is a promise.
    fn keep_to(
        &mut self,
        target: Target,
        bytes: &[u8],
        compression: &Compression,
    ) -> nz_onnx::error::Result<()> {
        let Compression { spec, block_len, .. } = compression;
        loop {
            let encoding = allocate(std::slice::from_ref(&self.candidate), 0, target).encodings[0];
            let Some(coding) = self.coding_of(encoding).filter(|_| encoding != Encoding::Lossless) else {
                return Ok(());
            };
            let blob = codec::encode_as(bytes, spec, *block_len, coding)?;
            let found = check::against_source(&blob, bytes, spec)?;
            let noise = found.snr_db.map_or(0.0, |snr| 10f64.powf(-snr / 10.0));
            let kept = match target {
                Target::MaxError(most) => found.max_relative_error <= most,
                Target::Snr(least) => found.snr_db.is_none_or(|snr| snr >= least),
                _ => true,
            };
            let Candidate { rounded, rounded_noise, grids, lossless, .. } = &mut self.candidate;
            match encoding {
                Encoding::Mantissa(k) => {
                    rounded_noise[usize::from(k)] = noise;
                    if !kept {
                        rounded[usize::from(k)] = *lossless;
                    }
                }
                Encoding::Grid(wanted) => {
                    for (step, size, known) in grids.iter_mut().flat_map(|grids| &mut grids.steps) {
                        if *step == wanted {
                            *known = noise;
                            *size = if kept { *size } else { *lossless };
                        }
                    }
                }
                Encoding::Keep(_) | Encoding::Lossless | Encoding::Folded(_) => {}
            }
            if kept {
                return Ok(());
            }
        }
    }

    /// Whether the coding chosen is one of codebooks.
    pub(super) fn is_in_codebooks(&self) -> bool {
        self.coding().is_ok_and(|coding| coding.transform() == Transform::Codebook)
    }

    /// Another coding of the kind chosen, for other values.
    pub(super) fn replace(&mut self, coding: Coding) {
        self.codings = vec![coding];
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

/// Reads each weight that `decisions` would compress, and surveys it while the next ones are read.
///
/// # Errors
/// A weight cannot be read.
pub fn survey(
    model: &Model,
    decisions: &[Decision],
    options: &Options,
    progress: &Progress,
) -> Result<Surveyed> {
    let wanted = || {
        let weights = model.weights().iter().zip(decisions);
        weights.filter_map(|(weight, decision)| match decision {
            Decision::Compress(compression) => Some((weight, compression)),
            Decision::Keep { .. } | Decision::Fold { .. } => None,
        })
    };
    let mut step = progress.step("surveying", wanted().map(|(w, _)| w.bytes).sum());
    // A seed that nobody can know beforehand: two weights cannot be made to collide on purpose.
    let seed = RandomState::new().hash_one(0u64);
    let budget = Budget::new(wanted().map(|(w, _)| w.bytes).max().unwrap_or(0));
    let (sender, weights) = mpsc::channel();
    let mut groups = std::thread::scope(|scope| {
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
                let group = group(bytes, weight.id, compression, options);
                groups.push(group.map_err(|e| Error::codec(model.path(), &weight.name, e))?);
            }
            step.advance(weight.bytes);
        }
        Ok::<_, Error>(groups)
    })?;
    let mut kept_bytes = 0u64;
    for (weight, decision) in model.weights().iter().zip(decisions) {
        match decision {
            Decision::Compress(_) => {}
            // A bound of each weight's relative error leaves nothing to choose.
            Decision::Fold { .. } if options.rounding != Rounding::Cut => {
                let candidate = constants::candidate(model, weight)?;
                groups.push(Group {
                    weights: vec![weight.id],
                    candidate,
                    codings: Vec::new(),
                    grids: Vec::new(),
                });
            }
            Decision::Keep { .. } | Decision::Fold { .. } => {
                kept_bytes = kept_bytes.saturating_add(weight.bytes);
            }
        }
    }
    Ok(Surveyed { groups, kept_bytes })
}

fn group(
    bytes: &[u8],
    first: WeightId,
    compression: &Compression,
    wanted: &Options,
) -> nz_onnx::error::Result<Group> {
    let Compression { spec, block_len, .. } = compression;
    let options =
        EncodeOptions { block_len: *block_len, profile: wanted.profile, ..EncodeOptions::default() };
    if spec.dtype.is_integer() {
        let coding = codec::integer_coding(bytes, spec, &options)?;
        let (bytes, lossless) = (bytes.len() as u64, coding.size());
        let candidate = Candidate {
            bytes,
            elements: bytes,
            copies: 1,
            lossless,
            rounded: Vec::new(),
            rounded_noise: Vec::new(),
            floor: 0,
            grids: None,
            folded: Vec::new(),
            sensitivity: 1.0,
        };
        return Ok(Group { weights: vec![first], candidate, codings: vec![coding], grids: Vec::new() });
    }
    let survey = codec::survey(bytes, spec, &options)?;
    let (mut candidate, codings) = Candidate::new(&survey, spec.dtype, bytes.len() as u64);
    candidate.rounded_noise = cut_noise(bytes, spec);
    let only = wanted.rounding != Rounding::Auto;
    let grids = match wanted.rounding {
        Rounding::Cut => None,
        Rounding::Codebook => {
            Some(Grids::of_codebooks(codec::survey_codebooks(bytes, spec, &options)?.as_ref(), only))
        }
        Rounding::Grid | Rounding::Auto => {
            Some(Grids::new(codec::survey_grid(bytes, spec, &options)?.as_ref(), only))
        }
    };
    let (grids, codings_of_steps) = grids.unzip();
    candidate.grids = grids;
    let grids = codings_of_steps.unwrap_or_default();
    let steps = candidate.grids.iter_mut().flat_map(|grids| &mut grids.steps);
    for ((_, size, _), (_, coding)) in steps.zip(&grids) {
        *size = size_of(bytes, compression, coding)?;
    }
    if let Some(layers) = &wanted.layers {
        layers.price(&mut candidate, spec, *block_len)?;
    }
    let mut group = Group { weights: vec![first], candidate, codings, grids };
    if matches!(wanted.target, Target::MaxError(_) | Target::Snr(_)) {
        group.keep_to(wanted.target, bytes, compression)?;
    }
    Ok(group)
}

/// Weights of a blob that is encoded to see how large it is: what is foreseen of sizes is some 20 bytes more, a tenth of a small one.
const ENCODED: u64 = 1 << 13;

/// How large the blob of `bytes` is: an upper bound unless it is small.
pub(super) fn size_of(
    bytes: &[u8],
    compression: &Compression,
    coding: &Coding,
) -> nz_onnx::error::Result<u64> {
    let Compression { spec, block_len, .. } = compression;
    match spec.elements()? <= ENCODED {
        true => Ok(codec::encode_as(bytes, spec, *block_len, coding)?.len() as u64),
        false => Ok(coding.size()),
    }
}

/// Weights that are looked at in a row, and places where that is done.
const RUN: u64 = 16;
const PLACES: u64 = 256;

/// The energy of the error of 0, 1, ... mantissa bits over that of the weights, of a sample.
fn cut_noise(bytes: &[u8], spec: &TensorSpec) -> Vec<f64> {
    let elements: u64 = spec.shape.iter().product();
    let run = RUN.min(elements);
    let places = (elements / run).min(PLACES);
    let mut words = vec![0; (run * places) as usize];
    for (place, words) in (0..places).zip(words.chunks_exact_mut(run as usize)) {
        // The last of them is the end.
        let first = (elements - run) as u128 * u128::from(place) / u128::from((places - 1).max(1));
        load_slots(spec, bytes, first as u64, words);
    }
    let value = |word: u32| f64::from(f32::from_bits(word));
    let finite: Vec<u32> = words.into_iter().filter(|&word| value(word).is_finite()).collect();
    let energy: f64 = finite.iter().map(|&word| value(word).powi(2)).sum();
    let noise_of = |k: u8| -> f64 {
        let errors = finite.iter().map(|&word| value(word) - value(word::round(word, k, spec.dtype)));
        errors.map(|error| error * error).sum()
    };
    let share = |noise: f64| if noise == 0.0 { 0.0 } else { noise / energy };
    (0..spec.dtype.mantissa_bits()).map(|k| share(noise_of(k))).collect()
}
