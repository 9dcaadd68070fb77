//! The CUDA kernel of deltas to blobs, on the CPU against the reference decoder: bit for bit.

mod common;

use std::collections::HashSet;

use common::deltas::{DeltaPlan, tuned, write_delta};
use common::device::{Wanted, decode_delta};
use common::writer::{Plan, write};
use common::{DTYPES, FILLS, Fill, Rng, encode_in_books, specs, tensor};
use nz_onnx::codec::{self, EncodeOptions, GridStep, Profile, reference, word};
use nz_onnx::cuda::job::{DeviceDelta, DeviceWeight};
use nz_onnx::error::Error;
use nz_onnx::format::{Dtype, Header, Layout, Residual, TensorSpec};

fn source(fill: Fill, spec: &TensorSpec, rng: &mut Rng) -> Vec<u8> {
    tensor(fill, spec.dtype, spec.elements().expect("small") as usize, rng)
}

/// The blob of a base, of one of all kinds.
fn base_of(src: &[u8], spec: &TensorSpec, rng: &mut Rng) -> Vec<u8> {
    let options = EncodeOptions {
        mantissa_bits: [None, None, Some(spec.dtype.mantissa_bits() / 2)][rng.below(3)],
        block_len: [64, 192, 1024, 4096, 4096][rng.below(5)],
        profile: [Profile::Compact, Profile::Fast, Profile::Gpu][rng.below(3)],
        ..Default::default()
    };
    let step = GridStep { cell: rng.below(3), raw_bits: rng.below(4) as u8 };
    let whole = EncodeOptions { mantissa_bits: None, ..options };
    match rng.below(5) {
        0 => encode_in_books(src, spec, &whole, step),
        1 => codec::encode(src, spec, &EncodeOptions { grid: Some(step), ..whole }).ok(),
        2 => codec::encode(src, spec, &whole)
            .ok()
            .and_then(|plain| codec::layer(&plain, &[1, 4]).expect("whole").or(Some(plain))),
        _ => None,
    }
    .unwrap_or_else(|| codec::encode(src, spec, &options).expect("encodes"))
}

/// Decodes the delta to its own type and to float32, somewhere in memory and in some order, and compares.
fn check(delta: &[u8], base: &[u8], context: &str, rng: &mut Rng) -> Header {
    let headers = [delta, base].map(|blob| Header::parse(blob).expect("whole"));
    let expected = reference::decode_delta(delta, base).expect("whole");
    let dtype = headers[0].spec.dtype;
    let mut words = vec![0u32; expected.len() / dtype.size()];
    word::load(dtype, &expected, &mut words);
    let as_float32: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    for (out, expected) in [(dtype, &expected), (Dtype::F32, &as_float32)] {
        let (shift, seed) = (4 * rng.below(4), (rng.next() % 3).wrapping_mul(rng.next()));
        let headers = [&headers[0], &headers[1]];
        let (decoded, verdict) = decode_delta(headers, [delta, base], out, &Wanted::All, shift, seed);
        assert!(verdict.is_ok(), "{context}: {verdict:?}");
        assert!(decoded == *expected, "{context}: to {out:?}, shift {shift}, seed {seed}");
    }
    let [header, _] = headers;
    header
}

/// All dtypes, fills and shapes, to bases of all kinds: blocks of the base that are longer and shorter than the delta's.
#[test]
fn deltas_decode_as_the_reference_says() {
    let mut rng = Rng(130);
    let mut met = HashSet::new();
    for spec in DTYPES.into_iter().flat_map(specs) {
        for fill in FILLS {
            let weights = source([Fill::Weights, Fill::Subnormals][rng.below(2)], &spec, &mut rng);
            let base = base_of(&weights, &spec, &mut rng);
            let src = match fill {
                Fill::Weights => tuned(&weights, spec.dtype, &mut rng),
                fill => source(fill, &spec, &mut rng),
            };
            let delta = codec::encode_delta_to_blob(&src, &base).expect("encodes");
            assert!(reference::decode_delta(&delta, &base).expect("whole") == src);
            let header = check(&delta, &base, &format!("{spec:?} {fill:?}"), &mut rng);
            met.insert((
                header.delta.expect("a delta").residual,
                Header::parse(&base).expect("whole").transform,
            ));
        }
    }
    assert!(met.len() >= 8, "kinds of residuals and bases: {met:?}");
}

