//! Counting weights by exponent alone: all that a lossless code is chosen by, for less work than [`super::JointCounts`]
//! take.

use bytemuck::{Pod, Zeroable};

use super::words::{MAGNITUDE, MANTISSA, ROWS, Unions, float_bits, from_f16, is_subnormal};
use super::{BLOCK, Half};

/// Keys that are looked at for what is not normal at one go.
const STRETCH: usize = 64;
/// Counts of one key beside each other, so that equal neighbours need not wait for each other.
const LANES: usize = 8;

/// How many words have a certain exponent.
///
/// Rows are those of [`super::JointCounts`]: one for each exponent, then one for each place of a subnormal's top bit.
pub struct ExponentCounts {
    /// By key: the exponent field of an element as it is stored.
    counts: [[u32; 256]; LANES],
    /// Elements with an exponent field of 0 that are not zero, by row.
    moved: [u32; ROWS],
    /// The keys are those of float16 elements.
    f16: bool,
    elements: u64,
    keys: [u8; BLOCK],
}

/// Elements as they are stored, and the words that they stand for.
trait Element: Copy {
    const IS_F16: bool;
    /// The exponent field.
    fn key(self) -> u8;
    /// All ones if it is neither zero nor a normal number.
    fn odd(self) -> u32;
    fn mantissa(self) -> u32;
    fn word(self) -> u32;
}

impl Element for u32 {
    const IS_F16: bool = false;

    #[inline(always)]
    fn key(self) -> u8 {
        (self >> 23) as u8
    }

    #[inline(always)]
    fn odd(self) -> u32 {
        u32::from(is_subnormal(self)) | u32::from(self & MAGNITUDE >= 255 << 23)
    }

    #[inline(always)]
    fn mantissa(self) -> u32 {
        self & MANTISSA
    }

    #[inline(always)]
    fn word(self) -> u32 {
        self
    }
}

/// A little-endian float16.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
struct F16([u8; 2]);

/// A little-endian bfloat16.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
struct Bf16([u8; 2]);

impl Element for F16 {
    const IS_F16: bool = true;

    #[inline(always)]
    fn key(self) -> u8 {
        (u16::from_le_bytes(self.0) >> 10) as u8 & 31
    }

    #[inline(always)]
    fn odd(self) -> u32 {
        let magnitude = u16::from_le_bytes(self.0) & 0x7fff;
        u32::from((magnitude.wrapping_sub(1) < 0x3ff) | (magnitude >= 31 << 10))
    }

    #[inline(always)]
    fn mantissa(self) -> u32 {
        u32::from(u16::from_le_bytes(self.0) & 0x3ff) << 13
    }

    #[inline(always)]
    fn word(self) -> u32 {
        from_f16(u16::from_le_bytes(self.0))
    }
}

impl Element for Bf16 {
    const IS_F16: bool = false;

    #[inline(always)]
    fn key(self) -> u8 {
        (u16::from_le_bytes(self.0) >> 7) as u8
    }

    #[inline(always)]
    fn odd(self) -> u32 {
        let magnitude = u16::from_le_bytes(self.0) & 0x7fff;
        u32::from((magnitude.wrapping_sub(1) < 0x7f) | (magnitude >= 255 << 7))
    }

    #[inline(always)]
    fn mantissa(self) -> u32 {
        u32::from(u16::from_le_bytes(self.0) & 0x7f) << 16
    }

    #[inline(always)]
    fn word(self) -> u32 {
        u32::from(u16::from_le_bytes(self.0)) << 16
    }
}

impl ExponentCounts {
    pub(crate) fn new() -> Box<Self> {
        Box::new(ExponentCounts {
            counts: [[0; 256]; LANES],
            moved: [0; ROWS],
            f16: false,
            elements: 0,
            keys: [0; BLOCK],
        })
    }

    /// Whether [`ExponentCounts::drain`] must come before many more elements, or any that have other keys.
    pub(crate) fn must_drain(&self, f16: bool) -> bool {
        self.elements > 1 << 31 || self.elements > 0 && self.f16 != f16
    }

    /// Hands each count that is not zero to `sink` with its row, and starts again.
    pub(crate) fn drain(&mut self, mut sink: impl FnMut(usize, u64)) {
        let moved: u64 = self.moved.iter().map(|&n| u64::from(n)).sum();
        for key in 0..256 {
            let sum: u64 = self.counts.iter().map(|lane| u64::from(lane[key])).sum();
            let row = match key {
                31 if self.f16 => 255,
                1.. if self.f16 => key + 112,
                _ => key,
            };
            let count = if key == 0 { sum - moved } else { sum };
            if count > 0 {
                sink(row, count);
            }
        }
        for (row, &count) in self.moved.iter().enumerate().filter(|(_, count)| **count > 0) {
            sink(row, u64::from(count));
        }
        (self.counts, self.moved, self.elements) = ([[0; 256]; LANES], [0; ROWS], 0);
    }

