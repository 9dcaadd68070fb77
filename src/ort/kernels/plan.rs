//! How a product is cut into pieces: for the scratch of a thread, and for several threads.

use super::scratch::CAPACITY;
use crate::format::Dtype;
use crate::ort::api::HostVersion;

/// Cost of decoding a weight, in units of what a row of `X` costs with it in a matrix product.
const DECODE: f64 = 16.0;
/// Products of less cost than this (in the same unit) are not worth waking threads up for: some 20 us.
const INLINE: f64 = 16.0 * 65_536.0;
/// Rows of `X` from which on decoding a weight twice, on two threads, can pay.
const ROWS_A_CHUNK: usize = 64;
/// Rows of `X` up to which the kernels of [`crate::arch::dense`] are faster than a gemm, which packs the weight
/// first: of a weight in tiles, and of one stored row by row.
const FEW_ROWS: (usize, usize) = (64, 8);
/// Rows of `X` up to which a weight that is stored row by row is decoded in pieces for the nearest cache.
const NEAR_ROWS: usize = 16;
/// Steps along `K` that are summed up one by one before the sum is added to the output. ONNX Runtime's kernel for
/// a constant matrix takes as many: so, with column tiles, outputs are its own bit for bit.
const GROUP: usize = 256;
/// The same for a matrix that is not constant to it. To ONNX Runtime before 1.23 float16 weights are not: it
/// casts them to float32 in every run.
const GROUP_OF_VARIABLE: usize = 128;
/// The first version that casts float16 weights once, when a session is created.
const CASTS_ONCE: HostVersion = HostVersion(23);

/// In groups of how many steps `host` sums products with a constant weight of `dtype`.
pub(crate) fn group(dtype: Dtype, host: HostVersion) -> usize {
    if dtype == Dtype::F16 && host < CASTS_ONCE { GROUP_OF_VARIABLE } else { GROUP }
}

/// The most partial sums, in floats, that parts of `K` may take.
const PARTIAL: usize = 1 << 18;
/// Weights decoded at a time where the weight is read once (one row of `X`): they stay in the nearest cache.
const NEAR: usize = 1 << 14;
/// The same where many rows of `X` read them again: they stay in a core's own cache.
const FAR: usize = 1 << 16;
/// Weights of a piece that ends within a block, which then is decoded for both pieces that have some of it.
const SHARED: usize = 1 << 17;
/// The same for rows that are turned into columns, where wide pieces pay; the rest of the scratch is for the
/// rows before they are turned.
const TURNED: usize = 3 << 16;
/// Rows of `X` from which on turning a row-major weight costs less than multiplying it as it is.
const TURN_FROM: usize = 64;
/// The least width at which a turned piece is worth its while.
const TURN_WIDTH: usize = 16;
/// The least weights that a thread should be given, with one row of `X`.
const LEAST: usize = 1 << 15;

/// Whether decoding so many weights and multiplying so many elements is better done on this thread alone.
pub(crate) fn is_small(decoded: usize, multiplied: usize) -> bool {
    decoded as f64 * DECODE + (multiplied as f64) < INLINE
}

/// Whether `X` has so few rows that no gemm pays; `by_rows`: for a weight stored row by row.
pub(crate) fn is_few(rows: usize, by_rows: bool) -> bool {
    rows <= if by_rows { FEW_ROWS.1 } else { FEW_ROWS.0 }
}

/// In which order the weight is stored, as a product sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `[K, N]` in tiles of so many columns.
    Tiles(usize),
    /// `[N, K]`, row by row.
    Rows,
}

/// A product `[m, k] x [k, n]`, cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Columns of the product a piece (the last may have fewer).
    pub width: usize,
    /// Steps along `K` that are decoded at a time; a divisor of `group`, or `k`.
    pub depth: usize,
    /// Steps along `K` with a sum of their own.
    pub group: usize,
    /// Parts of `K` that may run on different threads, each of whole groups.
    pub depth_parts: usize,
    /// Parts of `m`, each of which decodes the weight for itself.
    pub row_parts: usize,
    /// Of a row-major weight: rows that are decoded and turned into columns at a time, 0 for no turning.
    pub strip: usize,
    /// Of a row-major weight whose pieces are not of whole blocks: weights that are decoded at a time, 0 for whole pieces.
    pub stream: usize,
}

impl Plan {
    /// A plan for `threads` threads, with groups of `group` steps; `block` is the blob's block length. All
    /// dimensions are at least 1.
    pub fn new(
        form: Form,
        (m, k, n): (usize, usize, usize),
        group: usize,
        block: usize,
        threads: usize,
    ) -> Plan {
        let weights = k.saturating_mul(n);
        let alone = threads <= 1 || is_small(weights, weights.saturating_mul(m));
        let (mut width, mut depth, mut strip, mut stream) = (1, k, 0, 0);
        match form {
            Form::Tiles(tile) => {
                width = tile.min(n);
                depth = group.min(CAPACITY / width);
                while is_few(m, false) && depth > 1 && depth * width > NEAR {
                    depth /= 2;
                }
            }
            Form::Rows if k > CAPACITY => depth = CAPACITY,
            Form::Rows => {
                let unit = block_rows(block, k);
                let share = if alone { n } else { n.div_ceil(threads).max(LEAST.div_ceil(k)) };
                if m > TURN_FROM && TURNED / k >= TURN_WIDTH {
                    width = align((TURNED / k).min(128).min(share), unit).clamp(1, n);
                    strip = align((NEAR / k).max(4).min((CAPACITY - TURNED) / k), unit).clamp(1, width);
                } else {
                    let target = if m <= NEAR_ROWS { NEAR } else { FAR };
                    let rows = |target: usize| (target / k).max(32).min(CAPACITY / k).min(share).clamp(1, n);
                    width = align(rows(target), unit).max(1);
                    if is_few(m, true) && width < unit && width < n && k <= CAPACITY - NEAR {
                        stream = NEAR.max(block);
                        let pieces = n.div_ceil(rows(SHARED));
                        width = n.div_ceil(if alone { pieces } else { pieces.next_multiple_of(threads) });
                    }
                }
            }
        }
        let pieces = n.div_ceil(width);
        let group = if matches!(form, Form::Tiles(_)) { group / depth * depth } else { depth };
        let mut plan = Plan { width, depth, group, depth_parts: 1, row_parts: 1, strip, stream };
        if alone || pieces >= 4 * threads {
            return plan;
        }
        if m >= 2 * ROWS_A_CHUNK {
            plan.row_parts = parts(pieces, threads, m / ROWS_A_CHUNK, DECODE, m as f64);
        } else if matches!(form, Form::Tiles(_)) && k.div_ceil(group) * m * n <= PARTIAL {
            let work = (k * width) as f64 * (DECODE + m as f64) / (DECODE + 1.0);
            let most = k.div_ceil(group).min((work / LEAST as f64) as usize).min(threads);
            plan.depth_parts = parts(pieces, threads, most, 1.0, DECODE + m as f64);
        }
        plan
    }
}

