//! Weights on a uniform grid: which steps there are to choose from, and what a tensor would cost at each.
//!
//! A weight is rounded to a level, a multiple of a step. The symbol is the level's upper bits: how many *cells* of
//! `2^k` steps the weight is from zero; the `k` bits below are raw. A cell is a fixed part of the weights' size, so
//! that the same few symbols serve all tensors: one octave of cells and the number of raw bits make a ladder of steps
//! a quarter of a bit apart.

use std::sync::Arc;

use rayon::prelude::*;

use super::cascade::{self, Histogram, Known};
use super::encode::{EncodeOptions, Source, runs};
use super::survey::{Coding, tiles};
use super::word;
use crate::arch::{BLOCK, Backend, Extent, FRACTION_ONES, LevelCounts, count_levels};
use crate::error::Result;
use crate::format::{Blocks, Dtype, GRID_BITS, GridRow, TensorSpec, Transform, Unit, Units, header_bound};

/// The widths of a cell that there are, as parts of the root of the weights' mean square: an octave in quarters.
pub const CELLS: [f64; 4] = [0.5, 0.420_448_207_626_857_3, 0.353_553_390_593_273_8, 0.297_301_778_750_680_2];

/// A step of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GridStep {
    /// Which of [`CELLS`].
    pub cell: usize,
    /// Raw bits, so many times a cell is halved: 0 to 15.
    pub raw_bits: u8,
}

impl GridStep {
    /// All steps, the finest first.
    pub fn all() -> impl Iterator<Item = GridStep> {
        let cells = (0..CELLS.len()).rev();
        (0..=GRID_BITS)
            .rev()
            .flat_map(move |raw_bits| cells.clone().map(move |cell| GridStep { cell, raw_bits }))
    }

    /// The number that stands for the step where one is written down: below 64, another for each.
    pub fn number(self) -> u8 {
        self.cell as u8 * (GRID_BITS + 1) + self.raw_bits
    }

    /// The step that a number stands for, if any.
    pub fn from_number(number: u8) -> Option<GridStep> {
        GridStep::all().find(|step| step.number() == number)
    }
}

/// The largest weight is at most so many cells from zero: a symbol less than the last, for rounding.
const REACH: f32 = 254.0;
/// So many times the squared mean root, a root mean square is that of a few huge weights. (1.5 times is Gaussian.)
const OUTLYING: f64 = 12.0;

/// The units of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GridUnits {
    pub(super) units: Vec<Unit>,
    pub(super) of: Units,
}

impl GridUnits {
    /// Calls `with` with each stretch of the words of block `block`, whose first slot is `first`, that has one unit.
    pub(super) fn for_units(
        &self,
        spec: &TensorSpec,
        block: u64,
        first: u64,
        words: &mut [u32],
        mut with: impl FnMut(&mut [u32], Unit),
    ) {
        self.for_places(spec, block, first, words, |words, place| with(words, self.units[place]));
    }

    /// The same with the unit's place.
    pub(super) fn for_places(
        &self,
        spec: &TensorSpec,
        block: u64,
        first: u64,
        words: &mut [u32],
        mut with: impl FnMut(&mut [u32], usize),
    ) {
        match self.of {
            Units::Tensor => with(words, 0),
            Units::Block => with(words, block as usize),
            Units::Row => {
                // A stretch ends with its row, and the next row has the next unit.
                let mut words = words;
                let Some(GridRow { row, column, columns }) = spec.grid_row(first) else { return };
                let mut len = (columns - column) as usize;
                for place in row as usize..self.units.len() {
                    let here;
                    (here, words) = words.split_at_mut(len.min(words.len()));
                    with(here, place);
                    if words.is_empty() {
                        return;
                    }
                    len = columns as usize;
                }
            }
        }
    }
}

/// Counts from which size and error of a tensor follow for any step of the ladder.
pub struct GridSurvey {
    spec: TensorSpec,
    options: EncodeOptions,
    blocks: u64,
    /// For each of [`CELLS`].
    cells: Vec<Cell>,
    /// Words here and there, and which unit each has.
    sample: Vec<(u32, usize)>,
}

struct Cell {
    grid: Arc<GridUnits>,
    counts: Box<LevelCounts>,
}

