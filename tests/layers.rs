//! Layers: every backend at every depth against the reference decoder, and what cuts cost against direct ones.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{DTYPES, KINDS, Kind, check_products, specs, tensor};
use nz_onnx::arch::Backend;
use nz_onnx::codec::{self, Decoder, EncodeOptions, GridStep, reference, word};
use nz_onnx::error::Error;
use nz_onnx::format::{Dtype, Header, MAX_LAYERS, TensorSpec, Transform};

const ENDS: [&[u8]; 6] = [&[0], &[3, 7], &[2, 6, 12], &[7, 15], &[1, 2, 3], &[5]];

fn grid(raw_bits: u8, block_len: u32) -> EncodeOptions {
    EncodeOptions { grid: Some(GridStep { cell: 1, raw_bits }), block_len, ..Default::default() }
}

/// Checks a layered blob at every depth; returns the elements at each.
fn check(blob: &[u8], at: &str) -> Vec<Vec<u8>> {
    let header = Header::parse(blob).unwrap();
    assert_eq!(header.minor, 3, "{at}");
    let (spec, n) = (&header.spec, header.blocks().elements() as usize);
    let mut depths = Vec::new();
    for depth in 0..=header.layers.len() {
        let elements = reference::decode_to(blob, depth).unwrap();
        for backend in Backend::available() {
            let at = format!("{} at depth {depth} of {at}", backend.name);
            let decoder = Decoder::with_backend(blob, backend).unwrap().to_depth(depth);
            decoder.verify(blob).unwrap();
            assert_eq!(decoder.depth(), depth);
            assert!(decoder.decode_bytes(blob).unwrap() == elements, "{at}");
            // As float32, whole and in part.
            let mut all = vec![0f32; n];
            decoder.decode_f32(blob, 0, &mut all).unwrap();
            let mut found = vec![0; elements.len()];
            decoder.decode_elements(blob, 0, &mut found).unwrap();
            let words: Vec<u32> = all.iter().map(|v| v.to_bits()).collect();
            let mut stored = vec![0; elements.len()];
            word::store(spec.dtype, &words, &mut stored);
            assert!(stored == found, "{at}");
            let mut loaded = vec![0; n];
            word::load(spec.dtype, &found, &mut loaded);
            assert!(loaded == words, "no more bits than the dtype has: {at}");
            let mut part = vec![0f32; n.div_ceil(5)];
            decoder.decode_f32(blob, (n / 3) as u64, &mut part[..n.div_ceil(5).min(n - n / 3)]).unwrap();
            let len = n.div_ceil(5).min(n - n / 3);
            let same = part[..len].iter().zip(&all[n / 3..]).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{at}");
        }
        depths.push(elements);
    }
    depths
}

#[test]
fn all_backends_decode_what_the_reference_decodes_at_every_depth() {
    let mut layered = 0;
    for (dtype, kind) in DTYPES.into_iter().flat_map(|dtype| KINDS.map(|kind| (dtype, kind))) {
        for (i, spec) in specs(dtype).into_iter().enumerate() {
            let src = tensor(kind, dtype, spec.elements().unwrap() as usize, i as u64);
            for (j, ends) in ENDS.into_iter().enumerate() {
                let block_len = [64, 256, 4096, 1024][(i + j) % 4];
                let cut = [None, Some(9), None, Some(5)][(i + j) / 2 % 4];
                let options = EncodeOptions { mantissa_bits: cut, block_len, ..Default::default() };
                let plain = codec::encode(&src, &spec, &options).unwrap();
                let at = format!("{kind:?} {spec:?} {options:?} {ends:?}");
                let Some(blob) = codec::layer(&plain, ends).unwrap() else {
                    let header = Header::parse(&plain).unwrap();
                    assert!(header.widths.iter().all(|&m| m <= ends[0]), "{at}");
                    continue;
                };
                let bound = plain.len() as u64
                    + codec::layers_bound(Header::parse(&plain).unwrap().blocks().count(), ends.len());
                assert!(blob.len() as u64 <= bound, "{at}");
                let depths = check(&blob, &at);
                assert!(depths.last().unwrap() == &reference::decode(&plain).unwrap(), "{at}");
                layered += 1;
            }
        }
    }
    assert!(layered > 500, "{layered}");
}

#[test]
fn grids_have_layers_too() {
    let mut layered = 0;
    for dtype in DTYPES {
        for kind in [Kind::Gauss, Kind::Sparse, Kind::Upcast] {
            for (i, spec) in specs(dtype).into_iter().enumerate() {
                let src = tensor(kind, dtype, spec.elements().unwrap() as usize, i as u64);
                for (k, ends) in [(1, &[0u8][..]), (8, &[3, 7]), (15, &[2, 6, 12]), (9, &[0, 1, 8])] {
                    let options = grid(k, [64, 256, 4096][i % 3]);
                    let Ok(plain) = codec::encode(&src, &spec, &options) else { continue };
                    assert_eq!(Header::parse(&plain).unwrap().transform, Transform::Grid);
                    let Some(blob) = codec::layer(&plain, ends).unwrap() else { continue };
                    let depths = check(&blob, &format!("{kind:?} {spec:?} {options:?} {ends:?}"));
                    assert!(depths.last().unwrap() == &reference::decode(&plain).unwrap());
                    layered += 1;
                }
            }
        }
    }
    assert!(layered > 100, "{layered}");
}

