//! The header: everything about a blob that is validated and copied before its payload is touched.

use xxhash_rust::xxh3::xxh3_64;

use super::{
    Blocks, Dtype, HEAD_BITS, Layout, MAGIC, PADDING, TensorSpec, Transform, VERSION, field_planes,
    plane_bytes,
};
use crate::error::{Error, Result};

const FIXED: usize = 96;
const CODER_CASCADE: u8 = 1;
const MAX_RANK: usize = 8;
/// The most tiers that a cascade may have.
pub(crate) const MAX_TIERS: usize = 8;

/// One tier of the cascade: its code width and the symbols its codes stand for; one more code is the escape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Bits a code: 1, 2 or 4.
    pub width: u8,
    /// `2^width - 1` symbols.
    pub symbols: Vec<u8>,
}

/// A validated header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Major format version.
    pub major: u16,
    /// Minor format version.
    pub minor: u16,
    /// Dtype, shape and layout.
    pub spec: TensorSpec,
    /// How weights became symbols and raw bits.
    pub transform: Transform,
    /// Mantissa bits kept: all of the dtype's, or the number that weights were rounded to.
    pub mantissa_bits: u8,
    /// Weights a block.
    pub block_len: u32,
    /// The cascade.
    pub tiers: Vec<Tier>,
    /// Stored mantissa bits of each block.
    pub widths: Vec<u8>,
    /// Start of each record in the payload and the payload's end, in units of 4 bytes.
    pub offsets: Vec<u32>,
    /// Bytes of the header, checksum included.
    pub header_len: u64,
    /// Bytes of the payload.
    pub payload_len: u64,
    /// Bytes of the blob.
    pub blob_len: u64,
    /// XXH3-64 of the payload.
    pub payload_hash: u64,
    /// XXH3-64 of the decoded tensor, row-major.
    pub decoded_hash: u64,
    /// XXH3-64 of the tensor that was encoded, row-major.
    pub source_hash: u64,
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
    /// As in [`Header`].
    pub block_len: u32,
    /// As in [`Header`].
    pub tiers: Vec<Tier>,
    /// As in [`Header`].
    pub widths: Vec<u8>,
    /// As in [`Header`].
    pub offsets: Vec<u32>,
    /// As in [`Header`].
    pub payload_hash: u64,
    /// As in [`Header`].
    pub decoded_hash: u64,
    /// As in [`Header`].
    pub source_hash: u64,
}

/// The payload checksum of the format.
pub fn payload_hash(payload: &[u8]) -> u64 {
    xxh3_64(payload)
}

/// Bytes of the record parts whose size depends on nothing but `n` and `m`: codes, head and rest.
fn fixed_record_bytes(tier0: u8, n: usize, m: u8) -> usize {
    let a = m.min(HEAD_BITS);
    let planes = field_planes(a + 1).chain(field_planes(m - a));
    plane_bytes(tier0, n) + planes.map(|w| plane_bytes(w, n)).sum::<usize>()
}

impl Sections {
    /// Bytes of the header, checksum included.
    pub fn header_len(&self) -> usize {
        let tiers: usize = self.tiers.iter().map(|t| 1 + t.symbols.len()).sum();
        FIXED + 8 * self.spec.shape.len() + tiers + 4 * self.offsets.len() + self.widths.len() + 8
    }

