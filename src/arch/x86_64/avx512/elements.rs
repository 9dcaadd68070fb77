//! Whole blocks to words or to elements of 16 bits, in memory and in natural order.

use std::arch::x86_64::*;

use super::grid;
use super::lane::load;
use super::whole::{Block, for_bits, for_blocks, for_kinds};
use crate::arch::{BadRecord, Half, Record, Scratch, Store, Tables};

/// Unpacking stays inside lanes of 16 bytes. So each lane first gets, of each vector of words, its own 4.
fn order_of_words() -> [u32; 16] {
    std::array::from_fn(|i| (i % 4 * 4 + i / 4) as u32)
}

/// As [`crate::arch::Backend::decode`], for blocks of a multiple of 256 weights.
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn words(
    tables: &Tables,
    records: &[Record<'_>],
    scratch: &mut Scratch,
    out: &mut [u32],
    store: Store,
) -> Result<(), BadRecord> {
    let (stream, mut out) = (store.streams(out), out);
    for_blocks(tables, records, scratch, |_, record, symbols| {
        let here;
        (here, out) = std::mem::take(&mut out).split_at_mut(record.len);
        let kind = grid::kind(record);
        match stream {
            true => for_kinds!(kind, write_words, [true], (tables, record, symbols, here)),
            false => for_kinds!(kind, write_words, [false], (tables, record, symbols, here)),
        }
    })
}

#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn write_words<const HEAD: u8, const HIGH: u8, const LOW: u8, const STREAM: bool, const KIND: u8>(
    tables: &Tables,
    record: &Record<'_>,
    symbols: &[u8],
    out: &mut [u32],
) -> Result<(), BadRecord> {
    let mut block = Block::<HEAD, HIGH, LOW, KIND>::new(tables, record, symbols)?;
    let order = load(bytemuck::bytes_of(&order_of_words()));
    let arrange = |v| _mm512_permutexvar_epi32(order, v);
    let (groups, _) = out.as_chunks_mut::<256>();
    for (g, out) in groups.iter_mut().enumerate() {
        block.start(g);
        let (vectors, _) = out.as_chunks_mut::<16>();
        let words = [
            block.words::<0>(g, arrange),
            block.words::<1>(g, arrange),
            block.words::<2>(g, arrange),
            block.words::<3>(g, arrange),
        ];
        for (to, &from) in vectors.iter_mut().zip(words.as_flattened()) {
            put::<STREAM>(to.as_mut_ptr().cast(), from);
        }
    }
    Ok(())
}

/// As [`crate::arch::Backend::decode_halves`], for blocks of a multiple of 256 weights. A block whose weights the format
/// does not have is refused.
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn halves(
    tables: &Tables,
    records: &[Record<'_>],
    scratch: &mut Scratch,
    format: Half,
    out: &mut [u16],
    store: Store,
) -> Result<(), BadRecord> {
    let (stream, mut out) = (store.streams(out), out);
    for_blocks(tables, records, scratch, |_, record, symbols| {
        let here;
        (here, out) = std::mem::take(&mut out).split_at_mut(record.len);
        if record.grid.is_some() {
            return match stream {
                true => for_bits!(15, record.m, write_halves, [true], (tables, record, symbols, here)),
                false => for_bits!(15, record.m, write_halves, [false], (tables, record, symbols, here)),
            };
        }
        match (format, stream) {
            (Half::Bf16, true) => for_bits!(7, record.m, write_bf16, [true], (tables, record, symbols, here)),
            (Half::Bf16, false) => {
                for_bits!(7, record.m, write_bf16, [false], (tables, record, symbols, here))
            }
            (Half::F16, true) => for_bits!(10, record.m, write_f16, [true], (tables, record, symbols, here)),
            (Half::F16, false) => {
                for_bits!(10, record.m, write_f16, [false], (tables, record, symbols, here))
            }
        }
    })
}

#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn write_halves<const HEAD: u8, const HIGH: u8, const LOW: u8, const STREAM: bool>(
    tables: &Tables,
    record: &Record<'_>,
    symbols: &[u8],
    out: &mut [u16],
) -> Result<(), BadRecord> {
    let mut block = Block::<HEAD, HIGH, LOW, { grid::F32 }>::new(tables, record, symbols)?;
    let order = load(bytemuck::bytes_of(&order_of_words()));
    let arrange = |v| _mm512_permutexvar_epi32(order, v);
    let (groups, _) = out.as_chunks_mut::<256>();
    for (g, out) in groups.iter_mut().enumerate() {
        block.start(g);
        let (vectors, _) = out.as_chunks_mut::<32>();
        let halves = [
            block.halves::<0>(g, arrange),
            block.halves::<1>(g, arrange),
            block.halves::<2>(g, arrange),
            block.halves::<3>(g, arrange),
        ];
        for (to, &from) in vectors.iter_mut().zip(halves.as_flattened()) {
            put::<STREAM>(to.as_mut_ptr().cast(), from);
        }
    }
    Ok(())
}

/// Gives each lane of 16 bytes, of each vector of 16-bit elements, its own 8.
fn order_of_halves() -> [u64; 8] {
    std::array::from_fn(|i| (i % 2 * 4 + i / 2) as u64)
}