#[test]
fn products_are_those_of_decoded_weights_at_every_depth() {
    for depth in 0..=MAX_LAYERS {
        let at_depth = |blob: &[u8], ends: &[u8]| {
            // A blob of which no more is decoded is one whose last layers are not there: cut at the same place.
            codec::layer(blob, ends).unwrap().unwrap_or_else(|| blob.to_vec())
        };
        let ends = [&[0u8][..], &[1, 3], &[2, 7, 15], &[3, 9]][depth];
        check_products(
            |dtype| dtype.mantissa_bits(),
            |src, spec, k, block_len| {
                let options = EncodeOptions { mantissa_bits: Some(k), block_len, ..Default::default() };
                at_depth(&codec::encode(src, spec, &options).unwrap(), ends)
            },
        );
        check_products(
            |_| 12,
            |src, spec, k, block_len| at_depth(&codec::encode(src, spec, &grid(k, block_len)).unwrap(), ends),
        );
    }
}

#[test]
fn products_leave_layers_out() {
    let src = tensor(Kind::Gauss, Dtype::F32, 96 * 256, 5);
    let spec = TensorSpec::column_tiles(Dtype::F32, 96, 256, 256);
    let x: Vec<f32> = (0..96).map(|i| ((i * 37 % 64) as f32 - 31.5) / 16.0).collect();
    let mut fused = 0;
    let lossless = EncodeOptions::default();
    for plain in [lossless, grid(8, 4096), grid(12, 1024)].map(|o| codec::encode(&src, &spec, &o).unwrap()) {
        let blob = codec::layer(&plain, &[2, 7]).unwrap().unwrap();
        for (backend, depth) in Backend::available().into_iter().flat_map(|b| (0..3).map(move |d| (b, d))) {
            let decoder = Decoder::with_backend(&blob, backend).unwrap().to_depth(depth);
            let mut w = vec![0f32; 96 * 256];
            decoder.decode_f32(&blob, 0, &mut w).unwrap();
            let (mut y, mut expected) = (vec![0.5f32; 256], vec![0.5f32; 256]);
            if decoder.multiply_rows(&blob, 0, &x, &mut y).unwrap() {
                for (row, x) in w.chunks(256).zip(&x) {
                    expected.iter_mut().zip(row).for_each(|(y, w)| *y = x.mul_add(*w, *y));
                }
                assert_eq!(y, expected, "{} at depth {depth}", backend.name);
                fused += 1;
            }
        }
    }
    assert_eq!(fused > 0, Backend::available().iter().any(|b| b.name == "avx512"));
}

/// The root of the mean squared error over that of the mean square.
fn error(original: &[u8], decoded: &[u8], dtype: Dtype) -> f64 {
    let words = |bytes: &[u8]| {
        let mut words = vec![0; bytes.len() / dtype.size()];
        word::load(dtype, bytes, &mut words);
        words.into_iter().map(|w| f64::from(f32::from_bits(w))).collect::<Vec<_>>()
    };
    let (a, b) = (words(original), words(decoded));
    let noise: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    (noise / a.iter().map(|a| a * a).sum::<f64>()).sqrt()
}

#[test]
fn cut_depths_are_nearly_as_close_as_direct_cuts() {
    for dtype in DTYPES {
        let (src, spec) = (tensor(Kind::Gauss, dtype, 128 * 256, 3), TensorSpec::columns(dtype, 128, 256));
        let plain = codec::encode(&src, &spec, &EncodeOptions::default()).unwrap();
        let on_grid = codec::encode(&src, &spec, &grid(10, 4096)).unwrap();
        for bits in 1..6 {
            let cut = EncodeOptions { mantissa_bits: Some(bits), ..Default::default() };
            for (whole, direct) in [(&plain, cut), (&on_grid, grid(bits, 4096))] {
                let blob = codec::layer(whole, &[bits]).unwrap().unwrap();
                let found = error(&src, &reference::decode_to(&blob, 0).unwrap(), dtype);
                let direct = codec::encode(&src, &spec, &direct).unwrap();
                let best = error(&src, &reference::decode(&direct).unwrap(), dtype);
                assert!(found <= 1.1 * best, "{dtype:?}, {bits} bits: {found} where {best} can be had");
            }
        }
    }
}

