//! Words out of symbols and the planes of raw bits.

use std::arch::aarch64::*;

use super::{LANES, WHOLE, down, first_lanes, for_values, load, spread, up, vector};
use crate::arch::{BLOCK, PADDED};
use crate::format::{HEAD_BITS, field_planes, plane_bytes};

/// 16 words, but for their exponents.
#[derive(Clone, Copy)]
struct Parts {
    /// The first 7 mantissa bits, and in bit 0 the sign.
    head: uint8x16_t,
    /// The next 8 mantissa bits.
    high: uint8x16_t,
    /// The 8 behind these.
    low: uint8x16_t,
}

/// Joins symbols and raw planes of a block of whole groups to words.
pub(super) fn join_whole(m: u8, symbols: &[u8; PADDED], raw: &[u8], words: &mut [u32]) {
    macro_rules! with_m {
        ($($m:literal)*) => {
            match m {
                $($m => whole::<$m>(symbols, raw, words),)*
                _ => unreachable!("m is at most 23"),
            }
        };
    }
    with_m!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23)
}

fn whole<const M: usize>(symbols: &[u8; PADDED], raw: &[u8], words: &mut [u32]) {
    let n = words.len();
    assert!(n.is_multiple_of(WHOLE) && n <= BLOCK && raw.len() == n / 8 * (M + 1));
    let top = M.min(HEAD_BITS as usize);
    let table = vector(const { head_table(M) });
    for start in (0..n).step_by(WHOLE) {
        for at in (0..WHOLE).step_by(LANES) {
            // SAFETY: the planes of all fields are in `raw`, as long as `n` values of their widths, and all of their
            // groups are whole; the words from `start` on are a group of 256.
            unsafe {
                let head = head::<M>(raw.as_ptr(), n, start, at, table);
                let rest = raw.as_ptr().add(n / 8 * (top + 1));
                let high = aligned((M - top).min(8), rest, n, start, at);
                let low = aligned((M - top).saturating_sub(8), rest.add(n), n, start, at);
                let symbols = load(symbols.as_ptr().add(start + at));
                let parts = Parts { head, high, low };
                store(words.as_mut_ptr().add(start + at), M - top, symbols, parts);
            }
        }
    }
}

/// Mantissa bits of a head with `m` of them, and its sign in bit 0, by what its last planes hold: up to 4 bits, or
/// those behind the first 4.
const fn head_table(m: usize) -> [u8; 16] {
    let (bits, top) = if m > 3 { (m.saturating_sub(4), 4) } else { (m, 8) };
    let mut table = [0; 16];
    let mut value = 0;
    while value < 16 {
        table[value] = ((value >> 1) << (top - bits % 4) | value & 1) as u8;
        value += 1;
    }
    table
}

/// Bytes `at..at + 16` of the heads of a group that starts at value `start`, as [`Parts`] has them.
///
/// # Safety
/// `planes` points at the planes of `n` heads of `M` mantissa bits, whole groups all.
#[inline(always)]
unsafe fn head<const M: usize>(
    planes: *const u8,
    n: usize,
    start: usize,
    at: usize,
    table: uint8x16_t,
) -> uint8x16_t {
    // SAFETY: the caller's.
    unsafe {
        match M {
            7.. => load(planes.add(start + at)),
            4..7 => {
                let first = vshlq_n_u8::<4>(packed::<4>(planes, start, at));
                let last = small(M - 3, planes.add(n / 2), n, start, at);
                vorrq_u8(first, vqtbl1q_u8(table, last))
            }
            _ => vqtbl1q_u8(table, small(M + 1, planes, n, start, at)),
        }
    }
}

/// Values of `bits` (0 to 8) bits at the top of their bytes.
///
/// # Safety
/// As [`head`].
#[inline(always)]
unsafe fn aligned(bits: usize, planes: *const u8, n: usize, start: usize, at: usize) -> uint8x16_t {
    // SAFETY: the caller's.
    unsafe {
        match bits {
            0 => vdupq_n_u8(0),
            8 => load(planes.add(start + at)),
            5..8 => {
                let first = up(packed::<4>(planes, start, at), 4);
                let last = small(bits - 4, planes.add(n / 2), n, start, at);
                vorrq_u8(first, up(last, 8 - bits))
            }
            _ => up(small(bits, planes, n, start, at), 8 - bits),
        }
    }
}

