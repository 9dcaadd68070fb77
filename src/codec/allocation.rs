//! How exact each weight stays so that the model fits its target.
//!
//! A pure function over the sizes that [`super::survey()`] gives, so that it is easy to test. Where bytes are short,
//! they go where they spare the most error: the error of the outputs is taken to be the sum of the errors of the
//! weights, each over the weight's own energy and times its [`Candidate::sensitivity`].

mod ladder;
#[cfg(test)]
mod tests;

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use self::ladder::Ladder;
use super::{CodebookSurvey, Coding, GridStep, GridSurvey, Survey};
use crate::format::Dtype;

/// A blob that saves less than this part of its weight does not pay.
pub const MIN_SAVING: f64 = 0.05;
/// The part of the weight bytes that remain by default.
pub const DEFAULT_RATIO: f64 = 0.5;

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Half the weight bytes, best effort.
    Default,
    /// No weight changes.
    Lossless,
    /// Every weight at this many mantissa bits at most.
    MantissaBits(u8),
    /// Weight bytes after over before, required.
    Ratio(f64),
    /// Weight bytes after, required.
    Size(u64),
    /// Bits a weight on average over those that are compressed, required.
    Bits(f64),
    /// The fewest bytes at which no weight changes by more than this part of itself.
    MaxError(f64),
    /// The fewest bytes at which the energy of each tensor is so many decibels above that of its error.
    Snr(f64),
}

/// A weight that may be compressed, with its size at each precision.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Bytes of the weight as it is.
    pub bytes: u64,
    /// Its elements.
    pub elements: u64,
    /// How many weights of the model have this content and layout; they share one blob.
    pub copies: u64,
    /// Bytes of the blob when lossless.
    pub lossless: u64,
    /// Bytes of the blob at 0, 1, ... mantissa bits, up to one less than the dtype's.
    pub rounded: Vec<u64>,
    /// The energy of the error at each of them, over the weights'.
    pub rounded_noise: Vec<f64>,
    /// Fewest mantissa bits that the best-effort default may leave.
    pub floor: u8,
    /// What grids would do, the finest first; none if grids are not wanted.
    pub grids: Option<Grids>,
    /// Of a weight that cannot be a blob: the ways to store it shorter with ONNX's own ops, with their bytes and the energy
    /// of their error over the weight's.
    pub folded: Vec<(Folded, u64, f64)>,
    /// Error of the outputs, as energy over energy, for an error of the weight of the same size: above 0.
    pub sensitivity: f64,
}

/// How a weight is stored that ONNX Runtime makes out again as it loads the model, so that it is a constant from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Folded {
    /// As float16.
    Half,
    /// As int8, with a scale for each index of the first dimension.
    Rows,
    /// As int8, with one scale.
    Whole,
}

/// A weight's choices among grids.
#[derive(Debug, Clone, PartialEq)]
pub struct Grids {
    /// Each step with the bytes of its blob and the energy of its error over the weights'; empty if no grid can hold
    /// the weight.
    pub steps: Vec<(GridStep, u64, f64)>,
    /// Whether no weight may be rounded to mantissa bits where a grid can hold it.
    pub only: bool,
}

impl Grids {
    /// The choices among grids, and how the weight is coded at each step. Without a survey no grid can hold it.
    pub fn new(survey: Option<&GridSurvey>, only: bool) -> (Self, Vec<(GridStep, Coding)>) {
        let of_step = |step| survey.map(|survey| (step, survey.coding(step), survey.noise(step)));
        Self::of(GridStep::all().filter_map(of_step), only)
    }

    /// The same among codebooks.
    pub fn of_codebooks(survey: Option<&CodebookSurvey>, only: bool) -> (Self, Vec<(GridStep, Coding)>) {
        let of_survey = |survey: &CodebookSurvey| {
            survey.steps().map(|step| (step, survey.coding(step), survey.noise(step))).collect()
        };
        let steps: Vec<_> = survey.map(of_survey).unwrap_or_default();
        Self::of(steps.into_iter(), only)
    }

    fn of(
        steps: impl Iterator<Item = (GridStep, Coding, f64)>,
        only: bool,
    ) -> (Self, Vec<(GridStep, Coding)>) {
        let choice =
            |(step, coding, noise): (GridStep, Coding, f64)| ((step, coding.size(), noise), (step, coding));
        let (steps, codings) = steps.map(choice).unzip();
        (Grids { steps, only }, codings)
    }
}

