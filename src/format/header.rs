//! The header: everything about a blob that is validated and copied before its payload is touched.

mod parse;

use xxhash_rust::xxh3::xxh3_64;

use super::codebook::{CODEBOOK_ENTRIES, Codebook};
use super::layers::Layer;
use super::{
    Blocks, Delta, HEAD_BITS, Layout, MAGIC, Residual, TensorSpec, Transform, Unit, Units, VERSION,
    field_planes, plane_bytes,
};

const FIXED: usize = 26;
const CODER_CASCADE: u8 = 1;
/// The same, with the lower raw bits in layers.
const CODER_LAYERS: u8 = 2;
/// The minor format version that has layers first.
const LAYERS_MINOR: u8 = 3;
const FLAG_LOSSLESS: u8 = 1;
const FLAG_OWN_WIDTHS: u8 = 2;
const FLAG_BLOCK_UNITS: u8 = 4;
const FLAG_ROW_UNITS: u8 = 8;
const FLAG_DIFFERENCE: u8 = 16;
const FLAG_BASE_BLOB: u8 = 32;
/// The most tiers that a cascade may have.
pub(crate) const MAX_TIERS: usize = 8;
/// Records start at multiples of this many bytes.
pub(crate) const ALIGN: usize = 4;

/// One tier of the cascade: its code width and the symbols its codes stand for; one more code is the escape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Bits a code: 1 to 4.
    pub width: u8,
    /// `2^width - 1` symbols.
    pub symbols: Vec<u8>,
}

/// A validated header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Major format version.
    pub major: u8,
    /// Minor format version.
    pub minor: u8,
    /// Dtype, shape and layout.
    pub spec: TensorSpec,
    /// How weights became symbols and raw bits.
    pub transform: Transform,
    /// Mantissa bits kept: all of the dtype's, or the number that weights were rounded to. On a grid the raw bits of a
    /// level.
    pub mantissa_bits: u8,
    /// Weights a block.
    pub block_len: u32,
    /// The cascade.
    pub tiers: Vec<Tier>,
    /// Stored mantissa bits of each block.
    pub widths: Vec<u8>,
    /// Units on a grid: one, one for each block, or one for each row; else none.
    pub units: Vec<Unit>,
    /// Whose units those are.
    pub units_of: Units,
    /// What a delta is to; else none.
    pub delta: Option<Delta>,
    /// The codebooks, if weights are values of such.
    pub codebook: Option<Codebook>,
    /// The most raw bits of a weight, beside its sign, that are in the records; the others are in layers.
    pub base_bits: u8,
    /// The layers, if lower raw bits lie apart.
    pub layers: Vec<Layer>,
    /// Bytes of the header, checksum included.
    pub header_len: u64,
    /// Bytes of the blob.
    pub blob_len: u64,
    /// XXH3-64 of the payload.
    pub payload_hash: u64,
    lossless: bool,
    /// Start of each record in the payload and the payload's end, in units of 4 bytes.
    offsets: Vec<u32>,
    blocks: Blocks,
}

/// What the encoder knows when it comes to write a header.
#[derive(Debug)]
pub struct Sections {
    /// Dtype, shape and layout.
    pub spec: TensorSpec,
    /// As in [`Header`].
    pub transform: Transform,
    /// As in [`Header`].
    pub mantissa_bits: u8,
    /// Whether no weight was changed.
    pub lossless: bool,
    /// As in [`Header`].
    pub block_len: u32,
    /// As in [`Header`].
    pub tiers: Vec<Tier>,
    /// As in [`Header`].
    pub widths: Vec<u8>,
    /// As in [`Header`], but that equal units of blocks may be written as one.
    pub units: Vec<Unit>,
    /// As in [`Header`].
    pub units_of: Units,
    /// As in [`Header`].
    pub delta: Option<Delta>,
    /// As in [`Header`].
    pub codebook: Option<Codebook>,
    /// As in [`Header`]; of no account without layers.
    pub base_bits: u8,
    /// Bits and hash of each layer, as in [`Layer`].
    pub layers: Vec<(u8, u64)>,
    /// The size of each record in units of 4 bytes.
    pub sizes: Vec<u16>,
    /// As in [`Header`].
    pub payload_hash: u64,
}

