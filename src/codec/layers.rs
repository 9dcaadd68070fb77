//! From a blob to one whose lower raw bits lie in layers of their own.

use rayon::prelude::*;

use crate::arch::{Scratch, Tables, split_record};
use crate::error::{Error, Result};
use crate::format::{ALIGN, Header, LAYER_ALIGN, MAX_LAYERS, Sections, Transform, payload_hash};

/// Blocks of which a thread takes the records apart at a time.
const CHUNK: usize = 32;

/// Takes `blob` apart: raw bits up to the first of `ends` stay in its records, those up to each further one, and in the
/// end all others, get a layer each. `None` if there are no bits beyond the first end, or the blob has no raw bits of
/// weights that are cut by precision: integers, codebooks, deltas.
///
/// The same weights come out at full depth, in the same order.
///
/// # Errors
/// The blob is corrupt, has layers already, or `ends` do not ascend, are none, or more than [`MAX_LAYERS`].
pub fn layer(blob: &[u8], ends: &[u8]) -> Result<Option<Vec<u8>>> {
    let header = Header::parse(blob)?;
    if ends.is_empty() || ends.len() > MAX_LAYERS || !ends.windows(2).all(|pair| pair[0] < pair[1]) {
        let message = format!("layers at {ends:?}: from 1 to {MAX_LAYERS} ascending numbers of bits wanted");
        return Err(Error::invalid(message));
    }
    if !header.layers.is_empty() {
        return Err(Error::invalid("a blob that has layers already"));
    }
    let most = header.widths.iter().copied().max().unwrap_or(0);
    let cut = matches!(header.transform, Transform::Split | Transform::NormalisedSplit | Transform::Grid);
    if !cut || ends[0] >= most {
        return Ok(None);
    }
    let ends: Vec<u8> = ends.iter().copied().filter(|&end| end < most).chain([most]).collect();
    let pieces = take_apart(blob, &header, &ends)?;
    let joined = |piece: usize| pieces.iter().flat_map(move |pieces| &pieces.bytes[piece]);
    let layers: Vec<Vec<u8>> = (1..ends.len()).map(|piece| joined(piece).copied().collect()).collect();
    let payload: Vec<u8> = joined(0).copied().collect();
    let sections = Sections {
        spec: header.spec.clone(),
        transform: header.transform,
        mantissa_bits: header.mantissa_bits,
        lossless: header.is_lossless(),
        block_len: header.block_len,
        tiers: header.tiers.clone(),
        widths: header.widths.clone(),
        units: header.units.clone(),
        units_of: header.units_of,
        delta: None,
        codebook: None,
        base_bits: ends[0],
        layers: ends[1..].iter().zip(&layers).map(|(&end, layer)| (end, payload_hash(layer))).collect(),
        sizes: pieces.iter().flat_map(|pieces| pieces.sizes.iter().copied()).collect(),
        payload_hash: payload_hash(&payload),
    };
    let mut out = sections.write();
    out.extend(payload);
    for layer in layers {
        out.resize(out.len().next_multiple_of(LAYER_ALIGN as usize), 0);
        out.extend(layer);
    }
    Ok(Some(out))
}

/// The most bytes by which [`layer`] makes a blob of so many blocks larger.
pub fn layers_bound(blocks: u64, ends: usize) -> u64 {
    // Pages that begin anew; the header's part; planes that are cut once more, and each block filled up.
    let each = LAYER_ALIGN + 16 + (ALIGN as u64 + 8) * blocks;
    ends as u64 * each
}

/// Consecutive records taken apart.
struct Pieces {
    /// Records first, then layers.
    bytes: Vec<Vec<u8>>,
    /// Of the records, in units of 4 bytes.
    sizes: Vec<u16>,
}

fn take_apart(blob: &[u8], header: &Header, ends: &[u8]) -> Result<Vec<Pieces>> {
    let tables = Tables::new(&header.tiers);
    let count = header.widths.len();
    (0..count.div_ceil(CHUNK))
        .into_par_iter()
        .map_init(Scratch::new, |scratch, chunk| {
            let mut pieces = Pieces { bytes: vec![Vec::new(); ends.len()], sizes: Vec::new() };
            for block in chunk * CHUNK..count.min((chunk + 1) * CHUNK) {
                let slots = header.blocks().slots(block as u64);
                let (m, n) = (header.widths[block], (slots.end - slots.start) as usize);
                let before = pieces.bytes[0].len();
                split_record(&tables, (&blob[header.record(block)], m, n), scratch, ends, &mut pieces.bytes)
                    .map_err(|_| Error::corrupt("the record of a block is damaged"))?;
                pieces.sizes.push(((pieces.bytes[0].len() - before) / ALIGN) as u16);
            }
            Ok(pieces)
        })
        .collect()
}
