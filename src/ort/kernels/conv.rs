//! ONNX `Conv` and `com.microsoft` `FusedConv` over a compressed filter: its inputs laid out as columns, times the filter.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::activation::Activation;
use super::buffers::{Buffers, LARGEST};
use super::patch::{AXES, Pads, Window};
use super::plan::{is_few, is_small};
use super::product::{Product, Target, View};
use super::{scratch, turn};
use crate::ort::api::{KernelContext, KernelInfo, Tensor, Workers, threads};
use crate::ort::fence::{Failure, Result};
use crate::ort::ops::Kernel;
use crate::ort::weight::{Bound, Weight};

/// Positions of a tile. The gemm takes their columns as they are: it packs nothing.
const TILE: usize = 64;
/// Steps along `K` of a tile that are laid out at a time: 512 KiB, which stay in a core's own cache.
const DEPTH: usize = (1 << 17) / TILE;
/// Weights of a filter that are decoded at a time.
const DECODED: usize = scratch::CAPACITY;
/// Output channels that a task has of a tile at least, where there are more threads than tiles.
const CHANNELS: usize = 16;
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
    buffers: Arc<Buffers>,
}

/// What is read where.
#[derive(Clone, Copy)]
struct Places {
    window: Window,
    input: [usize; AXES],
    output: [usize; AXES],
}

impl Places {
    /// Whether the inputs are the columns.
    fn are_inputs(&self) -> bool {
        self.window.is_pointwise() && self.input == self.output
    }

    /// Lays out these rows of these positions.
    fn columns(&self, x: &[f32], positions: Range<usize>, rows: Range<usize>, out: &mut [f32]) {
        self.window.patches(x, self.input, self.output, positions, rows, out);
    }
}

/// What all images and groups share.
struct Job<'a> {
    weight: &'a Bound<'a>,
    workers: &'a Workers<'a>,
    places: Places,
    /// One an output channel.
    bias: &'a [f32],
}

/// One image's outputs of one group.
struct Part<'a> {
    group: usize,
    x: &'a [f32],
    y: &'a mut [f32],
    /// Of what is added.
    sum: Option<&'a [f32]>,
}

impl Conv {
    /// The kernel of an ONNX `Conv`, or a `FusedConv`, with this weight as input 1.
    pub fn packed(info: &KernelInfo<'_>, weight: Weight, buffers: Arc<Buffers>) -> Result<Self> {
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
        let outputs = outputs / groups;
        Ok(Conv { rank, groups, inputs, outputs, window, pads, activation, buffers, weight })
    }

    /// Computes a part.
    fn part(&self, job: &Job<'_>, part: Part<'_>) -> Result<()> {
        let (k, n) = (self.inputs * job.places.window.taps(), self.outputs);
        let positions = part.y.len() / n;
        let few = is_few(positions, true);
        if !few && (n * k <= DECODED || k * positions > LARGEST) {
            return self.tiles(job, part);
        }
        let Part { group, x, y, sum } = part;
        if few {
            self.few(job, group, x, y)?;
        } else {
            self.at_once(job, group, x, y)?;
        }
        if let Some(sum) = sum {
            y.iter_mut().zip(sum).for_each(|(y, z)| *y += z);
        }
        self.activation.apply(y);
        Ok(())
    }

    /// The product of a group's filter with `x`.
    fn product<'a>(&self, job: &Job<'_>, group: usize, m: usize, x: View<'a>) -> Product<'a> {
        let (k, n) = (self.inputs * job.places.window.taps(), self.outputs);
        let (first_row, height) = (group * n, self.groups * n);
        Product { m, k, n, x, alpha: 1.0, addend: None, transposed: true, first_row, height }
    }

    /// `y` where there are few positions: they become the rows of a product.
    fn few(&self, job: &Job<'_>, group: usize, x: &[f32], y: &mut [f32]) -> Result<()> {
        let (k, n) = (self.inputs * job.places.window.taps(), self.outputs);
        let positions = y.len() / n;
        self.buffers.with((2 * k + n) * positions, |buffer| {
            let (columns, rest) = buffer.split_at_mut(k * positions);
            let (rows, turned) = rest.split_at_mut(k * positions);
            job.places.columns(x, 0..positions, 0..k, columns);
            // As many rows as there are positions, and so of the output; they are short to turn.
            turn::into_columns(rows, k, 0, columns, positions);
            let bias = View { data: &job.bias[group * n..], row_stride: 0, column_stride: 1 };
            let x = View { data: rows, row_stride: k, column_stride: 1 };
            let product = Product { addend: Some((1.0, bias)), ..self.product(job, group, positions, x) };
            product.run(job.weight, job.workers, turned)?;
            turn::into_columns(y, positions, 0, turned, n);
            Ok(())
        })
    }

