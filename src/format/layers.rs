//! Layers: the lower raw bits of all weights, apart from the records, so that a reader can leave them where they are.

use super::{Blocks, field_planes, plane_bytes};
use crate::error::{Error, Result};

/// Layers start at multiples of this many bytes from the start of the blob: pages that nobody reads stay on the disk.
pub(crate) const LAYER_ALIGN: u64 = 4096;
/// The most layers of a blob.
pub const MAX_LAYERS: usize = 3;
/// Bytes of a layer in the header.
pub(super) const LAYER_ENTRY: usize = 9;

/// A layer of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Raw bits, beside the sign, that a weight has with this layer and those before it.
    pub bits: u8,
    /// Where it starts, counted from the start of the blob.
    pub start: u64,
    /// XXH3-64 of its bytes.
    pub hash: u64,
    /// Where each block's planes start in it, and its end, in units of 4 bytes.
    offsets: Vec<u32>,
}

impl Layer {
    /// The bytes of all blocks, counted from the start of the blob.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.start as usize..self.end() as usize
    }

    /// The bytes of block `block`, counted from the start of the blob.
    pub fn block(&self, block: usize) -> std::ops::Range<usize> {
        let at = |i: usize| self.start as usize + self.offsets[i] as usize * super::ALIGN;
        at(block)..at(block + 1)
    }

    /// Where it ends.
    pub fn end(&self) -> u64 {
        self.start + u64::from(self.offsets.last().copied().unwrap_or(0)) * super::ALIGN as u64
    }
}

/// The planes of the raw bits `from..to`, counted from the top, in the order in which a block has them: for each its
/// width and the place in a word of its lowest bit. No plane crosses from one byte's bits to the next's, as they are where
/// a record has head and rest.
pub fn layer_planes(from: u8, to: u8) -> impl Iterator<Item = (u8, u8)> {
    [(0, 7), (7, 15), (15, 23)].into_iter().flat_map(move |(first, end)| {
        let (mut at, end) = (from.max(first), to.min(end));
        field_planes(end.saturating_sub(at)).map(move |width| {
            at += width;
            (width, 23 - at)
        })
    })
}

/// Bytes of a block of `n` weights in a layer that has their raw bits `from..to`.
fn layer_block_bytes(n: usize, from: u8, to: u8) -> usize {
    let planes = layer_planes(from, to).map(|(width, _)| plane_bytes(width, n)).sum::<usize>();
    planes.next_multiple_of(super::ALIGN)
}

/// Where the layers of a blob are whose records end at `end`. `bits` and hash of each are given, and the raw bits of
/// records and blocks.
///
/// # Errors
/// Bits do not ascend, or a layer would be of over 16 GiB.
pub(super) fn place(
    blocks: &Blocks,
    widths: &[u8],
    base_bits: u8,
    entries: &[(u8, u64)],
    mut end: u64,
) -> Result<Vec<Layer>> {
    let (mut layers, mut from) = (Vec::new(), base_bits);
    for &(bits, hash) in entries {
        if bits <= from {
            return Err(Error::corrupt(format!("a layer up to {bits} raw bits above {from}")));
        }
        let (mut at, mut offsets) = (0u32, vec![0]);
        for (block, &m) in widths.iter().enumerate() {
            let slots = blocks.slots(block as u64);
            let n = (slots.end - slots.start) as usize;
            let size = layer_block_bytes(n, from.min(m), bits.min(m)) / super::ALIGN;
            at = at.checked_add(size as u32).ok_or_else(|| Error::corrupt("a layer of over 16 GiB"))?;
            offsets.push(at);
        }
        let layer = Layer { bits, start: end.next_multiple_of(LAYER_ALIGN), hash, offsets };
        end = layer.end();
        layers.push(layer);
        from = bits;
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_of_layers_keep_to_bytes_and_cover_their_bits() {
        for (from, to) in (0..=23).flat_map(|from| (from..=23).map(move |to| (from, to))) {
            let mut bits = 0u32;
            for (width, shift) in layer_planes(from, to) {
                let plane = ((1u32 << width) - 1) << shift;
                assert_eq!(bits & plane, 0);
                bits |= plane;
                let byte = |bit: u8| if bit >= 16 { 2 } else { bit / 8 };
                assert_eq!(byte(shift), byte(shift + width - 1));
            }
            assert_eq!(bits, (0x7f_ffffu32 >> from) & !(0x7f_ffffu32 >> to), "{from}..{to}");
        }
        assert_eq!(layer_planes(3, 12).collect::<Vec<_>>(), [(4, 16), (4, 12), (1, 11)]);
    }
}
