//! The CUDA product kernels on the CPU against products with weights that the reference decoder gives.

mod common;

use common::deltas::{DeltaPlan, write_delta};
use common::device::{Memory, run, run_product};
use common::{DTYPES, Fill, Rng, encode_in_books, tensor};
use half::{bf16, f16};
use nz_onnx::codec::{self, EncodeOptions, GridStep, Profile, reference, word};
use nz_onnx::cuda::job::{DeltaMemory, DeviceDelta, DeviceWeight, WeightMemory};
use nz_onnx::cuda::product::Addend;
use nz_onnx::format::{Dtype, Header, Layout, TensorSpec};

fn to_bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let bytes = |value: f32| match dtype {
        Dtype::F32 => value.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::U8 | Dtype::I8 => vec![value as i8 as u8],
    };
    values.iter().flat_map(|&value| bytes(value)).collect()
}

fn to_floats(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let mut words = vec![0; bytes.len() / dtype.size()];
    word::load(dtype, bytes, &mut words);
    words.into_iter().map(f32::from_bits).collect()
}

/// Y of a product by the kernels, in `dtype`, and their verdict.
fn multiply(
    header: &Header,
    blob: &[u8],
    dtype: Dtype,
    m: u32,
    x: &[u8],
    seed: u64,
) -> (Vec<u8>, nz_onnx::error::Result<()>) {
    multiply_and_add((header, usize::MAX), blob, dtype, m, x, seed, (1.0, None))
}

/// The same with factor and addend.
fn multiply_and_add(
    (header, depth): (&Header, usize),
    blob: &[u8],
    dtype: Dtype,
    m: u32,
    x: &[u8],
    seed: u64,
    scaled: (f32, Option<Addend>),
) -> (Vec<u8>, nz_onnx::error::Result<()>) {
    let weight = DeviceWeight::to_depth(header, depth).expect("a header of ours");
    let product = weight.product(m).expect("few rows of a matrix");
    let n = header.spec.shape[usize::from(header.spec.layout != Layout::RowMajor)];
    let (mut table, mut blob) = (Memory::holding(weight.table(), 0), Memory::holding(blob, 4));
    let memory = WeightMemory { blob: blob.address(), table: table.address() };
    run_product(&product, (dtype, n as usize * m as usize), x, scaled, |operands| {
        for launch in product.launches(memory, operands).expect("aligned") {
            run(&launch, seed).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
    })
}

/// `[m, n]`: sums of `x[i, k] * w(k, j)` in float64, and of their magnitudes.
fn expected(spec: &TensorSpec, w: &[f32], x: &[f32], m: usize) -> Vec<(f64, f64)> {
    let (outer, inner) = (spec.shape[0] as usize, spec.shape[1] as usize);
    let (k, n) = if spec.layout == Layout::RowMajor { (inner, outer) } else { (outer, inner) };
    let weight = |i: usize, j: usize| {
        f64::from(if spec.layout == Layout::RowMajor { w[j * k + i] } else { w[i * n + j] })
    };
    let sum = |row: usize, j: usize| {
        let products = (0..k).map(|i| f64::from(x[row * k + i]) * weight(i, j));
        products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()))
    };
    (0..m * n).map(|at| sum(at / n, at % n)).collect()
}

/// Matrices in both orders: whole and ragged tiles and blocks, rows that are longer and shorter than what a warp decodes,
/// and such as begin anywhere.
fn specs(dtype: Dtype) -> Vec<TensorSpec> {
    let rows = [[40, 128], [3, 4096], [9, 1024], [17, 512], [2, 5000], [9, 700], [30, 97], [700, 3], [5, 1]];
    let tiles = [
        (48, 256, 256),
        (37, 512, 256),
        (50, 300, 256),
        (40, 128, 128),
        (33, 197, 128),
        (21, 64, 64),
        (60, 5, 64),
        (150, 64, 64),
        (90, 256, 128),
        (100, 256, 256),
    ];
    let rows = rows.iter().map(|shape| TensorSpec::row_major(dtype, shape));
    rows.chain(tiles.iter().map(|&(k, n, tile)| TensorSpec::column_tiles(dtype, k, n, tile))).collect()
}