    #[inline(always)]
    fn add<E: Element>(&mut self, elements: &[E]) -> Unions {
        self.f16 = E::IS_F16;
        self.elements += elements.len() as u64;
        let mut unions = Unions::default();
        let (stretches, rest) = elements.as_chunks::<STRETCH>();
        let (keys, last) = self.keys.split_at_mut(stretches.len() * STRETCH);
        for (elements, keys) in stretches.iter().zip(keys.as_chunks_mut::<STRETCH>().0) {
            let (mut odd, mut all) = (0, 0);
            for (key, element) in keys.iter_mut().zip(elements) {
                *key = element.key();
                all |= element.mantissa();
                odd |= element.odd();
            }
            if odd == 0 {
                unions.normal |= all;
            } else {
                odd_ones(elements, &mut self.moved, &mut unions);
            }
        }
        last.iter_mut().zip(rest).for_each(|(key, element)| *key = element.key());
        odd_ones(rest, &mut self.moved, &mut unions);

        let (eights, left) = self.keys[..elements.len()].as_chunks::<LANES>();
        for eight in eights {
            let eight = u64::from_le_bytes(*eight);
            for (lane, counts) in self.counts.iter_mut().enumerate() {
                counts[usize::from((eight >> (8 * lane)) as u8)] += 1;
            }
        }
        left.iter().for_each(|&key| self.counts[0][usize::from(key)] += 1);
        unions
    }
}

/// Counts what has an exponent field of 0 and is not zero apart, and adds all to `unions`.
#[inline(always)]
fn odd_ones<E: Element>(elements: &[E], moved: &mut [u32; ROWS], unions: &mut Unions) {
    for element in elements {
        let word = element.word();
        let (exponent, mantissa) = (word >> 23 & 255, word & MANTISSA);
        if is_subnormal(word) {
            let float = float_bits(mantissa);
            moved[(float >> 23) as usize + (256 - 127)] += 1;
            unions.subnormal |= mantissa;
            unions.normalised |= float & MANTISSA;
        } else if exponent == 255 {
            unions.special |= mantissa;
        } else {
            unions.normal |= mantissa;
            if element.key() == 0 && exponent > 0 {
                moved[exponent as usize] += 1;
            }
        }
    }
}

/// As [`super::Backend::count_exponents`].
#[inline(always)]
pub(super) fn words_inline(words: &[u32], counts: &mut ExponentCounts) -> Unions {
    counts.add(words)
}

/// As [`super::Backend::count_half_exponents`].
#[inline(always)]
pub(super) fn halves_inline(format: Half, halves: &[u8], counts: &mut ExponentCounts) -> Unions {
    match format {
        Half::F16 => counts.add::<F16>(bytemuck::cast_slice(halves)),
        Half::Bf16 => counts.add::<Bf16>(bytemuck::cast_slice(halves)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::arch::Backend;
    use crate::codec::word;
    use crate::format::Dtype;

    /// Rows, and unions, one word after the other.
    fn expected(words: &[u32], rows: &mut BTreeMap<usize, u64>) -> Unions {
        let mut unions = Unions::default();
        for &word in words {
            let mantissa = word & MANTISSA;
            let row = match word >> 23 & 255 {
                0 if mantissa != 0 => {
                    let top = mantissa.ilog2();
                    unions.subnormal |= mantissa;
                    unions.normalised |= mantissa << (23 - top) & MANTISSA;
                    256 + top
                }
                255 => {
                    unions.special |= mantissa;
                    255
                }
                exponent => {
                    unions.normal |= mantissa;
                    exponent
                }
            };
            *rows.entry(row as usize).or_insert(0) += 1;
        }
        unions
    }

    fn drained(counts: &mut ExponentCounts) -> BTreeMap<usize, u64> {
        let mut found = BTreeMap::new();
        counts.drain(|row, n| *found.entry(row).or_insert(0) += n);
        found
    }

    #[test]
    fn words_count_as_one_after_the_other() {
        let of = |exponent: u32| {
            [0, 1, 5, 1 << 22, 0x7f_ffff].map(|mantissa| (mantissa & 1) << 31 | exponent << 23 | mantissa)
        };
        // Exponents of normal numbers first, so that whole stretches have no others; then all.
        let words: Vec<u32> = (1..200).chain(0..256).flat_map(of).collect();
        for backend in Backend::available() {
            let (mut counts, mut rows) = (ExponentCounts::new(), BTreeMap::new());
            for block in words.chunks(997) {
                let unions = expected(block, &mut rows);
                assert_eq!(backend.count_exponents(block, &mut counts), unions, "{}", backend.name);
            }
            assert_eq!(drained(&mut counts), rows, "{}", backend.name);
            assert!(drained(&mut counts).is_empty());
        }
    }

    #[test]
    fn elements_of_16_bits_count_as_their_words() {
        let all = (0..=u16::MAX).rev().chain((0..5000).map(|i| 0x2400 + i));
        let halves: Vec<u8> = all.flat_map(u16::to_le_bytes).collect();
        for (dtype, format) in [(Dtype::F16, Half::F16), (Dtype::Bf16, Half::Bf16)] {
            for backend in Backend::available() {
                let (mut counts, mut rows) = (ExponentCounts::new(), BTreeMap::new());
                for block in halves.chunks(2 * 4001) {
                    let mut words = vec![0; block.len() / 2];
                    word::load(dtype, block, &mut words);
                    let unions = expected(&words, &mut rows);
                    let found = backend.count_half_exponents(format, block, &mut counts);
                    assert_eq!(found, unions, "{} {dtype:?}", backend.name);
                }
                assert_eq!(drained(&mut counts), rows, "{} {dtype:?}", backend.name);
            }
        }
    }
}
