//! Symbols of whole groups where tier 0 has codes of 3 bits or of 1: bitmaps, whose marks need no look-up.

use std::arch::x86_64::*;

use super::lane::{in_register, load};
use super::symbols::Symbols;
use super::whole::GROUP;
use crate::arch::{BLOCK, TierTable, generic};

/// Where in 8 bytes, each the bitmap of 64 codes, the bits from each place on start: so that the place's own comes to be
/// bit 0, bit 1 or bit 2 of a byte.
static FROM: [[u8; 64]; 3] = [from(0), from(1), from(2)];

const fn from(bit: usize) -> [u8; 64] {
    let mut places = [0; 64];
    let mut i = 0;
    while i < 64 {
        places[i] = ((i + 64 - bit) % 64) as u8;
        i += 1;
    }
    places
}

/// The codes of tier 0 as three bitmaps, lowest bits first, and the symbols of its escapes, handed out in turn.
#[derive(Clone, Copy)]
pub(super) struct Bitmaps<'a> {
    lookup: &'a [u8; 64],
    planes: [&'a [[u8; GROUP / 8]]; 3],
    escapes: &'a Symbols,
    next: usize,
}

impl<'a> Bitmaps<'a> {
    /// Those of a block of whole groups.
    pub fn new(tier: &'a TierTable, codes: &'a [u8], escapes: &'a Symbols) -> Self {
        let planes = generic::bitmaps(codes).map(|plane| plane.as_chunks().0);
        Bitmaps { lookup: &tier.lookups[0], planes, escapes, next: 0 }
    }

    /// As [`super::first::First::group`].
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    #[expect(clippy::extra_unused_type_parameters, reason = "makes a copy for each caller")]
    pub fn group<Caller>(&mut self, g: usize) -> [__m512i; 4] {
        let [low, middle, high] = self.planes;
        let (low, middle, high) = (&low[g], &middle[g], &high[g]);
        let table = load(self.lookup);
        let (a, marks_a) = named(word::<0>(low), word::<0>(middle), word::<0>(high), table);
        let (b, marks_b) = named(word::<1>(low), word::<1>(middle), word::<1>(high), table);
        let (c, marks_c) = named(word::<2>(low), word::<2>(middle), word::<2>(high), table);
        let (d, marks_d) = named(word::<3>(low), word::<3>(middle), word::<3>(high), table);
        expanded([a, b, c, d], [marks_a, marks_b, marks_c, marks_d], self.escapes, &mut self.next)
    }
}

/// The same with codes of 1 bit: all weights that are no escapes have one symbol.
#[derive(Clone, Copy)]
pub(super) struct Marks<'a> {
    symbol: u8,
    plane: &'a [[u8; GROUP / 8]],
    escapes: &'a Symbols,
    next: usize,
}

impl<'a> Marks<'a> {
    /// As [`Bitmaps::new`].
    pub fn new(tier: &TierTable, codes: &'a [u8], escapes: &'a Symbols) -> Self {
        Marks { symbol: tier.symbols[0], plane: codes.as_chunks().0, escapes, next: 0 }
    }

    /// As [`super::first::First::group`].
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    #[expect(clippy::extra_unused_type_parameters, reason = "makes a copy for each caller")]
    pub fn group<Caller>(&mut self, g: usize) -> [__m512i; 4] {
        let plane = &self.plane[g];
        let marks = [word::<0>(plane), word::<1>(plane), word::<2>(plane), word::<3>(plane)];
        let named = _mm512_set1_epi8(self.symbol as i8);
        expanded([named; 4], marks, self.escapes, &mut self.next)
    }
}

/// The symbols of a group, those of its escapes taken from `escapes` in turn, the first of them at `next`.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn expanded(named: [__m512i; 4], marks: [u64; 4], escapes: &Symbols, next: &mut usize) -> [__m512i; 4] {
    // All that the groups before can have used up.
    let at = (*next).min(BLOCK - GROUP);
    let at_b = at + marks[0].count_ones() as usize;
    let at_c = at_b + marks[1].count_ones() as usize;
    let at_d = at_c + marks[2].count_ones() as usize;
    *next = at_d + marks[3].count_ones() as usize;
    let below = |at: usize| {
        // SAFETY: `at` is at most BLOCK - GROUP and three times 64, and 64 bytes are there from BLOCK on.
        in_register(unsafe { _mm512_loadu_si512(escapes.as_ptr().add(at).cast()) })
    };
    [
        _mm512_mask_expand_epi8(named[0], marks[0], below(at)),
        _mm512_mask_expand_epi8(named[1], marks[1], below(at_b)),
        _mm512_mask_expand_epi8(named[2], marks[2], below(at_c)),
        _mm512_mask_expand_epi8(named[3], marks[3], below(at_d)),
    ]
}

/// The bitmap of quarter `J`.
#[inline]
fn word<const J: usize>(bitmap: &[u8; GROUP / 8]) -> u64 {
    u64::from_le_bytes(bitmap.as_chunks().0[J])
}

/// The symbols of 64 codes, and which of them are escapes.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn named(low: u64, middle: u64, high: u64, table: __m512i) -> (__m512i, u64) {
    // Other bits are above the three: the table does not mind.
    let codes = _mm512_ternarylogic_epi64::<0xca>(_mm512_set1_epi8(2), moved::<1>(middle), moved::<0>(low));
    let codes = _mm512_ternarylogic_epi64::<0xca>(_mm512_set1_epi8(4), moved::<2>(high), codes);
    (_mm512_permutexvar_epi8(codes, table), low & middle & high)
}

/// The bits of a bitmap, each at bit `BIT` of its byte, with others around it.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn moved<const BIT: usize>(bitmap: u64) -> __m512i {
    _mm512_multishift_epi64_epi8(load(&FROM[BIT]), _mm512_set1_epi64(bitmap as i64))
}
