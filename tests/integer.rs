//! Integers of 8 bits: every byte comes back from both decoders, on every backend, at about the entropy.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;

use common::Rng;
use nz_onnx::arch::Backend;
use nz_onnx::codec::{self, Decoder, EncodeOptions, reference};
use nz_onnx::format::{Dtype, Header, TensorSpec, Transform};

/// Bytes as quantisers leave them: normally distributed around zero, or 128.
fn weights(dtype: Dtype, n: usize, deviation: f32, seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed);
    let flip = if dtype == Dtype::U8 { 128 } else { 0 };
    (0..n).map(|_| (rng.gauss() * deviation).round().clamp(-128.0, 127.0) as i8 as u8 ^ flip).collect()
}

fn check(src: &[u8], spec: &TensorSpec, at: &str) -> Vec<u8> {
    let blob = codec::encode(src, spec, &EncodeOptions::default()).unwrap();
    assert!(reference::decode(&blob).unwrap() == src, "reference: {at}");
    for backend in Backend::available() {
        let decoder = Decoder::with_backend(&blob, backend).unwrap();
        assert!(decoder.decode_bytes(&blob).unwrap() == src, "{}: {at}", backend.name);
        // Some in the middle.
        let (first, len) = (src.len() / 3, src.len() / 2);
        let mut part = vec![0; len];
        decoder.decode_elements(&blob, first as u64, &mut part).unwrap();
        assert!(
            spec.layout != TensorSpec::row_major(spec.dtype, &[1]).layout || part == src[first..first + len]
        );
    }
    blob
}

#[test]
fn every_byte_comes_back() {
    for dtype in [Dtype::I8, Dtype::U8] {
        for n in [1, 65, 4096, 10_000] {
            for deviation in [0.3, 5.0, 30.0, 300.0] {
                let at = format!("{dtype:?} {n} {deviation}");
                let src = weights(dtype, n, deviation, 5);
                let blob = check(&src, &TensorSpec::row_major(dtype, &[n as u64]), &at);
                let header = Header::parse(&blob).unwrap();
                assert_eq!((header.transform, header.minor), (Transform::Integer, 2));
                assert!(header.is_lossless());
            }
        }
        let every: Vec<u8> = (0..=255).collect();
        check(&every, &TensorSpec::row_major(dtype, &[16, 16]), "every byte");
        check(&weights(dtype, 40 * 150, 20.0, 6), &TensorSpec::column_tiles(dtype, 40, 150, 128), "tiles");
    }
}

#[test]
fn sizes_are_near_the_entropy() {
    for deviation in [4.0, 12.0, 30.0] {
        let src = weights(Dtype::I8, 200_000, deviation, 9);
        let mut counts = [0u64; 256];
        src.iter().for_each(|&b| counts[usize::from(b)] += 1);
        let n = src.len() as f64;
        let entropy: f64 =
            counts.iter().filter(|&&c| c > 0).map(|&c| c as f64 / n * (n / c as f64).log2()).sum();
        let spec = TensorSpec::row_major(Dtype::I8, &[200_000]);
        let coding = codec::integer_coding(&src, &spec, &EncodeOptions::default()).unwrap();
        let blob = codec::encode(&src, &spec, &EncodeOptions::default()).unwrap();
        let bits = 8.0 * blob.len() as f64 / n;
        assert!(bits < entropy + 0.15, "{bits} bits a weight, {entropy} are the bound");
        let (size, len) = (coding.size(), blob.len() as u64);
        assert!(len <= size && size < len + len / 50, "{size} foreseen, {len} came out");
    }
}

#[test]
fn integers_are_not_rounded_nor_floats_kept_as_integers() {
    let spec = TensorSpec::row_major(Dtype::U8, &[100]);
    let rounded = EncodeOptions { mantissa_bits: Some(3), ..Default::default() };
    assert!(codec::encode(&[0; 100], &spec, &rounded).is_err());
    let floats = TensorSpec::row_major(Dtype::F32, &[25]);
    assert!(codec::integer_coding(&[0; 100], &floats, &EncodeOptions::default()).is_err());
}

#[test]
fn damage_is_found() {
    let good = check(&weights(Dtype::I8, 3000, 20.0, 1), &TensorSpec::row_major(Dtype::I8, &[3000]), "good");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(codec::decode(&bad).is_err(), "byte {at}");
        assert!(reference::decode(&bad).is_err(), "byte {at}");
        assert!(codec::decode(&good[..at]).is_err() && reference::decode(&good[..at]).is_err());
    }
}

#[test]
fn golden_integers_decode_and_are_still_written() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/integer");
    for (dtype, name) in [(Dtype::I8, "i8"), (Dtype::U8, "u8")] {
        for (suffix, deviation, spec) in [
            ("integer", 25.0, TensorSpec::row_major(dtype, &[5, 1000])),
            ("integer_tiles", 60.0, TensorSpec::column_tiles(dtype, 40, 150, 128)),
        ] {
            let src = weights(dtype, spec.elements().unwrap() as usize, deviation, 42);
            let blob = codec::encode(&src, &spec, &EncodeOptions::default()).unwrap();
            let path = folder.join(format!("v1_2_{name}_{suffix}.nzb"));
            if !path.exists() && std::env::var_os("NZ_WRITE_GOLDEN").is_some() {
                fs::write(&path, &blob).unwrap();
                fs::write(path.with_extension("bin"), &src).unwrap();
            }
            let (stored, expected) =
                (fs::read(&path).unwrap(), fs::read(path.with_extension("bin")).unwrap());
            assert!(reference::decode(&stored).unwrap() == expected, "{path:?}");
            assert!(codec::decode(&stored).unwrap() == expected, "{path:?}");
            assert!(stored == blob, "{path:?}");
        }
    }
}
