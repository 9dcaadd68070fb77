//! The block encoder for AVX-512 with VBMI and VBMI2: words are cut in byte planes by blends and one permutation,
//! codes come from a table of bytes, escapes are gathered by a byte compress.
//!
//! Every function names all features: a closure inlines only into a function that has its features too.

mod whole;

use std::arch::x86_64::*;

use crate::arch::{BLOCK, Half, PADDED, Scratch, Tables, TierTable};
use crate::format::{HEAD_BITS, field_planes, plane_bytes};

/// As [`crate::arch::Backend::encode`].
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn encode(
    tables: &Tables,
    words: &[u32],
    scratch: &mut Scratch,
    out: &mut [u8],
    ahead: &[u8],
) -> (u8, usize) {
    let mut union = 0;
    for part in words.chunks(256) {
        union |= part.iter().fold(0, |all, w| all | w) & 0x7f_ffff;
        // What is above the lowest bit does not matter.
        if union & 1 != 0 {
            break;
        }
    }
    encode_block::<WORDS>(tables, bytemuck::cast_slice(words), union, scratch, out, ahead)
}

/// As [`crate::arch::Backend::encode_halves`].
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn encode_halves(
    tables: &Tables,
    format: Half,
    halves: &[u8],
    scratch: &mut Scratch,
    out: &mut [u8],
    ahead: &[u8],
) -> Option<(u8, usize)> {
    Some(match format {
        Half::F16 => {
            let union = mantissas_of_f16(halves) << 13;
            encode_block::<F16>(tables, halves, union, scratch, out, ahead)
        }
        Half::Bf16 => {
            let union = mantissas_of_bf16(halves)? << 16;
            encode_block::<BF16>(tables, halves, union, scratch, out, ahead)
        }
    })
}

/// Kinds of source: words, or elements of 16 bits.
const WORDS: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

/// The union of the mantissas of bfloat16 elements; `None` if one is subnormal.
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn mantissas_of_bf16(halves: &[u8]) -> Option<u32> {
    let mantissa = _mm512_set1_epi16(0x7f);
    let (mut all, mut subnormal) = (_mm512_setzero_si512(), 0);
    for part in halves.chunks(64) {
        let v = load(part);
        all = _mm512_or_si512(all, v);
        subnormal |= subnormals(v, mantissa);
    }
    (subnormal == 0).then(|| union_of(_mm512_and_si512(all, mantissa)))
}

/// The union of the mantissas of float16 elements, of subnormal ones normalised; less than that where it has the lowest bit,
/// as no other matters then.
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn mantissas_of_f16(halves: &[u8]) -> u32 {
    let mantissa = _mm512_set1_epi16(0x3ff);
    let mut all = _mm512_setzero_si512();
    for part in halves.chunks(64) {
        let mut v = load(part);
        let subnormal = subnormals(v, mantissa);
        if subnormal != 0 {
            let [upper, lower] = converted(v);
            v = _mm512_mask_mov_epi16(v, subnormal, _mm512_shldi_epi16::<3>(upper, lower));
        }
        all = _mm512_or_si512(all, v);
        if _mm512_test_epi16_mask(all, _mm512_set1_epi16(1)) != 0 {
            break;
        }
    }
    union_of(_mm512_and_si512(all, mantissa))
}

/// The 16-bit elements that are subnormal.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn subnormals(v: __m512i, mantissa: __m512i) -> u32 {
    let exponent = _mm512_andnot_si512(mantissa, _mm512_set1_epi16(i16::MAX));
    _mm512_mask_test_epi16_mask(_mm512_testn_epi16_mask(v, exponent), v, mantissa)
}

/// Bits that any of 32 elements has.
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn union_of(all: __m512i) -> u32 {
    let mut parts = [0u16; 32];
    store(bytemuck::cast_slice_mut(&mut parts), all);
    parts.iter().fold(0, |all, &part| all | u32::from(part))
}

