//! Deltas: a tensor as what is left of it once its base is known, such as the weights that a model was tuned from.
//!
//! A residual is made of a weight's bits and those of its base, XOR or difference. What is entropy-coded is how long it
//! is; its bits below the top one follow raw. An update changes all weights by about as much, whatever their size: in
//! units of a weight's last place it is longer by what the weight's exponent is smaller. So the symbol is, where that
//! pays, the length plus the base's exponent, which is the update's own.

use std::ops::Range;

use rayon::prelude::*;

use super::cascade::{self, Histogram, Known, Profile};
use crate::arch::{BLOCK, BadRecord, RECORD_ROOM, Scratch, Tables, decode_symbols, encode_symbols};
use crate::error::{Error, Result};
use crate::format::{
    ALIGN, Blocks, Delta, Dtype, Header, Residual, Sections, TensorSpec, Transform, Units, payload_hash,
};

/// Weights a block: few, so that those that stayed as they were are left out wherever some lie together.
const BLOCK_LEN: u32 = 1024;
/// Symbols do not tell exponents apart that are less than this below the largest.
const EXPONENTS: u8 = 40;
/// Bytes that a record fits in: symbols, and 31 bits of each residual.
const ROOM: usize = RECORD_ROOM + 4 * BLOCK;

/// The `len` lowest bits.
fn mask(len: u32) -> u32 {
    ((1u64 << len) - 1) as u32
}

/// A dtype's elements as plain numbers.
#[derive(Clone, Copy)]
struct Bits {
    /// Bits an element.
    width: u32,
    mantissa: u32,
}

impl Bits {
    fn of(dtype: Dtype) -> Bits {
        Bits { width: 8 * dtype.size() as u32, mantissa: dtype.mantissa_bits().into() }
    }

    fn load(self, bytes: &[u8], index: usize) -> u32 {
        match self.width {
            16 => u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).into(),
            _ => u32::from_le_bytes(std::array::from_fn(|i| bytes[4 * index + i])),
        }
    }

    fn exponent(self, bits: u32) -> u8 {
        (bits >> self.mantissa & mask(self.width - 1 - self.mantissa)) as u8
    }

    /// The place of a value in the order of all: from the largest negative one up.
    fn place(self, bits: u32) -> u32 {
        let sign = 1 << (self.width - 1);
        if bits & sign == 0 { bits | sign } else { !bits & mask(self.width) }
    }

    /// Undoes [`Bits::place`].
    fn at_place(self, place: u32) -> u32 {
        let sign = 1 << (self.width - 1);
        if place & sign == 0 { !place & mask(self.width) } else { place & !sign }
    }

    fn residual(self, how: Residual, bits: u32, base: u32) -> u32 {
        match how {
            Residual::Xor => bits ^ base,
            Residual::Difference => {
                // Its sign goes to the lowest bit, so that small ones of both signs are short.
                let difference = self.place(bits).wrapping_sub(self.place(base)) << (32 - self.width);
                let difference = difference as i32 >> (32 - self.width);
                (difference << 1 ^ difference >> 31) as u32 & mask(self.width)
            }
        }
    }

    /// Undoes [`Bits::residual`].
    fn restored(self, how: Residual, residual: u32, base: u32) -> u32 {
        match how {
            Residual::Xor => residual ^ base,
            Residual::Difference => {
                let difference = residual >> 1 ^ 0u32.wrapping_sub(residual & 1);
                self.at_place(self.place(base).wrapping_add(difference) & mask(self.width))
            }
        }
    }
}

/// How much is added to the lengths of residuals to a weight of the base.
fn lift(exponent: u8, from: u8) -> u32 {
    // The longest residual has 32 bits: no symbol is over 254.
    u32::from(exponent.saturating_sub(from)).min(222)
}

fn length(residual: u32) -> u32 {
    32 - residual.leading_zeros()
}

/// A way to make symbols.
#[derive(Clone, Copy)]
struct Way {
    residual: Residual,
    exponent: u8,
}

/// Symbols of a tensor made in one way, and the raw bits that go with them; blocks that are all zeros are not counted.
struct Counts {
    symbols: Histogram,
    raw_bits: u64,
}

/// The two tensors, block by block.
struct Pair<'a> {
    bits: Bits,
    src: &'a [u8],
    base: &'a [u8],
}

