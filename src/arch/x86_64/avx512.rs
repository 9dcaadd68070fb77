//! AVX-512 with VBMI and VBMI2: 64 codes a table look-up, escapes filled in by a byte expand.
//!
//! Every function names all features: a closure inlines only into a function that has its features too.

use std::arch::x86_64::*;

use crate::arch::generic::bitmaps;
use crate::arch::{BLOCK, BadRecord, PADDED, Scratch, Tables, TierTable};
use crate::format::{HEAD_BITS, field_planes, plane_bytes};

/// As [`crate::arch::Backend::decode`].
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
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
    let Scratch { head, high, low, .. } = scratch;

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
    let symbols = symbols(tables, first, planes, n, &mut scratch.symbols, &mut scratch.below)?;
    join(symbols, head, high, low, words);
    Ok(())
}

fn take<'a>(planes: &mut &'a [u8], width: u8, n: usize) -> Result<&'a [u8], BadRecord> {
    let (plane, rest) = planes.split_at_checked(plane_bytes(width, n)).ok_or(BadRecord)?;
    *planes = rest;
    Ok(plane)
}

/// The first `n` of 64 lanes.
#[inline]
fn lanes(n: usize) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

/// Up to 64 bytes of `bytes`, zeros behind them.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn load(bytes: &[u8]) -> __m512i {
    // SAFETY: the slice has 64 bytes, or the mask admits only its own.
    unsafe {
        match bytes.len() {
            64.. => _mm512_loadu_si512(bytes.as_ptr().cast()),
            n => _mm512_maskz_loadu_epi8(lanes(n), bytes.as_ptr().cast()),
        }
    }
}

/// The 64 bytes of `bytes` from `at` on.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn load_at(bytes: &[u8; PADDED], at: usize) -> __m512i {
    let at = at.min(BLOCK);
    // SAFETY: `at` is at most BLOCK, and the array has 64 bytes behind that.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().add(at).cast()) }
}

/// Stores the first lanes of `v`, as many as `out` is long, at most 64.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn store(out: &mut [u8], v: __m512i) {
    // SAFETY: the slice has 64 bytes, or the mask admits only its own. (Masked stores are slow.)
    unsafe {
        match out.len() {
            64.. => _mm512_storeu_si512(out.as_mut_ptr().cast(), v),
            n => _mm512_mask_storeu_epi8(out.as_mut_ptr().cast(), lanes(n), v),
        }
    }
}

/// Up to 64 bits of a bitmap, zeros above them.
#[inline]
fn bits_of(bytes: &[u8]) -> u64 {
    match bytes.first_chunk() {
        Some(word) => u64::from_le_bytes(*word),
        None => bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
    }
}

/// Calls `sink` with each stretch of at most 64 codes of a plane of `width` (1 to 4) bits: the place of its
/// first code, how many there are, and a vector with the codes in the low bits of its bytes, other bits above.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn for_codes(width: u8, plane: &[u8], n: usize, mut sink: impl FnMut(usize, usize, __m512i)) {
    if width == 1 {
        for (i, bits) in plane.chunks(8).enumerate() {
            sink(i * 64, (n - i * 64).min(64), _mm512_maskz_set1_epi8(bits_of(bits), 1));
        }
        return;
    }
    if width == 3 {
        let [low, middle, high] = bitmaps(plane);
        for (i, ((low, middle), high)) in low.chunks(8).zip(middle.chunks(8)).zip(high.chunks(8)).enumerate()
        {
            let bit = |bits: &[u8], value| _mm512_maskz_set1_epi8(bits_of(bits), value);
            let codes = _mm512_or_si512(_mm512_or_si512(bit(low, 1), bit(middle, 2)), bit(high, 4));
            sink(i * 64, (n - i * 64).min(64), codes);
        }
        return;
    }
    let group = 512 / usize::from(width);
    for (g, bytes) in plane.chunks(64).enumerate() {
        let packed = load(bytes);
        let (start, stride) = (g * group, bytes.len());
        let end = n.min(start + group);
        let mut at = start;
        let mut shift = 0;
        while at < end {
            let codes = _mm512_srl_epi16(packed, _mm_cvtsi32_si128(shift));
            sink(at, stride.min(end - at), codes);
            at += stride;
            shift += i32::from(width);
        }
    }
}

