//! What a tensor would cost at each precision, from one pass over it.

use std::sync::Arc;

use rayon::prelude::*;

use super::cascade::{self, Histogram, Known, Profile};
use super::codebook::Books;
use super::encode::{EncodeOptions, Source};
use super::grid::GridUnits;
use super::word;
use crate::arch::{BLOCK, Backend, JointCounts};
use crate::error::Result;
use crate::format::{Dtype, Layout, Sections, TensorSpec, Tier, Transform, Units, header_bound};

const WIDTHS: usize = 24;
/// Numbers that [`Survey::from_counts`] takes.
pub(crate) const COUNTS: usize = (256 + 23) * WIDTHS + 2 * WIDTHS * WIDTHS;

/// Counts from which the size of a tensor follows for any number of mantissa bits.
pub struct Survey {
    spec: TensorSpec,
    profile: Profile,
    blocks: u64,
    /// Whether the counts are those of a sample, scaled up.
    sampled: bool,
    /// `[exponent][leading ones of the mantissa]`: rounding to `k` bits carries into the exponent if and only
    /// if the top `k + 1` mantissa bits are ones. Subnormals are counted apart, as normalised words.
    joint: Box<[[u64; WIDTHS]; 256]>,
    subnormal: Box<[[u64; WIDTHS]; 256]>,
    /// `[m of the words that rounding changes][m of those it leaves alone]`: weights in blocks of that kind, if
    /// subnormals are normalised and if they are not.
    widths: Box<[[u64; WIDTHS]; WIDTHS]>,
    plain_widths: Box<[[u64; WIDTHS]; WIDTHS]>,
}

/// How a tensor is coded at one precision: what [`super::encode_as`] needs to know of the whole tensor before it
/// sees the first block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coding {
    /// Mantissa bits that weights are rounded to; `None` is lossless.
    pub(super) mantissa_bits: Option<u8>,
    pub(super) transform: Transform,
    pub(super) tiers: Vec<Tier>,
    /// Whether all blocks seem to need the same number of mantissa bits.
    pub(super) one_width: bool,
    /// Whether it is no longer the right one once there is a subnormal.
    pub(super) no_subnormals: bool,
    /// The units of a grid.
    pub(super) grid: Option<Arc<GridUnits>>,
    /// Codebooks.
    pub(super) books: Option<Arc<Books>>,
    pub(super) size: u64,
}

impl Coding {
    /// How weights become symbols and raw bits.
    pub fn transform(&self) -> Transform {
        self.transform
    }

    /// What a header says before there are records.
    pub(super) fn sections(&self, spec: &TensorSpec, block_len: u32) -> Sections {
        let books = self.books.as_deref();
        let units = self.grid.as_deref().or(books.map(|books| &books.units));
        Sections {
            spec: spec.clone(),
            transform: self.transform,
            mantissa_bits: self.mantissa_bits.unwrap_or(spec.dtype.mantissa_bits()),
            lossless: true,
            block_len,
            tiers: self.tiers.clone(),
            widths: Vec::new(),
            units: units.map_or(Vec::new(), |units| units.units.clone()),
            units_of: units.map_or(Units::Tensor, |units| units.of),
            delta: None,
            codebook: books.map(|books| books.codebook.clone()),
            base_bits: 0,
            layers: Vec::new(),
            sizes: Vec::new(),
            payload_hash: 0,
        }
    }