    /// `y` where the filter is large: all columns are laid out, and the filter is decoded once.
    fn at_once(&self, job: &Job<'_>, group: usize, x: &[f32], y: &mut [f32]) -> Result<()> {
        let (k, n) = (self.inputs * job.places.window.taps(), self.outputs);
        let m = y.len() / n;
        y.chunks_exact_mut(m).zip(&job.bias[group * n..]).for_each(|(y, &bias)| y.fill(bias));
        if job.places.are_inputs() {
            let x = View { data: x, row_stride: 1, column_stride: m };
            return self.product(job, group, m, x).add_to_columns(job.weight, job.workers, y, m);
        }
        let places = job.places;
        self.buffers.with(k * m, |columns| {
            let share = if columns.len() < SHARED_FROM { k } else { k.div_ceil(4 * threads()) };
            let tasks: Vec<_> = columns.chunks_mut(share * m).map(Mutex::new).collect();
            job.workers.run(tasks.len(), |index| {
                let mut out = tasks[index].lock().unwrap_or_else(PoisonError::into_inner);
                let rows = index * share..index * share + out.len() / m;
                places.columns(x, 0..m, rows, &mut out);
                Ok(())
            })?;
            let x = View { data: columns, row_stride: 1, column_stride: m };
            self.product(job, group, m, x).add_to_columns(job.weight, job.workers, y, m)
        })
    }

    /// The part where there are many positions, or the filter is small: a tile of positions at a time, laid out in the
    /// memory of the thread that computes it, for as many output channels as are decoded at a time.
    fn tiles(&self, job: &Job<'_>, part: Part<'_>) -> Result<()> {
        let (k, n) = (self.inputs * job.places.window.taps(), self.outputs);
        let positions = part.y.len() / n;
        let (places, activation) = (job.places, self.activation);
        let target = Target::columns(part.y, positions);
        let step = (DECODED / k).clamp(1, n);
        for first in (0..n).step_by(step) {
            let channels = first..(first + step).min(n);
            let (slot, len) = ((part.group * n + first) * k, channels.len() * k);
            let alone = is_small(0, len * positions);
            let parts = positions.div_ceil(TILE);
            let cuts =
                if alone { 1 } else { threads().div_ceil(parts).min(channels.len().div_ceil(CHANNELS)) };
            let bias = &job.bias[part.group * n..];
            let with = |filter: &[f32]| {
                let task = |index: usize| {
                    let start = index / cuts * TILE;
                    let (tile, cut) = (start..(start + TILE).min(positions), index % cuts);
                    let cut = cut * channels.len() / cuts..(cut + 1) * channels.len() / cuts;
                    let own = first + cut.start..first + cut.end;
                    let filter = &filter[cut.start * k..cut.end * k];
                    // SAFETY: these positions of these channels are this task's.
                    unsafe { multiply_tile(places, part.x, filter, &target, &tile, &own) };
                    for channel in own {
                        // SAFETY: as above.
                        let y = unsafe { target.column(&tile, channel) };
                        let bias = bias[channel];
                        match part.sum {
                            None => y.iter_mut().for_each(|y| *y += bias),
                            Some(sum) => {
                                let sum = &sum[channel * positions + tile.start..];
                                y.iter_mut().zip(sum).for_each(|(y, z)| *y += bias + z);
                            }
                        }
                        activation.apply(y);
                    }
                    Ok(())
                };
                if alone { (0..parts * cuts).try_for_each(task) } else { job.workers.run(parts * cuts, task) }
            };
            if let Some(filter) = job.weight.kept(slot, len) {
                with(filter)?;
                continue;
            }
            self.buffers.with(len, |filter| {
                if is_small(len, 0) {
                    job.weight.decode(slot, filter)?;
                } else {
                    job.weight.decode_on_all(job.workers, slot, filter)?;
                }
                with(filter)
            })?;
        }
        Ok(())
    }
}

/// Sets the positions `tile` of `channels` to the product of the inputs with their filter.
///
/// # Safety
/// No other reference to these elements of the target is in use.
unsafe fn multiply_tile(
    places: Places,
    x: &[f32],
    filter: &[f32],
    target: &Target<'_>,
    tile: &Range<usize>,
    channels: &Range<usize>,
) {
    let k = filter.len() / channels.len();
    for start in (0..k).step_by(DEPTH) {
        let depth = start..(start + DEPTH).min(k);
        scratch::with(depth.len() * tile.len(), |columns| {
            places.columns(x, tile.clone(), depth.clone(), columns);
            let x = View { data: columns, row_stride: 1, column_stride: tile.len() };
            let w = View { data: &filter[start..], row_stride: 1, column_stride: k };
            // SAFETY: the caller has these elements to itself.
            unsafe { target.multiply(tile, channels, depth.len(), x, w, 1.0, start > 0) };
        });
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
        let places = Places { window, input, output };
        let job = Job { weight: &weight, workers: &workers, places, bias: &bias };
        context.fill_output(x.element(), &dims, |y| {
            if y.is_empty() {
                return Ok(());
            }
            let size = values.len() / (images * self.groups);
            let part = y.len() / (images * self.groups);
            y.chunks_exact_mut(part).enumerate().try_for_each(|(i, y)| {
                let (x, sum) =
                    (&values[i * size..][..size], sum.as_ref().map(|sum| &sum[i * part..][..part]));
                self.part(&job, Part { group: i % self.groups, x, y, sum })
            })
        })
    }
}
