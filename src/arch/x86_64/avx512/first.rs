//! Symbols of whole groups: codes of tier 0, looked up, and the symbols of what escapes from it, where they are used.

use std::arch::x86_64::*;

use super::lane::{bits_of, load, load_at};
use super::symbols::Symbols;
use super::whole::{GROUP, vector};
use crate::arch::{BLOCK, TierTable};

/// How far codes of 2 and of 4 bits are shifted for the second, third and fourth quarter of a group: in memory, since
/// shifting by a count that is known to be the same everywhere takes the port of permutations.
static DOWN: [[[u16; 32]; 3]; 2] = [[[2; 32], [4; 32], [6; 32]], [[4; 32], [0; 32], [4; 32]]];

/// The codes of tier 0, and the symbols of its escapes, handed out in turn.
#[derive(Clone, Copy)]
pub(super) struct First<'a> {
    tier: &'a TierTable,
    codes: &'a [u8],
    escapes: &'a Symbols,
    next: usize,
    /// If codes have 2 or 4 bits and no symbol but the mark has its top bit set: vectors of codes a group, and [`DOWN`].
    plain: Option<(usize, &'static [[u16; 32]; 3])>,
}

impl<'a> First<'a> {
    /// Those of a block, the symbols of whose escapes these are.
    pub fn new(tier: &'a TierTable, codes: &'a [u8], escapes: &'a Symbols) -> Self {
        let plain = match tier.width {
            2 if tier.top_marks => Some((1, &DOWN[0])),
            4 if tier.top_marks => Some((2, &DOWN[1])),
            _ => None,
        };
        First { tier, codes, escapes, next: 0, plain }
    }

    /// The symbols of group `g`, which is the one after that of the last call. There is a copy for each `Caller`: with
    /// several callers this would be too long to be inlined.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    #[expect(clippy::extra_unused_type_parameters, reason = "makes a copy for each caller")]
    pub fn group<Caller>(&mut self, g: usize) -> [__m512i; 4] {
        let Some((vectors, down)) = self.plain else {
            let symbols;
            (*self, symbols) = self.any_group(g);
            return symbols;
        };
        // Of 2 bits, a vector has all codes of the group; of 4 bits, half of them.
        let last = (g + 1) * vectors * 64;
        let codes = &self.codes[last - vectors * 64..last];
        let (first, last) = (load(codes), load(&codes[codes.len() - 64..]));
        let down = |codes, i: usize| _mm512_srlv_epi16(codes, load(bytemuck::bytes_of(&down[i])));
        let table = load(&self.tier.lookup);
        let a = _mm512_permutexvar_epi8(first, table);
        let b = _mm512_permutexvar_epi8(down(first, 0), table);
        let c = _mm512_permutexvar_epi8(down(last, 1), table);
        let d = _mm512_permutexvar_epi8(down(last, 2), table);
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
            unsafe { _mm512_loadu_si512(self.escapes.as_ptr().add(at).cast()) }
        };
        [
            _mm512_mask_expand_epi8(a, mask_a, escapes(at)),
            _mm512_mask_expand_epi8(b, mask_b, escapes(at_b)),
            _mm512_mask_expand_epi8(c, mask_c, escapes(at_c)),
            _mm512_mask_expand_epi8(d, mask_d, escapes(at_d)),
        ]
    }

    /// As [`First::group`], of any codes and symbols. By value: what has its address taken stays in memory.
    #[cold]
    #[inline(never)]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn any_group(mut self, g: usize) -> (Self, [__m512i; 4]) {
        let width = usize::from(self.tier.width);
        let (table, mark) = (load(&self.tier.lookup), _mm512_set1_epi8(self.tier.mark as i8));
        let mut symbols = [_mm512_setzero_si512(); 4];
        for (quarter, symbols) in (g * 4..).zip(&mut symbols) {
            let codes = if width.is_multiple_of(2) {
                let down = _mm_cvtsi32_si128((quarter * width % 8) as i32);
                _mm512_srl_epi16(vector(self.codes, quarter * width / 8), down)
            } else {
                let plane = self.codes.len() / width;
                let bits = |of: usize| bits_of(&self.codes[of * plane + quarter * 8..][..8]);
                let bit = |of: usize| _mm512_maskz_set1_epi8(bits(of), 1 << of);
                (1..width).fold(bit(0), |codes, of| _mm512_or_si512(codes, bit(of)))
            };
            let named = _mm512_permutexvar_epi8(codes, table);
            let escaped = _mm512_cmpeq_epi8_mask(named, mark);
            *symbols = _mm512_mask_expand_epi8(named, escaped, load_at(self.escapes, self.next));
            self.next += escaped.count_ones() as usize;
        }
        (self, symbols)
    }
}
