//! What happens to words before they are packed: loading, rounding, normalising, counting. Loops without branches,
//! which a compiler can vectorise; the instruction set rooms compile them again with their features. The clear
//! forms, one word at a time, are in [`crate::codec::word`].

use super::exponents::{self, ExponentCounts};
use super::grid::{self, Extent};
use super::{BLOCK, Half};
use crate::codec::word::SUBNORMAL_CODES;
use crate::format::{Dtype, Unit};

pub(super) const MANTISSA: u32 = 0x7f_ffff;
pub(super) const MAGNITUDE: u32 = 0x7fff_ffff;

/// The loops over words that a [`super::Backend`] has.
#[derive(Clone, Copy, Debug)]
pub(super) struct WordLoops {
    pub(super) load: fn(Dtype, &[u8], &mut [u32]),
    pub(super) store: fn(Dtype, &[u32], &mut [u8]),
    pub(super) round: fn(&mut [u32], u8, Dtype) -> bool,
    pub(super) normalise: fn(&mut [u32]),
    pub(super) denormalise: fn(&mut [u32]),
    pub(super) kinds: fn(&[u32]) -> Kinds,
    pub(super) count: fn(&[u32], &mut JointCounts) -> Unions,
    pub(super) count_exponents: fn(&[u32], &mut ExponentCounts) -> Unions,
    pub(super) count_half_exponents: fn(Half, &[u8], &mut ExponentCounts) -> Unions,
    pub(super) extent: fn(&[u32]) -> Extent,
    pub(super) levels: fn(&mut [u32], Unit, u8),
}

/// The loops with no more than what every machine of the target has.
pub(super) const GENERIC: WordLoops = WordLoops {
    load,
    store,
    round,
    normalise,
    denormalise,
    kinds,
    count,
    count_exponents: exponents::words_inline,
    count_half_exponents: exponents::halves_inline,
    extent: grid::extent,
    levels: grid::levels,
};

fn load(dtype: Dtype, src: &[u8], out: &mut [u32]) {
    load_inline(dtype, src, out);
}

fn store(dtype: Dtype, words: &[u32], out: &mut [u8]) {
    store_inline(dtype, words, out);
}

fn round(words: &mut [u32], k: u8, dtype: Dtype) -> bool {
    round_inline(words, k, dtype)
}

fn normalise(words: &mut [u32]) {
    normalise_inline(words);
}

fn denormalise(words: &mut [u32]) {
    denormalise_inline(words);
}

fn kinds(words: &[u32]) -> Kinds {
    kinds_inline(words)
}

fn count(words: &[u32], counts: &mut JointCounts) -> Unions {
    count_inline(words, counts)
}

/// As [`super::Backend::load`].
#[inline(always)]
pub(super) fn load_inline(dtype: Dtype, src: &[u8], out: &mut [u32]) {
    let (fours, twos) = (src.as_chunks::<4>().0, src.as_chunks::<2>().0);
    match dtype {
        Dtype::F32 => out.iter_mut().zip(fours).for_each(|(w, b)| *w = u32::from_le_bytes(*b)),
        Dtype::F16 => out.iter_mut().zip(twos).for_each(|(w, b)| *w = from_f16(u16::from_le_bytes(*b))),
        Dtype::Bf16 => {
            out.iter_mut().zip(twos).for_each(|(w, b)| *w = u32::from(u16::from_le_bytes(*b)) << 16);
        }
        Dtype::U8 | Dtype::I8 => {
            let flip = dtype.word_flip();
            out.iter_mut().zip(src).for_each(|(w, b)| *w = from_integer(*b ^ flip));
        }
    }
}

#[inline(always)]
fn from_integer(byte: u8) -> u32 {
    let wide = i32::from(byte as i8);
    // All ones if it is negative.
    let sign = wide >> 31;
    (sign as u32) << 31 | ((wide ^ sign) as u32) << 16
}

#[inline(always)]
fn to_integer(word: u32) -> u8 {
    let sign = (word as i32 >> 31) as u32;
    (word >> 16 & 0x7f ^ sign) as u8
}

