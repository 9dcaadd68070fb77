//! A second writer of the format, from `docs/format.md`, that uses the freedom the page gives: any tiers and
//! more mantissa bits than needed. The codec's own writer makes only what is smallest, so it never gets to
//! most of what a reader has to understand.

use super::{Rng, field};
use nz_onnx::format::{Dtype, Layout, TensorSpec};
use xxhash_rust::xxh3::xxh3_64;

/// The choices of a writer.
pub struct Plan {
    pub block_len: u32,
    /// Width and symbols of each tier.
    pub tiers: Vec<(u8, Vec<u8>)>,
    /// Store up to this many mantissa bits more than needed.
    pub spare_bits: u8,
    /// Each block has an `m` of its own.
    pub bits_per_block: bool,
    /// Normalise subnormals, if the tensor leaves their exponents free.
    pub normalise: bool,
}

impl Plan {
    /// Any number of tiers, any widths, any symbols.
    pub fn random(rng: &mut Rng) -> Self {
        let mut symbols: Vec<u8> = (0..=255).collect();
        for i in (1..symbols.len()).rev() {
            symbols.swap(i, rng.below(i + 1));
        }
        // Exponents of ordinary weights first, so that most codes are no escapes.
        symbols.sort_by_key(|&s| u32::from(s.abs_diff(121)) / 8);
        let mut left = symbols.into_iter();
        let tiers = (0..1 + rng.below(8)).map(|_| {
            let width = 1 + rng.below(4) as u8;
            (width, left.by_ref().take((1 << width) - 1).collect())
        });
        let tiers = tiers.collect();
        Plan {
            block_len: 64 * (1 + rng.below(64)) as u32,
            tiers,
            spare_bits: rng.below(4) as u8,
            bits_per_block: rng.below(2) == 1,
            normalise: rng.below(2) == 1,
        }
    }
}

/// The float32 word of a weight of `dtype`.
fn word(dtype: Dtype, bits: u32) -> u32 {
    match dtype {
        Dtype::F32 | Dtype::U8 | Dtype::I8 => bits,
        Dtype::Bf16 => bits << 16,
        Dtype::F16 => {
            let (sign, exponent, mantissa) = ((bits >> 15) << 31, (bits >> 10) & 31, bits & 0x3ff);
            match (exponent, mantissa) {
                (0, 0) => sign,
                (0, _) => sign | (mantissa as f32 / 16_777_216.0).to_bits(), // mantissa * 2^-24
                (31, _) => sign | 0x7f80_0000 | (mantissa << 13),
                _ => sign | ((exponent + 112) << 23) | (mantissa << 13),
            }
        }
    }
}

/// The words of a tensor.
fn words(src: &[u8], spec: &TensorSpec) -> Vec<u32> {
    let bits = |weight: &[u8]| weight.iter().rev().fold(0, |bits, &byte| (bits << 8) | u32::from(byte));
    src.chunks(spec.dtype.size()).map(|weight| word(spec.dtype, bits(weight))).collect()
}

/// A subnormal under the exponent of its top set bit; any other word as it is.
fn normalise(word: u32) -> u32 {
    let (exponent, mantissa) = ((word >> 23) & 255, word & 0x7f_ffff);
    if exponent != 0 || mantissa == 0 {
        return word;
    }
    let top = mantissa.ilog2();
    (word & 0x8000_0000) | ((232 + top) << 23) | ((mantissa ^ (1 << top)) << (23 - top))
}

/// Transforms 1 and 2: the words as they are coded.
fn transform(words: Vec<u32>, plan: &Plan) -> (u8, Vec<u32>) {
    let taken = words.iter().any(|w| (232..=254).contains(&((w >> 23) & 255)));
    if plan.normalise && !taken { (2, words.into_iter().map(normalise).collect()) } else { (1, words) }
}

/// The words in slot order, cut into runs that no block crosses.
pub fn runs(words: Vec<u32>, spec: &TensorSpec) -> Vec<Vec<u32>> {
    match spec.layout {
        Layout::RowMajor => vec![words],
        Layout::ColumnTiles { tile } => {
            let n = spec.shape[1] as usize;
            let starts = (0..n).step_by(tile as usize);
            starts
                .map(|first| {
                    let end = n.min(first + tile as usize);
                    words.chunks(n).flat_map(|row| row[first..end].to_vec()).collect()
                })
                .collect()
        }
    }
}

