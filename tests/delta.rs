//! Deltas to a base: both decoders give the tensor back, damage is found, and sizes are near what entropy allows.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{DTYPES, KINDS, Kind, Rng, tensor};
use nz_onnx::codec::{self, Decoder, DeltaDecoder, EncodeOptions, GridStep, reference};
use nz_onnx::error::Error;
use nz_onnx::format::{Dtype, Header, Residual, TensorSpec, Transform};

/// A tensor as one fine-tuning leaves it: each weight of the base changed by about `step`, but for stretches that stay.
fn tuned(base: &[u8], step: f32, seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed);
    let mut out = base.to_vec();
    for (i, bytes) in out.chunks_exact_mut(4).enumerate() {
        if i / 3000 % 3 != 1 {
            let weight = f32::from_le_bytes(bytes.try_into().unwrap());
            bytes.copy_from_slice(&(weight + step * rng.gauss()).to_le_bytes());
        }
    }
    out
}

fn check(src: &[u8], base: &[u8], dtype: Dtype, at: &str) -> Vec<u8> {
    let n = src.len() / dtype.size();
    let blob = codec::encode_delta(src, base, dtype, &[n as u64]).unwrap();
    assert!(codec::decode_delta(&blob, base).unwrap() == src, "{at}");
    assert!(reference::decode_delta(&blob, base).unwrap() == src, "reference: {at}");
    blob
}

#[test]
fn everything_comes_back() {
    for (dtype, kind) in DTYPES.into_iter().flat_map(|d| KINDS.map(|k| (d, k))) {
        for n in [1, 63, 1024, 5001] {
            let at = format!("{dtype:?} {kind:?} {n}");
            let src = tensor(kind, dtype, n, 7);
            for base in [tensor(Kind::Gauss, dtype, n, 8), tensor(Kind::Bits, dtype, n, 9)] {
                check(&src, &base, dtype, &at);
                check(&base, &src, dtype, &at);
            }
            let same = check(&src, &src, dtype, &at);
            let header = Header::parse(&same).unwrap();
            assert_eq!(header.payload_offset(), same.len(), "{at}: nothing differs, nothing is stored");
            assert_eq!((header.transform, header.minor), (Transform::Delta, 2));
        }
    }
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let base = tensor(Kind::Gauss, Dtype::F32, 70_000, 3);
    let src = tuned(&base, 1e-4, 4);
    let encode = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| codec::encode_delta(&src, &base, Dtype::F32, &[70_000]).unwrap())
    };
    assert!(encode(1) == encode(3));
}

/// Shannon's bound for the exponents of what was added, and the bits below them.
fn bound(src: &[u8], base: &[u8]) -> f64 {
    let float = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
    let mut counts = std::collections::BTreeMap::new();
    let mut raw = 0.0;
    for (a, b) in src.chunks_exact(4).zip(base.chunks_exact(4)) {
        let difference = f64::from(float(a)) - f64::from(float(b));
        let octave = if difference == 0.0 { i32::MIN } else { difference.abs().log2().floor() as i32 };
        *counts.entry(octave).or_insert(0u64) += 1;
        if difference != 0.0 {
            // Multiples of the base's last place, and a sign.
            let last = f64::from(f32::from_bits(float(b).to_bits() & 0x7f80_0000)) / f64::from(1 << 23);
            raw += 1.0 + (difference.abs() / last).max(1.0).log2().floor();
        }
    }
    let n = (src.len() / 4) as f64;
    let entropy: f64 = counts.values().map(|&c| c as f64 * (n / c as f64).log2()).sum();
    (entropy + raw) / n
}

