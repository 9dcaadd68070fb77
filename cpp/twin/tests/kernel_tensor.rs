//! The product kernels with tensor cores on the CPU against products with weights that the reference decoder gives. What a
//! GPU's tensor cores round, and when, these tests leave open.

mod common;

use common::device::{Memory, run, run_product};
use common::{Fill, Rng, tensor};
use half::bf16;
use nz_onnx::codec::{self, EncodeOptions, Profile, reference};
use nz_onnx::cuda::job::{DeviceWeight, Kernel, WeightMemory};
use nz_onnx::cuda::product::Addend;
use nz_onnx::format::{Dtype, Header, Layout, TensorSpec};

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
    scaled: (f32, Option<Addend>),
) -> (Vec<f32>, nz_onnx::error::Result<()>) {
    multiply_in_parts(header, blob, (m, x), seed, scaled, 1)
}

/// The same with thread blocks that have `times` as many blocks of a tile.
fn multiply_in_parts(
    header: &Header,
    blob: &[u8],
    (m, x): (u32, &[u8]),
    seed: u64,
    scaled: (f32, Option<Addend>),
    times: u32,
) -> (Vec<f32>, nz_onnx::error::Result<()>) {
    let weight = DeviceWeight::new(header).expect("a header of ours");
    let product = weight.tensor_product(m, Dtype::Bf16).expect("a product with tensor cores");
    let (mut table, mut blob) = (Memory::holding(weight.table(), 0), Memory::holding(blob, 4));
    let memory = WeightMemory { blob: blob.address(), table: table.address() };
    let (_, n) = k_and_n(&header.spec);
    let (y, verdict) = run_product(&product, (Dtype::Bf16, n * m as usize), x, scaled, |operands| {
        for mut launch in product.launches(memory, operands).expect("aligned") {
            if times > 1 {
                launch.arguments.split_blocks *= times;
                launch.arguments.splits = launch.arguments.splits.div_ceil(times);
                if launch.kernel != Kernel::Sum {
                    launch.grid.0 = launch.arguments.splits;
                }
            }
            run(&launch, seed).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
    });
    (floats_of(&y), verdict)
}

/// `[m, n]`: sums of `x[i, k] * w[j, k]` in float64, and of their magnitudes.
fn expected(w: &[f32], x: &[f32], k: usize) -> Vec<(f64, f64)> {
    let sum = |(x, w): (&[f32], &[f32])| {
        let products = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w));
        products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()))
    };
    x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| sum((x, w)))).collect()
}

fn k_and_n(spec: &TensorSpec) -> (usize, usize) {
    let [outer, inner] = [spec.shape[0] as usize, spec.shape[1] as usize];
    if spec.layout == Layout::RowMajor { (inner, outer) } else { (outer, inner) }
}

/// Elements of a tensor from those of `[n, k]`, or back.
fn transposed<T: Copy>(elements: &[T], row_len: usize) -> Vec<T> {
    (0..elements.len())
        .map(|i| elements[i % (elements.len() / row_len) * row_len + i / (elements.len() / row_len)])
        .collect()
}

/// The tensor of weights `[n, k]`.
fn stored(spec: &TensorSpec, w: &[f32]) -> Vec<u8> {
    match spec.layout {
        Layout::RowMajor => bytes_of(w),
        Layout::ColumnTiles { .. } => bytes_of(&transposed(w, k_and_n(spec).0)),
    }
}

/// Weights `[n, k]` of the tensor.
fn weights(spec: &TensorSpec, src: &[u8]) -> Vec<f32> {
    match spec.layout {
        Layout::RowMajor => floats_of(src),
        Layout::ColumnTiles { .. } => transposed(&floats_of(src), k_and_n(spec).1),
    }
}

/// Weights, and rows of X that there are kernels for.
fn shapes() -> Vec<(TensorSpec, &'static [u32])> {
    let rows: [([u64; 2], &[u32]); 9] = [
        ([5, 4096], &[1, 9, 64]),
        ([17, 4096], &[33]),
        ([3, 8192], &[1, 2, 16]),
        ([16, 512], &[1]),
        ([4, 1024], &[1, 32]),
        ([72, 1024], &[8]),
        ([18, 2048], &[17]),
        ([8, 1536], &[1]),
        ([4, 5120], &[1]),
    ];
    // Tiles of each width, the last as wide as the others or not; fewer and more blocks than a thread block has warps.
    let tiles: [(u64, u64, u32, &[u32]); 11] = [
        (16, 256, 256, &[1, 2, 8]),
        (272, 256, 256, &[1, 9]),
        (48, 512, 256, &[1, 16, 17]),
        (528, 768, 256, &[1, 32]),
        (288, 384, 256, &[1]),
        (64, 320, 256, &[1]),
        (64, 64, 256, &[1]),
        (192, 128, 128, &[1]),
        (64, 192, 128, &[1]),
        (320, 64, 64, &[1]),
        (128, 192, 64, &[1]),
    ];
    let rows = rows.map(|(shape, rows)| (TensorSpec::row_major(Dtype::Bf16, &shape), rows));
    let tiles = tiles.map(|(k, n, tile, rows)| (TensorSpec::column_tiles(Dtype::Bf16, k, n, tile), rows));
    rows.into_iter().chain(tiles).collect()
}

