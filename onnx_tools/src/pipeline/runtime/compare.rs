//! How far two outputs are apart.

use ort::value::TensorElementType;

use super::array::{Array, is_float};

/// Distance of an output from the original's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distance {
    /// Largest absolute difference; infinite where only one of the two is finite.
    pub absolute: f64,
    /// The same over the original's largest magnitude. As it is where that is zero, and for integers, which are
    /// exact or wrong.
    pub relative: f64,
}

/// Compares element by element. Elements that are equal, or both NaN, have no distance.
///
/// # Errors
/// Shapes or dtypes differ: the message says how.
pub fn distance(original: &Array, converted: &Array) -> Result<Distance, String> {
    if original.dtype != converted.dtype {
        return Err(format!("is {} where the original's is {}", converted.dtype, original.dtype));
    }
    if original.shape != converted.shape {
        return Err(format!("has shape {:?} where the original's has {:?}", converted.shape, original.shape));
    }
    if original.bytes == converted.bytes {
        return Ok(Distance { absolute: 0.0, relative: 0.0 });
    }
    if original.dtype == TensorElementType::String {
        return Err("has other strings than the original's".to_string());
    }
    let (a, b) = (original.numbers(), converted.numbers());
    let mut absolute = 0f64;
    for (&x, &y) in a.iter().zip(&b) {
        if x != y && !(x.is_nan() && y.is_nan()) {
            let difference = (x - y).abs();
            absolute = absolute.max(if difference.is_finite() { difference } else { f64::INFINITY });
        }
    }
    let largest = a.iter().filter(|x| x.is_finite()).fold(0f64, |m, x| m.max(x.abs()));
    let relative = match absolute {
        0.0 => 0.0,
        d if largest == 0.0 || !is_float(original.dtype) => d,
        d => d / largest,
    };
    Ok(Distance { absolute, relative })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> Array {
        Array {
            dtype: TensorElementType::Float32,
            shape: vec![values.len() as i64],
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    #[test]
    fn relative_to_the_largest() {
        let d = distance(&floats(&[1.0, -4.0]), &floats(&[1.5, -4.0])).expect("comparable");
        assert_eq!(d, Distance { absolute: 0.5, relative: 0.125 });
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
}
