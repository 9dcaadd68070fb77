//! From a model and a target to what happens to each weight; nothing is encoded yet.

use std::collections::BTreeMap;
use std::path::Path;

use nz_onnx::format::Dtype;

use super::allocation::{Allocation, Candidate, DEFAULT_RATIO, Encoding, Target, allocate, curve, floor};
use super::calibrate::{CalibrateOptions, Compensate, calibrate};
use super::check::{Match, error_bound};
use super::compensate::{Compensation, make_room};
use super::inspect::Coded;
use super::layering::Layers;
use super::replica::Replica;
use super::roles;
use super::survey::{Group, Surveyed, survey};
use crate::onnx::{Error, Model, Result, Weight, WeightId};
use crate::report::{Progress, json, units};
use crate::rewrite::{Decision, Rules, decide};
use nz_onnx::codec::Profile;

/// What the user asks for.
#[derive(Debug, Clone)]
pub struct Options {
    /// How small, how exact.
    pub target: Target,
    /// Which weights.
    pub rules: Rules,
    /// Smaller or faster blobs.
    pub profile: Profile,
    /// How weights are rounded that have to be.
    pub rounding: Rounding,
    /// Measure how much each weight matters, if it is to be measured.
    pub calibrate: Option<CalibrateOptions>,
    /// Whether weights on a grid are rounded with compensation.
    pub compensate: Compensate,
    /// Where to cut weights into layers, if they are to be cut.
    pub layers: Option<Layers>,
}

/// How weights are rounded, if they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rounding {
    /// To fewer mantissa bits: the relative error of each weight has a bound.
    #[default]
    Cut,
    /// To a uniform grid where one can hold the weight: the least error in all.
    Grid,
    /// To whichever has the smaller error at the size in question.
    Auto,
    /// To the values of codebooks, where such are for the weight.
    Codebook,
}

/// What happens to a weight.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// It stays as it is.
    Kept {
        /// Why.
        reason: String,
    },
    /// It becomes the blob of its group.
    Encoded {
        /// Index in [`Prepared::groups`].
        group: usize,
        /// How: lossless, or to what it is rounded.
        encoding: Encoding,
        /// The weight that holds the blob, if it is another one.
        copy_of: Option<WeightId>,
    },
}

/// A model and what is to happen to it.
#[derive(Debug)]
pub struct Prepared {
    /// The model.
    pub model: Model,
    /// What the graph allows, in the order of [`Model::weights`].
    pub decisions: Vec<Decision>,
    /// Weights that may share a blob.
    pub groups: Vec<Group>,
    /// The outcome, in the same order as `decisions`.
    pub choices: Vec<Choice>,
    /// Whether the target was reached, and at which size.
    pub allocation: Allocation,
    /// Bytes of all weights.
    pub bytes_before: u64,
    /// Bytes of those that the graph does not allow to be compressed.
    pub kept_bytes: u64,
}

/// A model and what each of its weights would cost.
#[derive(Debug)]
pub struct Known {
    /// The model.
    pub model: Model,
    /// What the graph allows, in the order of [`Model::weights`].
    pub decisions: Vec<Decision>,
    groups: Vec<Group>,
    bytes_before: u64,
    kept_bytes: u64,
}

/// What is to happen to each weight of a [`Known`] model.
#[derive(Debug)]
pub struct Chosen {
    /// Weights that may share a blob, with the codings that were chosen.
    pub groups: Vec<Group>,
    /// The outcome, in the model's order.
    pub choices: Vec<Choice>,
    /// Whether the target was reached, and at which size.
    pub allocation: Allocation,
}

impl Known {
    /// Opens the model at `path` and surveys its weights.
    ///
    /// # Errors
    /// The model cannot be read or converted.
    pub fn survey(path: &Path, options: &Options, progress: &Progress) -> Result<Known> {
        let model = Model::open(path)?;
        let decisions = decide(&model, &options.rules)?;
        let Surveyed { groups, kept_bytes } = survey(&model, &decisions, options, progress)?;
        // Weights may overlap in a data file, so no length of a file bounds the sum.
        let bytes_before = model.weights().iter().fold(0u64, |sum, w| sum.saturating_add(w.bytes));
        Ok(Known { model, decisions, groups, bytes_before, kept_bytes })
    }

