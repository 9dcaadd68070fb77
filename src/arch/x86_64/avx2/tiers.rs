//! Symbols out of the planes of a cascade.

use std::arch::x86_64::*;

use super::{LANES, both, first_lanes, for_values, load, take};
use crate::arch::generic::bitmaps;
use crate::arch::{BLOCK, BadRecord, PADDED, Tables, TierTable};
use crate::format::plane_bytes;

/// Up to one escape in so many codes they are written one by one.
const SPARSE: usize = 32;

/// Decodes all tiers; the `n` symbols are at the start of the returned buffer. `first` is tier 0's plane,
/// `planes` what follows the raw bits.
#[target_feature(enable = "avx2,bmi2,popcnt")]
pub(super) fn symbols<'s>(
    tables: &Tables,
    first: &[u8],
    mut planes: &[u8],
    n: usize,
    mut symbols: &'s mut [u8; PADDED],
    mut below: &'s mut [u8; PADDED],
) -> Result<&'s [u8; PADDED], BadRecord> {
    // How many codes a tier has follows from the escapes of the one before, so go down first ...
    let mut tiers = [(&[] as &[u8], 0usize); 9];
    let count = tables.tiers.len();
    tiers[0] = (first, n);
    for (t, tier) in tables.tiers.iter().enumerate() {
        let (plane, n) = tiers[t];
        let escapes = count_escapes(tier.width, plane, n);
        let width = tables.tiers.get(t + 1).map_or(8, |next| next.width);
        tiers[t + 1] = (take(&mut planes, plane_bytes(width, escapes))?, escapes);
    }
    if planes.len() >= 4 {
        return Err(BadRecord);
    }
    // ... and merge on the way up.
    let (literals, literal_count) = tiers[count];
    below[..literal_count].copy_from_slice(literals);
    for (t, tier) in tables.tiers.iter().enumerate().rev() {
        let ((plane, n), (_, escapes)) = (tiers[t], tiers[t + 1]);
        match tier.width {
            1 => expand::<1>(tier, plane, n, below, symbols),
            2 => expand_or_patch::<2>(tier, plane, n, escapes, below, symbols),
            3 => expand_or_patch::<3>(tier, plane, n, escapes, below, symbols),
            _ => expand_or_patch::<4>(tier, plane, n, escapes, below, symbols),
        }
        std::mem::swap(&mut symbols, &mut below);
    }
    Ok(below)
}

/// What follows the tiers and literals at the start of `planes`, which `first`, tier 0's plane, stands before.
#[target_feature(enable = "avx2,bmi2,popcnt")]
pub(super) fn behind<'a>(
    tables: &Tables,
    first: &'a [u8],
    mut planes: &'a [u8],
    n: usize,
) -> Result<&'a [u8], BadRecord> {
    let (mut plane, mut codes) = (first, n);
    for (t, tier) in tables.tiers.iter().enumerate() {
        let width = tables.tiers.get(t + 1).map_or(8, |next| next.width);
        codes = count_escapes(tier.width, plane, codes);
        plane = take(&mut planes, plane_bytes(width, codes))?;
    }
    Ok(planes)
}

/// Codes of the plane that are all ones, at most `n`: unused bits are zeros in a valid plane, and never counted.
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn count_escapes(width: u8, plane: &[u8], n: usize) -> usize {
    if width == 3 {
        let [low, middle, high] = bitmaps(plane);
        let ones = low.iter().zip(middle).zip(high).map(|((l, m), h)| (l & m & h).count_ones() as usize);
        return ones.sum::<usize>().min(n);
    }
    // How many of the codes in four bits are escapes.
    let table: &[u8; 16] = match width {
        1 => &[0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4],
        2 => &[0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 2],
        _ => &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    };
    let (counts, low) = (both(table), _mm256_set1_epi8(15));
    let vectors = plane.chunks_exact(LANES);
    let last = vectors.remainder();
    let mut sums = _mm256_setzero_si256();
    // A byte gains at most 8 a vector: 31 of them do not overflow it.
    for run in plane[..plane.len() - last.len()].chunks(31 * LANES) {
        let mut bytes = _mm256_setzero_si256();
        for vector in run.chunks_exact(LANES) {
            // SAFETY: the slice has 32 bytes.
            let x = unsafe { load(vector.as_ptr()) };
            let lower = _mm256_shuffle_epi8(counts, _mm256_and_si256(x, low));
            let upper = _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16::<4>(x), low));
            bytes = _mm256_add_epi8(bytes, _mm256_add_epi8(lower, upper));
        }
        sums = _mm256_add_epi64(sums, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
    }
    let halves = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
    let whole = _mm_cvtsi128_si64(halves) + _mm_extract_epi64::<1>(halves);
    let rest = last.iter().map(|b| usize::from(table[usize::from(b & 15)] + table[usize::from(b >> 4)]));
    // Only a damaged plane can have more than `n`.
    (whole as usize + rest.sum::<usize>()).min(n)
}