/// The payload checksum of the format.
pub fn payload_hash(payload: &[u8]) -> u64 {
    xxh3_64(payload)
}

/// The header checksum of the format.
fn header_hash(bytes: &[u8]) -> u32 {
    xxh3_64(bytes) as u32
}

/// Bytes of the record parts whose size depends on nothing but `n` and `m`: codes, head and rest.
fn fixed_record_bytes(tier0: u8, n: usize, m: u8) -> usize {
    let a = m.min(HEAD_BITS);
    let planes = field_planes(a + 1).chain(field_planes(m - a));
    plane_bytes(tier0, n) + planes.map(|w| plane_bytes(w, n)).sum::<usize>()
}

/// Bytes that [`Sections::write`] makes of tiers, their widths included.
fn tier_bytes(tiers: &[Tier]) -> usize {
    tiers.len().div_ceil(4) + tiers.iter().map(|t| t.symbols.len()).sum::<usize>()
}

/// The most bytes that header and padding take for a tensor with so many blocks and units.
pub(crate) fn header_bound(spec: &TensorSpec, tiers: &[Tier], blocks: u64, units: u64) -> u64 {
    let shape: usize = spec.shape.iter().map(|&d| leb128(d).count()).sum();
    (FIXED + shape + tier_bytes(tiers) + 4 + ALIGN) as u64 + 3 * blocks + 2 * units
}

/// The bytes of a number, 7 bits at a time.
fn leb128(number: u64) -> impl Iterator<Item = u8> {
    let mut left = Some(number);
    std::iter::from_fn(move || {
        let now = left?;
        left = (now >> 7 != 0).then_some(now >> 7);
        Some((now & 127) as u8 | if left.is_some() { 128 } else { 0 })
    })
}

impl Sections {
    /// The header's bytes and the zeros between it and the payload.
    pub fn write(&self) -> Vec<u8> {
        let own_widths = self.widths.windows(2).any(|pair| pair[0] != pair[1]);
        let units = match self.units_of {
            Units::Block
                if self.codebook.is_none() && self.units.windows(2).all(|pair| pair[0] == pair[1]) =>
            {
                &self.units[..1]
            }
            _ => &self.units,
        };
        let units_of = if units.len() == 1 { Units::Tensor } else { self.units_of };
        let (layout, tile) = match self.spec.layout {
            Layout::RowMajor => (0, 0),
            Layout::ColumnTiles { tile } => (1, tile),
        };
        let mut out = Vec::new();
        out.extend(MAGIC);
        out.extend([
            VERSION.0,
            if self.layers.is_empty() { self.transform.minor() } else { LAYERS_MINOR },
            self.spec.dtype.onnx() as u8,
            match self.transform {
                Transform::Split => 1,
                Transform::NormalisedSplit => 2,
                Transform::Grid => 3,
                Transform::Delta => 4,
                Transform::Integer => 5,
                Transform::Codebook => 6,
            },
            if self.layers.is_empty() { CODER_CASCADE } else { CODER_LAYERS },
            layout,
            self.spec.shape.len() as u8,
            self.tiers.len() as u8,
            self.mantissa_bits,
            if self.lossless { FLAG_LOSSLESS } else { 0 }
                | if own_widths { FLAG_OWN_WIDTHS } else { 0 }
                | match units_of {
                    Units::Tensor => 0,
                    Units::Block => FLAG_BLOCK_UNITS,
                    Units::Row => FLAG_ROW_UNITS,
                }
                | self.delta.map_or(0, |delta| {
                    let difference = if delta.residual == Residual::Difference { FLAG_DIFFERENCE } else { 0 };
                    difference | if delta.of_blob { FLAG_BASE_BLOB } else { 0 }
                }),
        ]);
        out.extend((self.block_len as u16).to_le_bytes());
        out.extend((tile as u16).to_le_bytes());
        out.extend(self.payload_hash.to_le_bytes());
        debug_assert_eq!(out.len(), FIXED);
        self.spec.shape.iter().for_each(|&d| out.extend(leb128(d)));
        let packed = |tiers: &[Tier]| tiers.iter().rev().fold(0, |byte, tier| byte << 2 | (tier.width - 1));
        out.extend(self.tiers.chunks(4).map(packed));
        self.tiers.iter().for_each(|tier| out.extend(&tier.symbols));
        self.sizes.iter().for_each(|size| out.extend(size.to_le_bytes()));
        out.extend(&self.widths[..if own_widths { self.widths.len() } else { 1 }]);
        units.iter().for_each(|unit| out.extend(unit.bits().to_le_bytes()));
        if let Some(Codebook { tables, groups }) = &self.codebook {
            let half = CODEBOOK_ENTRIES / 2;
            let last = tables
                .iter()
                .flat_map(|table| table.chunks(half))
                .filter_map(|half| half.iter().rposition(|&value| value != 0.0));
            let symbols = last.max().unwrap_or(0) + 1;
            out.extend([tables.len() as u8, symbols as u8]);
            for half in tables.iter().flat_map(|table| table.chunks(half)) {
                half[..symbols].iter().for_each(|&v| out.extend(half::f16::from_f32(v).to_le_bytes()));
            }
            out.extend(groups);
        }
        if let Some(delta) = self.delta {
            out.push(delta.exponent);
            out.extend(delta.base_hash.to_le_bytes());
        }
        if !self.layers.is_empty() {
            out.extend([self.base_bits, self.layers.len() as u8]);
            for (bits, hash) in &self.layers {
                out.push(*bits);
                out.extend(hash.to_le_bytes());
            }
        }
        out.extend(header_hash(&out).to_le_bytes());
        out.resize(out.len().next_multiple_of(ALIGN), 0);
        out
    }
}

