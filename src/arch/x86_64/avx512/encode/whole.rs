//! Blocks of whole strips: codes and raw bits go from the weights' registers to their planes at one go.

use std::arch::x86_64::*;

use super::{BF16, CodeTable, F16, ODD_HALVES, STRIP, WORDS};
use super::{even_and_odd, pack_field, split_bytes, store, store_at, take, vectors, word_halves};
use crate::arch::{PADDED, Scratch, Tables};
use crate::format::HEAD_BITS;

/// Where parts of each weight go.
struct Planes<'a> {
    /// Codes of the first tier.
    codes: &'a mut [u8],
    /// A plane of 8 bits each, or bytes of which a field is cut afterwards.
    head: &'a mut [u8],
    high: &'a mut [u8],
    low: &'a mut [u8],
    /// The planes of 2 bits and of 1 bit of the three that a float16 has below its head, instead of `high`.
    three: Option<[&'a mut [u8]; 2]>,
}

/// As [`super::ragged_first_pass`], of a multiple of [`STRIP`] weights.
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn first_pass<const KIND: u8>(
    tables: &Tables,
    source: &[u8],
    m: u8,
    scratch: &mut Scratch,
    planes: &mut &mut [u8],
    ahead: &[u8],
) -> usize {
    let n = source.len() / size::<KIND>();
    let (a, tier) = (m.min(HEAD_BITS), &tables.tiers[0]);
    let Scratch { below, head, high, low, .. } = scratch;
    let codes = take(planes, tier.width, n);
    // A field of 8 bits is a plane of bytes; of others the planes are cut from bytes that lie elsewhere for a while.
    let (high_bits, low_bits) = ((m - a).min(8), (m - a).saturating_sub(8));
    let mut taken = std::mem::take(planes);
    let head_plane = byte_plane(a + 1, n, &mut taken);
    // Fields come in their order.
    let high_plane = if head_plane.is_some() { byte_plane(high_bits, n, &mut taken) } else { None };
    let low_plane = if high_plane.is_some() { byte_plane(low_bits, n, &mut taken) } else { None };
    let three = (KIND == F16 && high_bits == 3).then(|| [take(&mut taken, 2, n), take(&mut taken, 1, n)]);
    *planes = taken;
    let cut = [head_plane.is_none(), high_plane.is_none() && three.is_none(), low_plane.is_none()];
    let mut parts = Planes {
        codes,
        head: head_plane.unwrap_or(&mut head[..n]),
        high: high_plane.unwrap_or(&mut high[..n]),
        low: low_plane.unwrap_or(&mut low[..n]),
        three,
    };
    let table = CodeTable::new(tier);
    let left = match tier.width {
        1 => strips::<KIND, 1>(table, source, m, &mut parts, below, ahead),
        2 => strips::<KIND, 2>(table, source, m, &mut parts, below, ahead),
        3 => strips::<KIND, 3>(table, source, m, &mut parts, below, ahead),
        _ => strips::<KIND, 4>(table, source, m, &mut parts, below, ahead),
    };
    for (cut, bits, bytes) in
        [(cut[0], a + 1, &head[..n]), (cut[1], high_bits, &high[..n]), (cut[2], low_bits, &low[..n])]
    {
        if cut {
            pack_field(planes, bits, bytes);
        }
    }
    left
}

/// The plane of a field of 8 bits, if it has as many.
fn byte_plane<'a>(bits: u8, n: usize, planes: &mut &'a mut [u8]) -> Option<&'a mut [u8]> {
    if bits == 8 { Some(take(planes, 8, n)) } else { None }
}

/// Bytes of an element.
const fn size<const KIND: u8>() -> usize {
    if KIND == WORDS { 4 } else { 2 }
}

/// Weights of a step: one vector of bytes.
const STEP: usize = 64;

#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn strips<const KIND: u8, const WIDTH: usize>(
    table: CodeTable,
    source: &[u8],
    m: u8,
    planes: &mut Planes<'_>,
    below: &mut [u8; PADDED],
    ahead: &[u8],
) -> usize {
    let a = m.min(HEAD_BITS);
    let shortened = a < HEAD_BITS;
    let mantissa = _mm512_set1_epi8(!(0xffu32 >> a) as i8);
    let (sign, up) = (_mm512_set1_epi8(1), _mm_cvtsi32_si128(7 - i32::from(a)));
    let third = planes.codes.len() / 3;
    let (two, one) = (_mm512_set1_epi8(0xc0u8 as i8), _mm512_set1_epi8(0x20));
    let mut ahead = ahead.chunks(64);
    let mut escaped = 0;
    for (strip, part) in source.chunks_exact(STRIP * size::<KIND>()).enumerate() {
        let (mut packed, mut twos) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        for (j, part) in part.chunks_exact(STEP * size::<KIND>()).enumerate() {
            let step = strip * (STRIP / STEP) + j;
            for line in ahead.by_ref().take(size::<KIND>()) {
                _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
            }
            let Split { exponents, mut heads, high, low } = split::<KIND>(part, m > a);
            if shortened {
                let signs = _mm512_sll_epi16(_mm512_and_si512(heads, sign), up);
                heads = _mm512_or_si512(_mm512_and_si512(heads, mantissa), signs);
            }
            put(planes.head, step * STEP, heads);
            match &mut planes.three {
                Some([_, ones]) if KIND == F16 => {
                    let down = _mm_cvtsi32_si128(6 - 2 * j as i32);
                    twos = _mm512_or_si512(twos, _mm512_srl_epi16(_mm512_and_si512(high, two), down));
                    put_bits(ones, step * 8, _mm512_test_epi8_mask(high, one));
                }
                _ if m > a => {
                    put(planes.high, step * STEP, high);
                    if KIND == WORDS {
                        put(planes.low, step * STEP, low);
                    }
                }
                _ => {}
            }
            let (code, escapes) = table.find(exponents);
            store_at(below, escaped, _mm512_maskz_compress_epi8(escapes, exponents));
            escaped += escapes.count_ones() as usize;
            match WIDTH {
                1 => put_bits(planes.codes, step * 8, escapes),
                3 => (0..3).for_each(|bit| {
                    let bits = _mm512_test_epi8_mask(code, _mm512_set1_epi8(1 << bit));
                    put_bits(planes.codes, bit * third + step * 8, bits);
                }),
                _ => {
                    // So many steps share a vector of codes.
                    let shared = 8 / WIDTH;
                    let up = _mm_cvtsi32_si128((j % shared * WIDTH) as i32);
                    packed = _mm512_or_si512(packed, _mm512_sll_epi16(code, up));
                    if j % shared == shared - 1 {
                        put(planes.codes, step / shared * STEP, packed);
                        packed = _mm512_setzero_si512();
                    }
                }
            }
        }
        if let Some([planes, _]) = &mut planes.three {
            put(planes, strip * STEP, twos);
        }
    }
    escaped
}

