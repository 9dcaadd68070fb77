//! Rounding with compensation: what rounding one weight does to a product is made good by the weights not yet rounded.
//!
//! The error of a product is `sum over columns of d' H d`, where `d` is the error of a column of weights and `H` the sum
//! of `x x'` over activations `x`. With `H = L L'`, `L` lower triangular, that is the sum over `k` of
//! `L[k][k]^2 (d[k] + sum over j > k of L[j][k] / L[k][k] d[j])^2`: from the last weight to the first, each is rounded
//! after what the others have left over was added to it, and only its own rounding is left. Rounding is greedy, as in
//! GPTQ (arXiv 2210.17323) and LDLQ (arXiv 2307.13304), which are the same.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, Axis, s};

/// Rows that are handled together.
const BLOCK: usize = 64;
const STRIP: usize = 256;

/// `H`, damped and factored, its rows in the order of rounding: those with the largest activations first.
pub(super) struct Factor {
    /// The row of `H` that each row of `shares` is of.
    order: Vec<usize>,
    /// `L[j][k] / L[k][k]` at row `k` and column `j`, behind the diagonal: a column of `L` is read from its start to its
    /// end, so that it lies in one row.
    shares: Array2<f64>,
}

impl Factor {
    /// Of `gram`, with `damping` times the mean of its diagonal added to the diagonal; `None` if it is zero or not
    /// finite.
    pub fn new(gram: &Array2<f64>, damping: f64) -> Option<Factor> {
        let diagonal = gram.diag();
        let mean = diagonal.mean().filter(|mean| mean.is_normal() && *mean > 0.0)?;
        let mut order: Vec<usize> = (0..gram.nrows()).collect();
        // Rounding goes from the last to the first.
        order.sort_by(|&a, &b| diagonal[a].total_cmp(&diagonal[b]).then(b.cmp(&a)));
        let mut shares = Array2::from_shape_fn(gram.dim(), |(i, j)| gram[(order[i], order[j])]);
        shares.diag_mut().iter_mut().for_each(|value| *value += damping * mean);
        factor(&mut shares)?;
        for (k, mut row) in shares.rows_mut().into_iter().enumerate() {
            let pivot = row[k];
            row.iter_mut().skip(k).for_each(|value| *value /= pivot);
        }
        Some(Factor { order, shares })
    }

    /// Rounds `weights`, a column for each column of the product, with `round(row, column, value)`. Returns the rounded
    /// weights, rows as in `weights`.
    pub fn compensated(
        &self,
        weights: ArrayView2<'_, f64>,
        round: impl Fn(usize, usize, f64) -> f64,
    ) -> Array2<f64> {
        let (rows, columns) = weights.dim();
        // Both in the order of the factor.
        let mut wanted = weights.select(Axis(0), &self.order);
        let mut left = Array2::<f64>::zeros((rows, columns));
        let mut rounded = Array2::zeros((rows, columns));
        for first in (0..rows).step_by(BLOCK).rev() {
            let end = rows.min(first + BLOCK);
            let (mut before, after) = left.view_mut().split_at(Axis(0), end);
            let mut block = wanted.slice_mut(s![first..end, ..]);
            general_mat_mul(1.0, &self.shares.slice(s![first..end, end..]), &after, 1.0, &mut block);
            for row in (first..end).rev() {
                let mut errors = before.row_mut(row);
                for (column, error) in errors.iter_mut().enumerate() {
                    let value = round(self.order[row], column, block[(row - first, column)]);
                    *error = weights[(self.order[row], column)] - value;
                    rounded[(self.order[row], column)] = value;
                }
                for above in first..row {
                    let share = self.shares[(above, row)];
                    block.row_mut(above - first).scaled_add(share, &errors);
                }
            }
        }
        rounded
    }
}

/// What errors of weights, rows by columns, do to the product: `sum over columns of d' H d`.
pub(super) fn damage(gram: &Array2<f64>, errors: &Array2<f64>) -> f64 {
    let product = gram.dot(errors);
    product.iter().zip(errors).map(|(a, b)| a * b).sum()
}

