//! Deltas: 8 residuals at a time. Their raw bits are at most 31 each, so all of them lie in one vector, wherever in a
//! byte they start.

use std::arch::x86_64::*;

use super::{LANES, load, take, tiers};
use crate::arch::delta::{Bits, MAX_LIFT, Raw, Sums, check_end, mask, padded};
use crate::arch::{BadRecord, Scratch, Tables};
use crate::format::{Delta, Residual, plane_bytes};

/// Weights in a vector of their lengths.
const WORDS: usize = 8;

/// As [`crate::arch::Backend::decode_delta`].
#[target_feature(enable = "avx2,bmi2,popcnt")]
pub(in crate::arch::x86_64) fn decode(
    tables: &Tables,
    record: &[u8],
    delta: &Delta,
    bits: Bits,
    elements: &mut [u8],
    (scratch, sums): (&mut Scratch, &mut Sums),
) -> Result<(), BadRecord> {
    let n = elements.len() / (bits.width as usize / 8);
    let mut tail = record;
    let first = take(&mut tail, plane_bytes(tables.tiers[0].width, n))?;
    let raw = tiers::behind(tables, first, tail, n)?;
    let tail = &tail[..tail.len() - raw.len()];
    let symbols = tiers::symbols(tables, first, tail, n, &mut scratch.symbols, &mut scratch.below)?;
    let symbols = &symbols[..n];
    let bytes = raw.len();
    let raw = padded(&mut sums.raw, raw)?;
    let end = match (bits.width, delta.residual) {
        (16, Residual::Xor) => add::<16, false>(symbols, raw, delta, bits, elements),
        (16, Residual::Difference) => add::<16, true>(symbols, raw, delta, bits, elements),
        (_, Residual::Xor) => add::<32, false>(symbols, raw, delta, bits, elements),
        (_, Residual::Difference) => add::<32, true>(symbols, raw, delta, bits, elements),
    }?;
    check_end(end, bytes)
}

/// Adds the residuals with these symbols and raw bits to elements of `WIDTH` bits; returns the bit of `raw` behind the
/// last. `DIFFERENCE`: they are not XOR.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn add<const WIDTH: u32, const DIFFERENCE: bool>(
    symbols: &[u8],
    raw: &Raw,
    delta: &Delta,
    bits: Bits,
    elements: &mut [u8],
) -> Result<usize, BadRecord> {
    let step = WORDS * WIDTH as usize / 8;
    let mut adder = Adder::<WIDTH, DIFFERENCE>::new(raw, delta, bits);
    let (whole, last) = symbols.as_chunks();
    let (elements, rest) = elements.split_at_mut(whole.len() * step);
    for (i, symbols) in whole.iter().enumerate() {
        adder.add(symbols, &mut elements[i * step..][..step])?;
    }
    if !last.is_empty() {
        // A symbol of 0 leaves an element as it is.
        let (mut symbols, mut elements) = ([0; WORDS], [0; LANES]);
        symbols[..last.len()].copy_from_slice(last);
        elements[..rest.len()].copy_from_slice(rest);
        adder.add(&symbols, &mut elements[..step])?;
        rest.copy_from_slice(&elements[..rest.len()]);
    }
    Ok(adder.at)
}

/// What is the same for all weights of a block, and where their raw bits have been read to.
struct Adder<'a, const WIDTH: u32, const DIFFERENCE: bool> {
    raw: &'a Raw,
    at: usize,
    to_exponent: __m128i,
    exponents: __m256i,
    from: __m256i,
}

impl<'a, const WIDTH: u32, const DIFFERENCE: bool> Adder<'a, WIDTH, DIFFERENCE> {
    #[inline]
    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn new(raw: &'a Raw, delta: &Delta, bits: Bits) -> Self {
        Adder {
            raw,
            at: 0,
            to_exponent: _mm_cvtsi32_si128(bits.mantissa as i32),
            exponents: _mm256_set1_epi32(mask(WIDTH - 1 - bits.mantissa) as i32),
            from: _mm256_set1_epi32(i32::from(delta.exponent)),
        }
    }

