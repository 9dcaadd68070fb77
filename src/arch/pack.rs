//! The block encoder in plain Rust, the mirror image of [`super::generic`]. Loops run over whole blocks with one
//! operation each, so that a compiler can vectorise them.

use super::{Scratch, Tables, TierTable};
use crate::format::{HEAD_BITS, field_planes, plane_bytes};

/// As [`super::Backend::encode`].
pub(super) fn encode(tables: &Tables, words: &[u32], scratch: &mut Scratch, out: &mut Vec<u8>) -> u8 {
    encode_inline(tables, words, scratch, out)
}

#[inline(always)]
pub(super) fn encode_inline(tables: &Tables, words: &[u32], scratch: &mut Scratch, out: &mut Vec<u8>) -> u8 {
    let n = words.len();
    let union = words.iter().fold(0, |all, w| all | w) & 0x7f_ffff;
    let m = if union == 0 { 0 } else { 23 - union.trailing_zeros() as u8 };
    let a = m.min(HEAD_BITS);

    let Scratch { codes, symbols, below, rest: field, .. } = scratch;
    let (mut symbols, mut below) = (symbols, below);
    symbols[..n].iter_mut().zip(words).for_each(|(s, w)| *s = (w >> 23) as u8);
    let mut left = encode_tier(&tables.tiers[0], &symbols[..n], &mut codes[..n], &mut below[..], out);

    let shift = 23 - u32::from(a);
    field[..n]
        .iter_mut()
        .zip(words)
        .for_each(|(f, w)| *f = (((w & 0x7f_ffff) >> shift) << 1 | w >> 31) as u16);
    pack_field(a + 1, &field[..n], &mut codes[..n], out);
    if m > a {
        let (shift, mask) = (23 - u32::from(m), (1u32 << (m - a)) - 1);
        field[..n].iter_mut().zip(words).for_each(|(f, w)| *f = (w >> shift & mask) as u16);
        pack_field(m - a, &field[..n], &mut codes[..n], out);
    }
    for tier in &tables.tiers[1..] {
        std::mem::swap(&mut symbols, &mut below);
        left = encode_tier(tier, &symbols[..left], &mut codes[..left], &mut below[..], out);
    }
    out.extend_from_slice(&below[..left]);
    m
}

/// Appends the plane of a tier over `symbols` to `out`, puts the symbols that escape from it at the front of
/// `below` and returns how many they are. `codes` is as long as `symbols`, `below` longer.
#[inline(always)]
fn encode_tier(
    tier: &TierTable,
    symbols: &[u8],
    codes: &mut [u8],
    below: &mut [u8],
    out: &mut Vec<u8>,
) -> usize {
    let escape = (1u8 << tier.width) - 1;
    codes.fill(escape);
    for (code, &named) in tier.symbols[..usize::from(escape)].iter().enumerate() {
        codes.iter_mut().zip(symbols).for_each(|(c, &s)| *c = if s == named { code as u8 } else { *c });
    }
    pack_plane(tier.width, codes, out);
    let mut escaped = 0;
    for (&s, &code) in symbols.iter().zip(&*codes) {
        below[escaped] = s;
        escaped += usize::from(code == escape);
    }
    escaped
}

/// Cuts `bits`-bit values into planes and appends them. `part` is as long as `values`.
#[inline(always)]
fn pack_field(bits: u8, values: &[u16], part: &mut [u8], out: &mut Vec<u8>) {
    let mut left = u32::from(bits);
    for width in field_planes(bits) {
        left -= u32::from(width);
        let mask = ((1u16 << width) - 1) as u8;
        part.iter_mut().zip(values).for_each(|(p, v)| *p = (v >> left) as u8 & mask);
        pack_plane(width, part, out);
    }
}

/// Appends a plane of `values`, each below `2^width`.
#[inline(always)]
fn pack_plane(width: u8, values: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + plane_bytes(width, values.len()), 0);
    let plane = &mut out[start..];
    match width {
        8 => plane.copy_from_slice(values),
        4 => pack_groups::<4>(values, plane),
        3 => {
            let third = values.len().div_ceil(8);
            plane.chunks_mut(third.max(1)).zip(0..3).for_each(|(bitmap, bit)| pack_bits(values, bit, bitmap));
        }
        2 => pack_groups::<2>(values, plane),
        _ => pack_bits(values, 0, plane),
    }
}

/// Packs bit `bit` of each value.
#[inline(always)]
fn pack_bits(values: &[u8], bit: u32, bitmap: &mut [u8]) {
    for (byte, values) in bitmap.iter_mut().zip(values.chunks(8)) {
        let mut eight = [0; 8];
        eight[..values.len()].copy_from_slice(values);
        let bits = u64::from_le_bytes(eight) >> bit & 0x0101_0101_0101_0101;
        // Multiplying gathers the lowest bit of each byte in the top one.
        *byte = (bits.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    }
}

#[inline(always)]
fn pack_groups<const W: u32>(values: &[u8], plane: &mut [u8]) {
    for (group, bytes) in values.chunks(512 / W as usize).zip(plane.chunks_mut(64)) {
        for (j, slice) in group.chunks(bytes.len()).enumerate() {
            let shift = j as u32 * W;
            bytes.iter_mut().zip(slice).for_each(|(b, &v)| *b |= v << shift);
        }
    }
}
