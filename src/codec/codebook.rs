//! Codebooks: a weight is rounded to one of up to 64 values that k-means has found, times the size of its row.
//!
//! Rows, or blocks, are scaled to the same mean square and sorted by how heavy their tails are; those that are alike
//! form a group, which has a codebook of its own. Half of a codebook's values are negative: the sign is raw, and which
//! one of them it is, from zero outwards, is entropy-coded. So means are found for the least error *at a rate*: a weight
//! goes to the value whose squared distance, plus a price for the bits that it costs, is least.

use std::sync::Arc;

use rayon::prelude::*;

use super::cascade::{self, Histogram, Known};
use super::encode::{EncodeOptions, Source};
use super::grid::{self, GridStep, GridUnits};
use super::survey::{Coding, tiles};
use crate::arch::{BLOCK, Backend, Extent};
use crate::error::Result;
use crate::format::{CODEBOOK_ENTRIES, Codebook, Dtype, TensorSpec, Transform, Unit, Units, header_bound};

/// Values of one sign.
const HALF: usize = CODEBOOK_ENTRIES / 2;
/// The most groups; fewer where they would have fewer units or weights than these.
const GROUPS: usize = 4;
const LEAST_UNITS: usize = 16;
const LEAST_WEIGHTS: u64 = 1 << 14;
/// Steps of a histogram of scaled magnitudes, which ends at [`REACH`] times the mean square's root.
const BINS: usize = 2048;
const REACH: f32 = 8.0;
/// What a unit's square is counted in, as parts of the largest unit's.
const WEIGHT: f64 = 4096.0;
/// Rounds of k-means.
const ROUNDS: usize = 40;
/// The finest rung of the ladder aims at so many bits a weight; each further one at a quarter less.
const FINEST: f64 = 5.0;
const RUNGS: usize = 15;

/// Codebooks of a tensor, and who has which.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Books {
    pub(super) units: GridUnits,
    pub(super) codebook: Codebook,
    /// For each group and value: twice the value, and its square plus the price of its bits.
    lines: Vec<[(f32, f32); CODEBOOK_ENTRIES]>,
}

/// No value is NaN.
impl Eq for Books {}

impl Books {
    /// Turns the words of weights with unit number `index` into those of the symbols and signs that they get.
    pub(super) fn assign(&self, index: usize, words: &mut [u32]) {
        let group = usize::from(self.codebook.groups.get(index).copied().unwrap_or(0));
        let (lines, scale) = (&self.lines[group], 1.0 / self.units.units[index].value());
        for word in words {
            let x = f32::from_bits(*word) * scale;
            let (mut best, mut place) = (f32::NEG_INFINITY, 0);
            for (i, (slope, offset)) in lines.iter().enumerate() {
                let value = slope * x - offset;
                place = if value > best { i } else { place };
                best = if value > best { value } else { best };
            }
            *word = ((place / HALF) as u32) << 31 | ((place % HALF) as u32) << 23;
        }
    }
}

/// Scaled weights of one sign in one group, by magnitude.
#[derive(Clone)]
struct Bins {
    count: Vec<u64>,
    /// Sums of weights' weights: of 1, of the scaled magnitude in 2^-16.
    weight: Vec<u64>,
    first: Vec<u64>,
}

impl Bins {
    fn new() -> Bins {
        Bins { count: vec![0; BINS], weight: vec![0; BINS], first: vec![0; BINS] }
    }

    fn add(&mut self, x: f32, weight: u64) {
        let bin = ((x * (BINS as f32 / REACH)) as usize).min(BINS - 1);
        self.count[bin] += 1;
        self.weight[bin] += weight;
        self.first[bin] += weight * (f64::from(x) * 65536.0) as u64;
    }

    fn join(&mut self, other: &Bins) {
        let all = [
            (&mut self.count, &other.count),
            (&mut self.weight, &other.weight),
            (&mut self.first, &other.first),
        ];
        for (a, b) in all {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        }
    }

    /// Occupied bins: number of weights, their weight, their mean.
    fn occupied(&self) -> impl Iterator<Item = (u64, f64, f64)> {
        let all = self.count.iter().zip(&self.weight).zip(&self.first);
        all.filter(|((n, weight), _)| **n > 0 && **weight > 0)
            .map(|((&n, &weight), &first)| (n, weight as f64, first as f64 / 65536.0 / weight as f64))
    }
}

/// What size and error of a tensor follow from for each rung of a ladder of codebooks.
pub struct CodebookSurvey {
    spec: TensorSpec,
    rungs: Vec<(Coding, f64)>,
}

