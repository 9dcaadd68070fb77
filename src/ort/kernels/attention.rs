//! `com.microsoft` `Attention` over a compressed weight: one product for queries, keys and values, then the attention itself.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use gemm::Parallelism;

use super::activation::exp;
use super::product::{Product, View};
use crate::ort::api::{KernelContext, KernelInfo, Tensor, threads};
use crate::ort::fence::{Failure, Result};
use crate::ort::ops::Kernel;
use crate::ort::weight::Weight;

/// Queries a task, at most: as many rows of scores fit in a core's own cache.
const QUERIES: usize = 64;
/// Queries a task, at least, so that keys and values are not read more often than pays.
const LEAST: usize = 8;
/// What scores to the right of a query become with `unidirectional`.
const NEVER: f32 = f32::MIN;

/// The kernel of one node.
pub(crate) struct Attention {
    weight: Weight,
    heads: usize,
    /// Columns of queries and of keys.
    keys: usize,
    /// Columns of values.
    values: usize,
    scale: f32,
    /// What is added to scores of keys that the mask leaves out.
    masked: f32,
    causal: bool,
}

/// The inputs of all tasks of an execution.
struct Job<'a> {
    /// Queries, keys and values, row by row.
    rows: &'a [f32],
    batch: usize,
    steps: usize,
    mask: Mask<'a>,
    /// Added to scores, `[1 or batch, 1 or heads, steps, steps]`.
    bias: Option<(&'a [f32], [bool; 2])>,
}

/// Which keys count, as `mask_index` says.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mask<'a> {
    All,
    /// An end for each sequence, and then, if twice as many, a start.
    Ends(&'a [i32]),
    /// Each of a sequence's keys, or each of its keys for each query.
    Flags(&'a [i32], bool),
}

impl Attention {
    /// The kernel of an `Attention` with this weight as input 1.
    pub fn packed(info: &KernelInfo<'_>, weight: Weight) -> Result<Self> {
        let &[_, columns] = weight.shape() else {
            return Err(Failure::fail(format!("shape {:?} is that of no matrix", weight.shape())));
        };
        let wrong =
            |what: &str| Failure::fail(format!("{what} does not go with a weight of {columns} columns"));
        let size = |number: i64| isize::try_from(number).ok().filter(|&n| n > 0).map(|n| n as usize);
        let heads = info.int(c"num_heads").and_then(size).ok_or_else(|| wrong("attribute num_heads"))?;
        let sizes = match info.ints(c"qkv_hidden_sizes").unwrap_or_default().as_slice() {
            [] if columns % 3 == 0 => Some((columns as usize / 3, columns as usize / 3)),
            [] => None,
            &[queries, keys, values] if queries == keys => size(keys).zip(size(values)),
            _ => None,
        };
        let fits = |&(keys, values): &(usize, usize)| {
            keys % heads == 0 && values % heads == 0 && (2 * keys + values) as u64 == columns
        };
        let (keys, values) =
            sizes.filter(fits).ok_or_else(|| wrong("attribute qkv_hidden_sizes or num_heads"))?;
        let scale = info.float(c"scale").filter(|&scale| scale != 0.0);
        Ok(Attention {
            heads,
            keys,
            values,
            scale: scale.unwrap_or_else(|| 1.0 / ((keys / heads) as f32).sqrt()),
            masked: info.float(c"mask_filter_value").unwrap_or(-10_000.0),
            causal: info.int(c"unidirectional").unwrap_or(0) != 0,
            weight,
        })
    }

    /// The outputs of some queries of one sequence, for all heads: rows of `values`.
    fn attend(&self, job: &Job<'_>, sequence: usize, queries: Range<usize>, out: &mut [f32]) {
        let (steps, width) = (job.steps, 2 * self.keys + self.values);
        let (head, value) = (self.keys / self.heads, self.values / self.heads);
        let rows = &job.rows[sequence * steps * width..][..steps * width];
        let mut scores = vec![0f32; queries.len() * steps];
        for at in 0..self.heads {
            let q = Strided { data: &rows[queries.start * width + at * head..], row: width, column: 1 };
            let k = Strided { data: &rows[self.keys + at * head..], row: 1, column: width };
            multiply((&mut scores, steps), (queries.len(), head, steps), self.scale, q, k);
            for (scores, query) in scores.chunks_exact_mut(steps).zip(queries.clone()) {
                if let Some((bias, [per_sequence, per_head])) = job.bias {
                    let heads = if per_head { self.heads } else { 1 };
                    let plane =
                        if per_sequence { sequence * heads } else { 0 } + if per_head { at } else { 0 };
                    let bias = &bias[(plane * steps + query) * steps..][..steps];
                    scores.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
                }
                job.mask.add(self.masked, (sequence, job.batch), query, scores);
                if self.causal {
                    scores[query + 1..].fill(NEVER);
                }
                softmax(scores);
            }
            let s = Strided { data: &scores, row: steps, column: 1 };
            let v = Strided { data: &rows[2 * self.keys + at * value..], row: width, column: 1 };
            multiply((&mut out[at * value..], self.values), (queries.len(), steps, value), 1.0, s, v);
        }
    }
}

impl Mask<'_> {
    /// Adds `masked` to those of a query's `scores` that do not count.
    fn add(self, masked: f32, (sequence, batch): (usize, usize), query: usize, scores: &mut [f32]) {
        let steps = scores.len();
        let place = |ends: &[i32], at: usize| usize::try_from(ends[at]).unwrap_or(0).min(steps);
        match self {
            Mask::All => {}
            Mask::Ends(ends) => {
                let end = place(ends, sequence);
                scores[end..].iter_mut().for_each(|score| *score += masked);
                if ends.len() > batch {
                    // What lies outside twice is left out once.
                    let start = place(ends, batch + sequence).min(end);
                    scores[..start].iter_mut().for_each(|score| *score += masked);
                }
            }
            Mask::Flags(flags, per_query) => {
                let row = if per_query { sequence * steps + query } else { sequence };
                let flags = &flags[row * steps..][..steps];
                for (score, &flag) in scores.iter_mut().zip(flags) {
                    *score += if flag > 0 { 0.0 } else { masked };
                }
            }
        }
    }
}

