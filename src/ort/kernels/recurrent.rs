//! What recurrent ops have in common: two weights, one for inputs and one for the hidden state, run step by step.

use std::borrow::Cow;
use std::ops::Range;

use super::product::{Product, View};
use crate::ort::api::{KernelContext, KernelInfo, Tensor, Workers};
use crate::ort::fence::{Failure, Result};
use crate::ort::weight::{Bound, Weight};

/// The weights of a node, and their sizes.
pub(super) struct Cells {
    /// `[directions, gates * hidden, features]`.
    input: Weight,
    /// `[directions, gates * hidden, hidden]`.
    recurrent: Weight,
    pub directions: usize,
    features: usize,
    pub hidden: usize,
    /// Of all gates, in elements.
    pub width: usize,
    /// Whether a single direction runs from the last step to the first.
    reverse: bool,
}

/// One execution: what all directions share.
pub(super) struct Sequence<'a> {
    pub steps: usize,
    pub batch: usize,
    x: Cow<'a, [f32]>,
    input: Bound<'a>,
    recurrent: Bound<'a>,
    workers: Workers<'a>,
    /// Steps of each sequence of the batch; nothing where all have them all.
    lengths: Option<Vec<usize>>,
}

impl Sequence<'_> {
    /// Whether sequence `row` of the batch has that step.
    pub fn has(&self, step: usize, row: usize) -> bool {
        self.lengths.as_ref().is_none_or(|lengths| step < lengths[row])
    }
}

impl Cells {
    /// Cells of so many gates with the weight `input` for inputs; `recurrent` gives the other one, of the shape that this
    /// makes it.
    pub fn new(
        info: &KernelInfo<'_>,
        gates: usize,
        input: Weight,
        recurrent: impl FnOnce(Vec<u64>) -> Result<Weight>,
    ) -> Result<Self> {
        let &[directions, width, features] = input.shape() else {
            return Err(Failure::fail("internal error: a weight of another rank than was asked for"));
        };
        let wrong = || {
            let shape = input.shape();
            Failure::fail(format!("shape {shape:?} is not that of a weight of {gates} gates for inputs"))
        };
        if !(1..=2).contains(&directions) || width % gates as u64 != 0 || width == 0 || features == 0 {
            return Err(wrong());
        }
        let size = |dim: u64| isize::try_from(dim).map(|d| d as usize).map_err(|_| wrong());
        let hidden = width / gates as u64;
        let recurrent = recurrent(vec![directions, width, hidden])?;
        let (directions, features, hidden) = (size(directions)?, size(features)?, size(hidden)?);
        let width = size(width)?;
        let reverse = match info.text(c"direction") {
            Some(direction) => direction.eq_ignore_ascii_case("reverse"),
            None => info.int(c"reverse").unwrap_or(0) != 0,
        };
        Ok(Cells { input, recurrent, directions, features, hidden, width, reverse })
    }

    /// The same with both weights, inputs 1 and 2 of an ONNX node.
    pub fn packed(info: &KernelInfo<'_>, gates: usize, input: Weight, recurrent: Weight) -> Result<Self> {
        Cells::new(info, gates, input, |shape| {
            let found = recurrent.shape();
            if found == shape {
                return Ok(recurrent);
            }
            Err(Failure::fail(format!("R (input 2) has shape {found:?}, but W (input 1) makes it {shape:?}")))
        })
    }