    /// Adds the next 8 residuals to `elements`, which are as many.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn add(&mut self, symbols: &[u8; WORDS], elements: &mut [u8]) -> Result<(), BadRecord> {
        let (zero, one) = (_mm256_setzero_si256(), _mm256_set1_epi32(1));
        assert!(elements.len() == WORDS * WIDTH as usize / 8);
        // SAFETY: there are 8 symbols, and 8 elements of `WIDTH` bits.
        let (symbols, base) = unsafe {
            let symbols = _mm256_cvtepu8_epi32(_mm_loadl_epi64(symbols.as_ptr().cast()));
            let base = match WIDTH {
                16 => _mm256_cvtepu16_epi32(_mm_loadu_si128(elements.as_ptr().cast())),
                _ => load(elements.as_ptr()),
            };
            (symbols, base)
        };
        let exponent = _mm256_and_si256(_mm256_srl_epi32(base, self.to_exponent), self.exponents);
        let lift = _mm256_sub_epi32(_mm256_max_epu32(exponent, self.from), self.from);
        let lift = _mm256_min_epu32(lift, _mm256_set1_epi32(MAX_LIFT as i32));
        let same = _mm256_cmpeq_epi32(symbols, zero);
        // Bits below the top one.
        let below = _mm256_sub_epi32(_mm256_sub_epi32(symbols, lift), one);
        let below = _mm256_andnot_si256(same, below);
        let most = _mm256_set1_epi32(WIDTH as i32 - 1);
        if _mm256_testc_si256(_mm256_cmpeq_epi32(_mm256_max_epu32(below, most), most), ones()) == 0 {
            return Err(BadRecord);
        }
        // Where the bits of the next one start: the sum of all so far.
        let mut ends = below;
        ends = _mm256_add_epi32(ends, _mm256_slli_si256::<4>(ends));
        ends = _mm256_add_epi32(ends, _mm256_slli_si256::<8>(ends));
        let half = _mm256_permutevar8x32_epi32(ends, _mm256_set1_epi32(3));
        ends = _mm256_add_epi32(ends, _mm256_blend_epi32::<0xf0>(zero, half));
        let window =
            self.raw.get(self.at / 8..).and_then(|rest| rest.first_chunk::<LANES>()).ok_or(BadRecord)?;
        // SAFETY: the array has 32 bytes.
        let window = unsafe { load(window.as_ptr()) };
        let starts = _mm256_add_epi32(_mm256_sub_epi32(ends, below), _mm256_set1_epi32((self.at % 8) as i32));
        let (word, shift) = (_mm256_srli_epi32::<5>(starts), _mm256_and_si256(starts, _mm256_set1_epi32(31)));
        let low = _mm256_permutevar8x32_epi32(window, word);
        let high = _mm256_permutevar8x32_epi32(window, _mm256_add_epi32(word, one));
        let word = _mm256_or_si256(
            _mm256_srlv_epi32(low, shift),
            _mm256_sllv_epi32(high, _mm256_sub_epi32(_mm256_set1_epi32(32), shift)),
        );
        let top = _mm256_sllv_epi32(one, below);
        let under = _mm256_sub_epi32(top, one);
        let residual = _mm256_or_si256(_mm256_and_si256(word, under), top);
        let residual = _mm256_andnot_si256(same, residual);
        self.at += _mm256_extract_epi32::<7>(ends) as u32 as usize;
        let sum = if DIFFERENCE { moved::<WIDTH>(base, residual) } else { _mm256_xor_si256(base, residual) };
        // SAFETY: as above.
        unsafe {
            let to = elements.as_mut_ptr();
            match WIDTH {
                // No more than 16 bits of each are set.
                16 => {
                    let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(sum, sum));
                    _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(packed));
                }
                _ => _mm256_storeu_si256(to.cast(), sum),
            }
        }
        Ok(())
    }
}

/// The weights whose places differ from those of `base` by what `residual` says.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn moved<const WIDTH: u32>(base: __m256i, residual: __m256i) -> __m256i {
    let (sign, all) = (_mm256_set1_epi32(1 << (WIDTH - 1)), _mm256_set1_epi32(mask(WIDTH) as i32));
    let odd = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_and_si256(residual, _mm256_set1_epi32(1)));
    let difference = _mm256_xor_si256(_mm256_srli_epi32::<1>(residual), odd);
    // The sign bit in every bit.
    let spread = |x| _mm256_srai_epi32::<31>(if WIDTH == 16 { _mm256_slli_epi32::<16>(x) } else { x });
    let negative = _mm256_and_si256(spread(base), all);
    let place = _mm256_xor_si256(base, _mm256_or_si256(negative, sign));
    let place = _mm256_and_si256(_mm256_add_epi32(place, difference), all);
    let negative = _mm256_andnot_si256(spread(place), all);
    _mm256_xor_si256(place, _mm256_or_si256(negative, sign))
}

#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn ones() -> __m256i {
    _mm256_set1_epi32(-1)
}
