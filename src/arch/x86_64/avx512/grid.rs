//! Levels of a uniform grid to values, in registers.

use std::arch::x86_64::*;

use super::first::First;
use super::lane::load;
use crate::arch::{Grid, Record, Step, Values, grid};
use crate::format::Dtype;

/// As [`grid::values`].
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn values(words: &mut [u32], grid: Grid<'_>) {
    grid::values_inline(words, grid);
}

/// The words of the values that words stand for, as float32: not yet rounded to the dtype.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn values_of_words(step: Step, words: [__m512i; 4]) -> [__m512i; 4] {
    let (centre, scale) = (_mm512_set1_epi32(step.centre as i32), _mm512_set1_ps(step.scale));
    let [a, b, c, d] = words;
    [value(a, centre, scale), value(b, centre, scale), value(c, centre, scale), value(d, centre, scale)]
}

/// The words of the values of a codebook that words stand for.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn values_of_codebook(table: &Values, step: Step, words: [__m512i; 4]) -> [__m512i; 4] {
    let (quarters, _) = table.values.as_chunks::<16>();
    // SAFETY: each quarter has 16 floats.
    let load = |i: usize| unsafe { _mm512_loadu_ps(quarters[i].as_ptr()) };
    let halves = [[load(0), load(1)], [load(2), load(3)]];
    let scale = _mm512_set1_ps(step.scale);
    let [a, b, c, d] = words;
    [
        looked_up(a, halves, scale),
        looked_up(b, halves, scale),
        looked_up(c, halves, scale),
        looked_up(d, halves, scale),
    ]
}

#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn looked_up(words: __m512i, [plus, minus]: [[__m512; 2]; 2], scale: __m512) -> __m512i {
    // Five bits of the symbols: the permutations do not look at more.
    let places = _mm512_srli_epi32::<23>(words);
    let positive = _mm512_permutex2var_ps(plus[0], places, plus[1]);
    let negative = _mm512_permutex2var_ps(minus[0], places, minus[1]);
    let values =
        _mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(words, _mm512_setzero_si512()), positive, negative);
    _mm512_castps_si512(_mm512_mul_ps(values, scale))
}

/// As [`values_of_codebook`], of 64 places in a codebook: of the bytes' order, in that of unpacked words.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn values_of_places(table: &Values, step: Step, places: __m512i) -> [__m512i; 4] {
    let [low, middle, high] = &table.bytes;
    let bytes = |table: &[u8; 64]| _mm512_permutexvar_epi8(places, load(table));
    let (low, middle, high, zero) = (bytes(low), bytes(middle), bytes(high), _mm512_setzero_si512());
    let (lower_a, lower_b) = (_mm512_unpacklo_epi8(zero, low), _mm512_unpackhi_epi8(zero, low));
    let (upper_a, upper_b) = (_mm512_unpacklo_epi8(middle, high), _mm512_unpackhi_epi8(middle, high));
    let scale = _mm512_set1_ps(step.scale);
    let scaled = |values| _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(values), scale));
    [
        scaled(_mm512_unpacklo_epi16(lower_a, upper_a)),
        scaled(_mm512_unpackhi_epi16(lower_a, upper_a)),
        scaled(_mm512_unpacklo_epi16(lower_b, upper_b)),
        scaled(_mm512_unpackhi_epi16(lower_b, upper_b)),
    ]
}

/// Whether [`values_of_halves`] is for levels with this step.
#[inline]
pub(super) fn has_halves(step: Step) -> bool {
    step.centre >= 1 << 16 && step.centre & 0xffff == 0
}

/// The same of words whose lower halves are zero, from the upper ones, for centred levels. Those fit 16 bits, with
/// their centre, and are never zero: as integers above 2^15, and put below the 2^23 of a float, they need no conversion.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn values_of_halves(step: Step, upper: [__m512i; 2]) -> [__m512i; 4] {
    let (scale, offset) = scale_of_halves(step);
    let (magnitude, centre) = (_mm512_set1_epi16(i16::MAX), (step.centre >> 16) as i16 | i16::MIN);
    let float = _mm512_set1_epi16(0x4b00);
    let [low, high] = upper;
    let (low, high) = (above(low, magnitude, centre), above(high, magnitude, centre));
    [
        scaled(_mm512_unpacklo_epi16(low, float), scale, offset),
        scaled(_mm512_unpackhi_epi16(low, float), scale, offset),
        scaled(_mm512_unpacklo_epi16(high, float), scale, offset),
        scaled(_mm512_unpackhi_epi16(high, float), scale, offset),
    ]
}

/// What levels above 2^23 + 2^15, taken as floats, are multiplied with, and what is added then.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn scale_of_halves(step: Step) -> (__m512, __m512) {
    let scale = step.scale * 65536.0;
    // 9 bits times the 8 of a unit: exact, and so is all that follows.
    (_mm512_set1_ps(scale), _mm512_set1_ps(-((1 << 23) + (1 << 15)) as f32 * scale))
}

/// The words with these upper halves and lower halves of zero: of each vector first those at even places, then the others.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn pairs_of([low, high]: [__m512i; 2]) -> [__m512i; 4] {
    let odd = _mm512_set1_epi32(!0xffff);
    [
        _mm512_slli_epi32::<16>(low),
        _mm512_and_si512(low, odd),
        _mm512_slli_epi32::<16>(high),
        _mm512_and_si512(high, odd),
    ]
}