/// Words of a sample.
const SAMPLE: u64 = 4096;
/// Blocks, or rows, that one task looks at.
const CHUNK: usize = 64;

/// Surveys `src`, the row-major little-endian elements of `spec`, for the grids of the ladder; `None` if they cannot
/// hold it: a weight is not finite, or so large or so small that a step of its size leaves what the dtype holds.
///
/// # Errors
/// `src` does not have the length that `spec` calls for, or the options do not fit.
pub fn survey_grid(src: &[u8], spec: &TensorSpec, options: &EncodeOptions) -> Result<Option<GridSurvey>> {
    let backend = Backend::active();
    let source = Source::new(src, spec, options.block_len)?;
    let (extents, of) = extents(backend, &source, src);
    let sizes = sizes(&extents, of);
    let units = |cell: f64| {
        let unit = |(extent, size): (&Extent, f64)| unit_of(extent, cell * size, spec.dtype);
        let units = extents.iter().zip(sizes.iter().copied()).map(unit).collect::<Option<Vec<_>>>();
        units.map(|units| Arc::new(GridUnits { units, of }))
    };
    let Some(grids) = CELLS.iter().map(|&cell| units(cell)).collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    if grids[0].units.iter().all(|unit| unit.value() == Unit::LEAST.value()) {
        return Ok(None);
    }
    let counts = count(backend, &source, &grids);
    let cells = grids.into_iter().zip(counts).map(|(grid, counts)| Cell { grid, counts }).collect();
    let elements = spec.elements()?;
    let stride = elements.div_ceil(SAMPLE);
    let sampled = |i: u64| {
        // Somewhere else in each stretch, so that it does not go with the columns of a matrix.
        let place = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let slot = (i * stride + place % stride).min(elements - 1);
        let mut word = [0];
        source.load(backend, slot..slot + 1, &mut word);
        let unit = spec.grid_row(slot).map_or_else(|| source.blocks.block_of(slot), |row| row.row);
        (word[0], unit as usize)
    };
    let sample = (0..elements.div_ceil(stride)).map(sampled).collect();
    Ok(Some(GridSurvey {
        spec: spec.clone(),
        options: *options,
        blocks: source.blocks.count(),
        cells,
        sample,
    }))
}

/// The size of the weights that each unit is for: that of a row's own; of blocks the median, so that steps are the same
/// throughout, whatever a few blocks hold.
fn sizes(extents: &[Extent], of: Units) -> Vec<f64> {
    let own = extents.iter().map(|extent| extent.root_mean_square);
    if of == Units::Row {
        return own.collect();
    }
    let mut sorted: Vec<f64> = own.filter(|&size| size > 0.0).collect();
    sorted.sort_by(f64::total_cmp);
    vec![sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0); extents.len()]
}

/// The unit of weights of this extent if it should be `wanted`; `None` if no grid is for them.
fn unit_of(extent: &Extent, wanted: f64, dtype: Dtype) -> Option<Unit> {
    let &Extent { weights, nonzero, root_mean_square, squared_mean_root, largest } = extent;
    // A step that fits a few huge weights would be too large for all others.
    if !largest.is_finite() || root_mean_square > OUTLYING * squared_mean_root {
        return None;
    }
    let (wanted, least) = (wanted as f32, largest / REACH);
    let centred = nonzero == weights && wanted >= least;
    let unit = Unit::at_least(wanted.max(least), centred)?;
    let limit = if dtype == Dtype::F16 { 65504.0 } else { f32::MAX };
    (largest + unit.value() <= limit).then_some(unit)
}

/// The extent of each row, where rows can have units, or else of each block.
pub(super) fn extents(backend: Backend, source: &Source<'_>, src: &[u8]) -> (Vec<Extent>, Units) {
    match source.spec.grid_rows() {
        Some(rows) => (extents_of_rows(backend, src, source.spec, rows), Units::Row),
        None => (extents_of_blocks(backend, source), Units::Block),
    }
}

