//! Deltas: a tensor as what is left of it once its base is known, such as the weights that a model was tuned from.
//!
//! A residual is made of a weight's bits and those of its base, XOR or difference. What is entropy-coded is how long it
//! is; its bits below the top one follow raw. An update changes all weights by about as much, whatever their size: in
//! units of a weight's last place it is longer by what the weight's exponent is smaller. So the symbol is, where that
//! pays, the length plus the base's exponent, which is the update's own.

use std::ops::Range;

use rayon::prelude::*;

use super::cascade::{self, Histogram, Known, Profile};
use super::decode::{Decoder, damaged};
use super::encode::runs;
use crate::arch::delta::{Bits, Sums, length, lift, mask};
use crate::arch::{BLOCK, Backend, BadRecord, RECORD_ROOM, Scratch, Tables, encode_symbols};
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
    let spec = TensorSpec::row_major(dtype, shape);
    encode(src, base, spec, BaseId { hash: payload_hash(base), of_blob: false })
}

/// Encodes `src`, row-major little-endian elements, as what tells it from those of the blob `base`, whose dtype, shape and
/// layout it gets. [`super::DeltaDecoder`] decodes it.
///
/// # Errors
/// As [`encode_delta`], or the base is damaged or a delta itself.
pub fn encode_delta_to_blob(src: &[u8], base: &[u8]) -> Result<Vec<u8>> {
    let decoder = Decoder::open(base)?;
    let (header, size) = (decoder.header(), decoder.header().spec.dtype.size());
    let expected = header.spec.bytes()?;
    if src.len() as u64 != expected {
        return Err(Error::invalid(format!("{} bytes given, the base has {expected}", src.len())));
    }
    let mut of_base = vec![0; src.len()];
    decoder.decode_elements(base, 0, &mut of_base)?;
    let mut in_slots = vec![0; src.len()];
    for run in runs(&header.spec, 0..header.blocks().elements()) {
        in_slots[run.at * size..][..run.len * size]
            .copy_from_slice(&src[run.element * size..][..run.len * size]);
    }
    encode(&in_slots, &of_base, header.spec.clone(), BaseId { hash: header.identity(base), of_blob: true })
}

/// What a delta states of its base.
struct BaseId {
    hash: u64,
    of_blob: bool,
}

