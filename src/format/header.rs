//! The header: everything about a blob that is validated and copied before its payload is touched.

use xxhash_rust::xxh3::xxh3_64;

use super::codebook::{CODEBOOK_ENTRIES, Codebook, MAX_GROUPS};
use super::layers::{self, LAYER_ENTRY, Layer, MAX_LAYERS};
use super::{
    Blocks, Delta, Dtype, HEAD_BITS, Layout, MAGIC, MAX_RANK, Residual, TensorSpec, Transform, Unit, Units,
    VERSION, field_planes, plane_bytes,
};
use crate::error::{Error, Result};

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

/// A cursor over the header's bytes; running out is a truncated blob.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        let needed = (self.at as u64).saturating_add(n);
        if needed > self.bytes.len() as u64 {
            return Err(Error::Truncated { needed, found: self.bytes.len() as u64 });
        }
        let taken = &self.bytes[self.at..needed as usize];
        self.at = needed as usize;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }

    fn leb128(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 127);
            require(bits << shift >> shift == bits, || "a dimension of over 64 bits".into())?;
            value |= bits << shift;
            if byte < 128 {
                require(byte != 0 || shift == 0, || "a dimension is written longer than need be".into())?;
                return Ok(value);
            }
        }
        Err(Error::corrupt("a dimension of over 64 bits"))
    }
}

fn require(ok: bool, what: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::corrupt(what())) }
}

impl Header {
    /// Validates the header of `blob` and copies it out. The payload is not read.
    ///
    /// # Errors
    /// Anything that `docs/format.md` lists under "What a reader checks".
    pub fn parse(blob: &[u8]) -> Result<Header> {
        Header::parse_start(blob, blob.len() as u64)
    }