    /// Weights that may be compressed, with all their codings.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The sensitivities of its weights, as measured in a copy of it.
    ///
    /// # Errors
    /// It does not run.
    pub(super) fn measure(
        &self,
        replica: &Replica,
        kept: Option<&Path>,
        progress: &Progress,
    ) -> Result<Vec<f64>> {
        calibrate(&self.model, &self.decisions, &self.groups, replica, kept, progress)
    }

    /// Chooses an encoding for each weight: by these sensitivities, or by what their places in
    /// the model say; `room`: such that
    /// weights may be compensated.
    pub fn choose(
        &self,
        sensitivities: Option<&[f64]>,
        room: Option<Compensation>,
        target: Target,
    ) -> Chosen {
        let mut groups = self.groups.clone();
        match sensitivities {
            Some(found) => {
                groups.iter_mut().zip(found).for_each(|(group, found)| group.candidate.sensitivity = *found);
            }
            None => roles::judge(&self.model, &mut groups),
        }
        if let Some(how) = room {
            make_room(&self.model, &self.decisions, &mut groups, how);
        }
        let candidates: Vec<_> = groups.iter().map(|g| g.candidate.clone()).collect();
        let allocation = allocate(&candidates, self.kept_bytes, target);
        let choices = choices(&self.decisions, &groups, &allocation);
        groups.iter_mut().zip(&allocation.encodings).for_each(|(group, encoding)| group.choose(*encoding));
        Chosen { groups, choices, allocation }
    }

    /// The model with what was chosen for it.
    ///
    /// # Errors
    /// What the user asked for is out of reach.
    pub fn prepared(self, chosen: Chosen, target: Target) -> Result<Prepared> {
        let Known { model, decisions, bytes_before, kept_bytes, .. } = self;
        let Chosen { groups, choices, allocation } = chosen;
        let prepared = Prepared { model, decisions, groups, choices, allocation, bytes_before, kept_bytes };
        match target {
            Target::Default => Ok(prepared),
            target if !prepared.allocation.reached => Err(prepared.unreachable(target)),
            _ => Ok(prepared),
        }
    }
}

/// Opens the model at `path` and chooses an encoding for each weight: by what calibration finds, if it is asked for.
///
/// # Errors
/// The model cannot be read or converted, or what the user asked for is out of reach.
pub fn prepare(path: &Path, options: &Options, progress: &Progress) -> Result<Prepared> {
    let known = Known::survey(path, options, progress)?;
    let sensitivities = match &options.calibrate {
        Some(how) => {
            let replica = Replica::make(&known.model, how)?;
            Some(known.measure(&replica, how.kept.as_deref(), progress)?)
        }
        None => None,
    };
    let chosen = known.choose(sensitivities.as_deref(), options.rule(), options.target);
    known.prepared(chosen, options.target)
}

fn choices(decisions: &[Decision], groups: &[Group], allocation: &Allocation) -> Vec<Choice> {
    let mut choices: Vec<Choice> = decisions
        .iter()
        .map(|decision| match decision {
            Decision::Keep { reason } | Decision::Fold { reason } => Choice::Kept { reason: reason.clone() },
            // Every weight to be compressed is in one group, and gets its choice below.
            Decision::Compress(_) => Choice::Kept { reason: String::new() },
        })
        .collect();
    for (index, (group, encoding)) in groups.iter().zip(&allocation.encodings).enumerate() {
        for &id in &group.weights {
            let encoded = |encoding| Choice::Encoded {
                group: index,
                encoding,
                copy_of: group.weights.first().copied().filter(|first| *first != id),
            };
            choices[id.0] = match *encoding {
                // The reason why it is no blob stays.
                Encoding::Keep(_) if matches!(decisions[id.0], Decision::Fold { .. }) => continue,
                Encoding::Keep(best) => Choice::Kept {
                    reason: format!(
                        "does not pay: {} would become {}",
                        units::bytes(group.candidate.bytes),
                        units::bytes(best)
                    ),
                },
                Encoding::Lossless | Encoding::Mantissa(_) | Encoding::Grid(_) | Encoding::Folded(_) => {
                    encoded(*encoding)
                }
            };
        }
    }
    choices
}

