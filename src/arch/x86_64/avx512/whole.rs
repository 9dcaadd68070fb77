//! Blocks of whole groups of 256 weights: raw planes go from memory to the result in registers.
//!
//! How many bits of mantissa a block keeps is a constant of the code here, one copy for each number.

use std::arch::x86_64::*;

use super::first::First;
use super::grid;
use super::lane::{load, take};
use super::layers::{Centre, joined, prefetch_group};
use super::symbols::{Job, Symbols, escapes};
use crate::arch::x86_64::prefetch_lines;
use crate::arch::{BadRecord, Grid, Record, SIDE_BY_SIDE, Scratch, Tables};
use crate::format::{Dtype, HEAD_BITS};

/// Weights a group: the least of which every plane is whole vectors.
pub(super) const GROUP: usize = 256;

/// The planes of a field of up to 8 bits a weight, in groups; those that it does not have are empty.
struct Field<'a> {
    eight: &'a [[u8; GROUP]],
    four: &'a [[u8; GROUP / 2]],
    two: &'a [[u8; GROUP / 4]],
    one: &'a [[u8; GROUP / 8]],
}

impl<'a> Field<'a> {
    #[inline(always)]
    fn take(planes: &mut &'a [u8], bits: u8, n: usize) -> Result<Self, BadRecord> {
        let mut plane = |width| if bits & width == 0 { Ok(&[] as &[u8]) } else { take(planes, width, n) };
        // From the widest on: a field is cut as its number of bits is written.
        Ok(Field {
            eight: plane(8)?.as_chunks().0,
            four: plane(4)?.as_chunks().0,
            two: plane(2)?.as_chunks().0,
            one: plane(1)?.as_chunks().0,
        })
    }

    /// A plane of bytes.
    fn of_bytes(plane: &'a [u8]) -> Self {
        Field { eight: plane.as_chunks().0, four: &[], two: &[], one: &[] }
    }

    /// 64 values of `BITS` bits, each at the top of its byte: those of quarter `J` of group `g`.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn top<const BITS: u8, const J: usize>(&self, g: usize) -> __m512i {
        let v = self.without_bitmap::<BITS, J>(g);
        if BITS & 1 == 0 {
            return v;
        }
        let bit = 0x80u8 >> (BITS & 6);
        _mm512_mask_add_epi8(v, self.bitmap::<J>(g), v, _mm512_set1_epi8(bit as i8))
    }

    /// The same without the lowest bit, if that lies in a bitmap.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn without_bitmap<const BITS: u8, const J: usize>(&self, g: usize) -> __m512i {
        if BITS == 8 {
            return vector(&self.eight[g], J);
        }
        let mut v = _mm512_setzero_si512();
        if BITS & 4 != 0 {
            let four = vector(&self.four[g], J / 2);
            let four = if J.is_multiple_of(2) { _mm512_slli_epi16::<4>(four) } else { four };
            v = _mm512_and_si512(four, _mm512_set1_epi8(0xf0u8 as i8));
        }
        if BITS & 2 != 0 {
            let two = vector(&self.two[g], 0);
            // From bits 2J and 2J + 1 to where the nibble ends.
            let (to, from) = (6 - (BITS & 4) as i32, 2 * J as i32);
            let two = match to - from {
                up @ 1.. => _mm512_sll_epi16(two, _mm_cvtsi32_si128(up)),
                0 => two,
                down => _mm512_srl_epi16(two, _mm_cvtsi32_si128(-down)),
            };
            let mask = _mm512_set1_epi8((3u8 << to) as i8);
            v = _mm512_ternarylogic_epi64::<0xea>(two, mask, v); // two & mask | v
        }
        v
    }

    #[inline]
    fn bitmap<const J: usize>(&self, g: usize) -> u64 {
        u64::from_le_bytes(self.one[g].as_chunks().0[J])
    }

    /// 64 heads, of `BITS` bits with the sign lowest: mantissa at the top of each byte, sign at the bottom.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn head<const BITS: u8, const J: usize>(&self, g: usize) -> __m512i {
        let v = self.without_bitmap::<BITS, J>(g);
        if BITS == 8 {
            return v;
        }
        let one = _mm512_set1_epi8(1);
        if BITS & 1 != 0 {
            return _mm512_mask_add_epi8(v, self.bitmap::<J>(g), v, one);
        }
        let keep = _mm512_set1_epi8((0xffu8 << 1 << (8 - BITS)) as i8);
        let sign = _mm512_and_si512(_mm512_srl_epi16(v, _mm_cvtsi32_si128(8 - BITS as i32)), one);
        _mm512_ternarylogic_epi64::<0xea>(v, keep, sign) // v & keep | sign
    }
}

