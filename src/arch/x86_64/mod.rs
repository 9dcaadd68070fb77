//! x86-64: the generic coder compiled for AVX2, and a decoder of its own for AVX-512.

mod avx512;

use super::{Backend, BadRecord, Fused, Record, Scratch, Store, Tables, generic, pack};

/// The backends that this processor can run, best last.
pub(super) fn available() -> Vec<Backend> {
    let mut out = Vec::new();
    if is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt")
    {
        out.push(Backend { name: "avx2", decode: avx2, encode: encode_avx2, fused: None });
        if avx512::is_available() {
            let fused = Fused {
                unit: avx512::UNIT,
                halves: avx512::decode_halves,
                rows: avx512::multiply_rows,
                columns: avx512::multiply_columns,
            };
            let (decode, encode) = (avx512::decode, encode_avx2);
            out.push(Backend { name: "avx512", decode, encode, fused: Some(fused) });
        }
    }
    out
}

/// As [`super::prefetch`]: into the nearest cache.
pub(super) fn prefetch(bytes: &[u8]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for line in bytes.chunks(64) {
        // SAFETY: a prefetch of any address is harmless; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
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
    _: Store,
) -> Result<(), BadRecord> {
    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn compiled(
        t: &Tables,
        record: &[u8],
        m: u8,
        s: &mut Scratch,
        words: &mut [u32],
    ) -> Result<(), BadRecord> {
        generic::decode_inline(t, record, m, s, words)
    }
    generic::one_by_one(records, words, |record, words| {
        // SAFETY: only `available` hands this function out, after it has seen these features.
        unsafe { compiled(tables, record.bytes, record.m, scratch, words) }
    })
}

fn encode_avx2(t: &Tables, words: &[u32], s: &mut Scratch, out: &mut Vec<u8>) -> u8 {
    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn compiled(t: &Tables, words: &[u32], s: &mut Scratch, out: &mut Vec<u8>) -> u8 {
        pack::encode_inline(t, words, s, out)
    }
    // SAFETY: only `available` hands this function out, after it has seen these features.
    unsafe { compiled(t, words, s, out) }
}
