//! `nz.DecodeLSTM` and ONNX `LSTM`: ONNX `LSTM` with its default activations, both weights compressed.

use super::product::{Product, View};
use crate::ort::api::{KernelContext, KernelInfo, Tensor, Workers};
use crate::ort::depth::SECOND_DEPTH_BYTES;
use crate::ort::fence::{Failure, Result};
use crate::ort::ops::Kernel;
use crate::ort::weight::{Bound, Stored, Weight};

/// Input, output, forget and cell gate, in this order in weights and biases.
const GATES: usize = 4;

/// The kernel of one node.
pub(crate) struct Lstm {
    /// `[directions, 4 * hidden, features]`.
    input: Weight,
    /// `[directions, 4 * hidden, hidden]`.
    recurrent: Weight,
    directions: usize,
    features: usize,
    hidden: usize,
    /// Whether a single direction runs from the last step to the first.
    reverse: bool,
    /// The inputs that hold bias, first hidden state and first cell state.
    optional: [usize; 3],
}

impl Lstm {
    /// The kernel of the node that `info` describes.
    pub fn new(info: &KernelInfo<'_>) -> Result<Self> {
        let input = Weight::new(info, 1, Some(3), Stored::Rows)?;
        Lstm::with(info, [3, 4, 5], input, |shape| {
            Weight::with_shape(info, 2, shape, Stored::Rows, SECOND_DEPTH_BYTES)
        })
    }

    /// The kernel of an ONNX `LSTM` with these weights as inputs 1 and 2.
    pub fn packed(info: &KernelInfo<'_>, input: Weight, recurrent: Weight) -> Result<Self> {
        // Input 4 has lengths of sequences: a node with them is not taken.
        Lstm::with(info, [3, 5, 6], input, |shape| {
            let found = recurrent.shape();
            if found == shape {
                return Ok(recurrent);
            }
            Err(Failure::fail(format!("R (input 2) has shape {found:?}, but W (input 1) makes it {shape:?}")))
        })
    }

    fn with(
        info: &KernelInfo<'_>,
        optional: [usize; 3],
        input: Weight,
        recurrent: impl FnOnce(Vec<u64>) -> Result<Weight>,
    ) -> Result<Self> {
        let &[directions, gates, features] = input.shape() else {
            return Err(Failure::fail("internal error: a weight of another rank than was asked for"));
        };
        let wrong = || Failure::fail(format!("shape {:?} is not that of an LSTM's weight", input.shape()));
        if !(1..=2).contains(&directions) || gates % GATES as u64 != 0 || gates == 0 || features == 0 {
            return Err(wrong());
        }
        let size = |dim: u64| isize::try_from(dim).map(|d| d as usize).map_err(|_| wrong());
        let hidden = gates / GATES as u64;
        let recurrent = recurrent(vec![directions, gates, hidden])?;
        let (directions, features, hidden) = (size(directions)?, size(features)?, size(hidden)?);
        let reverse = match info.text(c"direction") {
            Some(direction) => direction.eq_ignore_ascii_case("reverse"),
            None => info.int(c"reverse").unwrap_or(0) != 0,
        };
        Ok(Lstm { input, recurrent, directions, features, hidden, reverse, optional })
    }

    /// One of the optional inputs, of `[directions, rest...]`.
    fn state<'a>(
        &self,
        context: &KernelContext<'a>,
        which: usize,
        rest: &[usize],
    ) -> Result<Option<Tensor<'a>>> {
        let index = self.optional[which];
        let Some(tensor) = context.input(index)? else { return Ok(None) };
        let wanted: Vec<i64> = [self.directions].iter().chain(rest).map(|&d| d as i64).collect();
        if tensor.dims() != wanted {
            let (found, name) = (tensor.dims(), ["B", "initial_h", "initial_c"][which]);
            return Err(Failure::invalid(format!(
                "{name} (input {index}) has shape {found:?}, but the weights make it {wanted:?}"
            )));
        }
        Ok(Some(tensor))
    }
}

/// What all directions share.
struct Sequence<'a> {
    steps: usize,
    batch: usize,
    x: &'a [f32],
    input: Bound<'a>,
    recurrent: Bound<'a>,
    workers: Workers<'a>,
}

