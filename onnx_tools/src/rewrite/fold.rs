//! Weights that ONNX Runtime makes out again as it loads the model: stored as float16 behind a Cast, or as int8 behind a
//! Cast and a Mul, which its constant folding computes once. Kernels that want a constant get one, and the file is
//! smaller; in memory the weight is what it was.
//!
//! The form in bytes: the scales, little-endian float32, then the elements in the order of the weight's.

use std::ops::Range;

use half::f16;
use nz_onnx::codec::allocation::Folded;

/// The largest level.
const LEVELS: f32 = 127.0;
/// Scales that are tried for a row: the one that its largest weight calls for, and wider ones, by a quarter of a level.
const SCALES: usize = 64;
/// Weights over scales tried for them: of many, one scale does as well as another.
const TRIES: usize = 4096;
/// The largest float16.
const LARGEST_HALF: f32 = 65504.0;

/// Scales that a weight of this shape has.
pub fn scales(how: Folded, shape: &[u64]) -> u64 {
    match how {
        Folded::Half => 0,
        Folded::Rows => shape.first().copied().unwrap_or(1),
        Folded::Whole => 1,
    }
}

/// Bytes that a weight takes so.
pub fn size(how: Folded, shape: &[u64]) -> u64 {
    let elements: u64 = shape.iter().product();
    4 * scales(how, shape) + elements * if how == Folded::Half { 2 } else { 1 }
}

/// The ways that there are for a weight of this shape.
pub fn ways(shape: &[u64]) -> impl Iterator<Item = Folded> + use<> {
    let has_rows = shape.len() > 1;
    [Folded::Half, Folded::Rows, Folded::Whole]
        .into_iter()
        .filter(move |&how| how != Folded::Rows || has_rows)
}

/// The float32 elements `source` in that form; none if a weight is not finite or beyond float16.
pub fn encode(source: &[u8], how: Folded, shape: &[u64]) -> Option<Vec<u8>> {
    let values = floats(source);
    let largest = values.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
    if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    if how == Folded::Half {
        let halves = || values.iter().map(|&value| f16::from_f32(value));
        return (largest <= LARGEST_HALF).then(|| halves().flat_map(f16::to_le_bytes).collect());
    }
    let row = values.len() / usize::try_from(scales(how, shape)).ok()?.max(1);
    let scales: Vec<f32> = values.chunks(row.max(1)).map(scale).collect();
    let mut out: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    for (row, &scale) in values.chunks(row.max(1)).zip(&scales) {
        out.extend(row.iter().map(|&value| level(value, scale).to_le_bytes()[0]));
    }
    Some(out)
}

/// The float32 elements that ONNX Runtime makes of the form with `scales` scales; none if that is no such form.
pub fn decode(stored: &[u8], how: Folded, scales: u64) -> Option<Vec<u8>> {
    let (scales, elements) = stored.split_at_checked(usize::try_from(scales.checked_mul(4)?).ok()?)?;
    if how == Folded::Half {
        let halves = elements.chunks_exact(2).map(|half| f16::from_le_bytes([half[0], half[1]]));
        let whole = scales.is_empty() && elements.len() % 2 == 0;
        return whole.then(|| halves.flat_map(|half| half.to_f32().to_le_bytes()).collect());
    }
    let scales = floats(scales);
    let row = elements.len().checked_div(scales.len()).filter(|&row| row > 0)?;
    let rows = elements.chunks(row).zip(&scales);
    let values =
        rows.flat_map(|(row, &scale)| row.iter().map(move |&l| f32::from(i8::from_le_bytes([l])) * scale));
    (row * scales.len() == elements.len()).then(|| values.flat_map(f32::to_le_bytes).collect())
}

/// Whether `stored` is what `source` becomes at the scales that it has.
pub fn is_of(stored: &[u8], source: &[u8], how: Folded, shape: &[u64]) -> bool {
    if how == Folded::Half {
        return encode(source, how, shape).is_some_and(|own| own == stored);
    }
    let at = usize::try_from(4 * scales(how, shape)).ok();
    let Some((scales, levels)) = at.and_then(|at| stored.split_at_checked(at)) else { return false };
    let (values, scales) = (floats(source), floats(scales));
    let row = (values.len() / scales.len().max(1)).max(1);
    let own = values.chunks(row).zip(&scales);
    let own = own.flat_map(|(row, &scale)| row.iter().map(move |&value| level(value, scale)));
    values.len() == levels.len() && own.zip(levels).all(|(own, &l)| own == i8::from_le_bytes([l]))
}

/// The elements rounded so that the energy of the error is about `size` of theirs; none if they cannot be.
pub fn rounded(source: &[u8], size: f64) -> Option<Vec<u8>> {
    let values = floats(source);
    let energy: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
    // Errors spread evenly over a step have a twelfth of its square.
    let step = (12.0 * size * energy / values.len() as f64).sqrt() as f32;
    let steps = values.iter().map(|value| (value / step).round_ties_even() * step);
    (step.is_normal()).then(|| steps.flat_map(f32::to_le_bytes).collect())
}

/// The energy of the difference over that of `source`, and the largest one over its own weight.
pub fn error(source: &[u8], found: &[u8]) -> Errors {
    let (mut noise, mut errors) = (0.0, Errors::default());
    for (source, found) in floats(source).into_iter().zip(floats(found)) {
        let (weight, error) = (f64::from(source), (f64::from(source) - f64::from(found)).abs());
        errors.exact &= source.to_bits() == found.to_bits();
        errors.energy += weight * weight;
        noise += error * error;
        errors.largest = errors.largest.max(error);
        if error > 0.0 && weight != 0.0 {
            errors.relative = errors.relative.max(error / weight.abs());
        }
    }
    errors.noise = if noise == 0.0 { 0.0 } else { noise / errors.energy };
    errors
}

