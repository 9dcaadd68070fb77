//! Deltas, integers, codebooks and layers mean the same to the C++ reader as to the reference decoder, broken ones too.

mod common;

use std::collections::BTreeSet;

use common::deltas::{DeltaPlan, tuned, write_delta};
use common::{
    DTYPES, FILLS, Fill, Rng, checksum_at, encode_in_books, payload, reseal_header, reseal_payload,
    rows_of_their_own, specs, tensor, without_values,
};
use nz_cpp_twin::{decode, decode_delta, decode_to};
use nz_onnx::codec::{self, DeltaDecoder, EncodeOptions, GridStep, reference};
use nz_onnx::format::{Dtype, Header, TensorSpec};

/// Elements for a tensor: floats that fill it, or integers about zero.
fn source(fill: Fill, spec: &TensorSpec, rng: &mut Rng) -> Vec<u8> {
    let n = spec.elements().expect("small") as usize;
    match spec.dtype {
        Dtype::U8 | Dtype::I8 => (0..n).map(|_| (rng.weight() * 900.0) as i8 as u8).collect(),
        dtype => tensor(fill, dtype, n, rng),
    }
}

fn options(rng: &mut Rng) -> EncodeOptions {
    EncodeOptions { block_len: [64, 192, 320, 4096][rng.below(4)], ..Default::default() }
}

/// Both readers' weights at every depth; how many layers there are.
fn check(blob: &[u8], context: &str) -> usize {
    let layers = Header::parse(blob).expect("whole").layers.len();
    for depth in 0..=layers {
        let decoded = decode_to(blob, depth).unwrap_or_else(|e| panic!("{context}: depth {depth}: {e}"));
        assert!(decoded == reference::decode_to(blob, depth).expect("whole"), "{context}: depth {depth}");
    }
    assert_eq!(decode(blob), decode_to(blob, layers), "{context}");
    layers
}

#[test]
fn integers_decode_alike() {
    let mut rng = Rng(300);
    let mut met = BTreeSet::new();
    for spec in [Dtype::U8, Dtype::I8].into_iter().flat_map(specs) {
        for spread in [1, 7, 60, 250] {
            let n = spec.elements().expect("small") as usize;
            let src: Vec<u8> = (0..n).map(|_| (128 + rng.below(spread)) as u8).collect();
            let blob = codec::encode(&src, &spec, &options(&mut rng)).expect("encodes");
            check(&blob, &format!("{spec:?}"));
            assert!(decode(&blob).expect("decodes") == src, "{spec:?}");
            met.insert(Header::parse(&blob).expect("whole").mantissa_bits);
        }
    }
    assert!(met.len() > 2, "numbers of raw bits: {met:?}");
}

#[test]
fn codebooks_decode_alike() {
    let mut rng = Rng(301);
    let mut met = BTreeSet::new();
    for dtype in DTYPES {
        let more = [TensorSpec::column_tiles(dtype, 200, 192, 64), TensorSpec::row_major(dtype, &[96, 256])];
        for spec in specs(dtype).into_iter().chain(more) {
            for fill in FILLS {
                let step = GridStep { cell: rng.below(3), raw_bits: rng.below(4) as u8 };
                let src = match fill {
                    Fill::Weights => rows_of_their_own(&spec, &mut rng),
                    _ => source(fill, &spec, &mut rng),
                };
                let Some(blob) = encode_in_books(&src, &spec, &options(&mut rng), step) else { continue };
                check(&blob, &format!("{spec:?} {fill:?}"));
                let header = Header::parse(&blob).expect("whole");
                met.insert((header.units_of as u8, header.codebook.expect("there").tables.len() > 1));
            }
        }
    }
    let units: BTreeSet<u8> = met.iter().map(|&(units, _)| units).collect();
    assert!(units.len() == 3 && met.iter().any(|&(_, many)| many), "kinds of units, several groups: {met:?}");
}

