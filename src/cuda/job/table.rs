//! What of a header is put beside a blob in device memory.

use super::super::layout::BlockEntry;
use crate::format::Header;

/// The table's bytes, and where in them each part starts that is not at the front.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Blocks, codebooks, units, and the codebook of each unit.
    pub bytes: Vec<u8>,
    pub books: Option<u64>,
    pub units: Option<u64>,
    pub groups: Option<u64>,
}

impl Table {
    /// That of the blob whose header is given.
    pub fn new(header: &Header, blocks: &[BlockEntry]) -> Self {
        let mut table =
            Table { bytes: bytemuck::cast_slice(blocks).to_vec(), books: None, units: None, groups: None };
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

    /// Adds bytes at the end; where they start.
    fn add(&mut self, bytes: impl Iterator<Item = u8>) -> u64 {
        let at = self.bytes.len() as u64;
        self.bytes.extend(bytes);
        at
    }
}
