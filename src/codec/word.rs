//! Words: the float32 bit pattern through which all three dtypes are coded, and rounding of their mantissas.

use crate::format::{Dtype, Unit};

const MANTISSA: u32 = 0x7f_ffff;
const MAGNITUDE: u32 = 0x7fff_ffff;

/// The word of a float16 bit pattern: same value, same sign, same NaN payload (13 bits up).
pub fn from_f16(bits: u16) -> u32 {
    let (sign, exponent, mantissa) =
        (u32::from(bits >> 15) << 31, (bits >> 10) & 31, u32::from(bits & 0x3ff));
    match (exponent, mantissa) {
        (0, 0) => sign,
        (0, _) => {
            let top = mantissa.ilog2();
            sign | (103 + top) << 23 | (mantissa << (23 - top)) & MANTISSA
        }
        (31, _) => sign | 255 << 23 | mantissa << 13,
        _ => sign | (u32::from(exponent) + 112) << 23 | mantissa << 13,
    }
}

/// The float16 bit pattern of a word made by [`from_f16`]. A word that no float16 has gives an arbitrary one.
pub fn to_f16(word: u32) -> u16 {
    let (sign, exponent, mantissa) = ((word >> 16) as u16 & 0x8000, word >> 23 & 255, word & MANTISSA);
    let magnitude = match exponent {
        0..103 => 0,
        103..113 => (mantissa | 1 << 23) >> (126 - exponent),
        113..143 => (exponent - 112) << 10 | mantissa >> 13,
        _ => 31 << 10 | mantissa >> 13,
    };
    sign | magnitude as u16
}

/// The word of a signed byte: its sign, and as the top mantissa bits the magnitude, which is that of the complement if
/// the number is negative.
pub fn from_integer(byte: u8) -> u32 {
    match byte as i8 {
        number @ 0.. => u32::from(number as u8) << 16,
        number => 1 << 31 | u32::from(!number as u8) << 16,
    }
}

/// The signed byte of a word made by [`from_integer`].
pub fn to_integer(word: u32) -> u8 {
    let magnitude = (word >> 16) as u8 & 0x7f;
    if word >> 31 == 0 { magnitude } else { !magnitude }
}

/// Reads the words of `src`, little-endian elements of `dtype`, into `out`.
///
/// # Panics
/// `src` holds fewer elements than `out`.
pub fn load(dtype: Dtype, src: &[u8], out: &mut [u32]) {
    assert!(src.len() >= out.len() * dtype.size());
    let halves = || src.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        Dtype::F32 => out
            .iter_mut()
            .zip(src.chunks_exact(4))
            .for_each(|(w, b)| *w = u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        Dtype::F16 => out.iter_mut().zip(halves()).for_each(|(w, h)| *w = from_f16(h)),
        Dtype::Bf16 => out.iter_mut().zip(halves()).for_each(|(w, h)| *w = u32::from(h) << 16),
        Dtype::U8 | Dtype::I8 => {
            out.iter_mut().zip(src).for_each(|(w, &b)| *w = from_integer(b ^ dtype.word_flip()));
        }
    }
}

/// Writes words as little-endian elements of `dtype`.
///
/// # Panics
/// `out` has no room for them.
pub fn store(dtype: Dtype, words: &[u32], out: &mut [u8]) {
    assert!(out.len() >= words.len() * dtype.size());
    match dtype {
        Dtype::F32 => {
            out.chunks_exact_mut(4).zip(words).for_each(|(b, w)| b.copy_from_slice(&w.to_le_bytes()))
        }
        Dtype::F16 => {
            out.chunks_exact_mut(2).zip(words).for_each(|(b, &w)| b.copy_from_slice(&to_f16(w).to_le_bytes()))
        }
        Dtype::Bf16 => {
            out.chunks_exact_mut(2).zip(words).for_each(|(b, w)| b.copy_from_slice(&w.to_le_bytes()[2..]))
        }
        Dtype::U8 | Dtype::I8 => {
            out.iter_mut().zip(words).for_each(|(b, &w)| *b = to_integer(w) ^ dtype.word_flip());
        }
    }
}

/// The first of the 23 exponent codes that stand for subnormals in [`normalise`]d words.
pub const SUBNORMAL_CODES: u32 = 232;

