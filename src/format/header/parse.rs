//! Headers from bytes: every length is checked before it is used.

use super::{
    ALIGN, CODER_CASCADE, CODER_LAYERS, FLAG_BASE_BLOB, FLAG_BLOCK_UNITS, FLAG_DIFFERENCE, FLAG_LOSSLESS,
    FLAG_OWN_WIDTHS, FLAG_ROW_UNITS, Header, MAX_TIERS, Tier, fixed_record_bytes, header_hash,
};
use crate::error::{Error, Result};
use crate::format::codebook::{CODEBOOK_ENTRIES, Codebook, MAX_GROUPS};
use crate::format::layers::{self, LAYER_ENTRY, Layer, MAX_LAYERS};
use crate::format::{
    Blocks, Delta, Dtype, Layout, MAGIC, MAX_RANK, Residual, TensorSpec, Transform, Unit, Units, VERSION,
    plane_bytes,
};

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
