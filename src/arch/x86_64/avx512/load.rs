//! Loading elements as words where a processor has an instruction for it.

use std::arch::x86_64::*;

use crate::arch::words::load_inline;
use crate::format::Dtype;

/// As [`crate::arch::Backend::load`].
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(in crate::arch::x86_64) fn load(dtype: Dtype, src: &[u8], out: &mut [u32]) {
    if dtype != Dtype::F16 {
        return load_inline(dtype, src, out);
    }
    let (groups, rest) = out.as_chunks_mut::<16>();
    let (halves, tail) = src.split_at(groups.len() * 32);
    for (words, halves) in groups.iter_mut().zip(halves.as_chunks::<32>().0) {
        // SAFETY: both are 32 bytes.
        let halves = unsafe { _mm256_loadu_si256(halves.as_ptr().cast()) };
        let mut bits = _mm512_castps_si512(_mm512_cvtph_ps(halves));
        let special = _mm256_set1_epi16(31 << 10);
        let special = _mm256_cmpeq_epi16_mask(_mm256_and_si256(halves, special), special);
        if special != 0 {
            // The conversion makes NaNs quiet: the top bit of their mantissa is taken from the source.
            let wide = _mm512_slli_epi32::<13>(_mm512_cvtepu16_epi32(halves));
            let quiet = _mm512_set1_epi32(1 << 22);
            let cleared = _mm512_andnot_si512(quiet, bits);
            bits = _mm512_mask_or_epi32(bits, special, cleared, _mm512_and_si512(wide, quiet));
        }
        // SAFETY: both are 64 bytes.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), bits) };
    }
    load_inline(dtype, tail, rest);
}
