//! The reference decoder: the blob format as a program.
//!
//! It reads `docs/format.md` aloud, one value at a time, and shares nothing with the decoder that runs in
//! ONNX Runtime but the hash function. Where the two differ, this one is right.

mod layers;

use xxhash_rust::xxh3::xxh3_64;

use layers::Layers;

/// Decodes a blob to its tensor: row-major little-endian elements of its dtype.
///
/// # Errors
/// A sentence on the first thing that is wrong with the blob; it is never decoded to anything but the tensor
/// that was encoded.
pub fn decode(blob: &[u8]) -> Result<Vec<u8>, String> {
    decode_to(blob, usize::MAX)
}

/// The same with the first `depth` layers only; all if there are fewer.
///
/// # Errors
/// As [`decode`].
pub fn decode_to(blob: &[u8], depth: usize) -> Result<Vec<u8>, String> {
    let header = Header::read(blob)?;
    check(header.delta.is_none(), "a delta needs its base")?;
    let depth = depth.min(header.layers.count());
    let (payload, mut layers) = header.open(blob, depth)?;

    let mut elements = vec![0u8; header.elements * header.element_size()];
    let mut slot = 0;
    for block in 0..header.widths.len() {
        let n = header.block_slots(slot);
        let record = &payload[header.offsets[block]..header.offsets[block + 1]];
        let m = header.widths[block];
        let mut words = header.decode_record(record, n, header.layers.in_record(m))?;
        header.refine(&mut layers, m, &mut words)?;
        for (i, word) in words.into_iter().enumerate() {
            let (at, size) = (header.element_of(slot + i), header.element_size());
            let value = match &header.grid {
                Some(grid) => {
                    let row = if grid.of_rows { at / header.shape[1] } else { block };
                    let row = row.min(grid.units.len() - 1);
                    match &header.books {
                        Some(books) => {
                            let half = 2 * grid.groups[row] + (word >> 31) as usize;
                            header.in_book(word, grid.units[row], &books[half])
                        }
                        None => header.on_grid(word, header.layers.known(depth, grid.k), grid.units[row]),
                    }
                }
                None => header.element(word),
            };
            elements[at * size..(at + 1) * size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        slot += n;
    }
    check(slot == header.elements, "blocks do not cover the tensor")?;
    Ok(elements)
}

/// Decodes a delta, given the elements of its base; one to a blob, given that.
///
/// # Errors
/// As [`decode`], or `base` is another tensor.
pub fn decode_delta(blob: &[u8], base: &[u8]) -> Result<Vec<u8>, String> {
    let header = Header::read(blob)?;
    let delta = header.delta.as_ref().ok_or("not a delta")?;
    let (payload, _) = header.open(blob, 0)?;
    let size = header.element_size();
    let mut elements = if delta.of_blob {
        let own = Header::read(base)?;
        check(xxh3_64(&base[..own.header_len]) == delta.base_hash, "another base")?;
        let same = own.dtype == header.dtype && own.shape == header.shape && own.tile == header.tile;
        check(same, "dtype, shape or layout of the base")?;
        decode(base)?
    } else {
        check(xxh3_64(base) == delta.base_hash, "another base")?;
        base.to_vec()
    };
    check(elements.len() == header.elements * size, "size of the base")?;
    let mut first = 0;
    for block in 0..header.widths.len() {
        let slot = first;
        let n = header.block_slots(slot);
        first += n;
        let record = &payload[header.offsets[block]..header.offsets[block + 1]];
        if record.is_empty() {
            continue;
        }
        let mut r = Reader { bytes: record, at: 0 };
        let codes = read_plane(&mut r, header.tiers[0].width, n)?;
        let symbols = header.decode_tier(&mut r, 0, codes)?;
        let raw = r.take(record.len() - r.at)?;
        let mut bit = 0;
        for (i, symbol) in symbols.into_iter().enumerate() {
            let at = header.element_of(slot + i);
            let element = &mut elements[at * size..(at + 1) * size];
            let base = element.iter().rev().fold(0, |bits, &byte| bits << 8 | u64::from(byte));
            let restored = header.restore(delta, symbol, base, raw, &mut bit)?;
            element.copy_from_slice(&restored.to_le_bytes()[..size]);
        }
        let padding = raw.len().checked_sub(bit.div_ceil(8)).ok_or("record too short")?;
        check(padding < 4, "record is not filled")?;
    }
    Ok(elements)
}

fn check(ok: bool, what: &str) -> Result<(), String> {
    if ok { Ok(()) } else { Err(what.to_string()) }
}

#[derive(Clone, Copy, PartialEq)]
enum Dtype {
    F32,
    F16,
    Bf16,
    U8,
    I8,
}

struct Tier {
    width: usize,
    symbols: Vec<u8>,
}

struct Header {
    header_len: usize,
    payload_offset: usize,
    payload_hash: u64,
    dtype: Dtype,
    /// Whether exponents 232 to 254 stand for subnormals.
    normalised: bool,
    /// `None` unless on a grid.
    grid: Option<Grid>,
    /// Codebooks: values of sign 0 and of sign 1 of each group in turn; `None` if there are none.
    books: Option<Vec<Vec<f32>>>,
    /// `None` unless to a base.
    delta: Option<Delta>,
    shape: Vec<usize>,
    elements: usize,
    /// Tile width; `None` when row-major.
    tile: Option<usize>,
    block_len: usize,
    tiers: Vec<Tier>,
    /// Starts of the records in the payload, and its end.
    offsets: Vec<usize>,
    widths: Vec<usize>,
    /// `k`.
    kept_bits: usize,
    layers: Layers,
}

struct Grid {
    /// Raw bits of a level.
    k: usize,
    /// One, one for each block, or one for each row.
    units: Vec<u16>,
    of_rows: bool,
    /// The codebook of each unit.
    groups: Vec<usize>,
}

struct Delta {
    /// Whether the base is a blob.
    of_blob: bool,
    /// Residuals are differences, and not XOR.
    difference: bool,
    exponent: u8,
    base_hash: u64,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len()).ok_or("truncated")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn uint(&mut self, size: usize) -> Result<u64, String> {
        Ok(self.take(size)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn size(&mut self, size: usize) -> Result<usize, String> {
        usize::try_from(self.uint(size)?).map_err(|_| "number too large for this machine".to_string())
    }

    /// A number in 7 bits a byte.
    fn leb128(&mut self) -> Result<usize, String> {
        let (mut value, mut shift) = (0u128, 0);
        loop {
            let byte = self.take(1)?[0];
            value |= u128::from(byte & 127) << shift;
            check(byte != 0 || shift == 0, "a dimension is written longer than need be")?;
            check(shift <= 63, "a dimension is too large")?;
            shift += 7;
            if byte < 128 {
                return usize::try_from(value).map_err(|_| "a dimension is too large".to_string());
            }
        }
    }
}

impl Header {
    fn read(blob: &[u8]) -> Result<Header, String> {
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
    fn open<'a>(&self, blob: &'a [u8], depth: usize) -> Result<(&'a [u8], Vec<layers::Layer<'a>>), String> {
        let len = self.offsets.last().copied().unwrap_or(0);
        let payload = blob[self.payload_offset..].get(..len).ok_or("payload size")?;
        check(xxh3_64(payload) == self.payload_hash, "payload checksum differs")?;
        let end = self.payload_offset + len;
        Ok((payload, self.open_layers(blob, end, depth)?))
    }

    fn element_size(&self) -> usize {
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
    fn block_slots(&self, slot: usize) -> usize {
        let (start, _, columns) = self.tile_of(slot);
        let rows = if self.tile.is_some() { self.shape[0] } else { 1 };
        self.block_len.min(start + rows * columns - slot)
    }

    /// The row-major element that lies in `slot`.
    fn element_of(&self, slot: usize) -> usize {
        let (start, first_column, columns) = self.tile_of(slot);
        let (row, column) = ((slot - start) / columns, (slot - start) % columns);
        if self.tile.is_some() { row * self.shape[1] + first_column + column } else { slot }
    }

    fn decode_record(&self, record: &[u8], n: usize, m: usize) -> Result<Vec<u32>, String> {
        let mut r = Reader { bytes: record, at: 0 };
        let codes = read_plane(&mut r, self.tiers[0].width, n)?;
        let a = m.min(7);
        let head = read_field(&mut r, a + 1, n)?;
        let rest = read_field(&mut r, m - a, n)?;
        let symbols = self.decode_tier(&mut r, 0, codes)?;
        let padding = r.take(record.len() - r.at)?;
        check(padding.len() < 4 && padding.iter().all(|&b| b == 0), "record is not filled")?;
        let words = symbols.into_iter().zip(head).zip(rest).map(|((symbol, head), rest)| {
            let mantissa = (head >> 1) << (m - a) | rest;
            (head & 1) << 31 | u32::from(symbol) << 23 | mantissa << (23 - m)
        });
        Ok(words.collect())
    }

    /// The symbols that `codes` of tier `tier` stand for; those of its escapes follow in the record.
    fn decode_tier(&self, r: &mut Reader, tier: usize, codes: Vec<u8>) -> Result<Vec<u8>, String> {
        let Tier { width, symbols } = &self.tiers[tier];
        let escape = (1u8 << width) - 1;
        let escapes = codes.iter().filter(|&&c| c == escape).count();
        let below = match self.tiers.get(tier + 1) {
            Some(next) => {
                let codes = read_plane(r, next.width, escapes)?;
                self.decode_tier(r, tier + 1, codes)?
            }
            None => read_plane(r, 8, escapes)?,
        };
        let mut below = below.into_iter();
        let symbol =
            |code| if code == escape { below.next() } else { symbols.get(usize::from(code)).copied() };
        codes.into_iter().map(symbol).collect::<Option<Vec<u8>>>().ok_or("too few symbols".to_string())
    }

    /// A weight's bit pattern, from its symbol, the base's pattern and the raw bits from bit `bit` on.
    fn restore(
        &self,
        delta: &Delta,
        symbol: u8,
        base: u64,
        raw: &[u8],
        bit: &mut usize,
    ) -> Result<u64, String> {
        if symbol == 0 {
            return Ok(base);
        }
        let (width, m) = (8 * self.element_size(), self.dtype.mantissa_bits());
        let (sign, all) = (1u64 << (width - 1), (1u64 << width) - 1);
        let exponent = (base & !sign) >> m;
        let lift = exponent.saturating_sub(delta.exponent.into()).min(222) as usize;
        let len = usize::from(symbol).checked_sub(lift).ok_or("symbol")?;
        check((1..=width).contains(&len), "symbol")?;
        let mut residual = 1u64 << (len - 1);
        for place in 0..len - 1 {
            let byte = *raw.get(*bit / 8).ok_or("record too short")?;
            residual |= u64::from(byte >> (*bit % 8) & 1) << place;
            *bit += 1;
        }
        if !delta.difference {
            return Ok(base ^ residual);
        }
        // Values in order: the negative ones from the largest magnitude down, then the positive ones.
        let place = if base & sign == 0 { base + sign } else { all - base };
        let steps = residual.div_ceil(2);
        let place =
            if residual & 1 == 0 { place.wrapping_add(steps) } else { place.wrapping_sub(steps) } & all;
        Ok(if place & sign == 0 { all - place } else { place - sign })
    }

    /// The dtype's bit pattern of a word on a grid of whose raw bits so many are known.
    fn on_grid(&self, word: u32, known: usize, unit: u16) -> u32 {
        // Half of what is not known; levels that are no cells' are themselves the middle of what they stand for.
        let centre = (1 << (22 - known)) - if unit >> 15 == 1 { 0 } else { 1 << (22 - self.kept_bits) };
        // At most 24 bits times 8: exact, and then rounded once.
        let level = f64::from(word & 0x7fff_ffff | centre) / f64::from(1 << 23);
        let value = (level * f64::from(f32::from_bits(u32::from(unit & 0x7fff) << 16))) as f32;
        self.rounded(word >> 31, value.to_bits())
    }

    /// The dtype's bit pattern of a word whose value is in a codebook.
    fn in_book(&self, word: u32, unit: u16, book: &[f32]) -> u32 {
        // A symbol without a value cannot come from a writer.
        let value = book.get((word >> 23 & 31) as usize).copied().unwrap_or(0.0);
        let value = value * f32::from_bits(u32::from(unit) << 16);
        self.rounded(value.to_bits() >> 31, value.abs().to_bits())
    }

    /// The dtype's bit pattern nearest to a float32, given its sign and its magnitude's bits.
    fn rounded(&self, sign: u32, bits: u32) -> u32 {
        let value = f32::from_bits(bits);
        // Half to even, by as many bits as there are too many.
        let rounded = |drop: u32| (bits + (1 << (drop - 1)) - 1 + (bits >> drop & 1)) >> drop;
        match self.dtype {
            Dtype::F32 | Dtype::U8 | Dtype::I8 => sign << 31 | bits,
            Dtype::Bf16 => sign << 15 | rounded(16),
            // Below the least normal float16, a multiple of 2^-24.
            Dtype::F16 if bits >> 23 < 113 => {
                sign << 15 | (f64::from(value) * f64::from(1 << 24)).round_ties_even() as u32
            }
            Dtype::F16 => sign << 15 | (rounded(13) - (112 << 10)).min(31 << 10),
        }
    }

    /// The dtype's bit pattern of a word.
    fn element(&self, word: u32) -> u32 {
        let (sign, exponent, mantissa) = (word >> 31, word >> 23 & 255, word & 0x7f_ffff);
        // An integer's magnitude: the symbol, and `k` bits below it.
        let magnitude = (word & 0x7fff_ffff) >> (23 - self.kept_bits) & 127;
        let integer = if sign == 1 { 255 - magnitude } else { magnitude };
        let word = match exponent {
            232..=254 if self.normalised => sign << 31 | (1 << 23 | mantissa) >> (255 - exponent),
            _ => word,
        };
        match self.dtype {
            Dtype::F32 => word,
            Dtype::Bf16 => word >> 16,
            Dtype::I8 => integer,
            Dtype::U8 => integer ^ 128,
            Dtype::F16 => {
                sign << 15
                    | match exponent {
                        0..=102 => 0,
                        // A float16 subnormal: 2^(exponent - 127) is bit `exponent - 103` of its mantissa.
                        103..=112 => (1 << 23 | mantissa) >> (126 - exponent),
                        113..=142 => (exponent - 112) << 10 | mantissa >> 13,
                        _ => 31 << 10 | mantissa >> 13,
                    }
            }
        }
    }
}

impl Dtype {
    fn mantissa_bits(self) -> usize {
        match self {
            Dtype::F32 => 23,
            Dtype::F16 => 10,
            Dtype::Bf16 => 7,
            Dtype::U8 | Dtype::I8 => 0,
        }
    }
}

/// Reads a plane of `n` values of `width` bits.
fn read_plane(r: &mut Reader, width: usize, n: usize) -> Result<Vec<u8>, String> {
    if width == 3 {
        let bits = [read_plane(r, 1, n)?, read_plane(r, 1, n)?, read_plane(r, 1, n)?];
        return Ok((0..n).map(|i| bits[0][i] | bits[1][i] << 1 | bits[2][i] << 2).collect());
    }
    let bytes = r.take((n * width).div_ceil(8))?;
    let mask = ((1u16 << width) - 1) as u8;
    let value = |i: usize| match width {
        8 => bytes[i],
        1 => bytes[i / 8] >> (i % 8) & 1,
        _ => {
            let group_len = 512 / width;
            let (group, j) = (i / group_len, i % group_len);
            let stride = ((n - group * group_len).min(group_len) * width).div_ceil(8);
            bytes[group * 64 + j % stride] >> (j / stride * width) & mask
        }
    };
    Ok((0..n).map(value).collect())
}

/// Reads a field of `bits` bits a weight: planes of 8, 4, 2 and 1 bits, most significant first.
fn read_field(r: &mut Reader, bits: usize, n: usize) -> Result<Vec<u32>, String> {
    let mut values = vec![0u32; n];
    let mut left = bits;
    for width in [8, 8, 4, 2, 1] {
        if width <= left {
            let plane = read_plane(r, width, n)?;
            values.iter_mut().zip(plane).for_each(|(value, bits)| *value = *value << width | u32::from(bits));
            left -= width;
        }
    }
    Ok(values)
}
