//! Sums of `x x'` over the activations `x` that a weight is multiplied with.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, s};

use super::reads::{Padding, Vectors, Windows};

/// Vectors of a run that are looked at for each weight of a sum, and besides: more hardly tell more.
const PER_WEIGHT: usize = 4;
const BESIDES: usize = 4096;
/// Vectors that are added together.
const CHUNK: usize = 256;

/// The sums of one group of outputs: of every other run, and of those between. Of a single run, of its first half and
/// its second. What one half says is true of the other if it is true at all.
#[derive(Debug, Clone)]
pub(super) struct Gram {
    pub halves: [Array2<f64>; 2],
}

impl Gram {
    /// Sums for `len` weights.
    pub fn new(len: usize) -> Gram {
        Gram { halves: [Array2::zeros((len, len)), Array2::zeros((len, len))] }
    }

    /// Both halves.
    pub fn whole(&self) -> Array2<f64> {
        &self.halves[0] + &self.halves[1]
    }
}

/// Adds the activations `values` of this shape to `grams`, of which there is one for each group; to half `half`, or to
/// both if there is only this run. `None` if they are not such activations.
pub(super) fn add(
    grams: &mut [Gram],
    values: &[f64],
    shape: &[usize],
    vectors: &Vectors,
    half: Option<usize>,
) -> Option<()> {
    let len = grams.first()?.halves[0].nrows();
    if shape.iter().product::<usize>() != values.len() {
        return None;
    }
    let places = Places::find(shape, vectors, len, grams.len())?;
    let taken = places.count.min(PER_WEIGHT * len + BESIDES);
    let mut chunk = Array2::zeros((CHUNK, len));
    // Half by half, so that a chunk is of one.
    let halves = match half {
        Some(half) => vec![(half, 0..taken)],
        None => vec![(0, 0..taken / 2), (1, taken / 2..taken)],
    };
    for (half, range) in halves {
        for first in range.clone().step_by(CHUNK) {
            let end = range.end.min(first + CHUNK);
            for (group, gram) in grams.iter_mut().enumerate() {
                for (row, number) in (first..end).enumerate() {
                    // Spread evenly.
                    let place = (number as u128 * places.count as u128 / taken as u128) as usize;
                    places.fill(values, place, group, chunk.row_mut(row).as_slice_mut()?);
                }
                let rows = chunk.slice(s![..end - first, ..]);
                general_mat_mul(1.0, &rows.t(), &rows, 1.0, &mut gram.halves[half]);
            }
        }
    }
    Some(())
}

/// Vectors in a tensor.
enum Places<'a> {
    Matrix {
        /// From a vector's element to the next, and from one vector to the next of the same matrix.
        steps: [usize; 2],
        /// Vectors of a matrix.
        across: usize,
    },
    Windows {
        windows: &'a Windows,
        /// Channels, all of them and of a group.
        channels: [usize; 2],
        /// Spatial dimensions of input and output, and what is added before.
        spatial: Vec<[usize; 3]>,
    },
}

struct Found<'a> {
    count: usize,
    len: usize,
    places: Places<'a>,
}

