//! How close a model's outputs are to the original's, as one number.
//!
//! Inputs count alike, by their decibels: else the few that a saturated classifier is unsure of would decide alone. For
//! the same reason probabilities that add up to 1 are compared as what they were before the softmax.

use super::super::runtime::array::{Array, is_float};
use super::super::runtime::session::Ran;

/// So many decibels closer a model must be than one that comes before it.
const LEAST_GAIN: f64 = 0.1;
/// Errors below this part of an output are none.
const EXACT: f64 = 1e-15;
/// Probabilities add up to 1 within this.
const UNIT: f64 = 1e-3;

/// The energy of outputs over that of their errors, in decibels: the mean over runs, of several outputs the mean of the
/// shares of a run. `None` if nothing differs, or nothing can be compared.
pub(super) fn snr_db(expected: &[Ran], found: &[Ran]) -> Option<f64> {
    let outputs = expected.first().map_or(0, |ran| ran.outputs.len());
    let softmaxes: Vec<Option<usize>> = (0..outputs)
        .map(|output| softmax(expected.iter().filter_map(|ran| ran.outputs.get(output)?.1.as_ref().ok())))
        .collect();
    let runs: Vec<f64> = expected.iter().zip(found).filter_map(|(a, b)| share(a, b, &softmaxes)).collect();
    if runs.iter().all(|&share| share <= EXACT) {
        return None;
    }
    let decibels = runs.iter().map(|share| -10.0 * share.max(EXACT).log10());
    Some(decibels.sum::<f64>() / runs.len() as f64)
}

/// Whether a model is closer than another by enough.
pub(super) fn is_closer(snr_db: Option<f64>, than: Option<f64>) -> bool {
    match (snr_db, than) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(snr_db), Some(than)) => snr_db > than + LEAST_GAIN,
    }
}

/// The energy of a run's errors over that of its outputs; of several the mean.
fn share(expected: &Ran, found: &Ran, softmaxes: &[Option<usize>]) -> Option<f64> {
    let mut shares = Vec::new();
    for (((_, expected), (_, found)), softmax) in expected.outputs.iter().zip(&found.outputs).zip(softmaxes) {
        let (Ok(expected), Ok(found)) = (expected, found) else { continue };
        if !is_float(expected.dtype) || expected.shape != found.shape {
            continue;
        }
        let (a, b) = (before(expected, *softmax), before(found, *softmax));
        let pairs = || a.iter().zip(&b).filter(|(x, _)| x.is_finite());
        let energy: f64 = pairs().map(|(x, _)| x * x).sum();
        let noise: f64 = pairs().map(|(x, y)| (x - y) * (x - y)).sum();
        if energy > 0.0 {
            shares.push(if noise.is_finite() { noise / energy } else { f64::INFINITY });
        }
    }
    (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
}

/// The dimension along which an output is probabilities in all runs, if there is one.
fn softmax<'a>(runs: impl Iterator<Item = &'a Array> + Clone) -> Option<usize> {
    let rank = runs.clone().next()?.shape.len();
    (0..rank).rev().find(|&axis| runs.clone().all(|array| adds_up(array, axis)))
}

fn adds_up(array: &Array, axis: usize) -> bool {
    let Some(lines) = Lines::of(array, axis) else { return false };
    let values = array.numbers();
    values.iter().all(|value| (0.0..=1.0 + UNIT).contains(value))
        && (0..lines.count()).all(|line| (lines.sum(line, &values) - 1.0).abs() < UNIT)
}

/// An output's values, those of a softmax as they were before it. What it does not tell, a constant of each line, is such
/// that the line's mean is 0.
fn before(array: &Array, softmax: Option<usize>) -> Vec<f64> {
    let mut values = array.numbers();
    if let Some(lines) = softmax.and_then(|axis| Lines::of(array, axis)) {
        let least = f64::from(f32::MIN_POSITIVE);
        // A value that is not finite stays so.
        values.iter_mut().for_each(|p| *p = if *p < least { least.ln() } else { p.ln() });
        for line in 0..lines.count() {
            let mean = lines.sum(line, &values) / lines.length as f64;
            lines.places(line).for_each(|place| values[place] -= mean);
        }
    }
    values
}

/// The lines of an array along one of its dimensions.
struct Lines {
    length: usize,
    /// From an element to the next.
    step: usize,
    all: usize,
}

