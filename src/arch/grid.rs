//! Levels of a uniform grid: from weights, and to values. Loops without branches, which a compiler can vectorise; the
//! instruction set rooms compile them again with their features. `docs/format.md` says what a level is.

use crate::format::{CODEBOOK_ENTRIES, Dtype, GRID_BITS, Unit};

const MANTISSA: u32 = 0x7f_ffff;
const MAGNITUDE: u32 = 0x7fff_ffff;

/// Weights that always share a unit.
pub const STRIP: usize = 64;

/// The grid that a block's levels are on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid<'a> {
    steps: &'a [Step],
    /// Strips of the first step that are not in the block.
    before: u64,
    /// 2^32 over the strips of a step, rounded up; 0 if all strips have the first one.
    inverse: u64,
    /// What values are rounded to.
    pub(super) dtype: Dtype,
    /// Codebooks: words stand for their values, and not for levels.
    tables: &'a [Values],
}

/// The values of a codebook: those of sign 0, then those of sign 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    pub(super) values: [f32; CODEBOOK_ENTRIES],
    /// Their bytes but the lowest, from the lowest up.
    #[cfg(target_arch = "x86_64")]
    pub(super) bytes: [[u8; CODEBOOK_ENTRIES]; 3],
}

impl Values {
    /// The values of a codebook.
    ///
    /// # Panics
    /// One is not that of a float16 number.
    pub fn new(values: &[f32; CODEBOOK_ENTRIES]) -> Self {
        assert!(values.iter().all(|value| value.to_bits() << 19 == 0), "codebooks have float16 values");
        Values {
            values: *values,
            #[cfg(target_arch = "x86_64")]
            bytes: std::array::from_fn(|byte| values.map(|value| value.to_le_bytes()[byte + 1])),
        }
    }
}

impl<'a> Grid<'a> {
    /// A grid with one step, and values of `dtype`.
    pub fn uniform(step: &'a Step, dtype: Dtype) -> Self {
        Grid { steps: std::slice::from_ref(step), before: 0, inverse: 0, dtype, tables: &[] }
    }

    /// A grid whose steps hold for `strips` strips each. The block starts behind `before` strips of the first one.
    ///
    /// # Panics
    /// `strips` is 0 or over 1024, or not more than `before`.
    pub fn of_rows(steps: &'a [Step], strips: u32, before: u32, dtype: Dtype) -> Self {
        assert!(before < strips && strips <= 1024);
        Grid {
            steps,
            before: before.into(),
            inverse: (1u64 << 32).div_ceil(strips.into()),
            dtype,
            tables: &[],
        }
    }

    /// The same, of values of these codebooks in place of levels.
    pub fn with_tables(self, tables: &'a [Values]) -> Self {
        Grid { tables, ..self }
    }

    /// The codebook of a step, if there are any.
    #[inline(always)]
    pub(super) fn table(&self, step: Step) -> Option<&'a Values> {
        self.tables.get(usize::from(step.group))
    }

    /// The place of the step of strip `strip` of the block. The inverse is less than `strips` / 2^32 too large, which
    /// does not matter in so few strips.
    #[inline(always)]
    pub(super) fn place(&self, strip: usize) -> usize {
        (((self.before + strip as u64) * self.inverse) >> 32) as usize
    }

    /// The step of strip `strip` of the block.
    #[inline(always)]
    pub(super) fn step(&self, strip: usize) -> Step {
        self.at(self.place(strip))
    }

    /// The step at a place.
    #[inline(always)]
    pub(super) fn at(&self, place: usize) -> Step {
        // There always is one: no branch to a panic, for the sake of the loops around this.
        self.steps.get(place).copied().unwrap_or_default()
    }

    /// Whether words stand for values of codebooks.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn has_tables(&self) -> bool {
        !self.tables.is_empty()
    }

    /// Whether there are steps for a block of `len` weights.
    pub(super) fn covers(&self, len: usize) -> bool {
        self.place(len.div_ceil(STRIP).saturating_sub(1)) < self.steps.len()
    }
}