/// The extent of each row.
fn extents_of_rows(backend: Backend, src: &[u8], spec: &TensorSpec, rows: u64) -> Vec<Extent> {
    let columns = spec.shape[1] as usize;
    let size = spec.dtype.size();
    let row = |row: usize| {
        let bytes = &src[row * columns * size..][..columns * size];
        let mut words = vec![0; columns];
        backend.load(spec.dtype, bytes, &mut words);
        backend.extent(&words)
    };
    (0..rows as usize).into_par_iter().with_min_len(CHUNK).map(row).collect()
}

/// The extent of each block.
fn extents_of_blocks(backend: Backend, source: &Source<'_>) -> Vec<Extent> {
    let block = |room: &mut Vec<u32>, block: usize| {
        backend.extent(source.words(backend, source.blocks.slots(block as u64), room))
    };
    (0..source.blocks.count() as usize)
        .into_par_iter()
        .with_min_len(CHUNK)
        .map_init(|| vec![0; BLOCK], block)
        .collect()
}

/// Counts the levels of all weights on each grid.
fn count(backend: Backend, source: &Source<'_>, grids: &[Arc<GridUnits>]) -> Vec<Box<LevelCounts>> {
    let empty = || grids.iter().map(|_| Box::new([[0; FRACTION_ONES]; 256])).collect::<Vec<_>>();
    let blocks = source.blocks.count();
    (0..(blocks as usize).div_ceil(CHUNK))
        .into_par_iter()
        .fold(empty, |mut all, chunk| {
            let (mut room, mut levels) = (vec![0; BLOCK], vec![0; BLOCK]);
            let first = (chunk * CHUNK) as u64;
            for block in first..blocks.min(first + CHUNK as u64) {
                let slots = source.blocks.slots(block);
                let start = slots.start;
                let words = source.words(backend, slots, &mut room);
                for (grid, counts) in grids.iter().zip(&mut all) {
                    let levels = &mut levels[..words.len()];
                    levels.copy_from_slice(words);
                    grid.for_units(source.spec, block, start, levels, |levels, unit| {
                        let cut = Unit::at_least(unit.value(), true).unwrap_or(unit);
                        backend.levels(levels, cut, 22);
                        count_levels(levels, unit.is_centred(), counts);
                    });
                }
            }
            all
        })
        .reduce(empty, |mut a, b| {
            for (a, b) in a.iter_mut().zip(&b) {
                a.as_flattened_mut().iter_mut().zip(b.as_flattened()).for_each(|(a, b)| *a += b);
            }
            a
        })
}

/// How `counts` at `grid` are coded with `k` raw bits.
fn coding_of(
    spec: &TensorSpec,
    options: &EncodeOptions,
    blocks: u64,
    grid: &Arc<GridUnits>,
    counts: &LevelCounts,
    k: u8,
) -> Coding {
    let mut histogram: Histogram = [0; 256];
    for (symbol, by_ones) in counts.iter().enumerate() {
        let (stay, carry) = by_ones.split_at(usize::from(k) + 1);
        histogram[symbol] += stay.iter().sum::<u64>();
        histogram[(symbol + 1).min(255)] += carry.iter().sum::<u64>();
    }
    let known = Known { rounded: true, sampled: false };
    let tiers = cascade::choose_tiers(&histogram, options.profile, known);
    let elements: u64 = histogram.iter().sum();
    let bits = cascade::coded_bits(&tiers, &histogram) + elements * (1 + u64::from(k));
    // As `Survey::size`.
    let planes: u64 = tiers[1..].iter().map(|t| if t.width == 3 { 3 } else { 1 }).sum();
    let (tail, ragged) = ((planes + 3) * blocks, 11 * tiles(spec));
    let header = header_bound(spec, &tiers, blocks, grid.units.len() as u64);
    Coding {
        mantissa_bits: Some(k),
        transform: Transform::Grid,
        tiers,
        one_width: true,
        no_subnormals: false,
        grid: Some(Arc::clone(grid)),
        books: None,
        size: header + bits.div_ceil(8) + tail + ragged,
    }
}

/// How `src`, other values of the same tensor, is coded on the grid that `coding` has; `None` if it has none.
///
/// # Errors
/// As [`survey_grid`].
pub fn recode(
    src: &[u8],
    spec: &TensorSpec,
    options: &EncodeOptions,
    coding: &Coding,
) -> Result<Option<Coding>> {
    let (Some(grid), Some(k)) = (&coding.grid, coding.mantissa_bits) else { return Ok(None) };
    let source = Source::new(src, spec, options.block_len)?;
    let counts = count(Backend::active(), &source, std::slice::from_ref(grid));
    let count = source.blocks.count();
    Ok(counts.first().map(|counts| coding_of(spec, options, count, grid, counts, k)))
}

