//! NEON: 16 codes a table look-up. NEON has no byte expand; the escapes of a vector are put in place by a table
//! look-up whose indices are the running count of escapes.

mod raw;
mod tiers;

use std::arch::aarch64::*;

use crate::arch::{BadRecord, Scratch, Tables};
use crate::format::{HEAD_BITS, field_planes, plane_bytes};

/// Values in a vector.
const LANES: usize = 16;
/// Blocks of a multiple of this many weights have whole groups only, in planes of any width.
const WHOLE: usize = 256;

/// As [`crate::arch::Backend::decode`].
pub(super) fn decode(
    tables: &Tables,
    record: &[u8],
    m: u8,
    scratch: &mut Scratch,
    words: &mut [u32],
) -> Result<(), BadRecord> {
    let n = words.len();
    let mut planes = record;
    let first = take(&mut planes, plane_bytes(tables.tiers[0].width, n))?;
    let a = m.min(HEAD_BITS);
    let raw_bytes = field_planes(a + 1).chain(field_planes(m - a)).map(|w| plane_bytes(w, n)).sum();
    let raw = take(&mut planes, raw_bytes)?;
    let symbols = tiers::symbols(tables, first, planes, n, &mut scratch.symbols, &mut scratch.below)?;
    if n.is_multiple_of(WHOLE) {
        raw::join_whole(m, symbols, raw, words);
    } else {
        raw::join_ragged(m, symbols, raw, (&mut scratch.head, &mut scratch.high, &mut scratch.low), words);
    }
    Ok(())
}

fn take<'a>(planes: &mut &'a [u8], bytes: usize) -> Result<&'a [u8], BadRecord> {
    let (plane, rest) = planes.split_at_checked(bytes).ok_or(BadRecord)?;
    *planes = rest;
    Ok(plane)
}

/// The 16 bytes at `from`.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn load(from: *const u8) -> uint8x16_t {
    // SAFETY: the caller's.
    unsafe { vld1q_u8(from) }
}

/// The vector of an array.
#[inline(always)]
fn vector(bytes: [u8; 16]) -> uint8x16_t {
    // SAFETY: the array has 16 bytes.
    unsafe { load(bytes.as_ptr()) }
}

/// All ones in the bytes whose bit is set.
#[inline(always)]
fn spread(bits: u16) -> uint8x16_t {
    let [lower, upper] = bits.to_le_bytes();
    // SAFETY: NEON is part of the target.
    unsafe {
        let own_bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
        vtstq_u8(vcombine_u8(vdup_n_u8(lower), vdup_n_u8(upper)), own_bit)
    }
}

/// All ones in the first `n` of 16 bytes.
#[inline(always)]
fn first_lanes(n: usize) -> uint8x16_t {
    let numbers = vector([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    // SAFETY: NEON is part of the target.
    unsafe { vcltq_u8(numbers, vdupq_n_u8(n.min(LANES) as u8)) }
}

/// Each byte shifted right.
#[inline(always)]
fn down(values: uint8x16_t, by: usize) -> uint8x16_t {
    // SAFETY: NEON is part of the target.
    unsafe { vshlq_u8(values, vdupq_n_s8(-(by as i8))) }
}

/// Each byte shifted left.
#[inline(always)]
fn up(values: uint8x16_t, by: usize) -> uint8x16_t {
    // SAFETY: NEON is part of the target.
    unsafe { vshlq_u8(values, vdupq_n_s8(by as i8)) }
}

/// Up to 16 bits of a bitmap, zeros above them.
#[inline(always)]
fn bits_of(bytes: &[u8]) -> u16 {
    match *bytes {
        [lower, upper, ..] => u16::from_le_bytes([lower, upper]),
        [lower] => lower.into(),
        [] => 0,
    }
}

/// Calls `sink` with each stretch of at most 16 values of a plane of `W` (1 to 4) bits, in order: the place of its
/// first value, how many there are, and a vector with a value in each byte. A value of one bit is all ones or
/// nothing. Stretches follow each other without gaps and end at `n`, whatever the plane's length.
#[inline(always)]
fn for_values<const W: usize>(plane: &[u8], n: usize, mut sink: impl FnMut(usize, usize, uint8x16_t)) {
    if W == 1 {
        for (i, bits) in plane.chunks(2).take(n.div_ceil(LANES)).enumerate() {
            sink(i * LANES, (n - i * LANES).min(LANES), spread(bits_of(bits)));
        }
        return;
    }
    // SAFETY: NEON is part of the target.
    let (mask, bit) = unsafe { (vdupq_n_u8((1 << W) - 1), |value| vdupq_n_u8(value)) };
    if W == 3 {
        let [low, middle, high] = crate::arch::generic::bitmaps(plane);
        let chunks = low.chunks(2).zip(middle.chunks(2)).zip(high.chunks(2));
        for (i, ((l, m), h)) in chunks.take(n.div_ceil(LANES)).enumerate() {
            // SAFETY: NEON is part of the target.
            let values = unsafe {
                let l = vandq_u8(spread(bits_of(l)), bit(1));
                let m = vandq_u8(spread(bits_of(m)), bit(2));
                vorrq_u8(vorrq_u8(l, m), vandq_u8(spread(bits_of(h)), bit(4)))
            };
            sink(i * LANES, (n - i * LANES).min(LANES), values);
        }
        return;
    }
    let per_byte = 8 / W;
    let (whole, last) = plane.split_at((n / (512 / W) * 64).min(plane.len()));
    let mut at = 0;
    for group in whole.chunks_exact(64) {
        for shift in 0..per_byte {
            for quarter in (0..64).step_by(LANES) {
                // SAFETY: the group has 64 bytes.
                let values = unsafe { vandq_u8(down(load(group.as_ptr().add(quarter)), shift * W), mask) };
                sink(at, LANES, values);
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
            // SAFETY: `start` is below 64, and 16 bytes follow.
            let values = unsafe { vandq_u8(down(load(copy.as_ptr().add(start)), shift * W), mask) };
            sink(at, len, values);
            at += len;
        }
    }
}
