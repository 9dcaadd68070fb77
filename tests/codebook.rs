//! Codebooks: both decoders agree on every backend, products too; damage is found; k-means pays.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{DTYPES, Kind, Rng, tensor};
use nz_onnx::arch::Backend;
use nz_onnx::codec::{self, Decoder, EncodeOptions, GridStep, reference};
use nz_onnx::format::{Dtype, Header, TensorSpec, Transform, payload_hash};

const COARSE: GridStep = GridStep { cell: 0, raw_bits: 1 };

fn encode(src: &[u8], spec: &TensorSpec, step: GridStep) -> Vec<u8> {
    let options = EncodeOptions::default();
    let survey = codec::survey_codebooks(src, spec, &options).unwrap().unwrap();
    let coding = survey.coding(step);
    let blob = codec::encode_as(src, spec, options.block_len, &coding).unwrap();
    assert!(blob.len() as u64 <= coding.size(), "{} foreseen, {} came out", coding.size(), blob.len());
    blob
}

fn specs(dtype: Dtype) -> [TensorSpec; 4] {
    [
        TensorSpec::row_major(dtype, &[5, 1000]),
        TensorSpec::row_major(dtype, &[96, 256]),
        TensorSpec::column_tiles(dtype, 40, 150, 128),
        TensorSpec::column_tiles(dtype, 130, 192, 128),
    ]
}

#[test]
fn all_decoders_agree() {
    for dtype in DTYPES {
        let more = [[24, 512], [3, 4096]].map(|shape| TensorSpec::row_major(dtype, &shape));
        for spec in specs(dtype).into_iter().chain(more) {
            let src = tensor(Kind::Gauss, dtype, spec.elements().unwrap() as usize, 11);
            for step in [GridStep { cell: 0, raw_bits: 0 }, COARSE, GridStep { cell: 2, raw_bits: 3 }] {
                let blob = encode(&src, &spec, step);
                let header = Header::parse(&blob).unwrap();
                assert_eq!((header.transform, header.minor), (Transform::Codebook, 2));
                assert!(!header.is_lossless());
                let expected = reference::decode(&blob).unwrap();
                for backend in Backend::available() {
                    let decoder = Decoder::with_backend(&blob, backend).unwrap();
                    let at = format!("{} {spec:?}", backend.name);
                    assert!(decoder.decode_bytes(&blob).unwrap() == expected, "{at}");
                }
            }
        }
    }
}

/// A product fused with decoding is that with decoded weights, bit for bit in the order of rows.
#[test]
fn products_are_those_of_decoded_weights() {
    let mut rng = Rng(3);
    for dtype in DTYPES {
        let tiles = TensorSpec::column_tiles(dtype, 128, 128, 128);
        let src = tensor(Kind::Gauss, dtype, 128 * 128, 5);
        let blob = encode(&src, &tiles, COARSE);
        let decoder = Decoder::open(&blob).unwrap();
        let mut weights = vec![0f32; 128 * 128];
        decoder.decode_f32(&blob, 0, &mut weights).unwrap();
        let x: Vec<f32> = (0..128).map(|_| rng.gauss()).collect();
        let (mut found, mut expected) = (vec![0f32; 128], vec![0f32; 128]);
        if decoder.multiply_rows(&blob, 0, &x, &mut found).unwrap() {
            for (row, &x) in weights.chunks(128).zip(&x) {
                expected.iter_mut().zip(row).for_each(|(y, &w)| *y = x.mul_add(w, *y));
            }
            assert!(found == expected, "{dtype:?}");
        }
        let blob = encode(&src, &TensorSpec::row_major(dtype, &[128, 128]), COARSE);
        let decoder = Decoder::open(&blob).unwrap();
        decoder.decode_f32(&blob, 0, &mut weights).unwrap();
        let mut found = vec![0f32; 128];
        if decoder.multiply_columns(&blob, 0, &x, &mut found).unwrap() {
            for (row, y) in weights.chunks(128).zip(&found) {
                let exact: f64 = row.iter().zip(&x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                assert!((exact - f64::from(*y)).abs() < 1e-5, "{dtype:?}: {y} for {exact}");
            }
        }
    }
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let spec = TensorSpec::column_tiles(Dtype::F32, 512, 256, 128);
    let src = tensor(Kind::Gauss, Dtype::F32, 512 * 256, 3);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| encode(&src, &spec, COARSE))
    };
    assert!(with(1) == with(3));
}

/// Signal over noise, in decibels, and bits a weight.
fn quality(src: &[u8], spec: &TensorSpec, blob: &[u8]) -> (f64, f64) {
    let value = |b: &[u8]| f64::from(f32::from_le_bytes(b.try_into().unwrap()));
    let decoded = codec::decode(blob).unwrap();
    let (mut energy, mut noise) = (0.0, 0.0);
    for (a, b) in src.chunks_exact(4).zip(decoded.chunks_exact(4)) {
        energy += value(a).powi(2);
        noise += (value(a) - value(b)).powi(2);
    }
    (10.0 * (energy / noise).log10(), 8.0 * blob.len() as f64 / spec.elements().unwrap() as f64)
}

