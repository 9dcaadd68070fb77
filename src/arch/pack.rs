//! The block encoder in plain Rust, the mirror image of [`super::generic`]. Loops run over whole blocks with one
//! operation each, so that a compiler can vectorise them.

use super::{Scratch, Tables, TierTable};
use crate::format::{HEAD_BITS, field_planes, plane_bytes};

/// As [`super::Backend::encode`].
pub(super) fn encode(
    tables: &Tables,
    words: &[u32],
    scratch: &mut Scratch,
    out: &mut [u8],
    _ahead: &[u8],
) -> (u8, usize) {
    encode_inline(tables, words, scratch, out)
}

#[inline(always)]
pub(super) fn encode_inline(
    tables: &Tables,
    words: &[u32],
    scratch: &mut Scratch,
    out: &mut [u8],
) -> (u8, usize) {
    let n = words.len();
    let union = words.iter().fold(0, |all, w| all | w) & 0x7f_ffff;
    let m = if union == 0 { 0 } else { 23 - union.trailing_zeros() as u8 };
    let room = out.len();
    let planes = &mut &mut *out;

    let Scratch { codes, symbols, below, rest: field, .. } = scratch;
    let (mut symbols, mut below) = (symbols, below);
    symbols[..n].iter_mut().zip(words).for_each(|(s, w)| *s = (w >> 23) as u8);
    let mut left = encode_tier(&tables.tiers[0], &symbols[..n], &mut codes[..n], &mut below[..], planes);

    pack_raw_bits(words, m, &mut codes[..n], &mut field[..n], planes);
    for tier in &tables.tiers[1..] {
        std::mem::swap(&mut symbols, &mut below);
        left = encode_tier(tier, &symbols[..left], &mut codes[..left], &mut below[..], planes);
    }
    take(planes, 8, left).copy_from_slice(&below[..left]);
    (m, room - planes.len())
}

/// Appends head and rest of a record of words with `m` mantissa bits. `codes` and `field` are as long as `words`.
#[inline(always)]
fn pack_raw_bits(words: &[u32], m: u8, codes: &mut [u8], field: &mut [u16], planes: &mut &mut [u8]) {
    let a = m.min(HEAD_BITS);
    let shift = 23 - u32::from(a);
    field.iter_mut().zip(words).for_each(|(f, w)| *f = (((w & 0x7f_ffff) >> shift) << 1 | w >> 31) as u16);
    pack_field(a + 1, field, codes, planes);
    if m > a {
        let (shift, mask) = (23 - u32::from(m), (1u32 << (m - a)) - 1);
        field.iter_mut().zip(words).for_each(|(f, w)| *f = (w >> shift & mask) as u16);
        pack_field(m - a, field, codes, planes);
    }
}

/// Appends head and rest of a record of words of which only the top `m` mantissa bits are kept.
pub(super) fn raw_bits(words: &[u32], m: u8, scratch: &mut Scratch, planes: &mut &mut [u8]) {
    let n = words.len();
    pack_raw_bits(words, m, &mut scratch.codes[..n], &mut scratch.rest[..n], planes);
}

/// Appends a plane of the `width` bits from `shift` on of each word.
pub(super) fn plane_at(words: &[u32], width: u8, shift: u8, scratch: &mut Scratch, planes: &mut &mut [u8]) {
    let codes = &mut scratch.codes[..words.len()];
    let mask = (1u32 << width) - 1;
    codes.iter_mut().zip(words).for_each(|(c, w)| *c = (w >> shift & mask) as u8);
    pack_plane(width, codes, planes);
}

/// Writes the tiers of `scratch.symbols[..n]`, one after the other, and their literals to the front of `out`; returns
/// how many bytes they take.
pub(super) fn symbols_first(tables: &Tables, n: usize, scratch: &mut Scratch, out: &mut [u8]) -> usize {
    let room = out.len();
    let planes = &mut &mut *out;
    let Scratch { codes, symbols, below, .. } = scratch;
    let (mut symbols, mut below, mut left) = (symbols, below, n);
    for tier in &tables.tiers {
        left = encode_tier(tier, &symbols[..left], &mut codes[..left], &mut below[..], planes);
        std::mem::swap(&mut symbols, &mut below);
    }
    take(planes, 8, left).copy_from_slice(&symbols[..left]);
    room - planes.len()
}