#[test]
fn only_layers_that_are_read_are_checked() {
    let (src, spec) = (tensor(Kind::Gauss, Dtype::F32, 9000, 1), TensorSpec::row_major(Dtype::F32, &[9000]));
    let plain = codec::encode(&src, &spec, &EncodeOptions::default()).unwrap();
    let good = codec::layer(&plain, &[3, 7]).unwrap().unwrap();
    let header = Header::parse(&good).unwrap();
    assert_eq!((header.base_bits, header.layers.len()), (3, 2));
    assert!(header.layers.iter().all(|layer| layer.start % 4096 == 0));
    assert_eq!(header.layers.iter().map(|layer| layer.bits).collect::<Vec<_>>(), [7, 23]);
    let mut bad = good.clone();
    bad[header.layers[1].start as usize + 5] ^= 1;
    let decoder = Decoder::open_unverified(&bad).unwrap();
    assert!(matches!(decoder.verify(&bad), Err(Error::Corrupt(what)) if what.contains("layer 2")));
    assert!(matches!(Decoder::open(&bad), Err(Error::Corrupt(_))));
    assert!(reference::decode(&bad).is_err());
    for depth in [0, 1] {
        let decoder = Decoder::open_unverified(&bad).unwrap().to_depth(depth);
        decoder.verify(&bad).unwrap();
        let expected = reference::decode_to(&good, depth).unwrap();
        assert!(decoder.decode_bytes(&bad).unwrap() == expected);
        assert!(reference::decode_to(&bad, depth).unwrap() == expected);
    }
    for len in [good.len() - 1, header.layers[0].start as usize + 1, header.payload().end] {
        assert!(matches!(Header::parse(&good[..len]), Err(Error::Truncated { .. })));
        assert!(reference::decode_to(&good[..len], 0).is_err());
    }
    let bits = |depth| header.bytes_to(depth) as f64 * 8.0 / 9000.0;
    let asked = [0.0, bits(0), bits(1) - 0.01, bits(1), bits(2), 32.0, 1e9];
    assert_eq!(asked.map(|bits| header.depth_within(bits)), [0, 0, 0, 1, 2, 2, 2]);
}

#[test]
fn what_cannot_be_layered_is_told() {
    let (src, spec) = (tensor(Kind::Gauss, Dtype::F32, 900, 1), TensorSpec::row_major(Dtype::F32, &[900]));
    let plain = codec::encode(&src, &spec, &EncodeOptions::default()).unwrap();
    for ends in [&[][..], &[3, 3], &[7, 3], &[1, 2, 3, 4]] {
        assert!(matches!(codec::layer(&plain, ends), Err(Error::InvalidArgument(_))), "{ends:?}");
    }
    let blob = codec::layer(&plain, &[3]).unwrap().unwrap();
    assert!(matches!(codec::layer(&blob, &[1]), Err(Error::InvalidArgument(_))));
    assert_eq!(codec::layer(&plain, &[23]).unwrap(), None);
    // Readers of earlier versions name the coder that they do not know.
    let mut later = blob.clone();
    later[8] = 9;
    assert!(matches!(Header::parse(&later), Err(Error::Unsupported(what)) if what.contains("coder 9")));
}

#[test]
fn golden_layers_decode_and_are_still_written() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/layers");
    for (dtype, name) in [(Dtype::F32, "f32"), (Dtype::F16, "f16"), (Dtype::Bf16, "bf16")] {
        let tiles = TensorSpec::column_tiles(dtype, 40, 192, 128);
        let (subnormal, gauss) = (Kind::Subnormal, Kind::Gauss);
        let lossless = EncodeOptions { block_len: 1024, ..Default::default() };
        for (suffix, kind, spec, options) in [
            ("lossless", gauss, TensorSpec::row_major(dtype, &[5, 1000]), lossless),
            ("subnormal", subnormal, tiles.clone(), EncodeOptions { mantissa_bits: Some(6), ..lossless }),
            ("grid", gauss, tiles, grid(9, 4096)),
        ] {
            let src = tensor(kind, dtype, spec.elements().unwrap() as usize, 42);
            let plain = codec::encode(&src, &spec, &options).unwrap();
            let blob = codec::layer(&plain, &[2, 5, 14]).unwrap().unwrap();
            let path = folder.join(format!("v1_3_{name}_{suffix}.nzb"));
            let write = !path.exists() && std::env::var_os("NZ_WRITE_GOLDEN").is_some();
            if write {
                fs::write(&path, &blob).unwrap();
            }
            let stored = fs::read(&path).unwrap();
            assert!(stored == blob, "{path:?}");
            let header = Header::parse(&stored).unwrap();
            for depth in 0..=header.layers.len() {
                let path = path.with_extension(format!("{depth}.bin"));
                if write {
                    fs::write(&path, reference::decode_to(&blob, depth).unwrap()).unwrap();
                }
                let expected = fs::read(&path).unwrap();
                assert!(reference::decode_to(&stored, depth).unwrap() == expected, "{path:?}");
                let decoder = Decoder::open_unverified(&stored).unwrap().to_depth(depth);
                assert!(decoder.decode_bytes(&stored).unwrap() == expected, "{path:?}");
            }
        }
    }
}