/// What to do with a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// No blob is enough smaller than the weight; the number is the bytes of the best blob that the target allows.
    Keep(u64),
    /// Bit-exact.
    Lossless,
    /// Rounded to this many mantissa bits.
    Mantissa(u8),
    /// Rounded to a uniform grid.
    Grid(GridStep),
    /// No blob, but shorter than it was.
    Folded(Folded),
}

/// The outcome of [`allocate`].
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation {
    /// One per candidate, in order.
    pub encodings: Vec<Encoding>,
    /// Weight bytes of the whole model after, as far as the survey knows (an upper bound).
    pub bytes_after: u64,
    /// Bits a weight, on average over the candidates that are compressed; 0 without any.
    pub bits_per_weight: f64,
    /// Whether the target was reached. Always true where the target is about errors.
    pub reached: bool,
}

/// A place on the curve of size against error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Weight bytes of the whole model after (an upper bound).
    pub bytes_after: u64,
    /// Bits a weight, on average over the candidates that are compressed; 0 without any.
    pub bits_per_weight: f64,
    /// The sum of the candidates' errors, each times its sensitivity.
    pub noise: f64,
    /// The largest energy of an error over that of its weights.
    pub worst_noise: f64,
    /// The most that a weight changes by, over itself; infinite where a grid is among the encodings.
    pub max_relative_error: f64,
}

/// Fewest mantissa bits that the best-effort default leaves for the sake of the whole model: about 3 decimal
/// digits of a float32, 1 of the shorter types.
pub fn floor(dtype: Dtype) -> u8 {
    match dtype {
        Dtype::F32 => 10,
        Dtype::F16 | Dtype::Bf16 => 3,
        Dtype::U8 | Dtype::I8 => 0,
    }
}

/// The most that a weight changes by, over itself, when it is rounded to `k` mantissa bits, fewer than it has.
pub fn error_bound(k: u8) -> f64 {
    1.0 / (f64::from(k + 1).exp2() + 1.0)
}

/// The energy of the error of `k` mantissa bits over that of weights whose mantissas are evenly spread.
pub fn usual_noise(k: u8) -> f64 {
    (-2.0 * f64::from(k)).exp2() / 24.0
}

impl Candidate {
    /// One weight of `bytes` bytes of `dtype`, and how `survey` has it coded at 0, 1, ... mantissa bits and, at the
    /// end, lossless. Its errors are those of evenly spread mantissas.
    pub fn new(survey: &Survey, dtype: Dtype, bytes: u64) -> (Candidate, Vec<Coding>) {
        let precisions = (0..dtype.mantissa_bits()).map(Some).chain([None]);
        let codings: Vec<Coding> = precisions.map(|k| survey.coding(k)).collect();
        let mut rounded: Vec<u64> = codings.iter().map(Coding::size).collect();
        let lossless = rounded.pop().unwrap_or(u64::MAX);
        let candidate = Candidate {
            bytes,
            elements: bytes / dtype.size() as u64,
            copies: 1,
            lossless,
            rounded_noise: (0..dtype.mantissa_bits()).map(usual_noise).collect(),
            rounded,
            floor: floor(dtype),
            grids: None,
            folded: Vec::new(),
            sensitivity: 1.0,
        };
        (candidate, codings)
    }

    /// A float32 weight of `elements` elements that cannot be a blob and may be stored in these ways.
    pub fn folded(elements: u64, folded: Vec<(Folded, u64, f64)>) -> Candidate {
        Candidate {
            bytes: elements.saturating_mul(4),
            elements,
            copies: 1,
            // No size at all: what does not pay is left as it is.
            lossless: u64::MAX,
            rounded: Vec::new(),
            rounded_noise: Vec::new(),
            floor: floor(Dtype::F32),
            grids: None,
            folded,
            sensitivity: 1.0,
        }
    }

    /// Whether it cannot be a blob.
    fn is_constant(&self) -> bool {
        !self.folded.is_empty()
    }

    /// Bytes of all copies as they are.
    fn plain(&self) -> u64 {
        self.bytes.saturating_mul(self.copies)
    }