#[inline(always)]
pub(super) fn from_f16(bits: u16) -> u32 {
    let magnitude = u32::from(bits & 0x7fff);
    let moved = magnitude << 13;
    // A subnormal is its mantissa times 2^-24, exactly, and a normal float32.
    let subnormal = (magnitude as i32 as f32 * f32::from_bits(103 << 23)).to_bits();
    let normal = moved + if magnitude < 31 << 10 { 112 << 23 } else { 224 << 23 };
    u32::from(bits >> 15) << 31 | if magnitude < 1 << 10 { subnormal } else { normal }
}

/// As [`super::Backend::store`].
#[inline(always)]
pub(super) fn store_inline(dtype: Dtype, words: &[u32], out: &mut [u8]) {
    let halves = out.as_chunks_mut::<2>().0;
    match dtype {
        Dtype::F32 => {
            out.as_chunks_mut::<4>().0.iter_mut().zip(words).for_each(|(b, w)| *b = w.to_le_bytes());
        }
        Dtype::F16 => halves.iter_mut().zip(words).for_each(|(b, &w)| *b = to_f16(w).to_le_bytes()),
        Dtype::Bf16 => halves.iter_mut().zip(words).for_each(|(b, &w)| *b = ((w >> 16) as u16).to_le_bytes()),
        Dtype::U8 | Dtype::I8 => {
            let flip = dtype.word_flip();
            out.iter_mut().zip(words).for_each(|(b, &w)| *b = to_integer(w) ^ flip);
        }
    }
}

#[inline(always)]
fn to_f16(word: u32) -> u16 {
    let magnitude = word & MAGNITUDE;
    let least = 113 << 23;
    // A subnormal is a whole multiple of 2^-24.
    let subnormal = (f32::from_bits(magnitude.min(least)) * f32::from_bits(151 << 23)) as i32 as u32;
    let normal = ((magnitude - least.min(magnitude)) >> 13) + (1 << 10);
    let special = 31 << 10 | magnitude >> 13 & 0x3ff;
    let half = if magnitude < least { subnormal } else { normal };
    (word >> 16 & 0x8000 | if magnitude < 143 << 23 { half } else { special }) as u16
}

/// A word that is subnormal: below its sign, a mantissa and nothing else.
#[inline(always)]
pub(super) fn is_subnormal(word: u32) -> bool {
    (word & MAGNITUDE).wrapping_sub(1) < MANTISSA
}

/// The bits of the float32 of a number below 2^24: 127 + the place of its top bit as exponent, what is below that at
/// the top of the mantissa. Quicker in vectors than counting leading zeros.
#[inline(always)]
pub(super) fn float_bits(number: u32) -> u32 {
    (number as i32 as f32).to_bits()
}

/// As [`super::Backend::round`].
#[inline(always)]
pub(super) fn round_inline(words: &mut [u32], k: u8, dtype: Dtype) -> bool {
    let largest = if dtype == Dtype::F16 { 142 } else { 254 };
    let mut changed = 0;
    if words.iter().fold(false, |any, &w| any | is_subnormal(w)) {
        for word in words {
            let magnitude = *word & MAGNITUDE;
            let (top, normal) = (float_bits(magnitude & MANTISSA) >> 23, magnitude > MANTISSA);
            let leading = if normal { 23 } else { top.saturating_sub(127) };
            let shift = leading.saturating_sub(u32::from(k));
            let rounded = round_by(*word, shift, largest);
            changed |= *word ^ rounded;
            *word = rounded;
        }
    } else {
        let shift = 23u32.saturating_sub(u32::from(k));
        for word in words {
            let rounded = round_by(*word, shift, largest);
            changed |= *word ^ rounded;
            *word = rounded;
        }
    }
    changed == 0
}

