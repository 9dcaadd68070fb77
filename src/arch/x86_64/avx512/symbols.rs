//! The cascade: 64 codes a table look-up, escapes filled in by a byte expand.

use std::arch::x86_64::*;

use super::lane::{bits_of, lanes, load, load_at, store_at, take};
use crate::arch::generic::bitmaps;
use crate::arch::{BadRecord, PADDED, Tables, TierTable};

/// Calls `sink` with each stretch of at most 64 codes of a plane of `width` (1 to 4) bits: the place of its
/// first code, how many there are, and a vector with the codes in the low bits of its bytes, other bits above.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn for_codes(width: u8, plane: &[u8], n: usize, mut sink: impl FnMut(usize, usize, __m512i)) {
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

/// Codes of the plane that are all ones, at most `n`.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
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
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn symbols<'s>(
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

/// Symbols from below, handed out in turn to the places of escapes.
struct Merge<'a> {
    below: &'a [u8; PADDED],
    next: usize,
    out: &'a mut [u8; PADDED],
}

impl Merge<'_> {
    /// Writes 64 symbols from `at` on: `named`, or the next ones from below where `escaped` says so. What lies
    /// behind the last code of a stretch is overwritten by the next stretch.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn put(&mut self, at: usize, named: __m512i, escaped: u64) {
        let symbols = _mm512_mask_expand_epi8(named, escaped, load_at(self.below, self.next));
        self.next += escaped.count_ones() as usize;
        store_at(self.out, at, symbols);
    }
}

/// Writes the symbols of a tier's `n` codes to `out`, those of its escapes taken from `below` in turn.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn expand_tier(tier: &TierTable, plane: &[u8], n: usize, below: &[u8; PADDED], out: &mut [u8; PADDED]) {
    let mut merge = Merge { below, next: 0, out };
    match tier.width {
        1 => {
            let named = _mm512_set1_epi8(tier.symbols[0] as i8);
            let (words, last) = plane.as_chunks::<8>();
            for (i, word) in words.iter().enumerate() {
                merge.put(i * 64, named, u64::from_le_bytes(*word));
            }
            let at = words.len() * 64;
            merge.put(at, named, bits_of(last) & lanes(n.saturating_sub(at)));
        }
        2 => expand_packed::<2>(tier, plane, n, &mut merge),
        4 => expand_packed::<4>(tier, plane, n, &mut merge),
        width => {
            let (table, mark) = (load(&tier.lookup), _mm512_set1_epi8(tier.mark as i8));
            for_codes(width, plane, n, |at, len, codes| {
                let symbols = _mm512_permutexvar_epi8(codes, table);
                merge.put(at, symbols, _mm512_cmpeq_epi8_mask(symbols, mark) & lanes(len));
            });
        }
    }
}

/// As [`expand_tier`], for a tier of `W` (2 or 4) bits.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn expand_packed<const W: u32>(tier: &TierTable, plane: &[u8], n: usize, merge: &mut Merge<'_>) {
    let (table, mark) = (load(&tier.lookup), _mm512_set1_epi8(tier.mark as i8));
    let (groups, last) = plane.as_chunks::<64>();
    for (g, bytes) in groups.iter().enumerate() {
        let packed = load(bytes);
        for j in 0..8 / W {
            let codes = _mm512_srl_epi16(packed, _mm_cvtsi32_si128((j * W) as i32));
            let symbols = _mm512_permutexvar_epi8(codes, table);
            let at = (g * 8 / W as usize + j as usize) * 64;
            merge.put(at, symbols, _mm512_cmpeq_epi8_mask(symbols, mark));
        }
    }
    let packed = load(last);
    let mut at = groups.len() * 512 / W as usize;
    let mut shift = 0;
    while at < n {
        let codes = _mm512_srl_epi16(packed, _mm_cvtsi32_si128(shift));
        let symbols = _mm512_permutexvar_epi8(codes, table);
        let len = last.len().min(n - at);
        merge.put(at, symbols, _mm512_cmpeq_epi8_mask(symbols, mark) & lanes(len));
        at += len;
        shift += W as i32;
    }
}