impl Kernel for Attention {
    fn compute(&self, mut context: KernelContext<'_>) -> Result<()> {
        let (k, width) = (self.weight.shape()[0] as usize, 2 * self.keys + self.values);
        let x = context.required(0)?;
        let &[batch, steps, found] = x.dims() else {
            let found = x.dims();
            return Err(Failure::invalid(format!(
                "input (input 0) has shape {found:?}, not [batch, steps, {k}]"
            )));
        };
        if found != k as i64 {
            let found = x.dims();
            return Err(Failure::invalid(format!(
                "input (input 0) has shape {found:?}, not [batch, steps, {k}]"
            )));
        }
        let dims = [batch, steps, self.values as i64];
        let (batch, steps) = (batch as usize, steps as usize);
        let bias = floats(&context, (2, "bias"), |dims| dims == [width as i64], || format!("[{width}]"))?;
        let planes = |dims: &[i64]| match *dims {
            [b, n, s, t] => {
                let fits = |dim: i64, whole: usize| dim == 1 || dim == whole as i64;
                fits(b, batch) && fits(n, self.heads) && s == steps as i64 && t == s
            }
            _ => false,
        };
        let wanted = || format!("[1 or {batch}, 1 or {}, {steps}, {steps}]", self.heads);
        let scores_bias = floats(&context, (5, "attention_bias"), planes, wanted)?;
        let mask = context.input(3)?;
        let mask = match &mask {
            Some(mask) => Some((mask.values::<i32>()?, mask.dims())),
            None => None,
        };
        let mask = match &mask {
            None => Mask::All,
            Some((flags, dims)) => {
                let (b, s) = (batch as i64, steps as i64);
                match **dims {
                    [n] if n == b || n == 2 * b => Mask::Ends(flags),
                    [n, t] if n == b && t == s => Mask::Flags(flags, false),
                    [n, q, t] if n == b && q == s && t == s => Mask::Flags(flags, true),
                    _ => {
                        return Err(Failure::invalid(format!(
                            "mask_index (input 3) has shape {dims:?}: it must be [{b}], [{}], [{b}, {s}] or [{b}, {s}, {s}]",
                            2 * b
                        )));
                    }
                }
            }
        };
        let weight = self.weight.bind(&context)?;
        let values = x.floats()?;
        let workers = context.workers();
        context.fill_output(x.element(), &dims, |y| {
            let m = batch * steps;
            if m == 0 {
                return Ok(());
            }
            let of_rows = |data, row_stride| View { data, row_stride, column_stride: 1 };
            let addend = bias.as_ref().map(|(bias, _)| (1.0, of_rows(bias, 0)));
            let mut rows = vec![0f32; m * width];
            Product {
                m,
                k,
                n: width,
                x: of_rows(&values, k),
                alpha: 1.0,
                addend,
                transposed: false,
                first_row: 0,
                height: k,
            }
            .run(&weight, &workers, &mut rows)?;
            let bias = scores_bias.as_ref().map(|(bias, dims)| (&bias[..], [dims[0] != 1, dims[1] != 1]));
            let job = Job { rows: &rows, batch, steps, mask, bias };
            let share = (m.div_ceil(4 * threads())).clamp(LEAST, QUERIES).min(steps);
            let tasks: Vec<_> = y
                .chunks_mut(steps * self.values)
                .enumerate()
                .flat_map(|(sequence, y)| {
                    let parts = y.chunks_mut(share * self.values).enumerate();
                    parts.map(move |(part, y)| (sequence, part * share, Mutex::new(y)))
                })
                .collect();
            workers.run(tasks.len(), |index| {
                let (sequence, first, out) = &tasks[index];
                let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
                let queries = *first..first + out.len() / self.values;
                self.attend(&job, *sequence, queries, &mut out);
                Ok(())
            })
        })
    }
}