/// Rounds away the lowest `shift` bits, half to even; a finite word stays finite.
#[inline(always)]
fn round_by(word: u32, shift: u32, largest: u32) -> u32 {
    let shift = shift & 31;
    let magnitude = word & MAGNITUDE;
    let keep = MAGNITUDE << shift;
    let odd = magnitude >> shift & 1;
    // Half a step less one; with no bits to round away, the one that `odd` may add is taken off again.
    let half = ((1u32 << shift) >> 1).wrapping_sub(1);
    let up = magnitude.wrapping_add(half).wrapping_add(odd) & keep;
    let rounded = if up >> 23 > largest { magnitude & keep } else { up };
    if magnitude >> 23 == 255 || shift == 0 { word } else { word & !MAGNITUDE | rounded }
}

/// As [`super::Backend::normalise`].
#[inline(always)]
pub(super) fn normalise_inline(words: &mut [u32]) {
    for word in words {
        // The exponent of the float is 127 + place, the code's 232 + place.
        let code = (*word & !MAGNITUDE) | (float_bits(*word & MANTISSA).wrapping_add((232 - 127) << 23));
        *word = if is_subnormal(*word) { code } else { *word };
    }
}

/// As [`super::Backend::denormalise`].
#[inline(always)]
pub(super) fn denormalise_inline(words: &mut [u32]) {
    for word in words {
        let code = *word >> 23 & 255;
        let down = (23 + SUBNORMAL_CODES).wrapping_sub(code) & 31;
        let subnormal = *word & !MAGNITUDE | (*word & MANTISSA | 1 << 23) >> down;
        *word = if code.wrapping_sub(SUBNORMAL_CODES) < 23 { subnormal } else { *word };
    }
}

/// Whether a word of a kind is there: those that decide if subnormals are normalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    /// Subnormals.
    pub subnormal: bool,
    /// Words with an exponent that stands for a subnormal once those are normalised.
    pub code: bool,
}

/// As [`super::Backend::kinds`].
#[inline(always)]
pub(super) fn kinds_inline(words: &[u32]) -> Kinds {
    let (mut subnormal, mut code) = (false, false);
    for &word in words {
        subnormal |= is_subnormal(word);
        code |= (word & MAGNITUDE).wrapping_sub(SUBNORMAL_CODES << 23) < (255 - SUBNORMAL_CODES) << 23;
    }
    Kinds { subnormal, code }
}

/// Numbers of leading ones that a mantissa can have.
const ONES: usize = 24;
/// Rows of [`JointCounts`]: one for each exponent, then one for each place of a subnormal's top bit.
pub(super) const ROWS: usize = 256 + 23;
/// From one number of leading ones to the next: more than [`ROWS`], and such that they share few cache sets.
const STRIDE: u32 = 288;
/// Counts of one place beside each other.
const LANES: usize = 4;
/// A mask for places, which are multiples of [`LANES`].
const PLACES: usize = (1 << 15) - 1;

/// How many words have a certain exponent and so many leading ones in the mantissa.
///
/// Each count is split in four, so that equal neighbours need not wait for each other.
pub struct JointCounts {
    counts: Box<[u32]>,
    words: u64,
    /// Where a block's words are counted.
    places: Box<[u16; BLOCK]>,
}

/// Bits that any word of a kind has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unions {
    /// Zeros and normal numbers.
    pub normal: u32,
    /// Infinities and NaNs.
    pub special: u32,
    /// Subnormals.
    pub subnormal: u32,
    /// Subnormals, normalised.
    pub normalised: u32,
}

impl JointCounts {
    pub(crate) fn new() -> Self {
        let counts = vec![0; PLACES + LANES].into_boxed_slice();
        JointCounts { counts, words: 0, places: Box::new([0; BLOCK]) }
    }

    /// Whether [`JointCounts::drain`] must come before many more words: a count holds 32 bits.
    pub(crate) fn is_nearly_full(&self) -> bool {
        self.words > 1 << 31
    }