/// Surveys `src`, the row-major little-endian elements of `spec`, for codebooks; `None` if they are not for it: a weight
/// is not finite or much too large, or many are zero.
///
/// # Errors
/// `src` does not have the length that `spec` calls for, or the options do not fit.
pub fn survey_codebooks(
    src: &[u8],
    spec: &TensorSpec,
    options: &EncodeOptions,
) -> Result<Option<CodebookSurvey>> {
    let backend = Backend::active();
    let source = Source::new(src, spec, options.block_len)?;
    let (extents, of) = grid::extents(backend, &source, src);
    let zeros: u64 = extents.iter().map(|e| e.weights - e.nonzero).sum();
    let Some(units) = units(&extents, of, spec.dtype).filter(|_| zeros * 64 <= source.blocks.elements())
    else {
        return Ok(None);
    };
    let groups = groups(&extents);
    let count = groups.iter().max().map_or(1, |&g| usize::from(g) + 1);
    let bins = count_bins(backend, &source, &units, &groups, count);
    let rungs = (0..RUNGS).into_par_iter().map(|rung| {
        let bits = FINEST - rung as f64 / 4.0;
        // What an ideal coder would pay for a bit at this rate.
        let price = 2.0 * std::f64::consts::LN_2 * 1.42 * (-2.0 * bits).exp2();
        let found = Found::new(&bins, price);
        let noise = found.noise;
        (found.coding(spec, options, source.blocks.count(), &units, &groups), noise)
    });
    Ok(Some(CodebookSurvey { spec: spec.clone(), rungs: rungs.collect() }))
}

impl CodebookSurvey {
    /// All rungs, the finest first, under the names that a ladder of grids gives its steps.
    pub fn steps(&self) -> impl Iterator<Item = GridStep> + use<> {
        (0..self.rungs.len()).map(|rung| GridStep { cell: rung % 4, raw_bits: (rung / 4) as u8 })
    }

    /// How the tensor is coded at `step`.
    ///
    /// # Panics
    /// There is no such step.
    pub fn coding(&self, step: GridStep) -> Coding {
        self.rungs[step.cell + 4 * usize::from(step.raw_bits)].0.clone()
    }

    /// The energy of the error at `step` over that of the weights.
    ///
    /// # Panics
    /// As [`CodebookSurvey::coding`].
    pub fn noise(&self, step: GridStep) -> f64 {
        self.rungs[step.cell + 4 * usize::from(step.raw_bits)].1
    }

    /// Dtype, shape and layout of the tensor.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }
}

/// A unit for each extent: the root of its mean square.
fn units(extents: &[Extent], of: Units, dtype: Dtype) -> Option<GridUnits> {
    let limit = if dtype == Dtype::F16 { 65504.0 / 2.0 } else { f32::MAX / 2.0 };
    let unit = |extent: &Extent| {
        let fits = extent.largest.is_finite() && extent.largest <= limit;
        Unit::at_least(extent.root_mean_square as f32, false).filter(|_| fits)
    };
    let units = extents.iter().map(unit).collect::<Option<Vec<_>>>()?;
    Some(GridUnits { units, of })
}

/// The group of each unit: those with the lightest tails come first. All groups are about as large.
fn groups(extents: &[Extent]) -> Vec<u8> {
    let tail = |e: &Extent| e.root_mean_square / e.squared_mean_root.max(f64::MIN_POSITIVE);
    let weights: u64 = extents.iter().map(|extent| extent.weights).sum();
    let count = (extents.len() / LEAST_UNITS).min((weights / LEAST_WEIGHTS) as usize).clamp(1, GROUPS);
    let mut order: Vec<usize> = (0..extents.len()).collect();
    order.sort_by(|&a, &b| tail(&extents[a]).total_cmp(&tail(&extents[b])).then(a.cmp(&b)));
    let mut groups = vec![0; extents.len()];
    order.iter().enumerate().for_each(|(rank, &unit)| groups[unit] = (rank * count / extents.len()) as u8);
    groups
}

/// The histograms of all groups, both signs each.
fn count_bins(
    backend: Backend,
    source: &Source<'_>,
    units: &GridUnits,
    groups: &[u8],
    count: usize,
) -> Vec<[Bins; 2]> {
    const CHUNK: usize = 256;
    let empty = || vec![[Bins::new(), Bins::new()]; count];
    let largest = units.units.iter().map(|unit| f64::from(unit.value())).fold(0.0, f64::max);
    let blocks = source.blocks.count();
    (0..(blocks as usize).div_ceil(CHUNK))
        .into_par_iter()
        .fold(empty, |mut all, chunk| {
            let mut room = vec![0; BLOCK];
            let first = (chunk * CHUNK) as u64;
            for block in first..blocks.min(first + CHUNK as u64) {
                let slots = source.blocks.slots(block);
                let start = slots.start;
                let words = source.load(backend, slots, &mut room);
                units.for_places(source.spec, block, start, words, |words, index| {
                    let unit = units.units[index].value();
                    let weight = ((f64::from(unit) / largest).powi(2) * WEIGHT) as u64 + 1;
                    let bins = &mut all[usize::from(groups[index])];
                    for word in words {
                        let x = f32::from_bits(*word & 0x7fff_ffff) / unit;
                        bins[(*word >> 31) as usize].add(x, weight);
                    }
                });
            }
            all
        })
        .reduce(empty, |mut a, b| {
            for (a, b) in a.iter_mut().flatten().zip(b.iter().flatten()) {
                a.join(b);
            }
            a
        })
}