impl Kernel for Lstm {
    fn compute(&self, mut context: KernelContext<'_>) -> Result<()> {
        let (hidden, directions) = (self.hidden, self.directions);
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
        let x = x.values::<f32>()?;
        let bias = self.state(&context, 0, &[2 * GATES * hidden])?;
        let bias = bias.as_ref().map(Tensor::values::<f32>).transpose()?;
        let mut states = [Vec::new(), Vec::new()];
        for (index, state) in states.iter_mut().enumerate() {
            *state = match self.state(&context, 1 + index, &[batch, hidden])? {
                Some(given) => given.values::<f32>()?.into_owned(),
                None => vec![0.0; directions * batch * hidden],
            };
        }
        let workers = context.workers();
        let mut recurrent = self.recurrent.bind(&context)?;
        if steps > 1 {
            // Read once a step: decoding it each time would cost more than room for it.
            recurrent = recurrent.decoded(&workers)?;
        }
        let sequence =
            Sequence { steps, batch, x: &x, input: self.input.bind(&context)?, recurrent, workers };

        let mut y = context.output(0, &[steps as i64, directions as i64, batch as i64, hidden as i64])?;
        let [h, c] = &mut states;
        let size = batch * hidden;
        if size > 0 {
            for (direction, (h, c)) in h.chunks_mut(size).zip(c.chunks_mut(size)).enumerate() {
                let bias =
                    bias.as_ref().map(|all| &all[direction * 2 * GATES * hidden..][..2 * GATES * hidden]);
                self.run(&sequence, direction, bias, (h, c), |step, h| {
                    if let Some(y) = &mut y {
                        y[(step * directions + direction) * size..][..size].copy_from_slice(h);
                    }
                })?;
            }
        }
        let dims = [directions as i64, batch as i64, hidden as i64];
        for (index, state) in states.iter().enumerate() {
            if let Some(out) = context.output(1 + index, &dims)? {
                out.copy_from_slice(state);
            }
        }
        Ok(())
    }
}

impl Lstm {
    /// Runs one direction from the states given, which it leaves as they are after its last step. `sink` gets each
    /// step's hidden state.
    fn run(
        &self,
        sequence: &Sequence<'_>,
        direction: usize,
        bias: Option<&[f32]>,
        (h, c): (&mut [f32], &mut [f32]),
        mut sink: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let (steps, batch, hidden, features) = (sequence.steps, sequence.batch, self.hidden, self.features);
        let width = GATES * hidden;
        let bias: Vec<f32> = match bias {
            Some(bias) => bias[..width].iter().zip(&bias[width..]).map(|(w, r)| w + r).collect(),
            None => vec![0.0; width],
        };
        // What the inputs of all steps come to, in one product.
        let mut gates = vec![0f32; steps * batch * width];
        let (m, n) = (steps * batch, width);
        if m == 0 {
            return Ok(());
        }
        let rows = (direction * width, self.directions * width);
        product((m, features, n), rows, sequence.x, (&bias, 0)).run(
            &sequence.input,
            &sequence.workers,
            &mut gates,
        )?;
        let backward = self.reverse || direction == 1;
        let mut sums = vec![0f32; batch * width];
        for at in 0..steps {
            let step = if backward { steps - 1 - at } else { at };
            let from_input = &gates[step * batch * width..][..batch * width];
            product((batch, hidden, n), rows, h, (from_input, width)).run(
                &sequence.recurrent,
                &sequence.workers,
                &mut sums,
            )?;
            for ((sums, h), c) in sums.chunks(width).zip(h.chunks_mut(hidden)).zip(c.chunks_mut(hidden)) {
                let (input, rest) = sums.split_at(hidden);
                let (output, rest) = rest.split_at(hidden);
                let (forget, cell) = rest.split_at(hidden);
                for i in 0..hidden {
                    c[i] = sigmoid(forget[i]) * c[i] + sigmoid(input[i]) * cell[i].tanh();
                    h[i] = sigmoid(output[i]) * c[i].tanh();
                }
            }
            sink(step, h);
        }
        Ok(())
    }
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

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