impl Pair<'_> {
    /// Whether the weights of these slots are their base's.
    fn same(&self, slots: &Range<usize>) -> bool {
        let size = self.bits.width as usize / 8;
        let bytes = slots.start * size..slots.end * size;
        self.src[bytes.clone()] == self.base[bytes]
    }

    fn residuals(&self, way: Way, slots: Range<usize>) -> impl Iterator<Item = (u8, u32)> {
        slots.map(move |slot| {
            let base = self.bits.load(self.base, slot);
            let residual = self.bits.residual(way.residual, self.bits.load(self.src, slot), base);
            let lifted = length(residual) + lift(self.bits.exponent(base), way.exponent);
            (if residual == 0 { 0 } else { lifted as u8 }, residual)
        })
    }

    fn count(&self, way: Way, blocks: &Blocks) -> Counts {
        let empty = || Counts { symbols: [0; 256], raw_bits: 0 };
        let add = |mut counts: Counts, block: u64| {
            let slots = slots(blocks, block);
            if !self.same(&slots) {
                for (symbol, residual) in self.residuals(way, slots) {
                    counts.symbols[usize::from(symbol)] += 1;
                    counts.raw_bits += u64::from(length(residual).saturating_sub(1));
                }
            }
            counts
        };
        let join = |mut a: Counts, b: Counts| {
            a.symbols.iter_mut().zip(b.symbols).for_each(|(a, b)| *a += b);
            Counts { symbols: a.symbols, raw_bits: a.raw_bits + b.raw_bits }
        };
        (0..blocks.count()).into_par_iter().fold(empty, add).reduce(empty, join)
    }
}

fn slots(blocks: &Blocks, block: u64) -> Range<usize> {
    let slots = blocks.slots(block);
    slots.start as usize..slots.end as usize
}

/// Encodes `src`, row-major little-endian elements of `dtype` and `shape`, as what tells it from `base`, which is of the
/// same dtype and shape. XOR or difference, whichever codes shorter. The bytes do not depend on the number of threads.
///
/// # Errors
/// A length that does not go with the shape, or a payload that would pass 16 GiB.
pub fn encode_delta(src: &[u8], base: &[u8], dtype: Dtype, shape: &[u64]) -> Result<Vec<u8>> {
    if dtype.is_integer() {
        return Err(Error::invalid(format!("{} has no deltas", dtype.name())));
    }
    let spec = TensorSpec::row_major(dtype, shape);
    let blocks = Blocks::new(&spec, BLOCK_LEN)?;
    let expected = spec.bytes()?;
    for bytes in [src, base] {
        if bytes.len() as u64 != expected {
            let found = bytes.len();
            return Err(Error::invalid(format!("{found} bytes given, {shape:?} takes {expected}")));
        }
    }
    let pair = Pair { bits: Bits::of(dtype), src, base };
    let elements = blocks.elements() as usize;
    let largest = (0..elements).into_par_iter().map(|i| pair.bits.exponent(pair.bits.load(base, i))).max();
    let exponents = [largest.unwrap_or(0).saturating_sub(EXPONENTS), u8::MAX];
    let ways = [Residual::Xor, Residual::Difference]
        .into_iter()
        .flat_map(|residual| exponents.map(|exponent| Way { residual, exponent }));
    let known = Known::default();
    let cost = |way: Way| {
        let Counts { symbols, raw_bits } = pair.count(way, &blocks);
        let tiers = cascade::choose_tiers(&symbols, Profile::Compact, known);
        (cascade::coded_bits(&tiers, &symbols) + raw_bits, way, tiers)
    };
    // The first of equals: the order is fixed.
    let best = ways.map(cost).min_by_key(|(bits, ..)| *bits);
    let Some((_, way, tiers)) = best else { return Err(Error::invalid("no way to make residuals")) };
    let tables = Tables::new(&tiers);
    let records: Vec<Vec<u8>> = (0..blocks.count())
        .into_par_iter()
        .map_init(
            || (Scratch::new(), vec![0u8; ROOM]),
            |(scratch, out), block| {
                let slots = slots(&blocks, block);
                if pair.same(&slots) {
                    return Vec::new();
                }
                let (symbols, residuals): (Vec<u8>, Vec<u32>) = pair.residuals(way, slots).unzip();
                let mut record = {
                    let len = encode_symbols(&tables, &symbols, scratch, out);
                    out[..len].to_vec()
                };
                write_bits(&residuals, &mut record);
                record.resize(record.len().next_multiple_of(ALIGN), 0);
                record
            },
        )
        .collect();
    let payload: Vec<u8> = records.concat();
    if payload.len() as u64 / ALIGN as u64 > u64::from(u32::MAX) {
        return Err(Error::invalid("the payload would be larger than 16 GiB"));
    }
    let mut blob = Sections {
        spec,
        transform: Transform::Delta,
        mantissa_bits: 0,
        lossless: true,
        block_len: BLOCK_LEN,
        tiers,
        widths: vec![0; records.len()],
        units: Vec::new(),
        units_of: Units::Tensor,
        delta: Some(Delta { residual: way.residual, exponent: way.exponent, base_hash: payload_hash(base) }),
        codebook: None,
        base_bits: 0,
        layers: Vec::new(),
        // At most 1024 weights of 9 bytes.
        sizes: records.iter().map(|record| (record.len() / ALIGN) as u16).collect(),
        payload_hash: payload_hash(&payload),
    }
    .write();
    blob.extend(payload);
    Ok(blob)
}