    /// The same for a blob of `blob_len` bytes of which only the first ones are at hand.
    ///
    /// # Errors
    /// As [`Header::parse`]. [`Error::Truncated`] if more of the blob is needed, too: `needed` is how much at least.
    pub fn parse_start(blob: &[u8], blob_len: u64) -> Result<Header> {
        let mut c = Cursor { bytes: blob, at: 0 };
        require(c.array()? == MAGIC, || "it does not start with the magic bytes of an nz-onnx blob".into())?;
        let [major, minor] = c.array()?;
        if major != VERSION.0 {
            return Err(Error::Unsupported(format!(
                "format version {major}.{minor}, nz-onnx {} reads {}.x: update nz-onnx (libnz_onnx.so)",
                crate::VERSION,
                VERSION.0
            )));
        }
        let [dtype, transform, coder, layout, rank, tier_count, mantissa_bits, flags] = c.array()?;
        let (block_len, tile) = (u16::from_le_bytes(c.array()?), u16::from_le_bytes(c.array()?));
        let payload_hash = u64::from_le_bytes(c.array()?);
        let unknown = |what: &str, code| {
            Error::Unsupported(format!(
                "{what} {code} of a later format version ({major}.{minor}); this is nz-onnx {}: update libnz_onnx.so",
                crate::VERSION
            ))
        };
        let dtype = Dtype::from_onnx(i32::from(dtype)).ok_or_else(|| unknown("dtype", dtype))?;
        let transform = match transform {
            1 => Transform::Split,
            2 => Transform::NormalisedSplit,
            3 => Transform::Grid,
            4 => Transform::Delta,
            5 => Transform::Integer,
            6 => Transform::Codebook,
            other => return Err(unknown("transform", other)),
        };
        let is_layered = match coder {
            CODER_CASCADE => false,
            CODER_LAYERS => true,
            other => return Err(unknown("coder", other)),
        };
        let has_raw_bits =
            matches!(transform, Transform::Split | Transform::NormalisedSplit | Transform::Grid);
        require(!is_layered || has_raw_bits, || format!("layers in transform {transform:?}"))?;
        let layout = match layout {
            0 => Layout::RowMajor,
            1 => Layout::ColumnTiles { tile: tile.into() },
            other => return Err(unknown("layout", other)),
        };
        require(layout != Layout::RowMajor || tile == 0, || "tile width in a row-major blob".into())?;
        require(usize::from(rank) <= MAX_RANK, || format!("rank {rank}"))?;
        require((1..=MAX_TIERS).contains(&usize::from(tier_count)), || format!("{tier_count} tiers"))?;
        let most = transform.most_bits(dtype);
        require(mantissa_bits <= most, || format!("{mantissa_bits} mantissa bits"))?;
        let has_units = matches!(transform, Transform::Grid | Transform::Codebook);
        let known = FLAG_LOSSLESS
            | match transform {
                Transform::Split | Transform::NormalisedSplit | Transform::Integer => FLAG_OWN_WIDTHS,
                Transform::Grid => FLAG_OWN_WIDTHS | FLAG_BLOCK_UNITS | FLAG_ROW_UNITS,
                Transform::Codebook => FLAG_BLOCK_UNITS | FLAG_ROW_UNITS,
                Transform::Delta => FLAG_DIFFERENCE | FLAG_BASE_BLOB,
            };
        require(flags & !known == 0, || format!("flags {flags:#x}"))?;
        let is_integer = transform == Transform::Integer;
        require(is_integer == dtype.is_integer(), || format!("{} in transform {transform:?}", dtype.name()))?;
        require(!is_integer || flags & FLAG_LOSSLESS != 0, || "integers that were rounded".into())?;
        let is_delta = transform == Transform::Delta;
        let of_blob = flags & FLAG_BASE_BLOB != 0;
        require(!is_delta || flags & FLAG_LOSSLESS != 0, || "a delta that is not lossless".into())?;
        require(!is_delta || of_blob || layout == Layout::RowMajor, || {
            "a delta to plain elements that is not row-major".into()
        })?;

        let shape = (0..rank).map(|_| c.leb128()).collect::<Result<Vec<_>>>()?;
        let spec = TensorSpec { dtype, shape, layout };
        let blocks = Blocks::new(&spec, block_len.into()).map_err(|e| Error::corrupt(e.to_string()))?;
        let tiers = parse_tiers(&mut c, tier_count.into())?;
        // The directory's length is checked against the bytes before anything is allocated.
        let sizes = c.take(blocks.count().saturating_mul(2))?;
        let own_widths = flags & FLAG_OWN_WIDTHS != 0;
        let widths = c.take(if own_widths { blocks.count() } else { 1 })?;
        let (units_of, units) = match (flags & FLAG_BLOCK_UNITS, flags & FLAG_ROW_UNITS) {
            (0, 0) => (Units::Tensor, u64::from(has_units)),
            (_, 0) => (Units::Block, blocks.count()),
            (0, _) => (Units::Row, spec.grid_rows().ok_or_else(|| Error::corrupt("units of rows"))?),
            _ => return Err(Error::corrupt(format!("flags {flags:#x}"))),
        };
        let units = c.take(units.saturating_mul(2))?;
        let count = units.len() as u64 / 2;
        let codebook =
            (transform == Transform::Codebook).then(|| parse_codebook(&mut c, count)).transpose()?;
        let residual = if flags & FLAG_DIFFERENCE == 0 { Residual::Xor } else { Residual::Difference };
        let delta = match is_delta {
            true => {
                let [exponent] = c.array()?;
                Some(Delta { residual, exponent, base_hash: u64::from_le_bytes(c.array()?), of_blob })
            }
            false => None,
        };
        let (base_bits, entries) = if is_layered { parse_layers(&mut c)? } else { (most, Vec::new()) };
        let body = &blob[..c.at];
        require(header_hash(body) == u32::from_le_bytes(c.array()?), || "header checksum differs".into())?;

        let widths = if own_widths { widths.to_vec() } else { vec![widths[0]; blocks.count() as usize] };
        let unit = |bytes: &[u8]| {
            let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
            Unit::from_bits(bits).ok_or_else(|| Error::corrupt(format!("unit {bits:#x}")))
        };
        let units = units.chunks_exact(2).map(unit).collect::<Result<Vec<_>>>()?;
        let centred = codebook.is_some() && units.iter().any(|unit| unit.is_centred());
        require(!centred, || "a codebook's unit that is centred".into())?;
        let mut end = 0u32;
        let mut offsets = vec![0];
        for size in sizes.chunks_exact(2) {
            let size = u16::from_le_bytes([size[0], size[1]]).into();
            end = end.checked_add(size).ok_or_else(|| Error::corrupt("a payload of over 16 GiB"))?;
            offsets.push(end);
        }
        let payload_end = (c.at.next_multiple_of(ALIGN) as u64) + u64::from(end) * ALIGN as u64;
        let in_layers = entries.last().map_or(most, |&(bits, _)| bits);
        require(in_layers <= most && widths.iter().all(|&m| m <= in_layers), || {
            format!("layers of {in_layers} raw bits")
        })?;
        let layers = layers::place(&blocks, &widths, base_bits, &entries, payload_end)?;
        let header = Header {
            major,
            minor,
            spec,
            transform,
            mantissa_bits,
            block_len: block_len.into(),
            tiers,
            widths,
            units,
            units_of,
            delta,
            codebook,
            header_len: c.at as u64,
            blob_len: layers.last().map_or(payload_end, Layer::end),
            base_bits,
            layers,
            payload_hash,
            lossless: flags & FLAG_LOSSLESS != 0,
            offsets,
            blocks,
        };
        header.check(blob, blob_len)?;
        Ok(header)
    }

