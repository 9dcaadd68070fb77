//! How close a model's outputs are to the original's, and whether that is closer than another's.
//!
//! Inputs count alike, by their decibels: else the few that a saturated classifier is unsure of would decide alone. For
//! the same reason probabilities that add up to 1 are compared as what they were before the softmax. A few inputs that
//! disagree say little: a gain must be more than a part of its own standard error.

use super::super::apart::{Expected, mean_share};
use super::super::runtime::session::Ran;

/// So many decibels closer a model must be than one that comes before it.
const LEAST_GAIN: f64 = 0.1;
/// So many standard errors a gain must be. As many as would prove it leave most of what inputs gain.
const DOUBT: f64 = 0.5;
/// Errors below this part of an output are none.
const EXACT: f64 = 1e-15;

/// How close the outputs are that a model gives on some inputs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Score {
    /// For each run the energy of outputs over that of their errors, in decibels; of several outputs the mean of the
    /// shares. Empty if nothing differs, or nothing can be compared.
    runs: Vec<f64>,
}

impl Score {
    pub fn new(expected: &[Ran], found: &[Ran]) -> Score {
        let expected = Expected::new(expected);
        let energies = expected.energies(found);
        let runs: Vec<f64> =
            energies.iter().filter_map(|outputs| mean_share(outputs.iter().flatten().copied())).collect();
        if runs.iter().all(|&share| share <= EXACT) {
            return Score { runs: Vec::new() };
        }
        Score { runs: runs.into_iter().map(|share| -10.0 * share.max(EXACT).log10()).collect() }
    }

    /// The mean of all runs; `None` if nothing differs.
    pub fn snr_db(&self) -> Option<f64> {
        (!self.runs.is_empty()).then(|| mean(&self.runs))
    }

    /// Whether a model is closer than another by enough.
    pub fn is_closer(&self, than: &Score) -> bool {
        match (self.snr_db(), than.snr_db()) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(own), Some(other)) if !own.is_finite() || !other.is_finite() => own > other,
            (Some(own), Some(other)) => {
                let gains: Vec<f64> = self.runs.iter().zip(&than.runs).map(|(a, b)| a - b).collect();
                own > other + LEAST_GAIN.max(DOUBT * standard_error(&gains))
            }
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// That of the mean of some values; 0 of a single one, which says nothing of it.
fn standard_error(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let count = values.len() as f64;
    if count > 1.0 { (squares / (count - 1.0) / count).sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ort::value::TensorElementType;

    use super::super::super::runtime::Array;
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
        Score::new(&expected, &found).snr_db()
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
    fn a_little_closer_is_not_closer() {
        let is_closer = |own: &[f64], than: &[f64]| {
            Score { runs: own.to_vec() }.is_closer(&Score { runs: than.to_vec() })
        };
        assert!(is_closer(&[20.2], &[20.0]) && is_closer(&[], &[20.0]));
        assert!(!is_closer(&[20.05], &[20.0]) && !is_closer(&[90.0], &[]) && !is_closer(&[], &[]));
        assert!(is_closer(&[20.0, 30.0], &[f64::NEG_INFINITY, 40.0]));
        assert!(!is_closer(&[f64::NEG_INFINITY, 40.0], &[20.0, 30.0]));
    }

    #[test]
    fn a_gain_that_inputs_disagree_on_is_none() {
        let base = Score { runs: vec![20.0, 30.0, 10.0, 40.0] };
        let with =
            |gains: [f64; 4]| Score { runs: base.runs.iter().zip(gains).map(|(a, b)| a + b).collect() };
        // Both are closer on average, by 2 and 1.5 dB; the second's gains scatter by 13.
        assert!(with([2.0, 1.0, 3.0, 2.0]).is_closer(&base));
        assert!(!with([-10.0, 12.0, 14.0, -10.0]).is_closer(&base));
    }
}