impl Lines {
    /// `None` if lines are of one element, or there are none.
    fn of(array: &Array, axis: usize) -> Option<Lines> {
        let size = |d: &i64| usize::try_from(*d).ok();
        let sizes: Vec<usize> = array.shape.iter().map(size).collect::<Option<_>>()?;
        let (length, all) = (*sizes.get(axis)?, sizes.iter().product());
        let step = sizes[axis + 1..].iter().product();
        (is_float(array.dtype) && length > 1 && all > 0).then_some(Lines { length, step, all })
    }

    fn count(&self) -> usize {
        self.all / self.length
    }

    fn sum(&self, line: usize, values: &[f64]) -> f64 {
        self.places(line).map(|place| values[place]).sum()
    }

    fn places(&self, line: usize) -> impl Iterator<Item = usize> + use<> {
        let (first, step) = (line / self.step * self.step * self.length + line % self.step, self.step);
        (0..self.length).map(move |i| first + i * step)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ort::value::TensorElementType;

    use super::*;

    fn ran(shape: &[i64], values: &[f32]) -> Ran {
        let array = Array {
            dtype: TensorElementType::Float32,
            shape: shape.to_vec(),
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        Ran { outputs: vec![("y".to_string(), Ok(array))], time: Duration::ZERO }
    }

    /// Of each run what is expected and what is found.
    fn score(shape: &[i64], runs: &[(&[f32], &[f32])]) -> Option<f64> {
        let expected: Vec<Ran> = runs.iter().map(|(values, _)| ran(shape, values)).collect();
        let found: Vec<Ran> = runs.iter().map(|(_, values)| ran(shape, values)).collect();
        snr_db(&expected, &found)
    }

    #[test]
    fn runs_count_alike() {
        // 20 dB and 40 dB; their energies, added up, would say 20.
        let found = score(&[2], &[(&[100.0, 0.0], &[90.0, 0.0]), (&[1.0, 0.0], &[1.01, 0.0])]);
        assert!((found.expect("differs") - 30.0).abs() < 1e-4, "{found:?}");
        assert_eq!(score(&[2], &[(&[3.0, 4.0], &[3.0, 4.0])]), None);
        assert_eq!(score(&[2], &[(&[3.0, 4.0], &[3.0, f32::NAN])]), Some(f64::NEG_INFINITY));
    }

    #[test]
    fn probabilities_are_compared_before_the_softmax() {
        let softmax = |logits: &[f32]| -> Vec<f32> {
            let sum: f32 = logits.iter().map(|x| x.exp()).sum();
            logits.iter().map(|x| x.exp() / sum).collect()
        };
        // Of mean 0: an error of a tenth, though the first class is sure of itself.
        let (a, b) = ([12.0, -8.0, -4.0], [13.2, -8.8, -4.4]);
        let (p, q) = (softmax(&a), softmax(&b));
        for shape in [&[1, 3][..], &[1, 3, 1, 1]] {
            let found = score(shape, &[(&p, &q)]).expect("differs");
            assert!((found - 20.0).abs() < 0.1, "{shape:?}: {found}");
        }
        // No probabilities, and some that do not add up: as they are.
        for (a, b) in [(&a, &b), (&[0.5, 0.1, 0.9], &[0.55, 0.11, 0.99])] {
            let found = score(&[1, 3], &[(a, b)]).expect("differs");
            assert!((found - 20.0).abs() < 1e-4, "{found}");
        }
        assert_eq!(score(&[1, 2], &[(&[1.0, 0.0], &[1.0, f32::NAN])]), Some(f64::NEG_INFINITY));
    }

    #[test]
    fn lines_are_those_of_a_dimension() {
        let Ran { outputs, .. } = ran(&[2, 3, 2], &[0.0; 12]);
        let array = outputs[0].1.as_ref().expect("an array");
        let lines = Lines::of(array, 1).expect("lines");
        let found: Vec<Vec<usize>> = (0..lines.count()).map(|line| lines.places(line).collect()).collect();
        assert_eq!(found, [vec![0, 2, 4], vec![1, 3, 5], vec![6, 8, 10], vec![7, 9, 11]]);
    }

    #[test]
    fn a_little_closer_is_not_closer() {
        assert!(is_closer(Some(20.2), Some(20.0)) && is_closer(None, Some(20.0)));
        assert!(
            !is_closer(Some(20.05), Some(20.0)) && !is_closer(Some(90.0), None) && !is_closer(None, None)
        );
    }
}
