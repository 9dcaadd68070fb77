//! Words out of symbols and the planes of raw bits.

use std::arch::x86_64::*;

use super::{LANES, WHOLE, both, first_lanes, for_values, load, spread};
use crate::arch::{BLOCK, BadRecord, Half, PADDED};
use crate::format::{HEAD_BITS, field_planes, plane_bytes};

/// 32 words, but for their exponents.
#[derive(Clone, Copy)]
struct Parts {
    /// The first 7 mantissa bits, and in bit 0 the sign.
    head: __m256i,
    /// The next 8 mantissa bits.
    high: __m256i,
    /// The 8 behind these.
    low: __m256i,
}

/// Calls `$write::<M, STREAM>` for the given mantissa bits, if they are among those listed.
macro_rules! with_m {
    ($write:ident, $m:expr, $stream:expr, $args:tt; $($known:literal)*) => {
        match ($m, $stream) {
            $(($known, false) => Ok($write::<$known, false> $args),)*
            $(($known, true) => Ok($write::<$known, true> $args),)*
            _ => Err(BadRecord),
        }
    };
}

/// Joins symbols and raw planes of a block of whole groups to words.
#[target_feature(enable = "avx2,bmi2,popcnt")]
pub(super) fn join_words(m: u8, symbols: &[u8; PADDED], raw: &[u8], words: &mut [u32], stream: bool) {
    with_m!(write_words, m, stream, (symbols, raw, words);
        0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23)
    .unwrap_or_else(|_| unreachable!("m is at most 23"));
}

#[target_feature(enable = "avx2,bmi2,popcnt")]
fn write_words<const M: usize, const STREAM: bool>(symbols: &[u8; PADDED], raw: &[u8], words: &mut [u32]) {
    let block = Whole::<M>::new(symbols, raw, words.len());
    let (out, _) = words.as_chunks_mut::<LANES>();
    block.for_parts(|i, symbols, parts| {
        let out = out[i].as_mut_ptr().cast();
        // SAFETY: the array has 32 words; all of them are aligned if they are streamed.
        unsafe { store::<STREAM, 4>(out, word_vectors(block.rest(), symbols, parts)) };
    });
}

/// Joins symbols and raw planes of a block of whole groups to elements of 16 bits.
#[target_feature(enable = "avx2,bmi2,popcnt")]
pub(super) fn join_halves(
    m: u8,
    symbols: &[u8; PADDED],
    raw: &[u8],
    format: Half,
    out: &mut [u16],
    stream: bool,
) -> Result<(), BadRecord> {
    match format {
        Half::F16 => with_m!(write_f16, m, stream, (symbols, raw, out); 0 1 2 3 4 5 6 7 8 9 10),
        Half::Bf16 => with_m!(write_bf16, m, stream, (symbols, raw, out); 0 1 2 3 4 5 6 7),
    }
}

#[target_feature(enable = "avx2,bmi2,popcnt")]
fn write_bf16<const M: usize, const STREAM: bool>(symbols: &[u8; PADDED], raw: &[u8], out: &mut [u16]) {
    let block = Whole::<M>::new(symbols, raw, out.len());
    let (out, _) = out.as_chunks_mut::<LANES>();
    block.for_parts(|i, symbols, parts| {
        let out = out[i].as_mut_ptr().cast();
        // SAFETY: the array has 32 elements; all of them are aligned if they are streamed.
        unsafe { store::<STREAM, 2>(out, upper_vectors(symbols, parts.head)) };
    });
}

#[target_feature(enable = "avx2,bmi2,popcnt")]
fn write_f16<const M: usize, const STREAM: bool>(symbols: &[u8; PADDED], raw: &[u8], out: &mut [u16]) {
    let block = Whole::<M>::new(symbols, raw, out.len());
    let (out, _) = out.as_chunks_mut::<LANES>();
    block.for_parts(|i, symbols, parts| {
        let out = out[i].as_mut_ptr().cast();
        // SAFETY: the array has 32 elements; all of them are aligned if they are streamed.
        unsafe { store::<STREAM, 2>(out, float16_vectors(symbols, parts)) };
    });
}

