//! `nz.DecodeLSTM` and ONNX `LSTM`: ONNX `LSTM` with its default activations, both weights compressed.

use super::activation::{sigmoid, tanh};
use super::recurrent::{Cells, Sequence, split};
use crate::ort::api::{KernelContext, KernelInfo, Tensor};
use crate::ort::depth::SECOND_DEPTH_BYTES;
use crate::ort::fence::Result;
use crate::ort::ops::Kernel;
use crate::ort::weight::{Stored, Weight};

/// Input, output, forget and cell gate, in this order in weights and biases.
const GATES: usize = 4;

/// The kernel of one node.
pub(crate) struct Lstm {
    cells: Cells,
    /// The inputs that hold bias, first hidden state and first cell state.
    optional: [usize; 3],
    /// The input that may hold lengths of sequences.
    lengths: Option<usize>,
}

impl Lstm {
    /// The kernel of the node that `info` describes.
    pub fn new(info: &KernelInfo<'_>) -> Result<Self> {
        let input = Weight::new(info, 1, Some(3), Stored::Rows)?;
        let recurrent = |shape| Weight::with_shape(info, 2, shape, Stored::Rows, SECOND_DEPTH_BYTES);
        Ok(Lstm { cells: Cells::new(info, GATES, input, recurrent)?, optional: [3, 4, 5], lengths: None })
    }

    /// The kernel of an ONNX `LSTM` with these weights as inputs 1 and 2.
    pub fn packed(info: &KernelInfo<'_>, input: Weight, recurrent: Weight) -> Result<Self> {
        let cells = Cells::packed(info, GATES, input, recurrent)?;
        Ok(Lstm { cells, optional: [3, 5, 6], lengths: Some(4) })
    }
}

impl Kernel for Lstm {
    fn compute(&self, mut context: KernelContext<'_>) -> Result<()> {
        let (cells, [b, h, c]) = (&self.cells, self.optional);
        let (hidden, directions) = (cells.hidden, cells.directions);
        let sequence = cells.sequence(&context, self.lengths)?;
        let (steps, batch) = (sequence.steps, sequence.batch);
        let bias = cells.optional(&context, (b, "B"), &[2 * cells.width])?;
        let bias = bias.as_ref().map(Tensor::values::<f32>).transpose()?;
        let mut states = [
            cells.state(&context, (h, "initial_h"), batch)?,
            cells.state(&context, (c, "initial_c"), batch)?,
        ];

        let mut y = context.output(0, &[steps as i64, directions as i64, batch as i64, hidden as i64])?;
        let [h, c] = &mut states;
        let size = batch * hidden;
        if size > 0 && steps > 0 {
            for (direction, (h, c)) in h.chunks_mut(size).zip(c.chunks_mut(size)).enumerate() {
                let bias = bias.as_ref().map(|all| &all[direction * 2 * cells.width..][..2 * cells.width]);
                self.run(&sequence, direction, bias, (h, c), |step, h| {
                    if let Some(y) = &mut y {
                        cells.put(&sequence, (step, direction), h, y);
                    }
                })?;
            }
        }
        let dims = [directions as i64, batch as i64, hidden as i64];
        for (index, state) in states.iter_mut().enumerate() {
            cells.clear(&sequence, state);
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
        let cells = &self.cells;
        let (batch, hidden, width) = (sequence.batch, cells.hidden, cells.width);
        let bias: Vec<f32> = match bias {
            Some(bias) => bias[..width].iter().zip(&bias[width..]).map(|(w, r)| w + r).collect(),
            None => vec![0.0; width],
        };
        let gates = cells.input_sums(sequence, direction, &bias)?;
        let mut sums = vec![0f32; batch * width];
        for step in cells.order(sequence, direction) {
            let from_input = &gates[step * batch * width..][..batch * width];
            cells.state_sums(sequence, direction, 0..width, (h, (from_input, width)), &mut sums)?;
            let rows = sums.chunks(width).zip(h.chunks_mut(hidden)).zip(c.chunks_mut(hidden)).enumerate();
            for (_, ((sums, h), c)) in rows.filter(|(row, _)| sequence.has(step, *row)) {
                let [input, output, forget, cell] = split::<GATES>(sums, hidden);
                // For the compiler, which then knows that no index is out of bounds.
                let (h, c) = (&mut h[..hidden], &mut c[..hidden]);
                for i in 0..hidden {
                    c[i] = sigmoid(forget[i]) * c[i] + sigmoid(input[i]) * tanh(cell[i]);
                    h[i] = sigmoid(output[i]) * tanh(c[i]);
                }
            }
            sink(step, h);
        }
        Ok(())
    }
}
