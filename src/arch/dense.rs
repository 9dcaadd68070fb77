//! Rows of activations times decoded weights that lie in the cache, in either order of storage.
//!
//! The best that the processor has is taken, whatever backend decodes: results do not depend on `NZ_SIMD`.

/// `y += x * w`, row by row: `w` is `[depth, width]`, `y` has rows of `width` and `x` rows of `depth` elements, `stride`
/// apart. Each element of `y` is summed up along `depth` in turn.
pub fn accumulate_rows(y: &mut [f32], width: usize, x: &[f32], stride: usize, w: &[f32]) {
    let (rows, depth) = (y.len() / width, w.len() / width);
    assert!(rows * width == y.len() && depth * width == w.len());
    assert!(rows == 0 || (rows - 1) * stride + depth <= x.len());
    dispatch::accumulate_rows(y, width, x, stride, w);
}

/// `y += w * x`, where `w` is `[y.len(), x.len()]`, row by row.
pub fn accumulate_dots(y: &mut [f32], x: &[f32], w: &[f32]) {
    assert_eq!(w.len(), x.len() * y.len());
    dispatch::accumulate_dots(y, x, w);
}

/// `a * b + c`, in one rounding where the instruction set has it.
#[inline(always)]
fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn rows_inline<const FMA: bool>(y: &mut [f32], width: usize, x: &[f32], stride: usize, w: &[f32]) {
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks(stride.max(1))) {
        for (w, &x) in w.chunks_exact(width).zip(x) {
            y.iter_mut().zip(w).for_each(|(y, &w)| *y = mul_add::<FMA>(x, w, *y));
        }
    }
}

#[inline(always)]
fn dots_inline<const FMA: bool, const W: usize>(y: &mut [f32], x: &[f32], w: &[f32]) {
    for (y, row) in y.iter_mut().zip(w.chunks_exact(x.len().max(1))) {
        let mut sums = [0f32; W];
        let (x_chunks, x_rest) = x.as_chunks::<W>();
        let (w_chunks, w_rest) = row.as_chunks::<W>();
        for (x, w) in x_chunks.iter().zip(w_chunks) {
            for ((sum, &x), &w) in sums.iter_mut().zip(x).zip(w) {
                *sum = mul_add::<FMA>(x, w, *sum);
            }
        }
        let mut width = W;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                sums[i] += sums[i + width];
            }
        }
        let rest = x_rest.iter().zip(w_rest).fold(0.0, |sum, (&x, &w)| mul_add::<FMA>(x, w, sum));
        *y += sums[0] + rest;
    }
}

#[cfg(target_arch = "x86_64")]
mod dispatch {
    use std::sync::OnceLock;

    use crate::arch::x86_64::dense;

    #[derive(Clone, Copy)]
    struct Routines {
        rows: fn(&mut [f32], usize, &[f32], usize, &[f32]),
        dots: fn(&mut [f32], &[f32], &[f32]),
    }

    macro_rules! compiled_for {
        ($name:ident) => {
            mod $name {
                pub fn rows(y: &mut [f32], width: usize, x: &[f32], stride: usize, w: &[f32]) {
                    // SAFETY: only `pick` hands this function out, after it has seen the features.
                    unsafe { super::dense::$name::rows(y, width, x, stride, w) }
                }

                pub fn dots(y: &mut [f32], x: &[f32], w: &[f32]) {
                    // SAFETY: as above.
                    unsafe { super::dense::$name::dots(y, x, w) }
                }
            }
        };
    }
    compiled_for!(avx2);
    compiled_for!(avx512);

    fn pick() -> Routines {
        static ROUTINES: OnceLock<Routines> = OnceLock::new();
        *ROUTINES.get_or_init(|| {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            match avx2 {
                true if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") => {
                    Routines { rows: avx512::rows, dots: avx512::dots }
                }
                true => Routines { rows: avx2::rows, dots: avx2::dots },
                false => {
                    Routines { rows: super::rows_inline::<false>, dots: super::dots_inline::<false, 16> }
                }
            }
        })
    }

    pub(super) fn accumulate_rows(y: &mut [f32], width: usize, x: &[f32], stride: usize, w: &[f32]) {
        (pick().rows)(y, width, x, stride, w);
    }

    pub(super) fn accumulate_dots(y: &mut [f32], x: &[f32], w: &[f32]) {
        (pick().dots)(y, x, w);
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod dispatch {
    const FMA: bool = cfg!(target_arch = "aarch64");

    pub(super) fn accumulate_rows(y: &mut [f32], width: usize, x: &[f32], stride: usize, w: &[f32]) {
        super::rows_inline::<FMA>(y, width, x, stride, w);
    }

    pub(super) fn accumulate_dots(y: &mut [f32], x: &[f32], w: &[f32]) {
        super::dots_inline::<FMA, 32>(y, x, w);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(len: usize, step: f32) -> Vec<f32> {
        (0..len).map(|i| ((i as f32 * step).sin() * 8.0).round() / 8.0).collect()
    }

    #[test]
    fn both_orders_agree_with_the_definition() {
        for (k, n) in [(1, 1), (3, 15), (16, 16), (33, 129), (200, 257), (517, 100)] {
            let (x, w) = (ramp(k, 0.37), ramp(k * n, 0.011));
            // Multiples of 1/8 with few bits: every order of summation is exact.
            let expected: Vec<f32> =
                (0..n).map(|c| 1.0 + (0..k).map(|r| x[r] * w[r * n + c]).sum::<f32>()).collect();
            for m in 1..14 {
                let stride = k + 3;
                // Row `r` is `x` times `r + 1`.
                let mut rows = vec![0.0; m * stride];
                for (r, row) in rows.chunks_mut(stride).enumerate() {
                    row.iter_mut().zip(&x).for_each(|(to, x)| *to = (r + 1) as f32 * x);
                }
                let mut y = vec![0.0; m * n];
                accumulate_rows(&mut y, n, &rows, stride, &w);
                for (r, y) in y.chunks(n).enumerate() {
                    let expected: Vec<f32> = expected.iter().map(|e| (r + 1) as f32 * (e - 1.0)).collect();
                    assert_eq!(y, expected, "rows {m}x{k}x{n}");
                }
            }
            let transposed: Vec<f32> = (0..n * k).map(|i| w[i % k * n + i / k]).collect();
            let mut y = vec![1.0; n];
            accumulate_dots(&mut y, &x, &transposed);
            assert_eq!(y, expected, "dots {k}x{n}");
        }
    }
}
