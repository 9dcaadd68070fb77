//! How close a model's outputs are to the original's, as one number.
//!
//! Inputs count alike, by their decibels: else the few that a saturated classifier is unsure of would decide alone. For
//! the same reason probabilities that add up to 1 are compared as what they were before the softmax.

use super::super::apart::{Expected, mean_share};
use super::super::runtime::session::Ran;

/// So many decibels closer a model must be than one that comes before it.
const LEAST_GAIN: f64 = 0.1;
/// Errors below this part of an output are none.
const EXACT: f64 = 1e-15;

/// The energy of outputs over that of their errors, in decibels: the mean over runs, of several outputs the mean of the
/// shares of a run. `None` if nothing differs, or nothing can be compared.
pub(super) fn snr_db(expected: &[Ran], found: &[Ran]) -> Option<f64> {
    let expected = Expected::new(expected);
    let energies = expected.energies(found);
    let runs: Vec<f64> =
        energies.iter().filter_map(|outputs| mean_share(outputs.iter().flatten().copied())).collect();
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
    fn a_little_closer_is_not_closer() {
        assert!(is_closer(Some(20.2), Some(20.0)) && is_closer(None, Some(20.0)));
        assert!(
            !is_closer(Some(20.05), Some(20.0)) && !is_closer(Some(90.0), None) && !is_closer(None, None)
        );
    }
}
