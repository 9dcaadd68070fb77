//! Words of float16 tensors to float16: by moving bits of normal numbers, and slowly where others are among them.

use std::arch::x86_64::*;

use super::elements::{opaque, order_of_halves, put};
use super::first::First;
use super::grid;
use super::whole::Block;
use crate::arch::{BadRecord, Record, Tables};

#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn write_f16<const HEAD: u8, const HIGH: u8, const LOW: u8, const STREAM: bool>(
    tables: &Tables,
    record: &Record<'_>,
    first: First<'_>,
    out: &mut [u16],
) -> Result<(), BadRecord> {
    let block = Block::<HEAD, HIGH, LOW, { grid::NONE }>::new(tables, record, first)?;
    let order = opaque(&order_of_halves());
    let arrange = |v| _mm512_permutexvar_epi64(order, v);
    let (groups, _) = out.as_chunks_mut::<256>();
    block.for_groups(|group| {
        let (vectors, _) = groups[group.g].as_chunks_mut::<32>();
        let quarters = [
            f16_of(group.bytes::<0>(), arrange),
            f16_of(group.bytes::<1>(), arrange),
            f16_of(group.bytes::<2>(), arrange),
            f16_of(group.bytes::<3>(), arrange),
        ];
        for (to, &from) in vectors.iter_mut().zip(quarters.as_flattened()) {
            put::<STREAM>(to.as_mut_ptr().cast(), from);
        }
    });
    Ok(())
}

/// float16 of 64 words, given as the bytes that [`super::whole::Group::bytes`] says: two vectors, as `arrange` orders them.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn f16_of(bytes: [__m512i; 3], arrange: impl Fn(__m512i) -> __m512i) -> [__m512i; 2] {
    let [exponents, heads, rest] = bytes;
    // Between zero and the exponent of the smallest normal float16 (1 to 112), and from 65536 on (143 to 255: infinities and
    // NaNs), there is more to do than to move bits.
    let outside = _mm512_subs_epu8(_mm512_sub_epi8(exponents, _mm512_set1_epi8(113)), _mm512_set1_epi8(29));
    let rare = _mm512_min_epu8(outside, exponents);
    if _mm512_test_epi8_mask(rare, rare) != 0 {
        return any_f16_of(bytes.map(arrange));
    }
    let top = _mm512_set1_epi8(i8::MIN);
    // Shifts of 16 bits bring bits of the neighbour along, where masks or zeros are not in their way.
    let exponents = _mm512_slli_epi16::<2>(_mm512_subs_epu8(exponents, _mm512_set1_epi8(112)));
    let upper =
        _mm512_ternarylogic_epi64::<0xea>(_mm512_srli_epi16::<6>(heads), _mm512_set1_epi8(3), exponents);
    let upper = _mm512_ternarylogic_epi64::<0xea>(_mm512_slli_epi16::<7>(heads), top, upper); // a & b | c
    let keep = _mm512_set1_epi8(!7);
    let rest = _mm512_srli_epi16::<5>(rest);
    let lower = _mm512_ternarylogic_epi64::<0xea>(_mm512_slli_epi16::<2>(heads), keep, rest);
    let (lower, upper) = (arrange(lower), arrange(upper));
    [_mm512_unpacklo_epi8(lower, upper), _mm512_unpackhi_epi8(lower, upper)]
}

/// The same of any words, from bytes that are in order.
#[cold]
#[inline(never)]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn any_f16_of([exponents, heads, rest]: [__m512i; 3]) -> [__m512i; 2] {
    let sign = _mm512_set1_epi16(i16::MIN);
    let half = |upper: __m512i, lower: __m512i| {
        let upper = _mm512_shrdi_epi16::<1>(upper, upper);
        // From the exponent of the smallest normal float16 on, magnitudes are the word's, moved down; so is zero.
        let moved = _mm512_subs_epu16(_mm512_andnot_si512(sign, upper), _mm512_set1_epi16(112 << 7));
        let halves = _mm512_ternarylogic_epi64::<0xd8>(_mm512_shldi_epi16::<3>(moved, lower), upper, sign); // sign ? upper : rest
        mended_f16_of(upper, lower, halves)
    };
    let zero = _mm512_setzero_si512();
    [
        half(_mm512_unpacklo_epi8(heads, exponents), _mm512_unpacklo_epi8(zero, rest)),
        half(_mm512_unpackhi_epi8(heads, exponents), _mm512_unpackhi_epi8(zero, rest)),
    ]
}

/// The `halves` of 32 words, those mended that are subnormal, infinite or no number.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn mended_f16_of(upper: __m512i, lower: __m512i, halves: __m512i) -> __m512i {
    let magnitude = _mm512_andnot_si512(_mm512_set1_epi16(i16::MIN), upper);
    let exponent = _mm512_srli_epi16::<7>(magnitude);
    let mantissa = _mm512_shldi_epi16::<3>(_mm512_and_si512(upper, _mm512_set1_epi16(0x7f)), lower);
    let least = _mm512_set1_epi16(113);
    let subnormal = _mm512_cmplt_epu16_mask(exponent, least) & _mm512_test_epi16_mask(magnitude, magnitude);
    let shifted = _mm512_srlv_epi16(
        _mm512_or_si512(mantissa, _mm512_set1_epi16(1 << 10)),
        _mm512_sub_epi16(least, exponent),
    );
    let special = _mm512_cmpge_epu16_mask(exponent, _mm512_set1_epi16(143));
    let maximal = _mm512_or_si512(mantissa, _mm512_set1_epi16(31 << 10));
    let sign = _mm512_and_si512(upper, _mm512_set1_epi16(i16::MIN));
    let mended = masked_or(halves, subnormal, shifted, sign);
    masked_or(mended, special, maximal, sign)
}

/// `a | b` in the lanes of `mask`, `rest` in the others.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn masked_or(rest: __m512i, mask: u32, a: __m512i, b: __m512i) -> __m512i {
    _mm512_mask_mov_epi16(rest, mask, _mm512_or_si512(a, b))
}
