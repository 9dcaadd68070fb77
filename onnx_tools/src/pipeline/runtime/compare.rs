//! How far two models' outputs are apart.

use ort::value::TensorElementType;

use super::array::{Array, is_float};

/// The least length of rows that may be logits.
const LEAST_CLASSES: usize = 5;

/// Distance of an output from the original's, over any number of runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distance {
    /// Largest absolute difference; infinite where only one of the two is finite.
    pub absolute: f64,
    /// The same over the original's largest magnitude in the run. As it is where that is zero, and for integers, which
    /// are exact or wrong.
    pub relative: f64,
    /// Sums of squares over elements that are finite in the original: of the differences and of the original.
    noise: f64,
    energy: f64,
    /// The least cosine of a row and the original's; none if no float row was compared.
    pub least_cosine: Option<f64>,
    /// Rows whose largest elements were compared: all, those with the same largest one, and the shares of the five
    /// largest that they have in common, added up.
    ranked: u64,
    same_first: u64,
    same_five: f64,
    /// Whether rows can be logits in all runs.
    not_logits: bool,
}

impl Distance {
    /// The energy of the original over that of the differences, in decibels; none if there are none.
    pub fn snr_db(&self) -> Option<f64> {
        (self.noise > 0.0).then(|| 10.0 * (self.energy / self.noise).log10())
    }

    /// The energy of the differences over the original's; none if nothing was compared, or all of it was zero.
    pub fn share(&self) -> Option<f64> {
        (self.energy > 0.0).then(|| self.noise / self.energy)
    }

    /// The share of rows whose largest element is the original's; none if the output does not look like logits.
    pub fn top1(&self) -> Option<f64> {
        (self.ranked > 0 && !self.not_logits).then(|| self.same_first as f64 / self.ranked as f64)
    }

    /// The share of the original's five largest elements of a row that are among its five largest, on average over
    /// rows; none as for [`Distance::top1`].
    pub fn top5(&self) -> Option<f64> {
        (self.ranked > 0 && !self.not_logits).then(|| self.same_five / self.ranked as f64)
    }

    /// Compares element by element. Elements that are equal, or both NaN, have no distance.
    ///
    /// # Errors
    /// Shapes or dtypes differ: the message says how.
    pub fn add(&mut self, original: &Array, converted: &Array) -> Result<(), String> {
        if original.dtype != converted.dtype {
            return Err(format!("is {} where the original's is {}", converted.dtype, original.dtype));
        }
        if original.shape != converted.shape {
            return Err(format!(
                "has shape {:?} where the original's has {:?}",
                converted.shape, original.shape
            ));
        }
        if original.dtype == TensorElementType::String {
            return match original.bytes == converted.bytes {
                true => Ok(()),
                false => Err("has other strings than the original's".to_string()),
            };
        }
        let (a, b) = (original.numbers(), converted.numbers());
        let mut absolute = 0f64;
        for (&x, &y) in a.iter().zip(&b) {
            if x != y && !(x.is_nan() && y.is_nan()) {
                let difference = (x - y).abs();
                absolute = absolute.max(if difference.is_finite() { difference } else { f64::INFINITY });
            }
            if x.is_finite() {
                self.energy += x * x;
                self.noise += if y.is_finite() { (x - y) * (x - y) } else { f64::INFINITY };
            }
        }
        let largest = a.iter().filter(|x| x.is_finite()).fold(0f64, |m, x| m.max(x.abs()));
        let relative = match absolute {
            0.0 => 0.0,
            d if largest == 0.0 || !is_float(original.dtype) => d,
            d => d / largest,
        };
        self.absolute = self.absolute.max(absolute);
        self.relative = self.relative.max(relative);
        if is_float(original.dtype) {
            self.add_rows(&original.shape, &a, &b);
        }
        Ok(())
    }

