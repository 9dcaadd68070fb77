//! The weight that a word, or the symbol of a delta, stands for.

use super::check;
use super::header::{Delta, Dtype, Header};

impl Header {
    /// A weight's bit pattern, from its symbol, the base's pattern and the raw bits from bit `bit` on.
    pub(super) fn restore(
        &self,
        delta: &Delta,
        symbol: u8,
        base: u64,
        raw: &[u8],
        bit: &mut usize,
    ) -> Result<u64, String> {
        if symbol == 0 {
            return Ok(base);
        }
        let (width, m) = (8 * self.element_size(), self.dtype.mantissa_bits());
        let (sign, all) = (1u64 << (width - 1), (1u64 << width) - 1);
        let exponent = (base & !sign) >> m;
        let lift = exponent.saturating_sub(delta.exponent.into()).min(222) as usize;
        let len = usize::from(symbol).checked_sub(lift).ok_or("symbol")?;
        check((1..=width).contains(&len), "symbol")?;
        let mut residual = 1u64 << (len - 1);
        for place in 0..len - 1 {
            let byte = *raw.get(*bit / 8).ok_or("record too short")?;
            residual |= u64::from(byte >> (*bit % 8) & 1) << place;
            *bit += 1;
        }
        if !delta.difference {
            return Ok(base ^ residual);
        }
        // Values in order: the negative ones from the largest magnitude down, then the positive ones.
        let place = if base & sign == 0 { base + sign } else { all - base };
        let steps = residual.div_ceil(2);
        let place =
            if residual & 1 == 0 { place.wrapping_add(steps) } else { place.wrapping_sub(steps) } & all;
        Ok(if place & sign == 0 { all - place } else { place - sign })
    }

    /// The dtype's bit pattern of a word on a grid of whose raw bits so many are known.
    pub(super) fn on_grid(&self, word: u32, known: usize, unit: u16) -> u32 {
        // Half of what is not known; levels that are no cells' are themselves the middle of what they stand for.
        let centre = (1 << (22 - known)) - if unit >> 15 == 1 { 0 } else { 1 << (22 - self.kept_bits) };
        // At most 24 bits times 8: exact, and then rounded once.
        let level = f64::from(word & 0x7fff_ffff | centre) / f64::from(1 << 23);
        let value = (level * f64::from(f32::from_bits(u32::from(unit & 0x7fff) << 16))) as f32;
        self.rounded(word >> 31, value.to_bits())
    }

    /// The dtype's bit pattern of a word whose value is in a codebook.
    pub(super) fn in_book(&self, word: u32, unit: u16, book: &[f32]) -> u32 {
        // A symbol without a value cannot come from a writer.
        let value = book.get((word >> 23 & 31) as usize).copied().unwrap_or(0.0);
        let value = value * f32::from_bits(u32::from(unit) << 16);
        self.rounded(value.to_bits() >> 31, value.abs().to_bits())
    }

    /// The dtype's bit pattern nearest to a float32, given its sign and its magnitude's bits.
    fn rounded(&self, sign: u32, bits: u32) -> u32 {
        let value = f32::from_bits(bits);
        // Half to even, by as many bits as there are too many.
        let rounded = |drop: u32| (bits + (1 << (drop - 1)) - 1 + (bits >> drop & 1)) >> drop;
        match self.dtype {
            Dtype::F32 | Dtype::U8 | Dtype::I8 => sign << 31 | bits,
            Dtype::Bf16 => sign << 15 | rounded(16),
            // Below the least normal float16, a multiple of 2^-24.
            Dtype::F16 if bits >> 23 < 113 => {
                sign << 15 | (f64::from(value) * f64::from(1 << 24)).round_ties_even() as u32
            }
            Dtype::F16 => sign << 15 | (rounded(13) - (112 << 10)).min(31 << 10),
        }
    }

    /// The dtype's bit pattern of a word.
    pub(super) fn element(&self, word: u32) -> u32 {
        let (sign, exponent, mantissa) = (word >> 31, word >> 23 & 255, word & 0x7f_ffff);
        // An integer's magnitude: the symbol, and `k` bits below it.
        let magnitude = (word & 0x7fff_ffff) >> (23 - self.kept_bits) & 127;
        let integer = if sign == 1 { 255 - magnitude } else { magnitude };
        let word = match exponent {
            232..=254 if self.normalised => sign << 31 | (1 << 23 | mantissa) >> (255 - exponent),
            _ => word,
        };
        match self.dtype {
            Dtype::F32 => word,
            Dtype::Bf16 => word >> 16,
            Dtype::I8 => integer,
            Dtype::U8 => integer ^ 128,
            Dtype::F16 => {
                sign << 15
                    | match exponent {
                        0..=102 => 0,
                        // A float16 subnormal: 2^(exponent - 127) is bit `exponent - 103` of its mantissa.
                        103..=112 => (1 << 23 | mantissa) >> (126 - exponent),
                        113..=142 => (exponent - 112) << 10 | mantissa >> 13,
                        _ => 31 << 10 | mantissa >> 13,
                    }
            }
        }
    }
}
