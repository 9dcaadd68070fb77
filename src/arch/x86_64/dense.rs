//! Rows of activations times decoded weights that lie in the cache, with the sums in registers.

use std::arch::x86_64::{
    __m256, __m256i, _mm256_add_ps, _mm256_cmpgt_epi32, _mm256_hadd_ps, _mm256_permute2f128_ps,
    _mm256_set1_epi32, _mm256_setr_epi32, _mm256_storeu_ps,
};

/// All ones in the first `n` lanes.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn first(n: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// What the lanes of each vector add up to.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn total(v: [__m256; 8]) -> [f32; 8] {
    // Each half of these has part sums of four vectors.
    let quarter = |at: usize| {
        let pair = |at: usize| _mm256_hadd_ps(v[at], v[at + 1]);
        _mm256_hadd_ps(pair(at), pair(at + 2))
    };
    let (a, b) = (quarter(0), quarter(4));
    let sums = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
    let mut out = [0f32; 8];
    // SAFETY: there is room for eight.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sums) };
    out
}

/// The kernels for one kind of vector: how many vectors of columns go with 1, 2, 4 and 6 rows, and its instructions.
macro_rules! dense {
    ($name:ident, $features:literal, $lanes:literal, [$c1:literal, $c2:literal, $c4:literal, $c6:literal],
     $zero:ident, $splat:ident, $fma:ident, $load:item, $store:item, $total:item) => {
        pub(in crate::arch) mod $name {
            use std::arch::x86_64::*;

            const LANES: usize = $lanes;

            /// As [`crate::arch::dense::accumulate_rows`], whose checks it repeats.
            #[target_feature(enable = $features)]
            pub fn rows(y: &mut [f32], width: usize, x: &[f32], stride: usize, w: &[f32]) {
                let (rows, depth) = (y.len() / width, w.len() / width);
                assert!(rows * width == y.len() && depth * width == w.len());
                assert!(rows == 0 || (rows - 1) * stride + depth <= x.len());
                let mut row = 0;
                while row < rows {
                    let y = y[row * width..].as_mut_ptr();
                    let job = Job { y, width, x: &x[row * stride..], stride, w };
                    // SAFETY: the asserts have that many rows of `x` and `y` in their slices.
                    row += unsafe {
                        match rows - row {
                            6.. => job.all_columns::<6, $c6>(),
                            4.. => job.all_columns::<4, $c4>(),
                            2.. => job.all_columns::<2, $c2>(),
                            _ => job.all_columns::<1, $c1>(),
                        }
                    };
                }
            }

            /// Rows whose sums are in registers together.
            const TOGETHER: usize = 8;

            /// As [`crate::arch::dense::accumulate_dots`], whose check it repeats.
            #[target_feature(enable = $features)]
            pub fn dots(y: &mut [f32], x: &[f32], w: &[f32]) {
                let depth = x.len();
                assert_eq!(w.len(), depth * y.len());
                if depth == 0 {
                    return;
                }
                for (y, w) in y.chunks_mut(TOGETHER).zip(w.chunks(TOGETHER * depth)) {
                    // Where there are fewer rows, the last again: a row's sum does not depend on where it stands.
                    let last = y.len() - 1;
                    let rows: [*const f32; TOGETHER] =
                        std::array::from_fn(|row| w[row.min(last) * depth..].as_ptr());
                    let mut sums = [$zero(); TOGETHER];
                    // SAFETY: `x` and each row have `depth` elements.
                    unsafe {
                        for at in (0..depth / LANES * LANES).step_by(LANES) {
                            let x = load(x.as_ptr().add(at), LANES);
                            for (sum, row) in sums.iter_mut().zip(rows) {
                                *sum = $fma(x, load(row.add(at), LANES), *sum);
                            }
                        }
                        let (at, rest) = (depth / LANES * LANES, depth % LANES);
                        if rest > 0 {
                            let x = load(x.as_ptr().add(at), rest);
                            for (sum, row) in sums.iter_mut().zip(rows) {
                                *sum = $fma(x, load(row.add(at), rest), *sum);
                            }
                        }
                    }
                    y.iter_mut().zip(total(sums)).for_each(|(y, sum)| *y += sum);
                }
            }

            struct Job<'a> {
                y: *mut f32,
                width: usize,
                x: &'a [f32],
                stride: usize,
                w: &'a [f32],
            }

            impl Job<'_> {
                /// Multiplies `R` rows and returns `R`; strips of up to `C` vectors of columns.
                ///
                /// # Safety
                /// `y` has so many rows of `width`, and `x` of the depth of `w`, `stride` apart.
                #[inline]
                #[target_feature(enable = $features)]
                unsafe fn all_columns<const R: usize, const C: usize>(&self) -> usize {
                    let mut at = 0;
                    // SAFETY: the caller's; each strip lies inside the width.
                    unsafe {
                        while at + C * LANES <= self.width {
                            self.strip::<R, C>(at, LANES);
                            at += C * LANES;
                        }
                        while at < self.width {
                            self.strip::<R, 1>(at, (self.width - at).min(LANES));
                            at += LANES;
                        }
                    }
                    R
                }

                /// Adds to `R` rows of `C` vectors of columns from `at` on; of the last vector to `last` columns.
                ///
                /// # Safety
                /// As for [`Job::all_columns`], and the columns lie inside the width.
                #[inline]
                #[target_feature(enable = $features)]
                unsafe fn strip<const R: usize, const C: usize>(&self, at: usize, last: usize) {
                    let lanes = |c: usize| if c + 1 == C { last } else { LANES };
                    let mut sums = [[$zero(); C]; R];
                    // SAFETY: the caller's.
                    unsafe {
                        for (r, sums) in sums.iter_mut().enumerate() {
                            for (c, sum) in sums.iter_mut().enumerate() {
                                *sum = load(self.y.add(r * self.width + at + c * LANES), lanes(c));
                            }
                        }
                        for (d, row) in self.w.chunks_exact(self.width).enumerate() {
                            let row = row.as_ptr().add(at);
                            let mut w = [$zero(); C];
                            for (c, w) in w.iter_mut().enumerate() {
                                *w = load(row.add(c * LANES), lanes(c));
                            }
                            for (r, sums) in sums.iter_mut().enumerate() {
                                let x = $splat(*self.x.get_unchecked(r * self.stride + d));
                                for (sum, w) in sums.iter_mut().zip(w) {
                                    *sum = $fma(x, w, *sum);
                                }
                            }
                        }
                        for (r, sums) in sums.iter().enumerate() {
                            for (c, sum) in sums.iter().enumerate() {
                                store(self.y.add(r * self.width + at + c * LANES), lanes(c), *sum);
                            }
                        }
                    }
                }
            }

            /// The first `n` floats from `from` on, at most a vector of them.
            ///
            /// # Safety
            /// They can be read.
            #[inline]
            #[target_feature(enable = $features)]
            $load

            /// Stores the first `n` lanes.
            ///
            /// # Safety
            /// They can be written.
            #[inline]
            #[target_feature(enable = $features)]
            $store

            /// What the lanes of each vector add up to.
            #[inline]
            #[target_feature(enable = $features)]
            $total
        }
    };
}