/// Gives a subnormal word a leading one of its own: exponent code 232 + the place of its top bit. The other words
/// stay as they are; none of them may have an exponent from 232 to 254.
pub fn normalise(word: u32) -> u32 {
    let magnitude = word & MAGNITUDE;
    if magnitude == 0 || magnitude > MANTISSA {
        return word;
    }
    let top = magnitude.ilog2();
    word & !MAGNITUDE | (SUBNORMAL_CODES + top) << 23 | (magnitude << (23 - top)) & MANTISSA
}

/// Undoes [`normalise`].
pub fn denormalise(word: u32) -> u32 {
    let code = word >> 23 & 255;
    if !(SUBNORMAL_CODES..255).contains(&code) {
        return word;
    }
    word & !MAGNITUDE | (word & MANTISSA | 1 << 23) >> (23 + SUBNORMAL_CODES - code)
}

/// Rounds a word to `k` mantissa bits, half to even: to `k` bits behind the leading one, subnormal or not.
///
/// A finite word stays finite: where rounding up would leave the dtype's range, the word is cut instead, which
/// gives the largest magnitude with `k` bits. Infinities, NaNs and zeros are left alone. The relative error of
/// any other word is at most `1 / (2^(k+1) + 1)`, except where it was cut.
pub fn round(word: u32, k: u8, dtype: Dtype) -> u32 {
    let magnitude = word & MAGNITUDE;
    let exponent = magnitude >> 23;
    let leading = if exponent == 0 { magnitude.checked_ilog2().unwrap_or(0) } else { 23 };
    let shift = leading.saturating_sub(u32::from(k));
    if shift == 0 || exponent == 255 {
        return word;
    }
    let keep = MAGNITUDE << shift;
    let odd = magnitude >> shift & 1;
    let up = (magnitude + (1 << (shift - 1)) - 1 + odd) & keep;
    let largest = if dtype == Dtype::F16 { 142 } else { 254 };
    let rounded = if up >> 23 > largest { magnitude & keep } else { up };
    word & !MAGNITUDE | rounded & MAGNITUDE
}

/// The word of the nearest level with `k` raw bits to the value of `word`, which is finite. Where the unit is too small
/// for it, the largest level.
pub fn level(word: u32, unit: Unit, k: u8) -> u32 {
    let value = f64::from(f32::from_bits(word & MAGNITUDE));
    let scaled = value * (f64::from(1 << 23) / f64::from(unit.value()));
    let step = 1u32 << (23 - k);
    let up = if unit.is_centred() { 0 } else { step / 2 };
    let level = (scaled + f64::from(up)).min(f64::from(MAGNITUDE)) as u32;
    word & !MAGNITUDE | (level / step * step)
}

/// The word of the value that a level stands for, as `dtype` has it.
pub fn level_value(level: u32, unit: Unit, k: u8, dtype: Dtype) -> u32 {
    let centre = if unit.is_centred() { (1u32 << (23 - k)) / 2 } else { 0 };
    let fraction = f64::from((level & MAGNITUDE) + centre) / f64::from(1 << 23);
    let value = (fraction * f64::from(unit.value())) as f32;
    let multiple = |of: f64| ((f64::from(value) / of).round_ties_even() * of) as f32;
    let exponent = (value.to_bits() >> 23) as i32 - 127;
    let rounded = match dtype {
        Dtype::F32 | Dtype::U8 | Dtype::I8 => value,
        Dtype::Bf16 => multiple(f64::from(exponent - 7).exp2()),
        Dtype::F16 if value >= 65520.0 => f32::INFINITY,
        Dtype::F16 => multiple(f64::from(exponent.max(-14) - 10).exp2()),
    };
    level & !MAGNITUDE | rounded.to_bits()
}

