//! Encode and decode against a copy of the decoded bytes, measured in turn in one run.
//!
//! `cargo bench --bench decode [-- MiB]` prints, for each dtype and backend, output bytes a second as a ratio to
//! `memcpy` of the same output. Medians of interleaved rounds; a lone time means little on a shared machine.

use std::hint::black_box;
use std::time::Instant;

use nz_onnx::arch::Backend;
use nz_onnx::codec::{self, Decoder, EncodeOptions};
use nz_onnx::format::{Dtype, TensorSpec};

const ROUNDS: usize = 9;

fn gaussian(n: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 24) as f32
    };
    (0..n).map(|_| ((0..6).map(|_| uniform()).sum::<f32>() - 3.0) * 0.03).collect()
}

fn bytes_of(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn main() {
    // `cargo test --benches` and `cargo bench` pass flags of their own.
    let mib: usize = std::env::args().find_map(|a| a.parse().ok()).unwrap_or(64);
    let quick = std::env::args().any(|a| a == "--test");
    let n = if quick { 1 << 16 } else { mib << 18 };
    let values = gaussian(n);
    let source = values.clone();
    let mut out = vec![0f32; n];
    println!("{n} weights decoded to float32, one thread; ratio: output bytes a second over memcpy's");
    println!(
        "{:<10} {:>4} {:>8} {:>10} {:>10} {:>10}",
        "dtype", "k", "b/w", "backend", "ratio", "Gweights/s"
    );
    for (dtype, k) in [
        (Dtype::F32, None),
        (Dtype::F32, Some(10)),
        (Dtype::F32, Some(3)),
        (Dtype::F16, None),
        (Dtype::Bf16, None),
    ] {
        let src = bytes_of(&values, dtype);
        let spec = TensorSpec::row_major(dtype, &[n as u64]);
        let options = EncodeOptions { mantissa_bits: k, ..EncodeOptions::default() };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
        let mut blob = Vec::new();
        let encode =
            time(|| blob = pool.install(|| codec::encode(&src, &spec, &options)).expect("valid input"));
        let bits = blob.len() as f64 * 8.0 / n as f64;
        for backend in Backend::available() {
            let decoder = Decoder::with_backend(&blob, backend).expect("own blob");
            let (mut copies, mut decodes) = (Vec::new(), Vec::new());
            for _ in 0..if quick { 1 } else { ROUNDS } {
                copies.push(time(|| out.copy_from_slice(black_box(&source))));
                decodes.push(time(|| decoder.decode_f32(black_box(&blob), 0, &mut out).expect("own blob")));
            }
            let (copy, decode) = (median(copies), median(decodes));
            let k = k.map_or("-".into(), |k: u8| k.to_string());
            println!(
                "{:<10} {k:>4} {bits:>8.2} {:>10} {:>10.2} {:>10.2}",
                dtype.name(),
                backend.name,
                copy / decode,
                n as f64 / decode / 1e9
            );
        }
        println!("{:<10} encode: {:.2} GB/s of input", dtype.name(), src.len() as f64 / encode / 1e9);
    }
}
