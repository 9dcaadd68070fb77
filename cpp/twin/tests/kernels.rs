//! The CUDA decode kernels on the CPU against the reference decoder: bit for bit, in any order of warps and lanes.

mod common;

use common::device::{Wanted, check_all, decode};
use common::writer::{Plan, write};
use common::{DTYPES, FILLS, Fill, Rng, specs, tensor};
use nz_onnx::codec::{self, EncodeOptions, GridStep, Profile, reference};
use nz_onnx::format::{Dtype, Header, Layout, TensorSpec, Transform};

const PROFILES: [Profile; 3] = [Profile::Compact, Profile::Fast, Profile::Gpu];

fn source(fill: Fill, spec: &TensorSpec, rng: &mut Rng) -> Vec<u8> {
    tensor(fill, spec.dtype, spec.elements().expect("small") as usize, rng)
}

/// Decodes the whole blob to its own type and to float32, and compares with the reference.
fn check(blob: &[u8], context: &str, rng: &mut Rng) {
    check_all(blob, &reference::decode(blob).expect("whole"), context, rng);
}

/// Every dtype, fill, shape and layout that the other tests have, with every block length that they have.
#[test]
fn lossless_blobs_decode_as_the_reference_says() {
    let mut rng = Rng(60);
    for spec in DTYPES.into_iter().flat_map(specs) {
        for fill in FILLS {
            let src = source(fill, &spec, &mut rng);
            let block_len = [64, 192, 576, 1024, 4096][rng.below(5)];
            let profile = PROFILES[rng.below(3)];
            let options = EncodeOptions { block_len, profile, ..Default::default() };
            let blob = codec::encode(&src, &spec, &options).expect("encodes");
            check(&blob, &format!("{spec:?} {fill:?} blocks of {block_len}, {profile:?}"), &mut rng);
        }
    }
}

/// Every number of mantissa bits of every dtype, with both profiles.
#[test]
fn cut_mantissas_decode_as_the_reference_says() {
    let mut rng = Rng(61);
    for dtype in DTYPES {
        for k in 0..dtype.mantissa_bits() {
            for fill in [Fill::Weights, Fill::Subnormals, Fill::Specials] {
                let spec = match rng.below(2) {
                    0 => TensorSpec::row_major(dtype, &[5, 911]),
                    _ => TensorSpec::column_tiles(dtype, 37, 201, 128),
                };
                let src = source(fill, &spec, &mut rng);
                let profile = PROFILES[rng.below(3)];
                let options = EncodeOptions { mantissa_bits: Some(k), profile, ..Default::default() };
                let blob = codec::encode(&src, &spec, &options).expect("encodes");
                check(&blob, &format!("{spec:?} {fill:?} {k} bits, {profile:?}"), &mut rng);
            }
        }
    }
}

/// Whole blocks with the profile that has a short way of its own, with every number of mantissa bits, and tails of all
/// lengths: down from mere escapes.
#[test]
fn blocks_of_two_bit_codes_decode_as_the_reference_says() {
    let mut rng = Rng(73);
    let mut tiers_met = std::collections::HashSet::new();
    for dtype in DTYPES {
        for mantissa_bits in (0..dtype.mantissa_bits()).map(Some).chain([None]) {
            for fill in [Fill::Weights, FILLS[rng.below(FILLS.len())]] {
                let spec = match rng.below(3) {
                    0 => TensorSpec::row_major(dtype, &[3, 5000]),
                    1 => TensorSpec::column_tiles(dtype, 50, 320, 256),
                    _ => TensorSpec::column_tiles(dtype, 200, 70, 64),
                };
                let src = source(fill, &spec, &mut rng);
                let grid = (mantissa_bits.is_some_and(|k| k < 9) && rng.below(4) == 0)
                    .then(|| GridStep { cell: 0, raw_bits: mantissa_bits.unwrap_or(0) });
                let mantissa_bits = if grid.is_some() { None } else { mantissa_bits };
                let options =
                    EncodeOptions { mantissa_bits, grid, profile: Profile::Gpu, ..Default::default() };
                let Ok(blob) = codec::encode(&src, &spec, &options) else { continue };
                tiers_met.insert(Header::parse(&blob).expect("whole").tiers.len());
                check(&blob, &format!("{spec:?} {fill:?} {options:?}"), &mut rng);
            }
        }
        // Tiers that no symbol is in, or few: all go to the tails.
        for skipped in [0, 1, 2, 5, 9] {
            let spec = TensorSpec::row_major(dtype, &[2, 4500]);
            let src = source(Fill::Weights, &spec, &mut rng);
            let symbols: Vec<u8> = (0..skipped).chain((80..=128).rev()).collect();
            let tiers =
                symbols.chunks_exact(3).take(1 + rng.below(5)).map(|three| (2, three.to_vec())).collect();
            let plan = Plan { block_len: 4096, tiers, spare_bits: 2, bits_per_block: true, normalise: true };
            let blob = write(&src, &spec, &plan, &mut rng);
            check(&blob, &format!("{spec:?} tiers {:?}", plan.tiers), &mut rng);
        }
    }
    assert!(tiers_met.contains(&2), "{tiers_met:?}");
}