/// The elements of a tensor, and its shape.
type Floats<'a> = (Cow<'a, [f32]>, Vec<i64>);

/// Optional input `index`, if that is what it should be.
fn floats<'a>(
    context: &KernelContext<'a>,
    (index, name): (usize, &str),
    fits: impl Fn(&[i64]) -> bool,
    wanted: impl Fn() -> String,
) -> Result<Option<Floats<'a>>> {
    let Some(tensor) = context.input(index)? else { return Ok(None) };
    let dims = Tensor::dims(&tensor).to_vec();
    if !fits(&dims) {
        let wanted = wanted();
        return Err(Failure::invalid(format!(
            "{name} (input {index}) has shape {dims:?}: it must be {wanted}"
        )));
    }
    Ok(Some((tensor.floats()?, dims)))
}

/// Makes positive numbers of a row that add up to 1.
fn softmax(scores: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        /// The same instructions, on wider vectors.
        #[target_feature(enable = "avx2")]
        fn wide(scores: &mut [f32]) {
            softmax_inline(scores);
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has what it is compiled for.
            return unsafe { wide(scores) };
        }
    }
    softmax_inline(scores);
}

/// Numbers that are added up, or compared, side by side.
const LANES: usize = 16;

#[inline(always)]
fn softmax_inline(scores: &mut [f32]) {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = scores.as_chunks_mut::<LANES>();
    let mut most = [f32::MIN; LANES];
    for chunk in &*chunks {
        most.iter_mut().zip(chunk).for_each(|(most, &score)| *most = larger(*most, score));
    }
    let most = most.iter().chain(&*rest).copied().fold(f32::MIN, larger);
    let mut sums = [0f32; LANES];
    for chunk in chunks {
        for (sum, score) in sums.iter_mut().zip(chunk) {
            *score = exp(*score - most);
            *sum += *score;
        }
    }
    for (sum, score) in sums.iter_mut().zip(rest) {
        *score = exp(*score - most);
        *sum += *score;
    }
    let scale = 1.0 / sums.iter().sum::<f32>();
    scores.iter_mut().for_each(|score| *score *= scale);
}