/// The record of a block of kind `KIND` whose mantissas have these bits among them.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn encode_block<const KIND: u8>(
    tables: &Tables,
    source: &[u8],
    union: u32,
    scratch: &mut Scratch,
    out: &mut [u8],
    ahead: &[u8],
) -> (u8, usize) {
    let n = source.len() / if KIND == WORDS { 4 } else { 2 };
    let m = if union == 0 { 0 } else { 23 - union.trailing_zeros() as u8 };
    let room = out.len();
    let mut planes = out;

    let left = if n.is_multiple_of(STRIP) {
        whole::first_pass::<KIND>(tables, source, m, scratch, &mut planes, ahead)
    } else {
        ragged_first_pass::<KIND>(tables, source, m, scratch, &mut planes, ahead)
    };
    later_tiers(tables, left, scratch, &mut planes);
    (m, room - planes.len())
}

/// Weights whose codes of 2 bits fill a vector.
const STRIP: usize = 256;

/// Fills the planes of the first tier and of the raw bits; puts what escapes at the front of `below` and returns how many
/// those are.
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn ragged_first_pass<const KIND: u8>(
    tables: &Tables,
    source: &[u8],
    m: u8,
    scratch: &mut Scratch,
    planes: &mut &mut [u8],
    ahead: &[u8],
) -> usize {
    let n = source.len() / if KIND == WORDS { 4 } else { 2 };
    let a = m.min(HEAD_BITS);
    let Scratch { codes, symbols, below, head, high, low, .. } = scratch;
    split_upper::<KIND>(source, a, symbols, head, ahead);
    let left = encode_tier(&tables.tiers[0], symbols, n, codes, below, planes);
    pack_field(planes, a + 1, &head[..n]);
    if m > a {
        split_lower::<KIND>(source, high, low);
        pack_field(planes, (m - a).min(8), &high[..n]);
        pack_field(planes, (m - a).saturating_sub(8), &low[..n]);
    }
    left
}

/// Appends the planes of all tiers but the first, of which `left` symbols are at the front of `below`, and the literals.
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn later_tiers(tables: &Tables, mut left: usize, scratch: &mut Scratch, planes: &mut &mut [u8]) {
    let Scratch { codes, symbols, below, .. } = scratch;
    let (mut symbols, mut below) = (symbols, below);
    for tier in &tables.tiers[1..] {
        std::mem::swap(&mut symbols, &mut below);
        left = encode_tier(tier, symbols, left, codes, below, planes);
    }
    take(planes, 8, left).copy_from_slice(&below[..left]);
}

/// Appends the plane of a tier over `n` symbols, and puts those that escape at the front of `below`: how many they are.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn encode_tier(
    tier: &TierTable,
    symbols: &[u8; PADDED],
    n: usize,
    codes: &mut [u8; BLOCK],
    below: &mut [u8; PADDED],
    planes: &mut &mut [u8],
) -> usize {
    let plane = take(planes, tier.width, n);
    if tier.width == 1 {
        return encode_bits(tier.symbols[0], &symbols[..n], below, plane);
    }
    let left = find_codes(tier, symbols, n, codes, below);
    pack(plane, tier.width, &codes[..n], 0);
    left
}

/// The same for a tier that names one symbol: its codes are whether symbols escape.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn encode_bits(named: u8, symbols: &[u8], below: &mut [u8; PADDED], plane: &mut [u8]) -> usize {
    let named = _mm512_set1_epi8(named as i8);
    let mut escaped = 0;
    for (symbols, plane) in symbols.chunks(64).zip(plane.chunks_mut(8)) {
        let part = load(symbols);
        let escapes = _mm512_cmpneq_epi8_mask(part, named) & lanes(symbols.len());
        store_at(below, escaped, _mm512_maskz_compress_epi8(escapes, part));
        escaped += escapes.count_ones() as usize;
        plane.copy_from_slice(&escapes.to_le_bytes()[..plane.len()]);
    }
    escaped
}

fn take<'a>(planes: &mut &'a mut [u8], width: u8, n: usize) -> &'a mut [u8] {
    let (plane, rest) = std::mem::take(planes).split_at_mut(plane_bytes(width, n));
    *planes = rest;
    plane
}

/// The first `n` of 64 lanes.
#[inline]
fn lanes(n: usize) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

