//! x86-64: the generic coder compiled for AVX2, and a decoder of its own for AVX-512.

mod avx512;

use super::{Backend, BadRecord, Scratch, Tables, generic, pack};

/// The backends that this processor can run, best last.
pub(super) fn available() -> Vec<Backend> {
    let mut out = Vec::new();
    if is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt")
    {
        out.push(Backend { name: "avx2", decode: avx2, encode: encode_avx2 });
        let has_avx512 = is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vbmi2")
            && is_x86_feature_detected!("avx512vpopcntdq");
        if has_avx512 {
            out.push(Backend { name: "avx512", decode: avx512, encode: encode_avx2 });
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

fn avx2(t: &Tables, record: &[u8], m: u8, s: &mut Scratch, words: &mut [u32]) -> Result<(), BadRecord> {
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
    // SAFETY: only `available` hands this function out, after it has seen these features.
    unsafe { compiled(t, record, m, s, words) }
}

fn avx512(t: &Tables, record: &[u8], m: u8, s: &mut Scratch, words: &mut [u32]) -> Result<(), BadRecord> {
    // SAFETY: only `available` hands this function out, after it has seen these features.
    unsafe { avx512::decode(t, record, m, s, words) }
}

fn encode_avx2(t: &Tables, words: &[u32], s: &mut Scratch, out: &mut Vec<u8>) -> u8 {
    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn compiled(t: &Tables, words: &[u32], s: &mut Scratch, out: &mut Vec<u8>) -> u8 {
        pack::encode_inline(t, words, s, out)
    }
    // SAFETY: only `available` hands this function out, after it has seen these features.
    unsafe { compiled(t, words, s, out) }
}