/// What symbols without a value stand for is a reader's own affair; reading no further than the values is not.
#[test]
fn symbols_without_values_are_survived() {
    let spec = TensorSpec::row_major(Dtype::F32, &[96, 256]);
    let src = source(Fill::Weights, &spec, &mut Rng(302));
    let step = GridStep { cell: 1, raw_bits: 1 };
    let blob = encode_in_books(&src, &spec, &EncodeOptions::default(), step).expect("weights");
    assert_eq!(decode(&without_values(&blob)).expect("weights").len(), src.len());
}

#[test]
fn layers_decode_alike_at_every_depth() {
    let mut rng = Rng(303);
    let mut met = BTreeSet::new();
    let ends: [&[u8]; 7] = [&[0], &[3, 7], &[2, 6, 12], &[7, 15], &[1, 2, 3], &[5], &[1, 22]];
    for spec in DTYPES.into_iter().flat_map(specs) {
        for fill in FILLS {
            let src = source(fill, &spec, &mut rng);
            let raw_bits = rng.below(16) as u8;
            let grid = (rng.below(2) == 0).then_some(GridStep { cell: 1, raw_bits });
            let chosen = EncodeOptions { grid, ..options(&mut rng) };
            let Ok(plain) = codec::encode(&src, &spec, &chosen) else { continue };
            let ends = ends[rng.below(ends.len())];
            let Some(blob) = codec::layer(&plain, ends).expect("whole") else { continue };
            let layers = check(&blob, &format!("{spec:?} {fill:?} {ends:?}"));
            met.insert((Header::parse(&blob).expect("whole").transform as u8, layers));
        }
    }
    assert!(met.len() >= 6, "transforms and numbers of layers: {met:?}");
}

#[test]
fn deltas_decode_alike() {
    let mut rng = Rng(304);
    for spec in DTYPES.into_iter().flat_map(specs) {
        for fill in FILLS {
            let base = source(fill, &spec, &mut rng);
            let src = tuned(&base, spec.dtype, &mut rng);
            let at = format!("{spec:?} {fill:?}");
            let delta = codec::encode_delta(&src, &base, spec.dtype, &spec.shape).expect("encodes");
            assert!(decode_delta(&delta, &base).unwrap_or_else(|e| panic!("{at}: {e}")) == src, "{at}");

            let blob = codec::encode(&base, &spec, &options(&mut rng)).expect("encodes");
            for delta in [
                codec::encode_delta_to_blob(&src, &blob).expect("encodes"),
                write_delta(&src, &blob, &DeltaPlan::random(&mut rng)),
            ] {
                assert!(decode_delta(&delta, &blob).unwrap_or_else(|e| panic!("{at}: {e}")) == src, "{at}");
                let other = codec::encode(&src, &spec, &options(&mut rng)).expect("encodes");
                assert!(other == blob || decode_delta(&delta, &other).is_err(), "{at}: another base");
            }
        }
    }
}