    /// The energy of the error of `encoding` over the weight's, if it is one of this candidate's.
    pub fn noise(&self, encoding: Encoding) -> Option<f64> {
        match encoding {
            Encoding::Keep(_) | Encoding::Lossless => Some(0.0),
            Encoding::Mantissa(k) => self.rounded_noise.get(usize::from(k)).copied(),
            Encoding::Grid(wanted) => {
                let mut steps = self.grids.iter().flat_map(|grids| &grids.steps);
                steps.find(|(step, ..)| *step == wanted).map(|&(.., noise)| noise)
            }
            Encoding::Folded(wanted) => {
                self.folded.iter().find(|(how, ..)| *how == wanted).map(|&(.., noise)| noise)
            }
        }
    }
}

fn total(ladders: &[Ladder], kept: u64) -> u64 {
    ladders.iter().fold(kept, |sum, l| sum.saturating_add(l.size()))
}

fn plain(candidates: &[Candidate], kept: u64) -> u64 {
    candidates.iter().fold(kept, |sum, c| sum.saturating_add(c.plain()))
}

/// Bits a weight, on average over the candidates that are compressed; 0 without any.
fn bits_per_weight(ladders: &[Ladder]) -> f64 {
    let compressed = || ladders.iter().filter(|l| !matches!(l.encoding(), Encoding::Keep(_)));
    let bytes: f64 = compressed().map(|l| l.size() as f64).sum();
    let elements: f64 = compressed().map(|l| l.candidate.elements as f64).sum();
    if elements > 0.0 { 8.0 * bytes / elements } else { 0.0 }
}

/// Chooses an encoding for each candidate.
///
/// `kept_bytes` are the weight bytes of the model that are no candidates. For [`Target::Ratio`], [`Target::Size`] and
/// [`Target::Bits`] the caller must refuse an allocation that is not `reached`; its sizes are then the least there are.
pub fn allocate(candidates: &[Candidate], kept_bytes: u64, target: Target) -> Allocation {
    let before = plain(candidates, kept_bytes) as f64;
    let mut ladders: Vec<Ladder> = match target {
        Target::Lossless => candidates.iter().map(Ladder::lossless).collect(),
        Target::MantissaBits(k) => candidates.iter().map(|c| Ladder::at_most(c, k)).collect(),
        Target::MaxError(most) => candidates
            .iter()
            .map(|c| {
                Ladder::smallest(
                    c,
                    |encoding, _| matches!(encoding, Encoding::Mantissa(k) if error_bound(k) <= most),
                )
            })
            .collect(),
        Target::Snr(decibels) => {
            let most = 10f64.powf(-decibels / 10.0);
            candidates.iter().map(|c| Ladder::smallest(c, |_, noise| noise <= most)).collect()
        }
        // What cannot be a blob is stored shorter only where the size was asked for.
        Target::Default => {
            let of = |c| if Candidate::is_constant(c) { Ladder::lossless(c) } else { Ladder::new(c) };
            candidates.iter().map(of).collect()
        }
        Target::Ratio(_) | Target::Size(_) | Target::Bits(_) => candidates.iter().map(Ladder::new).collect(),
    };
    let reached = match target {
        Target::Lossless | Target::MantissaBits(_) | Target::MaxError(_) | Target::Snr(_) => true,
        // Where lossless gives half the bytes, nothing is rounded, whatever single weights take.
        Target::Default if total(&ladders, kept_bytes) as f64 <= before * DEFAULT_RATIO => true,
        Target::Default => {
            ladders.iter_mut().for_each(|ladder| ladder.halve());
            let budget = before * DEFAULT_RATIO;
            lower_until(&mut ladders, kept_bytes, budget, |c| c.floor, |_, _| {})
        }
        Target::Ratio(ratio) => fit(&mut ladders, kept_bytes, before * ratio),
        Target::Size(bytes) => fit(&mut ladders, kept_bytes, bytes as f64),
        Target::Bits(bits) => {
            // Those too that nothing but rounding makes smaller: they may become part of the average.
            let elements: f64 =
                ladders.iter().filter(|l| l.pays()).map(|l| l.candidate.elements as f64).sum();
            let others: u64 = ladders.iter().filter(|l| !l.pays()).map(Ladder::size).sum();
            fit(&mut ladders, 0, others as f64 + elements * bits / 8.0)
        }
    };
    Allocation {
        bytes_after: total(&ladders, kept_bytes),
        bits_per_weight: bits_per_weight(&ladders),
        encodings: ladders.iter().map(Ladder::encoding).collect(),
        reached,
    }
}