    /// Hands each count that is not zero to `sink` with its row and number of leading ones, and starts again.
    pub(crate) fn drain(&mut self, mut sink: impl FnMut(usize, usize, u64)) {
        for ones in 0..ONES {
            for row in 0..ROWS {
                let place = usize::from(place(row as u32, ones as u32));
                let count = &mut self.counts[place..place + LANES];
                let sum: u64 = count.iter().map(|&n| u64::from(n)).sum();
                count.fill(0);
                if sum > 0 {
                    sink(row, ones, sum);
                }
            }
        }
        self.words = 0;
    }
}

#[inline(always)]
fn place(row: u32, ones: u32) -> u16 {
    ((ones * STRIDE + row) * LANES as u32) as u16
}

/// Row and number of leading ones of a word that is not subnormal.
#[inline(always)]
fn joint(word: u32) -> (u32, u32) {
    // All ones: the float of 0 is 0.
    let ones = (149 - (float_bits(!word & MANTISSA) >> 23)).min(23);
    // Half-way to the next power of two: rounded to no bits at all, an even exponent stays.
    let stays = word & 0xff_ffff == 1 << 22;
    (word >> 23 & 255, if stays { 0 } else { ones })
}

/// As [`super::Backend::count`].
#[inline(always)]
pub(super) fn count_inline(words: &[u32], counts: &mut JointCounts) -> Unions {
    let (mut normal, mut special, mut subnormal, mut normalised) = (0, 0, 0, 0);
    for (place_of, &word) in counts.places.iter_mut().zip(words) {
        let mantissa = word & MANTISSA;
        let (is_sub, is_special) = (is_subnormal(word), word >> 23 & 255 == 255);
        let float = float_bits(mantissa);
        let coded = if is_sub { float & MANTISSA } else { mantissa };
        // A subnormal is no tie, whatever its mantissa: its exponent counts as odd.
        let (exponent_row, ones) = joint(if is_sub { coded | 1 << 23 } else { word });
        *place_of = place(if is_sub { (float >> 23) + (256 - 127) } else { exponent_row }, ones);
        normal |= if is_sub || is_special { 0 } else { mantissa };
        special |= if is_special { mantissa } else { 0 };
        subnormal |= if is_sub { mantissa } else { 0 };
        normalised |= if is_sub { coded } else { 0 };
    }
    let n = words.len();
    let table = &mut counts.counts[..PLACES + LANES];
    let (fours, left) = counts.places[..n].as_chunks::<4>();
    for four in fours {
        let four: u64 = bytemuck::cast(*four);
        for lane in 0..LANES {
            table[((four >> (lane * 16)) as usize & PLACES) + lane] += 1;
        }
    }
    for &place in left {
        table[usize::from(place) & PLACES] += 1;
    }
    counts.words += n as u64;
    Unions { normal, special, subnormal, normalised }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Backend;
    use crate::codec::word;

    /// Words of every exponent with mantissas that matter: none, few, ties, runs of ones, all.
    fn words() -> Vec<u32> {
        let runs =
            (0..24).flat_map(|ones| [MANTISSA >> ones, MANTISSA & !(MANTISSA >> ones), 1 << ones >> 1]);
        let mantissas: Vec<u32> = runs.chain([0x2a_aaaa, 0x55_5555, 0x60_0001]).collect();
        let signed = |exponent: u32| [exponent << 23, 1 << 31 | exponent << 23];
        (0..256).flat_map(signed).flat_map(|w| mantissas.iter().map(move |m| w | m & MANTISSA)).collect()
    }

    #[test]
    fn every_f16_loads_as_the_clear_form_says() {
        let src: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for backend in Backend::available() {
            for dtype in [Dtype::F16, Dtype::Bf16] {
                let (mut found, mut expected) = (vec![0; 1 << 16], vec![0; 1 << 16]);
                backend.load(dtype, &src, &mut found);
                word::load(dtype, &src, &mut expected);
                assert!(found == expected, "{} {dtype:?}", backend.name);
            }
        }
    }

    #[test]
    fn words_are_stored_as_the_clear_form_says() {
        let f16: Vec<u32> = (0..=u16::MAX).map(word::from_f16).collect();
        for backend in Backend::available() {
            for (dtype, words) in
                [(Dtype::F16, &f16), (Dtype::F16, &words()), (Dtype::Bf16, &words()), (Dtype::F32, &f16)]
            {
                let (mut found, mut expected) =
                    (vec![0; words.len() * dtype.size()], vec![0; words.len() * dtype.size()]);
                backend.store(dtype, words, &mut found);
                word::store(dtype, words, &mut expected);
                assert!(found == expected, "{} {dtype:?}", backend.name);
            }
        }
    }

    #[test]
    fn rounding_and_normalising_are_those_of_the_clear_form() {
        let (all, normal): (Vec<u32>, Vec<u32>) =
            (words(), words().into_iter().filter(|&w| !is_subnormal(w)).collect());
        for backend in Backend::available() {
            for dtype in [Dtype::F32, Dtype::F16] {
                for (k, words) in (0..=23).flat_map(|k| [(k, &all), (k, &normal)]) {
                    let mut found = words.clone();
                    let same = backend.round(&mut found, k, dtype);
                    let expected: Vec<u32> = words.iter().map(|&w| word::round(w, k, dtype)).collect();
                    assert!(found == expected, "{} {k} {dtype:?}", backend.name);
                    assert_eq!(same, expected == *words);
                }
            }
            let mut found: Vec<u32> =
                all.iter().copied().filter(|w| !(232..255).contains(&(w >> 23 & 255))).collect();
            let expected: Vec<u32> = found.iter().map(|&w| word::normalise(w)).collect();
            backend.normalise(&mut found);
            assert!(found == expected, "{}", backend.name);
            let (mut found, expected) =
                (all.clone(), all.iter().map(|&w| word::denormalise(w)).collect::<Vec<_>>());
            backend.denormalise(&mut found);
            assert!(found == expected, "{}", backend.name);
        }
    }

    #[test]
    fn one_word_of_a_kind_is_found_anywhere() {
        for backend in Backend::available() {
            let mut block = vec![123 << 23; 200];
            for word in words() {
                let exponent = word >> 23 & 255;
                let subnormal = exponent == 0 && word & MANTISSA != 0;
                let code = (SUBNORMAL_CODES..255).contains(&exponent);
                let at = word as usize % block.len();
                let before = std::mem::replace(&mut block[at], word);
                assert_eq!(backend.kinds(&block), Kinds { subnormal, code }, "{} {word:#x}", backend.name);
                block[at] = before;
            }
        }
    }

    #[test]
    fn counts_are_those_of_one_word_after_the_other() {
        let all = words();
        for backend in Backend::available() {
            let mut counts = JointCounts::new();
            let mut expected = std::collections::BTreeMap::new();
            // Blocks of ragged lengths.
            for block in all.chunks(997) {
                let mut unions = Unions::default();
                for &word in block {
                    let mantissa = word & MANTISSA;
                    let (row, of) = match word >> 23 & 255 {
                        0 if mantissa != 0 => {
                            unions.subnormal |= mantissa;
                            let top = mantissa.ilog2();
                            let normalised = mantissa << (23 - top) & MANTISSA;
                            unions.normalised |= normalised;
                            (256 + top, normalised)
                        }
                        255 => {
                            unions.special |= mantissa;
                            (255, mantissa)
                        }
                        exponent => {
                            unions.normal |= mantissa;
                            (exponent, mantissa)
                        }
                    };
                    let tie = row < 256 && row % 2 == 0 && of == 1 << 22;
                    let ones = if tie { 0 } else { (of << 9).leading_ones().min(23) };
                    *expected.entry((row as usize, ones as usize)).or_insert(0u64) += 1;
                }
                assert_eq!(backend.count(block, &mut counts), unions, "{}", backend.name);
            }
            let mut found = std::collections::BTreeMap::new();
            counts.drain(|row, ones, n| {
                found.insert((row, ones), n);
            });
            assert!(found == expected, "{}", backend.name);
            counts.drain(|row, ones, n| panic!("{n} left at {row}, {ones}"));
        }
    }
}