/// Stores `v` in `out` from `at` on.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn put(out: &mut [u8], at: usize, v: __m512i) {
    if let Some(out) = out.get_mut(at..at + 64) {
        store(out, v);
    }
}

#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn put_bits(out: &mut [u8], at: usize, bits: u64) {
    if let Some(out) = out.get_mut(at..at + 8) {
        out.copy_from_slice(&bits.to_le_bytes());
    }
}

/// 64 weights in parts.
struct Split {
    exponents: __m512i,
    /// The upper mantissa bits, the sign below them.
    heads: __m512i,
    /// Mantissa bits below those of the head, at the top of their bytes.
    high: __m512i,
    /// Those below.
    low: __m512i,
}

/// Cuts 64 weights; `high` and `low` hold anything unless there is `more` than a head.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn split<const KIND: u8>(part: &[u8], more: bool) -> Split {
    let zero = _mm512_setzero_si512();
    if KIND == WORDS {
        let [x, y, z, w] = vectors(part);
        let xy = _mm512_mask_blend_epi16(ODD_HALVES, _mm512_srli_epi32::<16>(x), y);
        let zw = _mm512_mask_blend_epi16(ODD_HALVES, _mm512_srli_epi32::<16>(z), w);
        let (exponents, heads) =
            split_bytes(_mm512_shldi_epi16::<1>(xy, xy), _mm512_shldi_epi16::<1>(zw, zw));
        let (mut high, mut low) = (zero, zero);
        if more {
            let xy = _mm512_mask_blend_epi16(ODD_HALVES, x, _mm512_slli_epi32::<16>(y));
            let zw = _mm512_mask_blend_epi16(ODD_HALVES, z, _mm512_slli_epi32::<16>(w));
            (high, low) = split_bytes(xy, zw);
        }
        return Split { exponents, heads, high, low };
    }
    let [x, y] = vectors(part);
    if KIND == BF16 {
        let (heads, exponents) = even_and_odd(_mm512_shldi_epi16::<1>(x, x), _mm512_shldi_epi16::<1>(y, y));
        return Split { exponents, heads, high: zero, low: zero };
    }
    let rest = |x, y| _mm512_slli_epi16::<5>(even(x, y));
    let (heads, exponents, high);
    match (f16_upper(x), f16_upper(y)) {
        (Some(upper_x), Some(upper_y)) => {
            (heads, exponents) = even_and_odd(upper_x, upper_y);
            high = rest(x, y);
        }
        _ => {
            let ([upper_x, lower_x], [upper_y, lower_y]) = (word_halves::<F16>(x), word_halves::<F16>(y));
            (heads, exponents) = even_and_odd(
                _mm512_shldi_epi16::<1>(upper_x, upper_x),
                _mm512_shldi_epi16::<1>(upper_y, upper_y),
            );
            high = even_and_odd(lower_x, lower_y).1;
        }
    }
    Split { exponents, heads, high, low: zero }
}

/// Exponents in the upper bytes and heads in the lower ones of float16 elements that are normal numbers, all of them.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn f16_upper(v: __m512i) -> Option<__m512i> {
    let field = _mm512_set1_epi16(31 << 10);
    let exponent = _mm512_and_si512(v, field);
    let zeros = _mm512_testn_epi16_mask(v, field);
    let special = _mm512_cmpeq_epi16_mask(exponent, field);
    if (zeros | special) != 0 {
        return None;
    }
    let moved = _mm512_and_si512(_mm512_srli_epi16::<2>(v), _mm512_set1_epi16(0x1ffe));
    let upper = _mm512_or_si512(moved, _mm512_srli_epi16::<15>(v));
    Some(_mm512_add_epi16(upper, _mm512_set1_epi16(112 << 8)))
}

/// The even bytes of two vectors.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn even(a: __m512i, b: __m512i) -> __m512i {
    let low = _mm512_cvtepi16_epi8(a);
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), _mm512_cvtepi16_epi8(b))
}
