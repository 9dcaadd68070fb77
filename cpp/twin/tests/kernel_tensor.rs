//! The product kernels with tensor cores on the CPU against products with weights that the reference decoder gives. What a
//! GPU's tensor cores round, and when, these tests leave open.

mod common;

use common::device::{Memory, run};
use common::{Fill, Rng, tensor};
use half::bf16;
use nz_onnx::codec::{self, EncodeOptions, Profile, reference};
use nz_onnx::cuda::job::{DeviceWeight, WeightMemory, check_status};
use nz_onnx::cuda::product::{Addend, Operands};
use nz_onnx::format::{Dtype, Header, TensorSpec};

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect()
}

fn floats_of(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|two| bf16::from_le_bytes([two[0], two[1]]).to_f32()).collect()
}

/// Y of a product by the kernels, and their verdict. The header may be that of another blob than the one in memory.
fn multiply(
    header: &Header,
    blob: &[u8],
    (m, x): (u32, &[u8]),
    seed: u64,
    (alpha, addend): (f32, Option<Addend>),
) -> (Vec<f32>, nz_onnx::error::Result<()>) {
    let weight = DeviceWeight::new(header).expect("a header of ours");
    let product = weight.tensor_product(m, Dtype::Bf16).expect("a product with tensor cores");
    let mut table = Memory::holding(weight.table(), 0);
    let (mut blob, mut x) = (Memory::holding(blob, 4), Memory::holding(x, 0));
    let mut y = Memory::filled(header.spec.shape[0] as usize * m as usize * 2, 0x5a, 0);
    // NaN, which would show in any sum.
    let mut partial = Memory::filled(product.partial_bytes() as usize, 0xff, 0);
    let mut status = Memory::filled(4, 0, 0);
    let memory = WeightMemory { blob: blob.address(), table: table.address() };
    let operands = Operands {
        dtype: Dtype::Bf16,
        x: x.address(),
        y: y.address(),
        partial: partial.address(),
        status: status.address(),
        alpha,
        addend,
    };
    for launch in product.launches(memory, operands).expect("aligned") {
        run(&launch, seed).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    partial.bytes();
    let status = u32::from_le_bytes(status.bytes().try_into().expect("4 bytes"));
    (floats_of(y.bytes()), check_status(status))
}

/// `[m, n]`: sums of `x[i, k] * w[j, k]` in float64, and of their magnitudes.
fn expected(w: &[f32], x: &[f32], k: usize) -> Vec<(f64, f64)> {
    let sum = |(x, w): (&[f32], &[f32])| {
        let products = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w));
        products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()))
    };
    x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| sum((x, w)))).collect()
}

/// Rows of the weight, its columns, and rows of X that there are kernels for.
const SHAPES: &[(u64, u64, &[u32])] = &[
    (5, 4096, &[1, 9, 64]),
    (17, 4096, &[33]),
    (3, 8192, &[1, 2, 16]),
    (16, 512, &[1]),
    (4, 1024, &[1, 32]),
    (72, 1024, &[8]),
    (18, 2048, &[17]),
    (8, 1536, &[1]),
    (4, 5120, &[1]),
];

fn options(mantissa_bits: Option<u8>) -> EncodeOptions {
    EncodeOptions { profile: Profile::Gpu, mantissa_bits, ..Default::default() }
}

/// A blob of weights of the usual kind, with any mantissa bits, and its header, of two tiers.
fn blob_of(src: &[u8], shape: &[u64], mantissa_bits: Option<u8>) -> (Vec<u8>, Header) {
    let blob = codec::encode(src, &TensorSpec::row_major(Dtype::Bf16, shape), &options(mantissa_bits));
    let blob = blob.expect("encodes");
    let header = Header::parse(&blob).expect("whole");
    assert_eq!(header.tiers.iter().map(|tier| tier.width).collect::<Vec<_>>(), [2, 2]);
    (blob, header)
}

/// Small numbers, whose sums are exact in any order.
#[test]
fn exact_sums_are_exact() {
    let mut rng = Rng(90);
    for &(n, k, rows) in SHAPES {
        for &m in rows {
            // Of many exponents, so that there are escapes of escapes.
            let value = |rng: &mut Rng| {
                let magnitude = [1.0, 0.5, 2.0, 1.5, 4.0, 0.25, 8.0, 0.125][rng.below(8) * rng.below(8) / 7];
                if rng.below(2) == 0 { magnitude } else { -magnitude }
            };
            let w: Vec<f32> = (0..n * k).map(|_| value(&mut rng)).collect();
            let x: Vec<f32> = (0..u64::from(m) * k)
                .map(|_| if rng.below(k as usize / 8) == 0 { [1.0, -1.0, 2.0][rng.below(3)] } else { 0.0 })
                .collect();
            let (blob, header) = blob_of(&bytes_of(&w), &[n, k], None);
            let sums = expected(&w, &x, k as usize);
            let sums: Vec<f32> = sums.iter().map(|&(sum, _)| bf16::from_f64(sum).to_f32()).collect();
            for seed in 0..2 {
                let (y, verdict) = multiply(&header, &blob, (m, &bytes_of(&x)), seed, (1.0, None));
                assert!(verdict.is_ok(), "[{n}, {k}], {m} rows: {verdict:?}");
                assert_eq!(y, sums, "[{n}, {k}], {m} rows");
            }
        }
    }
}