/// The vector of a tier's symbols by code, with nothing for the escape. A code of one bit that is all ones has its
/// highest bit set, and a shuffle makes nothing of it.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn named<const W: usize>(tier: &TierTable) -> __m256i {
    debug_assert_eq!(tier.symbols[(1 << W) - 1], 0);
    both(&tier.symbols)
}

/// All ones in the bytes of `codes` that hold the escape.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn escapes<const W: usize>(codes: __m256i) -> __m256i {
    if W == 1 { codes } else { _mm256_cmpeq_epi8(codes, _mm256_set1_epi8((1 << W) - 1)) }
}

/// Stores 32 symbols, of which the first may be all that count, in the place of symbol `at`.
///
/// # Safety
/// `at` is at most BLOCK.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
unsafe fn store(out: &mut [u8; PADDED], at: usize, symbols: __m256i) {
    // SAFETY: the array has room for two vectors beside a block.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(at).cast(), symbols) }
}

#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn expand_or_patch<const W: usize>(
    tier: &TierTable,
    plane: &[u8],
    n: usize,
    escapes: usize,
    below: &[u8; PADDED],
    out: &mut [u8; PADDED],
) {
    if escapes <= n / SPARSE {
        patch::<W>(tier, plane, n, below, out);
    } else {
        expand::<W>(tier, plane, n, below, out);
    }
}

/// Writes the symbols of a tier's `n` codes to `out`, those of its escapes taken from `below` in turn.
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn expand<const W: usize>(
    tier: &TierTable,
    plane: &[u8],
    n: usize,
    below: &[u8; PADDED],
    out: &mut [u8; PADDED],
) {
    assert!(n <= BLOCK);
    let (table, one) = (named::<W>(tier), _mm256_set1_epi8(1));
    // The last byte of another four, or nothing.
    let one_four_before = both(&[255, 255, 255, 255, 3, 3, 3, 3, 7, 7, 7, 7, 11, 11, 11, 11]);
    let two_fours_before = both(&[255, 255, 255, 255, 255, 255, 255, 255, 3, 3, 3, 3, 7, 7, 7, 7]);
    let mut next = 0usize;
    for_values::<W>(plane, n, |at, len, codes| {
        let mut escaped = escapes::<W>(codes);
        if len < LANES {
            escaped = _mm256_and_si256(escaped, first_lanes(len));
        }
        let mask = _mm256_movemask_epi8(escaped) as u32;
        let in_lower = (mask & 0xffff).count_ones() as usize;
        // SAFETY: no more codes escape than there are, and they are at most BLOCK; a half has at most 16, and the
        // array two vectors behind BLOCK.
        let source = unsafe {
            let lower = below.as_ptr().add(next);
            let halves = (_mm_loadu_si128(lower.cast()), _mm_loadu_si128(lower.add(in_lower).cast()));
            _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(halves.0), halves.1)
        };
        next += mask.count_ones() as usize;
        // The running count of escapes in each half: of four bytes, eight, sixteen.
        let mut count = _mm256_mullo_epi32(_mm256_and_si256(escaped, one), _mm256_set1_epi32(0x0101_0101));
        count = _mm256_add_epi8(count, _mm256_shuffle_epi8(count, one_four_before));
        count = _mm256_add_epi8(count, _mm256_shuffle_epi8(count, two_fours_before));
        // Less one where a code escapes; elsewhere the highest bit is set, and a shuffle makes nothing of it.
        let place = _mm256_add_epi8(count, _mm256_or_si256(escaped, _mm256_set1_epi8(i8::MIN)));
        let filled = _mm256_shuffle_epi8(source, place);
        // SAFETY: stretches end at `n`.
        unsafe { store(out, at, _mm256_or_si256(_mm256_shuffle_epi8(table, codes), filled)) };
    });
}

/// As [`expand`], where escapes are rare.
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn patch<const W: usize>(
    tier: &TierTable,
    plane: &[u8],
    n: usize,
    below: &[u8; PADDED],
    out: &mut [u8; PADDED],
) {
    assert!(n <= BLOCK);
    let table = named::<W>(tier);
    // The places of escapes, and one more that is written but not kept.
    let mut places = [0u16; BLOCK / SPARSE + 1];
    let mut next = 0usize;
    for_values::<W>(plane, n, |at, len, codes| {
        // SAFETY: stretches end at `n`, at most BLOCK.
        unsafe { store(out, at, _mm256_shuffle_epi8(table, codes)) };
        let mut mask = u64::from(_mm256_movemask_epi8(escapes::<W>(codes)) as u32);
        if len < LANES {
            mask &= (1 << len) - 1;
        }
        loop {
            // The bit above stands for no escape.
            let place = (mask | 1 << LANES).trailing_zeros();
            places[next.min(BLOCK / SPARSE)] = at as u16 + place as u16;
            next += usize::from(mask != 0);
            mask &= mask.wrapping_sub(1);
            if mask == 0 {
                break;
            }
        }
    });
    for (&place, &symbol) in places[..next.min(BLOCK / SPARSE)].iter().zip(below) {
        out[usize::from(place)] = symbol;
    }
}
