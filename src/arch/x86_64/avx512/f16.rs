//! Words of float16 tensors to float16.

use std::arch::x86_64::*;

use super::elements::{opaque, order_of_halves, put};
use super::first::First;
use super::whole::Block;
use crate::arch::{BadRecord, Record, Tables};

#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn write_f16<const HEAD: u8, const HIGH: u8, const LOW: u8, const STREAM: bool, const KIND: u8>(
    tables: &Tables,
    record: &Record<'_>,
    first: First<'_>,
    out: &mut [u16],
) -> Result<(), BadRecord> {
    let block = Block::<HEAD, HIGH, LOW, KIND>::new(tables, record, first)?;
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
///
/// Without a branch: in tensors of small weights subnormals are too common to be foreseen, too rare for work of their own.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn f16_of(bytes: [__m512i; 3], arrange: impl Fn(__m512i) -> __m512i) -> [__m512i; 2] {
    let [exponents, heads, rest] = bytes;
    // The mantissa with its leading one, 11 bits, moves down by as many places as the exponent is below the smallest normal
    // float16's (a zero's by so many that nothing is left), and is added to the exponents above that one's. Infinities and
    // NaNs come to the largest exponent.
    let least = _mm512_set1_epi8(113);
    let places = _mm512_subs_epu8(least, exponents);
    let above = _mm512_min_epu8(_mm512_subs_epu8(exponents, least), _mm512_set1_epi8(30));
    // Shifts of 16 bits bring bits of the neighbour along, where masks or zeros are not in their way.
    let signs = _mm512_ternarylogic_epi64::<0xea>(
        _mm512_slli_epi16::<7>(heads),
        _mm512_set1_epi8(i8::MIN),
        _mm512_slli_epi16::<2>(above),
    ); // a & b | c
    let upper = _mm512_ternarylogic_epi64::<0xea>(
        _mm512_srli_epi16::<6>(heads),
        _mm512_set1_epi8(3),
        _mm512_set1_epi8(4),
    );
    let lower = _mm512_ternarylogic_epi64::<0xea>(
        _mm512_slli_epi16::<2>(heads),
        _mm512_set1_epi8(!7),
        _mm512_srli_epi16::<5>(rest),
    );
    let (places, signs) = (arrange(places), arrange(signs));
    let (lower, upper) = (arrange(lower), arrange(upper));
    [
        half(_mm512_unpacklo_epi8(lower, upper), _mm512_unpacklo_epi8(places, signs)),
        half(_mm512_unpackhi_epi8(lower, upper), _mm512_unpackhi_epi8(places, signs)),
    ]
}

/// Each mantissa moved down by what the lower byte of `more` says, and added to its upper one.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn half(mantissa: __m512i, more: __m512i) -> __m512i {
    let byte = _mm512_set1_epi16(0xff);
    let moved = _mm512_srlv_epi16(mantissa, _mm512_and_si512(more, byte));
    _mm512_add_epi16(moved, _mm512_andnot_si512(byte, more))
}
