//! The record of a block: planes of bits, and the cascade of symbols.

use super::check;
use super::header::{Header, Tier};
use super::reader::Reader;

impl Header {
    /// The words of the `n` weights of a block with `m` raw bits in its record.
    pub(super) fn decode_record(&self, record: &[u8], n: usize, m: usize) -> Result<Vec<u32>, String> {
        let mut r = Reader { bytes: record, at: 0 };
        let codes = read_plane(&mut r, self.tiers[0].width, n)?;
        let a = m.min(7);
        let head = read_field(&mut r, a + 1, n)?;
        let rest = read_field(&mut r, m - a, n)?;
        let symbols = self.decode_tier(&mut r, 0, codes)?;
        let padding = r.take(record.len() - r.at)?;
        check(padding.len() < 4 && padding.iter().all(|&b| b == 0), "record is not filled")?;
        let words = symbols.into_iter().zip(head).zip(rest).map(|((symbol, head), rest)| {
            let mantissa = (head >> 1) << (m - a) | rest;
            (head & 1) << 31 | u32::from(symbol) << 23 | mantissa << (23 - m)
        });
        Ok(words.collect())
    }

    /// The symbols that `codes` of tier `tier` stand for; those of its escapes follow in the record.
    pub(super) fn decode_tier(&self, r: &mut Reader, tier: usize, codes: Vec<u8>) -> Result<Vec<u8>, String> {
        let Tier { width, symbols } = &self.tiers[tier];
        let escape = (1u8 << width) - 1;
        let escapes = codes.iter().filter(|&&c| c == escape).count();
        let below = match self.tiers.get(tier + 1) {
            Some(next) => {
                let codes = read_plane(r, next.width, escapes)?;
                self.decode_tier(r, tier + 1, codes)?
            }
            None => read_plane(r, 8, escapes)?,
        };
        let mut below = below.into_iter();
        let symbol =
            |code| if code == escape { below.next() } else { symbols.get(usize::from(code)).copied() };
        codes.into_iter().map(symbol).collect::<Option<Vec<u8>>>().ok_or("too few symbols".to_string())
    }
}

/// Reads a plane of `n` values of `width` bits.
pub(super) fn read_plane(r: &mut Reader, width: usize, n: usize) -> Result<Vec<u8>, String> {
    if width == 3 {
        let bits = [read_plane(r, 1, n)?, read_plane(r, 1, n)?, read_plane(r, 1, n)?];
        return Ok((0..n).map(|i| bits[0][i] | bits[1][i] << 1 | bits[2][i] << 2).collect());
    }
    let bytes = r.take((n * width).div_ceil(8))?;
    let mask = ((1u16 << width) - 1) as u8;
    let value = |i: usize| match width {
        8 => bytes[i],
        1 => bytes[i / 8] >> (i % 8) & 1,
        _ => {
            let group_len = 512 / width;
            let (group, j) = (i / group_len, i % group_len);
            let stride = ((n - group * group_len).min(group_len) * width).div_ceil(8);
            bytes[group * 64 + j % stride] >> (j / stride * width) & mask
        }
    };
    Ok((0..n).map(value).collect())
}

/// Reads a field of `bits` bits a weight: planes of 8, 4, 2 and 1 bits, most significant first.
pub(super) fn read_field(r: &mut Reader, bits: usize, n: usize) -> Result<Vec<u32>, String> {
    let mut values = vec![0u32; n];
    let mut left = bits;
    for width in [8, 8, 4, 2, 1] {
        if width <= left {
            let plane = read_plane(r, width, n)?;
            values.iter_mut().zip(plane).for_each(|(value, bits)| *value = *value << width | u32::from(bits));
            left -= width;
        }
    }
    Ok(values)
}
