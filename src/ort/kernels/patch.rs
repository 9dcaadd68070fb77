//! The window of a convolution, and the inputs that it sees at each position.

use std::ops::Range;

/// Spatial axes; those that a model does not have come first, with size 1.
pub(super) const AXES: usize = 3;

/// What a filter reads at a position.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub kernel: [usize; AXES],
    pub strides: [usize; AXES],
    pub dilations: [usize; AXES],
    /// Zeros before the input's first element.
    pub before: [usize; AXES],
}

/// Zeros around an input.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pads {
    /// So many before and after.
    Given([(usize, usize); AXES]),
    /// As many as make the output as large as the input over the stride.
    Same {
        /// Whether the odd one comes after.
        upper: bool,
    },
}

/// Positions that one line of the input answers for, or the zeros around it.
#[derive(Debug)]
struct Piece {
    to: Range<usize>,
    /// Where the first value is in its channel.
    from: Option<usize>,
}

impl Window {
    /// Up to [`AXES`] values as those of the last axes, behind `fill`.
    pub fn last_axes<T: Copy>(values: impl ExactSizeIterator<Item = T>, fill: T) -> [T; AXES] {
        let (mut all, skip) = ([fill; AXES], AXES.saturating_sub(values.len()));
        all[skip..].iter_mut().zip(values).for_each(|(to, value)| *to = value);
        all
    }

