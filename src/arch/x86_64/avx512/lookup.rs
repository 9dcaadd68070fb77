//! Grids of few raw bits and codebooks to elements of 16 bits: their bytes are looked up, not calculated.
//!
//! A step has so few levels of small magnitude that their elements fit two or four vectors. The tables are filled by what
//! calculates elements elsewhere. A block with a larger level is left to that.

use std::arch::x86_64::*;

use super::elements::{opaque, order_of_halves, put};
use super::first::First;
use super::grid;
use super::lane::load;
use super::whole::{Block, Group};
use crate::arch::grid::{STRIP, Step};
use crate::arch::{BadRecord, Grid, Record, Tables};

/// The most steps of a block that have tables. A power of two.
const MOST_STEPS: usize = 16;

/// Lower and upper bytes of elements by place: of a codebook's 5 bits of symbol and sign, of a grid's magnitude.
type Table<const N: usize> = [[[u8; 64]; N]; 2];

/// Writes the elements of a block on a grid with few raw bits, or with codebooks. False: there is more than tables hold, and
/// what was written is of no use.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn write_few<const STREAM: bool>(
    tables: &Tables,
    record: &Record<'_>,
    levels: &Grid<'_>,
    first: First<'_>,
    out: &mut [u16],
) -> Result<bool, BadRecord> {
    let (of, are_marks) = ((levels, first), first.codes() == grid::MARKS);
    match (record.m, are_marks) {
        (0, true) => write_looked_up::<1, 1, STREAM, { grid::F32_MARKS }>(tables, record, of, out),
        (0, false) => write_looked_up::<1, 1, STREAM, { grid::F32 }>(tables, record, of, out),
        (1, true) => write_looked_up::<2, 1, STREAM, { grid::F32_MARKS }>(tables, record, of, out),
        (1, false) => write_looked_up::<2, 1, STREAM, { grid::F32 }>(tables, record, of, out),
        (2, true) => write_looked_up::<3, 1, STREAM, { grid::F32_MARKS }>(tables, record, of, out),
        (2, false) => write_looked_up::<3, 1, STREAM, { grid::F32 }>(tables, record, of, out),
        (3, true) => write_looked_up::<4, 2, STREAM, { grid::F32_MARKS }>(tables, record, of, out),
        (3, false) => write_looked_up::<4, 2, STREAM, { grid::F32 }>(tables, record, of, out),
        _ => Ok(false),
    }
}

/// The same with `HEAD - 1` raw bits, and `64 * N` magnitudes in the tables.
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn write_looked_up<const HEAD: u8, const N: usize, const STREAM: bool, const KIND: u8>(
    tables: &Tables,
    record: &Record<'_>,
    (levels, first): (&Grid<'_>, First<'_>),
    out: &mut [u16],
) -> Result<bool, BadRecord> {
    let strips = record.len / STRIP;
    let steps = levels.place(strips.saturating_sub(1)) + 1;
    // A table costs about as much as it saves in two strips.
    if steps > MOST_STEPS || steps * 4 > strips {
        return Ok(false);
    }
    let mut lookup = [[[[0; 64]; N]; 2]; MOST_STEPS];
    for (i, table) in lookup[..steps].iter_mut().enumerate() {
        fill(table, levels, levels.at(i), HEAD - 1);
    }
    let block = Block::<HEAD, 0, 0, KIND>::new(tables, record, first)?;
    let order = opaque(&order_of_halves());
    let arrange = |v| _mm512_permutexvar_epi64(order, v);
    let (groups, _) = out.as_chunks_mut::<256>();
    let has_codebooks = HEAD == 1 && levels.has_tables();
    let mut all = _mm512_setzero_si512();
    block.for_groups(|group| {
        let (vectors, _) = groups[group.g].as_chunks_mut::<32>();
        let table = |quarter| &lookup[levels.place(group.g * 4 + quarter) % MOST_STEPS];
        let quarters = match has_codebooks {
            true => [
                of_codebook::<HEAD, KIND, N, 0>(&group, table(0), arrange),
                of_codebook::<HEAD, KIND, N, 1>(&group, table(1), arrange),
                of_codebook::<HEAD, KIND, N, 2>(&group, table(2), arrange),
                of_codebook::<HEAD, KIND, N, 3>(&group, table(3), arrange),
            ],
            false => [
                of_grid::<HEAD, KIND, N, 0>(&group, table(0), &mut all, arrange),
                of_grid::<HEAD, KIND, N, 1>(&group, table(1), &mut all, arrange),
                of_grid::<HEAD, KIND, N, 2>(&group, table(2), &mut all, arrange),
                of_grid::<HEAD, KIND, N, 3>(&group, table(3), &mut all, arrange),
            ],
        };
        for (to, &from) in vectors.iter_mut().zip(quarters.as_flattened()) {
            put::<STREAM>(to.as_mut_ptr().cast(), from);
        }
    });
    let beyond = _mm512_set1_epi8(!(((64 * N - 1) >> (HEAD - 1)) as u8) as i8);
    Ok(_mm512_test_epi8_mask(all, beyond) == 0)
}