dense!(
    avx512,
    "avx2,fma,avx512f,avx512vl",
    16,
    [16, 8, 4, 4],
    _mm512_setzero_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    unsafe fn load(from: *const f32, n: usize) -> __m512 {
        // SAFETY: the caller's.
        unsafe { if n == LANES { _mm512_loadu_ps(from) } else { _mm512_maskz_loadu_ps((1 << n) - 1, from) } }
    },
    unsafe fn store(to: *mut f32, n: usize, v: __m512) {
        // SAFETY: the caller's.
        unsafe {
            if n == LANES { _mm512_storeu_ps(to, v) } else { _mm512_mask_storeu_ps(to, (1 << n) - 1, v) }
        }
    },
    fn total(sums: [__m512; TOGETHER]) -> [f32; TOGETHER] {
        super::total(sums.map(|sum| {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sum)));
            _mm256_add_ps(_mm512_castps512_ps256(sum), high)
        }))
    }
);

dense!(
    avx2,
    "avx2,fma",
    8,
    [8, 4, 2, 2],
    _mm256_setzero_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    unsafe fn load(from: *const f32, n: usize) -> __m256 {
        // SAFETY: the caller's.
        unsafe { if n == LANES { _mm256_loadu_ps(from) } else { _mm256_maskload_ps(from, super::first(n)) } }
    },
    unsafe fn store(to: *mut f32, n: usize, v: __m256) {
        // SAFETY: the caller's.
        unsafe {
            if n == LANES { _mm256_storeu_ps(to, v) } else { _mm256_maskstore_ps(to, super::first(n), v) }
        }
    },
    fn total(sums: [__m256; TOGETHER]) -> [f32; TOGETHER] {
        super::total(sums)
    }
);
