//! One weight's choices, in their order.

use super::{Candidate, DEFAULT_RATIO, Encoding, MIN_SAVING};

/// One weight's choices, most exact first; each is smaller than the one before.
pub(super) struct Ladder<'a> {
    pub(super) candidate: &'a Candidate,
    steps: Vec<Step>,
    /// The choice that is taken.
    pub(super) at: usize,
}

#[derive(Clone, Copy)]
struct Step {
    encoding: Encoding,
    size: u64,
    /// The energy of its error, over the weights'.
    noise: f64,
}

impl<'a> Ladder<'a> {
    /// Every choice from lossless down of which no other is both smaller and more exact.
    pub(super) fn new(candidate: &'a Candidate) -> Self {
        let mut all: Vec<Step> = choices(candidate).collect();
        // Of equal ones the first: mantissa bits.
        all.sort_by(|a, b| a.size.cmp(&b.size).then(a.noise.total_cmp(&b.noise)));
        let mut steps: Vec<Step> = Vec::new();
        for step in all {
            if pays(candidate, step.size) && steps.last().is_none_or(|least| step.noise < least.noise) {
                steps.push(step);
            }
        }
        let smallest = steps.first().map_or(u64::MAX, |step| step.size).min(candidate.lossless);
        let mut ladder = Ladder::only(candidate, lossless(candidate), smallest);
        for step in steps.into_iter().rev() {
            if step.size < ladder.steps[0].size {
                ladder.steps.push(step);
            }
        }
        ladder
    }

    /// One choice: this one if it pays.
    fn only(candidate: &'a Candidate, step: Step, best: u64) -> Self {
        let step = match pays(candidate, step.size) {
            true => step,
            false => Step { encoding: Encoding::Keep(best), size: candidate.plain(), noise: 0.0 },
        };
        Ladder { candidate, steps: vec![step], at: 0 }
    }

    pub(super) fn lossless(candidate: &'a Candidate) -> Self {
        Ladder::only(candidate, lossless(candidate), candidate.lossless)
    }

    /// At most `k` mantissa bits; lossless where that is no larger.
    pub(super) fn at_most(candidate: &'a Candidate, k: u8) -> Self {
        match cuts(candidate).nth(usize::from(k)) {
            Some(cut) if cut.size < candidate.lossless => Ladder::only(candidate, cut, cut.size),
            _ => Ladder::lossless(candidate),
        }
    }

    /// The smallest choice that `allowed` allows, by encoding and noise; lossless always is. Of those of one size the
    /// most exact.
    pub(super) fn smallest(candidate: &'a Candidate, allowed: impl Fn(Encoding, f64) -> bool) -> Self {
        let fits = choices(candidate).filter(|step| allowed(step.encoding, step.noise));
        let all = std::iter::once(lossless(candidate)).chain(fits);
        let best = all.min_by(|a, b| a.size.cmp(&b.size).then(a.noise.total_cmp(&b.noise)));
        let best = best.unwrap_or(lossless(candidate));
        Ladder::only(candidate, best, best.size)
    }

    pub(super) fn encoding(&self) -> Encoding {
        self.steps[self.at].encoding
    }

    /// Whether any choice is smaller than the weight as it is.
    pub(super) fn pays(&self) -> bool {
        self.steps.iter().any(|step| !matches!(step.encoding, Encoding::Keep(_)))
    }

    pub(super) fn size(&self) -> u64 {
        self.steps[self.at].size
    }

    pub(super) fn noise(&self) -> f64 {
        self.steps[self.at].noise
    }

    /// The least size there is.
    pub(super) fn least(&self) -> u64 {
        self.steps.last().map_or(0, |step| step.size)
    }

    /// The most exact step that is at most half the weight; where none is, the weight stays as exact as it can.
    pub(super) fn halve(&mut self) {
        let half = (self.candidate.bytes as f64 * DEFAULT_RATIO) as u64;
        let is_half = |step: &Step| !matches!(step.encoding, Encoding::Keep(_)) && step.size <= half;
        if let Some(step) = self.steps.iter().position(is_half) {
            self.at = step;
        }
    }

    /// The step below that costs the least error for each byte that it saves, and that cost. None has more error than
    /// `floor` mantissa bits.
    pub(super) fn next(&self, floor: u8) -> Option<(usize, f64)> {
        let here = &self.steps[self.at];
        let most = match floor {
            0 => f64::INFINITY,
            k => self.candidate.rounded_noise.get(usize::from(k)).copied().unwrap_or(f64::INFINITY),
        };
        let below = self.steps.iter().enumerate().skip(self.at + 1).filter(|(_, step)| step.noise <= most);
        let cost = |step: &Step| (step.noise - here.noise) / (here.size - step.size) as f64;
        let costs = below.map(|(at, step)| (at, self.candidate.sensitivity * cost(step)));
        // Of equal ones the nearest.
        costs.reduce(|a, b| if b.1 < a.1 { b } else { a })
    }

    /// The error that the step above spares for each byte that it takes more; none above the first.
    pub(super) fn gain_above(&self) -> Option<f64> {
        let (here, above) = (&self.steps[self.at], &self.steps[self.at.checked_sub(1)?]);
        let gain = (here.noise - above.noise) / (above.size - here.size) as f64;
        Some(self.candidate.sensitivity * gain)
    }
}

fn lossless(candidate: &Candidate) -> Step {
    Step { encoding: Encoding::Lossless, size: candidate.lossless, noise: 0.0 }
}

/// Every number of mantissa bits, from 0 up.
fn cuts(candidate: &Candidate) -> impl Iterator<Item = Step> {
    candidate.rounded.iter().zip(&candidate.rounded_noise).enumerate().map(|(k, (&size, &noise))| Step {
        encoding: Encoding::Mantissa(k as u8),
        size,
        noise,
    })
}

/// Every way to round the weight.
fn choices(candidate: &Candidate) -> impl Iterator<Item = Step> {
    let grids = candidate.grids.as_ref();
    let only = grids.is_some_and(|grids| grids.only && !grids.steps.is_empty());
    let cuts = cuts(candidate).filter(move |_| !only);
    let on_grid = grids.into_iter().flat_map(|grids| &grids.steps);
    let on_grid = on_grid.map(|&(step, size, noise)| Step { encoding: Encoding::Grid(step), size, noise });
    let folded = candidate.folded.iter();
    let folded = folded.map(|&(how, size, noise)| Step { encoding: Encoding::Folded(how), size, noise });
    cuts.chain(on_grid).chain(folded)
}

fn pays(candidate: &Candidate, size: u64) -> bool {
    size as f64 <= candidate.bytes as f64 * (1.0 - MIN_SAVING)
}
