//! What the tests of this crate share: weights, shapes and blobs with their checksums made right again.
#![allow(dead_code)] // every test binary uses another part

pub mod compiler;
pub mod deltas;
pub mod device;
pub mod program;
pub mod twin;
pub mod writer;

use nz_onnx::codec::{self, EncodeOptions, GridStep};
use nz_onnx::format::{Dtype, Header, Sections, TensorSpec, Tier};
use xxhash_rust::xxh3::xxh3_64;

pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// SplitMix64: the same numbers on every machine.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }

    /// What a byte may become by damage: a bit flips, or it is one more or less, or anything.
    pub fn mutated(&mut self, byte: u8) -> u8 {
        match self.below(3) {
            0 => byte ^ (1 << self.below(8)),
            1 => byte.wrapping_add([1, 255][self.below(2)]),
            _ => self.next() as u8,
        }
    }

    /// Nearly normal with deviation 0.02, as weights are: the sum of twelve uniform numbers.
    pub fn weight(&mut self) -> f32 {
        let sum: f64 = (0..12).map(|_| self.next() as f64 / u64::MAX as f64).sum();
        ((sum - 6.0) * 0.02) as f32
    }
}

/// What a tensor is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Normally distributed weights.
    Weights,
    /// Any bit pattern: NaN payloads, infinities, subnormals.
    RandomBits,
    /// Zeros of both signs, infinities, NaN of both kinds, the least and greatest of all classes.
    Specials,
    /// Values of a narrower format, so that the low mantissa bits of every block are zero.
    Upcast,
    /// Only zeros.
    Zeros,
    /// Normally distributed weights, a third of them replaced by subnormals of every size.
    Subnormals,
}

pub const FILLS: [Fill; 6] =
    [Fill::Weights, Fill::RandomBits, Fill::Specials, Fill::Upcast, Fill::Zeros, Fill::Subnormals];

/// The bits of `value` rounded to `dtype`.
fn bits_of(dtype: Dtype, value: f32) -> u32 {
    match dtype {
        Dtype::F32 => value.to_bits(),
        Dtype::F16 => half::f16::from_f32(value).to_bits().into(),
        Dtype::Bf16 => half::bf16::from_f32(value).to_bits().into(),
        Dtype::U8 | Dtype::I8 => (value as i8 as u8).into(),
    }
}

/// Bit patterns at the borders of all classes of `dtype`, without sign.
fn borders(dtype: Dtype) -> Vec<u32> {
    let mantissa = u32::from(dtype.mantissa_bits());
    let top = (1 << (dtype.size() as u32 * 8 - 1 - mantissa)) - 1; // the exponent of infinity and NaN
    let (one, infinity) = (1 << mantissa, top << mantissa);
    let mut all = vec![0, 1, 2, 3, one / 2, one - 1, one, one + 1, infinity - 1];
    all.extend([infinity, infinity + 1, infinity + one / 2, infinity + one / 2 + 1, infinity + one - 1]);
    all
}

/// `n` weights of `dtype`, little-endian.
pub fn tensor(fill: Fill, dtype: Dtype, n: usize, rng: &mut Rng) -> Vec<u8> {
    let borders = borders(dtype);
    let sign = 1u32 << (dtype.size() * 8 - 1);
    let mut bytes = Vec::with_capacity(n * dtype.size());
    for i in 0..n {
        let bits = match fill {
            Fill::Weights => bits_of(dtype, rng.weight()),
            Fill::RandomBits => rng.next() as u32,
            Fill::Specials => borders[i % borders.len()] | if rng.next() & 1 == 1 { sign } else { 0 },
            Fill::Upcast => bits_of(dtype, (rng.weight() * 1000.0).round() / 64.0),
            Fill::Zeros => 0,
            Fill::Subnormals if rng.below(3) > 0 => bits_of(dtype, rng.weight()),
            Fill::Subnormals => {
                let bits = u32::from(dtype.mantissa_bits());
                let size = (rng.next() as u32 & ((1 << bits) - 1)) >> rng.below(bits as usize);
                size | if rng.next() & 1 == 1 { sign } else { 0 }
            }
        };
        bytes.extend_from_slice(&bits.to_le_bytes()[..dtype.size()]);
    }
    bytes
}

