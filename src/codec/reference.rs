//! The reference decoder: the blob format as a program.
//!
//! It reads `docs/format.md` aloud, one value at a time, and shares nothing with the decoder that runs in
//! ONNX Runtime but the hash function. Where the two differ, this one is right.

mod header;
mod layers;
mod reader;
mod record;
mod value;

use xxhash_rust::xxh3::xxh3_64;

use header::Header;
use reader::Reader;
use record::read_plane;

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