    /// Rows are along the last of two or three dimensions; any other output, or one of single numbers, is one row.
    fn add_rows(&mut self, shape: &[i64], a: &[f64], b: &[f64]) {
        let length = match shape {
            [_, last] | [_, _, last] if *last > 1 => *last as usize,
            _ => a.len().max(1),
        };
        let rows = || a.chunks_exact(length).zip(b.chunks_exact(length));
        for (a, b) in rows() {
            let cosine = cosine(a, b);
            self.least_cosine = Some(self.least_cosine.map_or(cosine, |least| least.min(cosine)));
        }
        // Longer shapes are images and the like; rows of unit length with both signs are embeddings.
        let has_unit_length = |row: &[f64]| {
            row.iter().any(|&x| x < 0.0) && (row.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-3
        };
        let is_logits = matches!(shape.len(), 2 | 3)
            && length >= LEAST_CLASSES
            && a.len() >= length
            && !rows().all(|(a, _)| has_unit_length(a));
        self.not_logits |= !is_logits;
        if is_logits {
            for (a, b) in rows() {
                let (first, second) = (largest_five(a), largest_five(b));
                self.ranked += 1;
                self.same_first += u64::from(first[0] == second[0]);
                self.same_five += first.iter().filter(|i| second.contains(i)).count() as f64 / 5.0;
            }
        }
    }
}

/// The cosine of two rows: 1 if both are zero, 0 if one is, or has an element that is not finite.
fn cosine(a: &[f64], b: &[f64]) -> f64 {
    if a == b {
        return 1.0;
    }
    let sum = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let cosine = sum(a, b) / (sum(a, a).sqrt() * sum(b, b).sqrt());
    if cosine.is_finite() { cosine.min(1.0) } else { 0.0 }
}

/// The places of the five largest elements, the largest first; of equal ones the first.
fn largest_five(row: &[f64]) -> [usize; 5] {
    let mut places: Vec<usize> = (0..row.len()).collect();
    let order = |&i: &usize, &j: &usize| row[j].total_cmp(&row[i]).then(i.cmp(&j));
    if places.len() > 5 {
        places.select_nth_unstable_by(4, order);
        places.truncate(5);
    }
    places.sort_unstable_by(order);
    std::array::from_fn(|i| places.get(i).copied().unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaped(shape: &[i64], values: &[f32]) -> Array {
        Array {
            dtype: TensorElementType::Float32,
            shape: shape.to_vec(),
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    fn floats(values: &[f32]) -> Array {
        shaped(&[values.len() as i64], values)
    }

    fn distance(original: &Array, converted: &Array) -> Result<Distance, String> {
        let mut distance = Distance::default();
        distance.add(original, converted).map(|()| distance)
    }

    #[test]
    fn relative_to_the_largest() {
        let d = distance(&floats(&[1.0, -4.0]), &floats(&[1.5, -4.0])).expect("comparable");
        assert_eq!((d.absolute, d.relative), (0.5, 0.125));
        assert!((d.snr_db().expect("differs") - 10.0 * (17.0f64 / 0.25).log10()).abs() < 1e-12);
        let cosine = 17.5 / (17f64.sqrt() * 18.25f64.sqrt());
        assert!((d.least_cosine.expect("a row") - cosine).abs() < 1e-12);
        assert_eq!(d.top1(), None);
        let same = distance(&floats(&[1.0, -4.0]), &floats(&[1.0, -4.0])).expect("comparable");
        assert_eq!((same.absolute, same.snr_db(), same.least_cosine), (0.0, None, Some(1.0)));
    }

    #[test]
    fn a_new_nan_is_infinitely_far() {
        let nan = f32::NAN;
        assert_eq!(distance(&floats(&[nan, 1.0]), &floats(&[-nan, 1.0])).map(|d| d.absolute), Ok(0.0));
        assert_eq!(distance(&floats(&[1.0]), &floats(&[nan])).map(|d| d.relative), Ok(f64::INFINITY));
        assert_eq!(
            distance(&floats(&[f32::INFINITY]), &floats(&[1.0])).map(|d| d.absolute),
            Ok(f64::INFINITY)
        );
    }

    #[test]
    fn zero_has_no_scale() {
        assert_eq!(distance(&floats(&[0.0]), &floats(&[1e-3])).map(|d| d.relative > 9e-4), Ok(true));
        assert_eq!(distance(&floats(&[0.0]), &floats(&[-0.0])).map(|d| d.relative), Ok(0.0));
    }

    #[test]
    fn shapes_must_agree() {
        assert!(distance(&floats(&[1.0]), &floats(&[1.0, 2.0])).is_err());
    }

    #[test]
    fn runs_and_rows_add_up() {
        let logits = shaped(&[2, 6], &[9., 8., 7., 6., 5., 4., 1., 2., 3., 4., 5., 6.]);
        // The first row's largest two change places, and its fifth and sixth.
        let other = shaped(&[2, 6], &[8., 9., 7., 6., 4., 5., 1., 2., 3., 4., 5., 6.]);
        let mut d = distance(&logits, &other).expect("comparable");
        assert_eq!((d.top1(), d.top5()), (Some(0.5), Some(0.9)));
        d.add(&logits, &logits).expect("comparable");
        assert_eq!((d.top1(), d.top5()), (Some(0.75), Some(0.95)));
        assert!(d.least_cosine.is_some_and(|cosine| cosine < 1.0));
        assert!((d.snr_db().expect("differs") - 10.0 * (2.0 * 362.0f64 / 4.0).log10()).abs() < 1e-9);
    }

    #[test]
    fn images_and_embeddings_are_no_logits() {
        let image = shaped(&[1, 1, 1, 6], &[1.0; 6]);
        assert_eq!(distance(&image, &image).expect("comparable").top1(), None);
        let unit = shaped(&[1, 5], &[0.6, 0.0, -0.8, 0.0, 0.0]);
        assert_eq!(distance(&unit, &unit).expect("comparable").top1(), None);
        let few = shaped(&[3, 2], &[0.5; 6]);
        assert_eq!(distance(&few, &few).expect("comparable").top1(), None);
    }
}
