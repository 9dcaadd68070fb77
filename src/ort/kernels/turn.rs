//! Turning decoded rows into columns.

/// Square blocks of this side are turned at a time; the compiler keeps one in registers.
const SIDE: usize = 4;

/// Writes `rows`, an `[n, depth]` matrix, as columns `at .. at + n` of `panel`, a `[depth, width]` one.
///
/// # Panics
/// The lengths do not go together.
pub(crate) fn into_columns(panel: &mut [f32], width: usize, at: usize, rows: &[f32], depth: usize) {
    let n = rows.len() / depth;
    assert!(rows.len() == n * depth && panel.len() == width * depth && at + n <= width);
    for first in (0..n).step_by(SIDE) {
        let strip = &rows[first * depth..(first + SIDE).min(n) * depth];
        let at = at + first;
        if strip.len() < SIDE * depth {
            for (i, row) in strip.chunks_exact(depth).enumerate() {
                panel[at + i..].iter_mut().step_by(width).zip(row).for_each(|(out, &value)| *out = value);
            }
            continue;
        }
        let (a, rest) = strip.split_at(depth);
        let (b, rest) = rest.split_at(depth);
        let (c, d) = rest.split_at(depth);
        let values = a.iter().zip(b).zip(c).zip(d);
        for (row, (((&a, &b), &c), &d)) in panel.chunks_exact_mut(width).zip(values) {
            row[at..at + SIDE].copy_from_slice(&[a, b, c, d]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::into_columns;

    #[test]
    fn every_element_finds_its_place() {
        for (n, depth, width, at) in
            [(1, 1, 1, 0), (4, 7, 4, 0), (9, 5, 16, 3), (17, 33, 20, 3), (3, 8, 3, 0)]
        {
            let rows: Vec<f32> = (0..n * depth).map(|i| i as f32).collect();
            let mut panel = vec![-1.0; width * depth];
            into_columns(&mut panel, width, at, &rows, depth);
            for (i, &value) in panel.iter().enumerate() {
                let (d, column) = (i / width, i % width);
                let inside = (at..at + n).contains(&column);
                assert_eq!(value, if inside { rows[(column - at) * depth + d] } else { -1.0 });
            }
        }
    }
}
