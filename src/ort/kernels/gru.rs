//! ONNX `GRU` with its default activations, both weights compressed.

use super::activation::{sigmoid, tanh};
use super::recurrent::{Cells, Sequence, split};
use crate::ort::api::{KernelContext, KernelInfo, Tensor};
use crate::ort::fence::Result;
use crate::ort::ops::Kernel;
use crate::ort::weight::Weight;

/// Update, reset and hidden gate, in this order in weights and biases.
const GATES: usize = 3;
/// The inputs that hold bias, lengths of sequences and first hidden state.
const BIAS: (usize, &str) = (3, "B");
const LENGTHS: usize = 4;
const STATE: (usize, &str) = (5, "initial_h");

/// The kernel of one node.
pub(crate) struct Gru {
    cells: Cells,
    /// Whether the reset gate is applied to the hidden gate's product, and not to what it is a product of.
    resets_product: bool,
}

impl Gru {
    /// The kernel of an ONNX `GRU` with these weights as inputs 1 and 2.
    pub fn packed(info: &KernelInfo<'_>, input: Weight, recurrent: Weight) -> Result<Self> {
        let resets_product = info.int(c"linear_before_reset").unwrap_or(0) != 0;
        Ok(Gru { cells: Cells::packed(info, GATES, input, recurrent)?, resets_product })
    }

    /// Runs one direction from the state given, which it leaves as it is after its last step. `sink` gets each step's.
    fn run(
        &self,
        sequence: &Sequence<'_>,
        direction: usize,
        bias: Option<&[f32]>,
        h: &mut [f32],
        mut sink: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let cells = &self.cells;
        let (batch, hidden, width) = (sequence.batch, cells.hidden, cells.width);
        let (mut of_input, mut of_state) = (vec![0.0; width], vec![0.0; width]);
        if let Some(bias) = bias {
            let (input, state) = bias.split_at(width);
            // The sooner all are added, the fewer additions; only what is reset first must wait.
            let early = if self.resets_product { 2 * hidden } else { width };
            of_input.copy_from_slice(input);
            of_input.iter_mut().zip(&state[..early]).for_each(|(sum, b)| *sum += b);
            of_state[early..].copy_from_slice(&state[early..]);
        }
        let gates = cells.input_sums(sequence, direction, &of_input)?;
        let mut sums = vec![0f32; batch * width];
        let mut candidate = vec![0f32; batch * hidden];
        let mut reset_state = vec![0f32; batch * hidden];
        for step in cells.order(sequence, direction) {
            let gates = &gates[step * batch * width..][..batch * width];
            if self.resets_product {
                cells.state_sums(sequence, direction, 0..width, (h, (&of_state, 0)), &mut sums)?;
                let rows = sums.chunks(width).zip(gates.chunks(width)).zip(h.chunks_mut(hidden)).enumerate();
                for (_, ((sums, gates), h)) in rows.filter(|(row, _)| sequence.has(step, *row)) {
                    let [update, reset, new] = split::<GATES>(sums, hidden);
                    let [update_in, reset_in, new_in] = split::<GATES>(gates, hidden);
                    // For the compiler, which then knows that no index is out of bounds.
                    let h = &mut h[..hidden];
                    for i in 0..hidden {
                        let z = sigmoid(update[i] + update_in[i]);
                        let r = sigmoid(reset[i] + reset_in[i]);
                        let new = tanh(new_in[i] + r * new[i]);
                        h[i] = new + z * (h[i] - new);
                    }
                }
            } else {
                let both = &mut sums[..batch * 2 * hidden];
                cells.state_sums(sequence, direction, 0..2 * hidden, (h, (gates, width)), both)?;
                let reset = reset_state.chunks_mut(hidden).zip(h.chunks(hidden));
                for (sums, (reset, h)) in both.chunks(2 * hidden).zip(reset) {
                    for ((reset, h), sum) in reset.iter_mut().zip(h).zip(&sums[hidden..]) {
                        *reset = sigmoid(*sum) * h;
                    }
                }
                let addend = (&gates[2 * hidden..], width);
                cells.state_sums(
                    sequence,
                    direction,
                    2 * hidden..width,
                    (&reset_state, addend),
                    &mut candidate,
                )?;
                let rows = h.chunks_mut(hidden).zip(candidate.chunks(hidden));
                let rows = both.chunks(2 * hidden).zip(rows).enumerate();
                for (_, (sums, (h, new))) in rows.filter(|(row, _)| sequence.has(step, *row)) {
                    for ((h, new), sum) in h.iter_mut().zip(new).zip(sums) {
                        let (z, new) = (sigmoid(*sum), tanh(*new));
                        *h = new + z * (*h - new);
                    }
                }
            }
            sink(step, h);
        }
        Ok(())
    }
}

impl Kernel for Gru {
    fn compute(&self, mut context: KernelContext<'_>) -> Result<()> {
        let cells = &self.cells;
        let (hidden, directions) = (cells.hidden, cells.directions);
        let sequence = cells.sequence(&context, Some(LENGTHS))?;
        let (steps, batch) = (sequence.steps, sequence.batch);
        let bias = cells.optional(&context, BIAS, &[2 * cells.width])?;
        let bias = bias.as_ref().map(Tensor::values::<f32>).transpose()?;
        let mut state = cells.state(&context, STATE, batch)?;

        let mut y = context.output(0, &[steps as i64, directions as i64, batch as i64, hidden as i64])?;
        let size = batch * hidden;
        if size > 0 && steps > 0 {
            for (direction, h) in state.chunks_mut(size).enumerate() {
                let bias = bias.as_ref().map(|all| &all[direction * 2 * cells.width..][..2 * cells.width]);
                self.run(&sequence, direction, bias, h, |step, h| {
                    if let Some(y) = &mut y {
                        cells.put(&sequence, (step, direction), h, y);
                    }
                })?;
            }
        }
        cells.clear(&sequence, &mut state);
        if let Some(out) = context.output(1, &[directions as i64, batch as i64, hidden as i64])? {
            out.copy_from_slice(&state);
        }
        Ok(())
    }
}