impl<'a> Places<'a> {
    fn find(shape: &[usize], vectors: &'a Vectors, len: usize, groups: usize) -> Option<Found<'a>> {
        let all: usize = shape.iter().product();
        let (count, places) = match vectors {
            Vectors::Last if shape.last() == Some(&len) => {
                (all / len, Places::Matrix { steps: [1, len], across: usize::MAX })
            }
            Vectors::LastButOne if shape == [len] => {
                (1, Places::Matrix { steps: [1, len], across: usize::MAX })
            }
            Vectors::LastButOne => {
                let &[.., own, across] = shape else { return None };
                let places = Places::Matrix { steps: [across, 1], across };
                if own != len || across == 0 {
                    return None;
                }
                (all / len, places)
            }
            Vectors::Windows(windows) => {
                let [batch, channels, sizes @ ..] = shape else { return None };
                let window: usize = windows.kernel.iter().map(|[size, ..]| size).product();
                let of_group = len / window;
                if sizes.len() != windows.kernel.len()
                    || of_group * window != len
                    || of_group * groups != *channels
                {
                    return None;
                }
                let spatial = spatial(windows, sizes)?;
                let count = batch * spatial.iter().map(|[_, out, _]| out).product::<usize>();
                (count, Places::Windows { windows, channels: [*channels, of_group], spatial })
            }
            Vectors::Last => return None,
        };
        (count > 0).then_some(Found { count, len, places })
    }
}

impl Found<'_> {
    /// Fills `out` with the vector of a group at `place`.
    fn fill(&self, values: &[f64], place: usize, group: usize, out: &mut [f64]) {
        match &self.places {
            Places::Matrix { steps: [step, next], across } => {
                let first = place / across * across.saturating_mul(self.len) + place % across * next;
                out.iter_mut().enumerate().for_each(|(i, out)| *out = values[first + i * step]);
            }
            Places::Windows { windows, channels: [channels, of_group], spatial } => {
                // Where the window starts, in each dimension.
                let mut corner = vec![0; spatial.len()];
                let mut rest = place;
                for (corner, ([_, out, before], [_, stride, _])) in
                    corner.iter_mut().zip(spatial.iter().zip(&windows.kernel)).rev()
                {
                    *corner = (rest % out * stride) as isize - *before as isize;
                    rest /= out;
                }
                let plane: usize = spatial.iter().map(|[size, ..]| size).product();
                let window = self.len / of_group;
                for (i, out) in out.iter_mut().enumerate() {
                    let channel = (rest * channels + group * of_group + i / window) * plane;
                    *out =
                        inside(windows, spatial, &corner, i % window).map_or(0.0, |at| values[channel + at]);
                }
            }
        }
    }
}

/// Where element `element` of the window at `corner` is in its plane; `None` in what was added around it.
fn inside(windows: &Windows, spatial: &[[usize; 3]], corner: &[isize], element: usize) -> Option<usize> {
    let (mut at, mut scale, mut rest) = (0, 1, element);
    for d in (0..spatial.len()).rev() {
        let [kernel, _, dilation] = windows.kernel[d];
        let place = usize::try_from(corner[d] + (rest % kernel * dilation) as isize).ok()?;
        if place >= spatial[d][0] {
            return None;
        }
        at += place * scale;
        (scale, rest) = (scale * spatial[d][0], rest / kernel);
    }
    Some(at)
}

