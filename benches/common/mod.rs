//! What the benchmarks share: weights, buffers, clocks, the machine.

use std::time::Instant;

use nz_onnx::format::Dtype;
use rayon::prelude::*;

/// Weights in a row that shares a scale, as the rows of trained matrices do.
const ROW: usize = 4096;

/// The seconds that `work` takes.
pub fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// The middle one of some numbers.
///
/// # Panics
/// There are none.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Weights like those of trained matrices, normal with a log-normal scale a row, rounded to `through` and stored
/// as `dtype`, little-endian. The same ones in each run.
pub fn weights(n: usize, dtype: Dtype, through: Dtype) -> Vec<u8> {
    let mut out = vec![0; n * dtype.size()];
    out.par_chunks_mut(ROW * dtype.size()).enumerate().for_each(|(row, out)| {
        let mut normals = Normals::new(row as u64);
        let scale = 0.02 * (0.35 * normals.next()).exp();
        for element in out.chunks_exact_mut(dtype.size()) {
            store(through_dtype(scale * normals.next(), through), dtype, element);
        }
    });
    out
}

fn through_dtype(value: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 | Dtype::U8 | Dtype::I8 => value,
        Dtype::F16 => half::f16::from_f32(value).to_f32(),
        Dtype::Bf16 => half::bf16::from_f32(value).to_f32(),
    }
}

fn store(value: f32, dtype: Dtype, out: &mut [u8]) {
    match dtype {
        Dtype::F32 | Dtype::U8 | Dtype::I8 => out.copy_from_slice(&value.to_le_bytes()),
        Dtype::F16 => out.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
        Dtype::Bf16 => out.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
    }
}

/// Normally distributed numbers, by the method of Box and Muller over xorshift.
struct Normals {
    state: u64,
    spare: Option<f32>,
}

impl Normals {
    fn new(seed: u64) -> Self {
        let state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut normals = Normals { state, spare: None };
        for _ in 0..8 {
            normals.uniform();
        }
        normals
    }

    /// In (0, 1].
    fn uniform(&mut self) -> f32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        ((self.state >> 40) + 1) as f32 / (1u32 << 24) as f32
    }

    fn next(&mut self) -> f32 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (radius, angle) = ((-2.0 * self.uniform().ln()).sqrt(), std::f32::consts::TAU * self.uniform());
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}