/// How many times more blocks a thread block is given.
fn parts_of(spec: &TensorSpec) -> &'static [u32] {
    if spec.layout == Layout::RowMajor { &[1] } else { &[1, 2, 3] }
}

fn options(mantissa_bits: Option<u8>) -> EncodeOptions {
    EncodeOptions { profile: Profile::Gpu, mantissa_bits, ..Default::default() }
}

/// A blob of weights of the usual kind, with any mantissa bits, and its header, of two tiers.
fn blob_of(src: &[u8], spec: &TensorSpec, mantissa_bits: Option<u8>) -> (Vec<u8>, Header) {
    let blob = codec::encode(src, spec, &options(mantissa_bits));
    let blob = blob.expect("encodes");
    let header = Header::parse(&blob).expect("whole");
    assert_eq!(header.tiers.iter().map(|tier| tier.width).collect::<Vec<_>>(), [2, 2]);
    (blob, header)
}

/// Small numbers, whose sums are exact in any order.
#[test]
fn exact_sums_are_exact() {
    let mut rng = Rng(90);
    for (spec, rows) in shapes() {
        let (k, n) = k_and_n(&spec);
        for &m in rows {
            // Of many exponents, so that there are escapes of escapes.
            let value = |rng: &mut Rng| {
                let magnitude = [1.0, 0.5, 2.0, 1.5, 4.0, 0.25, 8.0, 0.125][rng.below(8) * rng.below(8) / 7];
                if rng.below(2) == 0 { magnitude } else { -magnitude }
            };
            let w: Vec<f32> = (0..n * k).map(|_| value(&mut rng)).collect();
            let x: Vec<f32> = (0..m as usize * k)
                .map(|_| if rng.below(k.div_ceil(8)) == 0 { [1.0, -1.0, 2.0][rng.below(3)] } else { 0.0 })
                .collect();
            let (blob, header) = blob_of(&stored(&spec, &w), &spec, None);
            let sums = expected(&w, &x, k);
            let sums: Vec<f32> = sums.iter().map(|&(sum, _)| bf16::from_f64(sum).to_f32()).collect();
            for &times in parts_of(&spec) {
                for seed in 0..2 {
                    let x = bytes_of(&x);
                    let (y, verdict) = multiply_in_parts(&header, &blob, (m, &x), seed, (1.0, None), times);
                    assert!(verdict.is_ok(), "{spec:?}, {m} rows: {verdict:?}");
                    assert_eq!(y, sums, "{spec:?}, {m} rows, {times} parts at once");
                }
            }
        }
    }
}

/// Weights of all bits and with any number of mantissa bits: within the rounding of sums in float32 and of the result, and the
/// same in every order of warps and lanes.
#[test]
fn real_sums_are_right_and_repeat() {
    let mut rng = Rng(91);
    for (spec, rows) in shapes() {
        let (k, n) = k_and_n(&spec);
        for &m in rows {
            for mantissa_bits in [None, Some(4), Some([0, 1, 2, 3, 5, 6][rng.below(6)])] {
                let src = tensor(Fill::Weights, Dtype::Bf16, n * k, &mut rng);
                let (blob, header) = blob_of(&src, &spec, mantissa_bits);
                let w = weights(&spec, &reference::decode(&blob).expect("whole"));
                let x = bytes_of(&(0..m as usize * k).map(|_| rng.weight() * 50.0).collect::<Vec<_>>());
                let times = parts_of(&spec)[rng.below(parts_of(&spec).len())];
                let context = format!("{spec:?}, {m} rows, {mantissa_bits:?} bits, {times} parts at once");
                let multiply = |seed| multiply_in_parts(&header, &blob, (m, &x), seed, (1.0, None), times);
                let (y, verdict) = multiply(0);
                assert!(verdict.is_ok(), "{context}: {verdict:?}");
                for (i, (&y, (sum, size))) in y.iter().zip(expected(&w, &floats_of(&x), k)).enumerate() {
                    assert!(is_near(y, sum, size, k), "{context}, {i}: {y} and not {sum}");
                }
                for seed in 1..3 {
                    let again = multiply(seed).0;
                    assert!(again.iter().zip(&y).all(|(a, b)| a.to_bits() == b.to_bits()), "{context}");
                }
            }
        }
    }
}