/// Rows of `width` weights that are whole blocks together.
fn block_rows(block: usize, width: usize) -> usize {
    let (mut a, mut b) = (block, width);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    block / a.max(1)
}

/// The greatest multiple of `unit` up to `count`, or `count` if there is none.
fn align(count: usize, unit: usize) -> usize {
    if count >= unit { count / unit * unit } else { count }
}

/// Into how many parts each of `pieces` pieces is best cut for `threads` threads, at most `most`: each part
/// costs `repeated` and its share of `shared`.
fn parts(pieces: usize, threads: usize, most: usize, repeated: f64, shared: f64) -> usize {
    let cost = |parts: usize| (pieces * parts).div_ceil(threads) as f64 * (repeated + shared / parts as f64);
    let mut best = 1;
    for candidate in 2..=most.min(threads) {
        // A little better is not better: a part more is work more.
        if cost(candidate) < 0.95 * cost(best) {
            best = candidate;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plan_fits_in_the_scratch() {
        for form in [Form::Tiles(64), Form::Tiles(128), Form::Tiles(256), Form::Rows] {
            for m in [1, 2, 16, 17, 64, 200, 5000] {
                for (k, n) in
                    [(1, 1), (7, 3), (384, 1536), (300_001, 5), (2048, 2048), (127, 999), (1, 70_000)]
                {
                    for threads in [1, 2, 16, 192] {
                        let p = Plan::new(form, (m, k, n), GROUP, 4096, threads);
                        assert!((p.width + p.strip) * p.depth <= CAPACITY, "{form:?} {m} {k} {n}: {p:?}");
                        assert!(p.strip == 0 || (form == Form::Rows && p.depth == k && p.strip <= p.width));
                        assert!(p.width >= 1 && p.depth >= 1 && p.depth_parts >= 1 && p.row_parts >= 1);
                        assert!(p.depth_parts <= k && p.row_parts <= m, "{form:?} {m} {k} {n}: {p:?}");
                        assert!(form != Form::Rows || p.depth == k || p.width == 1);
                        assert!(p.group.is_multiple_of(p.depth));
                        assert!(p.stream == 0 || (p.stream + k <= CAPACITY && p.depth == k && p.strip == 0));
                    }
                }
            }
        }
    }

    #[test]
    fn chunks_are_whole_blocks_where_they_can_be() {
        let p = Plan::new(Form::Tiles(256), (1, 2048, 2048), GROUP, 4096, 2);
        assert_eq!(p.depth * 256 % 4096, 0);
        let p = Plan::new(Form::Rows, (1, 384, 1536), GROUP, 4096, 2);
        assert_eq!(p.width * 384 % 4096, 0);
    }

    #[test]
    fn rows_that_do_not_fit_blocks_are_streamed() {
        let p = Plan::new(Form::Rows, (1, 257, 512), GROUP, 4096, 2);
        assert!(p.width == 256 && p.stream > 0, "{p:?}");
        assert_eq!(Plan::new(Form::Rows, (1, 256, 512), GROUP, 4096, 2).stream, 0);
        assert_eq!(Plan::new(Form::Rows, (100, 257, 512), GROUP, 4096, 2).stream, 0);
    }

    #[test]
    fn groups_follow_the_host() {
        assert_eq!(group(Dtype::F16, HostVersion::parse("1.20.1")), 128);
        assert_eq!(group(Dtype::F16, HostVersion::parse("1.23.0")), 256);
        assert_eq!(group(Dtype::F32, HostVersion::parse("1.17.3")), 256);
        assert_eq!(group(Dtype::F16, HostVersion::parse("custom build")), 256);
    }

    #[test]
    fn few_pieces_are_cut_further_for_many_threads() {
        let p = Plan::new(Form::Tiles(128), (1024, 384, 384), GROUP, 4096, 8);
        assert!(p.row_parts > 1, "{p:?}");
        let p = Plan::new(Form::Tiles(128), (1, 4096, 512), GROUP, 4096, 16);
        assert!(p.depth_parts > 1, "{p:?}");
        assert_eq!(Plan::new(Form::Tiles(128), (1, 64, 64), GROUP, 4096, 16).depth_parts, 1);
        // Three pieces, of a good many rows, on two threads.
        assert_eq!(Plan::new(Form::Tiles(128), (32, 384, 384), GROUP, 4096, 2).depth_parts, 2);
    }
}