#[test]
fn an_update_costs_what_its_entropy_is() {
    let base = tensor(Kind::Gauss, Dtype::F32, 90_000, 3);
    for step in [1e-5, 1e-3] {
        let src = tuned(&base, step, 4);
        let blob = check(&src, &base, Dtype::F32, "an update");
        let header = Header::parse(&blob).unwrap();
        assert_eq!(header.delta.unwrap().residual, Residual::Difference);
        let bits = 8.0 * blob.len() as f64 / 90_000.0;
        let bound = bound(&src, &base);
        assert!(bits < bound + 0.4, "{bits} bits a weight, {bound} are the bound");
        let lossless = codec::encode(
            &src,
            &nz_onnx::format::TensorSpec::row_major(Dtype::F32, &[90_000]),
            &codec::EncodeOptions::default(),
        );
        assert!(blob.len() * 10 < lossless.unwrap().len() * 8, "{bits} bits a weight");
    }
}

#[test]
fn few_changed_bits_are_xor() {
    let base = tensor(Kind::Bits, Dtype::Bf16, 20_000, 3);
    let mut src = base.clone();
    src.chunks_exact_mut(2).step_by(3).for_each(|bytes| bytes[1] ^= 0x80);
    let blob = check(&src, &base, Dtype::Bf16, "signs");
    assert_eq!(Header::parse(&blob).unwrap().delta.unwrap().residual, Residual::Xor);
}

#[test]
fn damage_and_other_bases_are_found() {
    let base = tensor(Kind::Gauss, Dtype::F32, 3000, 1);
    let src = tuned(&base, 1e-4, 2);
    let good = check(&src, &base, Dtype::F32, "good");
    let refused = |blob: &[u8], base: &[u8], what: &str| {
        assert!(codec::decode_delta(blob, base).is_err(), "decoded with {what}");
        assert!(reference::decode_delta(blob, base).is_err(), "the reference decoded with {what}");
    };
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        refused(&bad, &base, &format!("byte {at} changed"));
    }
    for len in 0..good.len() {
        refused(&good[..len], &base, &format!("{len} bytes"));
    }
    refused(&good, &src, "another base");
    refused(&good, &base[4..], "a shorter base");
    assert!(matches!(Decoder::open(&good), Err(Error::Unsupported(what)) if what.contains("restore")));
    assert!(reference::decode(&good).is_err());
    let plain = codec::encode(
        &src,
        &nz_onnx::format::TensorSpec::row_major(Dtype::F32, &[3000]),
        &codec::EncodeOptions::default(),
    );
    refused(&plain.unwrap(), &base, "no delta");
}

/// A payload that has its right checksum and no sense: an error or some tensor, never a panic.
#[test]
fn hostile_records_are_errors() {
    let base = tensor(Kind::Bits, Dtype::F16, 3000, 1);
    let good = codec::encode_delta(&tensor(Kind::Bits, Dtype::F16, 3000, 2), &base, Dtype::F16, &[3000]);
    let good = good.unwrap();
    let start = Header::parse(&good).unwrap().payload_offset();
    let mut rng = Rng(5);
    let mut errors = 0;
    for _ in 0..300 {
        let mut bad = good.clone();
        for _ in 0..1 + rng.next() % 20 {
            let at = start + rng.next() as usize % (bad.len() - start);
            bad[at] = rng.next() as u8;
        }
        let hash = nz_onnx::format::payload_hash(&bad[start..]).to_le_bytes();
        bad[18..26].copy_from_slice(&hash);
        let end = Header::parse(&good).unwrap().header_len as usize - 4;
        let sum = xxhash_rust::xxh3::xxh3_64(&bad[..end]) as u32;
        bad[end..end + 4].copy_from_slice(&sum.to_le_bytes());
        // Bits that no plane uses are each decoder's own affair, so both may take what the other refuses.
        errors += usize::from(codec::decode_delta(&bad, &base).is_err());
        errors += usize::from(reference::decode_delta(&bad, &base).is_err());
    }
    assert!(errors > 0);
}