/// A matrix, with the distances between its rows and its columns.
#[derive(Clone, Copy)]
struct Strided<'a> {
    data: &'a [f32],
    row: usize,
    column: usize,
}

impl Strided<'_> {
    fn assert_holds(&self, rows: usize, columns: usize) {
        assert!(rows > 0 && columns > 0);
        assert!((rows - 1) * self.row + (columns - 1) * self.column < self.data.len());
    }
}

/// Sets rows of `y`, which lie `stride` apart, to `alpha * a * b`, of `[m, k]` and `[k, n]`. No dimension is 0.
fn multiply(
    (y, stride): (&mut [f32], usize),
    (m, k, n): (usize, usize, usize),
    alpha: f32,
    a: Strided<'_>,
    b: Strided<'_>,
) {
    a.assert_holds(m, k);
    b.assert_holds(k, n);
    assert!(n <= stride && (m - 1) * stride + n <= y.len());
    // SAFETY: the asserts have all three matrices inside their slices, and no element of `y` at two places. Strides fit in
    // isize as slices do.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            stride as isize,
            false,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            0.0,
            alpha,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_leave_out_what_onnx_runtime_does() {
        let added = |mask: Mask<'_>, sequence, query| {
            let mut scores = [0f32; 4];
            mask.add(-1.0, (sequence, 2), query, &mut scores);
            scores
        };
        assert_eq!(added(Mask::All, 1, 0), [0.0; 4]);
        assert_eq!(added(Mask::Ends(&[4, 2]), 1, 0), [0.0, 0.0, -1.0, -1.0]);
        assert_eq!(added(Mask::Ends(&[9, -1]), 0, 0), [0.0; 4]);
        assert_eq!(added(Mask::Ends(&[3, 4, 1, 2]), 0, 3), [-1.0, 0.0, 0.0, -1.0]);
        assert_eq!(added(Mask::Ends(&[1, 4, 3, 2]), 0, 3), [-1.0; 4]);
        let flags = [1, 0, 1, 1, 0, 0, 0, 1];
        assert_eq!(added(Mask::Flags(&flags, false), 1, 0), [-1.0, -1.0, -1.0, 0.0]);
        assert_eq!(added(Mask::Flags(&flags, true), 0, 1), [-1.0, -1.0, -1.0, 0.0]);
    }

    #[test]
    fn rows_add_up_to_one() {
        let mut scores = [0.0, 1.0, NEVER, -10_000.0];
        softmax(&mut scores);
        let e = 1f32.exp();
        for (found, exact) in scores.iter().zip([1.0 / (1.0 + e), e / (1.0 + e), 0.0, 0.0]) {
            assert!((found - exact).abs() < 1e-6, "{found} {exact}");
        }
        for len in [1, 3, 16, 37] {
            let mut scores = vec![NEVER; len];
            softmax(&mut scores);
            assert!(scores.iter().all(|score| (score - 1.0 / len as f32).abs() < 1e-6));
            let mut scores: Vec<f32> = (0..len).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
            let exact: Vec<f64> = scores.iter().map(|&score| f64::from(score).exp()).collect();
            softmax(&mut scores);
            let sum: f64 = exact.iter().sum();
            for (found, exact) in scores.iter().zip(exact) {
                assert!((f64::from(*found) - exact / sum).abs() < 1e-6, "{len}");
            }
        }
    }
}
