//! How many mantissa bits each weight may keep so that the model fits its target.
//!
//! A pure function over the sizes that [`super::survey()`] gives, so that it is easy to test.

use std::cmp::{Ordering, Reverse};

use super::GridStep;

use super::{Coding, Survey};
use crate::format::Dtype;

/// A blob that saves less than this part of its weight does not pay.
const MIN_SAVING: f64 = 0.05;
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
}

/// A weight that may be compressed, with its size at each precision.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Bytes of the weight as it is.
    pub bytes: u64,
    /// How many weights of the model have this content and layout; they share one blob.
    pub copies: u64,
    /// Bytes of the blob when lossless.
    pub lossless: u64,
    /// Bytes of the blob at 0, 1, ... mantissa bits, up to one less than the dtype's.
    pub rounded: Vec<u64>,
    /// Fewest mantissa bits that the best-effort default may leave.
    pub floor: u8,
    /// What grids would do, the finest first; none if grids are not wanted.
    pub grids: Option<Grids>,
}

/// A weight's choices among grids.
#[derive(Debug, Clone, PartialEq)]
pub struct Grids {
    /// Each step with the bytes of its blob and the energy of its error over the weights'; empty if no grid can hold
    /// the weight.
    pub steps: Vec<(GridStep, u64, f64)>,
    /// The energy of the error at 0, 1, ... mantissa bits, over the weights'.
    pub rounded_noise: Vec<f64>,
    /// Whether no weight may be rounded to mantissa bits where a grid can hold it.
    pub only: bool,
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
}

/// The outcome of [`allocate`].
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation {
    /// One per candidate, in order.
    pub encodings: Vec<Encoding>,
    /// Weight bytes of the whole model after, as far as the survey knows (an upper bound).
    pub bytes_after: u64,
    /// Whether the target was reached. Always true for `Lossless` and `MantissaBits`.
    pub reached: bool,
}

/// One weight's choices, most exact first; each is smaller than the one before.
struct Ladder<'a> {
    candidate: &'a Candidate,
    steps: Vec<(Encoding, u64)>,
    /// The energy of each step's error, over the weights'; empty where mantissa bits tell.
    noise: Vec<f64>,
    at: usize,
}

impl<'a> Ladder<'a> {
    /// Every choice from lossless down.
    fn new(candidate: &'a Candidate) -> Self {
        match &candidate.grids {
            Some(grids) => Ladder::with_grids(candidate, grids),
            None => Ladder::cuts(candidate),
        }
    }

    /// Those of which no other is both smaller and more exact.
    fn with_grids(candidate: &'a Candidate, grids: &Grids) -> Self {
        let cut = |(k, (&size, &noise)): (usize, (&u64, &f64))| (Encoding::Mantissa(k as u8), size, noise);
        let cuts = candidate.rounded.iter().zip(&grids.rounded_noise).enumerate().map(cut);
        let cuts = cuts.filter(|_| !grids.only || grids.steps.is_empty());
        let on_grid = grids.steps.iter().map(|&(step, size, noise)| (Encoding::Grid(step), size, noise));
        let mut all: Vec<_> = cuts.chain(on_grid).collect();
        // Of equal ones the first: mantissa bits.
        all.sort_by(|(_, a, x), (_, b, y)| a.cmp(b).then(x.total_cmp(y)));
        let mut steps: Vec<(Encoding, u64, f64)> = Vec::new();
        for step in all {
            if pays(candidate, step.1) && steps.last().is_none_or(|least| step.2 < least.2) {
                steps.push(step);
            }
        }
        let smallest = steps.first().map_or(u64::MAX, |step| step.1).min(candidate.lossless);
        let mut ladder = Ladder::only(candidate, Encoding::Lossless, candidate.lossless, smallest);
        ladder.noise = vec![0.0];
        for (encoding, size, noise) in steps.into_iter().rev() {
            if size < ladder.steps[0].1 {
                ladder.steps.push((encoding, size));
                ladder.noise.push(noise);
            }
        }
        ladder
    }

    /// Every number of mantissa bits.
    fn cuts(candidate: &'a Candidate) -> Self {
        let smallest = candidate.rounded.iter().copied().fold(candidate.lossless, u64::min);
        let mut ladder = Ladder::only(candidate, Encoding::Lossless, candidate.lossless, smallest);
        for (k, &size) in candidate.rounded.iter().enumerate().rev() {
            if pays(candidate, size) && ladder.steps.last().is_some_and(|&(_, least)| size < least) {
                ladder.steps.push((Encoding::Mantissa(k as u8), size));
            }
        }
        ladder
    }