/// Up to 64 bytes of `bytes`, zeros behind them.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn load(bytes: &[u8]) -> __m512i {
    // SAFETY: the slice has 64 bytes, or the mask admits only its own.
    unsafe {
        match bytes.len() {
            64.. => _mm512_loadu_si512(bytes.as_ptr().cast()),
            n => _mm512_maskz_loadu_epi8(lanes(n), bytes.as_ptr().cast()),
        }
    }
}

/// Stores the first lanes of `v`, as many as `out` is long, at most 64.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn store(out: &mut [u8], v: __m512i) {
    // SAFETY: the slice has 64 bytes, or the mask admits only its own. (Masked stores are slow.)
    unsafe {
        match out.len() {
            64.. => _mm512_storeu_si512(out.as_mut_ptr().cast(), v),
            n => _mm512_mask_storeu_epi8(out.as_mut_ptr().cast(), lanes(n), v),
        }
    }
}

/// Stores `v` in the 64 bytes of `out` from `at` on.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn store_at(out: &mut [u8; PADDED], at: usize, v: __m512i) {
    let at = at.min(BLOCK);
    // SAFETY: `at` is at most BLOCK, and the array has 64 bytes behind that.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(at).cast(), v) }
}

/// Up to 64 bytes of the source for each of `N` vectors, zeros behind them.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn vectors<const N: usize>(bytes: &[u8]) -> [__m512i; N] {
    let whole = bytes.len() == N * 64;
    let mut out = [_mm512_setzero_si512(); N];
    for (i, v) in out.iter_mut().enumerate() {
        let end = if whole { i * 64 + 64 } else { bytes.len().min(i * 64 + 64) };
        *v = load(&bytes[end.min(i * 64)..end]);
    }
    out
}

/// Where [`split_bytes`] finds the byte of each of 64 words.
const ORDER: [u8; 64] = {
    let mut order = [0; 64];
    let mut i = 0;
    while i < 64 {
        order[i] = [0, 2, 1, 3][i / 16] + 4 * (i % 16) as u8;
        i += 1;
    }
    order
};

/// The upper and the lower bytes of the 16-bit halves of four vectors' words, in the words' order: `ab` has halves
/// of the first vector in its even, of the second in its odd places, `cd` those of the other two.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn split_bytes(ab: __m512i, cd: __m512i) -> (__m512i, __m512i) {
    const ODD: u64 = 0xaaaa_aaaa_aaaa_aaaa;
    let order = load(&ORDER);
    let upper = _mm512_mask_blend_epi8(ODD, _mm512_srli_epi16::<8>(ab), cd);
    let lower = _mm512_mask_blend_epi8(ODD, ab, _mm512_slli_epi16::<8>(cd));
    (_mm512_permutexvar_epi8(order, upper), _mm512_permutexvar_epi8(order, lower))
}

const ODD_HALVES: u32 = 0xaaaa_aaaa;

/// The upper and the lower halves of the words of 32 elements of 16 bits.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn word_halves<const KIND: u8>(v: __m512i) -> [__m512i; 2] {
    if KIND == BF16 {
        return [v, _mm512_setzero_si512()];
    }
    let sign = _mm512_set1_epi16(i16::MIN);
    let magnitude = _mm512_andnot_si512(sign, v);
    let (rebias, infinity) = (_mm512_set1_epi16(112 << 7), _mm512_set1_epi16(31 << 10));
    let special = _mm512_cmpge_epu16_mask(magnitude, infinity);
    let upper = _mm512_add_epi16(_mm512_srli_epi16::<3>(magnitude), rebias);
    let upper = _mm512_mask_add_epi16(upper, special, upper, rebias);
    let upper = _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(magnitude, magnitude), upper);
    let upper = _mm512_ternarylogic_epi64::<0xd8>(upper, v, sign); // sign ? v : upper
    let lower = _mm512_slli_epi16::<13>(v);
    let subnormal = subnormals(v, _mm512_set1_epi16(0x3ff));
    if subnormal == 0 {
        return [upper, lower];
    }
    let mended = converted(v);
    [_mm512_mask_mov_epi16(upper, subnormal, mended[0]), _mm512_mask_mov_epi16(lower, subnormal, mended[1])]
}