/// Vector `i` of a plane.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn vector(plane: &[u8], i: usize) -> __m512i {
    load(&plane[i * 64..i * 64 + 64])
}

/// Calls `body` with each record, its place and its symbols, in turn. All lengths are multiples of [`GROUP`].
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn for_blocks(
    tables: &Tables,
    records: &[Record<'_>],
    scratch: &mut Scratch,
    mut body: impl FnMut(usize, &Record<'_>, First<'_>) -> Result<(), BadRecord>,
) -> Result<(), BadRecord> {
    // No head is written out here, so that there is room for symbols; nor are others, but from layers.
    let Scratch { rooms, head: room, low, high, codes, .. } = scratch;
    let mut body = |i, record: &Record<'_>, first: First<'_>| {
        let together;
        let record = match &record.layers {
            None => record,
            Some(layers) => {
                let width = tables.tiers[0].width;
                together = joined(width, record, layers, [&mut low[..], &mut high[..], &mut codes[..]])?;
                &together
            }
        };
        body(i, record, first)
    };
    let (fours, rest) = records.as_chunks::<SIDE_BY_SIDE>();
    for (i, four) in fours.iter().enumerate() {
        side_by_side(tables, four, (rooms, room), |k, record, first| {
            body(i * SIDE_BY_SIDE + k, record, first)
        })?;
    }
    let at = fours.len() * SIDE_BY_SIDE;
    let (pairs, last) = rest.as_chunks::<2>();
    for pair in pairs {
        side_by_side(tables, pair, (rooms, room), |k, record, first| body(at + k, record, first))?;
    }
    for one in last {
        let at = at + pairs.len() * 2;
        side_by_side(tables, std::array::from_ref(one), (rooms, room), |_, record, first| {
            body(at, record, first)
        })?;
    }
    Ok(())
}

/// The same for so few records that all their symbols are decoded before the first is handed on.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn side_by_side<const N: usize>(
    tables: &Tables,
    records: &[Record<'_>; N],
    (rooms, room): (&mut [[Symbols; 2]; SIDE_BY_SIDE], &mut Symbols),
    mut body: impl FnMut(usize, &Record<'_>, First<'_>) -> Result<(), BadRecord>,
) -> Result<(), BadRecord> {
    let tier = &tables.tiers[0];
    let mut jobs = [Job { first: &[], tail: &[], n: 0 }; N];
    for (job, record) in jobs.iter_mut().zip(records) {
        *job = job_of(tables, record)?;
    }
    let escapes = escapes(tables, &jobs, &mut rooms.as_chunks_mut().0[0])?;
    for (k, record) in records.iter().enumerate() {
        // No head is written out here, so that there is room for symbols.
        body(k, record, First::new(tier, jobs[k].first, record.len, escapes[k], room))?;
    }
    Ok(())
}

/// The codes of a record: where they are.
fn job_of<'a>(tables: &Tables, record: &Record<'a>) -> Result<Job<'a>, BadRecord> {
    let mut planes = record.bytes;
    let first = take(&mut planes, tables.tiers[0].width, record.len)?;
    let raw = record.len / 8 * (usize::from(record.m) + 1);
    Ok(Job { first, tail: planes.get(raw..).ok_or(BadRecord)?, n: record.len })
}

/// A block, its tiers decoded and its raw planes found: `HEAD`, `HIGH` and `LOW` bits a weight. Of kind `KIND`.
pub(super) struct Block<'a, const HEAD: u8, const HIGH: u8, const LOW: u8, const KIND: u8> {
    first: First<'a>,
    groups: usize,
    head: Field<'a>,
    high: Field<'a>,
    low: Field<'a>,
    ahead: &'a [u8],
    grid: Option<Grid<'a>>,
    /// Where some raw bits lie in layers: what words get that were cut, and how far behind those fields the next block's are.
    layered: Option<(Centre, [u32; 3])>,
}

/// A group of a block: its symbols.
pub(super) struct Group<'b, 'a, const HEAD: u8, const HIGH: u8, const LOW: u8, const KIND: u8> {
    block: &'b Block<'a, HEAD, HIGH, LOW, KIND>,
    /// Its place.
    pub g: usize,
    symbols: [__m512i; 4],
}