/// Codebooks at one price of a bit.
struct Found {
    /// For each group, positive values and then negative ones, from zero outwards.
    values: Vec<[f32; CODEBOOK_ENTRIES]>,
    histogram: Histogram,
    /// What each symbol's bits cost.
    prices: [f64; HALF],
    /// Symbols that occur.
    used: usize,
    noise: f64,
}

impl Found {
    fn new(bins: &[[Bins; 2]], price: f64) -> Found {
        // Where bits have this price, values evenly apart are about the best: an error of a twelfth of the square.
        let step = (12.0 * price / (2.0 * std::f64::consts::LN_2)).sqrt();
        let spread = |i: usize| (i as f64 + 0.5) * step;
        let mut values = vec![[[0.0; HALF]; 2]; bins.len()];
        values.iter_mut().flatten().for_each(|half| *half = std::array::from_fn(spread));
        let mut prices = [0.0; HALF];
        let mut counts = [0u64; HALF];
        let (mut noise, mut energy) = (0.0, 0.0);
        for round in 0..=ROUNDS {
            // The values that readers will have.
            values.iter_mut().flatten().flatten().for_each(|v| *v = half::f16::from_f64(*v).to_f64());
            (counts, noise, energy) = ([0; HALF], 0.0, 0.0);
            for (values, bins) in values.iter_mut().flatten().zip(bins.iter().flatten()) {
                let (mut weights, mut sums) = ([0.0; HALF], [0.0; HALF]);
                for (n, weight, x) in bins.occupied() {
                    let cost = |i: usize| (x - values[i]).powi(2) + prices[i];
                    let best = (1..HALF).fold(0, |best, i| if cost(i) < cost(best) { i } else { best });
                    counts[best] += n;
                    weights[best] += weight;
                    sums[best] += weight * x;
                    noise += weight * (x - values[best]).powi(2);
                    energy += weight * x * x;
                }
                if round < ROUNDS {
                    for i in 0..HALF {
                        if weights[i] > 0.0 {
                            values[i] = sums[i] / weights[i];
                        }
                    }
                }
            }
            if round < ROUNDS {
                let total: u64 = counts.iter().sum();
                // One that nobody has may be wanted later: it costs as if a few had it.
                let bits = |n: u64| (total as f64 / (n as f64).max(0.5)).log2();
                prices = counts.map(|n| price * bits(n));
            }
        }
        let mut histogram: Histogram = [0; 256];
        histogram[..HALF].copy_from_slice(&counts);
        // What nobody has is not written.
        let used = counts.iter().rposition(|&n| n > 0).unwrap_or(0) + 1;
        let table = |halves: &[[f64; HALF]; 2]| {
            std::array::from_fn(|i| {
                let value = if i < HALF { halves[0][i] } else { -halves[1][i - HALF] };
                if i % HALF < used { value as f32 } else { 0.0 }
            })
        };
        let values = values.iter().map(table).collect();
        Found { values, histogram, prices, used, noise: if energy > 0.0 { noise / energy } else { 0.0 } }
    }

    fn coding(
        self,
        spec: &TensorSpec,
        options: &EncodeOptions,
        blocks: u64,
        units: &GridUnits,
        groups: &[u8],
    ) -> Coding {
        let known = Known { rounded: true, sampled: false };
        let tiers = cascade::choose_tiers(&self.histogram, options.profile, known);
        let weights: u64 = self.histogram.iter().sum();
        let bits = cascade::coded_bits(&tiers, &self.histogram) + weights;
        // As `Survey::size`, with some room: bins are not exactly what the encoder sees.
        let planes: u64 = tiers[1..].iter().map(|t| if t.width == 3 { 3 } else { 1 }).sum();
        let (tail, ragged) = ((planes + 3) * blocks, 11 * tiles(spec));
        let books = 2 + (4 * self.used * self.values.len() + groups.len()) as u64;
        let header = header_bound(spec, &tiers, blocks, units.units.len() as u64) + books;
        let size = header + bits.div_ceil(8) + bits.div_ceil(8 * 200) + tail + ragged;
        let line = |i: usize, value: f32| match i % HALF < self.used {
            true => (2.0 * value, value * value + self.prices[i % HALF] as f32),
            false => (0.0, f32::INFINITY),
        };
        let lines = |values: &[f32; CODEBOOK_ENTRIES]| std::array::from_fn(|i| line(i, values[i]));
        let lines = self.values.iter().map(lines).collect();
        let groups = if self.values.len() > 1 { groups.to_vec() } else { Vec::new() };
        let codebook = Codebook { tables: self.values, groups };
        Coding {
            mantissa_bits: Some(0),
            transform: Transform::Codebook,
            tiers,
            one_width: true,
            no_subnormals: false,
            grid: None,
            books: Some(Arc::new(Books { units: units.clone(), codebook, lines })),
            size,
        }
    }
}