impl Prepared {
    /// The model as a document names it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn input(&self) -> Result<json::Input> {
        Ok(json::Input {
            path: self.model.path().display().to_string(),
            bytes: self.model.source().len(),
            sha256: self.model.sha256()?.to_string(),
        })
    }

    /// The document's entry for a weight, with the size of its blob and what decoding it gives.
    pub fn tensor(&self, weight: &Weight, blob: Option<(u64, Match)>) -> json::Tensor {
        let (choice, per_weight) = (&self.choices[weight.id.0], |bytes: u64| match weight.elements {
            0 => 0.0,
            n => 8.0 * bytes as f64 / n as f64,
        });
        let mut tensor = json::Tensor {
            name: weight.name.clone(),
            dtype: weight.dtype_name().to_string(),
            shape: weight.shape.clone(),
            bytes_before: weight.bytes,
            bytes_after: weight.bytes,
            bits_per_weight: per_weight(weight.bytes),
            encoding: None,
            lossless: true,
            max_relative_error: 0.0,
            max_error_to_rms: None,
            snr_db: None,
            decision: json::Decision::Kept,
            reason: None,
        };
        match (choice, blob) {
            (Choice::Encoded { group, encoding, copy_of }, Some((bytes, found))) => {
                let in_books = !found.lossless && self.groups[*group].is_in_codebooks();
                let coded = match *encoding {
                    Encoding::Folded(how) => Coded::Constant(how),
                    _ if in_books => Coded::Codebook,
                    encoding => Coded::of(encoding, found.lossless),
                };
                tensor.bytes_after = if copy_of.is_some() { 0 } else { bytes };
                tensor.bits_per_weight = per_weight(tensor.bytes_after);
                tensor.encoding = Some(coded.name());
                tensor.lossless = found.lossless;
                tensor.max_relative_error = found.max_relative_error;
                tensor.max_error_to_rms = found.max_error_to_rms;
                tensor.snr_db = found.snr_db;
                tensor.decision = json::Decision::Compressed;
                tensor.reason = copy_of
                    .map(|first| format!("same content as {:?}: stored once", self.model.weight(first).name));
                if let Decision::Fold { reason } = &self.decisions[weight.id.0] {
                    tensor.reason = Some(format!("stays a constant: {reason}"));
                }
            }
            (Choice::Kept { reason }, _) => tensor.reason = Some(reason.clone()),
            (Choice::Encoded { .. }, None) => {}
        }
        tensor
    }

    /// Sums over a document's entries.
    pub fn totals<'a>(&self, tensors: impl Iterator<Item = &'a json::Tensor> + Clone) -> json::Totals {
        let bytes_after = tensors.clone().fold(0u64, |sum, t| sum.saturating_add(t.bytes_after));
        json::Totals {
            weights: self.choices.len(),
            compressed: tensors.clone().filter(|t| t.decision == json::Decision::Compressed).count(),
            bytes_before: self.bytes_before,
            bytes_after,
            ratio: ratio(bytes_after, self.bytes_before),
            bits_per_weight: bits_per_weight(tensors.clone()),
            lossless: tensors.clone().all(|t| t.lossless),
            max_relative_error: tensors.clone().map(|t| t.max_relative_error).fold(0.0, f64::max),
            least_snr_db: tensors.filter_map(|t| t.snr_db).reduce(f64::min),
        }
    }

    /// What fell short of the default target, with `bytes_after` in the end.
    pub fn shortfall(&self, target: Target, bytes_after: u64) -> Option<String> {
        if target != Target::Default || bytes_after as f64 <= self.bytes_before as f64 * DEFAULT_RATIO {
            return None;
        }
        let after = units::percent(bytes_after as f64, self.bytes_before as f64);
        Some(format!(
            "the weights keep {after} of their bytes, more than the 50 % aimed at: {}",
            self.obstacle(target)
        ))
    }

    fn unreachable(&self, wanted: Target) -> Error {
        let after = self.allocation.bytes_after;
        // Rounded up, so that asking for the number printed is enough.
        let up = |value: f64, digits: f64| (value * digits).ceil() / digits;
        let what = match wanted {
            Target::Size(bytes) => {
                format!(
                    "a size of {bytes} {} cannot be reached, the least is {after} ({})",
                    if bytes == 1 { "byte" } else { "bytes" },
                    units::bytes(after)
                )
            }
            Target::Bits(bits) => {
                let least = up(self.allocation.bits_per_weight, 1e3);
                format!("{bits} bits a weight cannot be reached, the least are {least:.3}")
            }
            Target::Ratio(wanted) => {
                let best = up(ratio(after, self.bytes_before), 1e4);
                format!("ratio {wanted} cannot be reached, the best is {best:.4}")
            }
            other => format!("{other:?} cannot be reached"),
        };
        Error::Unreachable(format!(
            "{}: {what}: {}\nhelp: nothing was written; `nz-onnx plan` shows what happens to each weight, --min-size \
             and --include what may happen",
            self.model.path().display(),
            self.obstacle(wanted)
        ))
    }

    /// Why the target is out of reach: what most of the kept bytes are.
    fn obstacle(&self, target: Target) -> String {
        let coarse = "every weight is as coarse as it gets";
        if matches!(target, Target::Bits(_)) {
            return coarse.to_string();
        }
        let mut kept: BTreeMap<String, u64> = BTreeMap::new();
        for weight in self.model.weights() {
            if let Choice::Kept { reason } = &self.choices[weight.id.0] {
                let what = match weight.dtype() {
                    None => weight.dtype_name().to_string(),
                    Some(dtype) => format!("{} ({})", dtype.name(), json::reason_group(reason)),
                };
                *kept.entry(what).or_default() += weight.bytes;
            }
        }
        let total: u64 = kept.values().sum();
        let of_all = |bytes: u64| units::percent(bytes as f64, self.bytes_before as f64);
        match kept.into_iter().max_by_key(|(_, bytes)| *bytes) {
            Some((what, bytes)) if bytes == total => {
                format!("{} of them are kept as they were: {what}", of_all(total))
            }
            Some((what, bytes)) => format!(
                "{} of them are kept as they were, {} of that {what}",
                of_all(total),
                units::percent(bytes as f64, total as f64)
            ),
            None if target != Target::Default => coarse.to_string(),
            None => format!(
                "without being asked to, no more than {} mantissa bits are cut from a float32",
                Dtype::F32.mantissa_bits() - floor(Dtype::F32)
            ),
        }
    }
}