/// Small integers, whose sums are exact in any order: the kernels have to give just these, in every type.
#[test]
fn exact_sums_are_exact() {
    let mut rng = Rng(80);
    for dtype in DTYPES {
        for spec in specs(dtype) {
            for m in [1, 2 + rng.below(7)] {
                let elements = spec.elements().expect("small") as usize;
                let k = if spec.layout == Layout::RowMajor { spec.shape[1] } else { spec.shape[0] } as usize;
                // Long sums of less often non-zero products: they stay below 256, which bfloat16 can hold.
                let rare = 1 + k / 64;
                let w: Vec<f32> = (0..elements).map(|_| rng.below(5) as f32 - 2.0).collect();
                let x: Vec<f32> = (0..m * k)
                    .map(|_| if rng.below(rare) == 0 { rng.below(3) as f32 - 1.0 } else { 0.0 })
                    .collect();
                let options = EncodeOptions {
                    block_len: [64, 320, 512, 1024, 4096, 4096, 4096][rng.below(7)],
                    profile: [Profile::Compact, Profile::Gpu][rng.below(2)],
                    ..Default::default()
                };
                let blob = codec::encode(&to_bytes(dtype, &w), &spec, &options).expect("encodes");
                let header = Header::parse(&blob).expect("whole");
                let sums: Vec<f32> = expected(&spec, &w, &x, m).iter().map(|&(sum, _)| sum as f32).collect();
                assert!(sums.iter().all(|sum| sum.abs() <= 256.0));
                for x_type in DTYPES {
                    let (y, verdict) = multiply(
                        &header,
                        &blob,
                        x_type,
                        m as u32,
                        &to_bytes(x_type, &x),
                        rng.next() % 2 * rng.next(),
                    );
                    let context =
                        format!("{spec:?}, blocks of {}, {m} rows of {x_type:?}", options.block_len);
                    assert!(verdict.is_ok(), "{context}: {verdict:?}");
                    assert_eq!(to_floats(x_type, &y), sums, "{context}");
                }
            }
        }
    }
}

/// Weights of all bits: within the rounding of sums in float32, and the same in every order of warps and lanes.
#[test]
fn real_sums_are_right_and_repeat() {
    let mut rng = Rng(81);
    let (mut grids, mut books) = (0, 0);
    for dtype in DTYPES {
        for spec in specs(dtype) {
            let m = [1, 2 + rng.below(7)][rng.below(2)];
            let fill = [Fill::Weights, Fill::Subnormals][rng.below(2)];
            let src = tensor(fill, dtype, spec.elements().expect("small") as usize, &mut rng);
            let mantissa_bits = [None, Some(3)][rng.below(2)];
            let grid = (fill == Fill::Weights && rng.below(2) == 0)
                .then(|| GridStep { cell: rng.below(4), raw_bits: rng.below(9) as u8 });
            let mantissa_bits = if grid.is_some() { None } else { mantissa_bits };
            let profile = [Profile::Compact, Profile::Gpu][rng.below(2)];
            let options = EncodeOptions { mantissa_bits, grid, profile, ..Default::default() };
            let step = GridStep { cell: rng.below(3), raw_bits: rng.below(3) as u8 };
            let in_books = (fill == Fill::Weights && rng.below(3) == 0)
                .then(|| encode_in_books(&src, &spec, &options, step).expect("finite weights"));
            books += usize::from(in_books.is_some());
            grids += usize::from(grid.is_some() && in_books.is_none());
            let blob = in_books.unwrap_or_else(|| codec::encode(&src, &spec, &options).expect("encodes"));
            let header = Header::parse(&blob).expect("whole");
            let w = to_floats(dtype, &reference::decode(&blob).expect("whole"));
            let k = if spec.layout == Layout::RowMajor { spec.shape[1] } else { spec.shape[0] } as usize;
            let x: Vec<f32> = (0..m * k).map(|_| rng.weight() * 50.0).collect();
            let bytes = to_bytes(Dtype::F32, &x);
            let (y, verdict) = multiply(&header, &blob, Dtype::F32, m as u32, &bytes, 0);
            assert!(verdict.is_ok(), "{spec:?}: {verdict:?}");
            for (y, (sum, size)) in to_floats(Dtype::F32, &y).into_iter().zip(expected(&spec, &w, &x, m)) {
                let bound = size * k as f64 * f64::from(f32::EPSILON) + 1e-40;
                assert!((f64::from(y) - sum).abs() <= bound, "{spec:?} {fill:?}: {y} and not {sum}");
            }
            for seed in 1..4 {
                assert!(
                    multiply(&header, &blob, Dtype::F32, m as u32, &bytes, seed).0 == y,
                    "{spec:?}, seed {seed}"
                );
            }
        }
    }
    assert!(grids > 5 && books > 5, "only {grids} weights on grids, {books} of codebooks");
}