/// Appends the bits below the top one of each residual, from the low end of each byte up.
fn write_bits(residuals: &[u32], out: &mut Vec<u8>) {
    let (mut waiting, mut count) = (0u64, 0u32);
    for &residual in residuals {
        let len = length(residual).saturating_sub(1);
        waiting |= u64::from(residual & mask(len)) << count;
        count += len;
        while count >= 8 {
            out.push(waiting as u8);
            waiting >>= 8;
            count -= 8;
        }
    }
    if count > 0 {
        out.push(waiting as u8);
    }
}

/// Decodes a delta to row-major little-endian elements of its dtype. All checksums, that of the base too, are verified.
///
/// # Errors
/// The blob is no delta, is corrupt or of a later version, or `base` is not the tensor that it was made from.
pub fn decode_delta(blob: &[u8], base: &[u8]) -> Result<Vec<u8>> {
    let header = Header::parse(blob)?;
    let Some(delta) = header.delta else {
        return Err(Error::invalid("not a delta: it is decoded without a base"));
    };
    let spec = &header.spec;
    if base.len() as u64 != spec.bytes()? || payload_hash(base) != delta.base_hash {
        return Err(Error::invalid("the base is not the tensor that the delta was made from"));
    }
    if payload_hash(&blob[header.payload_offset()..]) != header.payload_hash {
        return Err(Error::corrupt("payload checksum differs"));
    }
    let (bits, blocks) = (Bits::of(spec.dtype), header.blocks());
    let tables = Tables::new(&header.tiers);
    let size = spec.dtype.size();
    let mut out = base.to_vec();
    out.par_chunks_mut(header.block_len as usize * size).enumerate().try_for_each_init(
        Scratch::new,
        |scratch, (block, out)| {
            let record = &blob[header.record(block)];
            if record.is_empty() {
                return Ok(());
            }
            let n = slots(blocks, block as u64).len();
            let damaged = |BadRecord| Error::corrupt("the record of a block is damaged");
            let (symbols, rest) = decode_symbols(&tables, record, n, scratch).map_err(damaged)?;
            add(symbols, rest, &delta, bits, out).map_err(damaged)
        },
    )?;
    Ok(out)
}

/// Adds residuals to the weights of a base, in place.
fn add(
    symbols: &[u8],
    raw: &[u8],
    delta: &Delta,
    bits: Bits,
    out: &mut [u8],
) -> std::result::Result<(), BadRecord> {
    let size = bits.width as usize / 8;
    let mut at = 0usize;
    for (&symbol, element) in symbols.iter().zip(out.chunks_exact_mut(size)) {
        if symbol == 0 {
            continue;
        }
        let base = bits.load(element, 0);
        let len = u32::from(symbol)
            .checked_sub(lift(bits.exponent(base), delta.exponent))
            .filter(|len| (1..=bits.width).contains(len))
            .ok_or(BadRecord)?;
        let below = read_bits(raw, at, len - 1).ok_or(BadRecord)?;
        at += len as usize - 1;
        let restored = bits.restored(delta.residual, below | 1 << (len - 1), base);
        element.copy_from_slice(&restored.to_le_bytes()[..size]);
    }
    if raw.len() - at.div_ceil(8) < ALIGN { Ok(()) } else { Err(BadRecord) }
}

/// `len` bits, at most 31, from bit `at` on.
fn read_bits(bytes: &[u8], at: usize, len: u32) -> Option<u32> {
    if at + len as usize > 8 * bytes.len() {
        return None;
    }
    let rest = &bytes[at / 8..];
    let word = match rest.first_chunk() {
        Some(eight) => u64::from_le_bytes(*eight),
        None => rest.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
    };
    Some((word >> (at % 8)) as u32 & mask(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn residuals_are_undone() {
        for dtype in [Dtype::F32, Dtype::F16] {
            let bits = Bits::of(dtype);
            let top = mask(bits.width);
            let values = [0, 1, 2, top, top - 1, 1 << (bits.width - 1), top >> 1, 0x3c00, 0xbc01, 12345];
            for how in [Residual::Xor, Residual::Difference] {
                for (a, b) in values.iter().flat_map(|&a| values.map(|b| (a & top, b & top))) {
                    let residual = bits.residual(how, a, b);
                    assert!(residual <= top);
                    assert_eq!(bits.restored(how, residual, b), a, "{how:?} {a:#x} {b:#x}");
                }
            }
            // Neighbours across zero and an octave are short.
            let one = bits.residual(Residual::Difference, 1, 1 << (bits.width - 1));
            assert_eq!(length(one), 3);
            assert_eq!(length(bits.residual(Residual::Difference, 0x3c00, 0x3bff)), 2);
        }
    }

    #[test]
    fn bits_come_back() {
        let residuals: Vec<u32> = (0..200u32).map(|i| i.wrapping_mul(0x9e37_79b9) >> (i % 32)).collect();
        let mut bytes = Vec::new();
        write_bits(&residuals, &mut bytes);
        let mut at = 0;
        for residual in residuals {
            let len = length(residual).saturating_sub(1);
            assert_eq!(read_bits(&bytes, at, len), Some(residual & mask(len)));
            at += len as usize;
        }
        assert_eq!(read_bits(&bytes, at, 31), None);
    }
}