/// How far levels are apart, and from zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Step {
    /// The bit that centred levels have below their own; 0 if they are not centred.
    pub(super) centre: u32,
    /// What the magnitude bits of a word, as an integer, count; what a codebook's values count.
    pub(super) scale: f32,
    /// Which codebook, if there are any.
    group: u8,
}

impl Step {
    /// The step of levels of `k` raw bits, of which the top `known` are known, all or fewer. A value then is in the middle
    /// of those that its weight may have.
    ///
    /// # Panics
    /// `k` is over [`GRID_BITS`], or less than `known`.
    pub fn new(unit: Unit, k: u8, known: u8) -> Step {
        assert!(k <= GRID_BITS && known <= k);
        let centre = (1 << (22 - known)) - if unit.is_centred() { 0 } else { 1 << (22 - k) };
        Step { centre, scale: unit.value() * (1.0 / (1 << 23) as f32), group: 0 }
    }

    /// The step of values of a codebook, that of group `group`.
    pub fn of_codebook(unit: Unit, group: u8) -> Step {
        Step { centre: 0, scale: unit.value(), group }
    }
}

/// Turns words into those of the values that they stand for.
pub(super) fn values(words: &mut [u32], grid: Grid<'_>) {
    values_inline(words, grid);
}

#[inline(always)]
pub(super) fn values_inline(words: &mut [u32], grid: Grid<'_>) {
    // A codebook's values with the step of the strip before: most strips have the same.
    let mut known: (Option<Step>, [u32; CODEBOOK_ENTRIES]) = (None, [0; CODEBOOK_ENTRIES]);
    for (i, strip) in words.chunks_mut(STRIP).enumerate() {
        let step = grid.step(i);
        if let Some(table) = grid.table(step) {
            if known.0 != Some(step) {
                // 11 bits times 8: exact.
                let scaled = |value: f32| (value * step.scale).to_bits();
                let values = match grid.dtype {
                    // Integers have no codebooks.
                    Dtype::F32 | Dtype::U8 | Dtype::I8 => table.values.map(scaled),
                    Dtype::F16 => table.values.map(|value| round_to_f16(scaled(value))),
                    Dtype::Bf16 => table.values.map(|value| round_to_bf16(scaled(value))),
                };
                known = (Some(step), values);
            }
            strip.iter_mut().for_each(|w| *w = known.1[place(*w)]);
        } else {
            match grid.dtype {
                // Integers are on no grid.
                Dtype::F32 | Dtype::U8 | Dtype::I8 => strip.iter_mut().for_each(|w| *w = value(*w, step)),
                Dtype::F16 => strip.iter_mut().for_each(|w| *w = round_to_f16(value(*w, step))),
                Dtype::Bf16 => strip.iter_mut().for_each(|w| *w = round_to_bf16(value(*w, step))),
            }
        }
    }
}

/// Where a word's value is in its codebook: at the symbol's lower five bits, and the sign above them.
#[inline(always)]
fn place(word: u32) -> usize {
    (word >> 23 & 31 | word >> 26 & 32) as usize
}

#[inline(always)]
fn value(word: u32, step: Step) -> u32 {
    // At most 24 bits, so the float is exact; the product never is below the least normal float.
    let level = (word & MAGNITUDE | step.centre) as i32 as f32;
    (level * step.scale).to_bits() | word & !MAGNITUDE
}

/// Half to even.
#[inline(always)]
fn round_to_bf16(word: u32) -> u32 {
    (word + 0x7fff + (word >> 16 & 1)) & 0xffff_0000
}