impl<'a, const HEAD: u8, const HIGH: u8, const LOW: u8, const KIND: u8> Block<'a, HEAD, HIGH, LOW, KIND> {
    /// Lines of 64 bytes that a group has, about: codes, escapes and raw bits. A constant, so that no loop goes over them.
    const LINES: usize = (GROUP / 8 * (3 + HEAD as usize + HIGH as usize + LOW as usize)).div_ceil(64);

    /// The block of `record`, whose symbols these are.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn new(tables: &Tables, record: &Record<'a>, first: First<'a>) -> Result<Self, BadRecord> {
        let (mut planes, n) = (record.bytes, record.len);
        take(&mut planes, tables.tiers[0].width, n)?;
        let (groups, ahead, grid) = (n / GROUP, record.ahead, record.grid);
        if KIND & grid::LAYERED != 0 {
            let layers = record.layers.as_ref().ok_or(BadRecord)?;
            let joined = layers.together().ok_or(BadRecord)?;
            let [low, high, head] = joined.planes.map(Field::of_bytes);
            let layered = Some((Centre::of(layers), joined.ahead));
            return Ok(Block { first, groups, head, high, low, ahead, grid, layered });
        }
        let head = Field::take(&mut planes, HEAD, n)?;
        let high = Field::take(&mut planes, HIGH, n)?;
        let low = Field::take(&mut planes, LOW, n)?;
        Ok(Block { first, groups, head, high, low, ahead, grid, layered: None })
    }

    /// Calls `body` with each group in turn.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn for_groups<F: FnMut(Group<'_, 'a, HEAD, HIGH, LOW, KIND>)>(&self, mut body: F) {
        let mut first = self.first;
        for g in 0..self.groups {
            body(self.group::<F>(&mut first, g));
        }
    }

    /// What [`Block::group`] takes to the first group.
    pub fn first(&self) -> First<'a> {
        self.first
    }

    /// Group `g`, which is the one after that of the last call; `Caller` as in [`First::group`].
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn group<Caller>(&self, first: &mut First<'a>, g: usize) -> Group<'_, 'a, HEAD, HIGH, LOW, KIND> {
        let symbols = first.group::<Caller, KIND>(g);
        prefetch_lines(self.ahead, g * Self::LINES, Self::LINES);
        if let Some((_, ahead)) = &self.layered
            && KIND & grid::LAYERED != 0
        {
            for (field, &ahead) in [&self.low, &self.high, &self.head].iter().zip(ahead) {
                if ahead > 0 {
                    prefetch_group(field.eight.as_flattened(), g, GROUP, ahead as usize);
                }
            }
        }
        Group { block: self, g, symbols }
    }
}

