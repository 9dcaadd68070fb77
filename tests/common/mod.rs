//! Tensors that the codec tests share: seeded, so that golden files can be made again from them.
#![allow(dead_code, clippy::unwrap_used)]

use nz_onnx::arch::Backend;
use nz_onnx::codec::Decoder;
use nz_onnx::format::{Dtype, TensorSpec};

/// xorshift64*: a few lines that every language can repeat.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// About standard normal: the sum of twelve uniform numbers, less six.
    pub fn gauss(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1u32 << 24) as f32).sum::<f32>() - 6.0
    }
}

/// What the weights of a test tensor look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Gaussian, as trained weights are.
    Gauss,
    /// Any bit pattern.
    Bits,
    /// All the same value.
    Constant,
    /// Mostly zeros.
    Sparse,
    /// NaNs with payloads, infinities, signed zeros, subnormals, largest and smallest values.
    Special,
    /// float16 or bfloat16 values in a wider type.
    Upcast,
    /// Weights of which one in ten is subnormal, as dead channels leave behind.
    Subnormal,
}

pub const KINDS: [Kind; 7] =
    [Kind::Gauss, Kind::Bits, Kind::Constant, Kind::Sparse, Kind::Special, Kind::Upcast, Kind::Subnormal];
pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

fn narrow(dtype: Dtype, value: f32) -> u32 {
    match dtype {
        Dtype::F32 => value.to_bits(),
        Dtype::U8 | Dtype::I8 => u32::from(value as i8 as u8),
        Dtype::F16 => u32::from(half::f16::from_f32(value).to_bits()),
        Dtype::Bf16 => u32::from(half::bf16::from_f32(value).to_bits()),
    }
}

/// `n` elements of `dtype`, little-endian.
pub fn tensor(kind: Kind, dtype: Dtype, n: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed * 2 + 0x9e37_79b9_7f4a_7c15);
    let bits = dtype.size() as u32 * 8;
    let (mantissa, all) = (u32::from(dtype.mantissa_bits()), u32::MAX >> (32 - bits));
    let exponent = (all >> 1) & !((1u32 << mantissa) - 1);
    let mut element = || match kind {
        Kind::Gauss => narrow(dtype, rng.gauss() * 0.02),
        Kind::Bits => rng.next() as u32 & all,
        Kind::Constant => narrow(dtype, 1.0),
        Kind::Sparse => {
            if rng.next().is_multiple_of(16) {
                narrow(dtype, rng.gauss())
            } else {
                (rng.next() as u32 & 1) << (bits - 1)
            }
        }
        Kind::Special => {
            let sign = (rng.next() as u32 & 1) << (bits - 1);
            let low = rng.next() as u32 & ((1 << mantissa) - 1);
            sign | match rng.next() % 7 {
                0 => exponent | low,
                1 => exponent,
                2 => 0,
                3 => low,
                4 => 1,
                5 => exponent - 1,
                _ => 1 << mantissa,
            }
        }
        Kind::Subnormal if rng.next().is_multiple_of(10) => {
            let shift = rng.next() % u64::from(mantissa);
            (rng.next() as u32 & 1) << (bits - 1) | (rng.next() as u32 & ((1 << mantissa) - 1)) >> shift
        }
        Kind::Subnormal => narrow(dtype, rng.gauss() * 0.02),
        Kind::Upcast => match dtype {
            Dtype::F32 => half::f16::from_f32(rng.gauss()).to_f32().to_bits(),
            Dtype::F16 => narrow(dtype, half::bf16::from_f32(rng.gauss()).to_f32()),
            Dtype::Bf16 | Dtype::U8 | Dtype::I8 => narrow(dtype, rng.gauss().round()),
        },
    };
    (0..n).flat_map(|_| element().to_le_bytes()[..dtype.size()].to_vec()).collect()
}

/// Specs that between them have every layout, ragged tiles and ragged blocks.
pub fn specs(dtype: Dtype) -> Vec<TensorSpec> {
    vec![
        TensorSpec::row_major(dtype, &[1]),
        TensorSpec::row_major(dtype, &[]),
        TensorSpec::row_major(dtype, &[3, 5, 7, 11]),
        TensorSpec::row_major(dtype, &[64]),
        TensorSpec::row_major(dtype, &[9000]),
        TensorSpec::column_tiles(dtype, 1, 64, 64),
        TensorSpec::column_tiles(dtype, 70, 200, 128),
        TensorSpec::column_tiles(dtype, 33, 256, 256),
        TensorSpec::column_tiles(dtype, 5, 3, 64),
    ]
}

/// Products of `encode`'s blobs, of each number of bits up to `most`, are those of their decoded weights, with every
/// backend that multiplies with blobs itself.
pub fn check_products(most: impl Fn(Dtype) -> u8, encode: impl Fn(&[u8], &TensorSpec, u8, u32) -> Vec<u8>) {
    let mut fused = 0;
    for dtype in DTYPES {
        for (rows, width) in [(64, 64), (96, 128), (48, 256), (33, 256), (40, 100)] {
            let src = tensor(Kind::Gauss, dtype, rows * width, 5);
            let x: Vec<f32> = (0..rows.max(width)).map(|i| ((i * 37 % 64) as f32 - 31.5) / 16.0).collect();
            for k in 0..=most(dtype) {
                let tiles = TensorSpec::column_tiles(dtype, rows as u64, width as u64, 256);
                let row_major = TensorSpec::row_major(dtype, &[rows as u64, width as u64]);
                for backend in Backend::available() {
                    let at = format!("{}: {dtype:?} {rows}x{width} k={k}", backend.name);
                    let blob = encode(&src, &tiles, k, 4096);
                    let decoder = Decoder::with_backend(&blob, backend).unwrap();
                    let mut w = vec![0f32; rows * width];
                    decoder.decode_f32(&blob, 0, &mut w).unwrap();
                    // Along rows: each step is one fused multiply-add, so that every bit is known.
                    let mut y = vec![0.5f32; width];
                    if decoder.multiply_rows(&blob, 0, &x[..rows], &mut y).unwrap() {
                        let mut expected = vec![0.5f32; width];
                        for (row, x) in w.chunks(width).zip(&x) {
                            expected.iter_mut().zip(row).for_each(|(y, w)| *y = x.mul_add(*w, *y));
                        }
                        assert_eq!(y, expected, "{at}");
                        fused += 1;
                    }
                    let blob = encode(&src, &row_major, k, 1024);
                    let decoder = Decoder::with_backend(&blob, backend).unwrap();
                    decoder.decode_f32(&blob, 0, &mut w).unwrap();
                    let mut y = vec![0.5f32; rows];
                    if decoder.multiply_columns(&blob, 0, &x[..width], &mut y).unwrap() {
                        for (y, row) in y.iter().zip(w.chunks(width)) {
                            let terms = row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                            let (sum, size) = terms.fold((0.5, 0.5), |(s, a), t| (s + t, a + t.abs()));
                            assert!((f64::from(*y) - sum).abs() <= 1e-6 * size, "{at}: {y} {sum}");
                        }
                        fused += 1;
                    }
                }
            }
        }
    }
    let has_fused = Backend::available().iter().any(|b| b.name == "avx512");
    assert_eq!(fused > 100, has_fused, "{fused} products were fused");
}
