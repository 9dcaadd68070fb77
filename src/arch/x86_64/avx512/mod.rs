//! AVX-512 with VBMI and VBMI2: 64 codes a table look-up, escapes filled in by a byte expand.
//!
//! Every function names all features: a closure inlines only into a function that has its features too.

mod bf16;
mod bitmaps;
mod delta;
mod elements;
mod encode;
mod f16;
mod first;
mod grid;
mod lane;
mod layers;
mod load;
mod lookup;
mod products;
mod ragged;
mod symbols;
mod whole;

/// Blocks of a multiple of so many weights are decoded in registers.
pub(super) const UNIT: usize = whole::GROUP;

use crate::arch::delta::{Bits, Sums};
use crate::arch::generic::one_by_one;
use crate::arch::{BadRecord, Half, Record, Scratch, Store, Tables};
use crate::format::Delta;

pub(super) use load::load;

/// Whether this processor has all the features that this room names.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("avx512vpopcntdq")
}

pub(super) fn decode(
    tables: &Tables,
    records: &[Record<'_>],
    scratch: &mut Scratch,
    words: &mut [u32],
    store: Store,
) -> Result<(), BadRecord> {
    if records.iter().all(|r| r.len.is_multiple_of(UNIT)) {
        // SAFETY: `available` hands this function out only if `is_available`.
        return unsafe { elements::words(tables, records, scratch, words, store) };
    }
    one_by_one(records, words, |record, words| {
        // SAFETY: as above.
        unsafe {
            ragged::decode(tables, record.bytes, record.m, scratch, words)?;
            layers::refine(record, scratch, words)?;
            if let Some(levels) = record.grid {
                grid::values(words, levels);
            }
        }
        Ok(())
    })
}

pub(super) fn decode_halves(
    tables: &Tables,
    records: &[Record<'_>],
    scratch: &mut Scratch,
    format: Half,
    out: &mut [u16],
    store: Store,
) -> Result<(), BadRecord> {
    // SAFETY: as in `decode`.
    unsafe { elements::halves(tables, records, scratch, format, out, store) }
}

pub(super) fn decode_delta(
    tables: &Tables,
    record: &[u8],
    delta: &Delta,
    bits: Bits,
    elements: &mut [u8],
    buffers: (&mut Scratch, &mut Sums),
) -> Result<(), BadRecord> {
    // SAFETY: as in `decode`.
    unsafe { delta::decode(tables, record, delta, bits, elements, buffers) }
}

pub(super) fn multiply_rows(
    tables: &Tables,
    records: &[Record<'_>],
    scratch: &mut Scratch,
    x: &[f32],
    y: &mut [f32],
) -> Result<(), BadRecord> {
    // SAFETY: as in `decode`.
    unsafe { products::rows(tables, records, scratch, x, y) }
}

pub(super) fn multiply_columns(
    tables: &Tables,
    records: &[Record<'_>],
    scratch: &mut Scratch,
    x: &[f32],
    y: &mut [f32],
) -> Result<(), BadRecord> {
    // SAFETY: as in `decode`.
    unsafe { products::columns(tables, records, scratch, x, y) }
}

pub(super) fn encode(
    tables: &Tables,
    words: &[u32],
    scratch: &mut Scratch,
    out: &mut [u8],
    ahead: &[u8],
) -> (u8, usize) {
    // SAFETY: as in `decode`.
    unsafe { encode::encode(tables, words, scratch, out, ahead) }
}

pub(super) fn encode_halves(
    tables: &Tables,
    format: Half,
    halves: &[u8],
    scratch: &mut Scratch,
    out: &mut [u8],
    ahead: &[u8],
) -> Option<(u8, usize)> {
    // SAFETY: as in `decode`.
    unsafe { encode::encode_halves(tables, format, halves, scratch, out, ahead) }
}