/// Grids of every number of raw bits: with one unit, units of blocks and of rows, centred and not.
#[test]
fn grids_decode_as_the_reference_says() {
    let mut rng = Rng(72);
    let mut met = std::collections::HashSet::new();
    for dtype in DTYPES {
        for raw_bits in 0..=15 {
            for spec in [
                TensorSpec::row_major(dtype, &[5, 911]),
                TensorSpec::row_major(dtype, &[50]),
                TensorSpec::column_tiles(dtype, 37, 320, 128),
                TensorSpec::column_tiles(dtype, 200, 64, 64),
                TensorSpec::column_tiles(dtype, 31, 201, 128),
            ] {
                let fill = [Fill::Weights, Fill::Weights, Fill::Zeros][rng.below(3)];
                let mut src = source(fill, &spec, &mut rng);
                // A zero, at the front or at the end: levels are not centred.
                let at = [0, src.len() - dtype.size(), src.len()][rng.below(3)];
                src[at..].iter_mut().take(dtype.size()).for_each(|byte| *byte = 0);
                let grid = Some(GridStep { cell: rng.below(4), raw_bits });
                let block_len = [64, 192, 1024, 4096][rng.below(4)];
                let options = EncodeOptions { grid, block_len, ..Default::default() };
                // What no grid can hold has no blob.
                let Ok(blob) = codec::encode(&src, &spec, &options) else { continue };
                let header = Header::parse(&blob).expect("whole");
                if header.transform != Transform::Grid {
                    continue;
                }
                met.insert((header.units_of, header.units[0].is_centred(), dtype));
                check(&blob, &format!("{spec:?} {fill:?} {options:?}"), &mut rng);
            }
        }
    }
    assert_eq!(met.len(), 18, "all kinds of grids are met: {met:?}");
}

/// Any tiers that the format allows, widths that no writer of ours takes, and more bits than needed.
#[test]
fn free_form_blobs_decode_as_the_reference_says() {
    let mut rng = Rng(62);
    for round in 0..150 {
        let dtype = DTYPES[rng.below(3)];
        let spec = specs(dtype).swap_remove(rng.below(13));
        let fill = FILLS[rng.below(FILLS.len())];
        let src = source(fill, &spec, &mut rng);
        let plan = Plan::random(&mut rng);
        let blob = write(&src, &spec, &plan, &mut rng);
        check(&blob, &format!("round {round}: {spec:?} {fill:?} tiers {:?}", plan.tiers), &mut rng);
    }
}

/// All 65536 values of the two-byte formats.
#[test]
fn every_two_byte_pattern_decodes() {
    let src: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for dtype in [Dtype::F16, Dtype::Bf16] {
        for spec in [TensorSpec::row_major(dtype, &[65_536]), TensorSpec::column_tiles(dtype, 256, 256, 64)] {
            let blob = codec::encode(&src, &spec, &EncodeOptions::default()).expect("encodes");
            check(&blob, &format!("{spec:?}"), &mut Rng(63));
        }
    }
}