    /// One choice: this encoding if it pays.
    fn only(candidate: &'a Candidate, encoding: Encoding, size: u64, best: u64) -> Self {
        let step = match pays(candidate, size) {
            true => (encoding, size),
            false => (Encoding::Keep(best), candidate.plain()),
        };
        Ladder { candidate, steps: vec![step], noise: Vec::new(), at: 0 }
    }

    fn lossless(candidate: &'a Candidate) -> Self {
        Ladder::only(candidate, Encoding::Lossless, candidate.lossless, candidate.lossless)
    }

    /// At most `k` mantissa bits; lossless where that is no larger.
    fn at_most(candidate: &'a Candidate, k: u8) -> Self {
        match candidate.rounded.get(usize::from(k)) {
            Some(&size) if size < candidate.lossless => {
                Ladder::only(candidate, Encoding::Mantissa(k), size, size)
            }
            _ => Ladder::lossless(candidate),
        }
    }

    fn encoding(&self) -> Encoding {
        self.steps[self.at].0
    }

    fn size(&self) -> u64 {
        self.steps[self.at].1
    }

    fn bits_at(&self, step: usize) -> Option<u8> {
        match self.steps.get(step)?.0 {
            Encoding::Mantissa(k) => Some(k),
            _ => None,
        }
    }

    /// Mantissa bits that count when the least hurt weight is sought. A lossless step counts as one more than
    /// the next: an upcast float16 has 10 bits, not 23.
    ///
    /// Where errors are known, bits are counted by them: twice the error is one bit less.
    fn precision(&self) -> Precision {
        let bits = |noise: f64| -noise.log2() / 2.0;
        Precision(match (self.noise.get(self.at), self.noise.get(self.at + 1)) {
            (Some(&noise), _) if noise > 0.0 => bits(noise),
            (Some(_), next) => next.map_or(0.0, |&noise| bits(noise) + 1.0),
            (None, _) => {
                let next = || self.bits_at(self.at + 1).map_or(0, |k| k + 1);
                self.bits_at(self.at).unwrap_or_else(next).into()
            }
        })
    }

    fn can_lower(&self, floor: u8) -> bool {
        let Some(noise) = self.noise.get(self.at + 1) else {
            return self.bits_at(self.at + 1).is_some_and(|k| k >= floor);
        };
        let most =
            self.candidate.grids.as_ref().and_then(|grids| grids.rounded_noise.get(usize::from(floor)));
        floor == 0 || most.is_none_or(|most| noise <= most)
    }
}

/// Bits, in their order.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Precision(f64);

impl Eq for Precision {}

impl PartialOrd for Precision {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Precision {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
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

impl Candidate {
    /// One weight of `bytes` bytes of `dtype`, and how `survey` has it coded at 0, 1, ... mantissa bits and, at the
    /// end, lossless.
    pub fn new(survey: &Survey, dtype: Dtype, bytes: u64) -> (Candidate, Vec<Coding>) {
        let precisions = (0..dtype.mantissa_bits()).map(Some).chain([None]);
        let codings: Vec<Coding> = precisions.map(|k| survey.coding(k)).collect();
        let mut rounded: Vec<u64> = codings.iter().map(Coding::size).collect();
        let lossless = rounded.pop().unwrap_or(u64::MAX);
        (Candidate { bytes, copies: 1, lossless, rounded, floor: floor(dtype), grids: None }, codings)
    }