/// `alpha`, `beta` and a `C` of every shape that spreads over Y.
#[test]
fn products_are_scaled_and_added_to() {
    let mut rng = Rng(84);
    for spec in
        [TensorSpec::row_major(Dtype::F32, &[70, 300]), TensorSpec::column_tiles(Dtype::F32, 300, 70, 64)]
    {
        for (x_type, m, (c_rows, c_columns)) in
            DTYPES.into_iter().flat_map(|t| [(1, 1), (1, 70), (3, 1), (3, 70)].map(|c| (t, 3, c)))
        {
            let w: Vec<f32> = (0..21_000).map(|_| rng.below(3) as f32 - 1.0).collect();
            let x: Vec<f32> = (0..m * 300).map(|_| (rng.below(9) == 0) as u8 as f32).collect();
            let c: Vec<f32> = (0..c_rows * c_columns).map(|_| rng.below(9) as f32 - 4.0).collect();
            let blob =
                codec::encode(&to_bytes(Dtype::F32, &w), &spec, &EncodeOptions::default()).expect("encodes");
            let mut c_memory = Memory::holding(&to_bytes(x_type, &c), 0);
            let addend = Addend {
                beta: -2.0,
                address: c_memory.address(),
                row_stride: if c_rows == 1 { 0 } else { c_columns },
                column_stride: u64::from(c_columns != 1),
            };
            let header = Header::parse(&blob).expect("whole");
            let x_bytes = to_bytes(x_type, &x);
            let (y, verdict) = multiply_and_add(
                (&header, usize::MAX),
                &blob,
                x_type,
                m as u32,
                &x_bytes,
                5,
                (0.5, Some(addend)),
            );
            assert!(verdict.is_ok());
            let sums = expected(&spec, &w, &x, m);
            let wanted: Vec<f32> = sums
                .iter()
                .enumerate()
                .map(|(at, &(sum, _))| {
                    let place =
                        at / 70 * addend.row_stride as usize + at % 70 * addend.column_stride as usize;
                    0.5 * sum as f32 - 2.0 * c[place]
                })
                .collect();
            assert_eq!(to_floats(x_type, &y), wanted, "{spec:?} {x_type:?} C [{c_rows}, {c_columns}]");
        }
    }
}

/// Every float16 and a sweep of bfloat16 and float32 come through as operand and result: a product with 1.
#[test]
fn operands_are_read_and_rounded_right() {
    let one = TensorSpec::row_major(Dtype::F32, &[1, 1]);
    let rows = 8;
    let multiply_by = |w: f32, x_type: Dtype, x: &[u8]| {
        let blob = codec::encode(&w.to_le_bytes(), &one, &EncodeOptions::default()).expect("encodes");
        multiply(&Header::parse(&blob).expect("whole"), &blob, x_type, rows, x, 0).0
    };
    // A column of 8 values at a time is slow; values that differ in kind are few.
    let mut rng = Rng(82);
    for round in 0..400 {
        for x_type in [Dtype::F16, Dtype::Bf16] {
            let mantissa = u32::from(x_type.mantissa_bits());
            let bits: Vec<u16> = (0..rows)
                .map(|_| match rng.below(4) {
                    0 => (rng.next() as u16) & !(((1 << (15 - mantissa)) - 1) << mantissa), // subnormals
                    1 => (rng.next() as u16) | ((1 << (15 - mantissa)) - 1) << mantissa,    // infinities, NaN
                    _ => rng.next() as u16,
                })
                .collect();
            let x: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
            // 1, and factors that make results which have to be rounded, or are too small or too great.
            let w = [1.0, 1.0 / 3.0, 1.0009766, 3e-5, 7e4][round % 5];
            let y = multiply_by(w, x_type, &x);
            for (x, y) in to_floats(x_type, &x).into_iter().zip(to_floats(x_type, &y)) {
                let product = to_floats(x_type, &to_bytes(x_type, &[x * w]))[0];
                // The sums start with 0, so that none is -0.
                assert!(y == product || y.is_nan() && product.is_nan(), "{x} * {w} = {y}, not {product}");
            }
        }
    }
}

