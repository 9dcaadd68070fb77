//! Symbols of whole groups: codes of tier 0, looked up, and the symbols of what escapes from it, where they are used.

use std::arch::x86_64::*;

use super::bitmaps::{Bitmaps, Marks};
use super::lane::{in_register, load};
use super::symbols::{Symbols, named};
use super::whole::{GROUP, vector};
use crate::arch::{BLOCK, TierTable};

/// How far codes of 2 and of 4 bits are shifted for the second, third and fourth quarter of a group: in memory, since
/// shifting by a count that is known to be the same everywhere takes the port of permutations.
static DOWN: [[[u16; 32]; 3]; 2] = [[[2; 32], [4; 32], [6; 32]], [[4; 32], [0; 32], [4; 32]]];

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
    lookup: &'a [u8; 64],
    codes: &'a [[u8; 64]],
    escapes: &'a Symbols,
    next: usize,
    /// Vectors of codes a group, as a power of two, and [`DOWN`].
    log: usize,
    down: &'static [[u16; 32]; 3],
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
        let log = match tier.width {
            2 if tier.top_marks => 0,
            4 if tier.top_marks => 1,
            1 => return First::Marks(Marks::new(tier, codes, escapes)),
            3 => return First::Bitmaps(Bitmaps::new(tier, codes, escapes)),
            _ => return First::Named(named(tier, codes, n, escapes, room)),
        };
        let codes = codes.as_chunks().0;
        First::Coded(Coded { lookup: &tier.lookup, codes, escapes, next: 0, log, down: &DOWN[log] })
    }

    /// The symbols of group `g`, which is the one after that of the last call. There is a copy for each `Caller`: with
    /// several callers this would be too long to be inlined.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn group<Caller>(&mut self, g: usize) -> [__m512i; 4] {
        let coded = match self {
            First::Coded(coded) => coded,
            First::Marks(marks) => return marks.group::<Caller>(g),
            First::Bitmaps(bitmaps) => return bitmaps.group::<Caller>(g),
            First::Named(symbols) => {
                let quarters = &symbols[g * GROUP..(g + 1) * GROUP];
                return [vector(quarters, 0), vector(quarters, 1), vector(quarters, 2), vector(quarters, 3)];
            }
        };
        // Of 2 bits, a vector has all codes of the group; of 4 bits, half of them.
        let codes = &coded.codes[g << coded.log..=(g << coded.log) + coded.log];
        let (first, last) = (load(&codes[0]), load(&codes[codes.len() - 1]));
        let down = |codes, i: usize| _mm512_srlv_epi16(codes, load(bytemuck::bytes_of(&coded.down[i])));
        let table = load(coded.lookup);
        let a = _mm512_permutexvar_epi8(first, table);
        let b = _mm512_permutexvar_epi8(down(first, 0), table);
        let c = _mm512_permutexvar_epi8(down(last, 1), table);
        let d = _mm512_permutexvar_epi8(down(last, 2), table);
        // Comparing with the mark would take the port of permutations.
        let [mask_a, mask_b, mask_c, mask_d] =
            [_mm512_movepi8_mask(a), _mm512_movepi8_mask(b), _mm512_movepi8_mask(c), _mm512_movepi8_mask(d)];
        // All that the groups before can have used up.
        let at = coded.next.min(BLOCK - GROUP);
        let at_b = at + mask_a.count_ones() as usize;
        let at_c = at_b + mask_b.count_ones() as usize;
        let at_d = at_c + mask_c.count_ones() as usize;
        coded.next = at_d + mask_d.count_ones() as usize;
        let escapes = |at: usize| {
            // SAFETY: `at` is at most BLOCK - GROUP and three times 64, and 64 bytes are there from BLOCK on.
            in_register(unsafe { _mm512_loadu_si512(coded.escapes.as_ptr().add(at).cast()) })
        };
        [
            _mm512_mask_expand_epi8(a, mask_a, escapes(at)),
            _mm512_mask_expand_epi8(b, mask_b, escapes(at_b)),
            _mm512_mask_expand_epi8(c, mask_c, escapes(at_c)),
            _mm512_mask_expand_epi8(d, mask_d, escapes(at_d)),
        ]
    }
}