/// Appends the plane of a tier over `symbols` to `out`, puts the symbols that escape from it at the front of
/// `below` and returns how many they are. `codes` is as long as `symbols`, `below` longer.
#[inline(always)]
fn encode_tier(
    tier: &TierTable,
    symbols: &[u8],
    codes: &mut [u8],
    below: &mut [u8],
    planes: &mut &mut [u8],
) -> usize {
    let escape = (1u8 << tier.width) - 1;
    codes.fill(escape);
    for (code, &named) in tier.symbols[..usize::from(escape)].iter().enumerate() {
        codes.iter_mut().zip(symbols).for_each(|(c, &s)| *c = if s == named { code as u8 } else { *c });
    }
    pack_plane(tier.width, codes, planes);
    let mut escaped = 0;
    for (&s, &code) in symbols.iter().zip(&*codes) {
        below[escaped] = s;
        escaped += usize::from(code == escape);
    }
    escaped
}

/// Cuts `bits`-bit values into planes and appends them. `part` is as long as `values`.
#[inline(always)]
fn pack_field(bits: u8, values: &[u16], part: &mut [u8], planes: &mut &mut [u8]) {
    let mut left = u32::from(bits);
    for width in field_planes(bits) {
        left -= u32::from(width);
        let mask = ((1u16 << width) - 1) as u8;
        part.iter_mut().zip(values).for_each(|(p, v)| *p = (v >> left) as u8 & mask);
        pack_plane(width, part, planes);
    }
}

fn take<'a>(planes: &mut &'a mut [u8], width: u8, n: usize) -> &'a mut [u8] {
    let (plane, rest) = std::mem::take(planes).split_at_mut(plane_bytes(width, n));
    *planes = rest;
    plane
}

