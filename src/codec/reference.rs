//! The reference decoder: the blob format as a program.
//!
//! It reads `docs/format.md` aloud, one value at a time, and shares nothing with the decoder that runs in
//! ONNX Runtime but the hash function. Where the two differ, this one is right.

use xxhash_rust::xxh3::xxh3_64;

/// Decodes a blob to its tensor: row-major little-endian elements of its dtype.
///
/// # Errors
/// A sentence on the first thing that is wrong with the blob; it is never decoded to anything but the tensor
/// that was encoded.
pub fn decode(blob: &[u8]) -> Result<Vec<u8>, String> {
    let header = Header::read(blob)?;
    let payload = &blob[header.payload_offset..header.payload_offset + header.payload_len];
    check(xxh3_64(payload) == header.payload_hash, "payload checksum differs")?;
    check(blob[header.payload_offset + header.payload_len..].iter().all(|&b| b == 0), "padding is not zero")?;

    let mut elements = vec![0u8; header.elements * header.element_size()];
    let mut slot = 0;
    for block in 0..header.widths.len() {
        let n = header.block_slots(slot);
        let record = &payload[header.offsets[block]..header.offsets[block + 1]];
        let words = header.decode_record(record, n, header.widths[block])?;
        for (i, word) in words.into_iter().enumerate() {
            let (at, size) = (header.element_of(slot + i), header.element_size());
            let value = header.element(word);
            elements[at * size..(at + 1) * size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        slot += n;
    }
    check(slot == header.elements, "blocks do not cover the tensor")?;
    check(xxh3_64(&elements) == header.decoded_hash, "checksum of the decoded tensor differs")?;
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
}

struct Tier {
    width: usize,
    symbols: Vec<u8>,
}

struct Header {
    payload_offset: usize,
    payload_len: usize,
    payload_hash: u64,
    decoded_hash: u64,
    dtype: Dtype,
    /// Whether exponents 232 to 254 stand for subnormals.
    normalised: bool,
    shape: Vec<usize>,
    elements: usize,
    /// Tile width; `None` when row-major.
    tile: Option<usize>,
    block_len: usize,
    tiers: Vec<Tier>,
    /// Starts of the records in the payload, and its end, in bytes.
    offsets: Vec<usize>,
    widths: Vec<usize>,
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
}

impl Header {
    fn read(blob: &[u8]) -> Result<Header, String> {
        let mut r = Reader { bytes: blob, at: 0 };
        check(r.take(8)? == b"\x89NZB\r\n\x1a\n", "not an nz-onnx blob")?;
        let major = r.uint(2)?;
        if major != 1 {
            return Err(format!("format version {major}.x, this decoder reads 1.x"));
        }
        let _minor = r.uint(2)?;
        let reserved = r.uint(4)?;
        let (header_len, blob_len) = (r.size(8)?, r.size(8)?);
        let (payload_offset, payload_len) = (r.size(8)?, r.size(8)?);
        check(blob.len() == blob_len, "blob size differs from its header's")?;
        check(header_len >= 104 && header_len <= blob_len, "header size")?;
        let stored = Reader { bytes: blob, at: header_len - 8 }.uint(8)?;
        check(xxh3_64(&blob[..header_len - 8]) == stored, "header checksum differs")?;
        check(payload_offset == header_len.next_multiple_of(64), "payload offset")?;
        check(
            payload_offset.checked_add(payload_len).and_then(|n| n.checked_add(64)) == Some(blob_len),
            "sizes",
        )?;
        check(blob[header_len..payload_offset].iter().all(|&b| b == 0), "padding is not zero")?;
        let mut r = Reader { bytes: &blob[..header_len - 8], at: r.at };

        let (payload_hash, decoded_hash, _source_hash) = (r.uint(8)?, r.uint(8)?, r.uint(8)?);
        let dtype = match r.uint(1)? {
            1 => Dtype::F32,
            10 => Dtype::F16,
            16 => Dtype::Bf16,
            other => return Err(format!("unknown dtype {other}")),
        };
        let transform = r.uint(1)?;
        check(transform == 1 || transform == 2, "unknown transform")?;
        check(r.uint(1)? == 1, "unknown coder")?;
        let layout = r.uint(1)?;
        check(layout <= 1, "unknown layout")?;
        let (rank, tier_count, mantissa_bits) = (r.size(1)?, r.size(1)?, r.uint(1)?);
        check(rank <= 8, "rank")?;
        check((1..=8).contains(&tier_count), "number of tiers")?;
        check(mantissa_bits <= dtype.mantissa_bits() as u64, "mantissa bits")?;
        check(reserved == 0 && r.uint(1)? == 0, "reserved bytes")?;
        let (block_len, tile, blocks) = (r.size(4)?, r.size(4)?, r.size(8)?);
        check(block_len % 64 == 0 && (64..=4096).contains(&block_len), "block length")?;
        check(if layout == 0 { tile == 0 } else { tile > 0 && tile % 64 == 0 && rank == 2 }, "tile width")?;

        let shape = (0..rank).map(|_| r.size(8)).collect::<Result<Vec<_>, _>>()?;
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n > 0);
        let elements = elements.filter(|&n| n <= usize::MAX / 64).ok_or("shape")?;
        let mut tiers = Vec::new();
        for _ in 0..tier_count {
            let width = r.size(1)?;
            check(matches!(width, 1 | 2 | 4), "tier width")?;
            tiers.push(Tier { width, symbols: r.take((1 << width) - 1)?.to_vec() });
        }
        let mut symbols: Vec<u8> = tiers.iter().flat_map(|t| t.symbols.clone()).collect();
        symbols.sort_unstable();
        check(symbols.windows(2).all(|pair| pair[0] != pair[1]), "a symbol is listed twice")?;
        check(
            blocks.checked_mul(5).and_then(|n| n.checked_add(4)) == Some(r.bytes.len() - r.at),
            "directory size",
        )?;
        let offsets = (0..=blocks).map(|_| Ok(r.size(4)? * 4)).collect::<Result<Vec<_>, String>>()?;
        let widths = r.take(blocks)?.iter().map(|&m| usize::from(m)).collect::<Vec<_>>();
        check(widths.iter().all(|&m| m <= dtype.mantissa_bits()), "mantissa bits of a block")?;
        check(offsets[0] == 0 && offsets[blocks] == payload_len, "directory does not span the payload")?;
        check(offsets.windows(2).all(|pair| pair[0] <= pair[1]), "offsets do not ascend")?;
        let tile = (layout == 1).then_some(tile);
        let header = Header {
            payload_offset,
            payload_len,
            payload_hash,
            decoded_hash,
            dtype,
            normalised: transform == 2,
            shape,
            elements,
            tile,
            block_len,
            tiers,
            offsets,
            widths,
        };
        let (mut slot, mut counted) = (0, 0);
        while slot < elements && counted < blocks {
            slot += header.block_slots(slot);
            counted += 1;
        }
        check(slot == elements && counted == blocks, "number of blocks")?;
        Ok(header)
    }

    fn element_size(&self) -> usize {
        if self.dtype == Dtype::F32 { 4 } else { 2 }
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

    /// The dtype's bit pattern of a word.
    fn element(&self, word: u32) -> u32 {
        let (sign, exponent, mantissa) = (word >> 31, word >> 23 & 255, word & 0x7f_ffff);
        let word = match exponent {
            232..=254 if self.normalised => sign << 31 | (1 << 23 | mantissa) >> (255 - exponent),
            _ => word,
        };
        match self.dtype {
            Dtype::F32 => word,
            Dtype::Bf16 => word >> 16,
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
        }
    }
}

/// Reads a plane of `n` values of `width` bits.
fn read_plane(r: &mut Reader, width: usize, n: usize) -> Result<Vec<u8>, String> {
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