/// Rounding of single weights to the grid of a [`Coding`], each to the value that it will be decoded to.
pub struct GridRounding {
    /// Of each element, in row-major order.
    units: Vec<Unit>,
    raw_bits: u8,
    dtype: Dtype,
}

impl GridRounding {
    /// The rounding of `coding`, a coding of `spec` in blocks of `block_len`; `None` if it has no grid.
    ///
    /// # Errors
    /// Shape, layout and block length do not go together.
    pub fn new(spec: &TensorSpec, block_len: u32, coding: &Coding) -> Result<Option<Self>> {
        let (Some(grid), Some(raw_bits)) = (&coding.grid, coding.mantissa_bits) else { return Ok(None) };
        let blocks = Blocks::new(spec, block_len)?;
        let mut units = vec![Unit::LEAST; spec.elements()? as usize];
        let mut places = vec![0; BLOCK];
        for block in 0..blocks.count() {
            let slots = blocks.slots(block);
            let places = &mut places[..(slots.end - slots.start) as usize];
            grid.for_places(spec, block, slots.start, places, |places, unit| places.fill(unit as u32));
            for run in runs(spec, slots) {
                let of = places[run.at..run.at + run.len].iter().map(|&place| grid.units[place as usize]);
                units[run.element..run.element + run.len].iter_mut().zip(of).for_each(|(to, of)| *to = of);
            }
        }
        Ok(Some(GridRounding { units, raw_bits, dtype: spec.dtype }))
    }

    /// The value on the grid that is nearest to `value`, for the weight at `element` of the row-major tensor. Beyond
    /// the grid's end it is the end.
    ///
    /// # Panics
    /// There is no such element.
    #[inline]
    pub fn round(&self, element: usize, value: f64) -> f32 {
        let unit = self.units[element];
        let largest = if self.dtype == Dtype::F16 { 65504.0 } else { f32::MAX };
        let end = f64::from((REACH * unit.value()).min(largest - unit.value()));
        let word = (value.clamp(-end, end) as f32).to_bits();
        let level = word::level(word, unit, self.raw_bits);
        f32::from_bits(word::level_value(level, unit, self.raw_bits, self.dtype))
    }
}

impl GridSurvey {
    /// How the tensor is coded at `step`.
    ///
    /// # Panics
    /// There is no such step.
    pub fn coding(&self, GridStep { cell, raw_bits: k }: GridStep) -> Coding {
        assert!(k <= GRID_BITS);
        let Cell { grid, counts } = &self.cells[cell];
        coding_of(&self.spec, &self.options, self.blocks, grid, counts, k)
    }

    /// The energy of the error that rounding to this grid makes, over that of the weights: of a sample.
    ///
    /// # Panics
    /// As [`GridSurvey::coding`].
    pub fn noise(&self, GridStep { cell, raw_bits: k }: GridStep) -> f64 {
        let units = &self.cells[cell].grid.units;
        self.noise_of(|word, unit| {
            word::level_value(word::level(word, units[unit], k), units[unit], k, self.spec.dtype)
        })
    }

    /// The same for rounding to `k` mantissa bits.
    pub fn cut_noise(&self, k: u8) -> f64 {
        self.noise_of(|word, _| word::round(word, k, self.spec.dtype))
    }

