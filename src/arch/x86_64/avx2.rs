//! AVX2 with BMI2 and popcnt: 32 codes a table look-up. AVX2 has no byte expand; the escapes of a vector are put
//! in place by a byte shuffle whose indices are the running count of escapes.
//!
//! Every function names all features: a closure inlines only into a function that has its features too.

pub(super) mod delta;
mod raw;
mod tiers;

use std::arch::x86_64::*;

use crate::arch::{BadRecord, Half, PADDED, Record, Scratch, Store, Tables};
use crate::format::{HEAD_BITS, field_planes, plane_bytes};

/// Values in a vector.
const LANES: usize = 32;
/// Blocks of a multiple of this many weights have whole groups only, in planes of any width.
pub(super) const WHOLE: usize = 256;

/// As [`crate::arch::Backend::decode`].
#[target_feature(enable = "avx2,bmi2,popcnt")]
pub(super) fn decode(
    tables: &Tables,
    record: &Record<'_>,
    scratch: &mut Scratch,
    words: &mut [u32],
    store: Store,
) -> Result<(), BadRecord> {
    let (m, stream) = (record.m, store.streams(words));
    let (symbols, raw) = parts(tables, record, (&mut scratch.symbols, &mut scratch.below))?;
    if record.len.is_multiple_of(WHOLE) {
        raw::join_words(m, symbols, raw, words, stream);
    } else {
        raw::join_ragged(m, symbols, raw, (&mut scratch.head, &mut scratch.high, &mut scratch.low), words);
    }
    Ok(())
}

/// As [`crate::arch::Backend::decode_halves`], for a block of a multiple of [`WHOLE`] weights.
#[target_feature(enable = "avx2,bmi2,popcnt")]
pub(super) fn decode_halves(
    tables: &Tables,
    record: &Record<'_>,
    scratch: &mut Scratch,
    format: Half,
    out: &mut [u16],
    store: Store,
) -> Result<(), BadRecord> {
    let (m, stream) = (record.m, store.streams(out));
    let (symbols, raw) = parts(tables, record, (&mut scratch.symbols, &mut scratch.below))?;
    raw::join_halves(m, symbols, raw, format, out, stream)
}

/// The symbols of a record, and its raw planes.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn parts<'s, 'a>(
    tables: &Tables,
    record: &Record<'a>,
    (symbols, below): (&'s mut [u8; PADDED], &'s mut [u8; PADDED]),
) -> Result<(&'s [u8; PADDED], &'a [u8]), BadRecord> {
    let (n, m) = (record.len, record.m);
    let mut planes = record.bytes;
    crate::arch::prefetch(record.ahead);
    let first = take(&mut planes, plane_bytes(tables.tiers[0].width, n))?;
    let a = m.min(HEAD_BITS);
    let raw_bytes = field_planes(a + 1).chain(field_planes(m - a)).map(|w| plane_bytes(w, n)).sum();
    let raw = take(&mut planes, raw_bytes)?;
    Ok((tiers::symbols(tables, first, planes, n, symbols, below)?, raw))
}

fn take<'a>(planes: &mut &'a [u8], bytes: usize) -> Result<&'a [u8], BadRecord> {
    let (plane, rest) = planes.split_at_checked(bytes).ok_or(BadRecord)?;
    *planes = rest;
    Ok(plane)
}

/// The 32 bytes at `from`.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
unsafe fn load(from: *const u8) -> __m256i {
    // SAFETY: the caller's.
    unsafe { _mm256_loadu_si256(from.cast()) }
}

/// The 16 bytes of `table` in both halves.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn both(table: &[u8; 16]) -> __m256i {
    // SAFETY: the array has 16 bytes.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) })
}

/// All ones in the bytes whose bit is set.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn spread(bits: u32) -> __m256i {
    const OWN_BYTE: [u64; 4] = [0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303];
    let own_byte =
        _mm256_setr_epi64x(OWN_BYTE[0] as i64, OWN_BYTE[1] as i64, OWN_BYTE[2] as i64, OWN_BYTE[3] as i64);
    let own_bit = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
    let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), own_byte);
    _mm256_cmpeq_epi8(_mm256_and_si256(bytes, own_bit), own_bit)
}

/// All ones in the first `n` of 32 bytes.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn first_lanes(n: usize) -> __m256i {
    const EDGE: [u8; 2 * LANES] = {
        let mut edge = [0; 2 * LANES];
        let mut i = 0;
        while i < LANES {
            edge[i] = 0xff;
            i += 1;
        }
        edge
    };
    // SAFETY: the window starts in the first half and is as long as one.
    unsafe { load(EDGE.as_ptr().add(LANES - n.min(LANES))) }
}

/// Up to 32 bits of a bitmap, zeros above them.
#[inline]
fn bits_of(bytes: &[u8]) -> u32 {
    match bytes.first_chunk() {
        Some(word) => u32::from_le_bytes(*word),
        None => bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte)),
    }
}

/// Calls `sink` with each stretch of at most 32 values of a plane of `W` (1 to 4) bits, in order: the place of its
/// first value, how many there are, and a vector with a value in each byte. A value of one bit is all ones or
/// nothing. Stretches follow each other without gaps and end at `n`, whatever the plane's length.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn for_values<const W: usize>(plane: &[u8], n: usize, mut sink: impl FnMut(usize, usize, __m256i)) {
    if W == 1 {
        for (i, bits) in plane.chunks(4).take(n.div_ceil(LANES)).enumerate() {
            sink(i * LANES, (n - i * LANES).min(LANES), spread(bits_of(bits)));
        }
        return;
    }
    if W == 3 {
        let [low, middle, high] = crate::arch::generic::bitmaps(plane);
        let chunks = low.chunks(4).zip(middle.chunks(4)).zip(high.chunks(4));
        for (i, ((l, m), h)) in chunks.take(n.div_ceil(LANES)).enumerate() {
            let bit = |bits, value| _mm256_and_si256(spread(bits_of(bits)), _mm256_set1_epi8(value));
            let values = _mm256_or_si256(_mm256_or_si256(bit(l, 1), bit(m, 2)), bit(h, 4));
            sink(i * LANES, (n - i * LANES).min(LANES), values);
        }
        return;
    }
    let mask = _mm256_set1_epi8((1 << W) - 1);
    let per_byte = 8 / W;
    let (whole, last) = plane.split_at((n / (512 / W) * 64).min(plane.len()));
    let mut at = 0;
    for group in whole.chunks_exact(64) {
        for shift in 0..per_byte {
            for half in [0, LANES] {
                // SAFETY: the group has 64 bytes.
                let packed = unsafe { load(group.as_ptr().add(half)) };
                let values = _mm256_srlv_epi32(packed, _mm256_set1_epi32((shift * W) as i32));
                sink(at, LANES, _mm256_and_si256(values, mask));
                at += LANES;
            }
        }
    }
    // A group that is not whole is read from a copy, to stay inside the plane.
    let mut copy = [0u8; 64 + LANES];
    copy[..last.len()].copy_from_slice(last);
    for shift in 0..per_byte {
        for start in (0..last.len()).step_by(LANES) {
            let len = (last.len() - start).min(LANES).min(n - at);
            if len == 0 {
                return;
            }
            // SAFETY: `start` is below 64, and 32 bytes follow.
            let packed = unsafe { load(copy.as_ptr().add(start)) };
            let values = _mm256_srlv_epi32(packed, _mm256_set1_epi32((shift * W) as i32));
            sink(at, len, _mm256_and_si256(values, mask));
            at += len;
        }
    }
}