    /// Inputs of one channel that it reads.
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Whether it reads one input a position, and every one.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1; AXES] && self.strides == [1; AXES]
    }

    /// The window with its pads over an input of this size, and the size of the output; nothing where it does not fit.
    pub fn over(&self, input: [usize; AXES], pads: &Pads) -> Option<(Window, [usize; AXES])> {
        let (mut window, mut output) = (*self, [0; AXES]);
        for axis in 0..AXES {
            let (size, stride) = (input[axis], self.strides[axis]);
            let reach =
                (self.kernel[axis].checked_sub(1)?).checked_mul(self.dilations[axis])?.checked_add(1)?;
            let (before, after) = match *pads {
                Pads::Given(pads) => pads[axis],
                Pads::Same { upper } => {
                    let last = size.div_ceil(stride).saturating_sub(1) * stride;
                    let all = (last + reach).saturating_sub(size);
                    if upper { (all / 2, all - all / 2) } else { (all - all / 2, all / 2) }
                }
            };
            output[axis] = size.checked_add(before)?.checked_add(after)?.checked_sub(reach)? / stride + 1;
            window.before[axis] = before;
        }
        Some((window, output))
    }

    /// The same without axes that do nothing, so that lines are long: those of size 1 come first. Gives window, input and
    /// output.
    pub fn packed(
        &self,
        input: [usize; AXES],
        output: [usize; AXES],
    ) -> (Window, [usize; AXES], [usize; AXES]) {
        let mut order = [0, 1, 2];
        // Stable: the others keep their order.
        order.sort_by_key(|&axis| (input[axis], output[axis], self.kernel[axis]) != (1, 1, 1));
        let sort = |values: [usize; AXES]| order.map(|axis| values[axis]);
        let window = Window {
            kernel: sort(self.kernel),
            strides: sort(self.strides),
            dilations: sort(self.dilations),
            before: sort(self.before),
        };
        (window, sort(input), sort(output))
    }

    /// Writes what the window reads: for each of `rows`, which are channels times taps, its value at each of
    /// `positions`, zero outside the input `x`.
    ///
    /// # Panics
    /// `out` does not have as many elements, or `x` lacks a channel.
    pub fn patches(
        &self,
        x: &[f32],
        input: [usize; AXES],
        output: [usize; AXES],
        positions: Range<usize>,
        rows: Range<usize>,
        out: &mut [f32],
    ) {
        assert_eq!(out.len(), rows.len() * positions.len());
        if out.is_empty() {
            return;
        }
        let (taps, channel, len) = (self.taps(), input.iter().product::<usize>(), positions.len());
        let [_, height, width] = self.kernel;
        let mut pieces = Vec::new();
        for tap in 0..taps.min(rows.end) {
            // What a tap reads lies at the same places in all channels.
            self.pieces(
                [tap / (height * width), tap / width % height, tap % width],
                input,
                output,
                &positions,
                &mut pieces,
            );
            for row in (tap..rows.end).step_by(taps).skip(rows.start.saturating_sub(tap).div_ceil(taps)) {
                let x = &x[row / taps * channel..][..channel];
                let out = &mut out[(row - rows.start) * len..][..len];
                for Piece { to, from } in &pieces {
                    let to = &mut out[to.clone()];
                    match *from {
                        None => to.iter_mut().for_each(|to| *to = 0.0),
                        Some(from) if self.strides[2] == 1 => copy(&x[from..from + to.len()], to),
                        Some(from) => {
                            let from = x[from..].iter().step_by(self.strides[2]);
                            to.iter_mut().zip(from).for_each(|(to, &value)| *to = value);
                        }
                    }
                }
            }
        }
    }

    /// What a tap reads of a channel at `positions`, in order.
    fn pieces(
        &self,
        tap: [usize; AXES],
        input: [usize; AXES],
        output: [usize; AXES],
        positions: &Range<usize>,
        pieces: &mut Vec<Piece>,
    ) {
        pieces.clear();
        let place = |axis: usize, position: usize| {
            let padded = position * self.strides[axis] + tap[axis] * self.dilations[axis];
            padded.checked_sub(self.before[axis]).filter(|&place| place < input[axis])
        };
        let inside = self.inside(input[2], output[2], tap[2]);
        let mut push = |start: usize, len: usize, from: Option<usize>| {
            if len > 0 {
                pieces.push(Piece { to: start..start + len, from });
            }
        };
        let (mut line, mut column) = (positions.start / output[2], positions.start % output[2]);
        let mut at = 0;
        // A line of the output at a time.
        while at < positions.len() {
            let len = (positions.len() - at).min(output[2] - column);
            match (place(0, line / output[1]), place(1, line % output[1])) {
                (Some(depth), Some(height)) => {
                    let end = inside.end.saturating_sub(column).min(len);
                    let first = inside.start.saturating_sub(column).min(end);
                    push(at, first, None);
                    if first < end {
                        let start = (column + first) * self.strides[2] + tap[2] * self.dilations[2];
                        let start = (depth * input[1] + height) * input[2] + start - self.before[2];
                        push(at + first, end - first, Some(start));
                    }
                    push(at + end, len - end, None);
                }
                _ => push(at, len, None),
            }
            (at, line, column) = (at + len, line + 1, 0);
        }
    }

    /// At which columns of the output a tap reads inside a line.
    fn inside(&self, input: usize, output: usize, tap: usize) -> Range<usize> {
        let ([.., stride], shift, before) = (self.strides, tap * self.dilations[2], self.before[2]);
        let end = (input + before).saturating_sub(shift).div_ceil(stride).min(output);
        before.saturating_sub(shift).div_ceil(stride).min(end)..end
    }
}