    /// The header's bytes and the zeros between it and the payload.
    pub fn write(&self) -> Vec<u8> {
        let header_len = self.header_len();
        let payload_offset = header_len.next_multiple_of(64);
        let payload_len = self.offsets.last().map_or(0, |&end| u64::from(end) * 4);
        let mut out = Vec::with_capacity(payload_offset);
        out.extend(MAGIC);
        out.extend(VERSION.0.to_le_bytes());
        out.extend(VERSION.1.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        for field in [
            header_len as u64,
            payload_offset as u64 + payload_len + PADDING as u64,
            payload_offset as u64,
            payload_len,
            self.payload_hash,
            self.decoded_hash,
            self.source_hash,
        ] {
            out.extend(field.to_le_bytes());
        }
        let (layout, tile) = match self.spec.layout {
            Layout::RowMajor => (0, 0),
            Layout::ColumnTiles { tile } => (1, tile),
        };
        out.extend([
            self.spec.dtype.onnx() as u8,
            match self.transform {
                Transform::Split => 1,
                Transform::NormalisedSplit => 2,
            },
            CODER_CASCADE,
            layout,
            self.spec.shape.len() as u8,
            self.tiers.len() as u8,
            self.mantissa_bits,
            0,
        ]);
        out.extend(self.block_len.to_le_bytes());
        out.extend(tile.to_le_bytes());
        out.extend((self.widths.len() as u64).to_le_bytes());
        self.spec.shape.iter().for_each(|d| out.extend(d.to_le_bytes()));
        for tier in &self.tiers {
            out.push(tier.width);
            out.extend(&tier.symbols);
        }
        self.offsets.iter().for_each(|o| out.extend(o.to_le_bytes()));
        out.extend(&self.widths);
        out.extend(xxh3_64(&out).to_le_bytes());
        debug_assert_eq!(out.len(), header_len);
        out.resize(payload_offset, 0);
        out
    }
}

/// A cursor over the header's bytes; running out is a truncated blob.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or(Error::Truncated {
            needed: self.at.saturating_add(n) as u64,
            found: self.bytes.len() as u64,
        })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
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
        let mut c = Cursor { bytes: blob, at: 0 };
        require(c.array()? == MAGIC, || "it does not start with the magic bytes of an nz-onnx blob".into())?;
        let (major, minor) = (c.u16()?, c.u16()?);
        if major != VERSION.0 {
            return Err(Error::Unsupported(format!(
                "format version {major}.{minor}, this library (nz-onnx {}) reads {}.x: update it",
                crate::VERSION,
                VERSION.0
            )));
        }
        let reserved = c.u32()?;
        let [header_len, blob_len, payload_offset, payload_len] = [c.u64()?, c.u64()?, c.u64()?, c.u64()?];
        let found = blob.len() as u64;
        if found < blob_len || found < header_len {
            return Err(Error::Truncated { needed: blob_len.max(header_len), found });
        }
        require(found == blob_len, || format!("{blob_len} bytes expected, {found} found"))?;
        require(header_len >= FIXED as u64 + 8, || format!("header of {header_len} bytes"))?;
        // From here on the header is what its writer made it, or the checksum says so.
        let body = &blob[..header_len as usize - 8];
        let stored = Cursor { bytes: blob, at: body.len() }.u64()?;
        require(xxh3_64(body) == stored, || "header checksum differs".into())?;

        let mut c = Cursor { bytes: body, at: c.at };
        let [payload_hash, decoded_hash, source_hash] = [c.u64()?, c.u64()?, c.u64()?];
        let [dtype, transform, coder, layout, rank, tier_count, mantissa_bits, reserved2] = c.array()?;
        let (block_len, tile, count) = (c.u32()?, c.u32()?, c.u64()?);
        let unknown = |what: &str, code| {
            Error::Unsupported(format!("{what} {code}, written by a later version (format {major}.{minor})"))
        };
        let dtype = Dtype::from_onnx(i32::from(dtype)).ok_or_else(|| unknown("dtype", dtype))?;
        let transform = match transform {
            1 => Transform::Split,
            2 => Transform::NormalisedSplit,
            other => return Err(unknown("transform", other)),
        };
        if coder != CODER_CASCADE {
            return Err(unknown("coder", coder));
        }
        let layout = match layout {
            0 => Layout::RowMajor,
            1 => Layout::ColumnTiles { tile },
            other => return Err(unknown("layout", other)),
        };
        require(reserved == 0 && reserved2 == 0, || "reserved bytes are not zero".into())?;
        require(layout != Layout::RowMajor || tile == 0, || "tile width in a row-major blob".into())?;
        require(usize::from(rank) <= MAX_RANK, || format!("rank {rank}"))?;
        require((1..=MAX_TIERS).contains(&usize::from(tier_count)), || format!("{tier_count} tiers"))?;
        require(mantissa_bits <= dtype.mantissa_bits(), || format!("{mantissa_bits} mantissa bits"))?;

        let shape = (0..rank).map(|_| c.u64()).collect::<Result<Vec<_>>>()?;
        let spec = TensorSpec { dtype, shape, layout };
        let blocks = Blocks::new(&spec, block_len).map_err(|e| Error::corrupt(e.to_string()))?;
        require(blocks.count() == count, || format!("{count} blocks, the shape makes {}", blocks.count()))?;
        let tiers = parse_tiers(&mut c, tier_count)?;

        // The directory's length is checked against the bytes before it is allocated.
        let directory = count.checked_mul(5).and_then(|n| n.checked_add(4));
        require(directory == Some((body.len() - c.at) as u64), || {
            "directory does not fill the header".into()
        })?;
        let offsets = (0..=count).map(|_| c.u32()).collect::<Result<Vec<_>>>()?;
        let widths = c.take(count as usize)?.to_vec();

        require(payload_offset == header_len.next_multiple_of(64), || "payload offset".into())?;
        require(
            payload_offset.checked_add(payload_len).and_then(|n| n.checked_add(PADDING as u64))
                == Some(blob_len),
            || "header, payload and padding do not add up to the blob".into(),
        )?;
        let header = Header {
            major,
            minor,
            spec,
            transform,
            mantissa_bits,
            block_len,
            tiers,
            widths,
            offsets,
            header_len,
            payload_len,
            blob_len,
            payload_hash,
            decoded_hash,
            source_hash,
            blocks,
        };
        header.check_directory()?;
        Ok(header)
    }

    fn check_directory(&self) -> Result<()> {
        let ends = (self.offsets.first(), self.offsets.last().map(|&end| u64::from(end) * 4));
        require(ends == (Some(&0), Some(self.payload_len)), || "directory does not span the payload".into())?;
        let (dtype, tier0) = (self.spec.dtype, self.tiers[0].width);
        for (b, (pair, &m)) in self.offsets.windows(2).zip(&self.widths).enumerate() {
            require(m <= dtype.mantissa_bits(), || format!("block {b} has {m} mantissa bits"))?;
            let slots = self.blocks.slots(b as u64);
            let least = fixed_record_bytes(tier0, (slots.end - slots.start) as usize, m) as u64;
            let have = u64::from(pair[1]).checked_sub(u64::from(pair[0])).map(|units| units * 4);
            require(have.is_some_and(|have| have >= least), || format!("record of block {b} is too short"))?;
        }
        Ok(())
    }

    /// The map between slots and blocks.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Whether decoding gives the source back, bit for bit.
    pub fn is_lossless(&self) -> bool {
        self.decoded_hash == self.source_hash
    }

    /// Where the payload starts in the blob.
    pub fn payload_offset(&self) -> usize {
        self.header_len.next_multiple_of(64) as usize
    }

    /// The bytes of block `block`'s record, counted from the start of the blob.
    pub fn record(&self, block: usize) -> std::ops::Range<usize> {
        let start = self.payload_offset();
        start + self.offsets[block] as usize * 4..start + self.offsets[block + 1] as usize * 4
    }
}

fn parse_tiers(c: &mut Cursor<'_>, count: u8) -> Result<Vec<Tier>> {
    let mut seen = [false; 256];
    (0..count)
        .map(|_| {
            let width = c.u8()?;
            require(matches!(width, 1 | 2 | 4), || format!("tier of {width} bits"))?;
            let symbols = c.take((1 << width) - 1)?.to_vec();
            for &s in &symbols {
                require(!std::mem::replace(&mut seen[usize::from(s)], true), || {
                    format!("symbol {s} is listed twice")
                })?;
            }
            Ok(Tier { width, symbols })
        })
        .collect()
}
