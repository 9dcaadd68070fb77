//! Blocks of any length: raw planes are unpacked to bytes in scratch, then joined.

use std::arch::x86_64::*;

use super::lane::{lanes, load, store, take};
use super::symbols::{Job, for_codes, symbols};
use crate::arch::{BadRecord, PADDED, Scratch, Tables};
use crate::format::{HEAD_BITS, field_planes};

/// As [`crate::arch::Backend::decode`].
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn decode(
    tables: &Tables,
    record: &[u8],
    m: u8,
    scratch: &mut Scratch,
    words: &mut [u32],
) -> Result<(), BadRecord> {
    let n = words.len();
    let mut planes = record;
    let a = m.min(HEAD_BITS);
    let Scratch { head, high, low, symbols: upper, rooms: [rooms, ..], .. } = scratch;

    let first = take(&mut planes, tables.tiers[0].width, n)?;
    let head: &[u8] = if a == HEAD_BITS {
        take(&mut planes, 8, n)?
    } else {
        small_field(&mut planes, a + 1, n, head)?;
        split_sign(a, &mut head[..]);
        &head[..n]
    };
    let rest = m - a;
    let high: &[u8] = match rest {
        0 => &[],
        8.. => take(&mut planes, 8, n)?,
        _ => {
            small_field(&mut planes, rest, n, high)?;
            &high[..n]
        }
    };
    let low: &[u8] = match rest.saturating_sub(8) {
        0 => &[],
        8 => take(&mut planes, 8, n)?,
        bits => {
            small_field(&mut planes, bits, n, low)?;
            &low[..n]
        }
    };
    let symbols = symbols(tables, Job { first, tail: planes, n }, rooms, upper)?;
    join(symbols, head, high, low, words);
    Ok(())
}

/// Reads a field of 1 to 7 bits a value into `out`, each value at the top of its byte.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn small_field(planes: &mut &[u8], bits: u8, n: usize, out: &mut [u8; PADDED]) -> Result<(), BadRecord> {
    let mut used = 0u8;
    for width in field_planes(bits) {
        let plane = take(planes, width, n)?;
        let up = _mm_cvtsi32_si128(i32::from(8 - width - used));
        let mask = _mm512_set1_epi8(((1u8 << width) - 1) as i8);
        for_codes(width, plane, n, |at, len, codes| {
            let value = _mm512_sll_epi16(_mm512_and_si512(codes, mask), up);
            let target = &mut out[at..at + len];
            let value = if used == 0 { value } else { _mm512_or_si512(value, load(target)) };
            store(target, value);
        });
        used += width;
    }
    Ok(())
}

/// Moves the sign, below `a` mantissa bits at the top of each byte, to bit 0.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn split_sign(a: u8, head: &mut [u8]) {
    let sign = 1u8 << (7 - a);
    let keep = !(sign - 1) & !sign;
    for byte in head {
        *byte = *byte & keep | u8::from(*byte & sign != 0);
    }
}

/// Joins symbols, heads and the two bytes of the rest (empty: zeros) to words.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn join(symbols: &[u8], head: &[u8], high: &[u8], low: &[u8], words: &mut [u32]) {
    // Byte i of the first operand, then byte i of the second, for the lower and the upper half of i.
    let byte_zip: [u8; 128] = std::array::from_fn(|i| (i / 2 + i % 2 * 64) as u8);
    let word_zip: [u16; 64] = std::array::from_fn(|i| (i / 2 + i % 2 * 32) as u16);
    let (zip_a, zip_b) = (load(&byte_zip[..64]), load(&byte_zip[64..]));
    // SAFETY: both halves of the array are 64 bytes.
    let (words_a, words_b) = unsafe {
        (_mm512_loadu_si512(word_zip.as_ptr().cast()), _mm512_loadu_si512(word_zip.as_ptr().add(32).cast()))
    };
    let zero = _mm512_setzero_si512();
    let tail = |bytes: &[u8], at: usize| {
        if bytes.is_empty() { zero } else { load(&bytes[at..bytes.len().min(at + 64)]) }
    };
    for (i, out) in words.chunks_mut(64).enumerate() {
        let at = i * 64;
        let (s, h) = (tail(symbols, at), tail(head, at));
        let upper = |zip| {
            let pair = _mm512_permutex2var_epi8(h, zip, s);
            _mm512_shrdi_epi16::<1>(pair, pair)
        };
        let (upper_a, upper_b) = (upper(zip_a), upper(zip_b));
        let (lower_a, lower_b) = if high.is_empty() {
            (zero, zero)
        } else {
            let (h, l) = (tail(high, at), tail(low, at));
            (_mm512_permutex2var_epi8(l, zip_a, h), _mm512_permutex2var_epi8(l, zip_b, h))
        };
        let quarters = [
            _mm512_permutex2var_epi16(lower_a, words_a, upper_a),
            _mm512_permutex2var_epi16(lower_a, words_b, upper_a),
            _mm512_permutex2var_epi16(lower_b, words_a, upper_b),
            _mm512_permutex2var_epi16(lower_b, words_b, upper_b),
        ];
        for (out, quarter) in out.chunks_mut(16).zip(quarters) {
            let to = out.as_mut_ptr().cast();
            // SAFETY: the slice has 16 words, or the mask admits only its own.
            unsafe {
                match out.len() {
                    16.. => _mm512_storeu_si512(to, quarter),
                    n => _mm512_mask_storeu_epi32(to.cast(), lanes(n) as u16, quarter),
                }
            };
        }
    }
}
