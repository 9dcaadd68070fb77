//! How much the outputs suffer from an error of each weight, measured in ONNX Runtime.
//!
//! One weight at a time is rounded in a copy of the model, and the outputs are compared with the original's. Errors of
//! several weights hardly go together, so that their energies add up: one number for each weight says it all.

use std::path::{Path, PathBuf};

use nz_onnx::codec;

use super::allocation::Encoding;
use super::apart::{Energies, Expected, mean_share};
use super::measured::Kept;
use super::replica::Replica;
use super::survey::Group;
use crate::onnx::{Error, Model, Result, Weight};
use crate::report::Progress;
use crate::rewrite::{Compression, Decision, fold};

/// The sizes of the errors that a weight gets, as energy over its own: 30 and 20 dB below it. Two, since one rounding
/// can be lucky, and since outputs may suffer more than in proportion.
const PROBES: [f64; 2] = [1e-3, 1e-2];
/// Steps of an octave that sensitivities are rounded to: the last bits of an output, which may depend on the number of
/// threads, then change nothing.
const STEPS: f64 = 8.0;
/// Octaves that other inputs would find differ more than those of a few runs; so much more, as a variance, fits leaving
/// inputs out.
const CAUTION: f64 = 4.0;
/// Of what weights differ by, at least so much counts as real.
const LEAST_REAL: f64 = 0.05;
/// A weight that outputs hardly depend on, for these inputs, counts as so much less than the median.
const LEAST: f64 = 1e-4;

/// How to measure.
#[derive(Debug, Clone)]
pub struct CalibrateOptions {
    /// An `.npz` file, a folder of `.npy` files or one of `.npz` files.
    pub inputs: PathBuf,
    /// libonnxruntime as the user names it.
    pub ort_lib: Option<PathBuf>,
    /// Threads of a session.
    pub threads: Option<u16>,
    /// A file for what is measured.
    pub kept: Option<PathBuf>,
}

/// When weights on a grid are rounded with compensation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compensate {
    /// By a rule without inputs, or by inputs where outputs are closer for it on those left out.
    #[default]
    Auto,
    /// By inputs in any case, if there are any.
    On,
    /// Never.
    Off,
}

/// The sensitivity of each candidate of `groups`.
///
/// # Errors
/// The model does not run on the inputs, or a weight cannot be read or changed in the copy.
pub(super) fn calibrate(
    model: &Model,
    decisions: &[Decision],
    groups: &[Group],
    replica: &Replica,
    kept: Option<&Path>,
    progress: &Progress,
) -> Result<Vec<f64>> {
    let mut kept = kept.map(|path| Kept::open(path, model, replica)).transpose()?;
    let runs = replica.run_seen()?;
    let expected = Expected::new(&runs);
    if !expected.has_floats() {
        return Err(Error::unsupported(model.path(), "to calibrate, an output must be a float tensor"));
    }
    let mut step = progress.step("calibrating", groups.iter().map(|g| g.candidate.bytes).sum());
    let mut found = Vec::new();
    for group in groups {
        let weights: Vec<&Weight> = group.weights.iter().map(|&id| model.weight(id)).collect();
        let compression = match decisions.get(group.weights[0].0) {
            Some(Decision::Compress(compression)) => Some(compression),
            _ => None,
        };
        let write = |bytes: &[u8]| weights.iter().try_for_each(|weight| replica.write(weight, bytes));
        let probed = if weights.iter().all(|weight| replica.holds(weight)) {
            let source = model.read_weight(weights[0])?;
            let mut probes = Vec::new();
            for size in PROBES {
                probes.extend(match compression {
                    Some(compression) => probe(group, compression, &source, size)
                        .map_err(|e| Error::codec(model.path(), &weights[0].name, e))?,
                    None => fold::rounded(&source, size).map(|rounded| {
                        let noise = fold::error(&source, &rounded).noise;
                        (rounded, noise)
                    }),
                });
            }
            let rounded: Vec<&[u8]> = probes.iter().map(|(rounded, _)| rounded.as_slice()).collect();
            if let Some(known) = kept.as_ref().and_then(|kept| kept.find(&weights, &rounded)) {
                known
            } else {
                let (mut shares, mut single) = (Vec::new(), Vec::new());
                for (rounded, noise) in &probes {
                    write(rounded)?;
                    let energies = expected.energies(&replica.run_seen()?);
                    shares.push(share(&energies) / noise);
                    let of_run = |outputs: &Vec<_>| mean_share(outputs.iter().flatten().copied());
                    single.extend(energies.iter().filter_map(of_run).map(|share| share / noise));
                }
                write(&source)?;
                let measured = Measured::new(&shares, &single);
                kept.iter_mut().for_each(|kept| kept.add(&weights, &rounded, measured));
                measured
            }
        } else {
            None
        };
        found.push(probed);
        step.advance(group.candidate.bytes);
    }
    kept.iter().try_for_each(Kept::write)?;
    Ok(settled(&found))
}

/// What was measured of a weight: what its errors do to outputs, and how sure that is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Measured {
    /// Error of the outputs over that of the weight, as energies: the mean of the probes.
    pub sensitivity: f64,
    /// The variance of the mean of the octaves that single runs found.
    pub doubt: f64,
}

