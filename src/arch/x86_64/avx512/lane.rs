//! Vectors of 64 bytes from and to slices.

use std::arch::x86_64::*;

use crate::arch::{BLOCK, BadRecord, PADDED};
use crate::format::plane_bytes;

/// Cuts the plane of `n` values of `width` bits off the front.
pub(super) fn take<'a>(planes: &mut &'a [u8], width: u8, n: usize) -> Result<&'a [u8], BadRecord> {
    let (plane, rest) = planes.split_at_checked(plane_bytes(width, n)).ok_or(BadRecord)?;
    *planes = rest;
    Ok(plane)
}

/// The first `n` of 64 lanes.
#[inline]
pub(super) fn lanes(n: usize) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

/// Up to 64 bytes of `bytes`, zeros behind them.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn load(bytes: &[u8]) -> __m512i {
    // SAFETY: the slice has 64 bytes, or the mask admits only its own.
    unsafe {
        match bytes.len() {
            64.. => _mm512_loadu_si512(bytes.as_ptr().cast()),
            n => _mm512_maskz_loadu_epi8(lanes(n), bytes.as_ptr().cast()),
        }
    }
}

/// As [`load`], without a branch.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn masked(bytes: &[u8]) -> __m512i {
    // SAFETY: the mask admits only the slice's bytes.
    unsafe { _mm512_maskz_loadu_epi8(lanes(bytes.len()), bytes.as_ptr().cast()) }
}

/// The 64 bytes of `bytes` from `at` on.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn load_at(bytes: &[u8; PADDED], at: usize) -> __m512i {
    let at = at.min(BLOCK);
    // SAFETY: `at` is at most BLOCK, and the array has 64 bytes behind that.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().add(at).cast()) }
}

/// Stores 64 bytes from `at` on.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn store_at(bytes: &mut [u8; PADDED], at: usize, v: __m512i) {
    let at = at.min(BLOCK);
    // SAFETY: `at` is at most BLOCK, and the array has 64 bytes behind that.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().add(at).cast(), v) }
}

/// Stores the first lanes of `v`, as many as `out` is long, at most 64.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn store(out: &mut [u8], v: __m512i) {
    // SAFETY: the slice has 64 bytes, or the mask admits only its own. (Masked stores are slow.)
    unsafe {
        match out.len() {
            64.. => _mm512_storeu_si512(out.as_mut_ptr().cast(), v),
            n => _mm512_mask_storeu_epi8(out.as_mut_ptr().cast(), lanes(n), v),
        }
    }
}

/// Up to 64 bits of a bitmap, zeros above them.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn bits_of(bytes: &[u8]) -> u64 {
    match bytes.first_chunk() {
        Some(word) => u64::from_le_bytes(*word),
        // SAFETY: the mask admits only the slice's bytes, at most 7.
        None => unsafe {
            _mm_cvtsi128_si64(_mm_maskz_loadu_epi8(lanes(bytes.len()) as u16, bytes.as_ptr().cast())) as u64
        },
    }
}

/// `v`, which is loaded before it is used: an expansion that takes its bytes from memory itself is slower by far than a
/// load and an expansion.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn in_register(mut v: __m512i) -> __m512i {
    // SAFETY: no instruction, but a vector register that the compiler cannot see through.
    unsafe { std::arch::asm!("/* {0} */", inout(zmm_reg) v, options(pure, nomem, nostack, preserves_flags)) };
    v
}