impl<const HEAD: u8, const HIGH: u8, const LOW: u8, const KIND: u8> Group<'_, '_, HEAD, HIGH, LOW, KIND> {
    /// Of quarter `J`, of a block without layers: symbols, heads, and the next 8 mantissa bits.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn bytes<const J: usize>(&self) -> [__m512i; 3] {
        let Block { head, high, .. } = self.block;
        let rest = if HIGH == 0 { _mm512_setzero_si512() } else { high.top::<HIGH, J>(self.g) };
        [self.symbols[J], head.head::<HEAD, J>(self.g), rest]
    }

    /// The signs of quarter `J`, of a block without layers.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn signs<const J: usize>(&self) -> u64 {
        let head = &self.block.head;
        match HEAD & 1 {
            1 => head.bitmap::<J>(self.g),
            _ => _mm512_test_epi8_mask(head.head::<HEAD, J>(self.g), _mm512_set1_epi8(1)),
        }
    }

    /// 64 symbols and heads of quarter `J`, after `arrange`, as bfloat16 patterns: two vectors. In
    /// each lane of 16 bytes the first has those of the first 8 bytes and the second those of the others.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn upper<const J: usize>(&self, arrange: impl Fn(__m512i) -> __m512i) -> [__m512i; 2] {
        let symbols = arrange(self.symbols[J]);
        let heads = arrange(self.centred::<2, J>(self.block.head.head::<HEAD, J>(self.g)));
        let (low, high) = (_mm512_unpacklo_epi8(heads, symbols), _mm512_unpackhi_epi8(heads, symbols));
        // The sign comes last in a pair and is wanted first. (No `map`: its closure might not be inlined.)
        [_mm512_shrdi_epi16::<1>(low, low), _mm512_shrdi_epi16::<1>(high, high)]
    }

    /// The 16 mantissa bits below, in the same order.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn lower<const J: usize>(&self, arrange: impl Fn(__m512i) -> __m512i) -> [__m512i; 2] {
        let zero = _mm512_setzero_si512();
        if HIGH == 0 {
            return [zero; 2];
        }
        let Block { high, low, .. } = self.block;
        let high = arrange(self.centred::<1, J>(high.top::<HIGH, J>(self.g)));
        let low = if LOW == 0 { zero } else { arrange(self.centred::<0, J>(low.top::<LOW, J>(self.g))) };
        [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)]
    }

    /// Bytes `BYTE` of the words of quarter `J`, from the lowest up, with what those get that were cut.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn centred<const BYTE: usize, const J: usize>(&self, bytes: __m512i) -> __m512i {
        match &self.block.layered {
            Some((centre, _)) if KIND & grid::LAYERED != 0 => centre.add::<BYTE>(bytes, self.symbols[J]),
            _ => bytes,
        }
    }

    /// The words of quarter `J`, after `arrange`: vector `q` has in lane `l` those of the bytes
    /// `4q .. 4q + 4` of that lane. On a grid, those of its values.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn words<const J: usize>(&self, arrange: impl Fn(__m512i) -> __m512i) -> [__m512i; 4] {
        match &self.block.grid {
            Some(grid) if KIND & grid::ON_GRID != grid::NONE => {
                grid::rounded::<KIND>(self.values::<J>(grid, arrange))
            }
            _ => self.coded_words::<J>(arrange),
        }
    }

    /// The same on a grid, as float32: not yet rounded to the dtype.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn values<const J: usize>(&self, grid: &Grid<'_>, arrange: impl Fn(__m512i) -> __m512i) -> [__m512i; 4] {
        let step = grid.step(self.g * 4 + J);
        // A codebook's weights have no bits but symbol and sign.
        if HEAD == 1
            && let Some(table) = grid.table(step)
        {
            return grid::values_of_places(table, step, arrange(self.places::<J>()));
        }
        if HIGH == 0 && grid::has_halves(step) {
            return grid::values_of_halves(step, self.upper::<J>(arrange));
        }
        grid::values_of_words(step, self.coded_words::<J>(arrange))
    }

    /// Where in its codebook the value of each weight of quarter `J` is, if that is all that they have: symbols, and signs
    /// above the five bits that these have. (Look-ups do not see more.)
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn places<const J: usize>(&self) -> __m512i {
        let (signs, symbols) = (_mm512_maskz_set1_epi8(self.signs::<J>(), 32), self.symbols[J]);
        _mm512_ternarylogic_epi64::<0xea>(symbols, _mm512_set1_epi8(31), signs) // symbols & 31 | signs
    }

    /// The elements of 16 bits of the values of quarter `J`: two vectors, in order if `arrange` has the order of halves, and
    /// `arrange_words` that of words.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    pub fn halves<const J: usize>(
        &self,
        arrange: impl Fn(__m512i) -> __m512i,
        arrange_words: impl Fn(__m512i) -> __m512i,
    ) -> [__m512i; 2] {
        let Some(grid) = &self.block.grid else { return [_mm512_setzero_si512(); 2] };
        if HIGH != 0 || grid.dtype != Dtype::Bf16 {
            let [a, b, c, d] = self.values::<J>(grid, arrange_words);
            return [grid::halves(grid.dtype, a, b), grid::halves(grid.dtype, c, d)];
        }
        // Where elements and the upper halves of words change places only in pairs, nothing needs to be unpacked.
        let step = grid.step(self.g * 4 + J);
        let upper = self.upper::<J>(arrange);
        let values = if HEAD == 1
            && let Some(table) = grid.table(step)
        {
            grid::values_of_codebook(table, step, grid::pairs_of(upper))
        } else if grid::has_halves(step) {
            grid::values_of_pairs(step, upper)
        } else {
            grid::values_of_words(step, grid::pairs_of(upper))
        };
        grid::bf16_of_pairs(values)
    }

    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn coded_words<const J: usize>(&self, arrange: impl Fn(__m512i) -> __m512i) -> [__m512i; 4] {
        let [upper_a, upper_b] = self.upper::<J>(&arrange);
        let [lower_a, lower_b] = self.lower::<J>(&arrange);
        [
            _mm512_unpacklo_epi16(lower_a, upper_a),
            _mm512_unpackhi_epi16(lower_a, upper_a),
            _mm512_unpacklo_epi16(lower_b, upper_b),
            _mm512_unpackhi_epi16(lower_b, upper_b),
        ]
    }
}