/// The float16 of symbols and parts, in order: mantissas with their leading ones, moved down where the number is subnormal,
/// and added to exponents above that of the smallest normal one. Infinities and NaNs come to the largest exponent.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn float16_vectors(symbols: __m256i, parts: Parts) -> [__m256i; 2] {
    let permuted = |bytes| _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes);
    let (symbols, head, high) = (permuted(symbols), permuted(parts.head), permuted(parts.high));
    let bytes = |value| _mm256_set1_epi8(value);
    // Down by `places` is times 2^(16 - places), and by 16: places are 0 to 10, or more for zeros.
    let places = _mm256_min_epu8(_mm256_subs_epu8(bytes(113), symbols), bytes(15));
    let powers = [both(&POWERS.0), both(&POWERS.1)].map(|table| _mm256_shuffle_epi8(table, places));
    let above = _mm256_min_epu8(_mm256_subs_epu8(symbols, bytes(113)), bytes(30));
    // Shifts of 16 bits bring bits of the neighbour along, where masks or zeros are not in their way.
    let sign = _mm256_and_si256(_mm256_slli_epi16::<7>(head), bytes(i8::MIN));
    let signs = _mm256_or_si256(sign, _mm256_slli_epi16::<2>(above));
    // Up by one place, as 2^16 itself would not be a factor.
    let upper = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16::<5>(head), bytes(7)), bytes(8));
    let lower = _mm256_and_si256(_mm256_slli_epi16::<3>(head), bytes(0xf0u8 as i8));
    let lower = _mm256_or_si256(lower, _mm256_srli_epi16::<4>(high));
    let half = |mantissa, power, signs| _mm256_add_epi16(_mm256_mulhi_epu16(mantissa, power), signs);
    let zero = _mm256_setzero_si256();
    [
        half(
            _mm256_unpacklo_epi8(lower, upper),
            _mm256_unpacklo_epi8(powers[0], powers[1]),
            _mm256_unpacklo_epi8(zero, signs),
        ),
        half(
            _mm256_unpackhi_epi8(lower, upper),
            _mm256_unpackhi_epi8(powers[0], powers[1]),
            _mm256_unpackhi_epi8(zero, signs),
        ),
    ]
}

/// 2^(15 - i), lower and upper bytes, down to 2^5; nothing behind it.
const POWERS: ([u8; 16], [u8; 16]) = {
    let mut powers = ([0; 16], [0; 16]);
    let mut i = 0;
    while i < 11 {
        [powers.0[i], powers.1[i]] = (1u16 << (15 - i)).to_le_bytes();
        i += 1;
    }
    powers
};

/// A block of whole groups, with `M` mantissa bits.
struct Whole<'a, const M: usize> {
    symbols: &'a [u8; PADDED],
    raw: &'a [u8],
    n: usize,
    table: __m256i,
}

impl<'a, const M: usize> Whole<'a, M> {
    const HEAD: usize = if M < HEAD_BITS as usize { M } else { HEAD_BITS as usize };

    #[inline]
    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn new(symbols: &'a [u8; PADDED], raw: &'a [u8], n: usize) -> Self {
        assert!(n.is_multiple_of(WHOLE) && n <= BLOCK && raw.len() == n / 8 * (M + 1));
        Whole { symbols, raw, n, table: both(&const { head_table(M) }) }
    }

    /// Mantissa bits behind the head.
    #[inline(always)]
    const fn rest(&self) -> usize {
        M - Self::HEAD
    }

    /// Calls `body` with each 32 words in turn: their place in thirty-twos, symbols and other parts.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn for_parts(&self, mut body: impl FnMut(usize, __m256i, Parts)) {
        for g in 0..self.n / WHOLE {
            // Where bits lie in a group is known to the compiler.
            let mut part = |i, (symbols, parts)| body(g * (WHOLE / LANES) + i, symbols, parts);
            part(0, self.parts::<0>(g));
            part(1, self.parts::<1>(g));
            part(2, self.parts::<2>(g));
            part(3, self.parts::<3>(g));
            part(4, self.parts::<4>(g));
            part(5, self.parts::<5>(g));
            part(6, self.parts::<6>(g));
            part(7, self.parts::<7>(g));
        }
    }

    /// Symbols and other parts of the `J`th 32 words of group `g`.
    #[inline]
    #[target_feature(enable = "avx2,bmi2,popcnt")]
    fn parts<const J: usize>(&self, g: usize) -> (__m256i, Parts) {
        let (start, at) = (g * WHOLE, const { J * LANES });
        assert!(at < WHOLE && start < self.n);
        let (raw, n) = (self.raw.as_ptr(), self.n);
        // SAFETY: the planes of all fields are in `raw`, as long as `n` values of their widths, and all of their groups
        // are whole; `symbols` has BLOCK bytes and more.
        unsafe {
            let head = head::<M>(raw, n, start, at, self.table);
            let rest = raw.add(n / 8 * (Self::HEAD + 1));
            let high = aligned(self.rest().min(8), rest, n, start, at);
            let low = aligned(self.rest().saturating_sub(8), rest.add(n), n, start, at);
            (load(self.symbols.as_ptr().add(start + at)), Parts { head, high, low })
        }
    }
}

