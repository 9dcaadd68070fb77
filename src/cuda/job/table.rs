//! What of a header is put beside a blob in device memory.

use super::super::layout::{BlockEntry, SELECTOR_FACTORS, SELECTORS_SIZE};
use crate::format::{Header, Layer};

/// What four codes of 2 bits are looked up in: a half byte for each, the code or, of an escape, 4 and the escapes before it; from
/// bit 16 on the escapes, and from bit 24 on eight times as many.
fn selectors() -> Vec<u32> {
    let mut table = vec![0; SELECTORS_SIZE as usize / 4];
    for codes in 0..256u32 {
        let entry = (0..4).fold(0, |entry, i| {
            let (code, escapes) = (codes >> (2 * i) & 3, entry >> 16 & 255);
            if code == 3 { (entry | (4 + escapes) << (4 * i)) + 0x0801_0000 } else { entry | code << (4 * i) }
        });
        table[selector_of(codes)] = entry;
    }
    table
}

/// Where in the table four codes are, the first in the lowest bits: no two are in one place.
fn selector_of(codes: u32) -> usize {
    let factors = SELECTOR_FACTORS.to_le_bytes();
    (0..4).map(|i| (codes >> (2 * i) & 3) as usize * usize::from(factors[i])).sum()
}

/// The symbols of the first two tiers, with the lowest bit of each on top.
fn turned_symbols(header: &Header) -> impl Iterator<Item = u8> {
    header.tiers.iter().take(2).flat_map(|tier| {
        let mut four = [0; 4];
        for (turned, symbol) in four.iter_mut().zip(&tier.symbols) {
            *turned = symbol.rotate_right(1);
        }
        four
    })
}

/// The table's bytes, and where in them each part starts that is not at the front.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Blocks, what codes are looked up in, where blocks are in layers, codebooks, units, and the codebook of each unit.
    pub bytes: Vec<u8>,
    pub selectors: Option<u64>,
    pub layer_offsets: Option<u64>,
    pub books: Option<u64>,
    pub units: Option<u64>,
    pub groups: Option<u64>,
}

impl Table {
    /// That of the blob whose header is given, of which `depth` layers are read; `is_lean`: with what four codes are looked up in.
    pub fn new(header: &Header, depth: usize, blocks: &[BlockEntry], is_lean: bool) -> Self {
        let mut table = Table::of_blocks(blocks);
        if is_lean {
            table.selectors = Some(table.add(selectors().into_iter().flat_map(u32::to_le_bytes)));
            table.add(turned_symbols(header));
        }
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
        Table { bytes, selectors: None, layer_offsets: None, books: None, units: None, groups: None }
    }

    /// Adds bytes at the end; where they start.
    fn add(&mut self, bytes: impl Iterator<Item = u8>) -> u64 {
        let at = self.bytes.len() as u64;
        self.bytes.extend(bytes);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::{selector_of, selectors};

    #[test]
    fn codes_name_symbols_and_escapes_in_order() {
        let table = selectors();
        let of_codes = |codes| table[selector_of(codes)];
        assert_eq!(of_codes(0), 0);
        assert_eq!(of_codes(0b11_00_10_01), 0x0801_4021);
        assert_eq!(of_codes(0b11_01_11_11), 0x1803_6154);
        assert_eq!(of_codes(255), 0x2004_7654);
        let mut places: Vec<usize> = (0..256).map(selector_of).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!((places.len(), places[255] + 1), (256, table.len()));
    }
}