/// The word of the nearest float16, half to even.
#[inline(always)]
fn round_to_f16(word: u32) -> u32 {
    let magnitude = word & MAGNITUDE;
    let normal = (magnitude + 0xfff + (magnitude >> 13 & 1)) & !0x1fff;
    let normal = if normal > 142 << 23 | 0x7f_e000 { 255 << 23 } else { normal };
    // From 0.5 to 1, floats are multiples of 2^-24, as float16 is below its least normal number.
    let subnormal = ((f32::from_bits(magnitude) + 0.5) - 0.5).to_bits();
    word & !MAGNITUDE | if magnitude < 113 << 23 { subnormal } else { normal }
}

/// Turns the words of finite weights into those of the nearest levels with `k` raw bits. Where the unit is too small
/// for a weight, its level is the largest.
pub(super) fn levels(words: &mut [u32], unit: Unit, k: u8) {
    levels_inline(words, unit, k);
}

#[inline(always)]
pub(super) fn levels_inline(words: &mut [u32], unit: Unit, k: u8) {
    let half = if unit.is_centred() { 0.0 } else { f64::from(1u32 << (22 - k)) };
    // The clear form is `crate::codec::word::level`.
    let (per_unit, keep) = (f64::from(1 << 23) / f64::from(unit.value()), MAGNITUDE << (23 - k) & MAGNITUDE);
    for word in words {
        let scaled = f64::from(f32::from_bits(*word & MAGNITUDE)) * per_unit;
        let level = (scaled + half).min(f64::from(MAGNITUDE)) as u32;
        *word = *word & !MAGNITUDE | level & keep;
    }
}

/// What decides about the unit of some weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Extent {
    /// How many there are.
    pub weights: u64,
    /// How many are not zero.
    pub nonzero: u64,
    /// The root of the mean square of those.
    pub root_mean_square: f64,
    /// The square of the mean root of their magnitudes, to which a few large weights contribute little.
    pub squared_mean_root: f64,
    /// The largest magnitude; not finite if a weight is not.
    pub largest: f32,
}

/// The extent of some weights.
pub(super) fn extent(words: &[u32]) -> Extent {
    extent_inline(words)
}

#[inline(always)]
pub(super) fn extent_inline(words: &[u32]) -> Extent {
    // Sums beside each other: the order of additions is part of the result.
    const LANES: usize = 16;
    let (mut squares, mut roots) = ([0f64; LANES], [0f32; LANES]);
    let (mut largest, mut nonzero) = (0u32, 0u32);
    for chunk in words.chunks(LANES) {
        for ((squares, roots), &word) in squares.iter_mut().zip(&mut roots).zip(chunk) {
            let magnitude = f32::from_bits(word & MAGNITUDE);
            *squares += f64::from(magnitude) * f64::from(magnitude);
            *roots += magnitude.sqrt();
            largest = largest.max(word & MAGNITUDE);
            nonzero += u32::from(word & MAGNITUDE != 0);
        }
    }
    let (count, largest) = (f64::from(nonzero.max(1)), f32::from_bits(largest));
    let root_mean_square = (squares.iter().sum::<f64>() / count).sqrt();
    let squared_mean_root = (f64::from(roots.iter().sum::<f32>()) / count).powi(2);
    let weights = words.len() as u64;
    Extent { weights, nonzero: nonzero.into(), root_mean_square, squared_mean_root, largest }
}

/// The most leading ones of a fraction that are told apart.
pub(crate) const FRACTION_ONES: usize = GRID_BITS as usize + 2;

/// How many levels have a certain symbol before they are rounded, and so many leading ones in the fraction: with `k`
/// raw bits, those with more than `k` are rounded up to the next symbol.
pub(crate) type LevelCounts = [[u64; FRACTION_ONES]; 256];

/// Adds levels that are not rounded yet. Those of a `centred` unit never will be.
pub(crate) fn count_levels(levels: &[u32], centred: bool, counts: &mut LevelCounts) {
    let counted = if centred { 0 } else { MANTISSA };
    for &word in levels {
        let zeros = (!word & counted | !counted & MANTISSA | 1 << (23 - FRACTION_ONES)) << 9;
        counts[(word >> 23 & 255) as usize][zeros.leading_zeros() as usize] += 1;
    }
}
