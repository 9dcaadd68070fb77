//! The CUDA kernels over blobs in layers, at every depth, on the CPU against the reference decoder: bit for bit.

mod common;

use std::collections::HashSet;

use common::device::{Wanted, check_to, decode, decode_to};
use common::writer::{Plan, write};
use common::{DTYPES, FILLS, Fill, Rng, specs, tensor};
use nz_onnx::codec::{self, EncodeOptions, GridStep, Profile, reference};
use nz_onnx::format::{Dtype, Header, Layout, TensorSpec, Transform};

const ENDS: [&[u8]; 8] = [&[0], &[3, 7], &[2, 6, 12], &[7, 15], &[1, 2, 3], &[5], &[0, 8, 16], &[1, 22]];

fn source(fill: Fill, spec: &TensorSpec, rng: &mut Rng) -> Vec<u8> {
    tensor(fill, spec.dtype, spec.elements().expect("small") as usize, rng)
}

/// Compares at every depth; how many layers there are.
fn check(blob: &[u8], context: &str, rng: &mut Rng) -> usize {
    let layers = Header::parse(blob).expect("whole").layers.len();
    for depth in 0..=layers {
        let expected = reference::decode_to(blob, depth).expect("whole");
        check_to(blob, depth, &expected, &format!("depth {depth} of {context}"), rng);
    }
    layers
}

/// All dtypes, fills, shapes and profiles; blocks with raw bits of their own; subnormals normalised and not.
#[test]
fn layers_decode_as_the_reference_says() {
    let mut rng = Rng(110);
    let mut met = HashSet::new();
    for spec in DTYPES.into_iter().flat_map(specs) {
        for fill in FILLS {
            let src = source(fill, &spec, &mut rng);
            let options = EncodeOptions {
                mantissa_bits: [None, None, Some(spec.dtype.mantissa_bits() * 2 / 3)][rng.below(3)],
                block_len: [64, 192, 1024, 4096][rng.below(4)],
                profile: [Profile::Compact, Profile::Fast, Profile::Gpu][rng.below(3)],
                ..Default::default()
            };
            let plain = codec::encode(&src, &spec, &options).expect("encodes");
            let ends = ENDS[rng.below(ENDS.len())];
            let Some(blob) = codec::layer(&plain, ends).expect("whole") else { continue };
            let layers = check(&blob, &format!("{spec:?} {fill:?} {options:?} {ends:?}"), &mut rng);
            met.insert((spec.dtype, Header::parse(&blob).expect("whole").transform, layers));
        }
    }
    let kinds: HashSet<_> = met.iter().map(|(dtype, transform, _)| (*dtype, *transform)).collect();
    let depths: HashSet<_> = met.iter().map(|(.., layers)| *layers).collect();
    // A float16 has no subnormal words.
    assert!(kinds.len() == 5 && depths.len() == 3, "{met:?}");
}

/// Subnormal bfloat16 weights of every size and float16 ones, where there is a bit for the middle of few.
#[test]
fn middles_of_subnormals_are_those_of_the_reference() {
    let mut rng = Rng(111);
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let spec = TensorSpec::row_major(dtype, &[9000]);
        let src = source(Fill::Subnormals, &spec, &mut rng);
        let plan = |normalise| Plan {
            block_len: 1024,
            tiers: vec![(2, vec![121, 120, 122]), (3, vec![119, 118, 250, 251, 252, 253, 254])],
            spare_bits: 0,
            bits_per_block: true,
            normalise,
        };
        for normalise in [false, true] {
            let plain = write(&src, &spec, &plan(normalise), &mut rng);
            for ends in [&[0, 1, 2][..], &[3, 4, 5], &[6], &[1, 5, 9]] {
                let Some(blob) = codec::layer(&plain, ends).expect("whole") else { continue };
                check(&blob, &format!("{dtype:?} {normalise} {ends:?}"), &mut rng);
            }
        }
    }
}