    fn noise_of(&self, rounded: impl Fn(u32, usize) -> u32) -> f64 {
        let value = |word: u32| f64::from(f32::from_bits(word));
        let (mut energy, mut noise) = (0.0, 0.0);
        for &(word, unit) in &self.sample {
            energy += value(word).powi(2);
            noise += (value(word) - value(rounded(word, unit))).powi(2);
        }
        if noise == 0.0 { 0.0 } else { noise / energy }
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode;
    use super::super::encode::encode_as;
    use super::*;

    fn weights(n: usize) -> Vec<f32> {
        let value =
            |i: usize| (i as f32 * 0.731).sin() * (i as f32 * 0.0137).cos() * (1 + i / 960 % 7) as f32;
        (0..n).map(|i| if i % 61 == 0 { 0.0 } else { value(i) }).collect()
    }

    fn bytes(values: &[f32], dtype: Dtype) -> Vec<u8> {
        let words: Vec<u32> = values
            .iter()
            .map(|&value| match dtype {
                Dtype::F16 => half::f16::from_f32(value).to_f32().to_bits(),
                Dtype::Bf16 => half::bf16::from_f32(value).to_f32().to_bits(),
                _ => value.to_bits(),
            })
            .collect();
        let mut bytes = vec![0; words.len() * dtype.size()];
        word::store(dtype, &words, &mut bytes);
        bytes
    }

    fn specs(dtype: Dtype) -> [TensorSpec; 3] {
        [
            TensorSpec::row_major(dtype, &[30, 320]),
            TensorSpec::column_tiles(dtype, 30, 320, 128),
            TensorSpec::column_tiles(dtype, 32, 300, 128),
        ]
    }

    fn coded(src: &[u8], spec: &TensorSpec, options: &EncodeOptions) -> Coding {
        let step = GridStep { cell: 2, raw_bits: 2 };
        survey_grid(src, spec, options).unwrap().unwrap().coding(step)
    }

    #[test]
    fn single_weights_are_rounded_as_the_encoder_rounds_them() {
        for spec in [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().flat_map(specs) {
            for block_len in [1024, 4096] {
                let options = EncodeOptions { block_len, ..EncodeOptions::default() };
                let src = bytes(&weights(9600), spec.dtype);
                let coding = coded(&src, &spec, &options);
                let rounding = GridRounding::new(&spec, block_len, &coding).unwrap().unwrap();
                let decoded = decode(&encode_as(&src, &spec, block_len, &coding).unwrap()).unwrap();
                let (mut words, mut expected) = (vec![0; 9600], vec![0; 9600]);
                word::load(spec.dtype, &src, &mut words);
                word::load(spec.dtype, &decoded, &mut expected);
                for (element, (&word, &expected)) in words.iter().zip(&expected).enumerate() {
                    let found = rounding.round(element, f32::from_bits(word).into());
                    assert_eq!(found.to_bits(), expected, "{spec:?} {element}");
                }
                // Beyond the end it is the end, and stays there.
                let end = rounding.round(77, 1e30);
                assert!(end.is_finite() && rounding.round(77, end.into()) == end, "{spec:?} {end}");
            }
        }
    }

    #[test]
    fn other_values_are_coded_on_the_same_grid() {
        for spec in specs(Dtype::F32) {
            let options = EncodeOptions::default();
            let values = weights(9600);
            let src = bytes(&values, spec.dtype);
            let coding = coded(&src, &spec, &options);
            assert_eq!(recode(&src, &spec, &options, &coding).unwrap(), Some(coding.clone()));
            let rounding = GridRounding::new(&spec, options.block_len, &coding).unwrap().unwrap();
            // Larger ones, on the grid.
            let others: Vec<f32> = values
                .iter()
                .enumerate()
                .map(|(i, &v)| rounding.round(i, 1.3 * f64::from(v) + 0.01))
                .collect();
            let others = bytes(&others, spec.dtype);
            let fitted = recode(&others, &spec, &options, &coding).unwrap().unwrap();
            assert_eq!(fitted.grid, coding.grid);
            assert!(fitted.size() > coding.size());
            let blob = encode_as(&others, &spec, options.block_len, &fitted).unwrap();
            assert!(blob.len() as u64 <= fitted.size());
            assert_eq!(decode(&blob).unwrap(), others, "on the grid already");
        }
        // What has no grid is not coded on one.
        let spec = &specs(Dtype::F32)[0];
        let src = bytes(&weights(9600), spec.dtype);
        let options = EncodeOptions::default();
        let cut = super::super::survey::survey(&src, spec, &options).unwrap().coding(Some(3));
        assert_eq!(recode(&src, spec, &options, &cut).unwrap(), None);
        assert!(GridRounding::new(spec, options.block_len, &cut).unwrap().is_none());
    }
}
