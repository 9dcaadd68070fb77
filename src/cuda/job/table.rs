//! What of a header is put beside a blob in device memory.

use super::super::layout::BlockEntry;
use crate::format::{Header, Layer};

/// The table's bytes, and where in them each part starts that is not at the front.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Blocks, where they are in layers, codebooks, units, and the codebook of each unit.
    pub bytes: Vec<u8>,
    pub layer_offsets: Option<u64>,
    pub books: Option<u64>,
    pub units: Option<u64>,
    pub groups: Option<u64>,
}

impl Table {
    /// That of the blob whose header is given, of which `depth` layers are read.
    pub fn new(header: &Header, depth: usize, blocks: &[BlockEntry]) -> Self {
        let mut table = Table::of_blocks(blocks);
        if depth > 0 {
            let count = blocks.len() - 1;
            let place = |block: usize, layer: &Layer| match block.checked_sub(count) {
                None => layer.block(block).start,
                Some(_) => layer.range().end,
            };
            let layers = &header.layers[..depth];
            let offsets = (0..=count).flat_map(|block| {
                layers.iter().map(move |layer| ((place(block, layer) as u64 - layer.start) / 4) as u32)
            });
            table.layer_offsets = Some(table.add(offsets.flat_map(u32::to_le_bytes)));
        }
        if let Some(codebook) = &header.codebook {
            let values = codebook.tables.iter().flatten();
            table.books = Some(table.add(values.flat_map(|value| value.to_le_bytes())));
        }
        if !header.units.is_empty() {
            table.units = Some(table.add(header.units.iter().flat_map(|unit| unit.bits().to_le_bytes())));
        }
        if let Some(codebook) = &header.codebook {
            // One that all have is not in the header.
            let groups = (0..header.units.len()).map(|unit| codebook.groups.get(unit).copied().unwrap_or(0));
            table.groups = Some(table.add(groups));
        }
        table
    }

    /// That of blocks alone.
    pub fn of_blocks(blocks: &[BlockEntry]) -> Self {
        let bytes = bytemuck::cast_slice(blocks).to_vec();
        Table { bytes, layer_offsets: None, books: None, units: None, groups: None }
    }

    /// Adds bytes at the end; where they start.
    fn add(&mut self, bytes: impl Iterator<Item = u8>) -> u64 {
        let at = self.bytes.len() as u64;
        self.bytes.extend(bytes);
        at
    }
}