impl Measured {
    /// Of one number a probe, over all runs, and one a probe and run; none if nothing could be compared.
    fn new(probes: &[f64], runs: &[f64]) -> Option<Measured> {
        let probes: Vec<f64> = probes.iter().copied().filter(|share| share.is_finite()).collect();
        if probes.is_empty() {
            return None;
        }
        let octaves: Vec<f64> =
            runs.iter().filter(|s| s.is_finite() && **s > 0.0).map(|share| share.log2()).collect();
        let count = octaves.len().max(1) as f64;
        let doubt = variance(&octaves) / count;
        Some(Measured { sensitivity: probes.iter().sum::<f64>() / probes.len() as f64, doubt })
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn variance(values: &[f64]) -> f64 {
    let mean = mean(values);
    values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len().max(2) - 1) as f64
}

/// The sensitivities to go by. What a few runs found is drawn to the mean of all weights, in octaves, the more the less
/// runs agree beside how much weights differ: other inputs may say something else.
fn settled(found: &[Option<Measured>]) -> Vec<f64> {
    let mut known: Vec<f64> = found.iter().flatten().map(|m| m.sensitivity).filter(|&s| s > 0.0).collect();
    known.sort_by(f64::total_cmp);
    let median = known.get(known.len() / 2).copied().unwrap_or(1.0);
    let octaves = |sensitivity: f64| sensitivity.max(median * LEAST).log2();
    let all: Vec<f64> = found.iter().flatten().map(|m| octaves(m.sensitivity)).collect();
    let centre = if all.is_empty() { median.log2() } else { mean(&all) };
    let doubts: Vec<f64> = found.iter().flatten().map(|m| m.doubt).collect();
    let spread = variance(&all);
    // What is left of the differences when doubt is taken off.
    let real = (spread - mean(&doubts)).max(spread * LEAST_REAL);
    let settle = |measured: &Option<Measured>| {
        let drawn = match measured {
            None => centre,
            Some(m) if m.doubt == 0.0 => octaves(m.sensitivity),
            Some(m) => centre + (octaves(m.sensitivity) - centre) * real / (real + CAUTION * m.doubt),
        };
        ((drawn * STEPS).round() / STEPS).exp2()
    };
    found.iter().map(settle).collect()
}

/// The weight rounded so that its error is about `size`, and that error; none if it cannot be rounded.
fn probe(
    group: &Group,
    compression: &Compression,
    source: &[u8],
    size: f64,
) -> nz_onnx::error::Result<Option<(Vec<u8>, f64)>> {
    let candidate = &group.candidate;
    let on_grid =
        candidate.grids.iter().flat_map(|grids| &grids.steps).map(|&(step, ..)| Encoding::Grid(step));
    let cuts = (0..candidate.rounded.len()).map(|k| Encoding::Mantissa(k as u8));
    let far = |encoding: Encoding| {
        candidate.noise(encoding).filter(|&n| n > 0.0).map_or(f64::MAX, |n| (n / size).ln().abs())
    };
    let mut choices: Vec<(f64, Encoding)> = on_grid.map(|e| (far(e), e)).collect();
    if choices.is_empty() {
        choices = cuts.map(|e| (far(e), e)).collect();
    }
    let nearest = choices.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
    let Some((.., encoding)) = nearest.filter(|(far, _)| *far < f64::MAX) else { return Ok(None) };
    let Some(coding) = group.coding_of(encoding) else { return Ok(None) };
    let blob = codec::encode_as(source, &compression.spec, compression.block_len, coding)?;
    let noise = super::check::against_source(&blob, source, &compression.spec)?.snr_db;
    let Some(noise) = noise.map(|snr| 10f64.powf(-snr / 10.0)) else { return Ok(None) };
    Ok(Some((codec::decode(&blob)?, noise)))
}

/// The energy of the outputs' errors over theirs, of all runs: of several outputs the mean.
fn share(energies: &[Vec<Option<Energies>>]) -> f64 {
    let outputs = energies.iter().map(Vec::len).max().unwrap_or(0);
    let of_output = |output: usize| {
        let runs = energies.iter().filter_map(|run| *run.get(output)?);
        runs.reduce(|a, b| Energies { noise: a.noise + b.noise, signal: a.signal + b.signal })
    };
    mean_share((0..outputs).filter_map(of_output).filter(|all| all.share().is_finite())).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(sensitivity: f64, runs: &[f64]) -> Option<Measured> {
        Measured::new(&[sensitivity], runs)
    }

    #[test]
    fn what_runs_agree_on_is_kept() {
        let sure = |s: f64| measured(s, &[s, s, s, s]);
        assert_eq!(settled(&[sure(1.0), sure(16.0), sure(0.25)]), [1.0, 16.0, 0.25]);
        assert_eq!(
            settled(&[sure(2.0), None, sure(8.0)]),
            [2.0, 4.0, 8.0],
            "the mean where nothing is known"
        );
        assert_eq!(settled(&[None, None]), [1.0, 1.0]);
        let least = settled(&[sure(1.0), sure(1.0), sure(0.0)])[2];
        assert!((least / LEAST).log2().abs() < 1.0 / STEPS, "{least:e}");
    }

    #[test]
    fn what_runs_differ_on_is_drawn_to_the_mean() {
        let doubtful = |s: f64| measured(s, &[s / 64.0, s, s * 64.0, s]);
        let found =
            settled(&[measured(1.0, &[1.0; 4]), measured(16.0, &[16.0; 4]), doubtful(64.0), doubtful(0.25)]);
        assert_eq!(found[..2], [1.0, 16.0]);
        assert!(found[2] > 4.0 && found[2] < 32.0, "{found:?}");
        assert!(found[3] > 0.5 && found[3] < 4.0, "{found:?}");
        // In order still.
        assert!(found[3] < found[2]);
    }

    #[test]
    fn runs_that_cannot_be_compared_say_nothing() {
        assert_eq!(measured(f64::NAN, &[f64::NAN]), None);
        let one = measured(3.0, &[3.0, f64::NAN, 0.0]).expect("measured");
        assert_eq!((one.sensitivity, one.doubt), (3.0, 0.0));
    }
}