/// Whether a sum of `k` products is right but for what float32 rounds, and the result's own rounding.
fn is_near(y: f32, sum: f64, size: f64, k: usize) -> bool {
    if !sum.is_finite() {
        return if sum.is_nan() { y.is_nan() } else { f64::from(y) == sum };
    }
    let bound = size * k as f64 * f64::from(f32::EPSILON) + sum.abs() / 256.0 + 1e-40;
    (f64::from(y) - sum).abs() <= bound
}

/// A weight with each pattern of bits once, multiplied with a row of X that has a 1 in each place in turn, is what it was: also
/// subnormals, infinities and NaN.
#[test]
fn every_weight_comes_through() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut rng = Rng(92);
    for (spec, m) in [
        (TensorSpec::row_major(Dtype::Bf16, &[1024, 512]), 1),
        (TensorSpec::column_tiles(Dtype::Bf16, 512, 1024, 256), 1),
        (TensorSpec::column_tiles(Dtype::Bf16, 512, 1024, 128), 1),
        (TensorSpec::column_tiles(Dtype::Bf16, 512, 1024, 64), 1),
        (TensorSpec::column_tiles(Dtype::Bf16, 512, 4096, 256), 5),
    ] {
        let (k, n) = k_and_n(&spec);
        // Most are of few exponents, so that there is something to code; and all that there are.
        let rare = n * k / (1 << 16);
        let src: Vec<u8> = (0..n * k)
            .flat_map(|i| {
                let pattern = i / rare;
                if i % rare == pattern % rare {
                    all[pattern * 2..][..2].to_vec()
                } else {
                    tensor(Fill::Weights, Dtype::Bf16, 1, &mut rng)
                }
            })
            .collect();
        let w = floats_of(&src);
        let tensor = match spec.layout {
            Layout::RowMajor => src.clone(),
            // By their bits: those that are no numbers, too.
            _ => {
                let bits: Vec<[u8; 2]> = src.chunks(2).map(|two| [two[0], two[1]]).collect();
                transposed(&bits, k).concat()
            }
        };
        let (blob, header) = blob_of(&tensor, &spec, None);
        let places: Vec<usize> = (0..k).step_by(9 * 13).collect();
        for places in places.chunks(m) {
            let mut x = vec![0.0; m * k];
            places.iter().enumerate().for_each(|(row, place)| x[row * k + place] = 1.0);
            let (y, verdict) = multiply(&header, &blob, (m as u32, &bytes_of(&x)), 0, (1.0, None));
            assert!(verdict.is_ok(), "{verdict:?}");
            for (row_of_x, place) in places.iter().enumerate() {
                for (row, y) in w.chunks(k).zip(&y[row_of_x * n..]) {
                    // What is not finite makes the sum of all that follows no number, times 0 as it is.
                    let finite = row.iter().all(|w| w.is_finite());
                    let same = if finite { *y == row[*place] } else { y.is_nan() || !y.is_finite() };
                    assert!(same, "{spec:?}: {} became {y}", row[*place]);
                }
            }
        }
    }
}

/// Infinities and what is no number, in weights and in X, are in the sums that they belong to, and in no others.
#[test]
fn what_is_not_finite_stays_in_its_sums() {
    let mut rng = Rng(95);
    let (mut infinite, mut none, mut whole) = (0, 0, 0);
    for (spec, rows) in shapes() {
        let (k, n) = k_and_n(&spec);
        for &m in rows {
            let mut w: Vec<f32> = (0..n * k).map(|_| bf16::from_f32(rng.weight()).to_f32()).collect();
            for _ in 0..1 + rng.below(n / 2) {
                let value = [f32::INFINITY, f32::NEG_INFINITY, f32::INFINITY, f32::NAN][rng.below(4)];
                w[rng.below(n * k)] = value;
            }
            // Greater than 0, so that an infinity is one in the sum.
            let mut x: Vec<f32> = (0..m as usize * k).map(|_| 1.0 + rng.below(64) as f32 / 64.0).collect();
            if rng.below(3) == 0 {
                // Where a weight is infinite, too.
                let place = rng.below(k);
                x[place] = [f32::INFINITY, f32::NAN, 0.0][rng.below(3)];
                w[rng.below(n) * k + place] = f32::NEG_INFINITY;
            }
            let (blob, header) = blob_of(&stored(&spec, &w), &spec, None);
            for &times in parts_of(&spec) {
                let seed = rng.next();
                let (y, verdict) =
                    multiply_in_parts(&header, &blob, (m, &bytes_of(&x)), seed, (1.0, None), times);
                assert!(verdict.is_ok(), "{spec:?}, {m} rows: {verdict:?}");
                for (i, (&y, (sum, size))) in y.iter().zip(expected(&w, &x, k)).enumerate() {
                    assert!(is_near(y, sum, size, k), "{spec:?}, {m} rows, {i}: {y} and not {sum}");
                    infinite += usize::from(sum.is_infinite());
                    none += usize::from(sum.is_nan());
                    whole += usize::from(sum.is_finite());
                }
            }
        }
    }
    assert!(
        infinite > 100 && none > 100 && whole > 1000,
        "{infinite} infinities, {none} NaN, {whole} others"
    );
}

