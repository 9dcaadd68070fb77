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

/// The most parts that 24 bits in four pieces fall into; counted over all that there can be.
const MOST: usize = 13;

/// Bits of a plane that go to one of the three bytes that a word has for sign and mantissa.
#[derive(Clone, Copy)]
struct Part<'a> {
    plane: &'a [u8],
    /// The bits that the values come to in a byte, in each of four.
    mask: u32,
    /// From the plane to that of the next block, if it lies in a layer.
    ahead: u32,
    /// How far 32 bits are turned to the left for values at the lower end of their bytes.
    turn: i8,
    /// Bits of a value in the plane.
    width: u8,
}

/// For each byte of words but the symbols, from the lowest up, the four quarters of a group.
pub(super) type Bytes = [[__m512i; 4]; 3];

/// The raw planes of a block.
pub(super) struct Parts<'a> {
    parts: [Part<'a>; MOST],
    /// Where in `parts` those of each byte end: those of the lowest come first.
    ends: [usize; 3],
    /// What is added to each byte of words that were cut.
    centre: [u8; 3],
    /// The least symbol of such words.
    least: u8,
}

impl<'a> Parts<'a> {
    /// No planes.
    pub const NONE: Parts<'static> = Parts {
        parts: [Part { plane: &[], mask: 0, ahead: 0, turn: 0, width: 0 }; MOST],
        ends: [0; 3],
        centre: [0; 3],
        least: 0,
    };

    /// Adds the planes of a block of `n` weights whose record has `m` bits: those at the front of `planes`, and of
    /// `layers`.
    pub fn fill(
        &mut self,
        m: u8,
        layers: &Refinement<'a>,
        planes: &mut &'a [u8],
        n: usize,
    ) -> Result<(), BadRecord> {
        let parts = self;
        // The upper one has the sign below the mantissa.
        parts.centre = [layers.centre as u8, (layers.centre >> 8) as u8, (layers.centre >> 15) as u8 & 0xfe];
        parts.least = (layers.least >> 23) as u8;
        let a = m.min(HEAD_BITS);
        let mut left = a + 1;
        for width in field_planes(a + 1) {
            left -= width;
            let plane = take(planes, width, n)?;
            // In a byte, the mantissa is at the top and the sign at the bottom.
            if left > 0 || a == HEAD_BITS {
                parts.push(2, (plane, 0), width, 0..width, 8 - (a + 1) + left)?;
            } else {
                parts.push(2, (plane, 0), width, 0..1, 0)?;
                parts.push(2, (plane, 0), width, 1..width, 8 - a)?;
            }
        }
        for (width, shift) in layer_planes(a, m) {
            parts.push_at((take(planes, width, n)?, 0), width, shift)?;
        }
        for (bytes, from, to) in layers.layers(m) {
            let mut planes = bytes;
            for (width, shift) in layer_planes(from, to) {
                parts.push_at((take(&mut planes, width, n)?, bytes.len()), width, shift)?;
            }
        }
        Ok(())
    }

    /// One more plane, with how far the next block's is from it, whose lowest bit is bit `shift` of a word.
    fn push_at(&mut self, plane: (&'a [u8], usize), width: u8, shift: u8) -> Result<(), BadRecord> {
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
        (plane, ahead): (&'a [u8], usize),
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
        let turn = to as i8 - bits.start as i8;
        self.parts[at] = Part { plane, mask, ahead: ahead as u32, turn, width };
        Ok(())
    }

    /// The words of group `g`, whose symbols these are, but for those: for each quarter sign and upper mantissa as heads
    /// are, and if there are any the bytes below. Lowest byte first.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn group<const HIGH: u8, const LOW: u8>(&self, g: usize, symbols: &[__m512i; 4]) -> Bytes {
        let zero = [_mm512_setzero_si512(); 4];
        let low = if LOW == 0 { zero } else { self.byte::<0>(g, symbols) };
        let high = if HIGH == 0 { zero } else { self.byte::<1>(g, symbols) };
        [low, high, self.byte::<2>(g, symbols)]
    }

    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn byte<const BYTE: usize>(&self, g: usize, symbols: &[__m512i; 4]) -> [__m512i; 4] {
        let first = if BYTE == 0 { 0 } else { self.ends[BYTE - 1] };
        let [mut a, mut b, mut c, mut d] = [_mm512_setzero_si512(); 4];
        for part in &self.parts[first..self.ends[BYTE]] {
            part.prefetch(g);
            let mask = _mm512_set1_epi32(part.mask as i32);
            let [planes_a, planes_b, planes_c, planes_d] = match part.width {
                8 => {
                    let plane = |quarter| vector(part.plane, g * 4 + quarter);
                    [plane(0), plane(1), plane(2), plane(3)]
                }
                4 => {
                    let (one, two) = (vector(part.plane, g * 2), vector(part.plane, g * 2 + 1));
                    [one, one, two, two]
                }
                2 => [vector(part.plane, g); 4],
                _ => {
                    let bitmap = |quarter: usize| {
                        let bytes = &part.plane[(g * 4 + quarter) * 8..][..8];
                        bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
                    };
                    let bitmaps = [bitmap(0), bitmap(1), bitmap(2), bitmap(3)];
                    a = _mm512_mask_add_epi8(a, bitmaps[0], a, mask);
                    b = _mm512_mask_add_epi8(b, bitmaps[1], b, mask);
                    c = _mm512_mask_add_epi8(c, bitmaps[2], c, mask);
                    d = _mm512_mask_add_epi8(d, bitmaps[3], d, mask);
                    continue;
                }
            };
            a = part.with(planes_a, 0, mask, a);
            b = part.with(planes_b, 1, mask, b);
            c = part.with(planes_c, 2, mask, c);
            d = part.with(planes_d, 3, mask, d);
        }
        if self.centre[BYTE] != 0 {
            a = self.centred::<BYTE>(a, symbols[0]);
            b = self.centred::<BYTE>(b, symbols[1]);
            c = self.centred::<BYTE>(c, symbols[2]);
            d = self.centred::<BYTE>(d, symbols[3]);
        }
        [a, b, c, d]
    }

    /// Bytes of words that were cut, with the bit that puts these in the middle of what they may have been.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn centred<const BYTE: usize>(&self, bytes: __m512i, symbols: __m512i) -> __m512i {
        let cut = _mm512_cmpge_epu8_mask(symbols, _mm512_set1_epi8(self.least as i8));
        _mm512_mask_add_epi8(bytes, cut, bytes, _mm512_set1_epi8(self.centre[BYTE] as i8))
    }
}

impl Part<'_> {
    /// `bytes` with the bits of a quarter, which are somewhere in `plane`.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn with(&self, plane: __m512i, quarter: i32, mask: __m512i, bytes: __m512i) -> __m512i {
        // Bits are counted modulo 32; a plane of bytes has no other place for a quarter.
        let place = (quarter * i32::from(self.width)) & 7;
        let turned = _mm512_rolv_epi32(plane, _mm512_set1_epi32(i32::from(self.turn) - place));
        _mm512_ternarylogic_epi64::<0xea>(turned, mask, bytes) // turned & mask | bytes
    }

    /// Asks for group `g` of the next block, if the plane lies in a layer.
    #[inline]
    fn prefetch(&self, g: usize) {
        if self.ahead > 0 {
            let len = usize::from(self.width) * 32;
            let next = self.plane.as_ptr().wrapping_add(self.ahead as usize + g * len);
            for line in (0..len).step_by(64) {
                // SAFETY: a prefetch of any address is harmless; SSE is part of x86-64.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(line).cast()) };
            }
        }
    }
}
