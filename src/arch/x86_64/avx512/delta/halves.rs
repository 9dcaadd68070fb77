//! Deltas of weights of 16 bits.

use std::arch::x86_64::*;

use super::{STEP, in_steps, window};
use crate::arch::BadRecord;
use crate::arch::delta::{Bits, MAX_LIFT, Raw, mask};
use crate::arch::x86_64::avx512::lane::load;
use crate::format::Delta;

/// Bits of an element.
const WIDTH: u32 = 16;
/// Elements in a vector.
const LANES: usize = 8 * STEP / WIDTH as usize;
/// The lane before each.
const BEFORE: [u16; LANES] = {
    let mut lanes = [0; LANES];
    let mut i = 1;
    while i < LANES {
        lanes[i] = i as u16 - 1;
        i += 1;
    }
    lanes
};

/// Adds the residuals with these symbols and raw bits to `elements`; returns the bit of `raw` behind the last.
/// `DIFFERENCE`: they are not XOR.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn add<const DIFFERENCE: bool>(
    symbols: &[u8],
    raw: &Raw,
    delta: &Delta,
    bits: Bits,
    elements: &mut [u8],
) -> Result<usize, BadRecord> {
    in_steps(symbols, elements, |symbols, elements, at| {
        add_whole::<DIFFERENCE>(symbols, (raw, at), delta, bits, elements)
    })
}

/// The same for whole vectors, with raw bits from bit `at` on.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn add_whole<const DIFFERENCE: bool>(
    symbols: &[[u8; LANES]],
    (raw, mut at): (&Raw, usize),
    delta: &Delta,
    bits: Bits,
    elements: &mut [[u8; STEP]],
) -> Result<usize, BadRecord> {
    let (zero, one) = (_mm512_setzero_si512(), _mm512_set1_epi16(1));
    let to_exponent = _mm_cvtsi32_si128(bits.mantissa as i32);
    let exponents = _mm512_set1_epi16(mask(WIDTH - 1 - bits.mantissa) as i16);
    let from = i16::from(delta.exponent);
    let (least, most) = (_mm512_set1_epi16(from), _mm512_set1_epi16(from + MAX_LIFT as i16));
    let less_one = _mm512_set1_epi16(from - 1);
    let before = load(bytemuck::cast_slice(&BEFORE));
    let mut longest = zero;
    // Indices and no adapters: those do not get the features of this function.
    for i in 0..symbols.len().min(elements.len()) {
        let to = &mut elements[i];
        // SAFETY: there are as many symbols as lanes.
        let symbols = unsafe { _mm512_cvtepu8_epi16(_mm256_loadu_si256(symbols[i].as_ptr().cast())) };
        let base = load(to);
        let other = _mm512_test_epi16_mask(symbols, symbols);
        let exponent = _mm512_and_si512(_mm512_srl_epi16(base, to_exponent), exponents);
        let lifted = _mm512_min_epu16(_mm512_max_epu16(exponent, least), most);
        // Bits below the top one: the symbol, less one and by how much it was lifted.
        let below = _mm512_maskz_add_epi16(other, _mm512_sub_epi16(symbols, lifted), less_one);
        longest = _mm512_max_epu16(longest, below);
        // Where the bits of the next one start: the sum of all so far.
        let mut sums = below;
        sums = _mm512_add_epi16(sums, _mm512_maskz_permutexvar_epi16(!1, before, sums));
        sums = _mm512_add_epi16(sums, _mm512_alignr_epi32::<15>(sums, zero));
        sums = _mm512_add_epi16(sums, _mm512_alignr_epi32::<14>(sums, zero));
        sums = _mm512_add_epi16(sums, _mm512_alignr_epi32::<12>(sums, zero));
        sums = _mm512_add_epi16(sums, _mm512_alignr_epi32::<8>(sums, zero));
        let window = window(raw, at)?;
        let starts = _mm512_sub_epi16(sums, below);
        let starts = _mm512_add_epi16(starts, _mm512_set1_epi16((at % 8) as i16));
        let word = _mm512_srli_epi16::<4>(starts);
        let (low, high) = (load(window), load(&window[WIDTH as usize / 8..]));
        let (low, high) = (_mm512_permutexvar_epi16(word, low), _mm512_permutexvar_epi16(word, high));
        let word = _mm512_shrdv_epi16(low, high, starts);
        let top = _mm512_maskz_sllv_epi16(other, one, below);
        let under = _mm512_maskz_sub_epi16(other, top, one);
        // The top bit, and what `under` admits of the word.
        let residual = _mm512_ternarylogic_epi32::<0xf8>(top, word, under);
        at += _mm_extract_epi16::<7>(_mm512_extracti32x4_epi32::<3>(sums)) as u16 as usize;
        let sum = if DIFFERENCE { moved(base, residual) } else { _mm512_xor_si512(base, residual) };
        // SAFETY: the array has 64 bytes.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), sum) };
    }
    // Whatever was made of such a block until here, it was made of the block.
    let bad = _mm512_cmpge_epu16_mask(longest, _mm512_set1_epi16(WIDTH as i16));
    if bad != 0 { Err(BadRecord) } else { Ok(at) }
}

/// The weights whose places differ from those of `base` by what `residual` says.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn moved(base: __m512i, residual: __m512i) -> __m512i {
    let sign = _mm512_set1_epi16(i16::MIN);
    let odd = _mm512_sub_epi16(_mm512_setzero_si512(), _mm512_and_si512(residual, _mm512_set1_epi16(1)));
    let difference = _mm512_xor_si512(_mm512_srli_epi16::<1>(residual), odd);
    // All bits of negative weights are turned, of others the sign; and back.
    let place = _mm512_ternarylogic_epi32::<0x1e>(base, _mm512_srai_epi16::<15>(base), sign);
    let place = _mm512_add_epi16(place, difference);
    _mm512_ternarylogic_epi32::<0x4b>(place, _mm512_srai_epi16::<15>(place), sign)
}