/// The same for float16 elements, by the instruction that converts them: not for NaNs, which it makes quiet.
#[cold]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn converted(v: __m512i) -> [__m512i; 2] {
    let front = _mm512_castps_si512(_mm512_cvtph_ps(_mm512_castsi512_si256(v)));
    let back = _mm512_castps_si512(_mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(v)));
    let both = |front, back| {
        let front = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(front));
        _mm512_inserti64x4::<1>(front, _mm512_cvtepi32_epi16(back))
    };
    [both(_mm512_srli_epi32::<16>(front), _mm512_srli_epi32::<16>(back)), both(front, back)]
}

/// The even and the odd bytes of two vectors.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn even_and_odd(a: __m512i, b: __m512i) -> (__m512i, __m512i) {
    const EVEN: [u8; 64] = {
        let mut order = [0; 64];
        let mut i = 0;
        while i < 64 {
            order[i] = 2 * i as u8;
            i += 1;
        }
        order
    };
    let even = load(&EVEN);
    let odd = _mm512_add_epi8(even, _mm512_set1_epi8(1));
    (_mm512_permutex2var_epi8(a, even, b), _mm512_permutex2var_epi8(a, odd, b))
}

/// Exponents, and heads of `a` mantissa bits and the sign, at the top of their bytes. Fetches `ahead` on the way.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn split_upper<const KIND: u8>(
    source: &[u8],
    a: u8,
    symbols: &mut [u8; PADDED],
    head: &mut [u8; PADDED],
    ahead: &[u8],
) {
    let mantissa = _mm512_set1_epi8(!(0xffu32 >> a) as i8);
    let (sign, up) = (_mm512_set1_epi8(1), _mm_cvtsi32_si128(7 - i32::from(a)));
    let lines = if KIND == WORDS { 4 } else { 2 };
    let mut ahead = ahead.chunks(64);
    for (i, part) in source.chunks(64 * lines).enumerate() {
        for line in ahead.by_ref().take(lines) {
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
        }
        // The sign goes below the mantissa.
        let (exponents, heads) = if KIND == WORDS {
            let [x, y, z, w] = vectors(part);
            let xy = _mm512_mask_blend_epi16(ODD_HALVES, _mm512_srli_epi32::<16>(x), y);
            let zw = _mm512_mask_blend_epi16(ODD_HALVES, _mm512_srli_epi32::<16>(z), w);
            split_bytes(_mm512_shldi_epi16::<1>(xy, xy), _mm512_shldi_epi16::<1>(zw, zw))
        } else {
            let [x, y] = vectors(part);
            let ([x, _], [y, _]) = (word_halves::<KIND>(x), word_halves::<KIND>(y));
            let (heads, exponents) =
                even_and_odd(_mm512_shldi_epi16::<1>(x, x), _mm512_shldi_epi16::<1>(y, y));
            (exponents, heads)
        };
        let signs = _mm512_sll_epi16(_mm512_and_si512(heads, sign), up);
        store_at(symbols, i * 64, exponents);
        store_at(head, i * 64, _mm512_or_si512(_mm512_and_si512(heads, mantissa), signs));
    }
}

/// The two lower bytes of each word: mantissa bits below the head.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn split_lower<const KIND: u8>(source: &[u8], high: &mut [u8; PADDED], low: &mut [u8; PADDED]) {
    for (i, part) in source.chunks(if KIND == WORDS { 256 } else { 128 }).enumerate() {
        if KIND == WORDS {
            let [x, y, z, w] = vectors(part);
            let xy = _mm512_mask_blend_epi16(ODD_HALVES, x, _mm512_slli_epi32::<16>(y));
            let zw = _mm512_mask_blend_epi16(ODD_HALVES, z, _mm512_slli_epi32::<16>(w));
            let (upper, lower) = split_bytes(xy, zw);
            store_at(high, i * 64, upper);
            store_at(low, i * 64, lower);
        } else {
            // Three bits of a float16, at the top of a byte.
            let [x, y] = vectors(part);
            let ([_, x], [_, y]) = (word_halves::<KIND>(x), word_halves::<KIND>(y));
            store_at(high, i * 64, even_and_odd(x, y).1);
        }
    }
}

/// The code of each symbol of a tier.
#[derive(Clone, Copy)]
struct CodeTable {
    quarters: [__m512i; 4],
    escape: __m512i,
}