/// Tiers of all widths and numbers, blocks of all lengths, symbols that have the base's exponent in them: what the codec
/// reads, but its own encoder may not write.
#[test]
fn deltas_of_all_tiers_decode_as_the_reference_says() {
    let mut rng = Rng(131);
    for round in 0..150 {
        let dtype = DTYPES[round % 3];
        let spec = specs(dtype).swap_remove(rng.below(13));
        let fill = FILLS[rng.below(FILLS.len())];
        let base_src = source(fill, &spec, &mut rng);
        let base = write(&base_src, &spec, &Plan::random(&mut rng), &mut rng);
        let src = match rng.below(3) {
            0 => source(FILLS[rng.below(FILLS.len())], &spec, &mut rng),
            _ => tuned(&base_src, dtype, &mut rng),
        };
        let plan = DeltaPlan::random(&mut rng);
        let delta = write_delta(&src, &base, &plan);
        let context = format!("round {round}: {spec:?} {fill:?} {plan:?}");
        assert!(reference::decode_delta(&delta, &base).expect(&context) == src, "{context}");
        check(&delta, &base, &context, &mut rng);
    }
}

/// Ranges of slots, sets of tiles and gathered rows: a weight's raw bits start where those of the weights before it end.
#[test]
fn parts_are_those_of_the_whole() {
    let mut rng = Rng(132);
    for round in 0..24 {
        let dtype = DTYPES[round % 3];
        let spec = match round % 2 {
            0 => TensorSpec::row_major(dtype, &[40, 300]),
            _ => TensorSpec::column_tiles(dtype, 70, 320, 128),
        };
        let weights = source(Fill::Weights, &spec, &mut rng);
        let base = base_of(&weights, &spec, &mut rng);
        let src = tuned(&weights, dtype, &mut rng);
        let plan = DeltaPlan::random(&mut rng);
        let delta = match rng.below(2) {
            0 => codec::encode_delta_to_blob(&src, &base).expect("encodes"),
            _ => write_delta(&src, &base, &plan),
        };
        let headers = [&delta, &base].map(|blob| Header::parse(blob).expect("whole"));
        let row = spec.shape[1] as usize * dtype.size();
        let part = |wanted: Wanted, rng: &mut Rng| {
            let blobs = [&delta[..], &base[..]];
            let (decoded, verdict) =
                decode_delta([&headers[0], &headers[1]], blobs, dtype, &wanted, 4, rng.next());
            assert!(verdict.is_ok(), "{verdict:?}");
            decoded
        };
        if spec.layout == Layout::RowMajor {
            for (first, slots) in [(0, 1), (700, 5000), (11_999, 1), (1024, 1024), (1023, 2), (4090, 4100)] {
                let at = first as usize * dtype.size();
                let decoded = part(Wanted::Slots(first, slots), &mut rng);
                assert!(decoded == src[at..at + slots as usize * dtype.size()], "{spec:?} {first}+{slots}");
            }
            let rows = [3, -1, 0, 3, 22, -40];
            let of = |i: &i64| src[i.rem_euclid(40) as usize * row..][..row].to_vec();
            let expected: Vec<u8> = rows.iter().flat_map(of).collect();
            assert!(part(Wanted::Rows(rows.to_vec()), &mut rng) == expected, "{spec:?}");
            let rows = rows.map(|row| row as i32).to_vec();
            assert!(part(Wanted::ShortRows(rows), &mut rng) == expected, "{spec:?}");
        } else {
            let columns = 128 * dtype.size()..256 * dtype.size();
            let expected: Vec<u8> = src.chunks(row).flat_map(|row| row[columns.clone()].to_vec()).collect();
            assert!(part(Wanted::Columns(128, 128), &mut rng) == expected, "{spec:?}");
        }
    }
}

/// Bases whose blocks are taken apart by units of fewer weights, where all of them would not fit in shared memory.
#[test]
fn long_records_are_decoded_in_smaller_units() {
    let mut rng = Rng(133);
    let spec = TensorSpec::row_major(Dtype::F32, &[9000]);
    let base_src = source(Fill::RandomBits, &spec, &mut rng);
    let base = codec::encode(&base_src, &spec, &EncodeOptions::default()).expect("encodes");
    let src = source(Fill::RandomBits, &spec, &mut rng);
    // Each symbol takes 8 codes and a literal.
    let tiers = (0..8u8).map(|tier| (4, (120 + 15 * tier..135 + 15 * tier).collect())).collect();
    let plan = DeltaPlan { block_len: 1024, tiers, residual: Residual::Xor, exponent: 255 };
    let delta = write_delta(&src, &base, &plan);
    check(&delta, &base, "long records", &mut rng);
}