    /// Optional input `index`, of `[directions, rest...]`.
    pub fn optional<'a>(
        &self,
        context: &KernelContext<'a>,
        (index, name): (usize, &str),
        rest: &[usize],
    ) -> Result<Option<Tensor<'a>>> {
        let Some(tensor) = context.input(index)? else { return Ok(None) };
        let wanted: Vec<i64> = [self.directions].iter().chain(rest).map(|&d| d as i64).collect();
        if tensor.dims() != wanted {
            let found = tensor.dims();
            return Err(Failure::invalid(format!(
                "{name} (input {index}) has shape {found:?}, but the weights make it {wanted:?}"
            )));
        }
        Ok(Some(tensor))
    }

    /// A first state: that of input `index`, or zeros.
    pub fn state(&self, context: &KernelContext<'_>, input: (usize, &str), batch: usize) -> Result<Vec<f32>> {
        Ok(match self.optional(context, input, &[batch, self.hidden])? {
            Some(given) => given.values::<f32>()?.into_owned(),
            None => vec![0.0; self.directions * batch * self.hidden],
        })
    }

    /// The inputs, and the weights ready to be read. `lengths` is the input that says how long sequences are, if there may
    /// be one.
    pub fn sequence<'a>(
        &'a self,
        context: &KernelContext<'a>,
        lengths: Option<usize>,
    ) -> Result<Sequence<'a>> {
        let x = context.required(0)?;
        let (steps, batch) = match *x.dims() {
            [steps, batch, features] if features == self.features as i64 => (steps as usize, batch as usize),
            _ => {
                return Err(Failure::invalid(format!(
                    "X (input 0) has shape {:?}, but the weight makes it [steps, batch, {}]",
                    x.dims(),
                    self.features
                )));
            }
        };
        let workers = context.workers();
        let mut recurrent = self.recurrent.bind(context)?;
        if steps > 1 {
            // Read once a step: decoding it each time would cost more than room for it.
            recurrent = recurrent.decoded(&workers)?;
        }
        let input = self.input.bind(context)?;
        let lengths = lengths.map(|index| lengths_of(context, index, steps, batch)).transpose()?.flatten();
        Ok(Sequence { steps, batch, x: x.values::<f32>()?, input, recurrent, workers, lengths })
    }

    /// Sets last `states` of sequences that have no step to zeros, as ONNX Runtime does.
    pub fn clear(&self, sequence: &Sequence<'_>, states: &mut [f32]) {
        for (row, state) in states.chunks_mut(self.hidden).enumerate() {
            if !sequence.has(0, row % sequence.batch) {
                state.fill(0.0);
            }
        }
    }

    /// Sets a step of the output `y` of all to the states `h` of one direction, and to zeros where a sequence is over.
    pub fn put(&self, sequence: &Sequence<'_>, (step, direction): (usize, usize), h: &[f32], y: &mut [f32]) {
        let y = &mut y[(step * self.directions + direction) * h.len()..][..h.len()];
        y.copy_from_slice(h);
        let rows = y.chunks_mut(self.hidden).enumerate();
        rows.filter(|(row, _)| !sequence.has(step, *row)).for_each(|(_, y)| y.fill(0.0));
    }

    /// The steps in the order in which a direction takes them.
    pub fn order(&self, sequence: &Sequence<'_>, direction: usize) -> impl Iterator<Item = usize> {
        let (backward, steps) = (self.reverse || direction == 1, sequence.steps);
        (0..steps).map(move |at| if backward { steps - 1 - at } else { at })
    }

    /// What the inputs of all steps and `bias` come to, in one product: rows of [`Cells::width`]. There must be a row.
    pub fn input_sums(&self, sequence: &Sequence<'_>, direction: usize, bias: &[f32]) -> Result<Vec<f32>> {
        let (m, n) = (sequence.steps * sequence.batch, self.width);
        let mut sums = vec![0f32; m * n];
        let rows = (direction * n, self.directions * n);
        product((m, self.features, n), rows, &sequence.x, (bias, 0)).run(
            &sequence.input,
            &sequence.workers,
            &mut sums,
        )?;
        Ok(sums)
    }

    /// What `state`, a row a sequence of the batch, and `addend` come to for these of the gates' elements.
    pub fn state_sums(
        &self,
        sequence: &Sequence<'_>,
        direction: usize,
        elements: Range<usize>,
        (state, addend): (&[f32], (&[f32], usize)),
        sums: &mut [f32],
    ) -> Result<()> {
        let rows = (direction * self.width + elements.start, self.directions * self.width);
        product((sequence.batch, self.hidden, elements.len()), rows, state, addend).run(
            &sequence.recurrent,
            &sequence.workers,
            sums,
        )
    }
}

/// The steps of each sequence of a batch, as input `index` says, if it is there.
fn lengths_of(
    context: &KernelContext<'_>,
    index: usize,
    steps: usize,
    batch: usize,
) -> Result<Option<Vec<usize>>> {
    let Some(tensor) = context.input(index)? else { return Ok(None) };
    let lengths: Option<Vec<usize>> =
        tensor.values::<i32>()?.iter().map(|&n| usize::try_from(n).ok().filter(|&n| n <= steps)).collect();
    let fits = tensor.dims() == [batch as i64];
    lengths.filter(|_| fits).map(Some).ok_or_else(|| {
        let found = tensor.dims();
        Failure::invalid(format!(
            "sequence_lens (input {index}) has shape {found:?}: it must be [{batch}], of numbers from 0 to {steps}"
        ))
    })
}

/// The gates of a row.
pub(super) fn split<const GATES: usize>(row: &[f32], hidden: usize) -> [&[f32]; GATES] {
    std::array::from_fn(|gate| &row[gate * hidden..][..hidden])
}

/// `[m, k] x [k, n]` plus what lies in rows so far apart; the weight is `[n, k]`, from row `first_row` of `height` on.
fn product<'a>(
    (m, k, n): (usize, usize, usize),
    (first_row, height): (usize, usize),
    x: &'a [f32],
    (addend, stride): (&'a [f32], usize),
) -> Product<'a> {
    let of_rows = |data, row_stride| View { data, row_stride, column_stride: 1 };
    let addend = Some((1.0, of_rows(addend, stride)));
    Product { m, k, n, x: of_rows(x, k), alpha: 1.0, addend, transposed: true, first_row, height }
}
