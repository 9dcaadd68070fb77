//! Raw planes of which some lie in layers: which there are is known when a block is decoded, and not before. So they are
//! put together first, to planes of bytes.

use std::arch::x86_64::*;

use super::lane::take;
use super::whole::{GROUP, vector};
use crate::arch::{BadRecord, Joined, Record, Refinement, Scratch, layers};
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

/// Memory for the bytes that words have for sign and mantissa, from the lowest up.
pub(super) type Rooms<'a> = [&'a mut [u8]; 3];

/// Bits of a plane that go to one of these bytes.
#[derive(Clone, Copy)]
struct Part<'a> {
    plane: &'a [u8],
    /// The bits that the values come to in a byte, in each of four.
    mask: u32,
    /// From the plane to that of the next block, if it lies in a layer.
    ahead: u32,
    /// How far 32 bits are turned to the left for each quarter of a group.
    turns: [i32; 4],
    /// Bits of a value in the plane.
    width: u8,
}

/// The raw planes of a block.
struct Parts<'a> {
    parts: [Part<'a>; MOST],
    /// Where in `parts` those of each byte end: those of the lowest come first.
    ends: [usize; 3],
}

/// `record`, which has layers and is of `bytes` bytes and whole groups behind its codes of `width` bits, with its raw planes
/// put together where that is needed. Of the bytes of words, the lowest that have no bits are left out.
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn joined<'a>(
    width: u8,
    record: &Record<'a>,
    layers: &Refinement<'a>,
    rooms: Rooms<'a>,
) -> Result<Record<'a>, BadRecord> {
    let (mut planes, n) = (record.bytes, record.len);
    take(&mut planes, width, n)?;
    let mut parts = Parts {
        parts: [Part { plane: &[], mask: 0, ahead: 0, turns: [0; 4], width: 0 }; MOST],
        ends: [0; 3],
    };
    parts.fill(record.m, layers, &mut planes, n)?;
    let bits = layers.bits(record.m);
    let unused = (23 - usize::from(bits).max(7)) / 8;
    let mut joined = Joined { planes: [&[]; 3], ahead: [0; 3], bits };
    let mut from = 0;
    for (byte, room) in rooms.into_iter().enumerate() {
        let parts = &parts.parts[from..parts.ends[byte]];
        from += parts.len();
        if let [Part { plane, ahead, width: 8, .. }] = parts {
            // Its bytes are what is wanted.
            (joined.planes[byte], joined.ahead[byte]) = (plane, *ahead);
        } else if byte >= unused {
            let room = &mut room[..n];
            join(parts, room);
            joined.planes[byte] = room;
        }
    }
    Ok(Record { layers: Some(layers.joined(joined)), ..*record })
}

/// Puts the bits of these parts into bytes.
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn join(parts: &[Part<'_>], bytes: &mut [u8]) {
    for (g, bytes) in bytes.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
        let mut quarters = [_mm512_setzero_si512(); 4];
        for part in parts {
            part.prefetch(g);
            quarters = part.with(g, quarters);
        }
        for (to, quarter) in bytes.as_chunks_mut::<64>().0.iter_mut().zip(quarters) {
            // SAFETY: both are 64 bytes.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), quarter) };
        }
    }
}