/// Encodes the elements `src` of `spec`, in stored order, to those of the base.
fn encode(src: &[u8], base: &[u8], spec: TensorSpec, id: BaseId) -> Result<Vec<u8>> {
    let (dtype, shape) = (spec.dtype, &spec.shape);
    if dtype.is_integer() {
        return Err(Error::invalid(format!("{} has no deltas", dtype.name())));
    }
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
        delta: Some(Delta {
            residual: way.residual,
            exponent: way.exponent,
            base_hash: id.hash,
            of_blob: id.of_blob,
        }),
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
    if delta.of_blob {
        return Err(Error::invalid(
            "a delta to a blob: it is decoded with that, and not with plain elements",
        ));
    }
    let spec = &header.spec;
    if base.len() as u64 != spec.bytes()? || payload_hash(base) != delta.base_hash {
        return Err(Error::invalid("the base is not the tensor that the delta was made from"));
    }
    if payload_hash(&blob[header.payload_offset()..]) != header.payload_hash {
        return Err(Error::corrupt("payload checksum differs"));
    }
    let bits = Bits::of(spec.dtype);
    let tables = Tables::new(&header.tiers);
    let size = spec.dtype.size();
    let mut out = base.to_vec();
    out.par_chunks_mut(header.block_len as usize * size).enumerate().try_for_each_init(
        || (Scratch::new(), Sums::new()),
        |(scratch, sums), (block, out)| {
            let record = &blob[header.record(block)];
            if record.is_empty() {
                return Ok(());
            }
            Backend::active()
                .decode_delta(&tables, record, &delta, bits, out, (scratch, sums))
                .map_err(|BadRecord| damaged())
        },
    )?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block, weight by weight.
    fn added_plainly(symbols: &[u8], raw: &[u8], delta: &Delta, bits: Bits, out: &[u8]) -> Option<Vec<u8>> {
        let size = bits.width as usize / 8;
        let mut at = 0;
        let mut take = |len: u32| {
            let mut below = 0;
            for i in 0..len {
                below |= u32::from(*raw.get(at / 8)? >> (at % 8) & 1) << i;
                at += 1;
            }
            Some(below)
        };
        let mut sums = Vec::new();
        for (element, &symbol) in out.chunks(size).zip(symbols) {
            let base = bits.load(element, 0);
            let mut residual = 0;
            if symbol != 0 {
                let len = u32::from(symbol).checked_sub(lift(bits.exponent(base), delta.exponent))?;
                if !(1..=bits.width).contains(&len) {
                    return None;
                }
                residual = take(len - 1)? | 1 << (len - 1);
            }
            sums.extend(&bits.restored(delta.residual, residual, base).to_le_bytes()[..size]);
        }
        (raw.len() - at.div_ceil(8) < ALIGN).then_some(sums)
    }

    fn histogram(symbols: &[u8]) -> Histogram {
        let mut counts = [0; 256];
        symbols.iter().for_each(|&symbol| counts[usize::from(symbol)] += 1);
        counts
    }

    #[test]
    fn sums_are_those_of_the_plain_way() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32
        };
        let mut refused = 0;
        for round in 0..400 {
            let dtype = [Dtype::F32, Dtype::F16, Dtype::Bf16][round % 3];
            let (bits, n) = (Bits::of(dtype), 1 + next() as usize % BLOCK);
            let exponent = if round % 2 == 0 { u8::MAX } else { 3 };
            let residual = if round % 4 < 2 { Residual::Xor } else { Residual::Difference };
            let delta = Delta { residual, exponent, base_hash: 0, of_blob: false };
            let size = bits.width as usize / 8;
            let base: Vec<u8> = (0..n * size).map(|_| next() as u8).collect();
            let mut symbols = Vec::new();
            let mut residuals = Vec::new();
            for i in 0..n {
                // As many raw bits as there can be, too.
                let len = if round % 5 == 4 { bits.width } else { next() % (bits.width + 1) };
                let lifted = len + lift(bits.exponent(bits.load(&base, i)), exponent);
                symbols.push(if len == 0 { 0 } else { lifted as u8 });
                residuals.push(if len == 0 { 0 } else { next() & mask(len - 1) | 1 << (len - 1) });
            }
            let mut raw = Vec::new();
            write_bits(&residuals, &mut raw);
            raw.resize(raw.len().next_multiple_of(ALIGN), 0);
            match round % 8 {
                6 => symbols[n / 2] = next() as u8,
                7 => raw.truncate(raw.len() / 2),
                _ => {}
            }
            let plain = added_plainly(&symbols, &raw, &delta, bits, &base);
            refused += usize::from(plain.is_none());
            let tiers = cascade::choose_tiers(&histogram(&symbols), Profile::Compact, Known::default());
            let tables = Tables::new(&tiers);
            let mut record = vec![0; ROOM];
            let len = encode_symbols(&tables, &symbols, &mut Scratch::new(), &mut record);
            record.truncate(len);
            record.extend(&raw);
            for backend in Backend::available() {
                let mut out = base.clone();
                let buffers = (&mut *Scratch::new(), &mut *Sums::new());
                let fast = backend.decode_delta(&tables, &record, &delta, bits, &mut out, buffers);
                assert_eq!(fast.is_ok(), plain.is_some(), "{} round {round}", backend.name);
                assert!(plain.as_ref().is_none_or(|plain| *plain == out), "{} round {round}", backend.name);
            }
        }
        assert!((20..200).contains(&refused), "{refused} damaged records");
    }
}
