//! ONNX `Conv` and `com.microsoft` `FusedConv` over a compressed filter: its inputs laid out as columns, piece by piece, times the filter.

use std::sync::{Mutex, PoisonError};

use super::activation::Activation;
use super::patch::{AXES, Pads, Window};
use super::plan::is_few;
use super::product::{Product, View};
use super::turn;
use crate::ort::api::{KernelContext, KernelInfo, Tensor, Workers, threads};
use crate::ort::fence::{Failure, Result};
use crate::ort::ops::Kernel;
use crate::ort::weight::{Bound, Weight};

/// Floats of the inputs that are laid out as columns at a time: 1 MiB.
const COLUMNS: usize = 1 << 18;
/// Positions that are laid out at a time at least: the filter is decoded once for them.
const POSITIONS: usize = 256;
/// Floats from which on laying them out is work for several threads.
const SHARED_FROM: usize = 1 << 15;

/// The kernel of one node.
pub(crate) struct Conv {
    weight: Weight,
    /// Spatial axes: 1 to 3.
    rank: usize,
    groups: usize,
    /// Of one group.
    inputs: usize,
    /// Of one group.
    outputs: usize,
    window: Window,
    pads: Pads,
    activation: Activation,
}

/// What all images and groups share.
struct Job<'a> {
    weight: &'a Bound<'a>,
    workers: &'a Workers<'a>,
    window: Window,
    input: [usize; AXES],
    output: [usize; AXES],
    /// One an output channel.
    bias: &'a [f32],
}

impl Conv {
    /// The kernel of an ONNX `Conv`, or a `FusedConv`, with this weight as input 1.
    pub fn packed(info: &KernelInfo<'_>, weight: Weight) -> Result<Self> {
        let wrong = |what: &str| {
            Failure::fail(format!("{what} does not go with a filter of shape {:?}", weight.shape()))
        };
        let sizes: Option<Vec<usize>> =
            weight.shape().iter().map(|&d| isize::try_from(d).ok().map(|d| d as usize)).collect();
        let sizes = sizes.ok_or_else(|| wrong("a size that is no number of bytes"))?;
        let &[outputs, inputs, ref kernel @ ..] = sizes.as_slice() else { return Err(wrong("a Conv")) };
        let rank = kernel.len();
        if !(1..=AXES).contains(&rank) {
            return Err(wrong("a Conv of 1 to 3 spatial axes"));
        }
        let groups = usize::try_from(info.int(c"group").unwrap_or(1)).unwrap_or(0);
        if groups == 0 || outputs % groups != 0 {
            return Err(wrong("attribute group"));
        }
        let given = |name| info.ints(name).ok().filter(|values: &Vec<i64>| !values.is_empty());
        if given(c"kernel_shape")
            .is_some_and(|given| !given.iter().map(|&d| d as usize).eq(kernel.iter().copied()))
        {
            return Err(wrong("attribute kernel_shape"));
        }
        let per_axis = |name, what: &str| match given(name) {
            None => Ok([1; AXES]),
            Some(values) if values.len() == rank && values.iter().all(|&v| v > 0) => {
                Ok(Window::last_axes(values.iter().map(|&v| v as usize), 1))
            }
            Some(_) => Err(wrong(what)),
        };
        let window = Window {
            kernel: Window::last_axes(kernel.iter().copied(), 1),
            strides: per_axis(c"strides", "attribute strides")?,
            dilations: per_axis(c"dilations", "attribute dilations")?,
            before: [0; AXES],
        };
        let pads = match info.text(c"auto_pad").as_deref() {
            Some("SAME_UPPER") => Pads::Same { upper: true },
            Some("SAME_LOWER") => Pads::Same { upper: false },
            Some("VALID") => Pads::Given([(0, 0); AXES]),
            _ => match given(c"pads") {
                None => Pads::Given([(0, 0); AXES]),
                Some(pads) if pads.len() == 2 * rank && pads.iter().all(|&p| p >= 0) => {
                    let (before, after) = pads.split_at(rank);
                    let pairs = before.iter().zip(after).map(|(&b, &a)| (b as usize, a as usize));
                    Pads::Given(Window::last_axes(pairs, (0, 0)))
                }
                Some(_) => return Err(wrong("attribute pads")),
            },
        };
        let activation = Activation::of(info)?;
        Ok(Conv { rank, groups, inputs, outputs: outputs / groups, window, pads, activation, weight })
    }

