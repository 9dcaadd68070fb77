use nz_onnx::arch::Backend;
use nz_onnx::codec::{self, Decoder, EncodeOptions, GridStep};
use nz_onnx::format::{Dtype, TensorSpec};
use std::time::Instant;
fn main() {
    let (k, n) = (2048usize, 256usize);
    let mut s = 88172645463325252u64;
    let mut g = || {
        let mut a = 0f32;
        for _ in 0..12 {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            a += (s >> 40) as f32 / (1u32 << 24) as f32;
        }
        (a - 6.0) * 0.02
    };
    let vals: Vec<f32> = (0..k * n).map(|_| g()).collect();
    let x: Vec<f32> = (0..k).map(|i| (i as f32 * 0.1).sin()).collect();
    for (dtype, grid) in [(Dtype::F32, false), (Dtype::F16, false), (Dtype::Bf16, false), (Dtype::F32, true)]
    {
        let src: Vec<u8> = match dtype {
            Dtype::F32 => vals.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F16 => vals.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            _ => vals.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        };
        let spec = TensorSpec::column_tiles(dtype, k as u64, n as u64, 256);
        let all = if grid { 10 } else { dtype.mantissa_bits() };
        let opt = |b: u8| {
            if grid {
                EncodeOptions { grid: Some(GridStep { cell: 0, raw_bits: b }), ..Default::default() }
            } else {
                EncodeOptions { mantissa_bits: Some(b), ..Default::default() }
            }
        };
        let full =
            codec::encode(&src, &spec, &if grid { opt(all) } else { EncodeOptions::default() }).unwrap();
        let layered = codec::layer(&full, &[3, 7, 15]).unwrap().unwrap();
        let depths = Decoder::open(&layered).unwrap().header().layers.len();
        for backend in Backend::available() {
            if backend.name == "scalar" {
                continue;
            }
            for depth in 0..=depths {
                let h = Decoder::open(&layered).unwrap();
                let bits = if depth == 0 { 3 } else { h.header().layers[depth - 1].bits };
                let plain =
                    if bits == all { full.clone() } else { codec::encode(&src, &spec, &opt(bits)).unwrap() };
                let a = Decoder::with_backend(&plain, backend).unwrap();
                let b = Decoder::with_backend(&layered, backend).unwrap().to_depth(depth);
                let mut out = vec![0f32; k * n];
                let mut y = vec![0f32; n];
                let mut t = [[f64::MAX; 2]; 2];
                for _ in 0..60 {
                    for (i, (d, blob)) in [(&a, &plain), (&b, &layered)].into_iter().enumerate() {
                        let s = Instant::now();
                        d.decode_f32(blob, 0, &mut out).unwrap();
                        t[0][i] = t[0][i].min(s.elapsed().as_secs_f64());
                        let s = Instant::now();
                        let did = d.multiply_rows(blob, 0, &x, &mut y).unwrap();
                        if did {
                            t[1][i] = t[1][i].min(s.elapsed().as_secs_f64());
                        }
                    }
                }
                let rate = |t: f64| (k * n) as f64 / t / 1e9;
                println!(
                    "{dtype:?} grid={grid} {:7} bits {bits:2}: decode plain {:.2} layered {:.2} G/s ({:.2}); gemv plain {:.2} layered {:.2} ({:.2})",
                    backend.name,
                    rate(t[0][0]),
                    rate(t[0][1]),
                    t[0][0] / t[0][1],
                    rate(t[1][0]),
                    rate(t[1][1]),
                    t[1][0] / t[1][1]
                );
            }
        }
    }
}