/// How far elements are from others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Errors {
    /// Whether all have the same bits.
    pub exact: bool,
    /// The sum of the squares of the source's.
    pub energy: f64,
    /// The sum of the errors' squares over it.
    pub noise: f64,
    /// The largest error.
    pub largest: f64,
    /// The largest error over its own element.
    pub relative: f64,
}

impl Default for Errors {
    fn default() -> Self {
        Errors { exact: true, energy: 0.0, noise: 0.0, largest: 0.0, relative: 0.0 }
    }
}

/// Where the scales and the elements of a form of `len` bytes are.
pub(super) fn parts(len: u64, scales: u64) -> Option<(Range<u64>, Range<u64>)> {
    let end = scales.checked_mul(4).filter(|&end| end <= len)?;
    Some((0..end, end..len))
}

/// The scale of the least error among those tried.
fn scale(row: &[f32]) -> f32 {
    let largest = row.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
    let tries = (TRIES / row.len().max(1)).clamp(1, SCALES);
    let of = |i: usize| (largest / (LEVELS - i as f32 / 4.0)).max(f32::MIN_POSITIVE);
    let noise = |scale: f32| -> f64 {
        row.iter().map(|&v| (f64::from(v) - f64::from(f32::from(level(v, scale)) * scale)).powi(2)).sum()
    };
    // Of equal ones the first, which is the smallest.
    let first = (of(0), noise(of(0)));
    let best = (1..tries)
        .map(|i| (of(i), noise(of(i))))
        .fold(first, |best, other| if other.1 < best.1 { other } else { best });
    best.0
}

fn level(value: f32, scale: f32) -> i8 {
    (value / scale).round_ties_even().clamp(-LEVELS, LEVELS) as i8
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [u64; 4] = [40, 1, 3, 3];

    /// Weights whose size differs a hundredfold from row to row.
    fn weights() -> Vec<u8> {
        let value = |i: usize| (i as f32 * 0.731).sin() * 10f32.powf((i / 9 % 5) as f32 * 0.5 - 2.0);
        (0..360).flat_map(|i| value(i).to_le_bytes()).collect()
    }

    fn noise(how: Folded, source: &[u8]) -> f64 {
        let stored = encode(source, how, &SHAPE).expect("finite");
        assert_eq!(stored.len() as u64, size(how, &SHAPE));
        assert!(is_of(&stored, source, how, &SHAPE));
        let found = decode(&stored, how, scales(how, &SHAPE)).expect("the form");
        let errors = error(source, &found);
        assert!(!errors.exact && errors.largest > 0.0);
        errors.noise
    }

    #[test]
    fn a_form_comes_back_with_the_error_of_its_bits() {
        let source = weights();
        let [half, rows, whole] = [Folded::Half, Folded::Rows, Folded::Whole].map(|how| noise(how, &source));
        assert!(half < 1e-6, "{half:e}");
        // A row's own scale: errors far below 1 / 127 of its largest.
        assert!(rows < 8e-6 && rows < whole, "{rows:e} {whole:e}");
        assert!(whole < 1e-4, "{whole:e}");
    }

    #[test]
    fn the_scale_chosen_is_no_worse_than_the_usual_one() {
        for row in floats(&weights()).chunks(9) {
            let largest = row.iter().fold(0.0, |most: f32, v| most.max(v.abs()));
            let noise = |scale: f32| -> f64 {
                row.iter().map(|&v| f64::from(v - f32::from(level(v, scale)) * scale).powi(2)).sum()
            };
            assert!(noise(scale(row)) <= noise(largest / 127.0));
        }
        assert_eq!(scale(&[0.0; 9]), f32::MIN_POSITIVE);
    }

    #[test]
    fn a_changed_level_is_found_and_so_is_a_broken_form() {
        let source = weights();
        for how in ways(&SHAPE) {
            let mut stored = encode(&source, how, &SHAPE).expect("finite");
            let last = stored.len() - 1;
            stored[last] ^= 2;
            assert!(!is_of(&stored, &source, how, &SHAPE), "{how:?}");
            assert!(decode(&stored[..1], how, scales(how, &SHAPE)).is_none(), "{how:?}");
        }
        assert!(decode(&[0; 8], Folded::Rows, u64::MAX).is_none());
        assert!(decode(&[0; 15], Folded::Rows, 2).is_none());
    }

    #[test]
    fn what_has_no_form_gets_none() {
        let of = |value: f32| value.to_le_bytes().repeat(360);
        assert!(encode(&of(f32::NAN), Folded::Rows, &SHAPE).is_none());
        assert!(encode(&of(7e4), Folded::Half, &SHAPE).is_none());
        assert!(encode(&of(7e4), Folded::Whole, &SHAPE).is_some());
        assert!(rounded(&of(0.0), 1e-3).is_none());
        assert_eq!(ways(&[7]).collect::<Vec<_>>(), [Folded::Half, Folded::Whole]);
    }

    #[test]
    fn probes_have_about_the_error_asked_for() {
        let source = weights();
        for size in [1e-3, 1e-2] {
            let found = error(&source, &rounded(&source, size).expect("not zero")).noise;
            assert!(found > size / 3.0 && found < size * 3.0, "{found:e}");
        }
    }
}