/// Levels with one unit, units of blocks and of rows, centred and not: their middle is of the grid, not of a block.
#[test]
fn grids_in_layers_decode_as_the_reference_says() {
    let mut rng = Rng(112);
    let mut met = HashSet::new();
    for dtype in DTYPES {
        for raw_bits in 1..=15 {
            for spec in [
                TensorSpec::row_major(dtype, &[5, 911]),
                TensorSpec::row_major(dtype, &[70]),
                TensorSpec::column_tiles(dtype, 37, 320, 128),
                TensorSpec::column_tiles(dtype, 31, 201, 128),
            ] {
                let mut src = source(Fill::Weights, &spec, &mut rng);
                // A zero: levels are not centred.
                let zeros = dtype.size() * rng.below(2);
                src[..zeros].fill(0);
                let options = EncodeOptions {
                    grid: Some(GridStep { cell: rng.below(4), raw_bits }),
                    block_len: [64, 192, 1024, 4096][rng.below(4)],
                    ..Default::default()
                };
                let plain = codec::encode(&src, &spec, &options).expect("encodes");
                let header = Header::parse(&plain).expect("whole");
                let ends = vec![vec![raw_bits / 2], vec![0, raw_bits / 2 + 1], vec![raw_bits - 1]]
                    .swap_remove(rng.below(3));
                let Some(blob) = codec::layer(&plain, &ends).expect("whole") else { continue };
                assert_eq!(header.transform, Transform::Grid);
                met.insert((header.units_of, header.units[0].is_centred()));
                check(&blob, &format!("{spec:?} {options:?} {ends:?}"), &mut rng);
            }
        }
    }
    assert!(met.len() >= 5, "kinds of grids: {met:?}");
}

/// Ranges of slots, sets of tiles and gathered rows, at every depth.
#[test]
fn parts_are_those_of_the_whole() {
    let mut rng = Rng(113);
    for dtype in DTYPES {
        for spec in [TensorSpec::row_major(dtype, &[40, 300]), TensorSpec::column_tiles(dtype, 70, 320, 128)]
        {
            let src = source(Fill::Weights, &spec, &mut rng);
            let options = EncodeOptions { block_len: [256, 4096][rng.below(2)], ..Default::default() };
            let plain = codec::encode(&src, &spec, &options).expect("encodes");
            let blob = codec::layer(&plain, &[2, 5]).expect("whole").expect("bits");
            let header = Header::parse(&blob).expect("whole");
            let row = spec.shape[1] as usize * dtype.size();
            for depth in 0..=2 {
                let whole = reference::decode_to(&blob, depth).expect("whole");
                let part = |wanted: Wanted, rng: &mut Rng| {
                    let (decoded, verdict) =
                        decode_to((&header, depth), &blob, dtype, &wanted, 4, rng.next());
                    assert!(verdict.is_ok(), "{verdict:?}");
                    decoded
                };
                if spec.layout == Layout::RowMajor {
                    let at = 700 * dtype.size();
                    let decoded = part(Wanted::Slots(700, 5000), &mut rng);
                    assert!(decoded == whole[at..at + 5000 * dtype.size()], "{spec:?}");
                    let rows = [3, -1, 0, 3, 22, -40];
                    let of = |i: &i64| whole[i.rem_euclid(40) as usize * row..][..row].to_vec();
                    let expected: Vec<u8> = rows.iter().flat_map(of).collect();
                    assert!(part(Wanted::Rows(rows.to_vec()), &mut rng) == expected, "{spec:?}");
                } else {
                    let columns = 128 * dtype.size()..256 * dtype.size();
                    let expected: Vec<u8> =
                        whole.chunks(row).flat_map(|row| row[columns.clone()].to_vec()).collect();
                    assert!(part(Wanted::Columns(128, 128), &mut rng) == expected, "{spec:?}");
                }
            }
        }
    }
}

/// Orders of warps and lanes, with mantissas that are put together by some lanes and read by others.
#[test]
fn the_order_of_warps_and_lanes_does_not_matter() {
    let mut rng = Rng(114);
    let spec = TensorSpec::row_major(Dtype::F32, &[4096 + 777]);
    let src = source(Fill::Weights, &spec, &mut rng);
    let plain = codec::encode(&src, &spec, &EncodeOptions::default()).expect("encodes");
    let blob = codec::layer(&plain, &[3, 9]).expect("whole").expect("bits");
    let header = Header::parse(&blob).expect("whole");
    for seed in 0..20 {
        let (decoded, verdict) = decode(&header, &blob, Dtype::F32, &Wanted::All, 0, seed);
        assert!(verdict.is_ok() && decoded == src, "seed {seed}");
    }
}