/// Copies a part of a line. Most are short: without a call, in steps of a length that is known, of which the last may
/// overlap the one before.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    #[inline(always)]
    fn step<const N: usize>(from: &[f32], to: &mut [f32], at: usize) {
        if let (Some(from), Some(to)) = (from[at..].first_chunk::<N>(), to[at..].first_chunk_mut::<N>()) {
            *to = *from;
        }
    }
    // Written out: compilers turn a loop into the call.
    #[inline(always)]
    fn steps<const N: usize>(from: &[f32], to: &mut [f32]) {
        let len = to.len();
        step::<N>(from, to, 0);
        if len > 2 * N {
            step::<N>(from, to, N);
        }
        if len > 3 * N {
            step::<N>(from, to, 2 * N);
        }
        step::<N>(from, to, len - N);
    }
    match to.len() {
        16..=64 => steps::<16>(from, to),
        4..16 => steps::<4>(from, to),
        _ => to.copy_from_slice(from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the definition says, one element at a time.
    fn slow(
        w: &Window,
        x: &[f32],
        input: [usize; 3],
        output: [usize; 3],
        row: usize,
        position: usize,
    ) -> f32 {
        let (channel, tap) = (row / w.taps(), row % w.taps());
        let tap = [tap / (w.kernel[1] * w.kernel[2]), tap / w.kernel[2] % w.kernel[1], tap % w.kernel[2]];
        let at = [position / (output[1] * output[2]), position / output[2] % output[1], position % output[2]];
        let mut index = channel as i64;
        for axis in 0..3 {
            let place =
                (at[axis] * w.strides[axis] + tap[axis] * w.dilations[axis]) as i64 - w.before[axis] as i64;
            if place < 0 || place >= input[axis] as i64 {
                return 0.0;
            }
            index = index * input[axis] as i64 + place;
        }
        x[index as usize]
    }

    #[test]
    fn copies_are_whole() {
        let from: Vec<f32> = (1..=70).map(|i| i as f32).collect();
        for len in 0..=from.len() {
            let mut to = vec![0.0; len];
            copy(&from[..len], &mut to);
            assert_eq!(to, from[..len]);
        }
    }

    #[test]
    fn patches_are_those_of_the_definition() {
        let given = |pads: [(usize, usize); 3]| Pads::Given(pads);
        let cases = [
            ([1, 1, 7], [1, 1, 3], [1, 1, 2], [1, 1, 1], given([(0, 0), (0, 0), (2, 1)])),
            ([1, 5, 6], [1, 3, 3], [1, 1, 1], [1, 1, 1], given([(0, 0), (1, 1), (1, 1)])),
            ([1, 5, 6], [1, 3, 2], [1, 2, 3], [1, 2, 1], given([(0, 0), (4, 0), (0, 3)])),
            ([1, 4, 4], [1, 3, 3], [1, 1, 1], [1, 1, 1], given([(0, 0), (5, 5), (5, 5)])),
            ([3, 4, 5], [2, 3, 3], [1, 2, 1], [1, 1, 2], given([(1, 0), (0, 2), (1, 3)])),
            ([1, 5, 8], [1, 2, 4], [1, 2, 3], [1, 1, 1], Pads::Same { upper: true }),
            ([1, 5, 8], [1, 2, 4], [1, 2, 3], [1, 1, 1], Pads::Same { upper: false }),
            ([1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1], given([(0, 0); 3])),
            ([1, 9, 1], [1, 4, 1], [1, 2, 1], [1, 1, 1], given([(0, 0), (1, 2), (0, 0)])),
            ([1, 9, 1], [1, 4, 1], [1, 2, 1], [1, 1, 1], given([(0, 0), (1, 2), (1, 0)])),
        ];
        for (input, kernel, strides, dilations, pads) in cases {
            let window = Window { kernel, strides, dilations, before: [0; AXES] };
            let (window, output) = window.over(input, &pads).expect("it fits");
            if let Pads::Same { .. } = pads {
                assert_eq!(output, [0, 1, 2].map(|axis: usize| input[axis].div_ceil(strides[axis])));
            }
            let (window, input, output) = window.packed(input, output);
            let channels = 2;
            let x: Vec<f32> = (1..=channels * input.iter().product::<usize>()).map(|i| i as f32).collect();
            let (all, k) = (output.iter().product::<usize>(), channels * window.taps());
            for positions in [0..all, 0..1, all / 2..all, all - 1..all] {
                for rows in [0..k, k / 2..k] {
                    let mut out = vec![-1.0; rows.len() * positions.len()];
                    window.patches(&x, input, output, positions.clone(), rows.clone(), &mut out);
                    let expected = rows.clone().flat_map(|row| positions.clone().map(move |p| (row, p)));
                    let expected: Vec<f32> =
                        expected.map(|(row, p)| slow(&window, &x, input, output, row, p)).collect();
                    assert_eq!(out, expected, "{window:?} {positions:?} {rows:?}");
                }
            }
        }
        let window = Window { kernel: [1, 1, 3], strides: [1; 3], dilations: [1; 3], before: [0; 3] };
        assert!(window.over([1, 1, 2], &Pads::Given([(0, 0); 3])).is_none());
    }
}