/// Files written by earlier versions, `<name>.nzb` with its base `<name>.base` and the tensor `<name>.bin`.
#[test]
fn golden_deltas_decode_and_are_still_written() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/delta");
    for (dtype, name) in [(Dtype::F32, "f32"), (Dtype::F16, "f16"), (Dtype::Bf16, "bf16")] {
        let base = tensor(Kind::Gauss, dtype, 3000, 42);
        let mut differing = base.clone();
        let other = tensor(Kind::Special, dtype, 300, 43);
        differing[..other.len()].copy_from_slice(&other);
        differing[other.len()..].chunks_exact_mut(8).for_each(|bytes| bytes[0] = bytes[0].wrapping_add(3));
        let mut signs = base.clone();
        let size = dtype.size();
        signs.chunks_exact_mut(2 * size).for_each(|bytes| bytes[size - 1] ^= 0x80);
        for (suffix, src) in [("difference", differing), ("xor", signs)] {
            let blob = codec::encode_delta(&src, &base, dtype, &[30, 100]).unwrap();
            let path = folder.join(format!("v1_2_{name}_{suffix}.nzb"));
            if !path.exists() && std::env::var_os("NZ_WRITE_GOLDEN").is_some() {
                fs::create_dir_all(&folder).unwrap();
                fs::write(&path, &blob).unwrap();
                fs::write(path.with_extension("base"), &base).unwrap();
                fs::write(path.with_extension("bin"), &src).unwrap();
            }
            let read = |path: PathBuf| fs::read(path).unwrap();
            let (stored, base, expected) =
                (read(path.clone()), read(path.with_extension("base")), read(path.with_extension("bin")));
            assert!(reference::decode_delta(&stored, &base).unwrap() == expected, "{path:?}");
            assert!(codec::decode_delta(&stored, &base).unwrap() == expected, "{path:?}");
            assert!(stored == blob, "{path:?}");
        }
    }
}

/// A delta to a blob, with all that is decoded of it.
fn check_on_blob(src: &[u8], base: &[u8], spec: &TensorSpec, at: &str) -> Vec<u8> {
    let delta = codec::encode_delta_to_blob(src, base).unwrap();
    let decoder = DeltaDecoder::open(&delta, base).unwrap();
    assert_eq!(decoder.header().spec, *spec);
    assert!(decoder.decode_bytes(&delta, base).unwrap() == src, "{at}");
    assert!(reference::decode_delta(&delta, base).unwrap() == src, "reference: {at}");
    // The weights in stored order, as a blob without a base has them.
    let plain = codec::encode(src, spec, &EncodeOptions::default()).unwrap();
    let plain_decoder = Decoder::open(&plain).unwrap();
    let (n, size) = (spec.elements().unwrap() as usize, spec.dtype.size());
    let mut expected = vec![0f32; n];
    plain_decoder.decode_f32(&plain, 0, &mut expected).unwrap();
    let mut elements = vec![0u8; n * size];
    plain_decoder.decode_elements(&plain, 0, &mut elements).unwrap();
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let mut rng = Rng(n as u64);
    for _ in 0..20 {
        let first = rng.next() as usize % n;
        let len = 1 + rng.next() as usize % (n - first);
        let mut floats = vec![0f32; len];
        decoder.decode_f32(&delta, base, first as u64, &mut floats).unwrap();
        assert!(bits(&floats) == bits(&expected[first..first + len]), "{at}: {first}+{len}");
        let mut part = vec![0u8; len * size];
        decoder.decode_elements(&delta, base, first as u64, &mut part).unwrap();
        assert!(part == elements[first * size..(first + len) * size], "{at}: {first}+{len}");
    }
    let mut floats = vec![0f32; 2];
    assert!(decoder.decode_f32(&delta, base, n as u64 - 1, &mut floats).is_err());
    assert!(decoder.decode_f32(&delta[..delta.len() - 4], base, 0, &mut floats[..1]).is_err());
    assert!(decoder.decode_f32(&delta, &base[..base.len() - 4], 0, &mut floats[..1]).is_err());
    delta
}