/// The largest `|a - b| / |a|` over finite non-zero `a` of `original`, with `b` its counterpart in `decoded`,
/// both little-endian elements of `dtype`. 0 if nothing differs.
///
/// # Panics
/// The lengths differ.
pub fn max_relative_error(original: &[u8], decoded: &[u8], dtype: Dtype) -> f64 {
    assert_eq!(original.len(), decoded.len());
    let (mut a, mut b) = ([0u32; 256], [0u32; 256]);
    let chunk = a.len() * dtype.size();
    let mut worst = 0f64;
    for (x, y) in original.chunks(chunk).zip(decoded.chunks(chunk)) {
        let n = x.len() / dtype.size();
        load(dtype, x, &mut a[..n]);
        load(dtype, y, &mut b[..n]);
        for (&x, &y) in a[..n].iter().zip(&b[..n]).filter(|(x, y)| x != y) {
            let (x, y) = (f64::from(f32::from_bits(x)), f64::from(f32::from_bits(y)));
            if x.is_finite() && x != 0.0 {
                worst = worst.max((x - y).abs() / x.abs());
            }
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_survives() {
        for bits in 0..=u16::MAX {
            let word = from_f16(bits);
            assert_eq!(to_f16(word), bits, "{bits:#06x}");
            assert_eq!(word & 0x1fff, 0, "{bits:#06x} needs at most 10 mantissa bits");
            let value = half::f16::from_bits(bits);
            if !value.is_nan() {
                assert_eq!(f32::from_bits(word), value.to_f32());
            }
        }
    }

    #[test]
    fn rounded_f16_stays_f16_within_the_bound() {
        for bits in 0..=u16::MAX {
            for k in 0..10 {
                let (word, value) = (from_f16(bits), half::f16::from_bits(bits).to_f64());
                let rounded = to_f16(round(word, k, Dtype::F16));
                assert_eq!(from_f16(rounded), round(word, k, Dtype::F16), "{bits:#06x} at {k}");
                if value.is_finite() && value != 0.0 {
                    let error = (half::f16::from_bits(rounded).to_f64() - value).abs() / value.abs();
                    let bound = 1.0 / (f64::from(2 << k) + 1.0);
                    let saturated = half::f16::from_bits(rounded) == cut_max(k, value);
                    assert!(error <= bound || saturated, "{bits:#06x} at {k}: {error}");
                    assert!(half::f16::from_bits(rounded).is_finite());
                } else {
                    assert_eq!(rounded, bits);
                }
            }
        }
    }

    fn cut_max(k: u8, like: f64) -> half::f16 {
        let max = half::f16::from_bits((half::f16::MAX.to_bits() >> (10 - k)) << (10 - k));
        if like < 0.0 { -max } else { max }
    }

    #[test]
    fn rounding_is_half_to_even_and_saturates() {
        let r = |x: f32, k| f32::from_bits(round(x.to_bits(), k, Dtype::F32));
        assert_eq!(r(1.0625, 3), 1.0);
        assert_eq!(r(1.1875, 3), 1.25);
        assert_eq!(r(-1.9999, 3), -2.0);
        assert_eq!(r(1.9, 0), 2.0);
        assert!(r(f32::MAX, 3).is_finite());
        assert_eq!(r(f32::MAX, 3), f32::from_bits(0x7f70_0000));
        assert_eq!(r(f32::INFINITY, 3), f32::INFINITY);
        // Subnormals keep k bits behind their own leading one, and may round up to the least normal number.
        assert_eq!(r(f32::from_bits(0b1011_0111), 3).to_bits(), 0b1011_0000);
        assert_eq!(r(f32::from_bits(1), 3).to_bits(), 1);
        assert_eq!(r(f32::from_bits(0x7f_ffff), 3), f32::MIN_POSITIVE);
        let nan = f32::from_bits(0x7f80_0001);
        assert_eq!(r(nan, 3).to_bits(), nan.to_bits());
    }

    #[test]
    fn normalised_subnormals_come_back() {
        for magnitude in (0..1 << 23).step_by(97).chain(0..300).chain([0x7f_ffff]) {
            for word in [magnitude, magnitude | 1 << 31] {
                let code = normalise(word) >> 23 & 255;
                assert_eq!(code >= SUBNORMAL_CODES, magnitude != 0);
                assert_eq!(denormalise(normalise(word)), word);
            }
        }
        for value in [0.0, -0.0, 1.5, f32::MIN_POSITIVE, f32::INFINITY, f32::NAN] {
            assert_eq!(normalise(value.to_bits()), value.to_bits());
            assert_eq!(denormalise(value.to_bits()), value.to_bits());
        }
    }

    #[test]
    fn errors_are_relative_to_the_original() {
        let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        let (a, b) = (bytes(&[2.0, f32::NAN, 0.0, -4.0]), bytes(&[2.5, f32::NAN, 0.0, -4.0]));
        assert_eq!(max_relative_error(&a, &b, Dtype::F32), 0.25);
        assert_eq!(max_relative_error(&a, &a, Dtype::F32), 0.0);
    }
}