/// `alpha`, `beta` and C.
#[test]
fn products_are_scaled_and_added_to() {
    let mut rng = Rng(93);
    for (spec, rows) in shapes() {
        let (k, n) = k_and_n(&spec);
        for &m in rows {
            let w: Vec<f32> = (0..n * k).map(|_| [1.0, 2.0, 0.5, -4.0, 8.0][rng.below(5)]).collect();
            let places: Vec<usize> = (0..m as usize).map(|_| rng.below(k)).collect();
            let mut x = vec![0.0; m as usize * k];
            places.iter().enumerate().for_each(|(row, place)| x[row * k + place] = 1.0);
            let (blob, header) = blob_of(&stored(&spec, &w), &spec, None);
            let mut c = Memory::holding(&bytes_of(&(0..n).map(|i| (i % 9) as f32).collect::<Vec<_>>()), 0);
            let addend = Addend { beta: -2.0, address: c.address(), row_stride: 0, column_stride: 1 };
            let (y, verdict) = multiply(&header, &blob, (m, &bytes_of(&x)), 3, (0.5, Some(addend)));
            assert!(verdict.is_ok());
            for (at, y) in y.into_iter().enumerate() {
                let (row, column) = (at / n, at % n);
                let sum = 0.5 * w[column * k + places[row]] - 2.0 * (column % 9) as f32;
                assert_eq!(y, sum, "{spec:?}, row {row}, column {column}");
            }
        }
    }
}

/// A payload that changes under the header: whatever it has, no sum is of what is not there, and damage is told.
#[test]
fn damage_is_told() {
    let mut rng = Rng(94);
    let shapes = shapes();
    let (mut told, mut zeros) = (0, 0);
    for round in 0..80 {
        let (spec, rows) = &shapes[round % shapes.len()];
        let (k, n) = k_and_n(spec);
        let m = rows[round % rows.len()];
        let src = tensor(Fill::Weights, Dtype::Bf16, n * k, &mut rng);
        let (mut blob, header) = blob_of(&src, spec, [None, Some(4), Some(2)][round % 3]);
        let payload = header.payload_offset();
        if round % 4 == 0 {
            let all = rng.bytes(blob.len() - payload);
            blob[payload..].copy_from_slice(&all);
        } else {
            // Codes of tier 0 alone: there are more escapes, or fewer.
            let record = header.record(rng.below(header.blocks().count() as usize));
            blob[record.start + rng.below(1024)] ^= 1 << rng.below(8);
        }
        let x = bytes_of(&vec![1.0; m as usize * k]);
        let (y, verdict) = multiply(&header, &blob, (m, &x), rng.next(), (1.0, None));
        told += usize::from(verdict.is_err());
        zeros += usize::from(verdict.is_err() && y.contains(&0.0));
    }
    assert!(told >= 20 && zeros > 0, "{told} of 80 were told, {zeros} gave zeros");
}

/// Tiles that have no kernel with tensor cores keep to the others.
#[test]
fn other_tiles_have_none() {
    for (k, n, tile, m, is_there) in [
        (4096, 200, 256, 1, false),
        (4096, 256, 256, 1, true),
        (4096, 256, 256, 32, true),
        (4096, 256, 256, 33, false),
        (4096, 384, 256, 1, true),
        (4096, 384, 256, 2, false),
        (4096, 192, 192, 1, false),
        (4096, 1024, 512, 1, false),
        // A tile's last block is not whole.
        (40, 512, 256, 1, false),
    ] {
        let spec = TensorSpec::column_tiles(Dtype::Bf16, k, n, tile);
        let src = tensor(Fill::Weights, Dtype::Bf16, (k * n) as usize, &mut Rng(96));
        let (_, header) = blob_of(&src, &spec, None);
        let weight = DeviceWeight::new(&header).expect("a header of ours");
        assert_eq!(weight.tensor_product(m, Dtype::Bf16).is_some(), is_there, "{spec:?}, {m} rows");
        assert!(weight.tensor_product(m, Dtype::F16).is_none(), "only bfloat16");
    }
}
