//! How slots (weights in stored order) fall into tiles and blocks.

use std::ops::Range;

use super::{Layout, TensorSpec};
use crate::error::{Error, Result};

/// The map between slots, blocks and the tiles that blocks do not cross.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    len: u64,
    elements: u64,
    tile_slots: u64,
    blocks_per_tile: u64,
    count: u64,
}

impl Blocks {
    /// # Errors
    /// Shape, layout and block length do not go together.
    pub fn new(spec: &TensorSpec, block_len: u32) -> Result<Self> {
        let elements = spec.elements()?;
        let len = u64::from(block_len);
        if block_len == 0 || !block_len.is_multiple_of(64) || block_len > super::MAX_BLOCK {
            return Err(Error::invalid(format!(
                "block length {block_len} is not a multiple of 64 from 64 to {}",
                super::MAX_BLOCK
            )));
        }
        let tile_slots = match spec.layout {
            Layout::RowMajor => elements,
            Layout::ColumnTiles { tile } => {
                let &[k, n] = spec.shape.as_slice() else {
                    return Err(Error::invalid(format!(
                        "column tiles need a matrix, not shape {:?}",
                        spec.shape
                    )));
                };
                if tile == 0 || !tile.is_multiple_of(64) {
                    return Err(Error::invalid(format!(
                        "tile width {tile} is not a positive multiple of 64"
                    )));
                }
                k * n.min(u64::from(tile))
            }
        };
        let (full, last) = (elements / tile_slots, elements % tile_slots);
        let blocks_per_tile = tile_slots.div_ceil(len);
        let count = full * blocks_per_tile + last.div_ceil(len);
        Ok(Blocks { len, elements, tile_slots, blocks_per_tile, count })
    }

    /// Number of blocks.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Number of weights.
    pub fn elements(&self) -> u64 {
        self.elements
    }

    /// The slots of block `block`.
    pub fn slots(&self, block: u64) -> Range<u64> {
        let tile = block / self.blocks_per_tile;
        let tile_start = tile * self.tile_slots;
        let tile_end = (tile_start + self.tile_slots).min(self.elements);
        let start = tile_start + block % self.blocks_per_tile * self.len;
        start..(start + self.len).min(tile_end)
    }

    /// The block in which `slot` lies.
    pub fn block_of(&self, slot: u64) -> u64 {
        slot / self.tile_slots * self.blocks_per_tile + slot % self.tile_slots / self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Dtype;

    fn covers(spec: &TensorSpec, len: u32) {
        let blocks = Blocks::new(spec, len).unwrap();
        let mut next = 0;
        for b in 0..blocks.count() {
            let slots = blocks.slots(b);
            assert_eq!(slots.start, next);
            assert!(slots.end > slots.start && slots.end - slots.start <= u64::from(len));
            assert_eq!(blocks.block_of(slots.start), b);
            assert_eq!(blocks.block_of(slots.end - 1), b);
            next = slots.end;
        }
        assert_eq!(next, spec.elements().unwrap());
    }

    #[test]
    fn blocks_cover_every_slot_once() {
        for len in [64, 256, 4096] {
            covers(&TensorSpec::row_major(Dtype::F32, &[7, 333]), len);
            covers(&TensorSpec::row_major(Dtype::F32, &[1]), len);
            for (k, n) in [(33, 500), (1, 64), (100, 128), (5, 1)] {
                covers(&TensorSpec::column_tiles(Dtype::F32, k, n, 128), len);
            }
        }
    }
}