/// Mantissa bits of a head with `m` of them, and its sign in bit 0, by what its last planes hold: up to 4 bits, or
/// those behind the first 4.
const fn head_table(m: usize) -> [u8; 16] {
    let (bits, top) = if m > 3 { (m.saturating_sub(4), 4) } else { (m, 8) };
    let mut table = [0; 16];
    let mut value = 0;
    while value < 16 {
        table[value] = ((value >> 1) << (top - bits % 4) | value & 1) as u8;
        value += 1;
    }
    table
}

/// Bytes `at..at + 32` of the heads of a group that starts at value `start`, as [`Parts`] has them.
///
/// # Safety
/// `planes` points at the planes of `n` heads of `M` mantissa bits, whole groups all.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
unsafe fn head<const M: usize>(
    planes: *const u8,
    n: usize,
    start: usize,
    at: usize,
    table: __m256i,
) -> __m256i {
    // SAFETY: the caller's.
    unsafe {
        match M {
            7.. => load(planes.add(start + at)),
            4..7 => {
                let first = _mm256_slli_epi16::<4>(packed::<4>(planes, start, at));
                let last = small(M - 3, planes.add(n / 2), n, start, at);
                _mm256_or_si256(first, _mm256_shuffle_epi8(table, last))
            }
            _ => _mm256_shuffle_epi8(table, small(M + 1, planes, n, start, at)),
        }
    }
}

/// Values of `bits` (0 to 8) bits at the top of their bytes.
///
/// # Safety
/// As [`head`].
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
unsafe fn aligned(bits: usize, planes: *const u8, n: usize, start: usize, at: usize) -> __m256i {
    let up = |value, by: usize| _mm256_sll_epi16(value, _mm_cvtsi32_si128(by as i32));
    // SAFETY: the caller's.
    unsafe {
        match bits {
            0 => _mm256_setzero_si256(),
            8 => load(planes.add(start + at)),
            5..8 => {
                let first = up(packed::<4>(planes, start, at), 4);
                let last = small(bits - 4, planes.add(n / 2), n, start, at);
                _mm256_or_si256(first, up(last, 8 - bits))
            }
            _ => up(small(bits, planes, n, start, at), 8 - bits),
        }
    }
}

/// Values of 1 to 4 bits.
///
/// # Safety
/// As [`head`].
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
unsafe fn small(bits: usize, planes: *const u8, n: usize, start: usize, at: usize) -> __m256i {
    // SAFETY: the caller's.
    unsafe {
        let bit = |planes: *const u8| {
            let bits = planes.add((start + at) / 8).cast::<u32>().read_unaligned();
            spread(u32::from_le(bits))
        };
        match bits {
            4 => packed::<4>(planes, start, at),
            3 => {
                let pair = packed::<2>(planes, start, at);
                // A set bit is all ones: taking it away adds one.
                _mm256_sub_epi8(_mm256_add_epi8(pair, pair), bit(planes.add(n / 4)))
            }
            2 => packed::<2>(planes, start, at),
            _ => _mm256_and_si256(bit(planes), _mm256_set1_epi8(1)),
        }
    }
}

/// Values of `W` (2 or 4) bits.
///
/// # Safety
/// As [`head`].
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
unsafe fn packed<const W: usize>(plane: *const u8, start: usize, at: usize) -> __m256i {
    let group = 512 / W;
    let byte = start * W / 8 + at / group * 64 + at % 64;
    let shift = at % group / 64 * W;
    // SAFETY: the caller's.
    let packed = unsafe { load(plane.add(byte)) };
    let values = _mm256_srl_epi32(packed, _mm_cvtsi32_si128(shift as i32));
    _mm256_and_si256(values, _mm256_set1_epi8((1 << W) - 1))
}

/// The words of symbols and what `rest` mantissa bits behind the head leave of their parts.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn word_vectors(rest: usize, symbols: __m256i, parts: Parts) -> [__m256i; 4] {
    // Every fourth byte quad goes to the same place of the two halves, so that words come out in order.
    let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    let permuted = |bytes| _mm256_permutevar8x32_epi32(bytes, order);
    let rotated = |pair| _mm256_or_si256(_mm256_srli_epi16::<1>(pair), _mm256_slli_epi16::<15>(pair));
    let (symbols, head) = (permuted(symbols), permuted(parts.head));
    let upper = (rotated(_mm256_unpacklo_epi8(head, symbols)), rotated(_mm256_unpackhi_epi8(head, symbols)));
    let zero = _mm256_setzero_si256();
    let lower = if rest == 0 {
        (zero, zero)
    } else {
        let low = if rest > 8 { permuted(parts.low) } else { zero };
        let high = permuted(parts.high);
        (_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high))
    };
    [
        _mm256_unpacklo_epi16(lower.0, upper.0),
        _mm256_unpackhi_epi16(lower.0, upper.0),
        _mm256_unpacklo_epi16(lower.1, upper.1),
        _mm256_unpackhi_epi16(lower.1, upper.1),
    ]
}

