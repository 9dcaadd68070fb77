//! Whole blocks times a vector, in registers: the decoded weights are never written to memory.

use std::arch::x86_64::*;

use super::first::First;
use super::grid;
use super::whole::{Block, for_blocks, for_kinds};
use crate::arch::{BadRecord, Record, Scratch, Tables};

/// Columns of up to four vectors of 64 weights, each as four vectors of sums in the order of [`Block::words`].
type Sums = [[__m512; 4]; 4];

/// As [`crate::arch::Backend::multiply_rows`].
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn rows(
    tables: &Tables,
    records: &[Record<'_>],
    scratch: &mut Scratch,
    x: &[f32],
    y: &mut [f32],
) -> Result<(), BadRecord> {
    let (width, step) = (y.len(), records[0].len / y.len());
    let mut sums = gather(y);
    for_blocks(tables, records, scratch, |i, record, first| {
        let x = &x[i * step..];
        let x = &x[..record.len / width];
        let (kind, sums) = (grid::kind(record, &first), &mut sums);
        match width {
            64 => for_kinds!(kind, block_rows, [1], (tables, record, first, x, sums)),
            128 => for_kinds!(kind, block_rows, [2], (tables, record, first, x, sums)),
            _ => for_kinds!(kind, block_rows, [4], (tables, record, first, x, sums)),
        }
    })?;
    scatter(&sums, y);
    Ok(())
}

/// Four vectors, their lanes of 128 bits turned from rows into columns: 64 numbers in order come to be in the order of
/// [`Block::words`], and back.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn turn([a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
    let (ab, cd) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d));
    let (ba, dc) = (_mm512_shuffle_f32x4::<0xee>(a, b), _mm512_shuffle_f32x4::<0xee>(c, d));
    [
        _mm512_shuffle_f32x4::<0x88>(ab, cd),
        _mm512_shuffle_f32x4::<0xdd>(ab, cd),
        _mm512_shuffle_f32x4::<0x88>(ba, dc),
        _mm512_shuffle_f32x4::<0xdd>(ba, dc),
    ]
}

/// 64 floats.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn load(from: &[f32; 64]) -> [__m512; 4] {
    // SAFETY: 16 floats are 64 bytes, and there are four times as many.
    let at = |i: usize| unsafe { _mm512_loadu_ps(from.as_ptr().add(16 * i)) };
    [at(0), at(1), at(2), at(3)]
}

/// The inverse of [`load`].
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn store(to: &mut [f32; 64], vectors: [__m512; 4]) {
    for (i, vector) in vectors.into_iter().enumerate() {
        // SAFETY: as in `load`.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr().add(16 * i), vector) };
    }
}

/// The sums of 64 to 256 columns, in the order of [`Block::words`].
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn gather(y: &[f32]) -> Sums {
    let mut sums = [[_mm512_setzero_ps(); 4]; 4];
    for (sums, y) in sums.iter_mut().zip(y.as_chunks().0) {
        *sums = turn(load(y));
    }
    sums
}

/// The inverse of [`gather`].
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn scatter(sums: &Sums, y: &mut [f32]) {
    for (sums, y) in sums.iter().zip(y.as_chunks_mut().0) {
        store(y, turn(*sums));
    }
}

/// Adds to the sums of `64 V` columns the rows of a block, each times its `x`.
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn block_rows<const HEAD: u8, const HIGH: u8, const LOW: u8, const V: usize, const KIND: u8>(
    tables: &Tables,
    record: &Record<'_>,
    first: First<'_>,
    x: &[f32],
    totals: &mut Sums,
) -> Result<(), BadRecord> {
    let block = Block::<HEAD, HIGH, LOW, KIND>::new(tables, record, first)?;
    // A copy of their own, so that they stay in registers.
    let mut sums = *totals;
    let rows = 4 / V;
    block.for_groups(|group| {
        let x = &x[group.g * rows..(group.g + 1) * rows];
        add::<V, 0>(&mut sums, x, group.words::<0>(|v| v));
        add::<V, 1>(&mut sums, x, group.words::<1>(|v| v));
        add::<V, 2>(&mut sums, x, group.words::<2>(|v| v));
        add::<V, 3>(&mut sums, x, group.words::<3>(|v| v));
    });
    *totals = sums;
    Ok(())
}

/// Adds quarter `J` of a group, of which `V` make a row of the weight.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn add<const V: usize, const J: usize>(sums: &mut Sums, x: &[f32], words: [__m512i; 4]) {
    let x = _mm512_set1_ps(x[J / V]);
    for (sum, words) in sums[J % V].iter_mut().zip(words) {
        *sum = _mm512_fmadd_ps(x, _mm512_castsi512_ps(words), *sum);
    }
}

/// As [`crate::arch::Backend::multiply_columns`].
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn columns(
    tables: &Tables,
    records: &[Record<'_>],
    scratch: &mut Scratch,
    x: &[f32],
    y: &mut [f32],
) -> Result<(), BadRecord> {
    let zero = _mm512_setzero_ps();
    let mut ordered = vec![[0f32; 64]; x.len() / 64];
    for (ordered, x) in ordered.iter_mut().zip(x.as_chunks().0) {
        store(ordered, turn(load(x)));
    }
    let mut dot = Dot { x: ordered.as_flattened(), y, at: 0, row: 0, sums: [zero; 4] };
    for_blocks(tables, records, scratch, |_, record, first| {
        let kind = grid::kind(record, &first);
        for_kinds!(kind, block_columns, [], (tables, record, first, &mut dot))
    })
}

/// Dot products of the rows of a weight with `x`, of which one is under way.
struct Dot<'a> {
    /// In each 64, in the order of [`Block::words`].
    x: &'a [f32],
    y: &'a mut [f32],
    at: usize,
    row: usize,
    sums: [__m512; 4],
}

impl Dot<'_> {
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn add(&mut self, words: [__m512i; 4]) {
        let (x, _) = self.x[self.at..self.at + 64].as_chunks::<16>();
        for ((sum, words), x) in self.sums.iter_mut().zip(words).zip(x) {
            // SAFETY: 16 floats are 64 bytes.
            let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
            *sum = _mm512_fmadd_ps(x, _mm512_castsi512_ps(words), *sum);
        }
        self.at += 64;
        if self.at == self.x.len() {
            self.finish();
        }
    }

    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn finish(&mut self) {
        let [a, b, c, d] = self.sums;
        let sum = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
        self.y[self.row] += _mm512_reduce_add_ps(sum);
        (self.at, self.row) = (0, self.row + 1);
        self.sums = [_mm512_setzero_ps(); 4];
    }
}

#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn block_columns<const HEAD: u8, const HIGH: u8, const LOW: u8, const KIND: u8>(
    tables: &Tables,
    record: &Record<'_>,
    first: First<'_>,
    state: &mut Dot<'_>,
) -> Result<(), BadRecord> {
    let block = Block::<HEAD, HIGH, LOW, KIND>::new(tables, record, first)?;
    let mut dot = Dot { x: state.x, y: &mut *state.y, ..*state };
    block.for_groups(|group| {
        dot.add(group.words::<0>(|v| v));
        dot.add(group.words::<1>(|v| v));
        dot.add(group.words::<2>(|v| v));
        dot.add(group.words::<3>(|v| v));
    });
    let Dot { at, row, sums, .. } = dot;
    (state.at, state.row, state.sums) = (at, row, sums);
    Ok(())
}