impl CodeTable {
    #[inline]
    #[target_feature(
        enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn new(tier: &TierTable) -> Self {
        let escape = (1u8 << tier.width) - 1;
        let mut table = [escape; 256];
        for (code, &symbol) in tier.symbols[..usize::from(escape)].iter().enumerate() {
            table[usize::from(symbol)] = code as u8;
        }
        let quarters = [load(&table), load(&table[64..]), load(&table[128..]), load(&table[192..])];
        CodeTable { quarters, escape: _mm512_set1_epi8(escape as i8) }
    }

    /// The codes of 64 symbols, and which of them escape.
    #[inline]
    #[target_feature(
        enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn find(&self, symbols: __m512i) -> (__m512i, u64) {
        let [a, b, c, d] = self.quarters;
        let code = _mm512_mask_blend_epi8(
            _mm512_movepi8_mask(symbols),
            _mm512_permutex2var_epi8(a, symbols, b),
            _mm512_permutex2var_epi8(c, symbols, d),
        );
        (code, _mm512_cmpeq_epi8_mask(code, self.escape))
    }
}

/// Puts the codes of `n` symbols in `codes`, those that escape at the front of `below`, and returns how many they
/// are.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn find_codes(
    tier: &TierTable,
    symbols: &[u8; PADDED],
    n: usize,
    codes: &mut [u8; BLOCK],
    below: &mut [u8; PADDED],
) -> usize {
    let table = CodeTable::new(tier);
    let mut escaped = 0;
    for (at, (symbols, codes)) in symbols[..n].chunks(64).zip(codes[..n].chunks_mut(64)).enumerate() {
        let symbols = load(symbols);
        let (code, escapes) = table.find(symbols);
        let escapes = escapes & lanes(n - at * 64);
        store_at(below, escaped, _mm512_maskz_compress_epi8(escapes, symbols));
        escaped += escapes.count_ones() as usize;
        store(codes, code);
    }
    escaped
}

/// Cuts a field into planes: the upper `bits` (at most 8) bits of each byte of `values`.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn pack_field(planes: &mut &mut [u8], bits: u8, values: &[u8]) {
    let mut left = 8;
    for width in field_planes(bits) {
        left -= width;
        pack(take(planes, width, values.len()), width, values, left);
    }
}

/// Fills the plane of the `width` bits from bit `from` on of each byte of `values`.
#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn pack(plane: &mut [u8], width: u8, values: &[u8], from: u8) {
    match width {
        8 => plane.copy_from_slice(values),
        4 => pack_groups::<4>(plane, values, from),
        3 => {
            let third = values.len().div_ceil(8);
            for (bit, bitmap) in plane.chunks_mut(third.max(1)).enumerate() {
                pack_bits(bitmap, values, from + bit as u8);
            }
        }
        2 => pack_groups::<2>(plane, values, from),
        _ => pack_bits(plane, values, from),
    }
}

#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn pack_bits(bitmap: &mut [u8], values: &[u8], bit: u8) {
    let bit = _mm512_set1_epi8((1u8 << bit) as i8);
    for (bytes, values) in bitmap.chunks_mut(8).zip(values.chunks(64)) {
        let bits = _mm512_test_epi8_mask(load(values), bit).to_le_bytes();
        bytes.copy_from_slice(&bits[..bytes.len()]);
    }
}

#[inline]
#[target_feature(
    enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn pack_groups<const W: i32>(plane: &mut [u8], values: &[u8], from: u8) {
    let mask = _mm512_set1_epi8(((1u8 << W) - 1) as i8);
    let down = _mm_cvtsi32_si128(i32::from(from));
    for (bytes, group) in plane.chunks_mut(64).zip(values.chunks(512 / W as usize)) {
        let mut packed = _mm512_setzero_si512();
        for (j, values) in group.chunks(bytes.len()).enumerate() {
            let values = _mm512_and_si512(_mm512_srl_epi16(load(values), down), mask);
            let up = _mm_cvtsi32_si128(j as i32 * W);
            packed = _mm512_or_si512(packed, _mm512_sll_epi16(values, up));
        }
        store(bytes, packed);
    }
}
