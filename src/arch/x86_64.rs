//! x86-64: the generic decoder compiled for AVX2 and for AVX-512.

use super::{BadRecord, Backend, Scratch, Tables, generic};

/// The backends that this processor can run, best last.
pub(super) fn available() -> Vec<Backend> {
    let mut out = Vec::new();
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("popcnt") {
        out.push(Backend { name: "avx2", decode: avx2 });
        let avx512 = is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vbmi2");
        if avx512 {
            out.push(Backend { name: "avx512", decode: avx512_ });
        }
    }
    out
}

macro_rules! compiled_for {
    ($name:ident, $features:literal) => {
        fn $name(t: &Tables, record: &[u8], m: u8, s: &mut Scratch, words: &mut [u32]) -> Result<(), BadRecord> {
            #[target_feature(enable = $features)]
            fn with_features(
                t: &Tables,
                record: &[u8],
                m: u8,
                s: &mut Scratch,
                words: &mut [u32],
            ) -> Result<(), BadRecord> {
                generic::decode_inline(t, record, m, s, words)
            }
            // SAFETY: only `available` hands this function out, after it has seen all of these features.
            unsafe { with_features(t, record, m, s, words) }
        }
    };
}

compiled_for!(avx2, "avx2,bmi2,popcnt");
compiled_for!(avx512_, "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2");
