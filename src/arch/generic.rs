//! The block decoder in plain Rust, in loops that a compiler can vectorise. The instruction set rooms compile
//! it again with their features.

use super::{BLOCK, BadRecord, PADDED, Record, Scratch, Store, Tables, grid, layers};
use crate::format::{HEAD_BITS, field_planes, plane_bytes};

/// As [`super::Backend::decode`].
pub(super) fn decode(
    tables: &Tables,
    records: &[Record<'_>],
    scratch: &mut Scratch,
    words: &mut [u32],
    _: Store,
) -> Result<(), BadRecord> {
    one_by_one(records, words, |record, words| {
        decode_inline(tables, record.bytes, record.m, scratch, words)?;
        layers::refine(record, scratch, words)?;
        if let Some(grid) = record.grid {
            grid::values(words, grid);
        }
        Ok(())
    })
}

/// Calls `decode` with each record and its words.
pub(super) fn one_by_one<T>(
    records: &[Record<'_>],
    mut out: &mut [T],
    mut decode: impl FnMut(&Record<'_>, &mut [T]) -> Result<(), BadRecord>,
) -> Result<(), BadRecord> {
    for record in records {
        let here;
        (here, out) = out.split_at_mut(record.len);
        decode(record, here)?;
    }
    Ok(())
}

#[inline(always)]
pub(super) fn decode_inline(
    tables: &Tables,
    record: &[u8],
    m: u8,
    scratch: &mut Scratch,
    words: &mut [u32],
) -> Result<(), BadRecord> {
    let n = words.len();
    let mut planes = Planes { bytes: record };
    let a = m.min(HEAD_BITS);

    let first = planes.take(tables.tiers[0].width, n)?;
    field(&mut planes, a + 1, &mut scratch.codes, &mut scratch.head, n)?;
    wide_field(&mut planes, m - a, &mut scratch.codes, &mut scratch.rest, n)?;
    let buffers = (&mut scratch.symbols, &mut scratch.below);
    let symbols = symbols(tables, first, &mut planes, n, &mut scratch.codes, buffers)?;
    if planes.bytes.len() >= 4 {
        return Err(BadRecord);
    }

    let raw = scratch.head[..n].iter().zip(&scratch.rest[..n]);
    for (word, (&symbol, (&head, &rest))) in words.iter_mut().zip(symbols[..n].iter().zip(raw)) {
        *word = joined(m, head, rest) | u32::from(symbol) << 23;
    }
    Ok(())
}

/// Sign and mantissa of a word, from its head and rest.
#[inline(always)]
fn joined(m: u8, head: u8, rest: u16) -> u32 {
    let a = m.min(HEAD_BITS);
    let head = u32::from(head);
    head << 31 | (head >> 1) << (23 - a) | u32::from(rest) << (23 - m)
}

/// Sets `words` to sign and mantissa of those that `record` is of; returns its tier 0, and what is behind the raw bits:
/// the other tiers and the literals, without the zeros that align the next record.
pub(super) fn raw_bits<'r>(
    tables: &Tables,
    record: &'r [u8],
    m: u8,
    scratch: &mut Scratch,
    words: &mut [u32],
) -> Result<(&'r [u8], &'r [u8]), BadRecord> {
    let n = words.len();
    let mut planes = Planes { bytes: record };
    let a = m.min(HEAD_BITS);
    let first = planes.take(tables.tiers[0].width, n)?;
    field(&mut planes, a + 1, &mut scratch.codes, &mut scratch.head, n)?;
    wide_field(&mut planes, m - a, &mut scratch.codes, &mut scratch.rest, n)?;
    let tail = planes.bytes;
    let buffers = (&mut scratch.symbols, &mut scratch.below);
    symbols(tables, first, &mut planes, n, &mut scratch.codes, buffers)?;
    let raw = scratch.head[..n].iter().zip(&scratch.rest[..n]);
    words.iter_mut().zip(raw).for_each(|(word, (&head, &rest))| *word = joined(m, head, rest));
    Ok((first, &tail[..tail.len() - planes.bytes.len()]))
}

/// What is left of a record.
#[derive(Clone, Copy)]
struct Planes<'a> {
    bytes: &'a [u8],
}

impl<'a> Planes<'a> {
    #[inline(always)]
    fn take(&mut self, width: u8, n: usize) -> Result<&'a [u8], BadRecord> {
        let (plane, rest) = self.bytes.split_at_checked(plane_bytes(width, n)).ok_or(BadRecord)?;
        self.bytes = rest;
        Ok(plane)
    }
}

