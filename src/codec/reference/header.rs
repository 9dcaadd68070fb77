//! What stands before the records, and where each weight lies in them.

use xxhash_rust::xxh3::xxh3_64;

use super::check;
use super::layers::{Layer, Layers};
use super::reader::Reader;

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Dtype {
    F32,
    F16,
    Bf16,
    U8,
    I8,
}

pub(super) struct Tier {
    pub(super) width: usize,
    pub(super) symbols: Vec<u8>,
}

pub(super) struct Header {
    pub(super) header_len: usize,
    payload_offset: usize,
    payload_hash: u64,
    pub(super) dtype: Dtype,
    /// Whether exponents 232 to 254 stand for subnormals.
    pub(super) normalised: bool,
    /// `None` unless on a grid.
    pub(super) grid: Option<Grid>,
    /// Codebooks: values of sign 0 and of sign 1 of each group in turn; `None` if there are none.
    pub(super) books: Option<Vec<Vec<f32>>>,
    /// `None` unless to a base.
    pub(super) delta: Option<Delta>,
    pub(super) shape: Vec<usize>,
    pub(super) elements: usize,
    /// Tile width; `None` when row-major.
    pub(super) tile: Option<usize>,
    block_len: usize,
    pub(super) tiers: Vec<Tier>,
    /// Starts of the records in the payload, and its end.
    pub(super) offsets: Vec<usize>,
    pub(super) widths: Vec<usize>,
    /// `k`.
    pub(super) kept_bits: usize,
    pub(super) layers: Layers,
}

pub(super) struct Grid {
    /// Raw bits of a level.
    pub(super) k: usize,
    /// One, one for each block, or one for each row.
    pub(super) units: Vec<u16>,
    pub(super) of_rows: bool,
    /// The codebook of each unit.
    pub(super) groups: Vec<usize>,
}

pub(super) struct Delta {
    /// Whether the base is a blob.
    pub(super) of_blob: bool,
    /// Residuals are differences, and not XOR.
    pub(super) difference: bool,
    pub(super) exponent: u8,
    pub(super) base_hash: u64,
}

impl Header {
    pub(super) fn read(blob: &[u8]) -> Result<Header, String> {
        let mut r = Reader { bytes: blob, at: 0 };
        check(r.take(4)? == b"\x89NZB", "not an nz-onnx blob")?;
        let (major, _minor) = (r.uint(1)?, r.uint(1)?);
        if major != 1 {
            return Err(format!("format version {major}.x, this decoder reads 1.x"));
        }
        let dtype = match r.uint(1)? {
            1 => Dtype::F32,
            10 => Dtype::F16,
            16 => Dtype::Bf16,
            2 => Dtype::U8,
            3 => Dtype::I8,
            other => return Err(format!("unknown dtype {other}")),
        };
        let (transform, coder, layout) = (r.uint(1)?, r.uint(1)?, r.uint(1)?);
        check((1..=6).contains(&transform), "unknown transform")?;
        let in_books = transform == 6;
        let is_integer = matches!(dtype, Dtype::U8 | Dtype::I8);
        check(is_integer == (transform == 5), "transform and dtype")?;
        let (on_grid, is_delta) = (transform == 3, transform == 4);
        check(coder == 1 || coder == 2 && transform <= 3, "unknown coder")?;
        check(layout <= 1, "unknown layout")?;
        let (rank, tier_count, mantissa_bits, flags) = (r.size(1)?, r.size(1)?, r.size(1)?, r.uint(1)?);
        check(rank <= 8, "rank")?;
        check((1..=8).contains(&tier_count), "number of tiers")?;
        let most = match transform {
            3 => 15,
            5 => 7,
            6 => 0,
            _ => dtype.mantissa_bits(),
        };
        check(mantissa_bits <= most, "mantissa bits")?;
        check(!is_integer || flags & 1 == 1, "integers that were rounded")?;
        let known = if in_books {
            13
        } else if is_delta {
            49
        } else if on_grid {
            15
        } else {
            3
        };
        check(flags & !known == 0 && flags & 12 != 12, "flags")?;
        let fits = (layout == 0 || flags & 32 != 0) && flags & 1 == 1 && mantissa_bits == 0;
        check(!is_delta || fits, "delta")?;
        let (block_len, tile, payload_hash) = (r.size(2)?, r.size(2)?, r.uint(8)?);
        check(block_len % 64 == 0 && (64..=4096).contains(&block_len), "block length")?;
        check(if layout == 0 { tile == 0 } else { tile > 0 && tile % 64 == 0 && rank == 2 }, "tile width")?;

        let shape = (0..rank).map(|_| r.leb128()).collect::<Result<Vec<_>, _>>()?;
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n > 0);
        let elements = elements.filter(|&n| n <= usize::MAX / 64).ok_or("shape")?;
        let packed = r.take(tier_count.div_ceil(4))?;
        let bits = packed.iter().rev().fold(0usize, |bits, &byte| bits << 8 | usize::from(byte));
        check(bits >> (2 * tier_count) == 0, "unused bits of the tier widths")?;
        let mut tiers = Vec::new();
        for i in 0..tier_count {
            let width = (bits >> (2 * i) & 3) + 1;
            tiers.push(Tier { width, symbols: r.take((1 << width) - 1)?.to_vec() });
        }
        let mut symbols: Vec<u8> = tiers.iter().flat_map(|t| t.symbols.clone()).collect();
        symbols.sort_unstable();
        check(symbols.windows(2).all(|pair| pair[0] != pair[1]), "a symbol is listed twice")?;

