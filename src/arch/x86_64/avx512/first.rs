//! Symbols of whole groups: codes of tier 0, looked up, and the symbols of what escapes from it, where they are used.

use std::arch::x86_64::*;

use super::bitmaps::{Bitmaps, Marks};
use super::grid;
use super::lane::{in_register, load};
use super::symbols::{Symbols, named};
use super::whole::{GROUP, vector};
use crate::arch::{BLOCK, TierTable};

/// The symbols of a block.
#[derive(Clone, Copy)]
pub(super) enum First<'a> {
    /// Yet to be put together.
    Coded(Coded<'a>),
    /// The same, of codes of 3 bits.
    Bitmaps(Bitmaps<'a>),
    /// The same, of codes of 1 bit.
    Marks(Marks<'a>),
    /// As they are.
    Named(&'a Symbols),
}

/// The codes of tier 0, of 2 or of 4 bits, and the symbols of its escapes, handed out in turn. No symbol but the mark has
/// its top bit set.
#[derive(Clone, Copy)]
pub(super) struct Coded<'a> {
    lookups: &'a [[u8; 64]; 3],
    codes: &'a [[u8; 64]],
    escapes: &'a Symbols,
    next: usize,
    /// Whether codes have 2 bits.
    are_pairs: bool,
}

impl<'a> First<'a> {
    /// Those of a block of `n` weights, the symbols of whose escapes these are; `room` is for its symbols.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn new(
        tier: &'a TierTable,
        codes: &'a [u8],
        n: usize,
        escapes: &'a Symbols,
        room: &'a mut Symbols,
    ) -> Self {
        let are_pairs = match tier.width {
            2 if tier.top_marks => true,
            4 if tier.top_marks => false,
            1 => return First::Marks(Marks::new(tier, codes, escapes)),
            3 => return First::Bitmaps(Bitmaps::new(tier, codes, escapes)),
            _ => return First::Named(named(tier, codes, n, escapes, room)),
        };
        First::Coded(Coded {
            lookups: &tier.lookups,
            codes: codes.as_chunks().0,
            escapes,
            next: 0,
            are_pairs,
        })
    }

    /// What the code of a block may take for granted of its tier 0: [`grid::PAIRS`], [`grid::MARKS`] or nothing.
    pub fn codes(&self) -> u8 {
        match self {
            First::Coded(Coded { are_pairs: true, .. }) => grid::PAIRS,
            First::Marks(_) => grid::MARKS,
            _ => 0,
        }
    }

    /// The symbols of group `g`, which is the one after that of the last call, of a block of kind `KIND`. There is a copy
    /// for each `Caller`: with several callers this would be too long to be inlined.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn group<Caller, const KIND: u8>(&mut self, g: usize) -> [__m512i; 4] {
        // With a loop for all of them what each needs would not stay in registers.
        match self {
            First::Coded(coded) if KIND & grid::PAIRS != 0 => coded.group::<Caller, true>(g),
            First::Marks(marks) if KIND & grid::MARKS != 0 => marks.group::<Caller>(g),
            _ if KIND & (grid::PAIRS | grid::MARKS) != 0 => unreachable!("not of kind {KIND}"),
            First::Coded(coded) => coded.group::<Caller, false>(g),
            First::Marks(marks) => marks.group::<Caller>(g),
            First::Bitmaps(bitmaps) => bitmaps.group::<Caller>(g),
            First::Named(symbols) => {
                let quarters = &symbols[g * GROUP..(g + 1) * GROUP];
                [vector(quarters, 0), vector(quarters, 1), vector(quarters, 2), vector(quarters, 3)]
            }
        }
    }
}

impl Coded<'_> {
    /// As [`First::group`]; `PAIRS`: codes have 2 bits.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn group<Caller, const PAIRS: bool>(&mut self, g: usize) -> [__m512i; 4] {
        let [one, two, three] = self.lookups.each_ref().map(|table| load(table));
        let [a, b, c, d] = if PAIRS || self.are_pairs {
            // A vector has all codes of the group. Look-ups see 6 bits: three codes.
            let codes = load(&self.codes[g]);
            let last = _mm512_srli_epi16::<2>(codes);
            [
                _mm512_permutexvar_epi8(codes, one),
                _mm512_permutexvar_epi8(codes, two),
                _mm512_permutexvar_epi8(codes, three),
                _mm512_permutexvar_epi8(last, three),
            ]
        } else {
            let [first, last] = [load(&self.codes[2 * g]), load(&self.codes[2 * g + 1])];
            [
                _mm512_permutexvar_epi8(first, one),
                _mm512_permutexvar_epi8(_mm512_srli_epi16::<4>(first), one),
                _mm512_permutexvar_epi8(last, one),
                _mm512_permutexvar_epi8(_mm512_srli_epi16::<4>(last), one),
            ]
        };
        // Comparing with the mark would take the port of permutations.
        let [mask_a, mask_b, mask_c, mask_d] =
            [_mm512_movepi8_mask(a), _mm512_movepi8_mask(b), _mm512_movepi8_mask(c), _mm512_movepi8_mask(d)];
        // All that the groups before can have used up.
        let at = self.next.min(BLOCK - GROUP);
        let at_b = at + mask_a.count_ones() as usize;
        let at_c = at_b + mask_b.count_ones() as usize;
        let at_d = at_c + mask_c.count_ones() as usize;
        self.next = at_d + mask_d.count_ones() as usize;
        let escapes = |at: usize| {
            // SAFETY: `at` is at most BLOCK - GROUP and three times 64, and 64 bytes are there from BLOCK on.
            in_register(unsafe { _mm512_loadu_si512(self.escapes.as_ptr().add(at).cast()) })
        };
        [
            _mm512_mask_expand_epi8(a, mask_a, escapes(at)),
            _mm512_mask_expand_epi8(b, mask_b, escapes(at_b)),
            _mm512_mask_expand_epi8(c, mask_c, escapes(at_c)),
            _mm512_mask_expand_epi8(d, mask_d, escapes(at_d)),
        ]
    }
}
