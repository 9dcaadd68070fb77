//! aarch64: a decoder of its own for NEON, which every such processor has.

mod neon;

use super::{Backend, BadRecord, Record, Scratch, Store, Tables, generic, grid, layers, pack, words};

/// The backends of this architecture, best last.
pub(super) fn available() -> Vec<Backend> {
    vec![Backend {
        name: "neon",
        decode,
        encode: pack::encode,
        encode_halves: None,
        words: words::GENERIC,
        fused: None,
        delta: super::delta::decode,
    }]
}

fn decode(
    tables: &Tables,
    records: &[Record<'_>],
    scratch: &mut Scratch,
    words: &mut [u32],
    _: Store,
) -> Result<(), BadRecord> {
    generic::one_by_one(records, words, |record, words| {
        neon::decode(tables, record.bytes, record.m, scratch, words)?;
        layers::refine(record, scratch, words)?;
        if let Some(levels) = record.grid {
            grid::values(words, levels);
        }
        Ok(())
    })
}
