//! `Y = alpha * X * W + addend`, with `W` decoded a piece at a time.

use std::marker::PhantomData;
use std::ops::Range;

use gemm::Parallelism;

use super::plan::{self, Form, Plan, is_small};
use super::{scratch, turn};
use crate::arch::dense;
use crate::format::Layout;
use crate::ort::api::{Workers, threads};
use crate::ort::fence::{Failure, Result};
use crate::ort::weight::Bound;

/// The gemm has a short way, without packing, for products of two row-major operands up to this many rows by
/// this many columns of output (`gemm-common` 0.19: 256 elements in all).
const SHORT: usize = 16;

/// A matrix in memory, `[rows, columns]`, at any strides. A stride of 0 repeats a row or column.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub data: &'a [f32],
    pub row_stride: usize,
    pub column_stride: usize,
}

impl View<'_> {
    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0
            || columns == 0
            || (rows - 1) * self.row_stride + (columns - 1) * self.column_stride < self.data.len()
    }
}

/// A product to compute, but for its weight and its output.
pub(crate) struct Product<'a> {
    /// Rows of `X`, at least 1.
    pub m: usize,
    /// Columns of `X`.
    pub k: usize,
    /// Columns of the output.
    pub n: usize,
    pub x: View<'a>,
    pub alpha: f32,
    /// Added to the product: `beta` and an `[m, n]` matrix.
    pub addend: Option<(f32, View<'a>)>,
    /// Whether the weight is `[n, k]`, row by row.
    pub transposed: bool,
    /// The row of the blob's matrix that the weight starts at, where the blob holds several.
    pub first_row: usize,
    /// Rows of the blob's matrix.
    pub height: usize,
}

/// An `[m, n]` output or partial sum that tasks write disjoint parts of.
pub(super) struct Target<'a> {
    data: *mut f32,
    len: usize,
    row_stride: usize,
    /// 1, or the rows of an output that is stored by columns.
    column_stride: usize,
    /// Whether the product is added to what is there.
    add: bool,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for an exclusively borrowed slice; its unsafe methods leave it to their caller that no two