#[test]
fn foreseen_noise_is_what_comes_out() {
    let spec = TensorSpec::column_tiles(Dtype::F32, 512, 256, 128);
    let mut src = tensor(Kind::Gauss, Dtype::F32, 512 * 256, 3);
    // Rows of several sizes and tails.
    for (row, bytes) in src.chunks_exact_mut(4 * 256).enumerate() {
        for bytes in bytes.chunks_exact_mut(4) {
            let value = f32::from_le_bytes((&*bytes).try_into().unwrap());
            let tail = if row % 3 == 0 { value * value.abs() * 40.0 } else { value };
            bytes.copy_from_slice(&(tail * (1.0 + row as f32 / 100.0)).to_le_bytes());
        }
    }
    let survey = codec::survey_codebooks(&src, &spec, &EncodeOptions::default()).unwrap().unwrap();
    let mut last = (f64::INFINITY, f64::INFINITY);
    for step in survey.steps() {
        let blob = codec::encode_as(&src, &spec, 4096, &survey.coding(step)).unwrap();
        let (snr, bits) = quality(&src, &spec, &blob);
        let foreseen = -10.0 * survey.noise(step).log10();
        assert!((snr - foreseen).abs() < 0.3, "{step:?}: {snr} dB, {foreseen} foreseen");
        // An ideal coder of Gaussian weights is 6.02 dB a bit; the sign, raw, and codes of whole bits tell where there are
        // few.
        assert!(bits < 3.0 || snr > 6.02 * bits - 4.0, "{step:?}: {snr} dB at {bits} bits");
        assert!(snr <= last.0 + 0.05 && bits <= last.1 + 0.01, "{step:?} is not coarser than the one before");
        last = (snr, bits);
    }
    assert!(last.1 < 2.4, "{} bits at the end of the ladder", last.1);
}

#[test]
fn what_is_not_for_codebooks_is_left_alone() {
    let options = EncodeOptions::default();
    for kind in [Kind::Special, Kind::Sparse, Kind::Bits] {
        let src = tensor(kind, Dtype::F32, 5000, 1);
        let spec = TensorSpec::row_major(Dtype::F32, &[5000]);
        assert!(codec::survey_codebooks(&src, &spec, &options).unwrap().is_none(), "{kind:?}");
    }
}

#[test]
fn damage_is_found() {
    let spec = TensorSpec::column_tiles(Dtype::F16, 260, 128, 128);
    let good = encode(&tensor(Kind::Gauss, Dtype::F16, 260 * 128, 1), &spec, COARSE);
    assert!(Header::parse(&good).unwrap().codebook.unwrap().tables.len() > 1);
    let header = Header::parse(&good).unwrap().payload_offset();
    for at in (0..header).chain((header..good.len()).step_by(61)) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(codec::decode(&bad).is_err() && reference::decode(&bad).is_err(), "byte {at}");
        assert!(codec::decode(&good[..at]).is_err() && reference::decode(&good[..at]).is_err());
    }
    // A payload without sense that has its checksum: an error, or values of the codebooks.
    let (start, end) = {
        let header = Header::parse(&good).unwrap();
        (header.payload_offset(), header.header_len as usize - 4)
    };
    let mut rng = Rng(7);
    for _ in 0..300 {
        let mut bad = good.clone();
        for _ in 0..8 {
            let at = start + rng.next() as usize % (bad.len() - start);
            bad[at] = rng.next() as u8;
        }
        let hash = payload_hash(&bad[start..]).to_le_bytes();
        bad[18..26].copy_from_slice(&hash);
        let sum = xxhash_rust::xxh3::xxh3_64(&bad[..end]) as u32;
        bad[end..end + 4].copy_from_slice(&sum.to_le_bytes());
        for backend in Backend::available() {
            let _ = Decoder::with_backend(&bad, backend).unwrap().decode_bytes(&bad);
        }
        let _ = reference::decode(&bad);
    }
}

#[test]
fn golden_codebooks_decode_and_are_still_written() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/codebook");
    for (dtype, name) in [(Dtype::F32, "f32"), (Dtype::F16, "f16"), (Dtype::Bf16, "bf16")] {
        let [rows, _, _, tiles] = specs(dtype);
        for (suffix, spec) in [("codebook", rows), ("codebook_rows", tiles)] {
            let src = tensor(Kind::Gauss, dtype, spec.elements().unwrap() as usize, 42);
            let blob = encode(&src, &spec, COARSE);
            let path = folder.join(format!("v1_2_{name}_{suffix}.nzb"));
            if !path.exists() && std::env::var_os("NZ_WRITE_GOLDEN").is_some() {
                fs::write(&path, &blob).unwrap();
                fs::write(path.with_extension("bin"), reference::decode(&blob).unwrap()).unwrap();
            }
            let (stored, expected) =
                (fs::read(&path).unwrap(), fs::read(path.with_extension("bin")).unwrap());
            assert!(reference::decode(&stored).unwrap() == expected, "{path:?}");
            assert!(codec::decode(&stored).unwrap() == expected, "{path:?}");
            assert!(stored == blob, "{path:?}");
        }
    }
}