/// Weights whose rows have sizes and tails of their own, so that they go to several codebooks.
pub fn rows_of_their_own(spec: &TensorSpec, rng: &mut Rng) -> Vec<u8> {
    let row = spec.shape.last().map_or(1, |&row| row as usize);
    let mut bytes = vec![];
    for at in 0..spec.elements().expect("small") as usize {
        let value = rng.weight() * (1.0 + (at / row) as f32 / 7.0);
        let value = if (at / row).is_multiple_of(3) { value * value.abs() * 40.0 } else { value };
        match spec.dtype {
            Dtype::F32 => bytes.extend(value.to_le_bytes()),
            Dtype::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
            _ => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
        }
    }
    bytes
}

/// A blob of codebooks; none if no codebook can hold `src`.
pub fn encode_in_books(
    src: &[u8],
    spec: &TensorSpec,
    options: &EncodeOptions,
    step: GridStep,
) -> Option<Vec<u8>> {
    let survey = codec::survey_codebooks(src, spec, options).expect("elements of the spec")?;
    Some(codec::encode_as(src, spec, options.block_len, &survey.coding(step)).expect("encodes"))
}

/// The same blob of codebooks with other symbols in its tiers, none of which has a value: their lower 5 bits are as before.
pub fn without_values(blob: &[u8]) -> Vec<u8> {
    let header = Header::parse(blob).expect("whole");
    let moved =
        |tier: &Tier| Tier { width: tier.width, symbols: tier.symbols.iter().map(|s| s ^ 0xe0).collect() };
    let sections = Sections {
        spec: header.spec.clone(),
        transform: header.transform,
        mantissa_bits: header.mantissa_bits,
        lossless: header.is_lossless(),
        block_len: header.block_len,
        tiers: header.tiers.iter().map(moved).collect(),
        widths: header.widths.clone(),
        units: header.units.clone(),
        units_of: header.units_of,
        delta: None,
        codebook: header.codebook.clone(),
        base_bits: header.base_bits,
        layers: vec![],
        sizes: (0..header.widths.len()).map(|block| (header.record(block).len() / 4) as u16).collect(),
        payload_hash: header.payload_hash,
    };
    [&sections.write(), &blob[header.payload()]].concat()
}

/// Shapes of rank 0 to 8, ragged blocks, ragged tiles.
pub fn specs(dtype: Dtype) -> Vec<TensorSpec> {
    let shapes: [&[u64]; 7] = [&[], &[1], &[63], &[4096], &[4097], &[9, 1000], &[1, 2, 3, 1, 5, 1, 7, 2]];
    let tiles = [(1, 1, 64), (1, 64, 64), (7, 65, 64), (33, 127, 128), (40, 300, 128), (70, 257, 256)];
    let row_major = shapes.iter().map(|shape| TensorSpec::row_major(dtype, shape));
    row_major.chain(tiles.iter().map(|&(k, n, tile)| TensorSpec::column_tiles(dtype, k, n, tile))).collect()
}

/// Where the header's one-byte fields lie, and those of two bytes.
pub mod field {
    pub const MAJOR: usize = 4;
    pub const MINOR: usize = 5;
    pub const DTYPE: usize = 6;
    pub const TRANSFORM: usize = 7;
    pub const CODER: usize = 8;
    pub const LAYOUT: usize = 9;
    pub const RANK: usize = 10;
    pub const TIERS: usize = 11;
    pub const KEPT: usize = 12;
    pub const FLAGS: usize = 13;
    pub const BLOCK_LENGTH: usize = 14;
    pub const TILE_WIDTH: usize = 16;
    pub const PAYLOAD_HASH: usize = 18;
    pub const SHAPE: usize = 26;
}