    /// An upper bound of the blob's size in bytes: that of [`Survey::size`].
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// Mantissa bits needed so that none of the ones in `union` is dropped.
pub(super) fn needed_bits(union: u32) -> usize {
    if union & 0x7f_ffff == 0 { 0 } else { 23 - union.trailing_zeros() as usize }
}

/// Blocks that are surveyed in a row.
const CHUNK: u64 = 64;
/// A survey of its own, which is some 200 KiB, must be worth it: so many chunks at least.
const LEAST_CHUNKS: usize = 4;

/// Surveys `src`, the row-major little-endian elements of `spec`.
///
/// # Errors
/// `src` does not have the length that `spec` calls for, or the options do not fit.
pub fn survey(src: &[u8], spec: &TensorSpec, options: &EncodeOptions) -> Result<Survey> {
    survey_with(Backend::active(), src, spec, options)
}

fn survey_with(backend: Backend, src: &[u8], spec: &TensorSpec, options: &EncodeOptions) -> Result<Survey> {
    let source = Source::new(src, spec, options.block_len)?;
    let count = source.blocks.count();
    Ok(survey_slots(backend, &source, options.profile, count, |block| source.blocks.slots(block)))
}

/// Weights from which a tensor is coded as a part of it calls for.
const SAMPLED_FROM: u64 = 1 << 18;
/// So many weights at least are looked at then, and one in [`SAMPLED_OF`]: at one go in each stretch of slots, so
/// that every part of the tensor has its say.
const SAMPLED_LEAST: u64 = 1 << 17;
const SAMPLED_OF: u64 = 16;
pub(super) const STRETCH: u64 = 4096;

/// Of how many weights one is looked at, in each whole stretch of [`STRETCH`] slots, to code a tensor of `elements` weights;
/// 1 for a small one, of which all blocks are.
pub(super) fn sampled_of(elements: u64) -> u64 {
    if elements < SAMPLED_FROM { 1 } else { (elements / SAMPLED_LEAST).min(SAMPLED_OF) }
}

/// A survey of a part of a large tensor, and of the whole of a small one. Sizes that it gives are guesses, and a
/// coding is not to be relied on: there can be subnormals, or words that it does not fit, where nobody has looked.
///
/// # Errors
/// As [`survey`].
pub fn survey_sample(src: &[u8], spec: &TensorSpec, options: &EncodeOptions) -> Result<Survey> {
    let source = Source::new(src, spec, options.block_len)?;
    let Some(sample) = Sample::of(spec.elements()?) else { return survey(src, spec, options) };
    let slots = |stretch| sample.slots(stretch);
    let mut survey = survey_slots(Backend::active(), &source, options.profile, sample.stretches, slots);
    survey.scale(sample.of);
    Ok(survey)
}

/// The part of a large tensor that is looked at.
pub(super) struct Sample {
    /// Whole stretches of [`STRETCH`] slots: a part of each is looked at.
    pub(super) stretches: u64,
    /// One weight in so many.
    pub(super) of: u64,
}

impl Sample {
    /// `None` for a small tensor, of which all is looked at.
    pub(super) fn of(elements: u64) -> Option<Sample> {
        let of = sampled_of(elements);
        (of > 1).then_some(Sample { stretches: elements / STRETCH, of })
    }

    /// What is looked at in `stretch`: somewhere else in each, so that it does not go with the rows of a matrix.
    pub(super) fn slots(&self, stretch: u64) -> std::ops::Range<u64> {
        let looked_at = STRETCH / self.of;
        let place = stretch.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let first = stretch * STRETCH + place % self.of * looked_at;
        first..first + looked_at
    }
}

/// The coding at `k` mantissa bits, fewer than the dtype has, that the tensor calls for, or a part of it if it is large: it is
/// not to be relied on then.
pub(super) fn rounded_coding(
    src: &[u8],
    spec: &TensorSpec,
    options: &EncodeOptions,
    k: u8,
) -> Result<Coding> {
    let survey = survey_sample(src, spec, options)?;
    Ok(if survey.sampled { survey.sampled_coding(Some(k)) } else { survey.coding(Some(k)) })
}

/// Surveys what `slots` gives for each of `count` numbers.
fn survey_slots(
    backend: Backend,
    source: &Source<'_>,
    profile: Profile,
    count: u64,
    slots: impl Fn(u64) -> std::ops::Range<u64> + Sync,
) -> Survey {
    let empty = || Survey::empty(source.spec, profile, source.blocks.count());
    let counter = || Counter::new(empty());
    let found = count_in_parts(count, counter, |counter, n| counter.add(backend, source, slots(n)))
        .map(Counter::finish)
        .reduce_with(Survey::merge);
    found.unwrap_or_else(empty)
}

/// Has each of `count` numbers counted: by as many counters as are worth it.
pub(super) fn count_in_parts<C: Send>(
    count: u64,
    new: impl Fn() -> C + Sync + Send,
    add: impl Fn(&mut C, u64) + Sync + Send,
) -> impl ParallelIterator<Item = C> {
    (0..count.div_ceil(CHUNK) as usize).into_par_iter().with_min_len(LEAST_CHUNKS).fold(
        new,
        move |mut counter, chunk| {
            let first = chunk as u64 * CHUNK;
            (first..count.min(first + CHUNK)).for_each(|number| add(&mut counter, number));
            counter
        },
    )
}

/// A survey in the making.
struct Counter {
    survey: Survey,
    counts: JointCounts,
    room: Vec<u32>,
}

impl Counter {
    fn new(survey: Survey) -> Self {
        Counter { survey, counts: JointCounts::new(), room: vec![0; BLOCK] }
    }