#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn write_bf16<const HEAD: u8, const HIGH: u8, const LOW: u8, const STREAM: bool>(
    tables: &Tables,
    record: &Record<'_>,
    symbols: &[u8],
    out: &mut [u16],
) -> Result<(), BadRecord> {
    let mut block = Block::<HEAD, HIGH, LOW, { grid::NONE }>::new(tables, record, symbols)?;
    let order = load(bytemuck::bytes_of(&order_of_halves()));
    let arrange = |v| _mm512_permutexvar_epi64(order, v);
    let (groups, _) = out.as_chunks_mut::<256>();
    for (g, out) in groups.iter_mut().enumerate() {
        block.start(g);
        let (vectors, _) = out.as_chunks_mut::<32>();
        let halves = [
            block.upper::<0>(g, arrange),
            block.upper::<1>(g, arrange),
            block.upper::<2>(g, arrange),
            block.upper::<3>(g, arrange),
        ];
        for (to, &from) in vectors.iter_mut().zip(halves.as_flattened()) {
            put::<STREAM>(to.as_mut_ptr().cast(), from);
        }
    }
    Ok(())
}

#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn write_f16<const HEAD: u8, const HIGH: u8, const LOW: u8, const STREAM: bool>(
    tables: &Tables,
    record: &Record<'_>,
    symbols: &[u8],
    out: &mut [u16],
) -> Result<(), BadRecord> {
    let mut block = Block::<HEAD, HIGH, LOW, { grid::NONE }>::new(tables, record, symbols)?;
    let order = load(bytemuck::bytes_of(&order_of_halves()));
    let arrange = |v| _mm512_permutexvar_epi64(order, v);
    let (groups, _) = out.as_chunks_mut::<256>();
    for (g, out) in groups.iter_mut().enumerate() {
        block.start(g);
        let (vectors, _) = out.as_chunks_mut::<32>();
        let quarters = [
            f16_of(block.upper::<0>(g, arrange), block.lower::<0>(g, arrange), block.symbols::<0>(g)),
            f16_of(block.upper::<1>(g, arrange), block.lower::<1>(g, arrange), block.symbols::<1>(g)),
            f16_of(block.upper::<2>(g, arrange), block.lower::<2>(g, arrange), block.symbols::<2>(g)),
            f16_of(block.upper::<3>(g, arrange), block.lower::<3>(g, arrange), block.symbols::<3>(g)),
        ];
        for (to, &from) in vectors.iter_mut().zip(quarters.as_flattened()) {
            put::<STREAM>(to.as_mut_ptr().cast(), from);
        }
    }
    Ok(())
}

/// float16 of 64 words, given as their upper and lower halves, and their exponents in any order.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn f16_of(upper: [__m512i; 2], lower: [__m512i; 2], exponents: __m512i) -> [__m512i; 2] {
    let sign = _mm512_set1_epi16(i16::MIN);
    let half = |upper: __m512i, lower: __m512i| {
        // From the exponent of the smallest normal float16 on, magnitudes are the word's, moved down; so is zero.
        let moved = _mm512_subs_epu16(_mm512_andnot_si512(sign, upper), _mm512_set1_epi16(112 << 7));
        _mm512_ternarylogic_epi64::<0xd8>(_mm512_shldi_epi16::<3>(moved, lower), upper, sign) // sign ? upper : rest
    };
    let halves = [half(upper[0], lower[0]), half(upper[1], lower[1])];
    // Between zero and that (1 to 112), and from 65536 on (143 to 255: infinities and NaNs) they are not.
    let outside = _mm512_subs_epu8(_mm512_sub_epi8(exponents, _mm512_set1_epi8(113)), _mm512_set1_epi8(29));
    let rare = _mm512_min_epu8(outside, exponents);
    if _mm512_test_epi8_mask(rare, rare) == 0 {
        return halves;
    }
    [rare_f16_of(upper[0], lower[0], halves[0]), rare_f16_of(upper[1], lower[1], halves[1])]
}

/// The `halves` of 32 words, those mended that are subnormal, infinite or no number.
#[cold]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn rare_f16_of(upper: __m512i, lower: __m512i, halves: __m512i) -> __m512i {
    let magnitude = _mm512_andnot_si512(_mm512_set1_epi16(i16::MIN), upper);
    let exponent = _mm512_srli_epi16::<7>(magnitude);
    let mantissa = _mm512_shldi_epi16::<3>(_mm512_and_si512(upper, _mm512_set1_epi16(0x7f)), lower);
    let least = _mm512_set1_epi16(113);
    let subnormal = _mm512_cmplt_epu16_mask(exponent, least) & _mm512_test_epi16_mask(magnitude, magnitude);
    let shifted = _mm512_srlv_epi16(
        _mm512_or_si512(mantissa, _mm512_set1_epi16(1 << 10)),
        _mm512_sub_epi16(least, exponent),
    );
    let special = _mm512_cmpge_epu16_mask(exponent, _mm512_set1_epi16(143));
    let maximal = _mm512_or_si512(mantissa, _mm512_set1_epi16(31 << 10));
    let sign = _mm512_and_si512(upper, _mm512_set1_epi16(i16::MIN));
    let mended = masked_or(halves, subnormal, shifted, sign);
    masked_or(mended, special, maximal, sign)
}

/// `a | b` in the lanes of `mask`, `rest` in the others.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn masked_or(rest: __m512i, mask: u32, a: __m512i, b: __m512i) -> __m512i {
    _mm512_mask_mov_epi16(rest, mask, _mm512_or_si512(a, b))
}

/// Stores a vector, past the caches if `STREAM`.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn put<const STREAM: bool>(to: *mut __m512i, v: __m512i) {
    // SAFETY: the callers pass 64 bytes of a slice that they borrow mutably, aligned if they stream.
    unsafe { if STREAM { _mm512_stream_si512(to, v) } else { _mm512_storeu_si512(to, v) } }
}