/// The elements of quarter `J` on a grid; its symbols are added to the bits of `all`.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn of_grid<const HEAD: u8, const KIND: u8, const N: usize, const J: usize>(
    group: &Group<'_, '_, HEAD, 0, 0, KIND>,
    [lower, upper]: &Table<N>,
    all: &mut __m512i,
    arrange: impl Fn(__m512i) -> __m512i,
) -> [__m512i; 2] {
    let [symbols, heads, _] = group.bytes::<J>();
    *all = _mm512_or_si512(*all, symbols);
    let raw = u32::from(HEAD) - 1;
    // Shifts of 16 bits bring bits of the neighbour along: masked, or of symbols that make the block be left.
    let high = _mm512_sll_epi16(symbols, _mm_cvtsi32_si128(raw as i32));
    let low = _mm512_srl_epi16(heads, _mm_cvtsi32_si128(8 - raw as i32));
    let places = _mm512_ternarylogic_epi64::<0xea>(low, _mm512_set1_epi8((1 << raw) - 1), high); // a & b | c
    let sign = _mm512_set1_epi8(i8::MIN);
    let upper =
        _mm512_ternarylogic_epi64::<0xea>(_mm512_slli_epi16::<7>(heads), sign, looked_up(upper, places));
    let (lower, upper) = (arrange(looked_up(lower, places)), arrange(upper));
    [_mm512_unpacklo_epi8(lower, upper), _mm512_unpackhi_epi8(lower, upper)]
}

/// The elements of quarter `J` from codebooks.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn of_codebook<const HEAD: u8, const KIND: u8, const N: usize, const J: usize>(
    group: &Group<'_, '_, HEAD, 0, 0, KIND>,
    [lower, upper]: &Table<N>,
    arrange: impl Fn(__m512i) -> __m512i,
) -> [__m512i; 2] {
    let places = group.places::<J>();
    let (lower, upper) = (arrange(looked_up(lower, places)), arrange(looked_up(upper, places)));
    [_mm512_unpacklo_epi8(lower, upper), _mm512_unpackhi_epi8(lower, upper)]
}

#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn looked_up<const N: usize>(table: &[[u8; 64]; N], places: __m512i) -> __m512i {
    match N {
        1 => _mm512_permutexvar_epi8(places, load(&table[0])),
        _ => _mm512_permutex2var_epi8(load(&table[0]), places, load(&table[1])),
    }
}

/// Fills the table of a step, of levels with `raw` raw bits.
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn fill<const N: usize>([lower, upper]: &mut Table<N>, levels: &Grid<'_>, step: Step, raw: u8) {
    let counted: [u32; 16] = std::array::from_fn(|i| i as u32);
    let counted = load(bytemuck::bytes_of(&counted));
    let codebook = levels.table(step).filter(|_| raw == 0);
    for (i, (lower, upper)) in lower.iter_mut().zip(upper).enumerate() {
        let words = std::array::from_fn(|quarter| {
            let places = _mm512_add_epi32(counted, _mm512_set1_epi32((64 * i + 16 * quarter) as i32));
            match codebook {
                // Symbol and sign, next to each other.
                Some(_) => _mm512_or_si512(
                    _mm512_slli_epi32::<31>(_mm512_srli_epi32::<5>(places)),
                    _mm512_slli_epi32::<23>(_mm512_and_si512(places, _mm512_set1_epi32(31))),
                ),
                None => _mm512_sll_epi32(places, _mm_cvtsi32_si128(23 - i32::from(raw))),
            }
        });
        let [a, b, c, d] = match codebook {
            Some(codebook) => grid::values_of_codebook(codebook, step, words),
            None => grid::values_of_words(step, words),
        };
        let elements = [grid::halves(levels.dtype, a, b), grid::halves(levels.dtype, c, d)];
        *lower = bytemuck::cast(elements.map(|v| _mm512_cvtepi16_epi8(v)));
        *upper = bytemuck::cast(elements.map(|v| _mm512_cvtepi16_epi8(_mm512_srli_epi16::<8>(v))));
    }
}