    fn add(&mut self, backend: Backend, source: &Source<'_>, slots: std::ops::Range<u64>) {
        let words = source.words(backend, slots, &mut self.room);
        let (n, unions) = (words.len(), backend.count(words, &mut self.counts));
        let survey = &mut self.survey;
        let (normal, special) = (unions.normal, unions.special);
        survey.widths[needed_bits(normal | unions.normalised)][needed_bits(special)] += n as u64;
        survey.plain_widths[needed_bits(normal)][needed_bits(special | unions.subnormal)] += n as u64;
        if self.counts.is_nearly_full() {
            self.drain();
        }
    }

    fn drain(&mut self) {
        let Survey { joint, subnormal, .. } = &mut self.survey;
        self.counts.drain(|row, ones, count| match row.checked_sub(256) {
            None => joint[row][ones] += count,
            Some(top) => subnormal[word::SUBNORMAL_CODES as usize + top][ones] += count,
        });
    }

    fn finish(mut self) -> Survey {
        self.drain();
        self.survey
    }
}

impl Survey {
    /// The survey of a tensor of `blocks` blocks from counts that were made elsewhere: by exponent, or the place of a
    /// subnormal's top bit, and by leading ones; then `widths` and `plain_widths`. `sampled_of` as [`sampled_of`] gives it.
    pub(super) fn from_counts(
        spec: &TensorSpec,
        profile: Profile,
        blocks: u64,
        counts: &[u64; COUNTS],
        sampled_of: u64,
    ) -> Survey {
        let mut survey = Survey::empty(spec, profile, blocks);
        let (joint, rest) = counts.split_at(256 * WIDTHS);
        let (subnormal, rest) = rest.split_at(23 * WIDTHS);
        let (widths, plain_widths) = rest.split_at(WIDTHS * WIDTHS);
        let codes = word::SUBNORMAL_CODES as usize..255;
        survey.joint.as_flattened_mut().copy_from_slice(joint);
        survey.subnormal[codes].as_flattened_mut().copy_from_slice(subnormal);
        survey.widths.as_flattened_mut().copy_from_slice(widths);
        survey.plain_widths.as_flattened_mut().copy_from_slice(plain_widths);
        if sampled_of > 1 {
            survey.scale(sampled_of);
        }
        survey
    }

    fn empty(spec: &TensorSpec, profile: Profile, blocks: u64) -> Survey {
        Survey {
            spec: spec.clone(),
            profile,
            blocks,
            sampled: false,
            joint: Box::new([[0; WIDTHS]; 256]),
            subnormal: Box::new([[0; WIDTHS]; 256]),
            widths: Box::new([[0; WIDTHS]; WIDTHS]),
            plain_widths: Box::new([[0; WIDTHS]; WIDTHS]),
        }
    }

    /// The coding that a sample calls for. It is not to be relied on.
    pub(super) fn sampled_coding(&self, mantissa_bits: Option<u8>) -> Coding {
        let coding = self.coding(mantissa_bits);
        self.known().of_sample(coding, self.has_subnormals(), &self.plain_widths)
    }

    fn merge(mut self, other: Survey) -> Survey {
        let add = |a: &mut [u64], b: &[u64]| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        add(self.joint.as_flattened_mut(), other.joint.as_flattened());
        add(self.subnormal.as_flattened_mut(), other.subnormal.as_flattened());
        add(self.widths.as_flattened_mut(), other.widths.as_flattened());
        add(self.plain_widths.as_flattened_mut(), other.plain_widths.as_flattened());
        self
    }

