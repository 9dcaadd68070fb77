//! Blobs that the codec writes mean the same to the C++ reader.

mod common;

use common::{DTYPES, FILLS, Fill, Rng, specs, tensor};
use nz_onnx::codec::{self, EncodeOptions, GridStep};
use nz_onnx::format::{self, Dtype, Layout, TensorSpec, Transform};

fn source(fill: Fill, spec: &TensorSpec, rng: &mut Rng) -> Vec<u8> {
    tensor(fill, spec.dtype, spec.elements().expect("small") as usize, rng)
}

/// Every dtype, fill, shape and layout, with block lengths that divide nothing.
#[test]
fn lossless_blobs_give_the_source_back() {
    let mut rng = Rng(10);
    for spec in DTYPES.into_iter().flat_map(specs) {
        for fill in FILLS {
            let src = source(fill, &spec, &mut rng);
            for block_len in [64, 192, 1024, 4096] {
                let options = EncodeOptions { block_len, ..Default::default() };
                let blob = codec::encode(&src, &spec, &options).expect("encodes");
                let decoded = nz_cpp_twin::decode(&blob).unwrap_or_else(|e| panic!("{spec:?} {fill:?}: {e}"));
                assert!(decoded == src, "{spec:?} {fill:?} blocks of {block_len}");
            }
        }
    }
}

/// Every mantissa length of every dtype: what C++ decodes is what Rust decodes.
#[test]
fn cut_mantissas_decode_alike() {
    let mut rng = Rng(11);
    for dtype in DTYPES {
        for spec in [TensorSpec::row_major(dtype, &[5, 911]), TensorSpec::column_tiles(dtype, 37, 201, 128)] {
            for fill in FILLS {
                let src = source(fill, &spec, &mut rng);
                for k in 0..dtype.mantissa_bits() {
                    let options = EncodeOptions { mantissa_bits: Some(k), ..Default::default() };
                    let blob = codec::encode(&src, &spec, &options).expect("encodes");
                    let decoded =
                        nz_cpp_twin::decode(&blob).unwrap_or_else(|e| panic!("{spec:?} {fill:?} {k}: {e}"));
                    assert!(decoded == codec::decode(&blob).expect("decodes"), "{spec:?} {fill:?} {k} bits");
                }
            }
        }
    }
}

/// Grids of every number of raw bits: header and weights are those that Rust reads, wherever a grid can hold them.
#[test]
fn grids_decode_alike() {
    let mut rng = Rng(13);
    let mut units_of = std::collections::BTreeSet::new();
    for dtype in DTYPES {
        let more = [TensorSpec::column_tiles(dtype, 37, 192, 128), TensorSpec::row_major(dtype, &[5, 911])];
        for spec in specs(dtype).into_iter().chain(more) {
            for fill in FILLS {
                let src = source(fill, &spec, &mut rng);
                for raw_bits in 0..=15 {
                    let grid = Some(GridStep { cell: usize::from(raw_bits % 4), raw_bits });
                    let options = EncodeOptions { grid, block_len: 320, ..Default::default() };
                    let Ok(blob) = codec::encode(&src, &spec, &options) else { continue };
                    let at = format!("{spec:?} {fill:?} {raw_bits}");
                    let decoded = nz_cpp_twin::decode(&blob).unwrap_or_else(|e| panic!("{at}: {e}"));
                    assert!(decoded == codec::decode(&blob).expect("decodes"), "{at}");
                    let header = nz_cpp_twin::parse_header(&blob).expect("parses");
                    units_of.insert(header.units_of);
                    assert_eq!(header, expected(&format::Header::parse(&blob).expect("parses")), "{at}");
                }
            }
        }
    }
    assert_eq!(units_of.len(), 3);
}

/// All 65536 values of the two-byte formats survive, whichever way they are blocked.
#[test]
fn every_two_byte_pattern_survives() {
    let src: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for dtype in [Dtype::F16, Dtype::Bf16] {
        for spec in [TensorSpec::row_major(dtype, &[65_536]), TensorSpec::column_tiles(dtype, 256, 256, 64)] {
            let blob = codec::encode(&src, &spec, &EncodeOptions::default()).expect("encodes");
            assert!(nz_cpp_twin::decode(&blob).expect("decodes") == src, "{spec:?}");
        }
    }
}

/// Field by field, both readers take the same from a header.
#[test]
fn headers_read_alike() {
    let mut rng = Rng(12);
    for (spec, fill) in DTYPES.into_iter().flat_map(specs).flat_map(|s| FILLS.map(|fill| (s.clone(), fill))) {
        let src = source(fill, &spec, &mut rng);
        let options = EncodeOptions { mantissa_bits: Some(3), block_len: 320, ..Default::default() };
        let blob = codec::encode(&src, &spec, &options).expect("encodes");
        let ours = nz_cpp_twin::parse_header(&blob).expect("parses");
        let theirs = format::Header::parse(&blob).expect("parses");
        assert_eq!(ours, expected(&theirs), "{spec:?}");
    }
}

/// The fields of `h` under the names that C++ has for them.
fn expected(h: &format::Header) -> nz_cpp_twin::Header {
    let start = h.payload_offset();
    let ends = (0..h.widths.len()).map(|block| (h.record(block).end - start) as u64);
    nz_cpp_twin::Header {
        major: h.major,
        minor: h.minor,
        dtype: h.spec.dtype.onnx() as u8,
        transform: match h.transform {
            Transform::Split => 1,
            Transform::NormalisedSplit => 2,
            Transform::Grid => 3,
            Transform::Delta => 4,
            Transform::Integer => 5,
            Transform::Codebook => 6,
        },
        mantissa_bits: h.mantissa_bits,
        lossless: h.is_lossless(),
        block_length: h.block_len.into(),
        tile_width: match h.spec.layout {
            Layout::RowMajor => 0,
            Layout::ColumnTiles { tile } => tile.into(),
        },
        shape: h.spec.shape.clone(),
        tiers: h
            .tiers
            .iter()
            .map(|t| nz_cpp_twin::Tier { width: t.width, symbols: t.symbols.clone() })
            .collect(),
        record_offsets: std::iter::once(0).chain(ends).collect(),
        widths: h.widths.clone(),
        units: h.units.iter().map(|unit| unit.bits()).collect(),
        units_of: h.units_of as u8,
        payload_offset: start as u64,
        payload_size: h.blob_len - start as u64,
        payload_hash: h.payload_hash,
    }
}