/// The transpose of the lower Cholesky factor in place of a symmetric matrix; `None` if it has none. What is below the
/// diagonal has no meaning then.
fn factor(matrix: &mut Array2<f64>) -> Option<()> {
    let n = matrix.nrows();
    for first in (0..n).step_by(BLOCK) {
        let end = n.min(first + BLOCK);
        for k in first..end {
            let pivot = matrix[(k, k)].sqrt();
            if !pivot.is_normal() {
                return None;
            }
            matrix.slice_mut(s![k, k..]).iter_mut().for_each(|value| *value /= pivot);
            matrix[(k, k)] = pivot;
            for row in k + 1..end {
                let share = matrix[(k, row)];
                let (from, mut to) = matrix.multi_slice_mut((s![k, row..], s![row, row..]));
                to.scaled_add(-share, &from);
            }
        }
        // Of what is left so many rows at a time, from the diagonal on.
        for top in (end..n).step_by(STRIP) {
            let bottom = n.min(top + STRIP);
            let (done, mut rest) = matrix.multi_slice_mut((s![first..end, top..], s![top..bottom, top..]));
            general_mat_mul(-1.0, &done.slice(s![.., ..bottom - top]).t(), &done, 1.0, &mut rest);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from -1 to 1.
    fn noise(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
        let mut state = seed;
        Array2::from_shape_fn((rows, columns), |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 23) - 1.0
        })
    }

    /// Activations that go together, as real ones do.
    fn gram(n: usize) -> Array2<f64> {
        let x = noise(3 * n, n, 1).dot(&(noise(n, n, 2) + Array2::<f64>::ones((n, n)) * 0.5));
        x.t().dot(&x)
    }

    #[test]
    fn a_factor_is_one() {
        for n in [1, 5, BLOCK, 2 * BLOCK + 7, STRIP + 2 * BLOCK] {
            let matrix = gram(n) + Array2::<f64>::eye(n);
            let mut upper = matrix.clone();
            factor(&mut upper).unwrap();
            for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))).filter(|(i, j)| i > j) {
                upper[(i, j)] = 0.0;
            }
            let again = upper.t().dot(&upper);
            let apart = again.iter().zip(&matrix).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(apart < 1e-9 * matrix.diag().sum(), "{n}: {apart}");
        }
        assert!(factor(&mut -Array2::<f64>::eye(3)).is_none());
    }

    /// The same one weight at a time and straight from the factor's definition.
    fn plainly(factor: &Factor, weights: &Array2<f64>, round: impl Fn(f64) -> f64) -> Array2<f64> {
        let mut rounded = weights.clone();
        for k in (0..factor.order.len()).rev() {
            let row = factor.order[k];
            for column in 0..weights.ncols() {
                let left = |j: usize| weights[(factor.order[j], column)] - rounded[(factor.order[j], column)];
                let owed: f64 = (k + 1..factor.order.len()).map(|j| factor.shares[(k, j)] * left(j)).sum();
                rounded[(row, column)] = round(weights[(row, column)] + owed);
            }
        }
        rounded
    }

    #[test]
    fn blocks_change_nothing_and_products_gain() {
        let n = 2 * BLOCK + 9;
        let (gram, weights) = (gram(n), noise(n, 6, 3));
        let to_grid = |value: f64| (value * 8.0).round() / 8.0;
        let factor = Factor::new(&gram, 0.01).unwrap();
        let found = factor.compensated(weights.view(), |_, _, value| to_grid(value));
        assert_eq!(found, plainly(&factor, &weights, to_grid));
        let plain = weights.mapv(to_grid);
        let (better, before) = (damage(&gram, &(&weights - &found)), damage(&gram, &(&weights - &plain)));
        assert!(better < 0.5 * before, "{better} of {before}");
    }

    #[test]
    fn without_activations_there_is_nothing_to_go_by() {
        assert!(Factor::new(&Array2::zeros((4, 4)), 0.1).is_none());
        assert!(Factor::new(&(Array2::<f64>::eye(4) * f64::NAN), 0.1).is_none());
        // Activations that do not go together leave each weight to itself.
        let factor = Factor::new(&Array2::eye(4), 0.1).unwrap();
        let weights = noise(4, 3, 5);
        assert_eq!(factor.compensated(weights.view(), |_, _, v| v.round()), weights.mapv(f64::round));
    }
}