    /// `y`, one image's outputs of one group, from its inputs `x`.
    fn group(&self, job: &Job<'_>, group: usize, x: &[f32], y: &mut [f32]) -> Result<()> {
        let (k, n) = (self.inputs * job.window.taps(), self.outputs);
        let positions = y.len() / n;
        let (first_row, height) = (group * n, self.groups * n);
        let bias = &job.bias[group * n..][..n];
        // One for each lifetime of `x`.
        macro_rules! product {
            ($m:expr, $x:expr, $addend:expr) => {
                Product {
                    m: $m,
                    k,
                    n,
                    x: $x,
                    alpha: 1.0,
                    addend: $addend,
                    transposed: true,
                    first_row,
                    height,
                }
            };
        }
        if is_few(positions, true) {
            // As many rows as there are positions, and so of the output; they are short to turn.
            let mut columns = vec![0f32; k * positions];
            job.window.patches(x, job.input, job.output, 0..positions, 0..k, &mut columns);
            let mut rows = vec![0f32; k * positions];
            turn::into_columns(&mut rows, k, 0, &columns, positions);
            let x = View { data: &rows, row_stride: k, column_stride: 1 };
            let addend = Some((1.0, View { data: bias, row_stride: 0, column_stride: 1 }));
            let mut turned = vec![0f32; positions * n];
            product!(positions, x, addend).run(job.weight, job.workers, &mut turned)?;
            turn::into_columns(y, positions, 0, &turned, n);
            return Ok(());
        }
        y.chunks_exact_mut(positions).zip(bias).for_each(|(y, &bias)| y.fill(bias));
        if job.window.is_pointwise() && job.input == job.output {
            let x = View { data: x, row_stride: 1, column_stride: positions };
            return product!(positions, x, None).add_to_columns(job.weight, job.workers, y, positions);
        }
        let (window, input, output) = (job.window, job.input, job.output);
        let step = (COLUMNS / k).max(POSITIONS).min(positions);
        let mut columns = vec![0f32; k * step];
        for start in (0..positions).step_by(step) {
            let m = step.min(positions - start);
            let columns = &mut columns[..k * m];
            let share = if columns.len() < SHARED_FROM { k } else { k.div_ceil(4 * threads()) };
            let tasks: Vec<_> = columns.chunks_mut(share * m).map(Mutex::new).collect();
            job.workers.run(tasks.len(), |index| {
                let mut out = tasks[index].lock().unwrap_or_else(PoisonError::into_inner);
                let rows = index * share..index * share + out.len() / m;
                window.patches(x, input, output, start..start + m, rows, &mut out);
                Ok(())
            })?;
            let x = View { data: columns, row_stride: 1, column_stride: m };
            product!(m, x, None).add_to_columns(job.weight, job.workers, &mut y[start..], positions)?;
        }
        Ok(())
    }
}

impl Kernel for Conv {
    fn compute(&self, mut context: KernelContext<'_>) -> Result<()> {
        let x = context.required(0)?;
        let channels = self.groups * self.inputs;
        let (images, spatial) = match *x.dims() {
            [images, found, ref spatial @ ..] if found == channels as i64 && spatial.len() == self.rank => {
                (images as usize, spatial)
            }
            _ => {
                let axes = self.rank;
                return Err(Failure::invalid(format!(
                    "X (input 0) has shape {:?}, but the filter makes it [N, {channels}] and {axes} spatial axes",
                    x.dims()
                )));
            }
        };
        let input = Window::last_axes(spatial.iter().map(|&d| d as usize), 1);
        let (window, output) = self.window.over(input, &self.pads).ok_or_else(|| {
            let (kernel, found) = (&self.weight.shape()[2..], x.dims());
            Failure::invalid(format!(
                "X (input 0) has shape {found:?}: a filter of {kernel:?} does not fit in it"
            ))
        })?;
        let all = self.groups * self.outputs;
        let bias = context.input(2)?;
        let bias = match &bias {
            None => vec![0.0; all],
            Some(bias) if bias.dims() == [all as i64] => bias.floats()?.into_owned(),
            Some(bias) => {
                let found = bias.dims();
                return Err(Failure::invalid(format!(
                    "B (input 2) has shape {found:?}, but the filter makes it [{all}]"
                )));
            }
        };
        let axes = AXES - self.rank..;
        let dims: Vec<i64> = [images, all].iter().chain(&output[axes]).map(|&d| d as i64).collect();
        // Of a `FusedConv`: added before its activation.
        let sum = context.input(3)?;
        let sum = match &sum {
            Some(sum) if sum.dims() != dims => {
                let found = sum.dims();
                return Err(Failure::invalid(format!(
                    "Z (input 3) has shape {found:?}, but the output has {dims:?}"
                )));
            }
            sum => sum.as_ref().map(Tensor::floats).transpose()?,
        };
        let weight = self.weight.bind(&context)?;
        let values = x.floats()?;
        let workers = context.workers();
        let (window, input, output) = window.packed(input, output);
        let job = Job { weight: &weight, workers: &workers, window, input, output, bias: &bias };
        context.fill_output(x.element(), &dims, |y| {
            if y.is_empty() {
                return Ok(());
            }
            let size = values.len() / (images * self.groups);
            let part = y.len() / (images * self.groups);
            y.chunks_exact_mut(part).enumerate().try_for_each(|(i, y)| {
                self.group(&job, i % self.groups, &values[i * size..][..size], y)?;
                if let Some(sum) = &sum {
                    y.iter_mut().zip(&sum[i * part..]).for_each(|(y, z)| *y += z);
                }
                self.activation.apply(y);
                Ok(())
            })
        })
    }
}