    /// Makes each weight of a sample count `times`.
    fn scale(&mut self, times: u64) {
        self.sampled = true;
        let Survey { joint, subnormal, widths, plain_widths, .. } = self;
        let by_exponent = joint.as_flattened_mut().iter_mut().chain(subnormal.as_flattened_mut());
        let by_width = widths.as_flattened_mut().iter_mut().chain(plain_widths.as_flattened_mut());
        by_exponent.chain(by_width).for_each(|count| *count *= times);
    }

    fn has_subnormals(&self) -> bool {
        self.subnormal.as_flattened().iter().any(|&n| n > 0)
    }

    /// How the encoder codes this tensor at this precision. Subnormals can be normalised if no other weight has an
    /// exponent that stands for one. They are when weights are rounded; lossless, when that is smaller.
    pub fn coding(&self, mantissa_bits: Option<u8>) -> Coding {
        let taken = self.joint[word::SUBNORMAL_CODES as usize..255].as_flattened().iter().any(|&n| n > 0);
        let mantissa_bits = mantissa_bits.filter(|&k| k < self.spec.dtype.mantissa_bits());
        let coding = |transform| self.coding_with(mantissa_bits, transform);
        let subnormals = self.has_subnormals();
        match mantissa_bits {
            None => Surveyed::lossless(subnormals, taken, coding),
            Some(_) if subnormals && !taken => coding(Transform::NormalisedSplit),
            Some(_) => coding(Transform::Split),
        }
    }

    /// The transform of [`Survey::coding`].
    pub fn transform(&self, mantissa_bits: Option<u8>) -> Transform {
        self.coding(mantissa_bits).transform
    }

    /// How often each exponent occurs after rounding to `mantissa_bits` (`None`: no rounding).
    pub fn histogram(&self, mantissa_bits: Option<u8>, transform: Transform) -> Histogram {
        let mut out = [0u64; 256];
        let k = mantissa_bits
            .filter(|&k| k < self.spec.dtype.mantissa_bits())
            .map_or(WIDTHS, |k| usize::from(k) + 1);
        let carried = |by_ones: &[u64; WIDTHS]| by_ones[k.min(WIDTHS)..].iter().sum::<u64>();
        let largest = if self.spec.dtype == Dtype::F16 { 142 } else { 254 };
        let normalised = transform == Transform::NormalisedSplit;
        for (exponent, (normal, subnormal)) in self.joint.iter().zip(self.subnormal.iter()).enumerate() {
            let carry = if (1..largest).contains(&exponent) { carried(normal) } else { 0 };
            out[exponent] += normal.iter().sum::<u64>() - carry;
            if carry > 0 {
                out[exponent + 1] += carry;
            }
            let (all, carry) = (subnormal.iter().sum::<u64>(), carried(subnormal));
            match (all, normalised) {
                (0, _) => {}
                // The largest subnormals round up to the least normal number.
                (_, true) => {
                    out[exponent] += all - carry;
                    out[if exponent == 254 { 1 } else { exponent + 1 }] += carry;
                }
                (_, false) => {
                    let carry = if exponent == 254 { carry } else { 0 };
                    out[0] += all - carry;
                    out[1] += carry;
                }
            }
        }
        out
    }

    /// The cascade that [`super::encode`] uses at this precision.
    pub fn tiers(&self, mantissa_bits: Option<u8>) -> Vec<Tier> {
        self.coding(mantissa_bits).tiers
    }

    /// An upper bound of the blob's size in bytes, less than .02 bits a weight above the true one in blocks of
    /// 4096. `None` is lossless.
    pub fn size(&self, mantissa_bits: Option<u8>) -> u64 {
        self.coding(mantissa_bits).size
    }

    fn coding_with(&self, mantissa_bits: Option<u8>, transform: Transform) -> Coding {
        let normalised = transform == Transform::NormalisedSplit;
        self.known().coding(
            mantissa_bits,
            transform,
            &self.histogram(mantissa_bits, transform),
            if normalised { &self.widths } else { &self.plain_widths },
        )
    }

    fn known(&self) -> Surveyed<'_> {
        Surveyed { spec: &self.spec, profile: self.profile, blocks: self.blocks, sampled: self.sampled }
    }
}

