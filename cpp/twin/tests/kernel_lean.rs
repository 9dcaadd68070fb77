//! The decoding kernels whose warps have a block each, on the CPU against the reference decoder: bfloat16 weights of whole blocks and
//! two tiers of 2-bit codes.

mod common;

use common::device::{Wanted, check_all, decode};
use common::{Fill, Rng, tensor};
use nz_onnx::codec::{self, EncodeOptions, Profile, reference};
use nz_onnx::cuda::job::{DeviceWeight, Kernel, Output, WeightMemory};
use nz_onnx::format::{Dtype, Header, TensorSpec};

const BF16: Dtype = Dtype::Bf16;

fn encode(src: &[u8], spec: &TensorSpec, mantissa_bits: Option<u8>) -> Vec<u8> {
    let options = EncodeOptions { profile: Profile::Gpu, mantissa_bits, ..Default::default() };
    codec::encode(src, spec, &options).expect("encodes")
}

/// Whether the tensor is decoded in the way that is tested here.
fn is_lean(blob: &[u8], dtype: Dtype) -> bool {
    let weight = DeviceWeight::new(&Header::parse(blob).expect("whole")).expect("a header of ours");
    let output = Output { dtype, address: 0, status: 0 };
    let launch = weight.decode_all(WeightMemory { blob: 0, table: 0 }, output).expect("a launch");
    launch.kernel == Kernel::DecodeLean(dtype)
}

fn specs() -> Vec<TensorSpec> {
    let tiles = [(64, 256, 256), (32, 512, 256), (32, 384, 128), (128, 128, 64), (64, 64, 64), (64, 64, 256)];
    let tiles = tiles.map(|(k, n, tile)| TensorSpec::column_tiles(BF16, k, n, tile));
    let rows = [[1, 4096], [7, 4096], [48, 512]].map(|shape| TensorSpec::row_major(BF16, &shape));
    rows.into_iter().chain(tiles).collect()
}

/// Every number of mantissa bits, to bfloat16 and float32, in every order of warps and lanes.
#[test]
fn blobs_decode_as_the_reference_says() {
    let mut rng = Rng(100);
    for spec in specs() {
        for mantissa_bits in (0..8).map(Some).chain([None]) {
            let src = tensor(Fill::Weights, BF16, spec.elements().expect("small") as usize, &mut rng);
            let blob = encode(&src, &spec, mantissa_bits);
            assert!(is_lean(&blob, BF16) && is_lean(&blob, Dtype::F32), "{spec:?}");
            let expected = reference::decode(&blob).expect("whole");
            check_all(&blob, &expected, &format!("{spec:?}, {mantissa_bits:?}"), &mut rng);
        }
    }
}

/// From none that escape to all: what a tier has at its ends, and tails of every length modulo a group.
#[test]
fn any_share_of_escapes_decodes() {
    let mut rng = Rng(101);
    let spec = TensorSpec::row_major(BF16, &[4, 4096]);
    for round in 0..60 {
        // Three exponents of which most are, three more, and rare ones, in shares that the last block does not have.
        let shares = [[0, 1], [1000, 0], [1, 1], [50, 1], [30, 30], [900, 90]][round % 6];
        let src: Vec<u8> = (0..4 * 4096usize)
            .flat_map(|i| {
                let drawn = if i < 3 * 4096 { rng.below(1000) } else { 999 - round };
                let rank = match drawn {
                    d if d < shares[0] => 3 + rng.below(3),
                    d if d < shares[0] + shares[1] => 6 + rng.below(20),
                    _ => rng.below(3),
                };
                let bits = (120 + rank as u16) << 7 | (rng.next() as u16 & 0x807f);
                bits.to_le_bytes()
            })
            .collect();
        let blob = encode(&src, &spec, None);
        if is_lean(&blob, BF16) {
            check_all(&blob, &src, &format!("round {round}"), &mut rng);
        } else {
            assert_eq!(Header::parse(&blob).expect("whole").tiers.len(), 1, "round {round}");
        }
    }
}

/// Ranges of whole blocks, and of columns of whole tiles.
#[test]
fn parts_decode() {
    let mut rng = Rng(102);
    let spec = TensorSpec::row_major(BF16, &[9, 4096]);
    let src = tensor(Fill::Weights, BF16, 9 * 4096, &mut rng);
    let blob = encode(&src, &spec, None);
    let header = Header::parse(&blob).expect("whole");
    for (first, blocks) in [(0, 9), (1, 1), (2, 7), (8, 1), (3, 4)] {
        let wanted = Wanted::Slots(first * 4096, blocks * 4096);
        let (found, verdict) = decode(&header, &blob, BF16, &wanted, 8, rng.next());
        assert!(verdict.is_ok());
        assert!(found == src[first as usize * 8192..][..blocks as usize * 8192], "{wanted:?}");
    }
    let spec = TensorSpec::column_tiles(BF16, 48, 1024, 256);
    let src = tensor(Fill::Weights, BF16, 48 * 1024, &mut rng);
    let blob = encode(&src, &spec, None);
    let header = Header::parse(&blob).expect("whole");
    for (first, columns) in [(0, 1024), (256, 256), (512, 512)] {
        let wanted = Wanted::Columns(first, columns);
        let (found, verdict) = decode(&header, &blob, BF16, &wanted, 4, rng.next());
        assert!(verdict.is_ok());
        for (row, found) in found.chunks(columns as usize * 2).enumerate() {
            assert!(found == &src[(row * 1024 + first as usize) * 2..][..columns as usize * 2], "{wanted:?}");
        }
    }
}

/// Damaged blocks become zeros, others are as they were.
#[test]
fn damaged_blocks_are_zeros() {
    let mut rng = Rng(103);
    let spec = TensorSpec::row_major(BF16, &[4, 4096]);
    let mut told = 0;
    for round in 0..60 {
        let src = tensor(Fill::Weights, BF16, 4 * 4096, &mut rng);
        let mut blob = encode(&src, &spec, [None, Some(4)][round % 2]);
        let header = Header::parse(&blob).expect("whole");
        let expected = reference::decode(&blob).expect("whole");
        let block = rng.below(4);
        let record = header.record(block);
        match round % 3 {
            0 => blob[record.clone()].fill(0xff),
            1 => blob[record.start..][..1024].copy_from_slice(&rng.bytes(1024)),
            _ => blob[record.end - 1 - rng.below(400)] ^= 255,
        }
        let (found, verdict) = decode(&header, &blob, BF16, &Wanted::All, 0, rng.next());
        for (i, (found, expected)) in found.chunks(8192).zip(expected.chunks(8192)).enumerate() {
            let is_zero = verdict.is_err() && found.iter().all(|&byte| byte == 0);
            assert!(
                if i == block { verdict.is_ok() || is_zero } else { found == expected },
                "block {i} of {round}"
            );
        }
        told += usize::from(verdict.is_err());
    }
    assert!(told >= 40, "{told} of 60");
}