        // Row-major is one tile of one row.
        let (rows, columns, width) =
            if layout == 0 { (1, elements, elements) } else { (shape[0], shape[1], tile.min(shape[1])) };
        let in_tile = |columns: usize| (rows * columns).div_ceil(block_len);
        let blocks = columns / width * in_tile(width) + in_tile(columns % width);
        let sizes = r.take(blocks.checked_mul(2).ok_or("number of blocks")?)?;
        let widths = r.take(if flags & 2 == 0 { 1 } else { blocks })?;
        let of_rows = flags & 8 != 0;
        check(!of_rows || layout == 1 && shape[1] % 64 == 0, "units of rows")?;
        let units = match (on_grid || in_books, flags & 4) {
            (false, _) => 0,
            (true, 0) if of_rows => shape[0],
            (true, 0) => 1,
            (true, _) => blocks,
        };
        let units = r.take(units.checked_mul(2).ok_or("number of units")?)?;
        let mut books = None;
        let mut groups = vec![0; units.len() / 2];
        if in_books {
            let count = r.size(1)?;
            check((1..=16).contains(&count), "number of codebooks")?;
            let symbols = r.size(1)?;
            check((1..=32).contains(&symbols), "symbols of codebooks")?;
            let mut tables = Vec::new();
            for _ in 0..2 * count {
                let bits = r.take(2 * symbols)?.chunks(2);
                let values = bits.map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32());
                tables.push(values.collect::<Vec<f32>>());
            }
            check(tables.iter().flatten().all(|v| v.is_finite()), "value of a codebook")?;
            if count > 1 {
                groups = r.take(groups.len())?.iter().map(|&group| group.into()).collect();
                check(groups.iter().all(|&group| group < count), "group")?;
            }
            books = Some(tables);
        }
        let delta = match is_delta {
            true => {
                let (exponent, base_hash) = (r.uint(1)? as u8, r.uint(8)?);
                Some(Delta { difference: flags & 16 != 0, of_blob: flags & 32 != 0, exponent, base_hash })
            }
            false => None,
        };
        let layers = if coder == 2 { Layers::read(&mut r)? } else { Layers::default() };
        let header_hash = xxh3_64(&blob[..r.at]) & 0xffff_ffff;
        check(r.uint(4)? == header_hash, "header checksum differs")?;
        let widths: Vec<usize> = (0..blocks).map(|b| widths[b % widths.len()].into()).collect();
        let most =
            if on_grid || is_delta || is_integer || in_books { mantissa_bits } else { dtype.mantissa_bits() };
        check(layers.most().is_none_or(|bits| bits <= most), "bits of a layer")?;
        let most = layers.most().unwrap_or(most);
        check(widths.iter().all(|&m| m <= most), "mantissa bits of a block")?;
        let units: Vec<u16> = units.chunks(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
        // 2^-100 up to 2^100, but for the sign bit.
        check(units.iter().all(|unit| (27 << 7..227 << 7).contains(&(unit & 0x7fff))), "unit")?;
        check(!in_books || units.iter().all(|unit| unit >> 15 == 0), "unit of a codebook")?;
        let has_units = on_grid || in_books;
        let grid = has_units.then_some(Grid { k: mantissa_bits, units, of_rows, groups });
        let mut offsets = vec![0];
        for size in sizes.chunks(2) {
            offsets.push(offsets[offsets.len() - 1] + 4 * (usize::from(size[0]) | usize::from(size[1]) << 8));
        }
        let header_len = r.at;
        let padding = r.take(r.at.next_multiple_of(4) - r.at)?;
        check(padding.iter().all(|&b| b == 0), "padding is not zero")?;
        let payload_offset = r.at;
        let tile = (layout == 1).then_some(tile);
        Ok(Header {
            header_len,
            payload_offset,
            payload_hash,
            dtype,
            normalised: transform == 2,
            grid,
            books,
            delta,
            shape,
            elements,
            tile,
            block_len,
            tiers,
            offsets,
            widths,
            kept_bits: mantissa_bits,
            layers,
        })
    }

    /// The records, whose checksum is right, and the first `depth` layers.
    pub(super) fn open<'a>(
        &self,
        blob: &'a [u8],
        depth: usize,
    ) -> Result<(&'a [u8], Vec<Layer<'a>>), String> {
        let len = self.offsets.last().copied().unwrap_or(0);
        let payload = blob[self.payload_offset..].get(..len).ok_or("payload size")?;
        check(xxh3_64(payload) == self.payload_hash, "payload checksum differs")?;
        let end = self.payload_offset + len;
        Ok((payload, self.open_layers(blob, end, depth)?))
    }

    pub(super) fn element_size(&self) -> usize {
        match self.dtype {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::U8 | Dtype::I8 => 1,
        }
    }

    /// First slot, first column and columns of the tile that `slot` lies in; a row-major tensor is one row.
    fn tile_of(&self, slot: usize) -> (usize, usize, usize) {
        let Some(width) = self.tile else { return (0, 0, self.elements) };
        let (k, n) = (self.shape[0], self.shape[1]);
        let tile = slot / (k * width.min(n));
        (tile * k * width, tile * width, width.min(n - tile * width))
    }

    /// Weights in the block that starts at `slot`.
    pub(super) fn block_slots(&self, slot: usize) -> usize {
        let (start, _, columns) = self.tile_of(slot);
        let rows = if self.tile.is_some() { self.shape[0] } else { 1 };
        self.block_len.min(start + rows * columns - slot)
    }

    /// The row-major element that lies in `slot`.
    pub(super) fn element_of(&self, slot: usize) -> usize {
        let (start, first_column, columns) = self.tile_of(slot);
        let (row, column) = ((slot - start) / columns, (slot - start) % columns);
        if self.tile.is_some() { row * self.shape[1] + first_column + column } else { slot }
    }
}

impl Dtype {
    pub(super) fn mantissa_bits(self) -> usize {
        match self {
            Dtype::F32 => 23,
            Dtype::F16 => 10,
            Dtype::Bf16 => 7,
            Dtype::U8 | Dtype::I8 => 0,
        }
    }
}