/// Reads a field of 1 to 7 bits a value into `out`, each value at the top of its byte.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
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
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn split_sign(a: u8, head: &mut [u8]) {
    let sign = 1u8 << (7 - a);
    let keep = !(sign - 1) & !sign;
    for byte in head {
        *byte = *byte & keep | u8::from(*byte & sign != 0);
    }
}

/// Codes of the plane that are all ones, at most `n`.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn count_escapes(width: u8, plane: &[u8], n: usize) -> usize {
    if width == 3 {
        let [low, middle, high] = bitmaps(plane);
        let words = low.chunks(8).zip(middle.chunks(8)).zip(high.chunks(8));
        let ones = words.map(|((l, m), h)| (bits_of(l) & bits_of(m) & bits_of(h)).count_ones() as usize);
        return ones.sum::<usize>().min(n);
    }
    let mut sum = _mm512_setzero_si512();
    for bytes in plane.chunks(64) {
        let x = load(bytes);
        let pairs = _mm512_and_si512(x, _mm512_srli_epi16::<1>(x));
        let ones = match width {
            1 => x,
            2 => _mm512_and_si512(pairs, _mm512_set1_epi8(0x55)),
            _ => {
                let quads = _mm512_and_si512(pairs, _mm512_srli_epi16::<2>(pairs));
                _mm512_and_si512(quads, _mm512_set1_epi8(0x11))
            }
        };
        sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(ones));
    }
    // Only a damaged plane can have more than `n`.
    (_mm512_reduce_add_epi64(sum) as usize).min(n)
}

/// Decodes all tiers and returns the buffer that has the `n` symbols.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn symbols<'s>(
    tables: &Tables,
    first: &[u8],
    mut planes: &[u8],
    n: usize,
    mut symbols: &'s mut [u8; PADDED],
    mut below: &'s mut [u8; PADDED],
) -> Result<&'s [u8], BadRecord> {
    let mut tiers = [(&[] as &[u8], 0usize); 9];
    let count = tables.tiers.len();
    tiers[0] = (first, n);
    for (t, tier) in tables.tiers.iter().enumerate() {
        let (plane, n) = tiers[t];
        let escapes = count_escapes(tier.width, plane, n);
        let width = tables.tiers.get(t + 1).map_or(8, |next| next.width);
        tiers[t + 1] = (take(&mut planes, width, escapes)?, escapes);
    }
    if planes.len() >= 4 {
        return Err(BadRecord);
    }
    let (literals, literal_count) = tiers[count];
    below[..literal_count].copy_from_slice(literals);
    for (tier, &(plane, n)) in tables.tiers.iter().zip(&tiers[..count]).rev() {
        expand_tier(tier, plane, n, below, symbols);
        std::mem::swap(&mut symbols, &mut below);
    }
    Ok(&below[..n])
}

/// Writes the symbols of a tier's `n` codes to `out`, those of its escapes taken from `below` in turn.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn expand_tier(tier: &TierTable, plane: &[u8], n: usize, below: &[u8; PADDED], out: &mut [u8; PADDED]) {
    let mut next = 0usize;
    let mut expand = |at: usize, len: usize, named: __m512i, escaped: u64| {
        let escaped = escaped & lanes(len);
        let symbols = _mm512_mask_expand_epi8(named, escaped, load_at(below, next));
        store(&mut out[at..at + len], symbols);
        next += escaped.count_ones() as usize;
    };
    if tier.width == 1 {
        let named = _mm512_set1_epi8(tier.symbols[0] as i8);
        for (i, bits) in plane.chunks(8).enumerate() {
            expand(i * 64, (n - i * 64).min(64), named, bits_of(bits));
        }
        return;
    }
    // The table repeats over all 64 entries, so that bits above a code do not matter; the escape's entry is a
    // byte that no symbol of the tier has.
    let codes = 1usize << tier.width;
    let named = &tier.symbols[..codes - 1];
    let mark = (0..=255u8).find(|b| !named.contains(b)).unwrap_or(0);
    let table: [u8; 64] = std::array::from_fn(|i| named.get(i % codes).copied().unwrap_or(mark));
    let (table, mark) = (load(&table), _mm512_set1_epi8(mark as i8));
    for_codes(tier.width, plane, n, |at, len, codes| {
        let symbols = _mm512_permutexvar_epi8(codes, table);
        expand(at, len, symbols, _mm512_cmpeq_epi8_mask(symbols, mark));
    });
}

/// Joins symbols, heads and the two bytes of the rest (empty: zeros) to words.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
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