/// Appends a plane of `values`, each below `2^width`.
#[inline(always)]
fn pack_plane(width: u8, values: &[u8], planes: &mut &mut [u8]) {
    let plane = take(planes, width, values.len());
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
        bytes.fill(0);
        for (j, slice) in group.chunks(bytes.len()).enumerate() {
            let shift = j as u32 * W;
            bytes.iter_mut().zip(slice).for_each(|(b, &v)| *b |= v << shift);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::{BLOCK, Backend, Half, RECORD_ROOM, Scratch, Tables};
    use crate::format::{Dtype, HEAD_BITS, Tier, field_planes, plane_bytes};

    /// A plane as docs/format.md defines it, one bit after the other.
    fn plane(width: u8, values: &[u32]) -> Vec<u8> {
        let (n, w) = (values.len(), usize::from(width));
        let mut out = vec![0u8; plane_bytes(width, n)];
        for (i, value) in values.iter().enumerate() {
            for bit in 0..w {
                let (byte, place) = match w {
                    1 | 3 => (bit * n.div_ceil(8) + i / 8, i % 8),
                    8 => (i, bit),
                    _ => {
                        let (group, first) = (i / (512 / w), i / (512 / w) * (512 / w));
                        let stride = ((n - first).min(512 / w) * w).div_ceil(8);
                        (group * 64 + (i - first) % stride, (i - first) / stride * w + bit)
                    }
                };
                out[byte] |= ((value >> bit & 1) as u8) << place;
            }
        }
        out
    }

    fn field(bits: u8, values: &[u32]) -> Vec<u8> {
        let mut left = bits;
        let cut = |width: u8| {
            left -= width;
            plane(width, &values.iter().map(|v| v >> left & ((1 << width) - 1)).collect::<Vec<_>>())
        };
        field_planes(bits).flat_map(cut).collect()
    }

    fn record(tiers: &[Tier], words: &[u32]) -> (u8, Vec<u8>) {
        let m = (0..23u8).find(|&m| words.iter().all(|w| u64::from(*w) << (41 + m) == 0)).unwrap_or(23);
        let a = m.min(HEAD_BITS);
        let mut symbols: Vec<u8> = words.iter().map(|w| (w >> 23) as u8).collect();
        let mut out = Vec::new();
        for (i, tier) in tiers.iter().enumerate() {
            let code = |s: &u8| tier.symbols.iter().position(|t| t == s).unwrap_or(tier.symbols.len()) as u32;
            out.extend(plane(tier.width, &symbols.iter().map(code).collect::<Vec<_>>()));
            symbols.retain(|s| !tier.symbols.contains(s));
            if i == 0 {
                let head = |w: &u32| ((w & 0x7f_ffff) >> (23 - a)) << 1 | w >> 31;
                out.extend(field(a + 1, &words.iter().map(head).collect::<Vec<_>>()));
                let rest = |w: &u32| (w & 0x7f_ffff) >> (23 - m) & ((1 << (m - a)) - 1);
                out.extend(field(m - a, &words.iter().map(rest).collect::<Vec<_>>()));
            }
        }
        out.extend(symbols);
        (m, out)
    }

    #[test]
    fn all_backends_write_the_record_that_the_format_defines() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 32) as u32
        };
        let mut scratch = Scratch::new();
        let cascades: [&[u8]; 8] =
            [&[1], &[2], &[3], &[4], &[2, 2, 3, 4], &[1, 1, 4], &[3, 2, 1], &[4, 3, 3]];
        for widths in cascades {
            let mut next = 130u8;
            let mut symbols = |width| {
                (0..(1u8 << width) - 1).map(|_| (next, next = next.wrapping_sub(3)).0).collect::<Vec<u8>>()
            };
            let tiers: Vec<Tier> =
                widths.iter().map(|&width| Tier { width, symbols: symbols(width) }).collect();
            let tables = Tables::new(&tiers);
            for (m, n) in (0..=23).flat_map(|m| [1, 63, 64, 65, 200, 768, 1000, BLOCK].map(|n| (m, n))) {
                let exponent =
                    |random: u32| 130u32.wrapping_sub((random & random >> 8 & 15) * 3 + random % 5 / 4);
                let words: Vec<u32> = (0..n)
                    .map(|_| {
                        (random() & 0x807f_ffff | (exponent(random()) & 255) << 23) & u32::MAX << (23 - m)
                    })
                    .collect();
                let expected = record(&tiers, &words);
                for backend in Backend::available() {
                    let mut out = vec![0xa5; RECORD_ROOM];
                    let (found, len) = backend.encode(&tables, &words, &mut scratch, &mut out, &[]);
                    let same = found == expected.0 && out[..len] == expected.1;
                    assert!(same, "{}: tiers {widths:?}, m {m}, {n} words", backend.name);
                }
            }
        }
    }

    #[test]
    fn halves_are_coded_as_their_words() {
        let tiers = [Tier { width: 2, symbols: vec![120, 121, 119] }, Tier { width: 1, symbols: vec![0] }];
        let (tables, mut scratch) = (Tables::new(&tiers), Scratch::new());
        // All patterns there are, then blocks of normal numbers among which a few are zero or special, or subnormal.
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let normal = |i: usize| 0x2400 + (i as u16).wrapping_mul(7919) % 0x1000 + (i as u16 & 1) * 0x8000;
        let odd = |i: usize| {
            if i % 97 == 5 { [0, 0x8000, 0x7f80, 0xff81, 0x7c00, 0xfe01][i % 6] } else { normal(i) }
        };
        let few = |i: usize| if i % 501 == 500 { i as u16 % 5 + 1 } else { normal(i) };
        let rounded = |i: usize| normal(i) & 0xfff0;
        let cases: [Vec<u16>; 5] = [
            all,
            (0..2 * BLOCK).map(normal).collect(),
            (0..BLOCK + 77).map(odd).collect(),
            (0..BLOCK + 30).map(few).collect(),
            (0..300).map(rounded).collect(),
        ];
        for (dtype, format) in [(Dtype::F16, Half::F16), (Dtype::Bf16, Half::Bf16)] {
            for backend in Backend::available() {
                let mut fast = 0;
                for (case, block) in cases.iter().flat_map(|case| case.chunks(BLOCK).enumerate()) {
                    let bytes: Vec<u8> = block.iter().flat_map(|h| h.to_le_bytes()).collect();
                    let mut words = vec![0; block.len()];
                    Backend::available()[0].load(dtype, &bytes, &mut words);
                    let expected = record(&tiers, &words);
                    let mut out = vec![0xa5; RECORD_ROOM];
                    let found = backend.encode_halves(&tables, format, &bytes, &mut scratch, &mut out, &[]);
                    if let Some((m, len)) = found {
                        fast += 1;
                        assert!((m, &out[..len]) == (expected.0, &expected.1[..]), "{dtype:?}, block {case}");
                    }
                }
                assert_eq!(fast > 0, backend.name == "avx512", "{}", backend.name);
            }
        }
    }
}