/// At every depth of layers, with weights as the reference decoder has them there.
#[test]
fn products_of_layers_are_those_of_their_weights() {
    let mut rng = Rng(85);
    let mut met = 0;
    for dtype in DTYPES {
        for spec in specs(dtype) {
            let src = tensor(Fill::Weights, dtype, spec.elements().expect("small") as usize, &mut rng);
            let grid = (rng.below(3) == 0).then_some(GridStep { cell: 1, raw_bits: 7 });
            let profile = [Profile::Compact, Profile::Gpu][rng.below(2)];
            let plain = EncodeOptions { grid, profile, ..Default::default() };
            let plain = codec::encode(&src, &spec, &plain).expect("encodes");
            let ends: &[u8] = [&[2, 5][..], &[3], &[1, 4, 6]][rng.below(3)];
            let Some(blob) = codec::layer(&plain, ends).expect("whole") else { continue };
            let header = Header::parse(&blob).expect("whole");
            let k = if spec.layout == Layout::RowMajor { spec.shape[1] } else { spec.shape[0] } as usize;
            for depth in 0..=header.layers.len() {
                // Float32 weights with layers and a product together may be too much for shared memory.
                let weight = DeviceWeight::to_depth(&header, depth).expect("a header of ours");
                let m = [1, 2 + rng.below(7)][rng.below(2)];
                if weight.product(m as u32).is_err() {
                    continue;
                }
                let w = to_floats(dtype, &reference::decode_to(&blob, depth).expect("whole"));
                let x: Vec<f32> = (0..m * k).map(|_| rng.weight() * 50.0).collect();
                let bytes = to_bytes(Dtype::F32, &x);
                let (one, depth) = ((1.0, None), (&header, depth));
                let (y, verdict) =
                    multiply_and_add(depth, &blob, Dtype::F32, m as u32, &bytes, rng.next(), one);
                assert!(verdict.is_ok(), "{spec:?}: {verdict:?}");
                for (y, (sum, size)) in to_floats(Dtype::F32, &y).into_iter().zip(expected(&spec, &w, &x, m))
                {
                    let bound = size * k as f64 * f64::from(f32::EPSILON) + 1e-40;
                    assert!((f64::from(y) - sum).abs() <= bound, "{spec:?}: {y} and not {sum}");
                }
                met += 1;
            }
        }
    }
    assert!(met > 60, "only {met} products");
}

/// Y of a product with a delta to the blob `base`, in `dtype`, and the kernels' verdict; none if it has to be decoded.
fn multiply_delta(
    blobs: [&[u8]; 2],
    dtype: Dtype,
    m: u32,
    x: &[u8],
    seed: u64,
) -> Option<(Vec<u8>, nz_onnx::error::Result<()>)> {
    let headers = blobs.map(|blob| Header::parse(blob).expect("whole"));
    let delta = DeviceDelta::new(&headers[0], &headers[1]).expect("headers of ours");
    let product = delta.weight().product(m).ok()?;
    let spec = &headers[0].spec;
    let n = spec.shape[usize::from(spec.layout != Layout::RowMajor)];
    let mut table = Memory::holding(delta.table(), 0);
    let [mut blob, mut base] =
        [(blobs[0], 4), (blobs[1], 8)].map(|(blob, shift)| Memory::holding(blob, shift));
    let memory = DeltaMemory { blob: blob.address(), table: table.address(), base: base.address() };
    Some(run_product(&product, (dtype, n as usize * m as usize), x, (1.0, None), |operands| {
        let (parts, sum) = delta.multiply(memory, &product, operands).expect("aligned");
        run(&parts, seed).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        run(&sum, seed).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }))
}