/// Values of 1 to 4 bits.
///
/// # Safety
/// As [`head`].
#[inline(always)]
unsafe fn small(bits: usize, planes: *const u8, n: usize, start: usize, at: usize) -> uint8x16_t {
    // SAFETY: the caller's.
    unsafe {
        let bit = |planes: *const u8| {
            let bits = planes.add((start + at) / 8).cast::<u16>().read_unaligned();
            spread(u16::from_le(bits))
        };
        match bits {
            4 => packed::<4>(planes, start, at),
            3 => {
                let pair = packed::<2>(planes, start, at);
                // A set bit is all ones: taking it away adds one.
                vsubq_u8(vaddq_u8(pair, pair), bit(planes.add(n / 4)))
            }
            2 => packed::<2>(planes, start, at),
            _ => vandq_u8(bit(planes), vdupq_n_u8(1)),
        }
    }
}

/// Values of `W` (2 or 4) bits.
///
/// # Safety
/// As [`head`].
#[inline(always)]
unsafe fn packed<const W: usize>(plane: *const u8, start: usize, at: usize) -> uint8x16_t {
    let group = 512 / W;
    let byte = start * W / 8 + at / group * 64 + at % 64;
    let shift = at % group / 64 * W;
    // SAFETY: the caller's.
    unsafe { vandq_u8(down(load(plane.add(byte)), shift), vdupq_n_u8((1 << W) - 1)) }
}

/// Stores the 16 words of symbols and what `rest` mantissa bits behind the head leave of their parts.
///
/// # Safety
/// `out` has room for them.
#[inline(always)]
unsafe fn store(out: *mut u32, rest: usize, symbols: uint8x16_t, parts: Parts) {
    // SAFETY: the caller's.
    unsafe {
        // Exponent and sign, and the last exponent bit on top of the mantissa.
        let top = vorrq_u8(vshlq_n_u8::<7>(parts.head), vshrq_n_u8::<1>(symbols));
        let next = vsliq_n_u8::<7>(vshrq_n_u8::<1>(parts.head), symbols);
        let zero = vdupq_n_u8(0);
        let low = if rest > 8 { parts.low } else { zero };
        let high = if rest > 0 { parts.high } else { zero };
        vst4q_u8(out.cast(), uint8x16x4_t(low, high, next, top));
    }
}

/// As [`join_whole`], of a block that ends anywhere: its fields are first unpacked to bytes.
pub(super) fn join_ragged(
    m: u8,
    symbols: &[u8; PADDED],
    raw: &[u8],
    (head, high, low): (&mut [u8; PADDED], &mut [u8; PADDED], &mut [u8; PADDED]),
    words: &mut [u32],
) {
    let n = words.len();
    let a = m.min(HEAD_BITS);
    let mut planes = raw;
    unpack(&mut planes, a + 1, n, head);
    unpack(&mut planes, (m - a).min(8), n, high);
    unpack(&mut planes, (m - a).saturating_sub(8), n, low);
    if a < HEAD_BITS {
        let sign = 1u8 << (HEAD_BITS - a);
        for byte in head.iter_mut() {
            *byte = *byte & sign.wrapping_neg() & !sign | u8::from(*byte & sign != 0);
        }
    }
    for (i, out) in words.chunks_mut(LANES).enumerate() {
        let at = i * LANES;
        // SAFETY: `at` is below BLOCK, and all arrays have two vectors more than that.
        let (symbols, parts) = unsafe {
            let (head, high, low) = (head.as_ptr().add(at), high.as_ptr().add(at), low.as_ptr().add(at));
            let parts = Parts { head: load(head), high: load(high), low: load(low) };
            (load(symbols.as_ptr().add(at)), parts)
        };
        let mut copy = [0u32; LANES];
        // SAFETY: the array has 16 words.
        unsafe { store(copy.as_mut_ptr(), 16, symbols, parts) };
        out.copy_from_slice(&copy[..out.len()]);
    }
}

/// Unpacks a field of at most 8 bits from its planes, which it takes away, to the tops of `out`'s first `n` bytes.
#[inline(always)]
fn unpack(planes: &mut &[u8], bits: u8, n: usize, out: &mut [u8; PADDED]) {
    out[..n].fill(0);
    let mut used = 0;
    for width in field_planes(bits) {
        let (plane, rest) = planes.split_at(plane_bytes(width, n));
        *planes = rest;
        used += width;
        let mut add = |at: usize, len: usize, values: uint8x16_t| {
            // SAFETY: `at` is below BLOCK, and the array has a vector more than that.
            unsafe {
                let values = up(vandq_u8(values, vdupq_n_u8((1 << width) - 1)), usize::from(8 - used));
                let place = out.as_mut_ptr().add(at.min(BLOCK));
                vst1q_u8(place, vorrq_u8(load(place), vandq_u8(values, first_lanes(len))));
            }
        };
        match width {
            8 => out[..n].copy_from_slice(plane),
            4 => for_values::<4>(plane, n, &mut add),
            2 => for_values::<2>(plane, n, &mut add),
            _ => for_values::<1>(plane, n, &mut add),
        }
    }
}
