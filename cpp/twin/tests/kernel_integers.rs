//! The CUDA kernel for 8-bit integers, on the CPU against the reference decoder: bit for bit.

mod common;

use common::Rng;
use common::device::{Memory, Wanted, decode};
use nz_onnx::codec::{self, EncodeOptions, Profile, reference};
use nz_onnx::cuda::job::{DeviceWeight, Output, WeightMemory};
use nz_onnx::format::{Dtype, Header, TensorSpec, Transform};

/// Bytes as quantisers leave them, in `deviation` around zero, or 128; with the least and the greatest among them.
fn source(dtype: Dtype, n: usize, deviation: f32, rng: &mut Rng) -> Vec<u8> {
    let flip = if dtype == Dtype::U8 { 128 } else { 0 };
    let value = |rng: &mut Rng| match rng.below(200) {
        0 => -128,
        1 => 127,
        _ => (rng.weight() * 50.0 * deviation).round().clamp(-128.0, 127.0) as i8,
    };
    (0..n).map(|_| value(rng) as u8 ^ flip).collect()
}

/// Raw bits of many numbers, as spreads ask for; blocks and tails of all lengths.
#[test]
fn integers_decode_as_the_reference_says() {
    let mut rng = Rng(100);
    let mut met = std::collections::HashSet::new();
    for dtype in [Dtype::I8, Dtype::U8] {
        for deviation in [0.2, 1.0, 3.0, 8.0, 20.0, 50.0, 120.0, 400.0] {
            for spec in [
                TensorSpec::row_major(dtype, &[]),
                TensorSpec::row_major(dtype, &[63]),
                TensorSpec::row_major(dtype, &[4097]),
                TensorSpec::row_major(dtype, &[9, 1000]),
                TensorSpec::column_tiles(dtype, 40, 150, 128),
                TensorSpec::column_tiles(dtype, 37, 320, 64),
            ] {
                let n = spec.elements().expect("small") as usize;
                let src = source(dtype, n, deviation, &mut rng);
                let profile = [Profile::Compact, Profile::Fast, Profile::Gpu][rng.below(3)];
                let block_len = [64, 192, 1024, 4096][rng.below(4)];
                let options = EncodeOptions { block_len, profile, ..Default::default() };
                let blob = codec::encode(&src, &spec, &options).expect("encodes");
                let header = Header::parse(&blob).expect("whole");
                assert_eq!(header.transform, Transform::Integer);
                met.insert(header.mantissa_bits);
                assert!(reference::decode(&blob).expect("whole") == src, "the reference");
                let (shift, seed) = (4 * rng.below(4), rng.next());
                let (decoded, verdict) = decode(&header, &blob, dtype, &Wanted::All, shift, seed);
                let context =
                    format!("{spec:?}, deviation {deviation}, {options:?}, shift {shift}, seed {seed}");
                assert!(verdict.is_ok(), "{context}: {verdict:?}");
                assert!(decoded == src, "{context}");
            }
        }
    }
    assert!(met.len() >= 5, "numbers of raw bits: {met:?}");
}

#[test]
fn ranges_and_rows_are_those_of_the_tensor() {
    let mut rng = Rng(101);
    for dtype in [Dtype::I8, Dtype::U8] {
        for (rows, row) in [(50, 96), (50, 97), (9, 1500), (300, 1)] {
            let spec = TensorSpec::row_major(dtype, &[rows, row]);
            let src = source(dtype, (rows * row) as usize, 20.0, &mut rng);
            let options = EncodeOptions { block_len: 1024, ..Default::default() };
            let blob = codec::encode(&src, &spec, &options).expect("encodes");
            let header = Header::parse(&blob).expect("whole");
            let indices = vec![0, rows as i64 - 1, -1, -(rows as i64), 3, 3, rng.below(rows as usize) as i64];
            let of = |i: i64| &src[i.rem_euclid(rows as i64) as usize * row as usize..][..row as usize];
            let expected: Vec<u8> = indices.iter().flat_map(|&i| of(i).to_vec()).collect();
            let (decoded, verdict) = decode(&header, &blob, dtype, &Wanted::Rows(indices), 8, rng.next());
            assert!(verdict.is_ok() && decoded == expected, "{spec:?}");
            for _ in 0..6 {
                let first = rng.below(src.len());
                let len = 1 + rng.below(src.len() - first);
                let wanted = Wanted::Slots(first as u64, len as u64);
                let (decoded, verdict) = decode(&header, &blob, dtype, &wanted, 0, rng.next());
                assert!(
                    verdict.is_ok() && decoded == src[first..first + len],
                    "{spec:?}: {len} from {first}"
                );
            }
        }
    }
}

/// A damaged block is told, and zero; others stay right.
#[test]
fn damage_stays_in_its_block() {
    let mut rng = Rng(102);
    let spec = TensorSpec::row_major(Dtype::I8, &[3000]);
    let src = source(Dtype::I8, 3000, 9.0, &mut rng);
    let options = EncodeOptions { block_len: 640, ..Default::default() };
    let mut blob = codec::encode(&src, &spec, &options).expect("encodes");
    let header = Header::parse(&blob).expect("whole");
    blob[header.record(1)].fill(0xff);
    let (decoded, verdict) = decode(&header, &blob, Dtype::I8, &Wanted::All, 8, rng.next());
    assert!(verdict.expect_err("damaged").to_string().contains("damaged"));
    assert!(decoded[..640] == src[..640] && decoded[1280..] == src[1280..]);
    assert!(decoded[640..1280].iter().all(|&byte| byte == 0));
}

#[test]
fn integers_are_no_floats() {
    let spec = TensorSpec::row_major(Dtype::U8, &[8, 8]);
    let blob = codec::encode(&[3; 64], &spec, &EncodeOptions::default()).expect("encodes");
    let weight = DeviceWeight::new(&Header::parse(&blob).expect("whole")).expect("a header of ours");
    let mut table = Memory::holding(weight.table(), 0);
    let memory = WeightMemory { blob: 0, table: table.address() };
    for dtype in [Dtype::F32, Dtype::I8] {
        let refused = weight.decode_all(memory, Output { dtype, address: 0, status: 0 });
        assert!(refused.expect_err("another type").to_string().contains("uint8 weights decode to uint8"));
    }
    assert!(weight.product(1).expect_err("no floats").to_string().contains("uint8"));
}