/// Small integers, so that sums are exact in any order, as deltas to other small integers: by the codec, and by a writer that
/// takes any lengths of blocks and tiers.
#[test]
fn products_of_deltas_are_exact() {
    let mut rng = Rng(86);
    let mut met = 0;
    for dtype in DTYPES {
        for spec in specs(dtype) {
            let elements = spec.elements().expect("small") as usize;
            let k = if spec.layout == Layout::RowMajor { spec.shape[1] } else { spec.shape[0] } as usize;
            let rare = 1 + k / 64;
            let w: Vec<f32> = (0..elements).map(|_| rng.below(5) as f32 - 2.0).collect();
            let base: Vec<f32> = w.iter().map(|w| w + (rng.below(4) == 0) as u8 as f32).collect();
            let options = EncodeOptions {
                block_len: [64, 320, 1024, 4096, 4096][rng.below(5)],
                profile: [Profile::Compact, Profile::Gpu][rng.below(2)],
                ..Default::default()
            };
            let base = codec::encode(&to_bytes(dtype, &base), &spec, &options).expect("encodes");
            let plan = DeltaPlan::random(&mut rng);
            for delta in [
                codec::encode_delta_to_blob(&to_bytes(dtype, &w), &base).expect("encodes"),
                write_delta(&to_bytes(dtype, &w), &base, &plan),
            ] {
                let m = [1, 2 + rng.below(7)][rng.below(2)];
                let x: Vec<f32> = (0..m * k)
                    .map(|_| if rng.below(rare) == 0 { rng.below(3) as f32 - 1.0 } else { 0.0 })
                    .collect();
                let sums: Vec<f32> = expected(&spec, &w, &x, m).iter().map(|&(sum, _)| sum as f32).collect();
                let x_type = DTYPES[rng.below(3)];
                let (seed, blobs) = (rng.next() % 2 * rng.next(), [&delta[..], &base[..]]);
                let found = multiply_delta(blobs, x_type, m as u32, &to_bytes(x_type, &x), seed);
                let Some((y, verdict)) = found else { continue };
                let context = format!("{spec:?}, {options:?}, {plan:?}, {m} rows of {x_type:?}");
                assert!(verdict.is_ok(), "{context}: {verdict:?}");
                assert_eq!(to_floats(x_type, &y), sums, "{context}");
                met += 1;
            }
        }
    }
    assert!(met > 90, "only {met} products");
}

#[test]
fn damaged_deltas_are_told_by_products() {
    let mut rng = Rng(87);
    for spec in
        [TensorSpec::row_major(Dtype::F16, &[9, 700]), TensorSpec::column_tiles(Dtype::F16, 50, 300, 256)]
    {
        let elements = spec.elements().expect("small") as usize;
        let [weights, src] = [(); 2].map(|()| tensor(Fill::Weights, Dtype::F16, elements, &mut rng));
        let base = codec::encode(&weights, &spec, &EncodeOptions::default()).expect("encodes");
        let delta = codec::encode_delta_to_blob(&src, &base).expect("encodes");
        for which in 0..2 {
            let mut blobs = [delta.clone(), base.clone()];
            let record = Header::parse(&blobs[which]).expect("whole").record(1);
            blobs[which][record].fill(0xff);
            for m in [1, 5] {
                let x = vec![0; 2 * 700 * m as usize];
                let found = multiply_delta([&blobs[0], &blobs[1]], Dtype::F16, m, &x, 1);
                let (_, verdict) = found.expect("a product");
                assert!(verdict.expect_err("damaged").to_string().contains("damaged"), "{spec:?}");
            }
        }
    }
}

#[test]
fn damaged_records_are_told() {
    let mut rng = Rng(83);
    for spec in
        [TensorSpec::row_major(Dtype::F16, &[9, 700]), TensorSpec::column_tiles(Dtype::F16, 50, 300, 256)]
    {
        let src = tensor(Fill::Weights, Dtype::F16, spec.elements().expect("small") as usize, &mut rng);
        let mut blob = codec::encode(&src, &spec, &EncodeOptions::default()).expect("encodes");
        let header = Header::parse(&blob).expect("whole");
        let record = header.record(1);
        blob[record].fill(0xff);
        for m in [1, 5] {
            let x = vec![0; 2 * 700 * m as usize];
            let (_, verdict) = multiply(&header, &blob, Dtype::F16, m, &x, 1);
            assert!(verdict.expect_err("damaged").to_string().contains("damaged"), "{spec:?}");
        }
    }
}

#[test]
fn what_cannot_be_multiplied_is_refused() {
    let weight = |spec: &TensorSpec| {
        let src = vec![0; spec.bytes().expect("small") as usize];
        let blob = codec::encode(&src, spec, &EncodeOptions::default()).expect("encodes");
        DeviceWeight::new(&Header::parse(&blob).expect("whole")).expect("a header of ours")
    };
    let matrix = weight(&TensorSpec::row_major(Dtype::F32, &[4, 4]));
    assert!(matrix.product(8).is_ok() && matrix.product(0).is_err() && matrix.product(9).is_err());
    assert!(weight(&TensorSpec::row_major(Dtype::F32, &[4, 4, 4])).product(1).is_err());
    let wide = weight(&TensorSpec::column_tiles(Dtype::F32, 4, 1000, 512));
    assert!(matches!(wide.product(1), Err(nz_onnx::error::Error::Unsupported(_))));
}