impl<'a> Parts<'a> {
    /// Adds the planes of a block of `n` weights whose record has `m` bits: those at the front of `planes`, and of
    /// `layers`.
    fn fill(
        &mut self,
        m: u8,
        layers: &Refinement<'a>,
        planes: &mut &'a [u8],
        n: usize,
    ) -> Result<(), BadRecord> {
        let a = m.min(HEAD_BITS);
        let mut left = a + 1;
        for width in field_planes(a + 1) {
            left -= width;
            let plane = take(planes, width, n)?;
            // In a byte, the mantissa is at the top and the sign at the bottom.
            if left > 0 || a == HEAD_BITS {
                self.push(2, (plane, 0), width, 0..width, 8 - (a + 1) + left)?;
            } else {
                self.push(2, (plane, 0), width, 0..1, 0)?;
                self.push(2, (plane, 0), width, 1..width, 8 - a)?;
            }
        }
        for (width, shift) in layer_planes(a, m) {
            self.push_at((take(planes, width, n)?, 0), width, shift)?;
        }
        for (bytes, from, to) in layers.layers(m) {
            let mut planes = bytes;
            for (width, shift) in layer_planes(from, to) {
                self.push_at((take(&mut planes, width, n)?, bytes.len()), width, shift)?;
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
        // Bits are counted modulo 32; a plane of bytes has no other place for a quarter.
        let place = |quarter: i32| (quarter * i32::from(width)) & 7;
        let turns = std::array::from_fn(|i| i32::from(to) - i32::from(bits.start) - place(i as i32));
        self.parts[at] = Part { plane, mask, ahead: ahead as u32, turns, width };
        Ok(())
    }
}

impl Part<'_> {
    /// The quarters of group `g` with these bits in their bytes.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn with(&self, g: usize, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        let mask = _mm512_set1_epi32(self.mask as i32);
        let planes = match self.width {
            8 => {
                let plane = |quarter| vector(self.plane, g * 4 + quarter);
                [plane(0), plane(1), plane(2), plane(3)]
            }
            4 => {
                let (one, two) = (vector(self.plane, g * 2), vector(self.plane, g * 2 + 1));
                [one, one, two, two]
            }
            2 => [vector(self.plane, g); 4],
            _ => {
                let bytes = &self.plane[g * 32..g * 32 + 32];
                let bitmap = |quarter: usize| u64::from_le_bytes(bytes.as_chunks().0[quarter]);
                let add = |bytes, bits| _mm512_mask_add_epi8(bytes, bits, bytes, mask);
                return [add(a, bitmap(0)), add(b, bitmap(1)), add(c, bitmap(2)), add(d, bitmap(3))];
            }
        };
        let add = |bytes, quarter: usize| {
            let turned = _mm512_rolv_epi32(planes[quarter], _mm512_set1_epi32(self.turns[quarter]));
            _mm512_ternarylogic_epi64::<0xea>(turned, mask, bytes) // turned & mask | bytes
        };
        [add(a, 0), add(b, 1), add(c, 2), add(d, 3)]
    }

    /// Asks for group `g` of the next block, if the plane lies in a layer.
    #[inline]
    fn prefetch(&self, g: usize) {
        if self.ahead > 0 {
            prefetch_group(self.plane, g, usize::from(self.width) * 32, self.ahead as usize);
        }
    }
}

/// Asks for what is `ahead` bytes behind group `g` of a plane of `len` bytes a group.
#[inline]
pub(super) fn prefetch_group(plane: &[u8], g: usize, len: usize, ahead: usize) {
    let next = plane.as_ptr().wrapping_add(ahead + g * len);
    for line in (0..len).step_by(64) {
        // SAFETY: a prefetch of any address is harmless; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(line).cast()) };
    }
}

/// The bits that put words that were cut in the middle of what they may have been.
#[derive(Clone, Copy)]
pub(super) struct Centre {
    /// What is added to each byte of such words, from the lowest up.
    bytes: [u8; 3],
    /// The least symbol of such words.
    least: u8,
}

impl Centre {
    /// That of words with these layers.
    pub fn of(layers: &Refinement<'_>) -> Centre {
        // The upper byte has the sign below the mantissa.
        let bytes = [layers.centre as u8, (layers.centre >> 8) as u8, (layers.centre >> 15) as u8 & 0xfe];
        Centre { bytes, least: (layers.least >> 23) as u8 }
    }

    /// Bytes `BYTE` of words with these symbols, centred.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn add<const BYTE: usize>(&self, bytes: __m512i, symbols: __m512i) -> __m512i {
        if self.bytes[BYTE] == 0 {
            return bytes;
        }
        let cut = _mm512_cmpge_epu8_mask(symbols, _mm512_set1_epi8(self.least as i8));
        _mm512_mask_add_epi8(bytes, cut, bytes, _mm512_set1_epi8(self.bytes[BYTE] as i8))
    }
}