    /// Bytes of all copies as they are.
    fn plain(&self) -> u64 {
        self.bytes.saturating_mul(self.copies)
    }
}

fn total(ladders: &[Ladder], kept: u64) -> u64 {
    ladders.iter().fold(kept, |sum, l| sum.saturating_add(l.size()))
}

fn pays(candidate: &Candidate, size: u64) -> bool {
    size as f64 <= candidate.bytes as f64 * (1.0 - MIN_SAVING)
}

/// Chooses an encoding for each candidate.
///
/// `kept_bytes` are the weight bytes of the model that are no candidates. For [`Target::Ratio`] the caller must
/// refuse an allocation that is not `reached`; its `bytes_after` is then the best there is.
pub fn allocate(candidates: &[Candidate], kept_bytes: u64, target: Target) -> Allocation {
    let before = candidates.iter().fold(kept_bytes, |sum, c| sum.saturating_add(c.plain()));
    let mut ladders: Vec<Ladder> = match target {
        Target::Lossless => candidates.iter().map(Ladder::lossless).collect(),
        Target::MantissaBits(k) => candidates.iter().map(|c| Ladder::at_most(c, k)).collect(),
        Target::Default | Target::Ratio(_) => candidates.iter().map(Ladder::new).collect(),
    };
    let reached = match target {
        Target::Lossless | Target::MantissaBits(_) => true,
        // Where lossless gives half the bytes, nothing is rounded, whatever single weights take.
        Target::Default if total(&ladders, kept_bytes) as f64 <= before as f64 * DEFAULT_RATIO => true,
        Target::Default => {
            ladders.iter_mut().for_each(halve);
            lower_until(&mut ladders, kept_bytes, before as f64 * DEFAULT_RATIO, |c| c.floor)
        }
        Target::Ratio(ratio) => lower_until(&mut ladders, kept_bytes, before as f64 * ratio, |_| 0),
    };
    Allocation {
        bytes_after: total(&ladders, kept_bytes),
        encodings: ladders.iter().map(Ladder::encoding).collect(),
        reached,
    }
}

/// The most exact step that is at most half the weight; where none is, the weight stays as exact as it can.
fn halve(ladder: &mut Ladder) {
    let half = (ladder.candidate.bytes as f64 * DEFAULT_RATIO) as u64;
    if let Some(step) = ladder
        .steps
        .iter()
        .position(|&(encoding, size)| !matches!(encoding, Encoding::Keep(_)) && size <= half)
    {
        ladder.at = step;
    }
}

/// Takes mantissa bits one at a time from the most exact weight until all fits in `budget` bytes.
fn lower_until(ladders: &mut [Ladder], kept: u64, budget: f64, floor: impl Fn(&Candidate) -> u8) -> bool {
    let mut total = total(ladders, kept);
    let key = |(i, l): (usize, &Ladder)| (l.precision(), l.candidate.bytes, Reverse(i));
    let mut queue: std::collections::BinaryHeap<_> = ladders.iter().enumerate().map(key).collect();
    while total as f64 > budget {
        let Some((.., Reverse(i))) = queue.pop() else { return false };
        let ladder = &mut ladders[i];
        if ladder.can_lower(floor(ladder.candidate)) {
            let larger = ladder.size();
            ladder.at += 1;
            total -= larger - ladder.size();
            queue.push(key((i, ladder)));
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A float32 weight of `n` elements whose exponents take 2.6 bits.
    fn float32(n: u64) -> Candidate {
        let size = |bits: f64| (n as f64 * bits / 8.0) as u64;
        let rounded = (0..23).map(|k| size(3.6 + f64::from(k))).collect();
        Candidate { bytes: 4 * n, copies: 1, lossless: size(26.6), rounded, floor: 10, grids: None }
    }

    fn upcast(n: u64) -> Candidate {
        let mut c = float32(n);
        c.lossless = c.rounded[10];
        c.rounded[10..].fill(c.lossless);
        c
    }

    fn incompressible(n: u64) -> Candidate {
        Candidate {
            bytes: 4 * n,
            copies: 1,
            lossless: 4 * n + 100,
            rounded: vec![4 * n + 100; 23],
            floor: 10,
            grids: None,
        }
    }

    #[test]
    fn lossless_cuts_nothing() {
        let a = allocate(&[float32(1000), incompressible(10)], 7, Target::Lossless);
        assert_eq!(a.encodings, [Encoding::Lossless, Encoding::Keep(140)]);
        assert_eq!(a.bytes_after, 3325 + 40 + 7);
    }

    #[test]
    fn default_takes_the_largest_k_in_half() {
        let a = allocate(&[float32(1000), upcast(1000)], 0, Target::Default);
        assert_eq!(a.encodings, [Encoding::Mantissa(12), Encoding::Lossless]);
        assert!(a.reached);
    }

    #[test]
    fn default_rounds_nothing_where_lossless_gives_half_in_all() {
        // A header makes the small one a little more than half.
        let mut small = upcast(1000);
        small.lossless = 2010;
        let a = allocate(&[small, upcast(9000)], 0, Target::Default);
        assert_eq!(a.encodings, [Encoding::Lossless; 2]);
        assert!(a.reached);
    }

    #[test]
    fn default_pays_for_kept_weights_down_to_the_floor() {
        let a = allocate(&[float32(1000)], 250, Target::Default);
        assert_eq!(a.encodings, [Encoding::Mantissa(11)]);
        assert!(a.reached);
        let a = allocate(&[float32(1000)], 4000, Target::Default);
        assert_eq!(a.encodings, [Encoding::Mantissa(10)]);
        assert!(!a.reached);
    }

    #[test]
    fn ratio_equalises_and_prefers_lossless() {
        let two = [float32(1000), float32(2000)];
        assert_eq!(allocate(&two, 0, Target::Ratio(0.9)).encodings, [Encoding::Lossless; 2]);
        let a = allocate(&two, 0, Target::Ratio(0.8));
        assert_eq!(a.encodings, [Encoding::Mantissa(22), Encoding::Mantissa(22)]);
        assert!(a.reached && a.bytes_after as f64 <= 12000.0 * 0.8);
        let a = allocate(&two, 0, Target::Ratio(0.82));
        assert_eq!(a.encodings, [Encoding::Lossless, Encoding::Mantissa(22)], "the larger one goes first");
        let a = allocate(&[float32(1000), upcast(1000)], 0, Target::Ratio(0.5));
        assert_eq!(
            a.encodings,
            [Encoding::Mantissa(14), Encoding::Lossless],
            "10 bits that are all there come last"
        );
    }

    #[test]
    fn unreachable_ratio_says_the_best() {
        let a = allocate(&[float32(1000)], 100, Target::Ratio(0.01));
        assert!(!a.reached);
        assert_eq!(a.encodings, [Encoding::Mantissa(0)]);
        assert_eq!(a.bytes_after, 450 + 100);
    }

    #[test]
    fn mantissa_bits_are_a_ceiling() {
        let all = [float32(1000), upcast(1000), incompressible(10)];
        let a = allocate(&all, 0, Target::MantissaBits(12));
        assert_eq!(a.encodings, [Encoding::Mantissa(12), Encoding::Lossless, Encoding::Keep(140)]);
        let a = allocate(&all, 0, Target::MantissaBits(4));
        assert_eq!(a.encodings, [Encoding::Mantissa(4), Encoding::Mantissa(4), Encoding::Keep(140)]);
        let a = allocate(&all, 0, Target::MantissaBits(23));
        assert_eq!(a.encodings[0], Encoding::Lossless);
    }

    #[test]
    fn copies_share_a_blob() {
        let tied = Candidate { copies: 2, ..float32(1000) };
        let a = allocate(&[tied], 0, Target::Default);
        assert_eq!(a.encodings, [Encoding::Lossless], "one blob for two is less than half");
        assert_eq!(a.bytes_after, 3325);
    }

    /// The same weight, whose error grids of the same size make half as large.
    fn with_grids(candidate: Candidate, only: bool) -> Candidate {
        let noise = |bits: f64| (-2.0 * bits).exp2();
        let steps = GridStep::all().map(|step| {
            let bits = f64::from(step.raw_bits) + step.cell as f64 / 4.0;
            let size = (candidate.bytes as f64 / 32.0 * (3.6 + bits)) as u64;
            (step, size, noise(bits + 1.0))
        });
        let grids =
            Grids { steps: steps.collect(), rounded_noise: (0..23).map(|k| noise(k.into())).collect(), only };
        Candidate { grids: Some(grids), ..candidate }
    }

    #[test]
    fn grids_are_taken_where_they_are_closer_at_the_same_size() {
        let a = allocate(&[with_grids(float32(1000), false)], 0, Target::Ratio(0.25));
        assert_eq!(a.encodings, [Encoding::Grid(GridStep { cell: 1, raw_bits: 4 })]);
        assert!(a.reached && a.bytes_after <= 1000);
        // Beyond the finest grid, mantissa bits; not if only grids are wanted.
        let a = allocate(&[with_grids(float32(1000), false)], 0, Target::Ratio(0.8));
        assert_eq!(a.encodings, [Encoding::Mantissa(22)]);
        let a = allocate(&[with_grids(float32(1000), true)], 0, Target::Ratio(0.8));
        assert_eq!(a.encodings, [Encoding::Grid(GridStep { cell: 3, raw_bits: 15 })]);
        let a = allocate(&[with_grids(float32(1000), true)], 0, Target::Ratio(0.9));
        assert_eq!(a.encodings, [Encoding::Lossless]);
        // Where no grid can hold it, there is no other way.
        let mut none = with_grids(float32(1000), true);
        none.grids.as_mut().expect("just made").steps.clear();
        let a = allocate(&[none], 0, Target::Ratio(0.5));
        assert_eq!(a.encodings, [Encoding::Mantissa(12)]);
    }

    #[test]
    fn precision_is_evened_out_over_grids_and_mantissa_bits() {
        let mut cut = with_grids(float32(1000), false);
        cut.grids.as_mut().expect("just made").steps.clear();
        let a = allocate(&[cut, with_grids(float32(1000), true)], 0, Target::Ratio(0.4));
        let [Encoding::Mantissa(k), Encoding::Grid(step)] = a.encodings[..] else { panic!("{a:?}") };
        let bits = f64::from(step.raw_bits) + step.cell as f64 / 4.0 + 1.0;
        assert!((f64::from(k) - bits).abs() <= 1.0, "{a:?}");
    }

    #[test]
    fn the_floor_holds_for_grids() {
        let a = allocate(&[with_grids(float32(1000), false)], 4000, Target::Default);
        assert!(!a.reached);
        let [Encoding::Grid(step)] = a.encodings[..] else { panic!("{a:?}") };
        assert_eq!((step.raw_bits, step.cell), (9, 0), "as exact as 10 mantissa bits");
    }
}