impl Header {
    /// What tells a blob from any other: XXH3-64 (seed 0) of its header, which has the payload's checksum. `blob` is the
    /// one that this is the header of.
    ///
    /// # Panics
    /// `blob` is shorter than its header.
    pub fn identity(&self, blob: &[u8]) -> u64 {
        xxh3_64(&blob[..self.header_len as usize])
    }

    /// The map between slots and blocks.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Whether decoding gives the source back, bit for bit.
    pub fn is_lossless(&self) -> bool {
        self.lossless
    }

    /// The unit of the weight in `slot`, on a grid or of a codebook.
    pub fn unit(&self, slot: u64) -> Option<Unit> {
        self.units.get(self.unit_place(slot)?).copied()
    }

    /// The place of that unit among all.
    pub fn unit_place(&self, slot: u64) -> Option<usize> {
        let at = match self.units_of {
            Units::Tensor => 0,
            Units::Block => self.blocks.block_of(slot),
            Units::Row => self.spec.grid_row(slot)?.row,
        };
        Some(at as usize)
    }

    /// Where the payload starts in the blob.
    pub fn payload_offset(&self) -> usize {
        (self.header_len as usize).next_multiple_of(ALIGN)
    }

    /// Where the payload is in the blob: all records, and no layers.
    pub fn payload(&self) -> std::ops::Range<usize> {
        let start = self.payload_offset();
        start..start + self.offsets.last().map_or(0, |&end| end as usize) * ALIGN
    }

    /// Raw bits, beside the sign, that a weight has in block `block`'s record.
    pub fn record_bits(&self, block: usize) -> u8 {
        self.widths[block].min(self.base_bits)
    }

    /// Bytes of the blob up to the end of layer `depth`, counted from 1; 0 stands for the records.
    pub fn bytes_to(&self, depth: usize) -> u64 {
        depth.checked_sub(1).map_or(self.payload().end as u64, |last| self.layers[last].end())
    }

    /// How many layers there are within so many bits a weight: those of the file, header and padding included.
    pub fn depth_within(&self, bits: f64) -> usize {
        let of = |depth: usize| self.bytes_to(depth) as f64 * 8.0 / self.blocks.elements() as f64;
        (1..=self.layers.len()).rev().find(|&depth| of(depth) <= bits).unwrap_or(0)
    }

    /// The bytes of block `block`'s record, counted from the start of the blob.
    pub fn record(&self, block: usize) -> std::ops::Range<usize> {
        let start = self.payload_offset();
        start + self.offsets[block] as usize * ALIGN..start + self.offsets[block + 1] as usize * ALIGN
    }
}