/// `[m of the words that rounding changes][m of those it leaves alone]`: weights in blocks of that kind.
pub(super) type Widths = [[u64; WIDTHS]; WIDTHS];

/// What is known of a tensor beside the counts.
#[derive(Clone, Copy)]
pub(super) struct Surveyed<'a> {
    pub(super) spec: &'a TensorSpec,
    pub(super) profile: Profile,
    pub(super) blocks: u64,
    pub(super) sampled: bool,
}

impl Surveyed<'_> {
    /// The coding for symbols with these counts, in blocks of these widths.
    pub(super) fn coding(
        self,
        mantissa_bits: Option<u8>,
        transform: Transform,
        histogram: &Histogram,
        widths: &Widths,
    ) -> Coding {
        let Surveyed { spec, profile, blocks, sampled } = self;
        let rounded = mantissa_bits.is_some_and(|k| k < spec.dtype.mantissa_bits());
        let tiers = cascade::choose_tiers(histogram, profile, Known { rounded, sampled });
        let k = usize::from(mantissa_bits.unwrap_or(spec.dtype.mantissa_bits()));
        let mut bits = cascade::coded_bits(&tiers, histogram);
        let mut kept = [false; WIDTHS];
        for (rounded, row) in widths.iter().enumerate() {
            for (exact, &weights) in row.iter().enumerate() {
                let m = rounded.min(k).max(exact);
                bits += weights * (1 + m) as u64;
                kept[m] |= weights > 0;
            }
        }
        // Planes are whole bytes (three a tier of 3 bits) and records multiples of 4. Only the last block of a tile
        // can also have ragged code and raw planes, at most 11 bytes of them.
        let planes: u64 = tiers[1..].iter().map(|t| if t.width == 3 { 3 } else { 1 }).sum();
        let (tail, ragged) = ((planes + 3) * blocks, 11 * tiles(spec));
        let size = header_bound(spec, &tiers, blocks, 0) + bits.div_ceil(8) + tail + ragged;
        let one_width = kept.iter().filter(|&&kept| kept).count() == 1;
        Coding {
            mantissa_bits,
            transform,
            tiers,
            one_width,
            no_subnormals: false,
            grid: None,
            books: None,
            size,
        }
    }

    /// The lossless coding, of which `coding` gives one for each transform: the smaller one. Subnormals can be normalised
    /// if no other weight has an exponent that stands for one: `taken`.
    pub(super) fn lossless(subnormals: bool, taken: bool, coding: impl Fn(Transform) -> Coding) -> Coding {
        let plain = coding(Transform::Split);
        if !subnormals || taken {
            return plain;
        }
        let normalised = coding(Transform::NormalisedSplit);
        if normalised.size < plain.size { normalised } else { plain }
    }

    /// `coding`, which a sample calls for, as it is then: not to be relied on.
    pub(super) fn of_sample(self, coding: Coding, subnormals: bool, plain_widths: &Widths) -> Coding {
        let mut coding = coding;
        // A lossless coding with all mantissa bits in all blocks gains nothing from normalising.
        let all_bits = coding.mantissa_bits.is_none() && self.has_all_bits(plain_widths);
        // A float16 has none: its words are those of float32.
        coding.no_subnormals = self.spec.dtype != Dtype::F16 && !all_bits && !subnormals;
        // A guess, with some room.
        coding.size += coding.size / 64;
        coding
    }

    /// Whether all blocks need all mantissa bits that the dtype has, subnormals not normalised.
    fn has_all_bits(self, plain_widths: &Widths) -> bool {
        let all = usize::from(self.spec.dtype.mantissa_bits());
        plain_widths.iter().enumerate().all(|(rounded, row)| {
            row.iter().enumerate().all(|(exact, &weights)| weights == 0 || rounded.max(exact) == all)
        })
    }
}

/// Tiles of a tensor; one if it has none.
pub(super) fn tiles(spec: &TensorSpec) -> u64 {
    match (spec.layout, spec.shape.as_slice()) {
        (Layout::ColumnTiles { tile }, &[_, n]) => n.div_ceil(u64::from(tile)),
        _ => 1,
    }
}
