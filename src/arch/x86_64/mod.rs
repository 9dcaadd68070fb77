//! x86-64: decoders of its own for AVX2 and AVX-512, and the generic encoder compiled for AVX2.

mod avx2;
mod avx512;
pub(super) mod dense;

use super::delta::{Bits, Sums};
use super::words::{self, JointCounts, Kinds, Unions, WordLoops};
use super::{
    Backend, BadRecord, ExponentCounts, Extent, Fused, Grid, Half, Products, Record, Scratch, Store, Tables,
    exponents, generic, grid, layers, pack,
};
use crate::format::{Delta, Dtype, Unit};

/// The backends that this processor can run, best last.
pub(super) fn available() -> Vec<Backend> {
    let mut out = Vec::new();
    if is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt")
    {
        out.push(Backend {
            name: "avx2",
            decode: avx2,
            encode: encode_avx2,
            encode_halves: None,
            words: AVX2_WORDS,
            fused: Some(Fused { unit: avx2::WHOLE, grids: false, halves: avx2_halves, products: None }),
            delta: delta_avx2,
        });
        if avx512::is_available() {
            out.push(Backend {
                name: "avx512",
                decode: avx512::decode,
                encode: avx512::encode,
                encode_halves: Some(avx512::encode_halves),
                words: AVX512_WORDS,
                fused: Some(Fused {
                    unit: avx512::UNIT,
                    grids: true,
                    halves: avx512::decode_halves,
                    products: Some(Products {
                        rows: avx512::multiply_rows,
                        columns: avx512::multiply_columns,
                    }),
                }),
                delta: avx512::decode_delta,
            });
        }
    }
    out
}

/// Asks for `count` lines of 64 bytes from line `first` of `bytes` on, whether it has as many or not.
#[inline]
fn prefetch_lines(bytes: &[u8], first: usize, count: usize) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    let start = bytes.as_ptr().wrapping_add(first * 64);
    for line in 0..count {
        // SAFETY: a prefetch of any address is harmless; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(line * 64).cast()) };
    }
}

/// As [`super::prefetch`]: into the nearest cache.
pub(super) fn prefetch(bytes: &[u8]) {
    prefetch_lines(bytes, 0, bytes.len().div_ceil(64));
}

/// As [`super::fence`].
pub(super) fn fence() {
    // SAFETY: SSE is part of x86-64.
    unsafe { std::arch::x86_64::_mm_sfence() };
}