#[test]
fn deltas_to_blobs_decode_anywhere() {
    let grid = EncodeOptions { grid: Some(GridStep { cell: 1, raw_bits: 4 }), ..Default::default() };
    let cut = EncodeOptions { mantissa_bits: Some(4), ..Default::default() };
    for dtype in DTYPES {
        for (spec, options) in [
            (TensorSpec::row_major(dtype, &[7, 2001]), EncodeOptions::default()),
            (TensorSpec::column_tiles(dtype, 111, 320, 128), cut),
            (TensorSpec::column_tiles(dtype, 33, 300, 256), EncodeOptions::default()),
            (TensorSpec::column_tiles(dtype, 70, 192, 128), grid),
            (TensorSpec::row_major(dtype, &[1]), EncodeOptions::default()),
        ] {
            let n = spec.elements().unwrap() as usize;
            for (kind, tuned_kind) in [(Kind::Gauss, Kind::Gauss), (Kind::Gauss, Kind::Bits)] {
                let at = format!("{spec:?} {tuned_kind:?}");
                let base = codec::encode(&tensor(kind, dtype, n, 3), &spec, &options).unwrap();
                check_on_blob(&tensor(tuned_kind, dtype, n, 4), &base, &spec, &at);
                // What the base decodes to is nothing at all.
                let same = check_on_blob(&codec::decode(&base).unwrap(), &base, &spec, &at);
                let header = Header::parse(&same).unwrap();
                assert_eq!(header.payload_offset(), same.len());
            }
        }
    }
}

#[test]
fn deltas_to_blobs_know_their_base() {
    let spec = TensorSpec::column_tiles(Dtype::F32, 64, 128, 128);
    let [weights, others] = [3, 4].map(|seed| tensor(Kind::Gauss, Dtype::F32, 64 * 128, seed));
    let [base, other] =
        [&weights, &others].map(|w| codec::encode(w, &spec, &EncodeOptions::default()).unwrap());
    let src = tuned(&weights, 1e-4, 5);
    let delta = codec::encode_delta_to_blob(&src, &base).unwrap();
    assert!(matches!(DeltaDecoder::open_unverified(&delta, &other), Err(Error::Base(_))));
    assert!(matches!(DeltaDecoder::open(&delta, &delta), Err(Error::Base(_))), "a delta is no base");
    assert!(
        matches!(DeltaDecoder::open(&base, &base), Err(Error::InvalidArgument(_))),
        "and a base no delta"
    );
    assert!(matches!(codec::decode_delta(&delta, &weights), Err(Error::InvalidArgument(_))));
    assert!(Decoder::open(&delta).is_err());
    let plain = codec::encode_delta(&src, &weights, Dtype::F32, &[64, 128]).unwrap();
    assert!(matches!(DeltaDecoder::open(&plain, &base), Err(Error::InvalidArgument(_))));
    assert!(codec::encode_delta_to_blob(&src[4..], &base).is_err());
    // The same weights, coded in another way, are another blob.
    let again =
        codec::encode(&weights, &spec, &EncodeOptions { block_len: 1024, ..Default::default() }).unwrap();
    assert!(matches!(DeltaDecoder::open(&delta, &again), Err(Error::Base(_))));
}

#[test]
fn damage_to_either_blob_is_found() {
    let spec = TensorSpec::row_major(Dtype::F16, &[2500]);
    let weights = tensor(Kind::Gauss, Dtype::F16, 2500, 3);
    let base = codec::encode(&weights, &spec, &EncodeOptions::default()).unwrap();
    let src = tensor(Kind::Gauss, Dtype::F16, 2500, 4);
    let delta = codec::encode_delta_to_blob(&src, &base).unwrap();
    let mut rng = Rng(1);
    for round in 0..3000 {
        let (mut d, mut b) = (delta.clone(), base.clone());
        let hurt = if round % 2 == 0 { &mut d } else { &mut b };
        let at = rng.next() as usize % hurt.len();
        match round % 3 {
            0 => hurt.truncate(at),
            1 => hurt[at] ^= 1 << (round % 8),
            _ => hurt.push(0),
        }
        assert!(DeltaDecoder::open(&d, &b).is_err(), "round {round}");
        assert!(reference::decode_delta(&d, &b).is_err(), "reference: round {round}");
        // Without the checksums of payloads: an error or other weights, and nothing else.
        if let Ok(decoder) = DeltaDecoder::open_unverified(&d, &b) {
            let mut out = vec![0f32; 2500];
            let _ = decoder.decode_f32(&d, &b, 0, &mut out);
        }
    }
}