/// All golden files.
#[test]
fn golden_files_decode() {
    let folder = common::compiler::cpp_folder().join("../tests/golden");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("there").map(|e| e.expect("there").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "nzb"));
    assert!(files.len() > 20);
    let mut rng = Rng(64);
    for path in files {
        let blob = std::fs::read(&path).expect("read");
        check(&blob, &path.display().to_string(), &mut rng);
    }
}

/// Many orders of warps and lanes give the same.
#[test]
fn the_order_of_warps_and_lanes_does_not_matter() {
    let mut rng = Rng(65);
    let spec = TensorSpec::row_major(Dtype::Bf16, &[4096 + 777]);
    let src = source(Fill::Weights, &spec, &mut rng);
    let blob = codec::encode(&src, &spec, &EncodeOptions::default()).expect("encodes");
    let header = Header::parse(&blob).expect("whole");
    for seed in 0..40 {
        let (decoded, verdict) = decode(&header, &blob, Dtype::Bf16, &Wanted::All, 0, seed);
        assert!(verdict.is_ok() && decoded == src, "seed {seed}");
    }
}

/// Ranges of slots, as a product takes them: whole tiles, rows, and any others.
#[test]
fn ranges_decode_as_the_codec_says() {
    let mut rng = Rng(66);
    for dtype in DTYPES {
        for spec in [[31, 700, 0], [70, 301, 128], [31, 700, 0], [70, 301, 128], [100, 301, 64]].map(
            |[k, n, tile]| match tile {
                0 => TensorSpec::row_major(dtype, &[k, n]),
                _ => TensorSpec::column_tiles(dtype, k, n, tile as u32),
            },
        ) {
            let src = source(Fill::Weights, &spec, &mut rng);
            let (block_len, profile) = [(1024, Profile::Compact), (4096, Profile::Gpu)][rng.below(2)];
            let options = EncodeOptions { block_len, profile, ..Default::default() };
            let blob = codec::encode(&src, &spec, &options).expect("encodes");
            let decoder = codec::Decoder::open(&blob).expect("whole");
            let elements = spec.elements().expect("small");
            let tile = match spec.layout {
                Layout::RowMajor => 700,
                Layout::ColumnTiles { tile } => spec.shape[0] * u64::from(tile),
            };
            let mut ranges = vec![
                (0, 1),
                (elements - 1, 1),
                (0, elements),
                (tile, tile),
                (2 * tile, tile.min(elements - 2 * tile)),
            ];
            for _ in 0..12 {
                let first = rng.below(elements as usize) as u64;
                ranges.push((first, 1 + rng.below((elements - first) as usize) as u64));
            }
            for (first, slots) in ranges {
                let mut expected = vec![0u8; slots as usize * dtype.size()];
                decoder.decode_elements(&blob, first, &mut expected).expect("in range");
                let (decoded, verdict) =
                    decode(decoder.header(), &blob, dtype, &Wanted::Slots(first, slots), 4, rng.next());
                assert!(verdict.is_ok() && decoded == expected, "{spec:?}: {slots} from {first}");
            }
        }
    }
}

/// Columns, as a product takes them: sets of whole tiles, as one matrix.
#[test]
fn columns_decode_as_one_matrix() {
    let mut rng = Rng(74);
    for dtype in DTYPES {
        for profile in PROFILES {
            for (k, n, tile) in [(70, 320, 64), (33, 301, 128), (40, 700, 256)] {
                let spec = TensorSpec::column_tiles(dtype, k, n, tile);
                let src = source(Fill::Weights, &spec, &mut rng);
                let options = EncodeOptions { profile, ..Default::default() };
                let blob = codec::encode(&src, &spec, &options).expect("encodes");
                let header = Header::parse(&blob).expect("whole");
                let tile = u64::from(tile);
                for (first, columns) in
                    [(0, tile), (tile, tile), (tile, n - tile), (n / tile * tile, n % tile), (0, n)]
                {
                    if columns == 0 {
                        continue;
                    }
                    let size = dtype.size();
                    let rows = src.chunks(n as usize * size);
                    let wanted: Vec<u8> = rows
                        .flat_map(|row| row[first as usize * size..][..columns as usize * size].to_vec())
                        .collect();
                    let all = Wanted::Columns(first, columns);
                    let (decoded, verdict) = decode(&header, &blob, dtype, &all, 0, rng.next());
                    assert!(
                        verdict.is_ok() && decoded == wanted,
                        "{spec:?} {profile:?}: {columns} from {first}"
                    );
                }
            }
        }
    }
}