/// A blob's name and bytes, and its base if it is a delta.
type Sample = (&'static str, Vec<u8>, Option<Vec<u8>>);

/// A blob of each kind.
fn samples() -> Vec<Sample> {
    let mut rng = Rng(305);
    let small = EncodeOptions { block_len: 320, ..Default::default() };
    let tiles = |dtype| TensorSpec::column_tiles(dtype, 21, 192, 128);
    let float = source(Fill::Weights, &tiles(Dtype::F32), &mut rng);
    let integer = source(Fill::Weights, &tiles(Dtype::I8), &mut rng);
    let bf16 = TensorSpec::row_major(Dtype::Bf16, &[3000]);
    let base = source(Fill::Weights, &bf16, &mut rng);
    let src = tuned(&base, Dtype::Bf16, &mut rng);
    let of_plain = codec::encode_delta(&src, &base, Dtype::Bf16, &[3000]).expect("encodes");
    let blob = codec::encode(&base, &bf16, &small).expect("encodes");
    let of_blob = write_delta(&src, &blob, &DeltaPlan { block_len: 320, ..DeltaPlan::random(&mut rng) });
    let split = codec::encode(&float, &tiles(Dtype::F32), &small).expect("encodes");
    let on_grid = EncodeOptions { grid: Some(GridStep { cell: 1, raw_bits: 6 }), ..small };
    let on_grid = codec::encode(&float, &tiles(Dtype::F32), &on_grid).expect("encodes");
    let step = GridStep { cell: 1, raw_bits: 1 };
    vec![
        ("integer", codec::encode(&integer, &tiles(Dtype::I8), &small).expect("encodes"), None),
        ("codebook", encode_in_books(&float, &tiles(Dtype::F32), &small, step).expect("weights"), None),
        ("layers", codec::layer(&split, &[3, 12]).expect("whole").expect("bits for layers"), None),
        ("grid in layers", codec::layer(&on_grid, &[2]).expect("whole").expect("bits for a layer"), None),
        ("delta", of_plain, Some(base)),
        ("delta to a blob", of_blob, Some(blob)),
    ]
}

/// What the two readers make of a blob.
fn both(blob: &[u8], base: Option<&Vec<u8>>) -> [Option<Vec<u8>>; 2] {
    match base {
        Some(base) => {
            // A base that is a blob starts as one does.
            let of_blob = base.starts_with(b"\x89NZB");
            let rust = match of_blob {
                true => DeltaDecoder::open(blob, base).and_then(|delta| delta.decode_bytes(blob, base)),
                false => codec::decode_delta(blob, base),
            };
            [decode_delta(blob, base).ok(), rust.ok()]
        }
        None => [decode(blob).ok(), codec::decode(blob).ok()],
    }
}

#[test]
fn truncations_and_changed_bytes_are_noticed() {
    for (name, blob, base) in samples() {
        let base = base.as_ref();
        let whole = both(&blob, base);
        assert!(whole[0].is_some() && whole[0] == whole[1], "{name}");
        for len in 0..blob.len() {
            assert!(both(&blob[..len], base)[0].is_none(), "{name}: {len} bytes");
        }
        for at in 0..blob.len() {
            let mut broken = blob.clone();
            broken[at] ^= 0x10;
            assert!(both(&broken, base)[0].is_none(), "{name}: byte {at}");
        }
    }
}

/// Headers that are wrong behind a right checksum: both take and refuse the same ones.
#[test]
fn headers_changed_behind_a_right_checksum_are_judged_alike() {
    let mut rng = Rng(306);
    let mut differences = vec![];
    for (name, blob, base) in samples() {
        for at in 0..checksum_at(&blob).expect("a whole blob") {
            for _ in 0..12 {
                let mut broken = blob.clone();
                broken[at] = rng.mutated(broken[at]);
                reseal_header(&mut broken);
                let [cpp, rust] = both(&broken, base.as_ref());
                // A word that no weight has is each reader's own affair: symbols without values, too large integers.
                let free = matches!(name, "codebook" | "integer") && cpp.is_some() && rust.is_some();
                if cpp != rust && !free {
                    let lens = [cpp, rust].map(|bytes| bytes.map(|b| b.len()));
                    differences.push(format!("{name}: byte {at} = {}: C++ and Rust {lens:?}", broken[at]));
                }
            }
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

/// Behind right checksums the decoders themselves meet the changed bits.
#[test]
fn changed_payloads_behind_right_checksums_give_an_error_or_a_tensor() {
    let mut rng = Rng(307);
    for (name, blob, base) in samples() {
        let len = both(&blob, base.as_ref())[0].as_ref().expect("whole").len();
        let mut verdicts = [0; 2];
        for _ in 0..1000 {
            let mut broken = blob.clone();
            let range = payload(&blob);
            for _ in 0..1 + rng.below(4) {
                broken[range.start + rng.below(range.len())] ^= 1 << rng.below(8);
            }
            reseal_payload(&mut broken);
            let [cpp, rust] = both(&broken, base.as_ref());
            assert!(cpp.iter().chain(&rust).all(|bytes| bytes.len() == len), "{name}");
            verdicts[usize::from(cpp.is_some())] += 1;
        }
        assert!(verdicts.iter().all(|&n| n > 0), "{name}: both verdicts are met: {verdicts:?}");
    }
}