fn avx2(
    tables: &Tables,
    records: &[Record<'_>],
    scratch: &mut Scratch,
    words: &mut [u32],
    store: Store,
) -> Result<(), BadRecord> {
    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn values(words: &mut [u32], levels: Grid<'_>) {
        grid::values_inline(words, levels);
    }
    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn refine(record: &Record<'_>, scratch: &mut Scratch, words: &mut [u32]) -> Result<(), BadRecord> {
        layers::refine_inline(record, scratch, words)
    }
    generic::one_by_one(records, words, |record, words| {
        // Words that are gone over once more had better be in the cache.
        let again = record.grid.is_some() || record.layers.is_some();
        let store = if again { Store::Cached } else { store };
        // SAFETY: only `available` hands this function out, after it has seen these features.
        unsafe {
            avx2::decode(tables, record, scratch, words, store)?;
            refine(record, scratch, words)?;
            if let Some(levels) = record.grid {
                values(words, levels);
            }
        }
        Ok(())
    })
}

fn avx2_halves(
    tables: &Tables,
    records: &[Record<'_>],
    scratch: &mut Scratch,
    format: Half,
    out: &mut [u16],
    store: Store,
) -> Result<(), BadRecord> {
    generic::one_by_one(records, out, |record, out| {
        // SAFETY: only `available` hands this function out, after it has seen these features.
        unsafe { avx2::decode_halves(tables, record, scratch, format, out, store) }
    })
}

fn delta_avx2(
    tables: &Tables,
    record: &[u8],
    delta: &Delta,
    bits: Bits,
    elements: &mut [u8],
    buffers: (&mut Scratch, &mut Sums),
) -> Result<(), BadRecord> {
    // SAFETY: only `available` hands this function out, after it has seen these features.
    unsafe { avx2::delta::decode(tables, record, delta, bits, elements, buffers) }
}

fn encode_avx2(t: &Tables, words: &[u32], s: &mut Scratch, out: &mut [u8], _: &[u8]) -> (u8, usize) {
    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn compiled(t: &Tables, words: &[u32], s: &mut Scratch, out: &mut [u8]) -> (u8, usize) {
        pack::encode_inline(t, words, s, out)
    }
    // SAFETY: only `available` hands this function out, after it has seen these features.
    unsafe { compiled(t, words, s, out) }
}

/// The loops over words, compiled with these features.
macro_rules! word_loops {
    ($features:literal, $load:path) => {{
        fn load(dtype: Dtype, src: &[u8], out: &mut [u32]) {
            #[target_feature(enable = $features)]
            fn compiled(dtype: Dtype, src: &[u8], out: &mut [u32]) {
                $load(dtype, src, out);
            }
            // SAFETY: only `available` hands this function out, after it has seen these features.
            unsafe { compiled(dtype, src, out) }
        }
        fn store(dtype: Dtype, words: &[u32], out: &mut [u8]) {
            #[target_feature(enable = $features)]
            fn compiled(dtype: Dtype, words: &[u32], out: &mut [u8]) {
                words::store_inline(dtype, words, out);
            }
            // SAFETY: as above.
            unsafe { compiled(dtype, words, out) }
        }
        fn round(words: &mut [u32], k: u8, dtype: Dtype) -> bool {
            #[target_feature(enable = $features)]
            fn compiled(words: &mut [u32], k: u8, dtype: Dtype) -> bool {
                words::round_inline(words, k, dtype)
            }
            // SAFETY: as above.
            unsafe { compiled(words, k, dtype) }
        }
        fn normalise(words: &mut [u32]) {
            #[target_feature(enable = $features)]
            fn compiled(words: &mut [u32]) {
                words::normalise_inline(words);
            }
            // SAFETY: as above.
            unsafe { compiled(words) }
        }
        fn denormalise(words: &mut [u32]) {
            #[target_feature(enable = $features)]
            fn compiled(words: &mut [u32]) {
                words::denormalise_inline(words);
            }
            // SAFETY: as above.
            unsafe { compiled(words) }
        }
        fn kinds(words: &[u32]) -> Kinds {
            #[target_feature(enable = $features)]
            fn compiled(words: &[u32]) -> Kinds {
                words::kinds_inline(words)
            }
            // SAFETY: as above.
            unsafe { compiled(words) }
        }
        fn count(words: &[u32], counts: &mut JointCounts) -> Unions {
            #[target_feature(enable = $features)]
            fn compiled(words: &[u32], counts: &mut JointCounts) -> Unions {
                words::count_inline(words, counts)
            }
            // SAFETY: as above.
            unsafe { compiled(words, counts) }
        }
        fn count_exponents(words: &[u32], counts: &mut ExponentCounts) -> Unions {
            #[target_feature(enable = $features)]
            fn compiled(words: &[u32], counts: &mut ExponentCounts) -> Unions {
                exponents::words_inline(words, counts)
            }
            // SAFETY: as above.
            unsafe { compiled(words, counts) }
        }
        fn count_half_exponents(format: Half, halves: &[u8], counts: &mut ExponentCounts) -> Unions {
            #[target_feature(enable = $features)]
            fn compiled(format: Half, halves: &[u8], counts: &mut ExponentCounts) -> Unions {
                exponents::halves_inline(format, halves, counts)
            }
            // SAFETY: as above.
            unsafe { compiled(format, halves, counts) }
        }
        fn extent(words: &[u32]) -> Extent {
            #[target_feature(enable = $features)]
            fn compiled(words: &[u32]) -> Extent {
                grid::extent_inline(words)
            }
            // SAFETY: as above.
            unsafe { compiled(words) }
        }
        fn levels(words: &mut [u32], unit: Unit, k: u8) {
            #[target_feature(enable = $features)]
            fn compiled(words: &mut [u32], unit: Unit, k: u8) {
                grid::levels_inline(words, unit, k);
            }
            // SAFETY: as above.
            unsafe { compiled(words, unit, k) }
        }
        WordLoops {
            load,
            store,
            round,
            normalise,
            denormalise,
            kinds,
            count,
            count_exponents,
            count_half_exponents,
            extent,
            levels,
        }
    }};
}

const AVX2_WORDS: WordLoops = word_loops!("avx2,bmi2,popcnt", words::load_inline);
const AVX512_WORDS: WordLoops = word_loops!(
    "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq",
    avx512::load
);