/// Size and error from lossless down to the least size there is, at up to `points` sizes an equal way apart: the
/// points of [`Target::Size`].
pub fn curve(candidates: &[Candidate], kept_bytes: u64, points: usize) -> Vec<Point> {
    let mut ladders: Vec<Ladder> = candidates.iter().map(Ladder::new).collect();
    let most = total(&ladders, kept_bytes);
    let least = ladders.iter().fold(kept_bytes, |sum, l| sum.saturating_add(l.least()));
    let span = (most - least) as f64 / (points.max(2) - 1) as f64;
    let mut curve = vec![point(&ladders, most)];
    lower_until(
        &mut ladders,
        kept_bytes,
        0.0,
        |_| 0,
        |ladders, total| {
            let wanted = most as f64 - span * curve.len() as f64;
            if total as f64 <= wanted || total == least {
                curve.push(point(ladders, total));
            }
        },
    );
    curve
}

fn point(ladders: &[Ladder], bytes_after: u64) -> Point {
    let noise = |l: &Ladder| l.noise();
    Point {
        bytes_after,
        bits_per_weight: bits_per_weight(ladders),
        noise: ladders.iter().map(|l| l.candidate.sensitivity * noise(l)).sum(),
        worst_noise: ladders.iter().map(noise).fold(0.0, f64::max),
        max_relative_error: ladders
            .iter()
            .map(|l| match l.encoding() {
                Encoding::Keep(_) | Encoding::Lossless => 0.0,
                Encoding::Mantissa(k) => error_bound(k),
                Encoding::Grid(_) | Encoding::Folded(_) => f64::INFINITY,
            })
            .fold(0.0, f64::max),
    }
}

/// Makes all fit in `budget` bytes, and uses what is left of them.
fn fit(ladders: &mut [Ladder], kept: u64, budget: f64) -> bool {
    let reached = lower_until(ladders, kept, budget, |_| 0, |_, _| {});
    if reached {
        raise_within(ladders, kept, budget);
    }
    reached
}

/// Takes the next step of the weight that it costs the least error for the bytes that it saves, again and again until
/// all fits in `budget` bytes; `seen` gets to see each step. None goes below its floor of mantissa bits.
fn lower_until<'a>(
    ladders: &mut [Ladder<'a>],
    kept: u64,
    budget: f64,
    floor: impl Fn(&Candidate) -> u8,
    mut seen: impl FnMut(&[Ladder<'a>], u64),
) -> bool {
    let mut total = total(ladders, kept);
    let key = |i: usize, l: &Ladder| {
        l.next(floor(l.candidate)).map(|(at, cost)| (Reverse(Cost(cost)), l.candidate.bytes, Reverse(i), at))
    };
    let mut queue: BinaryHeap<_> = ladders.iter().enumerate().filter_map(|(i, l)| key(i, l)).collect();
    while total as f64 > budget {
        let Some((.., Reverse(i), at)) = queue.pop() else { return false };
        let ladder = &mut ladders[i];
        let larger = ladder.size();
        ladder.at = at;
        total -= larger - ladder.size();
        queue.extend(key(i, ladder));
        seen(ladders, total);
    }
    true
}

/// Spends what is left of `budget`: the step back that spares the most error for each byte that it takes among those
/// that still fit, again and again.
fn raise_within(ladders: &mut [Ladder], kept: u64, budget: f64) {
    let mut left = (budget as u64).saturating_sub(total(ladders, kept));
    let key = |i: usize, l: &Ladder| l.gain_above().map(|gain| (Cost(gain), Reverse(i)));
    let mut queue: BinaryHeap<_> = ladders.iter().enumerate().filter_map(|(i, l)| key(i, l)).collect();
    while let Some((_, Reverse(i))) = queue.pop() {
        let ladder = &mut ladders[i];
        let smaller = ladder.size();
        ladder.at -= 1;
        match left.checked_sub(ladder.size() - smaller) {
            Some(rest) => {
                left = rest;
                queue.extend(key(i, ladder));
            }
            None => ladder.at += 1,
        }
    }
}

/// A number in its order.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cost(f64);

impl Eq for Cost {}

impl PartialOrd for Cost {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Cost {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}
