//! Rounding with compensation where no inputs are known, by what activations mostly have in common.
//!
//! They are seldom of mean 0 (behind a ReLU they are positive), and neighbours of one channel that a convolution reads go
//! together. So `H`, the sum of `x x'` that [`super::round`] takes from inputs, is taken to be [`MEAN`] everywhere, with
//! [`ALIKE`] more among those of a window, and 1 more on the diagonal less [`ALIKE`]. It then costs next to nothing that the
//! errors of a sum add up to 0, and those of a window nearly so. Such an `H` has a factor of two numbers a row.

use ndarray::{Array2, ArrayView2};

/// The square of activations' mean, over their variance.
const MEAN: f64 = 1.0;
/// How far activations of a window go together.
const ALIKE: f64 = 0.5;

/// What each weight of a sum makes good of the errors of those before it.
pub(super) struct Rule {
    /// From the last weight to the first.
    shares: Vec<Shares>,
    /// Weights of a window.
    window: usize,
}

#[derive(Debug, Clone, Copy)]
struct Shares {
    /// Of the errors in its window.
    within: f64,
    /// Of those in others.
    beyond: f64,
}

impl Rule {
    /// For sums of `len` weights, of which `window` are of one channel.
    pub fn new(len: usize, window: usize) -> Rule {
        let alike = if window > 1 { ALIKE } else { 0.0 };
        // Of `H` after the rows so far are eliminated: each off the diagonal among those beyond this window.
        let mut mean = MEAN;
        let mut shares = Vec::with_capacity(len);
        while shares.len() < len {
            // Those within, and between within and beyond.
            let (mut within, mut across) = (mean + alike, mean);
            for _ in 0..window {
                let pivot = 1.0 - alike + within;
                shares.push(Shares { within: within / pivot, beyond: across / pivot });
                mean -= across * across / pivot;
                across -= within * across / pivot;
                within -= within * within / pivot;
            }
        }
        Rule { shares, window }
    }

    /// As [`super::round::Factor::compensated`].
    pub fn compensated(
        &self,
        weights: ArrayView2<'_, f64>,
        round: impl Fn(usize, usize, f64) -> f64,
    ) -> Array2<f64> {
        let (rows, columns) = weights.dim();
        let mut rounded = Array2::zeros((rows, columns));
        // What has been lost in this window, and in those before it.
        let (mut within, mut beyond) = (vec![0.0; columns], vec![0.0; columns]);
        for row in 0..rows {
            let shares = self.shares[rows - 1 - row];
            for column in 0..columns {
                let wanted = weights[(row, column)];
                let value = wanted + shares.within * within[column] + shares.beyond * beyond[column];
                let value = round(row, column, value);
                rounded[(row, column)] = value;
                within[column] += wanted - value;
            }
            if (row + 1) % self.window == 0 {
                beyond
                    .iter_mut()
                    .zip(&mut within)
                    .for_each(|(beyond, within)| *beyond += std::mem::take(within));
            }
        }
        rounded
    }
}

#[cfg(test)]
mod tests {
    use super::super::round::{Factor, damage};
    use super::*;

    /// The `H` of the module's head.
    fn expected(len: usize, window: usize) -> Array2<f64> {
        let alike = if window > 1 { ALIKE } else { 0.0 };
        Array2::from_shape_fn((len, len), |(i, j)| {
            let same_window = if i / window == j / window { alike } else { 0.0 };
            MEAN + same_window + if i == j { 1.0 - alike } else { 0.0 }
        })
    }

    fn weights(rows: usize, columns: usize) -> Array2<f64> {
        Array2::from_shape_fn((rows, columns), |(i, j)| {
            ((i * 37 + j * 101) as f64 * 0.618_034).fract() * 8.0 - 4.0
        })
    }

    #[test]
    fn it_is_the_factor_of_what_is_expected() {
        for (len, window) in [(1, 1), (7, 1), (27, 9), (40, 4), (150, 25)] {
            let (weights, round) = (weights(len, 3), |_, _, value: f64| value.round());
            let found = Rule::new(len, window).compensated(weights.view(), round);
            // A factor rounds rows of equal diagonals in their order.
            let factor = Factor::new(&expected(len, window), 0.0).expect("positive");
            assert_eq!(found, factor.compensated(weights.view(), round), "{len} {window}");
        }
    }

    #[test]
    fn errors_add_up_to_little() {
        let (weights, h) = (weights(288, 5), expected(288, 9));
        let by_rule = &weights - Rule::new(288, 9).compensated(weights.view(), |_, _, value| value.round());
        let each = &weights - weights.mapv(f64::round);
        assert!(by_rule.sum_axis(ndarray::Axis(0)).iter().all(|sum| sum.abs() < 1.0), "{by_rule}");
        assert!(damage(&h, &by_rule) < 0.8 * damage(&h, &each));
    }
}