/// Rows by index of both sizes, of both signs, more than once; rows shorter and longer than blocks.
#[test]
fn gathered_rows_are_those_of_the_tensor() {
    let mut rng = Rng(67);
    for dtype in DTYPES {
        for shape in [[50, 96], [50, 97], [9, 1024], [9, 1500], [300, 1]] {
            let spec = TensorSpec::row_major(dtype, &shape);
            let src = source(Fill::Weights, &spec, &mut rng);
            let options = EncodeOptions { block_len: 1024, ..Default::default() };
            let blob = codec::encode(&src, &spec, &options).expect("encodes");
            let header = Header::parse(&blob).expect("whole");
            let rows = shape[0] as i64;
            let mut indices = vec![0, rows - 1, -1, -rows, 3, 3];
            indices.extend((0..5).map(|_| rng.below(rows as usize) as i64));
            let row = shape[1] as usize * dtype.size();
            let expected: Vec<u8> = indices
                .iter()
                .flat_map(|&i| src[i.rem_euclid(rows) as usize * row..][..row].to_vec())
                .collect();
            let short = indices.iter().map(|&i| i as i32).collect();
            for wanted in [Wanted::Rows(indices.clone()), Wanted::ShortRows(short)] {
                let (decoded, verdict) = decode(&header, &blob, dtype, &wanted, 0, rng.next());
                assert!(verdict.is_ok() && decoded == expected, "{spec:?} {wanted:?}");
            }
        }
    }
}

/// An index that names no row gives a row of zeros and a status, whatever it is.
#[test]
fn indices_out_of_range_are_told() {
    let spec = TensorSpec::row_major(Dtype::F32, &[10, 100]);
    let src = source(Fill::Weights, &spec, &mut Rng(68));
    let blob = codec::encode(&src, &spec, &EncodeOptions::default()).expect("encodes");
    let header = Header::parse(&blob).expect("whole");
    for index in [10, -11, i64::MAX, i64::MIN, 1 << 40] {
        let wanted = Wanted::Rows(vec![1, index, -2]);
        let (decoded, verdict) = decode(&header, &blob, Dtype::F32, &wanted, 0, 1);
        assert!(verdict.expect_err("out of range").to_string().contains("index"));
        assert_eq!(decoded, [&src[400..800], &[0; 400], &src[3200..3600]].concat(), "{index}");
    }
}

/// Whatever comes to be in the payload, other blocks stay right, and a damaged one is told and zero. That nothing
/// outside is read is for the sanitizer to say (`simt_faults.rs`); what is written, [`common::device::Memory`] sees.
#[test]
fn changed_payloads_stay_in_their_blocks() {
    let mut rng = Rng(69);
    let (mut told, mut untold) = (0, 0);
    for dtype in DTYPES {
        let spec = TensorSpec::row_major(dtype, &[6, 500]);
        let src = source(Fill::Weights, &spec, &mut rng);
        let options = EncodeOptions { block_len: 640, ..Default::default() };
        let blob = codec::encode(&src, &spec, &options).expect("encodes");
        let header = Header::parse(&blob).expect("whole");
        for _ in 0..60 {
            let mut changed = blob.clone();
            let record = header.record(1);
            match rng.below(3) {
                0 => changed[record].fill(0xff),
                1 => changed[record].iter_mut().for_each(|byte| *byte = rng.next() as u8),
                _ => changed[record.start + rng.below(record.len())] ^= 1 << rng.below(8),
            }
            let (decoded, verdict) = decode(&header, &changed, dtype, &Wanted::All, 8, rng.next());
            let (before, behind) = (640 * dtype.size(), 1280 * dtype.size());
            assert!(decoded[..before] == src[..before] && decoded[behind..] == src[behind..]);
            if verdict.is_err() {
                assert!(decoded[before..behind].iter().all(|&byte| byte == 0));
                told += 1;
            } else {
                untold += 1;
            }
        }
    }
    assert!(told > 20 && untold > 5, "both verdicts are met: {told} and {untold}");
}