/// Orders of warps and lanes: some write words that others read.
#[test]
fn the_order_of_warps_and_lanes_does_not_matter() {
    let mut rng = Rng(134);
    let spec = TensorSpec::row_major(Dtype::Bf16, &[4096 + 777]);
    let weights = source(Fill::Weights, &spec, &mut rng);
    let base = codec::encode(&weights, &spec, &EncodeOptions::default()).expect("encodes");
    let src = tuned(&weights, Dtype::Bf16, &mut rng);
    let delta = codec::encode_delta_to_blob(&src, &base).expect("encodes");
    let headers = [&delta, &base].map(|blob| Header::parse(blob).expect("whole"));
    for seed in 0..20 {
        let blobs = [&delta[..], &base[..]];
        let (decoded, verdict) =
            decode_delta([&headers[0], &headers[1]], blobs, Dtype::Bf16, &Wanted::All, 0, seed);
        assert!(verdict.is_ok() && decoded == src, "seed {seed}");
    }
}

/// A damaged record of either blob: told, zeros where its weights would be, and all others as they are.
#[test]
fn damage_is_told() {
    let mut rng = Rng(135);
    let spec = TensorSpec::row_major(Dtype::F16, &[9, 1000]);
    for profile in [Profile::Compact, Profile::Gpu] {
        let weights = source(Fill::Weights, &spec, &mut rng);
        let base = codec::encode(&weights, &spec, &EncodeOptions { profile, ..Default::default() })
            .expect("encodes");
        let src = source(Fill::Weights, &spec, &mut rng);
        let delta = codec::encode_delta_to_blob(&src, &base).expect("encodes");
        let headers = [&delta, &base].map(|blob| Header::parse(blob).expect("whole"));
        let damaged = |which: usize, block: usize| {
            let mut blobs = [delta.clone(), base.clone()];
            let record = headers[which].record(block);
            blobs[which][record].fill(0xff);
            let blobs = [&blobs[0][..], &blobs[1][..]];
            let (decoded, verdict) =
                decode_delta([&headers[0], &headers[1]], blobs, Dtype::F16, &Wanted::All, 0, 7);
            assert!(verdict.expect_err("damaged").to_string().contains("damaged"));
            decoded
        };
        // Block 5 of the delta, and 1 of the base, are in the second unit.
        for decoded in [damaged(0, 5), damaged(1, 1)] {
            let (start, end) = (4096 * 2, 8192 * 2);
            assert!(decoded[..start] == src[..start] && decoded[end..] == src[end..]);
            assert!(decoded[start..end].iter().all(|&byte| byte == 0));
        }
    }
}

#[test]
fn what_is_no_delta_is_refused() {
    let spec = TensorSpec::row_major(Dtype::F32, &[100]);
    let bytes = vec![0; 400];
    let base = codec::encode(&bytes, &spec, &EncodeOptions::default()).expect("encodes");
    let delta = codec::encode_delta_to_blob(&bytes, &base).expect("encodes");
    let plain = codec::encode_delta(&bytes, &bytes, Dtype::F32, &[100]).expect("encodes");
    let [base, delta, plain] = [base, delta, plain].map(|blob| Header::parse(&blob).expect("whole"));
    assert!(matches!(DeviceWeight::new(&delta), Err(Error::InvalidArgument(_))));
    assert!(matches!(DeviceDelta::new(&base, &base), Err(Error::InvalidArgument(_))));
    assert!(matches!(DeviceDelta::new(&plain, &base), Err(Error::InvalidArgument(_))));
    let other = TensorSpec::row_major(Dtype::F32, &[10, 10]);
    let other = codec::encode(&bytes, &other, &EncodeOptions::default()).expect("encodes");
    let other = Header::parse(&other).expect("whole");
    assert!(matches!(DeviceDelta::new(&delta, &other), Err(Error::Corrupt(_))));
    assert!(DeviceDelta::new(&delta, &base).is_ok());
}