/// For each spatial dimension its size, that of the output, and what is added before it.
fn spatial(windows: &Windows, sizes: &[usize]) -> Option<Vec<[usize; 3]>> {
    let one = |(d, (&size, &[kernel, stride, dilation])): (usize, (&usize, &[usize; 3]))| {
        let reach = (kernel - 1) * dilation + 1;
        let [before, behind] = match &windows.padding {
            Padding::Explicit(pads) => *pads.get(d)?,
            Padding::Same { lower } => {
                let all = ((size.div_ceil(stride).max(1) - 1) * stride + reach).saturating_sub(size);
                let less = all / 2;
                if *lower { [all - less, less] } else { [less, all - less] }
            }
        };
        let out = (before + size + behind).checked_sub(reach)? / stride + 1;
        Some([size, out, before])
    };
    sizes.iter().zip(&windows.kernel).enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(n: usize) -> Vec<f64> {
        (0..n).map(|i| (i as f64 * 0.7).sin()).collect()
    }

    fn of_rows(rows: &[Vec<f64>]) -> Array2<f64> {
        let len = rows[0].len();
        Array2::from_shape_fn((len, len), |(i, j)| rows.iter().map(|row| row[i] * row[j]).sum())
    }

    fn is_close(found: &Array2<f64>, wanted: &Array2<f64>) -> bool {
        found.dim() == wanted.dim() && found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-9)
    }

    #[test]
    fn rows_and_columns_of_matrices_are_summed() {
        let values = counting(2 * 3 * 5);
        let mut last = [Gram::new(5)];
        add(&mut last, &values, &[2, 3, 5], &Vectors::Last, Some(1)).unwrap();
        let rows: Vec<Vec<f64>> = values.chunks(5).map(<[f64]>::to_vec).collect();
        assert!(is_close(&last[0].halves[1], &of_rows(&rows)));
        assert!(last[0].halves[0].iter().all(|&value| value == 0.0));

        let mut across = [Gram::new(3)];
        add(&mut across, &values, &[2, 3, 5], &Vectors::LastButOne, None).unwrap();
        let column = |c: usize| (0..3).map(|k| values[c / 5 * 15 + k * 5 + c % 5]).collect::<Vec<f64>>();
        let columns: Vec<_> = (0..10).map(column).collect();
        assert!(is_close(&across[0].halves[0], &of_rows(&columns[..5])));
        assert!(is_close(&across[0].halves[1], &of_rows(&columns[5..])));
        assert!(is_close(&across[0].whole(), &of_rows(&columns)));

        let mut vector = [Gram::new(5)];
        add(&mut vector, &values[..5], &[5], &Vectors::LastButOne, Some(0)).unwrap();
        assert!(is_close(&vector[0].whole(), &of_rows(&rows[..1])));
        for (shape, vectors) in
            [(vec![6, 5], Vectors::LastButOne), (vec![30], Vectors::Last), (vec![7], Vectors::Last)]
        {
            assert!(add(&mut [Gram::new(5)], &values, &shape, &vectors, None).is_none(), "{shape:?}");
        }
    }

    /// The output of a convolution by its definition is that of weights times the windows.
    #[test]
    fn windows_are_those_of_the_convolution() {
        let (channels, height, width) = (4, 6, 7);
        let values = counting(2 * channels * height * width);
        let at = |b: usize, c: usize, y: isize, x: isize| {
            let inside = (0..height as isize).contains(&y) && (0..width as isize).contains(&x);
            let index = ((b * channels + c) * height) as isize * width as isize + y * width as isize + x;
            if inside { values[index as usize] } else { 0.0 }
        };
        for (groups, padding, [top, left], [tall, wide]) in [
            (1, Padding::Explicit(vec![[1, 0], [2, 1]]), [1, 2], [3, 8]),
            (2, Padding::Same { lower: false }, [0, 1], [3, 7]),
            (2, Padding::Same { lower: true }, [1, 1], [3, 7]),
        ] {
            let windows = Windows { groups, kernel: vec![[2, 2, 2], [3, 1, 1]], padding };
            let len = channels / groups * 6;
            let found = spatial(&windows, &[height, width]).unwrap();
            assert_eq!([found[0][1], found[1][1]], [tall, wide]);
            let mut grams = vec![Gram::new(len); groups];
            add(&mut grams, &values, &[2, channels, height, width], &Vectors::Windows(windows), Some(0))
                .unwrap();
            for (group, gram) in grams.iter().enumerate() {
                let mut rows = Vec::new();
                for (b, y, x) in
                    (0..2).flat_map(|b| (0..tall).flat_map(move |y| (0..wide).map(move |x| (b, y, x))))
                {
                    let mut row = Vec::new();
                    for c in 0..channels / groups {
                        for (i, j) in (0..2).flat_map(|i| (0..3).map(move |j| (i, j))) {
                            let (y, x) = ((2 * y + 2 * i) as isize - top, (x + j) as isize - left);
                            row.push(at(b, group * (channels / groups) + c, y, x));
                        }
                    }
                    rows.push(row);
                }
                assert!(is_close(&gram.whole(), &of_rows(&rows)), "{groups} {group}");
            }
        }
    }
}
