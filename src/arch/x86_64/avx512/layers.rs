//! Raw planes of which some lie in layers: which there are is known when a block is decoded, and not before.

use std::arch::x86_64::*;

use super::lane::take;
use super::whole::vector;
use crate::arch::{BadRecord, Record, Refinement, Scratch, layers};
use crate::format::{HEAD_BITS, field_planes, layer_planes};

/// As [`layers::refine`].
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn refine(record: &Record<'_>, scratch: &mut Scratch, words: &mut [u32]) -> Result<(), BadRecord> {
    layers::refine_inline(record, scratch, words)
}

/// More planes than a block can have: 24 bits, in at most 4 pieces of each byte, and the sign, which counts as one.
const MOST: usize = 20;

/// Bits of a plane that go to one of the three bytes that a word has for sign and mantissa.
#[derive(Clone, Copy, Default)]
struct Part<'a> {
    plane: &'a [u8],
    /// Bits of a value in the plane.
    width: u8,
    /// The bits that the values come to in a byte, in each of four.
    mask: u32,
    /// How far 32 bits are turned to the left for that, for each quarter of a group.
    turns: [i32; 4],
}

/// The raw planes of a block.
pub(super) struct Parts<'a> {
    parts: [Part<'a>; MOST],
    /// Where in `parts` those of each byte end: those of the lowest come first.
    ends: [usize; 3],
    centre: u32,
    least: u32,
}

impl<'a> Parts<'a> {
    /// The planes of a block of `n` weights whose record has `m` bits: those at the front of `planes`, and of `layers`.
    pub fn new(m: u8, layers: &Refinement<'a>, planes: &mut &'a [u8], n: usize) -> Result<Self, BadRecord> {
        let mut parts = Parts {
            parts: [Part::default(); MOST],
            ends: [0; 3],
            centre: layers.centre,
            least: layers.least,
        };
        let a = m.min(HEAD_BITS);
        let mut left = a + 1;
        for width in field_planes(a + 1) {
            left -= width;
            let plane = take(planes, width, n)?;
            // In a byte, the mantissa is at the top and the sign at the bottom.
            if left > 0 || a == HEAD_BITS {
                parts.push(2, plane, width, 0..width, 8 - (a + 1) + left)?;
            } else {
                parts.push(2, plane, width, 0..1, 0)?;
                parts.push(2, plane, width, 1..width, 8 - a)?;
            }
        }
        for (width, shift) in layer_planes(a, m) {
            parts.push_at(take(planes, width, n)?, width, shift)?;
        }
        for (bytes, from, to) in layers.layers(m) {
            let mut planes = bytes;
            for (width, shift) in layer_planes(from, to) {
                parts.push_at(take(&mut planes, width, n)?, width, shift)?;
            }
        }
        Ok(parts)
    }

    /// One more plane, whose lowest bit is bit `shift` of a word.
    fn push_at(&mut self, plane: &'a [u8], width: u8, shift: u8) -> Result<(), BadRecord> {
        match shift {
            // Below the sign's place in the byte.
            16.. => self.push(2, plane, width, 0..width, shift - 15),
            8.. => self.push(1, plane, width, 0..width, shift - 8),
            _ => self.push(0, plane, width, 0..width, shift),
        }
    }

    /// Puts the bits `bits` of a plane to bit `to` and up of byte `byte`.
    fn push(
        &mut self,
        byte: usize,
        plane: &'a [u8],
        width: u8,
        bits: std::ops::Range<u8>,
        to: u8,
    ) -> Result<(), BadRecord> {
        if bits.is_empty() {
            return Ok(());
        }
        let (at, last) = (self.ends[byte], self.ends[2]);
        if last == MOST {
            return Err(BadRecord);
        }
        self.parts.copy_within(at..last, at + 1);
        self.ends[byte..].iter_mut().for_each(|end| *end += 1);
        let mask = u32::from((((1u32 << bits.len()) - 1) << to) as u8) * 0x0101_0101;
        let turns = std::array::from_fn(|quarter| {
            let place = (quarter as i32 * i32::from(width)) % 8;
            (i32::from(to) - place - i32::from(bits.start)).rem_euclid(32)
        });
        self.parts[at] = Part { plane, width, mask, turns };
        Ok(())
    }

    /// Byte `BYTE`, from the lowest up, of the words of quarter `J` of group `g`.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn byte<const BYTE: usize, const J: usize>(&self, g: usize) -> __m512i {
        let first = if BYTE == 0 { 0 } else { self.ends[BYTE - 1] };
        let mut v = _mm512_setzero_si512();
        for part in &self.parts[first..self.ends[BYTE]] {
            let mask = _mm512_set1_epi32(part.mask as i32);
            let bits = match part.width {
                8 => vector(part.plane, g * 4 + J),
                4 => vector(part.plane, g * 2 + J / 2),
                2 => vector(part.plane, g),
                _ => {
                    let at = (g * 4 + J) * 8;
                    let bitmap = part.plane[at..at + 8].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
                    v = _mm512_mask_add_epi8(v, bitmap, v, mask);
                    continue;
                }
            };
            let turned = _mm512_rolv_epi32(bits, _mm512_set1_epi32(part.turns[J]));
            v = _mm512_ternarylogic_epi64::<0xea>(turned, mask, v); // turned & mask | v
        }
        v
    }

    /// Words that were cut, in the middle of what they may have been.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn centred(&self, words: [__m512i; 4]) -> [__m512i; 4] {
        if self.centre == 0 {
            return words;
        }
        let [a, b, c, d] = words;
        [self.centred_vector(a), self.centred_vector(b), self.centred_vector(c), self.centred_vector(d)]
    }

    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn centred_vector(&self, words: __m512i) -> __m512i {
        let magnitude = _mm512_and_si512(words, _mm512_set1_epi32(i32::MAX));
        let cut = _mm512_cmpge_epu32_mask(magnitude, _mm512_set1_epi32(self.least as i32));
        _mm512_mask_or_epi32(words, cut, words, _mm512_set1_epi32(self.centre as i32))
    }
}