    /// What is left to check when the header is known to be as it was written.
    fn check(&self, blob: &[u8], blob_len: u64) -> Result<()> {
        let (needed, found) = (self.blob_len, blob_len);
        if found < needed {
            return Err(Error::Truncated { needed, found });
        }
        require(found == needed, || format!("{needed} bytes expected, {found} found"))?;
        let (needed, found) = (self.payload_offset() as u64, blob.len() as u64);
        let padding = blob.get(self.header_len as usize..self.payload_offset());
        let padding = padding.ok_or(Error::Truncated { needed, found })?;
        require(padding.iter().all(|&b| b == 0), || "padding is not zero".into())?;
        let tier0 = self.tiers[0].width;
        let is_delta = self.transform == Transform::Delta;
        let most = match self.transform {
            Transform::Split | Transform::NormalisedSplit => self.spec.dtype.mantissa_bits(),
            Transform::Grid | Transform::Delta | Transform::Integer | Transform::Codebook => {
                self.mantissa_bits
            }
        };
        for (b, (pair, &m)) in self.offsets.windows(2).zip(&self.widths).enumerate() {
            require(m <= most, || format!("block {b} has {m} mantissa bits"))?;
            let slots = self.blocks.slots(b as u64);
            let have = (pair[1] - pair[0]) as usize * ALIGN;
            let n = (slots.end - slots.start) as usize;
            let least = match is_delta {
                // No record where weights are their base's.
                true if have == 0 => 0,
                true => plane_bytes(tier0, n),
                false => fixed_record_bytes(tier0, n, m.min(self.base_bits)),
            };
            require(have >= least, || format!("record of block {b} is too short"))?;
        }
        Ok(())
    }

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

/// The raw bits of records, and bits and hash of each layer.
fn parse_layers(c: &mut Cursor<'_>) -> Result<(u8, Vec<(u8, u64)>)> {
    let [base_bits, count] = c.array()?;
    require((1..=MAX_LAYERS).contains(&usize::from(count)), || format!("{count} layers"))?;
    let entries = c.take(u64::from(count) * LAYER_ENTRY as u64)?;
    let entry = |bytes: &[u8]| {
        let hash = bytes[1..].iter().rev().fold(0, |hash, &byte| hash << 8 | u64::from(byte));
        (bytes[0], hash)
    };
    Ok((base_bits, entries.chunks_exact(LAYER_ENTRY).map(entry).collect()))
}

fn parse_codebook(c: &mut Cursor<'_>, units: u64) -> Result<Codebook> {
    let [groups] = c.array()?;
    require((1..=MAX_GROUPS).contains(&groups), || format!("{groups} codebooks"))?;
    let value = |bytes: &[u8]| {
        let value = half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        require(value.is_finite(), || "a codebook with a value that is not finite".into()).map(|()| value)
    };
    let [symbols] = c.array()?;
    let most = CODEBOOK_ENTRIES / 2;
    require((1..=most).contains(&usize::from(symbols)), || format!("codebooks of {symbols} symbols"))?;
    let mut tables = Vec::new();
    for _ in 0..groups {
        let mut table = [0.0; CODEBOOK_ENTRIES];
        for half in table.chunks_exact_mut(most) {
            let bytes = c.take(2 * u64::from(symbols))?;
            for (entry, bytes) in half.iter_mut().zip(bytes.chunks_exact(2)) {
                *entry = value(bytes)?;
            }
        }
        tables.push(table);
    }
    let of_units = c.take(if groups > 1 { units } else { 0 })?;
    require(of_units.iter().all(|&group| group < groups), || "a group that has no codebook".into())?;
    Ok(Codebook { tables, groups: of_units.to_vec() })
}

fn parse_tiers(c: &mut Cursor<'_>, count: usize) -> Result<Vec<Tier>> {
    let packed = c.take(count.div_ceil(4) as u64)?;
    let unused = packed.last().is_some_and(|&last| !count.is_multiple_of(4) && last >> (count % 4 * 2) != 0);
    require(!unused, || "unused bits of the tier widths are not zero".into())?;
    let mut seen = [false; 256];
    (0..count)
        .map(|i| {
            let width = (packed[i / 4] >> (i % 4 * 2) & 3) + 1;
            let symbols = c.take((1 << width) - 1)?.to_vec();
            for &s in &symbols {
                let twice = std::mem::replace(&mut seen[usize::from(s)], true);
                require(!twice, || format!("symbol {s} is listed twice"))?;
            }
            Ok(Tier { width, symbols })
        })
        .collect()
}
