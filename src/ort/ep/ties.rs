//! Weights that a session has twice: ONNX Runtime folds the `Transpose` of a tied embedding into an initializer of its own.

use rayon::prelude::*;

use super::claim::{Claim, Use};
use super::graph::Identity;
use crate::format::Layout;
use crate::ort::fence::Result;

/// Rows and columns that are looked at together, so that the lines of both matrices stay in a cache.
const TILE: usize = 32;

/// Joins each matrix that is read as columns with the one that it is the transpose of, if there is one that is read as rows:
/// a blob of rows serves both.
///
/// # Errors
/// Those of `is_transpose`, which compares contents: those of the second are `[columns, rows]` of the first.
pub(super) fn join<'a>(
    claims: Vec<Claim<'a>>,
    is_transpose: impl Fn(&Claim<'a>, &Claim<'a>) -> Result<bool>,
) -> Result<Vec<Claim<'a>>> {
    let mut twins = Vec::new();
    for claim in &claims {
        let mut twin = None;
        for (at, other) in claims.iter().enumerate().filter(|(_, other)| may_be_twins(other, claim)) {
            if is_multiplied(claim)? && is_transpose(other, claim)? {
                twin = Some(at);
                break;
            }
        }
        twins.push(twin);
    }
    let mut joined: Vec<Option<Claim<'a>>> = claims.into_iter().map(Some).collect();
    for (at, twin) in twins.into_iter().enumerate() {
        // What is read as rows has no twin itself, so it is still there.
        if let Some(twin) = twin
            && let Some(claim) = joined[at].take()
            && let Some(rows) = &mut joined[twin]
        {
            rows.absorb(claim);
        }
    }
    Ok(joined.into_iter().flatten().collect())
}

/// Whether one is read as rows and the other as columns, and shapes and types are those of a matrix and its transpose.
fn may_be_twins(rows: &Claim<'_>, columns: &Claim<'_>) -> bool {
    rows.spec.layout == Layout::RowMajor
        && matches!(columns.spec.layout, Layout::ColumnTiles { .. })
        && columns.shape.len() == 2
        && rows.spec.dtype == columns.spec.dtype
        && rows.shape.iter().eq(columns.shape.iter().rev())
}

/// Whether all that is done with the weight is to multiply by it, which works either way round.
fn is_multiplied(claim: &Claim<'_>) -> Result<bool> {
    for Use { node, .. } in &claim.uses {
        if !matches!(node.op()?.1, "MatMul" | "FusedMatMul" | "Gemm" | "FusedGemm") {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Claim<'_> {
    fn absorb(&mut self, other: Self) {
        self.gathered = false;
        self.turned.push((other.name, other.identity));
        // They read this weight now, and no other.
        let together = vec![self.name.clone()];
        self.uses.extend(other.uses.into_iter().map(|u| Use { node: u.node, together: together.clone() }));
    }

    /// Whether ONNX Runtime has it in memory only where it is read: in a file that it maps, and read a row here and there.
    pub fn is_mapped(&self) -> bool {
        self.gathered && matches!(self.identity, Identity::File(..))
    }
}

/// Whether `b`, `[columns, rows]`, is the transpose of `a`, `[rows, columns]`, of elements of `size` bytes.
pub(super) fn is_transpose(a: &[u8], b: &[u8], size: usize, (rows, columns): (usize, usize)) -> bool {
    a.len() == b.len()
        && a.len() == rows * columns * size
        && (0..rows.div_ceil(TILE)).into_par_iter().all(|strip| {
            let of_strip = strip * TILE..rows.min((strip + 1) * TILE);
            (0..columns).step_by(TILE).all(|first| {
                (first..columns.min(first + TILE)).all(|column| {
                    of_strip.clone().all(|row| {
                        let (at, turned) = ((row * columns + column) * size, (column * rows + row) * size);
                        a[at..at + size] == b[turned..turned + size]
                    })
                })
            })
        })
}

/// The transpose of `bytes`, `[rows, columns]`, of elements of `size` bytes.
pub(super) fn transpose(bytes: &[u8], size: usize, (rows, columns): (usize, usize)) -> Vec<u8> {
    let mut out = vec![0; bytes.len()];
    for strip in (0..rows).step_by(TILE) {
        for (column, out) in out.chunks_exact_mut(rows * size).enumerate() {
            for row in strip..rows.min(strip + TILE) {
                let at = (row * columns + column) * size;
                out[row * size..(row + 1) * size].copy_from_slice(&bytes[at..at + size]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transpose_is_told_from_what_is_nearly_one() {
        for (rows, columns, size) in [(1, 1, 4), (33, 70, 2), (64, 32, 4), (100, 3, 1)] {
            let a: Vec<u8> = (0..rows * columns * size).map(|i| (i * 37 + i / 251) as u8).collect();
            let b = transpose(&a, size, (rows, columns));
            assert!(is_transpose(&a, &b, size, (rows, columns)));
            assert_eq!(transpose(&b, size, (columns, rows)), a);
            for at in [0, b.len() / 2, b.len() - 1] {
                let mut other = b.clone();
                other[at] ^= 1;
                assert!(!is_transpose(&a, &other, size, (rows, columns)), "byte {at}");
            }
            assert!(!is_transpose(&a, &b[1..], size, (rows, columns)));
        }
        let a: Vec<u8> = (0..6).collect();
        assert_eq!(transpose(&a, 1, (2, 3)), [0, 3, 1, 4, 2, 5]);
    }
}