// threads touch the same element.
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    fn rows(data: &'a mut [f32], row_stride: usize) -> Self {
        let (len, data) = (data.len(), data.as_mut_ptr());
        Target { data, len, row_stride, column_stride: 1, add: false, lifetime: PhantomData }
    }

    /// The product is added to what is there.
    pub fn columns(data: &'a mut [f32], column_stride: usize) -> Self {
        let (len, data) = (data.len(), data.as_mut_ptr());
        Target { data, len, row_stride: 1, column_stride, add: true, lifetime: PhantomData }
    }

    /// Where `rows` and `columns` start, after a check that they lie inside.
    fn corner(&self, rows: &Range<usize>, columns: &Range<usize>) -> *mut f32 {
        assert!(rows.start < rows.end && columns.start < columns.end);
        // No element is at two places.
        let (rows_fit, columns_fit) = (rows.end <= self.column_stride, columns.end <= self.row_stride);
        assert!(if self.column_stride == 1 { columns_fit } else { self.row_stride == 1 && rows_fit });
        assert!((rows.end - 1) * self.row_stride + (columns.end - 1) * self.column_stride < self.len);
        // SAFETY: the asserts have the element in the slice.
        unsafe { self.data.add(rows.start * self.row_stride + columns.start * self.column_stride) }
    }

    /// A part of one row.
    ///
    /// # Safety
    /// No other reference to these elements is in use.
    #[allow(clippy::mut_from_ref)] // that tasks share a target is its purpose
    unsafe fn row(&self, row: usize, columns: &Range<usize>) -> &mut [f32] {
        assert_eq!(self.column_stride, 1);
        let corner = self.corner(&(row..row + 1), columns);
        // SAFETY: `corner` has the range in the slice; the caller has it to itself.
        unsafe { std::slice::from_raw_parts_mut(corner, columns.len()) }
    }

    /// A part of one column, of an output that is stored by columns.
    ///
    /// # Safety
    /// No other reference to these elements is in use.
    #[allow(clippy::mut_from_ref)] // as in `row`
    pub unsafe fn column(&self, rows: &Range<usize>, column: usize) -> &mut [f32] {
        assert_eq!(self.row_stride, 1);
        let corner = self.corner(rows, &(column..column + 1));
        // SAFETY: `corner` has the range in the slice; the caller has it to itself.
        unsafe { std::slice::from_raw_parts_mut(corner, rows.len()) }
    }

    /// Sets `rows` and `columns` to `alpha` times the product of `x`, `[rows, depth]`, and `w`, `[depth, columns]`, or
    /// adds it.
    ///
    /// # Safety
    /// No other reference to these elements is in use.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn multiply(
        &self,
        rows: &Range<usize>,
        columns: &Range<usize>,
        depth: usize,
        x: View<'_>,
        w: View<'_>,
        alpha: f32,
        add: bool,
    ) {
        let corner = self.corner(rows, columns);
        assert!(x.holds(rows.len(), depth) && w.holds(depth, columns.len()));
        // SAFETY: the asserts, here and in `corner`, have all three matrices inside their slices; the caller has
        // these elements to itself. Strides fit in isize as slices do.
        unsafe {
            gemm::gemm(
                rows.len(),
                columns.len(),
                depth,
                corner,
                self.column_stride as isize,
                self.row_stride as isize,
                add,
                x.data.as_ptr(),
                x.column_stride as isize,
                x.row_stride as isize,
                w.data.as_ptr(),
                w.column_stride as isize,
                w.row_stride as isize,
                1.0,
                alpha,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

/// A piece of the weight in scratch.
struct Piece<'a> {
    values: &'a [f32],
    /// `[width, depth]`, and not `[depth, width]`.
    transposed: bool,
    depth: Range<usize>,
    columns: Range<usize>,
}

impl Product<'_> {
    /// Computes the product into `y`, `[m, n]`.
    pub fn run(&self, weight: &Bound<'_>, workers: &Workers<'_>, y: &mut [f32]) -> Result<()> {
        if y.len() != self.m * self.n {
            return Err(wrong_shapes());
        }
        self.run_into(weight, workers, Target::rows(y, self.n)).map(|partial| {
            for sum in partial.chunks(self.m * self.n) {
                y.iter_mut().zip(sum).for_each(|(y, sum)| *y += sum);
            }
        })
    }

    /// Adds the product to `y`, whose columns lie `stride` elements apart, each in one piece. The weight must be
    /// stored row by row, and there must be no addend.
    pub fn add_to_columns(
        &self,
        weight: &Bound<'_>,
        workers: &Workers<'_>,
        y: &mut [f32],
        stride: usize,
    ) -> Result<()> {
        if !self.transposed || self.addend.is_some() || self.m > stride {
            return Err(wrong_shapes());
        }
        // There are no partial sums of a weight that is stored so.
        self.run_into(weight, workers, Target::columns(y, stride)).map(|_| ())
    }

    /// Computes the product into `target`, but for the partial sums that it returns, which are to be added in turn.
    fn run_into(&self, weight: &Bound<'_>, workers: &Workers<'_>, target: Target<'_>) -> Result<Vec<f32>> {
        let (m, k, n) = (self.m, self.k, self.n);
        if !self.x.holds(m, k) || self.addend.is_some_and(|(_, c)| !c.holds(m, n)) {
            return Err(wrong_shapes());
        }
        let form = match (self.transposed, weight.header().spec.layout) {
            (true, Layout::RowMajor) => Form::Rows,
            (false, Layout::ColumnTiles { tile }) => Form::Tiles(tile as usize),
            _ => return Err(Failure::fail("internal error: layout and transB do not go together")),
        };
        let header = weight.header();
        let group = plan::group(header.spec.dtype, weight.host());
        let weights = k.saturating_mul(n);
        let alone = is_small(if weight.is_kept() { 0 } else { weights }, weights.saturating_mul(m));
        let threads = if alone { 1 } else { threads() };
        let mut plan = Plan::new(form, (m, k, n), group, header.block_len as usize, threads);
        if target.column_stride != 1 {
            // The gemm turns such an output, and so reads the weight as it is.
            plan.strip = 0;
        }
        // The first part of `K` adds its groups to the output in turn. Those of the others are kept apart and
        // added after it in the same order, so that the sum does not depend on the number of parts.
        let groups = k.div_ceil(plan.group);
        let part_groups =
            |part: usize| part * groups / plan.depth_parts..(part + 1) * groups / plan.depth_parts;
        let first_groups = part_groups(0).end;
        let mut partial = vec![0f32; (groups - first_groups) * m * n];
        {
            let extra: Vec<Target<'_>> = partial.chunks_mut(m * n).map(|sum| Target::rows(sum, n)).collect();
            let pieces = n.div_ceil(plan.width);
            let task = |index: usize| {
                let (piece, part) = (index % pieces, index / pieces);
                let (row_part, depth_part) = (part % plan.row_parts, part / plan.row_parts);
                let columns = piece * plan.width..((piece + 1) * plan.width).min(n);
                let rows = row_part * m / plan.row_parts..(row_part + 1) * m / plan.row_parts;
                // Each task has rows and columns of the output, or groups beside it, that no other has.
                part_groups(depth_part).try_for_each(|group| {
                    let target = group.checked_sub(first_groups).map_or(&target, |at| &extra[at]);
                    let add =
                        self.start(target, group, &rows, &columns) || (1..first_groups).contains(&group);
                    let depth = group * plan.group..((group + 1) * plan.group).min(k);
                    self.group(weight, &plan, target, rows.clone(), columns.clone(), depth, add)
                })
            };
            let tasks = pieces * plan.row_parts * plan.depth_parts;
            if alone {
                (0..tasks).try_for_each(task)?;
            } else {
                workers.run(tasks, task)?;
            }
        }
        Ok(partial)
    }

    /// Before the first group: sets the output to the addend, if there is one, and says whether there is something to
    /// add to.
    fn start(&self, target: &Target<'_>, group: usize, rows: &Range<usize>, columns: &Range<usize>) -> bool {
        let Some((beta, c)) = self.addend.filter(|_| group == 0) else { return target.add };
        for row in rows.clone() {
            // SAFETY: these rows and columns of the target are this task's.
            fill(unsafe { target.row(row, columns) }, beta, c, row, columns.start);
        }
        true
    }

    /// Decodes the weight's `depth` and `columns` step by step, and sets these rows and columns of the target to
    /// the product with them, or adds it.
    #[allow(clippy::too_many_arguments)]
    fn group(
        &self,
        weight: &Bound<'_>,
        plan: &Plan,
        target: &Target<'_>,
        rows: Range<usize>,
        columns: Range<usize>,
        depth: Range<usize>,
        add: bool,
    ) -> Result<()> {
        let width = columns.len();
        let few = (self.has_few_rows() && target.column_stride == 1).then_some(rows.len());
        let mut sums = vec![0f32; width * few.unwrap_or(0)];
        let first_slot = |row: usize| match self.transposed {
            true => (self.first_row + columns.start) * self.k + row,
            false => columns.start * self.height + (self.first_row + row) * width,
        };
        let mut done = few == Some(1)
            && weight.multiply(
                first_slot(depth.start),
                self.transposed,
                self.row(rows.start, &depth),
                &mut sums,
            )?;
        if !done && few.is_some() && plan.stream > 0 && !weight.is_kept() {
            let slots = first_slot(0)..first_slot(0) + width * self.k;
            self.multiply_streamed(weight, slots, plan.stream, rows.clone(), &mut sums)?;
            done = true;
        }
        for start in depth.clone().step_by(plan.depth).filter(|_| !done) {
            let step = start..(start + plan.depth).min(depth.end);
            let add = add || step.start > depth.start;
            let mut multiply = |values: &[f32], transposed: bool| {
                let piece = Piece { values, transposed, depth: step.clone(), columns: columns.clone() };
                if few.is_some() {
                    self.multiply_few(&piece, &mut sums, rows.clone());
                } else {
                    self.multiply(&piece, target, rows.clone(), add);
                }
            };
            if plan.strip == 0
                && let Some(values) = weight.kept(first_slot(step.start), width * step.len())
            {
                multiply(values, self.transposed);
                continue;
            }
            scratch::with((width + plan.strip) * step.len(), |values| {
                let (values, strip) = values.split_at_mut(width * step.len());
                if plan.strip == 0 {
                    weight.decode(first_slot(step.start), values)?;
                } else {
                    self.decode_turned(weight, first_slot(step.start), values, strip)?;
                }
                multiply(values, self.transposed && plan.strip == 0);
                Ok(())
            })?;
        }
        for (row, sums) in rows.clone().zip(sums.chunks(width)) {
            // SAFETY: these rows and columns of the target are this task's.
            let y = unsafe { target.row(row, &columns) };
            y.iter_mut().zip(sums).for_each(|(y, sum)| *y = if add { *y + sum } else { *sum });
        }
        Ok(())
    }

    /// Adds the product of some rows of `X` and the rows of a row-major weight in `slots` to `sums`, row by row. So many
    /// weights are decoded at a time, whole blocks where rows of the weight are not.
    fn multiply_streamed(
        &self,
        weight: &Bound<'_>,
        slots: Range<usize>,
        at_a_time: usize,
        rows: Range<usize>,
        sums: &mut [f32],
    ) -> Result<()> {
        let (k, width, block) = (self.k, slots.len() / self.k, weight.header().block_len as usize);
        scratch::with(k + at_a_time, |values| {
            // Weights of a row that is not complete yet, and complete rows before it.
            let (mut held, mut column) = (0, 0);
            let mut next = slots.start;
            while next < slots.end {
                let end = ((next + at_a_time) / block * block).min(slots.end);
                weight.decode(next, &mut values[held..held + end - next])?;
                held += end - next;
                next = end;
                let complete = held / k;
                let decoded = &values[..complete * k];
                for (row, sums) in rows.clone().zip(sums.chunks_mut(width)) {
                    dense::accumulate_dots(
                        &mut sums[column..column + complete],
                        self.row(row, &(0..k)),
                        decoded,
                    );
                }
                values.copy_within(complete * k..held, 0);
                held -= complete * k;
                column += complete;
            }
            Ok(())
        })
    }

    /// Decodes whole rows of a row-major weight, from slot `first` on, and turns them into the columns that
    /// `panel` consists of.
    fn decode_turned(
        &self,
        weight: &Bound<'_>,
        first: usize,
        panel: &mut [f32],
        strip: &mut [f32],
    ) -> Result<()> {
        let (width, strip_rows) = (panel.len() / self.k, strip.len() / self.k);
        for at in (0..width).step_by(strip_rows) {
            let rows = &mut strip[..strip_rows.min(width - at) * self.k];
            weight.decode(first + at * self.k, rows)?;
            turn::into_columns(panel, width, at, rows, self.k);
        }
        Ok(())
    }

    /// Whether `X` has so few rows, one after the other, that [`dense`] is best.
    fn has_few_rows(&self) -> bool {
        plan::is_few(self.m, self.transposed) && self.alpha == 1.0 && self.x.column_stride == 1
    }

    /// These elements of a row of `X`, which lie one after the other.
    fn row(&self, row: usize, depth: &Range<usize>) -> &[f32] {
        &self.x.data[row * self.x.row_stride..][depth.clone()]
    }

    /// Adds the product of some rows of `X` and a piece to `sums`, row by row.
    fn multiply_few(&self, piece: &Piece<'_>, sums: &mut [f32], rows: Range<usize>) {
        let width = piece.columns.len();
        if piece.transposed {
            for (row, sums) in rows.zip(sums.chunks_mut(width)) {
                dense::accumulate_dots(sums, self.row(row, &piece.depth), piece.values);
            }
        } else {
            let x = &self.x.data[rows.start * self.x.row_stride + piece.depth.start..];
            dense::accumulate_rows(sums, width, x, self.x.row_stride, piece.values);
        }
    }

    fn multiply(&self, piece: &Piece<'_>, target: &Target<'_>, rows: Range<usize>, accumulate: bool) {
        if !piece.transposed || self.x.column_stride != 1 {
            return self.multiply_block(piece, target, rows, accumulate);
        }
        // Blocks of the output small enough for the gemm's short way; with few rows, more columns.
        let depth = piece.depth.len();
        let row_step = rows.len().min(SHORT);
        let column_step = SHORT * SHORT / row_step;
        for (values, first) in
            piece.values.chunks(column_step * depth).zip(piece.columns.clone().step_by(column_step))
        {
            let columns = first..first + values.len() / depth;
            let part = Piece { values, columns, depth: piece.depth.clone(), ..*piece };
            for start in rows.clone().step_by(row_step) {
                self.multiply_block(&part, target, start..(start + row_step).min(rows.end), accumulate);
            }
        }
    }

    fn multiply_block(&self, piece: &Piece<'_>, target: &Target<'_>, rows: Range<usize>, accumulate: bool) {
        let (width, depth) = (piece.columns.len(), piece.depth.len());
        let x = &self.x.data[rows.start * self.x.row_stride + piece.depth.start * self.x.column_stride..];
        let (row_stride, column_stride) = if piece.transposed { (1, depth) } else { (width, 1) };
        assert!(piece.values.len() == width * depth);
        let (x, w) = (View { data: x, ..self.x }, View { data: piece.values, row_stride, column_stride });
        // SAFETY: these rows and columns of the target are this task's.
        unsafe { target.multiply(&rows, &piece.columns, depth, x, w, self.alpha, accumulate) };
    }
}

fn wrong_shapes() -> Failure {
    Failure::fail("internal error: operands do not have the shapes they were checked for")
}

/// Sets a part of a row, from column `first` on, to `beta * c`.
fn fill(y: &mut [f32], beta: f32, c: View<'_>, row: usize, first: usize) {
    let start = row * c.row_stride + first * c.column_stride;
    if c.column_stride == 0 {
        y.fill(beta * c.data[start]);
    } else {
        let c = c.data[start..].iter().step_by(c.column_stride);
        y.iter_mut().zip(c).for_each(|(y, &c)| *y = beta * c);
    }
}
