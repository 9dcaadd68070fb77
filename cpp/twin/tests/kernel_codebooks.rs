//! The CUDA kernels over blobs of codebooks, on the CPU against the reference decoder: bit for bit.

mod common;

use std::collections::HashSet;

use common::device::{Wanted, check_all, decode};
use common::{DTYPES, Fill, Rng, encode_in_books, rows_of_their_own, tensor, without_values};
use nz_onnx::codec::{EncodeOptions, GridStep, Profile, reference};
use nz_onnx::format::{Dtype, Header, Layout, TensorSpec, Transform};

/// One unit, units of blocks and of rows; one codebook and several; values of all sizes; ragged blocks and tiles.
#[test]
fn codebooks_decode_as_the_reference_says() {
    let mut rng = Rng(90);
    let mut met = HashSet::new();
    for dtype in DTYPES {
        for spec in [
            TensorSpec::row_major(dtype, &[5, 911]),
            TensorSpec::row_major(dtype, &[50]),
            TensorSpec::row_major(dtype, &[96, 256]),
            TensorSpec::column_tiles(dtype, 37, 320, 128),
            TensorSpec::column_tiles(dtype, 200, 192, 64),
            TensorSpec::column_tiles(dtype, 31, 201, 128),
        ] {
            for profile in [Profile::Compact, Profile::Fast, Profile::Gpu] {
                let src = match rng.below(4) {
                    // A few values far out, and units that are large or small.
                    0 => rows_of_their_own(&spec, &mut rng).into_iter().rev().collect(),
                    _ => rows_of_their_own(&spec, &mut rng),
                };
                let block_len = [64, 192, 1024, 4096][rng.below(4)];
                let options = EncodeOptions { block_len, profile, ..Default::default() };
                let step = GridStep { cell: rng.below(3), raw_bits: rng.below(4) as u8 };
                // Reversed bytes may be no finite weights.
                let Some(blob) = encode_in_books(&src, &spec, &options, step) else { continue };
                let header = Header::parse(&blob).expect("whole");
                assert_eq!(header.transform, Transform::Codebook);
                let books = header.codebook.as_ref().expect("there").tables.len();
                met.insert((header.units_of, books > 1));
                let expected = reference::decode(&blob).expect("whole");
                check_all(&blob, &expected, &format!("{spec:?} {options:?} {step:?}"), &mut rng);
            }
        }
    }
    assert!(met.len() >= 4, "kinds of units, with one codebook and several: {met:?}");
    assert!(met.iter().any(|(_, several)| *several), "{met:?}");
}

/// Ranges of slots, sets of tiles and gathered rows have the units and codebooks of where they are.
#[test]
fn parts_of_codebooks_are_those_of_the_whole() {
    let mut rng = Rng(91);
    for dtype in DTYPES {
        for spec in [TensorSpec::row_major(dtype, &[40, 300]), TensorSpec::column_tiles(dtype, 70, 320, 128)]
        {
            let src = rows_of_their_own(&spec, &mut rng);
            let options = EncodeOptions { block_len: [256, 4096][rng.below(2)], ..Default::default() };
            let step = GridStep { cell: 0, raw_bits: 2 };
            let blob = encode_in_books(&src, &spec, &options, step).expect("finite weights");
            let header = Header::parse(&blob).expect("whole");
            let whole = reference::decode(&blob).expect("whole");
            let row = spec.shape[1] as usize * dtype.size();
            let part = |wanted: Wanted, rng: &mut Rng| {
                let (decoded, verdict) = decode(&header, &blob, dtype, &wanted, 4, rng.next());
                assert!(verdict.is_ok(), "{verdict:?}");
                decoded
            };
            if spec.layout == Layout::RowMajor {
                let at = 700 * dtype.size();
                let decoded = part(Wanted::Slots(700, 5000), &mut rng);
                assert!(decoded == whole[at..at + 5000 * dtype.size()], "{spec:?}");
                let rows = [3, -1, 0, 3, 22, -40];
                let expected: Vec<u8> = rows
                    .iter()
                    .flat_map(|i: &i64| whole[i.rem_euclid(40) as usize * row..][..row].to_vec())
                    .collect();
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

/// Symbols that have no value are told from others by their lower 5 bits alone, by the reference too.
#[test]
fn symbols_without_a_value_stay_in_their_codebook() {
    let mut rng = Rng(92);
    let spec = TensorSpec::row_major(Dtype::F32, &[64, 64]);
    let src = tensor(Fill::Weights, Dtype::F32, 4096, &mut rng);
    let step = GridStep { cell: 1, raw_bits: 0 };
    let blob = encode_in_books(&src, &spec, &EncodeOptions::default(), step).expect("finite weights");
    let changed = without_values(&blob);
    let expected = reference::decode(&changed).expect("whole");
    assert!(changed != blob && expected == reference::decode(&blob).expect("whole"));
    check_all(&changed, &expected, "other symbols", &mut rng);
}
