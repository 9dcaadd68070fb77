//! A vector times a decoded piece of a weight that lies in the cache, in either order of storage.
//!
//! The compiler vectorises the plain loops below; they are compiled once for each instruction set.

/// `y += x * w`, where `w` is `[x.len(), y.len()]`, row by row.
pub(crate) fn accumulate_rows(y: &mut [f32], x: &[f32], w: &[f32]) {
    assert_eq!(w.len(), x.len() * y.len());
    dispatch::accumulate_rows(y, x, w);
}

/// `y += w * x`, where `w` is `[y.len(), x.len()]`, row by row.
pub(crate) fn accumulate_dots(y: &mut [f32], x: &[f32], w: &[f32]) {
    assert_eq!(w.len(), x.len() * y.len());
    dispatch::accumulate_dots(y, x, w);
}

/// `a * b + c`, in one rounding where the instruction set has it.
#[inline(always)]
fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Sums over all rows for a strip of `W` columns, which stay in registers.
#[inline(always)]
fn strip<const FMA: bool, const W: usize>(y: &mut [f32], x: &[f32], w: &[f32], stride: usize, at: usize) {
    let Some(y) = y[at..].first_chunk_mut::<W>() else { return };
    let mut sum = *y;
    for (&x, row) in x.iter().zip(w.chunks_exact(stride)) {
        let Some(row) = row[at..].first_chunk::<W>() else { return };
        for (sum, &w) in sum.iter_mut().zip(row) {
            *sum = mul_add::<FMA>(x, w, *sum);
        }
    }
    *y = sum;
}

#[inline(always)]
fn rows_inline<const FMA: bool, const W: usize>(y: &mut [f32], x: &[f32], w: &[f32]) {
    let stride = y.len();
    let mut at = 0;
    while at + W <= stride {
        strip::<FMA, W>(y, x, w, stride, at);
        at += W;
    }
    while at + 16 <= stride {
        strip::<FMA, 16>(y, x, w, stride, at);
        at += 16;
    }
    while at < stride {
        strip::<FMA, 1>(y, x, w, stride, at);
        at += 1;
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

    type Routine = fn(&mut [f32], &[f32], &[f32]);

    macro_rules! compiled_for {
        ($name:ident, $inline:ident, $features:literal, $width:literal) => {
            fn $name(y: &mut [f32], x: &[f32], w: &[f32]) {
                #[target_feature(enable = $features)]
                fn with_features(y: &mut [f32], x: &[f32], w: &[f32]) {
                    super::$inline::<true, $width>(y, x, w);
                }
                // SAFETY: only `pick` hands this function out, after it has seen these features.
                unsafe { with_features(y, x, w) }
            }
        };
    }
    compiled_for!(rows_avx2, rows_inline, "avx2,fma", 64);
    compiled_for!(rows_avx512, rows_inline, "avx2,fma,avx512f,avx512vl", 128);
    compiled_for!(dots_avx2, dots_inline, "avx2,fma", 64);
    compiled_for!(dots_avx512, dots_inline, "avx2,fma,avx512f,avx512vl", 128);

    fn pick(best: Routine, good: Routine, any: Routine) -> Routine {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        match avx2 {
            true if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") => best,
            true => good,
            false => any,
        }
    }

    pub(super) fn accumulate_rows(y: &mut [f32], x: &[f32], w: &[f32]) {
        static ROUTINE: OnceLock<Routine> = OnceLock::new();
        ROUTINE.get_or_init(|| pick(rows_avx512, rows_avx2, super::rows_inline::<false, 16>))(y, x, w);
    }

    pub(super) fn accumulate_dots(y: &mut [f32], x: &[f32], w: &[f32]) {
        static ROUTINE: OnceLock<Routine> = OnceLock::new();
        ROUTINE.get_or_init(|| pick(dots_avx512, dots_avx2, super::dots_inline::<false, 16>))(y, x, w);
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod dispatch {
    const FMA: bool = cfg!(target_arch = "aarch64");

    pub(super) fn accumulate_rows(y: &mut [f32], x: &[f32], w: &[f32]) {
        super::rows_inline::<FMA, 32>(y, x, w);
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
            let mut y = vec![1.0; n];
            accumulate_rows(&mut y, &x, &w);
            assert_eq!(y, expected, "rows {k}x{n}");
            let transposed: Vec<f32> = (0..n * k).map(|i| w[i % k * n + i / k]).collect();
            let mut y = vec![1.0; n];
            accumulate_dots(&mut y, &x, &transposed);
            assert_eq!(y, expected, "dots {k}x{n}");
        }
    }
}