/// Weights of all bits and with any number of mantissa bits: within the rounding of sums in float32 and of the result, and the
/// same in every order of warps and lanes.
#[test]
fn real_sums_are_right_and_repeat() {
    let mut rng = Rng(91);
    for &(n, k, rows) in SHAPES {
        for &m in rows {
            for mantissa_bits in [None, Some(4), Some([0, 1, 2, 3, 5, 6][rng.below(6)])] {
                let src = tensor(Fill::Weights, Dtype::Bf16, (n * k) as usize, &mut rng);
                let (blob, header) = blob_of(&src, &[n, k], mantissa_bits);
                let w = floats_of(&reference::decode(&blob).expect("whole"));
                let x = bytes_of(&(0..u64::from(m) * k).map(|_| rng.weight() * 50.0).collect::<Vec<_>>());
                let context = format!("[{n}, {k}], {m} rows, {mantissa_bits:?} bits");
                let (y, verdict) = multiply(&header, &blob, (m, &x), 0, (1.0, None));
                assert!(verdict.is_ok(), "{context}: {verdict:?}");
                for (i, (&y, (sum, size))) in
                    y.iter().zip(expected(&w, &floats_of(&x), k as usize)).enumerate()
                {
                    let bound = size * k as f64 * f64::from(f32::EPSILON) + sum.abs() / 256.0 + 1e-40;
                    assert!((f64::from(y) - sum).abs() <= bound, "{context}, {i}: {y} and not {sum}");
                }
                for seed in 1..3 {
                    let again = multiply(&header, &blob, (m, &x), seed, (1.0, None)).0;
                    assert!(again.iter().zip(&y).all(|(a, b)| a.to_bits() == b.to_bits()), "{context}");
                }
            }
        }
    }
}

/// A weight with each pattern of bits once, multiplied with a row of X that has a 1 in each place in turn, is what it was: also
/// subnormals, infinities and NaN.
#[test]
fn every_weight_comes_through() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut rng = Rng(92);
    let (n, k) = (1024, 512);
    // Most are of few exponents, so that there is something to code; and all that there are.
    let src: Vec<u8> = (0..n * k)
        .flat_map(|i| {
            if i % 8 == 0 {
                all[i / 4..i / 4 + 2].to_vec()
            } else {
                tensor(Fill::Weights, Dtype::Bf16, 1, &mut rng)
            }
        })
        .collect();
    let (blob, header) = blob_of(&src, &[n as u64, k as u64], None);
    let w = floats_of(&src);
    for place in (0..k).step_by(8 * 15) {
        let x: Vec<f32> = (0..k).map(|i| f32::from(u8::from(i == place))).collect();
        let (y, verdict) = multiply(&header, &blob, (1, &bytes_of(&x)), 0, (1.0, None));
        assert!(verdict.is_ok(), "{verdict:?}");
        for (row, y) in w.chunks(k).zip(y) {
            // What is not finite makes the sum of all that follows no number, times 0 as it is.
            let finite = row.iter().all(|w| w.is_finite());
            let same = if finite { y == row[place] } else { y.is_nan() || !y.is_finite() };
            assert!(same, "{} became {y}", row[place]);
        }
    }
}

/// `alpha`, `beta` and C.
#[test]
fn products_are_scaled_and_added_to() {
    let mut rng = Rng(93);
    for &(n, k, rows) in SHAPES {
        for &m in rows {
            let w: Vec<f32> = (0..n * k).map(|_| [1.0, 2.0, 0.5, -4.0, 8.0][rng.below(5)]).collect();
            let mut x = vec![0.0; (u64::from(m) * k) as usize];
            x.iter_mut().step_by(k as usize + 1).for_each(|x| *x = 1.0);
            let (blob, header) = blob_of(&bytes_of(&w), &[n, k], None);
            let mut c = Memory::holding(&bytes_of(&(0..n).map(|i| (i % 9) as f32).collect::<Vec<_>>()), 0);
            let addend = Addend { beta: -2.0, address: c.address(), row_stride: 0, column_stride: 1 };
            let (y, verdict) = multiply(&header, &blob, (m, &bytes_of(&x)), 3, (0.5, Some(addend)));
            assert!(verdict.is_ok());
            for (at, y) in y.into_iter().enumerate() {
                let (row, column) = (at / n as usize, at % n as usize);
                assert_eq!(
                    y,
                    0.5 * w[column * k as usize + row] - 2.0 * (column % 9) as f32,
                    "row {row}, column {column}"
                );
            }
        }
    }
}

/// A payload that changes under the header: whatever it has, no sum is of what is not there, and damage is told.
#[test]
fn damage_is_told() {
    let mut rng = Rng(94);
    let (mut told, mut zeros) = (0, 0);
    for round in 0..40 {
        let &(n, k, rows) = &SHAPES[round % SHAPES.len()];
        let m = rows[round % rows.len()];
        let src = tensor(Fill::Weights, Dtype::Bf16, (n * k) as usize, &mut rng);
        let (mut blob, header) = blob_of(&src, &[n, k], [None, Some(4), Some(2)][round % 3]);
        let payload = header.payload_offset();
        if round % 4 == 0 {
            let all = rng.bytes(blob.len() - payload);
            blob[payload..].copy_from_slice(&all);
        } else {
            // Codes of tier 0 alone: there are more escapes, or fewer.
            let record = header.record(rng.below(header.blocks().count() as usize));
            blob[record.start + rng.below(1024)] ^= 1 << rng.below(8);
        }
        let x = bytes_of(&vec![1.0; (u64::from(m) * k) as usize]);
        let (y, verdict) = multiply(&header, &blob, (m, &x), rng.next(), (1.0, None));
        told += usize::from(verdict.is_err());
        zeros += usize::from(verdict.is_err() && y.contains(&0.0));
    }
    assert!(told >= 10 && zeros > 0, "{told} of 40 were told, {zeros} gave zeros");
}