/// The most bytes that a blob takes, and what is known of its weights.
fn foreseen(candidate: &Candidate, encoding: Encoding, dtype: Option<Dtype>) -> (u64, Match) {
    match encoding {
        Encoding::Keep(_) | Encoding::Lossless => (candidate.lossless, Match::EXACT),
        Encoding::Mantissa(k) => {
            let error = dtype.map_or(0.0, |dtype| error_bound(k, dtype));
            let snr_db = candidate.noise(encoding).and_then(decibels);
            let found = Match { lossless: false, max_relative_error: error, max_error_to_rms: None, snr_db };
            (candidate.rounded[usize::from(k)], found)
        }
        Encoding::Folded(wanted) => {
            let mut ways = candidate.folded.iter();
            let &(_, size, noise) =
                ways.find(|(how, ..)| *how == wanted).unwrap_or(&(wanted, candidate.bytes, 0.0));
            let snr_db = decibels(noise);
            let max_relative_error = if noise > 0.0 { f64::INFINITY } else { 0.0 };
            let found = Match { lossless: noise == 0.0, max_relative_error, max_error_to_rms: None, snr_db };
            (size, found)
        }
        Encoding::Grid(wanted) => {
            let mut steps = candidate.grids.iter().flat_map(|grids| &grids.steps);
            let size = steps.find(|(step, ..)| *step == wanted).map_or(candidate.bytes, |&(_, size, _)| size);
            let found = Match {
                lossless: false,
                max_relative_error: f64::INFINITY,
                max_error_to_rms: None,
                snr_db: candidate.noise(encoding).and_then(decibels),
            };
            (size, found)
        }
    }
}