pub fn push_plane(out: &mut Vec<u8>, values: &[u32], width: u32) {
    match width {
        8 => out.extend(values.iter().map(|&v| v as u8)),
        1 | 3 => {
            for bit in 0..width {
                let byte = |c: &[u32]| c.iter().rev().fold(0, |byte, v| (byte << 1) | (v >> bit & 1) as u8);
                out.extend(values.chunks(8).map(byte));
            }
        }
        _ => {
            for group in values.chunks(512 / width as usize) {
                let bytes = (group.len() * width as usize).div_ceil(8);
                let byte = |p: usize| {
                    let stack = group[p..].iter().step_by(bytes);
                    stack.rev().fold(0, |byte, &v| (byte << width) | v as u8)
                };
                out.extend((0..bytes).map(byte));
            }
        }
    }
}

fn push_field(out: &mut Vec<u8>, values: &[u32], bits: u32) {
    let mut left = bits;
    while left > 0 {
        let width = 1 << left.min(8).ilog2();
        left -= width;
        let cut: Vec<u32> = values.iter().map(|&v| (v >> left) & ((1 << width) - 1)).collect();
        push_plane(out, &cut, width);
    }
}

/// Codes of one tier, and the symbols that escape from it.
pub fn tier_codes(symbols: &[u32], width: u8, listed: &[u8]) -> (Vec<u32>, Vec<u32>) {
    let escape = (1u32 << width) - 1;
    let code = |s: u32| listed.iter().position(|&l| u32::from(l) == s).map_or(escape, |at| at as u32);
    let codes: Vec<u32> = symbols.iter().map(|&s| code(s)).collect();
    let escapes = symbols.iter().zip(&codes).filter(|&(_, &c)| c == escape).map(|(&s, _)| s).collect();
    (codes, escapes)
}