/// Calls `f::<HEAD, HIGH, LOW, ..>(..)` with the bits of head, high and low of a block of `$m` mantissa bits, at
/// most the number in front.
macro_rules! for_bits {
    (7, $($call:tt)*) => {
        for_bits!(@match [0 1 0 0, 1 2 0 0, 2 3 0 0, 3 4 0 0, 4 5 0 0, 5 6 0 0, 6 7 0 0, 7 8 0 0] $($call)*)
    };
    (10, $($call:tt)*) => {
        for_bits!(@match [0 1 0 0, 1 2 0 0, 2 3 0 0, 3 4 0 0, 4 5 0 0, 5 6 0 0, 6 7 0 0, 7 8 0 0,
            8 8 1 0, 9 8 2 0, 10 8 3 0] $($call)*)
    };
    (15, $($call:tt)*) => {
        for_bits!(@match [0 1 0 0, 1 2 0 0, 2 3 0 0, 3 4 0 0, 4 5 0 0, 5 6 0 0, 6 7 0 0, 7 8 0 0,
            8 8 1 0, 9 8 2 0, 10 8 3 0, 11 8 4 0, 12 8 5 0, 13 8 6 0, 14 8 7 0, 15 8 8 0] $($call)*)
    };
    (23, $($call:tt)*) => {
        for_bits!(@match [0 1 0 0, 1 2 0 0, 2 3 0 0, 3 4 0 0, 4 5 0 0, 5 6 0 0, 6 7 0 0, 7 8 0 0,
            8 8 1 0, 9 8 2 0, 10 8 3 0, 11 8 4 0, 12 8 5 0, 13 8 6 0, 14 8 7 0, 15 8 8 0,
            16 8 8 1, 17 8 8 2, 18 8 8 3, 19 8 8 4, 20 8 8 5, 21 8 8 6, 22 8 8 7, 23 8 8 8] $($call)*)
    };
    // Whole bytes, whatever is in them.
    (bytes, $m:expr, $f:ident, $generics:tt, $arguments:tt) => {
        match $m {
            0..=7 => for_bits!(@call $f, 8, 0, 0, $generics, $arguments),
            8..=15 => for_bits!(@call $f, 8, 8, 0, $generics, $arguments),
            _ => for_bits!(@call $f, 8, 8, 8, $generics, $arguments),
        }
    };
    (@match [$($bits:literal $a:literal $b:literal $c:literal),*]
        $m:expr, $f:ident, $generics:tt, $arguments:tt) => {
        match $m {
            $($bits => for_bits!(@call $f, $a, $b, $c, $generics, $arguments),)*
            _ => Err(BadRecord),
        }
    };
    (@call $f:ident, $a:literal, $b:literal, $c:literal, [$($generic:tt)*], ($($argument:expr),*)) => {
        $f::<$a, $b, $c, $($generic)*>($($argument),*)
    };
}
pub(super) use for_bits;

/// Calls `f::<HEAD, HIGH, LOW, .., KIND>(..)` for a block of the kind and with the bits that are in `$kind`.
macro_rules! for_kinds {
    ($kind:expr, $f:ident, [$($generic:tt),*], $arguments:tt) => {{
        use $crate::arch::x86_64::avx512::{grid, whole::for_bits};
        let (kind, m) = $kind;
        match kind {
            grid::NONE => for_bits!(23, m, $f, [$($generic,)* { grid::NONE }], $arguments),
            grid::NONE_PAIRS => for_bits!(23, m, $f, [$($generic,)* { grid::NONE_PAIRS }], $arguments),
            grid::F32 => for_bits!(15, m, $f, [$($generic,)* { grid::F32 }], $arguments),
            grid::F32_MARKS => for_bits!(15, m, $f, [$($generic,)* { grid::F32_MARKS }], $arguments),
            grid::F16 => for_bits!(15, m, $f, [$($generic,)* { grid::F16 }], $arguments),
            grid::BF16 => for_bits!(15, m, $f, [$($generic,)* { grid::BF16 }], $arguments),
            grid::LAYERED => for_bits!(bytes, m, $f, [$($generic,)* { grid::LAYERED }], $arguments),
            grid::LAYERED_F32 => for_bits!(bytes, m, $f, [$($generic,)* { grid::LAYERED_F32 }], $arguments),
            grid::LAYERED_F16 => for_bits!(bytes, m, $f, [$($generic,)* { grid::LAYERED_F16 }], $arguments),
            _ => for_bits!(bytes, m, $f, [$($generic,)* { grid::LAYERED_BF16 }], $arguments),
        }
    }};
}
pub(super) use for_kinds;

const _: () = assert!(HEAD_BITS == 7, "the table above is for heads of 7 bits");