/// An energy over another in decibels below it; none if there is none.
fn decibels(noise: f64) -> Option<f64> {
    Some(-10.0 * noise.log10()).filter(|snr| snr.is_finite())
}

/// Bits a weight on average over weights that are stored compressed; 0 without any.
fn bits_per_weight<'a>(tensors: impl Iterator<Item = &'a json::Tensor>) -> f64 {
    let stored = tensors.filter(|t| t.decision == json::Decision::Compressed && t.bytes_after > 0);
    let (bytes, elements) = stored.fold((0.0, 0.0), |(bytes, elements), t| {
        let shape: f64 = t.shape.iter().map(|&d| d as f64).product();
        (bytes + t.bytes_after as f64, elements + shape)
    });
    if elements > 0.0 { 8.0 * bytes / elements } else { 0.0 }
}

fn ratio(after: u64, before: u64) -> f64 {
    if before == 0 { 1.0 } else { after as f64 / before as f64 }
}

/// What `convert` would do, from sizes and errors that are upper bounds.
///
/// # Errors
/// As [`prepare`].
pub fn plan(path: &Path, options: &Options, progress: &Progress) -> Result<json::Plan> {
    let prepared = prepare(path, options, progress)?;
    let tensors: Vec<json::PlannedTensor> = prepared
        .model
        .weights()
        .iter()
        .map(|weight| {
            let blob = match &prepared.choices[weight.id.0] {
                Choice::Kept { .. } => None,
                Choice::Encoded { group, encoding, .. } => {
                    Some(foreseen(&prepared.groups[*group].candidate, *encoding, weight.dtype()))
                }
            };
            json::PlannedTensor {
                tensor: prepared.tensor(weight, blob),
                consumers: prepared.consumers(weight),
                sensitivity: match &prepared.choices[weight.id.0] {
                    Choice::Encoded { group, .. } if options.calibrate.is_some() => {
                        Some(prepared.groups[*group].candidate.sensitivity)
                    }
                    _ => None,
                },
            }
        })
        .collect();
    let totals = prepared.totals(tensors.iter().map(|t| &t.tensor));
    let warnings = prepared.shortfall(options.target, totals.bytes_after).into_iter().collect();
    let (schema, input) = ("nz-onnx.plan/1", prepared.input()?);
    let curve = prepared.curve();
    Ok(json::Plan { schema, input, optimized: None, totals, tensors, curve, warnings })
}

/// Points of a plan's curve.
const CURVE: usize = 49;

impl Prepared {
    /// What there is to choose from, from lossless down.
    fn curve(&self) -> Vec<json::Point> {
        let candidates: Vec<_> = self.groups.iter().map(|g| g.candidate.clone()).collect();
        let points = curve(&candidates, self.kept_bytes, CURVE).into_iter();
        let json_of = |p: super::allocation::Point| json::Point {
            bytes_after: p.bytes_after,
            ratio: ratio(p.bytes_after, self.bytes_before),
            bits_per_weight: p.bits_per_weight,
            max_relative_error: p.max_relative_error,
            least_snr_db: decibels(p.worst_noise),
            output_snr_db: decibels(p.noise),
        };
        points.map(json_of).collect()
    }

    /// The nodes that read a weight. For a kept weight those in its own graph that name it.
    fn consumers(&self, weight: &Weight) -> Vec<json::Consumer> {
        if let Decision::Compress(compression) = &self.decisions[weight.id.0] {
            let compressed = matches!(self.choices[weight.id.0], Choice::Encoded { .. });
            return compression
                .uses
                .iter()
                .map(|u| {
                    let node = &self.model.graph(u.reader.graph).nodes[u.reader.node];
                    let becomes = compressed.then(|| u.kind.op().to_string());
                    json::Consumer { node: node.name.clone(), op: node.op.clone(), becomes }
                })
                .collect();
        }
        let nodes = self.model.graph(weight.graph).nodes.iter();
        nodes
            .filter(|node| node.inputs.contains(&weight.name))
            .map(|node| json::Consumer { node: node.name.clone(), op: node.op.clone(), becomes: None })
            .collect()
    }
}