fn u16_at(blob: &[u8], at: usize) -> u128 {
    u16::from_le_bytes([blob[at], blob[at + 1]]).into()
}

/// Blocks of a tensor with the fields of `blob`.
fn blocks(blob: &[u8], shape: &[u128]) -> Option<u128> {
    let (length, tile) = (u16_at(blob, field::BLOCK_LENGTH), u16_at(blob, field::TILE_WIDTH));
    let in_region = |weights: u128| weights.checked_add(length.checked_sub(1)?)?.checked_div(length);
    match *shape {
        [rows, columns] if blob[field::LAYOUT] == 1 && tile > 0 => {
            let full = (columns / tile).checked_mul(in_region(rows.checked_mul(tile)?)?)?;
            full.checked_add(in_region(rows.checked_mul(columns % tile)?)?)
        }
        _ => in_region(shape.iter().try_fold(1u128, |product, &d| product.checked_mul(d))?),
    }
}

/// Where the header's checksum lies as its fields say, right or wrong; none if that is not inside the blob.
pub fn checksum_at(blob: &[u8]) -> Option<usize> {
    let mut at = field::SHAPE;
    let mut shape = vec![];
    for _ in 0..*blob.get(field::RANK)? {
        let len = blob.get(at..)?.iter().position(|byte| byte & 0x80 == 0)? + 1;
        let digits = blob[at..at + len].iter().rev();
        shape.push(digits.take(18).fold(0, |value, &byte| (value << 7) | u128::from(byte & 0x7f)));
        at += len;
    }
    let tiers = usize::from(blob[field::TIERS]);
    let widths = at;
    at += tiers.div_ceil(4);
    for tier in 0..tiers {
        let width = 1 + (blob.get(widths + tier / 4)? >> (2 * (tier % 4)) & 3);
        at += (1 << width) - 1;
    }
    let blocks = usize::try_from(blocks(blob, &shape)?).ok()?;
    let widths = if blob[field::FLAGS] & 2 == 0 { 1 } else { blocks };
    at = at.checked_add(blocks.checked_mul(2)?)?.checked_add(widths)?;
    let units = match (blob[field::TRANSFORM], blob[field::FLAGS] & 12) {
        (3 | 6, 0) => 1,
        (3 | 6, 4) => blocks,
        (3 | 6, _) => usize::try_from(*shape.first()?).ok()?,
        _ => 0,
    };
    at = at.checked_add(units.checked_mul(2)?)?;
    match (blob[field::TRANSFORM], blob[field::CODER]) {
        (6, _) => {
            let (groups, symbols) = (usize::from(*blob.get(at)?), usize::from(*blob.get(at + 1)?));
            at += 2 + 4 * groups * symbols + if groups > 1 { units } else { 0 };
        }
        (4, _) => at += 1 + 8,
        (_, 2) => at += 2 + 9 * usize::from(*blob.get(at + 1)?),
        _ => {}
    }
    (at.checked_add(4)? <= blob.len()).then_some(at)
}

/// Makes the header's checksum right again, where there is one.
pub fn reseal_header(blob: &mut [u8]) {
    if let Some(at) = checksum_at(blob) {
        let hash = xxh3_64(&blob[..at]) as u32;
        blob[at..at + 4].copy_from_slice(&hash.to_le_bytes());
    }
}

/// Makes the checksums of payload and header right again.
pub fn reseal_payload(blob: &mut [u8]) {
    let hash = xxh3_64(&blob[payload(blob)]);
    blob[field::PAYLOAD_HASH..field::SHAPE].copy_from_slice(&hash.to_le_bytes());
    reseal_header(blob);
}

/// Where the payload of a blob lies whose header is whole: its records, and no layers.
pub fn payload(blob: &[u8]) -> std::ops::Range<usize> {
    let header = checksum_at(blob).expect("a whole blob") + 4;
    let end =
        if blob[field::CODER] == 2 { Header::parse(blob).expect("whole").payload().end } else { blob.len() };
    header.next_multiple_of(4)..end
}
