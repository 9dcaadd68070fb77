//! Symbols out of the planes of a cascade.

use std::arch::aarch64::*;

use super::{LANES, first_lanes, for_values, load, take, vector};
use crate::arch::generic::bitmaps;
use crate::arch::{BLOCK, BadRecord, PADDED, Tables, TierTable};
use crate::format::plane_bytes;

/// Up to one escape in so many codes they are written one by one.
const SPARSE: usize = 32;

/// Decodes all tiers; the `n` symbols are at the start of the returned buffer. `first` is tier 0's plane,
/// `planes` what follows the raw bits.
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

/// Codes of the plane that are all ones, at most `n`: unused bits are zeros in a valid plane, and never counted.
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
    let counts = vector(*table);
    let vectors = plane.chunks_exact(LANES);
    let last = vectors.remainder();
    let mut whole = 0usize;
    // A byte gains at most 8 a vector: 31 of them do not overflow it.
    for run in plane[..plane.len() - last.len()].chunks(31 * LANES) {
        // SAFETY: the slices have 16 bytes.
        unsafe {
            let mut bytes = vdupq_n_u8(0);
            for vector in run.chunks_exact(LANES) {
                let x = load(vector.as_ptr());
                let lower = vqtbl1q_u8(counts, vandq_u8(x, vdupq_n_u8(15)));
                let upper = vqtbl1q_u8(counts, vshrq_n_u8::<4>(x));
                bytes = vaddq_u8(bytes, vaddq_u8(lower, upper));
            }
            whole += usize::from(vaddlvq_u8(bytes));
        }
    }
    let rest = last.iter().map(|b| usize::from(table[usize::from(b & 15)] + table[usize::from(b >> 4)]));
    // Only a damaged plane can have more than `n`.
    (whole + rest.sum::<usize>()).min(n)
}

/// The vector of a tier's symbols by code, with nothing for the escape. A code of one bit that is all ones is
/// outside the table, and a look-up makes nothing of it.
#[inline(always)]
fn named<const W: usize>(tier: &TierTable) -> uint8x16_t {
    let escape = (1 << W) - 1;
    vector(std::array::from_fn(|code| if code < escape { tier.symbols[code] } else { 0 }))
}

/// All ones in the bytes of `codes` that hold the escape.
#[inline(always)]
fn escapes<const W: usize>(codes: uint8x16_t) -> uint8x16_t {
    // SAFETY: NEON is part of the target.
    if W == 1 { codes } else { unsafe { vceqq_u8(codes, vdupq_n_u8((1 << W) - 1)) } }
}

/// Stores 16 symbols, of which the first may be all that count, in the place of symbol `at`.
///
/// # Safety
/// `at` is at most BLOCK.
#[inline(always)]
unsafe fn store(out: &mut [u8; PADDED], at: usize, symbols: uint8x16_t) {
    // SAFETY: the array has room for a vector beside a block.
    unsafe { vst1q_u8(out.as_mut_ptr().add(at), symbols) }
}

#[inline(always)]
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
fn expand<const W: usize>(
    tier: &TierTable,
    plane: &[u8],
    n: usize,
    below: &[u8; PADDED],
    out: &mut [u8; PADDED],
) {
    assert!(n <= BLOCK);
    let table = named::<W>(tier);
    let mut next = 0usize;
    for_values::<W>(plane, n, |at, len, codes| {
        // SAFETY: no more codes escape than there are, and they are at most BLOCK; both arrays have a vector more.
        unsafe {
            let mut escaped = escapes::<W>(codes);
            if len < LANES {
                escaped = vandq_u8(escaped, first_lanes(len));
            }
            // Less the running count of escapes: of two bytes, four, eight, sixteen.
            let zero = vdupq_n_u8(0);
            let mut count = vaddq_u8(escaped, vextq_u8::<15>(zero, escaped));
            count = vaddq_u8(count, vextq_u8::<14>(zero, count));
            count = vaddq_u8(count, vextq_u8::<12>(zero, count));
            count = vaddq_u8(count, vextq_u8::<8>(zero, count));
            let source = load(below.as_ptr().add(next));
            next += usize::from(vgetq_lane_u8::<15>(count).wrapping_neg());
            // The complement of `-count` is `count - 1`: the place of this escape among them.
            let filled = vqtbl1q_u8(source, vmvnq_u8(count));
            store(out, at, vbslq_u8(escaped, filled, vqtbl1q_u8(table, codes)));
        }
    });
}

/// As [`expand`], where escapes are rare.
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
        let mut mask = unsafe {
            store(out, at, vqtbl1q_u8(table, codes));
            let mut escaped = escapes::<W>(codes);
            if len < LANES {
                escaped = vandq_u8(escaped, first_lanes(len));
            }
            // Four bits a byte; one of them stays.
            let nibbles = vshrn_n_u16::<4>(vreinterpretq_u16_u8(escaped));
            vget_lane_u64::<0>(vreinterpret_u64_u8(nibbles)) & 0x1111_1111_1111_1111
        };
        loop {
            let place = mask.trailing_zeros() / 4;
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