/// The upper halves of the words, in order.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn upper_vectors(symbols: __m256i, head: __m256i) -> [__m256i; 2] {
    let permuted = |bytes| _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes);
    let rotated = |pair| _mm256_or_si256(_mm256_srli_epi16::<1>(pair), _mm256_slli_epi16::<15>(pair));
    let (symbols, head) = (permuted(symbols), permuted(head));
    [rotated(_mm256_unpacklo_epi8(head, symbols)), rotated(_mm256_unpackhi_epi8(head, symbols))]
}

/// Stores vectors, past the caches if `STREAM`.
///
/// # Safety
/// `out` has room for them, and is a multiple of 32 if `STREAM`.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
unsafe fn store<const STREAM: bool, const N: usize>(out: *mut __m256i, vectors: [__m256i; N]) {
    for (i, vector) in vectors.into_iter().enumerate() {
        // SAFETY: the caller's.
        unsafe {
            let out = out.add(i);
            if STREAM { _mm256_stream_si256(out, vector) } else { _mm256_storeu_si256(out, vector) }
        }
    }
}

/// As [`join_words`], of a block that ends anywhere: its fields are first unpacked to bytes.
#[target_feature(enable = "avx2,bmi2,popcnt")]
pub(super) fn join_ragged(
    m: u8,
    symbols: &[u8; PADDED],
    raw: &[u8],
    (head, high, low): (&mut [u8; PADDED], &mut [u8; PADDED], &mut [u8; PADDED]),
    words: &mut [u32],
) {
    let n = words.len();
    let a = m.min(HEAD_BITS);
    let mut planes = raw;
    unpack(&mut planes, a + 1, n, head);
    unpack(&mut planes, (m - a).min(8), n, high);
    unpack(&mut planes, (m - a).saturating_sub(8), n, low);
    if a < HEAD_BITS {
        let sign = 1u8 << (HEAD_BITS - a);
        for byte in head.iter_mut() {
            *byte = *byte & sign.wrapping_neg() & !sign | u8::from(*byte & sign != 0);
        }
    }
    for (i, out) in words.chunks_mut(LANES).enumerate() {
        let at = i * LANES;
        // SAFETY: `at` is below BLOCK, and all arrays have two vectors more than that.
        let (symbols, parts) = unsafe {
            let (head, high, low) = (head.as_ptr().add(at), high.as_ptr().add(at), low.as_ptr().add(at));
            let parts = Parts { head: load(head), high: load(high), low: load(low) };
            (load(symbols.as_ptr().add(at)), parts)
        };
        let mut copy = [0u32; LANES];
        // SAFETY: the array has 32 words.
        unsafe { store::<false, 4>(copy.as_mut_ptr().cast(), word_vectors(16, symbols, parts)) };
        out.copy_from_slice(&copy[..out.len()]);
    }
}

/// Unpacks a field of at most 8 bits from its planes, which it takes away, to the tops of `out`'s first `n` bytes.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
fn unpack(planes: &mut &[u8], bits: u8, n: usize, out: &mut [u8; PADDED]) {
    out[..n].fill(0);
    let mut used = 0;
    for width in field_planes(bits) {
        let (plane, rest) = planes.split_at(plane_bytes(width, n));
        *planes = rest;
        used += width;
        let up = _mm_cvtsi32_si128(i32::from(8 - used));
        let mut add = |at: usize, len: usize, values: __m256i| {
            let values = _mm256_sll_epi16(_mm256_and_si256(values, _mm256_set1_epi8((1 << width) - 1)), up);
            // SAFETY: `at` is below BLOCK, and the array has two vectors more than that.
            unsafe {
                let place = out.as_mut_ptr().add(at.min(BLOCK));
                let values = _mm256_and_si256(values, first_lanes(len));
                _mm256_storeu_si256(place.cast(), _mm256_or_si256(load(place), values));
            }
        };
        match width {
            8 => out[..n].copy_from_slice(plane),
            4 => for_values::<4>(plane, n, &mut add),
            2 => for_values::<2>(plane, n, &mut add),
            _ => for_values::<1>(plane, n, &mut add),
        }
    }
}