fn record(words: &[u32], m: u32, tiers: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut planes: Vec<Vec<u8>> = vec![];
    let mut symbols: Vec<u32> = words.iter().map(|w| (w >> 23) & 255).collect();
    for (width, listed) in tiers {
        let (codes, escapes) = tier_codes(&symbols, *width, listed);
        let mut plane = vec![];
        push_plane(&mut plane, &codes, u32::from(*width));
        planes.push(plane);
        symbols = escapes;
    }
    let in_head = m.min(7);
    let mantissas: Vec<u32> = words.iter().map(|w| (w & 0x7f_ffff) >> (23 - m)).collect();
    let rest: Vec<u32> = mantissas.iter().map(|v| v & ((1 << (m - in_head)) - 1)).collect();
    let head: Vec<u32> =
        mantissas.iter().zip(words).map(|(v, w)| ((v >> (m - in_head)) << 1) | (w >> 31)).collect();

    let mut out = planes.remove(0);
    push_field(&mut out, &head, in_head + 1);
    push_field(&mut out, &rest, m - in_head);
    planes.iter().for_each(|plane| out.extend_from_slice(plane));
    push_plane(&mut out, &symbols, 8);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// The least `m` for a block, and a few more bits if the plan has some to spare.
fn mantissa_bits(words: &[u32], most: u8, spare: u8, rng: &mut Rng) -> u8 {
    let used = words.iter().fold(0, |all, w| all | (w & 0x7f_ffff));
    let least = 23 - used.trailing_zeros().min(23) as u8;
    (least + rng.below(usize::from(spare) + 1) as u8).min(most)
}

/// A blob in its parts, so that a test can break one of them. The checksums come with [`Draft::seal`].
#[derive(Clone, Default)]
pub struct Draft {
    /// The fields in front of the payload's checksum.
    pub fixed: Vec<u8>,
    /// The dimensions in LEB128.
    pub shape: Vec<u8>,
    /// Tier widths, less 1, in 2 bits each.
    pub tier_widths: Vec<u8>,
    pub symbols: Vec<u8>,
    /// Sizes of the records, divided by 4.
    pub sizes: Vec<u16>,
    /// `m` of all blocks, or of each.
    pub mantissa_bits: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Draft {
    /// The blob, its checksums right.
    pub fn seal(&self) -> Vec<u8> {
        let mut blob = self.fixed.clone();
        blob.extend(xxh3_64(&self.payload).to_le_bytes());
        blob.extend_from_slice(&self.shape);
        blob.extend_from_slice(&self.tier_widths);
        blob.extend_from_slice(&self.symbols);
        blob.extend(self.sizes.iter().flat_map(|size| size.to_le_bytes()));
        blob.extend_from_slice(&self.mantissa_bits);
        blob.extend((xxh3_64(&blob) as u32).to_le_bytes());
        blob.resize(blob.len().next_multiple_of(4), 0);
        blob.extend_from_slice(&self.payload);
        blob
    }

    /// Sets a field of two bytes.
    pub fn put_u16(&mut self, at: usize, value: u16) {
        self.fixed[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
}

/// `values` in LEB128.
pub fn leb128(values: &[u64]) -> Vec<u8> {
    let mut out = vec![];
    for &value in values {
        let mut left = value;
        while left > 0x7f {
            out.push(left as u8 | 0x80);
            left >>= 7;
        }
        out.push(left as u8);
    }
    out
}

/// A lossless blob of `src` made as `plan` says.
pub fn write(src: &[u8], spec: &TensorSpec, plan: &Plan, rng: &mut Rng) -> Vec<u8> {
    draft(src, spec, plan, rng).seal()
}

/// The parts of a lossless blob of `src` made as `plan` says.
pub fn draft(src: &[u8], spec: &TensorSpec, plan: &Plan, rng: &mut Rng) -> Draft {
    let most = spec.dtype.mantissa_bits();
    let (transform, words) = transform(words(src, spec), plan);
    let runs = runs(words, spec);
    let blocks: Vec<&[u32]> = runs.iter().flat_map(|run| run.chunks(plan.block_len as usize)).collect();
    let mut bits: Vec<u8> =
        blocks.iter().map(|words| mantissa_bits(words, most, plan.spare_bits, rng)).collect();
    if !plan.bits_per_block {
        let greatest = bits.iter().copied().max().unwrap_or(0);
        bits.fill(greatest);
    }
    let mut draft = header(spec, plan, transform);
    for (words, &m) in blocks.iter().zip(&bits) {
        let record = record(words, m.into(), &plan.tiers);
        draft.sizes.push((record.len() / 4) as u16);
        draft.payload.extend(record);
    }
    if !plan.bits_per_block {
        bits.truncate(1);
    }
    draft.mantissa_bits = bits;
    draft
}

/// A draft with all that is known before the blocks are coded.
fn header(spec: &TensorSpec, plan: &Plan, transform: u8) -> Draft {
    let (layout, tile) = match spec.layout {
        Layout::RowMajor => (0, 0),
        Layout::ColumnTiles { tile } => (1, tile as u16),
    };
    let (rank, tiers) = (spec.shape.len() as u8, plan.tiers.len() as u8);
    let flags = 1 | if plan.bits_per_block { 2 } else { 0 };
    let mut fixed = b"\x89NZB\x01\0".to_vec();
    fixed.extend([spec.dtype.onnx() as u8, transform, 1, layout, rank, tiers]);
    fixed.extend([spec.dtype.mantissa_bits(), flags, 0, 0, 0, 0]);
    let widths =
        plan.tiers.chunks(4).map(|tiers| tiers.iter().rev().fold(0, |byte, t| (byte << 2) | (t.0 - 1)));
    let mut draft = Draft {
        fixed,
        shape: leb128(&spec.shape),
        tier_widths: widths.collect(),
        symbols: plan.tiers.iter().flat_map(|tier| tier.1.clone()).collect(),
        ..Default::default()
    };
    draft.put_u16(field::BLOCK_LENGTH, plan.block_len as u16);
    draft.put_u16(field::TILE_WIDTH, tile);
    draft
}