/// The `n` symbols whose tiers and literals stand at the start of `record`, one after the other, and what follows them.
///
/// # Panics
/// `n` is over [`BLOCK`].
#[inline(always)]
pub(super) fn symbols_first<'s, 'r>(
    tables: &Tables,
    record: &'r [u8],
    n: usize,
    scratch: &'s mut Scratch,
) -> Result<(&'s [u8], &'r [u8]), BadRecord> {
    let mut planes = Planes { bytes: record };
    let first = planes.take(tables.tiers[0].width, n)?;
    let buffers = (&mut scratch.symbols, &mut scratch.below);
    let symbols = symbols(tables, first, &mut planes, n, &mut scratch.codes, buffers)?;
    Ok((&symbols[..n], planes.bytes))
}

/// Decodes all tiers and returns the buffer that has the `n` symbols; `first` is tier 0's plane, `planes` starts with
/// those of the next tiers and is left behind the literals.
#[inline(always)]
fn symbols<'s, 'r>(
    tables: &Tables,
    first: &'r [u8],
    planes: &mut Planes<'r>,
    n: usize,
    codes: &mut [u8; BLOCK],
    (mut symbols, mut below): (&'s mut [u8; PADDED], &'s mut [u8; PADDED]),
) -> Result<&'s [u8; PADDED], BadRecord> {
    // How many codes a tier has follows from the escapes of the one before, so go down first ...
    let mut tiers = [(&[] as &'r [u8], 0usize); 9];
    let count = tables.tiers.len();
    tiers[0] = (first, n);
    for (t, tier) in tables.tiers.iter().enumerate() {
        let (plane, n) = tiers[t];
        let escapes = count_escapes(tier.width, plane, n);
        let width = tables.tiers.get(t + 1).map_or(8, |next| next.width);
        tiers[t + 1] = (planes.take(width, escapes)?, escapes);
    }
    // ... and merge on the way up.
    let (literals, literal_count) = tiers[count];
    below[..literal_count].copy_from_slice(literals);
    for (tier, &(plane, n)) in tables.tiers.iter().zip(&tiers[..count]).rev() {
        unpack(tier.width, plane, codes, n);
        let escape = (1u8 << tier.width) - 1;
        let mut next = 0usize;
        for (symbol, &code) in symbols[..n].iter_mut().zip(&codes[..n]) {
            let escaped = code == escape;
            *symbol = if escaped { below[next % BLOCK] } else { tier.symbols[usize::from(code & 15)] };
            next += usize::from(escaped);
        }
        std::mem::swap(&mut symbols, &mut below);
    }
    Ok(below)
}

/// Codes in the plane that are all ones. Unused bits are zeros in a valid plane, and never counted.
#[inline(always)]
fn count_escapes(width: u8, plane: &[u8], n: usize) -> usize {
    if width == 3 {
        let [a, b, c] = bitmaps(plane);
        let ones = a.iter().zip(b).zip(c).map(|((a, b), c)| (a & b & c).count_ones() as usize);
        return ones.sum::<usize>().min(n);
    }
    let ones: usize = plane
        .chunks(8)
        .map(|chunk| {
            let x = match chunk.first_chunk() {
                Some(word) => u64::from_le_bytes(*word),
                None => chunk.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
            };
            let all = match width {
                1 => x,
                2 => x & x >> 1 & 0x5555_5555_5555_5555,
                _ => x & x >> 1 & x >> 2 & x >> 3 & 0x1111_1111_1111_1111,
            };
            all.count_ones() as usize
        })
        .sum();
    // Only a damaged plane can have more than `n`.
    ones.min(n)
}

/// The three bitmaps of a plane of 3 bits, lowest bits first.
#[inline(always)]
pub(super) fn bitmaps(plane: &[u8]) -> [&[u8]; 3] {
    let third = plane.len() / 3;
    [&plane[..third], &plane[third..2 * third], &plane[2 * third..]]
}

/// Unpacks `n` values of `width` bits into `out[..n]`.
#[inline(always)]
pub(super) fn unpack(width: u8, plane: &[u8], out: &mut [u8; BLOCK], n: usize) {
    match width {
        8 => out[..n].copy_from_slice(plane),
        4 => unpack_groups::<4>(plane, &mut out[..n]),
        2 => unpack_groups::<2>(plane, &mut out[..n]),
        3 => {
            let [low, middle, high] = bitmaps(plane);
            for (i, v) in out[..n].iter_mut().enumerate() {
                let bit = |plane: &[u8]| plane[i / 8] >> (i % 8) & 1;
                *v = bit(low) | bit(middle) << 1 | bit(high) << 2;
            }
        }
        _ => {
            let (eights, left) = out[..n].as_chunks_mut::<8>();
            for (values, &byte) in eights.iter_mut().zip(plane) {
                // Bit `i` alone in byte `i`, and then as 0 or 1.
                let bits = (u64::from(byte) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
                let carried = (bits & 0x7f7f_7f7f_7f7f_7f7f) + 0x7f7f_7f7f_7f7f_7f7f;
                *values = ((carried | bits) >> 7 & 0x0101_0101_0101_0101).to_le_bytes();
            }
            if let Some(&byte) = plane.get(n / 8) {
                left.iter_mut().enumerate().for_each(|(i, v)| *v = byte >> i & 1);
            }
        }
    }
}

#[inline(always)]
fn unpack_groups<const W: u32>(plane: &[u8], out: &mut [u8]) {
    let mask = (1u8 << W) - 1;
    let mut bytes = plane;
    for group in out.chunks_mut(512 / W as usize) {
        let (here, rest) = bytes.split_at(bytes.len().min(64));
        bytes = rest;
        for (j, values) in group.chunks_mut(here.len().max(1)).enumerate() {
            let shift = j as u32 * W;
            values.iter_mut().zip(here).for_each(|(v, b)| *v = b >> shift & mask);
        }
    }
}

/// Reads a field of up to 8 bits a value.
#[inline(always)]
fn field(
    planes: &mut Planes<'_>,
    bits: u8,
    part: &mut [u8; BLOCK],
    out: &mut [u8; PADDED],
    n: usize,
) -> Result<(), BadRecord> {
    out[..n].fill(0);
    for width in field_planes(bits) {
        unpack(width, planes.take(width, n)?, part, n);
        let shift = u32::from(width);
        for (value, &bits) in out[..n].iter_mut().zip(&part[..n]) {
            *value = value.checked_shl(shift).unwrap_or(0) | bits;
        }
    }
    Ok(())
}

/// Reads a field of up to 16 bits a value.
#[inline(always)]
fn wide_field(
    planes: &mut Planes<'_>,
    bits: u8,
    part: &mut [u8; BLOCK],
    out: &mut [u16; BLOCK],
    n: usize,
) -> Result<(), BadRecord> {
    out[..n].fill(0);
    for width in field_planes(bits) {
        unpack(width, planes.take(width, n)?, part, n);
        for (value, &bits) in out[..n].iter_mut().zip(&part[..n]) {
            *value = *value << width | u16::from(bits);
        }
    }
    Ok(())
}
