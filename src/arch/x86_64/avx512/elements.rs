//! Whole blocks to words or to elements of 16 bits, in memory and in natural order.

use std::arch::x86_64::*;

use super::bf16::{self, write_grid};
use super::f16::write_f16;
use super::first::First;
use super::grid;
use super::lane::load;
use super::lookup::write_few;
use super::whole::{Block, for_bits, for_blocks, for_kinds};
use crate::arch::{BadRecord, Half, Record, Scratch, Store, Tables};

/// Unpacking stays inside lanes of 16 bytes. So each lane first gets, of each vector of words, its own 4.
pub(super) fn order_of_words() -> [u32; 16] {
    std::array::from_fn(|i| (i % 4 * 4 + i / 4) as u32)
}

/// A vector that the compiler does not know: else it makes two-source permutations of bytes, three micro-operations on
/// Intel's processors, of a permutation of `order` and the unpacking behind it.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn opaque<T: bytemuck::NoUninit>(order: &T) -> __m512i {
    load(std::hint::black_box(bytemuck::bytes_of(order)))
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
    for_blocks(tables, records, scratch, |_, record, first| {
        let here;
        (here, out) = std::mem::take(&mut out).split_at_mut(record.len);
        let kind = grid::kind(record, &first);
        match stream {
            true => for_kinds!(kind, write_words, [true], (tables, record, first, here)),
            false => for_kinds!(kind, write_words, [false], (tables, record, first, here)),
        }
    })
}

#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn write_words<const HEAD: u8, const HIGH: u8, const LOW: u8, const STREAM: bool, const KIND: u8>(
    tables: &Tables,
    record: &Record<'_>,
    first: First<'_>,
    out: &mut [u32],
) -> Result<(), BadRecord> {
    let block = Block::<HEAD, HIGH, LOW, KIND>::new(tables, record, first)?;
    let order = opaque(&order_of_words());
    let arrange = |v| _mm512_permutexvar_epi32(order, v);
    let (groups, _) = out.as_chunks_mut::<256>();
    block.for_groups(|group| {
        let (vectors, _) = groups[group.g].as_chunks_mut::<16>();
        let words = [
            group.words::<0>(arrange),
            group.words::<1>(arrange),
            group.words::<2>(arrange),
            group.words::<3>(arrange),
        ];
        for (to, &from) in vectors.iter_mut().zip(words.as_flattened()) {
            put::<STREAM>(to.as_mut_ptr().cast(), from);
        }
    });
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
    for_blocks(tables, records, scratch, |_, record, first| {
        let here;
        (here, out) = std::mem::take(&mut out).split_at_mut(record.len);
        // With codes that are common a block has a loop of its own.
        macro_rules! call {
            ($most:tt, $write:ident, $kind:expr, $codes:expr, $arguments:tt) => {
                match (stream, first.codes() == $codes) {
                    (true, true) => {
                        for_bits!($most, record.m, $write, [true, { $kind | $codes }], $arguments)
                    }
                    (true, false) => for_bits!($most, record.m, $write, [true, { $kind }], $arguments),
                    (false, true) => {
                        for_bits!($most, record.m, $write, [false, { $kind | $codes }], $arguments)
                    }
                    (false, false) => for_bits!($most, record.m, $write, [false, { $kind }], $arguments),
                }
            };
        }
        let Some(grid) = &record.grid else {
            return match format {
                Half::Bf16 => {
                    call!(7, write_bf16, grid::NONE, grid::PAIRS, (tables, record, first, here))
                }
                Half::F16 => call!(10, write_f16, grid::NONE, grid::PAIRS, (tables, record, first, here)),
            };
        };
        let looked_up = match stream {
            true => write_few::<true>(tables, record, grid, first, here),
            false => write_few::<false>(tables, record, grid, first, here),
        }?;
        if looked_up {
            return Ok(());
        }
        if bf16::is_for(record, grid) {
            // SAFETY: it is.
            return unsafe {
                call!(7, write_grid, grid::F32, grid::MARKS, (tables, record, grid, first, here))
            };
        }
        call!(15, write_halves, grid::F32, grid::MARKS, (tables, record, first, here))
    })
}

#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn write_halves<const HEAD: u8, const HIGH: u8, const LOW: u8, const STREAM: bool, const KIND: u8>(
    tables: &Tables,
    record: &Record<'_>,
    first: First<'_>,
    out: &mut [u16],
) -> Result<(), BadRecord> {
    let block = Block::<HEAD, HIGH, LOW, KIND>::new(tables, record, first)?;
    let (order, order_of_words) = (opaque(&order_of_halves()), opaque(&order_of_words()));
    let arrange = |v| _mm512_permutexvar_epi64(order, v);
    let arrange_words = |v| _mm512_permutexvar_epi32(order_of_words, v);
    let (groups, _) = out.as_chunks_mut::<256>();
    block.for_groups(|group| {
        let (vectors, _) = groups[group.g].as_chunks_mut::<32>();
        let halves = [
            group.halves::<0>(arrange, arrange_words),
            group.halves::<1>(arrange, arrange_words),
            group.halves::<2>(arrange, arrange_words),
            group.halves::<3>(arrange, arrange_words),
        ];
        for (to, &from) in vectors.iter_mut().zip(halves.as_flattened()) {
            put::<STREAM>(to.as_mut_ptr().cast(), from);
        }
    });
    Ok(())
}

/// Gives each lane of 16 bytes, of each vector of 16-bit elements, its own 8.
pub(super) fn order_of_halves() -> [u64; 8] {
    std::array::from_fn(|i| (i % 2 * 4 + i / 2) as u64)
}

#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn write_bf16<const HEAD: u8, const HIGH: u8, const LOW: u8, const STREAM: bool, const KIND: u8>(
    tables: &Tables,
    record: &Record<'_>,
    first: First<'_>,
    out: &mut [u16],
) -> Result<(), BadRecord> {
    let block = Block::<HEAD, HIGH, LOW, KIND>::new(tables, record, first)?;
    let order = opaque(&order_of_halves());
    let arrange = |v| _mm512_permutexvar_epi64(order, v);
    let (groups, _) = out.as_chunks_mut::<256>();
    block.for_groups(|group| {
        let (vectors, _) = groups[group.g].as_chunks_mut::<32>();
        let halves = [
            group.upper::<0>(arrange),
            group.upper::<1>(arrange),
            group.upper::<2>(arrange),
            group.upper::<3>(arrange),
        ];
        for (to, &from) in vectors.iter_mut().zip(halves.as_flattened()) {
            put::<STREAM>(to.as_mut_ptr().cast(), from);
        }
    });
    Ok(())
}

/// Stores a vector, past the caches if `STREAM`.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn put<const STREAM: bool>(to: *mut __m512i, v: __m512i) {
    // SAFETY: the callers pass 64 bytes of a slice that they borrow mutably, aligned if they stream.
    unsafe { if STREAM { _mm512_stream_si512(to, v) } else { _mm512_storeu_si512(to, v) } }
}