/// As [`values_of_halves`], in the order of [`pairs_of`].
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn values_of_pairs(step: Step, upper: [__m512i; 2]) -> [__m512i; 4] {
    let (scale, offset) = scale_of_halves(step);
    let (magnitude, centre) = (_mm512_set1_epi16(i16::MAX), (step.centre >> 16) as i16 | i16::MIN);
    let (mask, float) = (_mm512_set1_epi32(0xffff), _mm512_set1_epi32(0x4b00_0000));
    let [low, high] = upper;
    let (low, high) = (above(low, magnitude, centre), above(high, magnitude, centre));
    [
        scaled(_mm512_ternarylogic_epi64::<0xea>(low, mask, float), scale, offset), // low & mask | float
        scaled(_mm512_or_si512(_mm512_srli_epi32::<16>(low), float), scale, offset),
        scaled(_mm512_ternarylogic_epi64::<0xea>(high, mask, float), scale, offset),
        scaled(_mm512_or_si512(_mm512_srli_epi32::<16>(high), float), scale, offset),
    ]
}

/// The bfloat16 elements nearest to values in the order of [`pairs_of`].
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn bf16_of_pairs([even_a, odd_a, even_b, odd_b]: [__m512i; 4]) -> [__m512i; 2] {
    let pair = |even, odd| {
        let even = _mm512_srli_epi32::<16>(rounded_up(even));
        _mm512_mask_mov_epi16(even, 0xaaaa_aaaa, rounded_up(odd))
    };
    [pair(even_a, odd_a), pair(even_b, odd_b)]
}

/// 2^15 and the level of each half.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn above(halves: __m512i, magnitude: __m512i, centre: i16) -> __m512i {
    // halves & magnitude | centre: 2^15 and the magnitude; taken from 2^16 if it is negative.
    let level = _mm512_ternarylogic_epi64::<0xea>(halves, magnitude, _mm512_set1_epi16(centre));
    _mm512_mask_sub_epi16(level, _mm512_movepi16_mask(halves), _mm512_setzero_si512(), level)
}

#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn scaled(levels: __m512i, scale: __m512, offset: __m512) -> __m512i {
    _mm512_castps_si512(_mm512_fmadd_ps(_mm512_castsi512_ps(levels), scale, offset))
}

#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn value(words: __m512i, centre: __m512i, scale: __m512) -> __m512i {
    let magnitude = _mm512_set1_epi32(i32::MAX);
    let levels = _mm512_ternarylogic_epi64::<0xea>(words, magnitude, centre); // words & magnitude | centre
    let values = _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtepi32_ps(levels), scale));
    _mm512_ternarylogic_epi64::<0xba>(words, magnitude, values) // words & !magnitude | values
}

/// Kinds of blocks, for code of their own: on no grid, and on one with values of these dtypes; each with raw bits in layers;
/// and such as are common, without layers, whose tier 0 has codes of 2 bits, or of 1.
pub(super) const NONE: u8 = 0;
pub(super) const F32: u8 = 1;
pub(super) const F16: u8 = 2;
pub(super) const BF16: u8 = 3;
pub(super) const LAYERED: u8 = 4;
pub(super) const LAYERED_F32: u8 = LAYERED | F32;
pub(super) const LAYERED_F16: u8 = LAYERED | F16;
pub(super) const LAYERED_BF16: u8 = LAYERED | BF16;
pub(super) const PAIRS: u8 = 8;
pub(super) const MARKS: u8 = 16;
pub(super) const NONE_PAIRS: u8 = NONE | PAIRS;
pub(super) const F32_MARKS: u8 = F32 | MARKS;
/// The bits of a kind that say which dtype its grid has.
pub(super) const ON_GRID: u8 = 3;

/// The kind of a record with these symbols, and the mantissa bits of its words.
pub(super) fn kind(record: &Record<'_>, first: &First<'_>) -> (u8, u8) {
    let kind = match record.grid.map(|grid| grid.dtype) {
        None => NONE,
        Some(Dtype::F32 | Dtype::U8 | Dtype::I8) => F32,
        Some(Dtype::F16) => F16,
        Some(Dtype::Bf16) => BF16,
    };
    match &record.layers {
        None => match (kind, first.codes()) {
            (NONE, PAIRS) => (NONE_PAIRS, record.m),
            (F32, MARKS) => (F32_MARKS, record.m),
            _ => (kind, record.m),
        },
        Some(layers) => (kind | LAYERED, layers.bits(record.m)),
    }
}

/// Rounds values to the dtype of a kind.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn rounded<const KIND: u8>(values: [__m512i; 4]) -> [__m512i; 4] {
    let [a, b, c, d] = values;
    match KIND & ON_GRID {
        F16 => [through_f16(a), through_f16(b), through_f16(c), through_f16(d)],
        BF16 => [round_to_bf16(a), round_to_bf16(b), round_to_bf16(c), round_to_bf16(d)],
        _ => values,
    }
}

#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn through_f16(values: __m512i) -> __m512i {
    _mm512_castps_si512(_mm512_cvtph_ps(to_f16(values)))
}

/// The elements of 16 bits nearest to 32 values.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn halves(dtype: Dtype, a: __m512i, b: __m512i) -> __m512i {
    let (a, b) = match dtype {
        Dtype::F16 => (to_f16(a), to_f16(b)),
        _ => (to_bf16(a), to_bf16(b)),
    };
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b)
}

#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn to_f16(values: __m512i) -> __m256i {
    _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_castsi512_ps(values))
}

#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn to_bf16(values: __m512i) -> __m256i {
    _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded_up(values)))
}

#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn round_to_bf16(values: __m512i) -> __m512i {
    _mm512_and_si512(rounded_up(values), _mm512_set1_epi32(!0xffff))
}

/// Values whose upper halves are the nearest bfloat16, with anything below.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn rounded_up(values: __m512i) -> __m512i {
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(values), _mm512_set1_epi32(1));
    _mm512_add_epi32(_mm512_add_epi32(values, _mm512_set1_epi32(0x7fff)), odd)
}
