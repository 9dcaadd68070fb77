//! How far the outputs of runs are from what they were, as energies.
//!
//! Probabilities that add up to 1 are compared as what they were before the softmax: of a classifier that is sure of itself
//! they hardly say what happened before it.

use super::runtime::array::{Array, is_float};
use super::runtime::session::Ran;

/// Probabilities add up to 1 within this.
const UNIT: f64 = 1e-3;

/// Energies of an output of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Energies {
    /// That of the errors.
    pub noise: f64,
    /// That of what was expected, above 0.
    pub signal: f64,
}

impl Energies {
    pub fn share(self) -> f64 {
        if self.noise.is_finite() { self.noise / self.signal } else { f64::INFINITY }
    }
}

/// What is expected of runs.
pub(super) struct Expected<'a> {
    runs: &'a [Ran],
    /// Of each output the dimension along which it is probabilities, if there is one.
    softmaxes: Vec<Option<usize>>,
}

impl<'a> Expected<'a> {
    pub fn new(runs: &'a [Ran]) -> Self {
        let outputs = runs.first().map_or(0, |ran| ran.outputs.len());
        let array = |ran: &'a Ran, output: usize| ran.outputs.get(output)?.1.as_ref().ok();
        let of = |output| softmax(runs.iter().filter_map(move |ran| array(ran, output)));
        Expected { runs, softmaxes: (0..outputs).map(of).collect() }
    }

    /// Whether any output can be compared.
    pub fn has_floats(&self) -> bool {
        let arrays =
            self.runs.iter().flat_map(|ran| &ran.outputs).filter_map(|(_, output)| output.as_ref().ok());
        arrays.map(|array| array.dtype).any(is_float)
    }

    /// The energies of each output of each run of `found`; none where they cannot be compared.
    pub fn energies(&self, found: &[Ran]) -> Vec<Vec<Option<Energies>>> {
        let of_run = |(expected, found): (&Ran, &Ran)| {
            let outputs = expected.outputs.iter().zip(&found.outputs).zip(&self.softmaxes);
            outputs
                .map(|(((_, a), (_, b)), softmax)| energies(a.as_ref().ok()?, b.as_ref().ok()?, *softmax))
                .collect()
        };
        self.runs.iter().zip(found).map(of_run).collect()
    }
}

/// The shares of the errors in several outputs, as one: their mean; none without any.
pub(super) fn mean_share(outputs: impl Iterator<Item = Energies>) -> Option<f64> {
    let (sum, count) =
        outputs.fold((0.0, 0.0), |(sum, count), energies| (sum + energies.share(), count + 1.0));
    (count > 0.0).then(|| sum / count)
}

fn energies(expected: &Array, found: &Array, softmax: Option<usize>) -> Option<Energies> {
    // A shape that depends on what the model computes may change; such an output tells nothing.
    if !is_float(expected.dtype) || expected.dtype != found.dtype || expected.shape != found.shape {
        return None;
    }
    let (a, b) = (before(expected, softmax), before(found, softmax));
    let pairs = || a.iter().zip(&b).filter(|(x, _)| x.is_finite());
    let signal: f64 = pairs().map(|(x, _)| x * x).sum();
    let noise: f64 = pairs().map(|(x, y)| (x - y) * (x - y)).sum();
    (signal > 0.0).then_some(Energies { noise, signal })
}

/// The dimension along which an output is probabilities in all runs, if there is one.
fn softmax<'a>(runs: impl Iterator<Item = &'a Array> + Clone) -> Option<usize> {
    let rank = runs.clone().next()?.shape.len();
    (0..rank).rev().find(|&axis| runs.clone().all(|array| adds_up(array, axis)))
}

fn adds_up(array: &Array, axis: usize) -> bool {
    let Some(lines) = Lines::of(array, axis) else { return false };
    let values = array.numbers();
    values.iter().all(|value| (0.0..=1.0 + UNIT).contains(value))
        && (0..lines.count()).all(|line| (lines.sum(line, &values) - 1.0).abs() < UNIT)
}

/// An output's values, those of a softmax as they were before it. What it does not tell, a constant of each line, is such
/// that the line's mean is 0.
fn before(array: &Array, softmax: Option<usize>) -> Vec<f64> {
    let mut values = array.numbers();
    if let Some(lines) = softmax.and_then(|axis| Lines::of(array, axis)) {
        let least = f64::from(f32::MIN_POSITIVE);
        // A value that is not finite stays so.
        values.iter_mut().for_each(|p| *p = if *p < least { least.ln() } else { p.ln() });
        for line in 0..lines.count() {
            let mean = lines.sum(line, &values) / lines.length as f64;
            lines.places(line).for_each(|place| values[place] -= mean);
        }
    }
    values
}

/// The lines of an array along one of its dimensions.
struct Lines {
    length: usize,
    /// From an element to the next.
    step: usize,
    all: usize,
}

impl Lines {
    /// `None` if lines are of one element, or there are none.
    fn of(array: &Array, axis: usize) -> Option<Lines> {
        let size = |d: &i64| usize::try_from(*d).ok();
        let sizes: Vec<usize> = array.shape.iter().map(size).collect::<Option<_>>()?;
        let (length, all) = (*sizes.get(axis)?, sizes.iter().product());
        let step = sizes[axis + 1..].iter().product();
        (is_float(array.dtype) && length > 1 && all > 0).then_some(Lines { length, step, all })
    }

    fn count(&self) -> usize {
        self.all / self.length
    }

    fn sum(&self, line: usize, values: &[f64]) -> f64 {
        self.places(line).map(|place| values[place]).sum()
    }

    fn places(&self, line: usize) -> impl Iterator<Item = usize> + use<> {
        let (first, step) = (line / self.step * self.step * self.length + line % self.step, self.step);
        (0..self.length).map(move |i| first + i * step)
    }
}

#[cfg(test)]
mod tests {
    use ort::value::TensorElementType;

    use super::*;

    fn zeros(shape: &[i64]) -> Array {
        let count = shape.iter().product::<i64>() as usize;
        Array { dtype: TensorElementType::Float32, shape: shape.to_vec(), bytes: vec![0; 4 * count] }
    }

    #[test]
    fn lines_are_those_of_a_dimension() {
        let lines = Lines::of(&zeros(&[2, 3, 2]), 1).expect("lines");
        let found: Vec<Vec<usize>> = (0..lines.count()).map(|line| lines.places(line).collect()).collect();
        assert_eq!(found, [vec![0, 2, 4], vec![1, 3, 5], vec![6, 8, 10], vec![7, 9, 11]]);
    }
}
