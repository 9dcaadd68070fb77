//! Encode and decode: every backend against the reference decoder, over everything a float can be.
#![allow(clippy::unwrap_used)]

mod common;

use common::{DTYPES, KINDS, Kind, check_products, specs, tensor};
use nz_onnx::arch::Backend;
use nz_onnx::codec::{self, Decoder, EncodeOptions, max_relative_error, reference, word};
use nz_onnx::format::{Dtype, Header, Layout, TensorSpec, Transform};
use proptest::prelude::*;

fn blob(src: &[u8], spec: &TensorSpec, mantissa_bits: Option<u8>, block_len: u32) -> Vec<u8> {
    codec::encode(src, spec, &EncodeOptions { mantissa_bits, block_len, ..Default::default() }).unwrap()
}

/// The tensor with every word rounded: what a cut blob must decode to.
fn rounded(src: &[u8], dtype: Dtype, k: u8) -> Vec<u8> {
    let mut words = vec![0; src.len() / dtype.size()];
    word::load(dtype, src, &mut words);
    words.iter_mut().for_each(|w| *w = word::round(*w, k, dtype));
    let mut out = vec![0; src.len()];
    word::store(dtype, &words, &mut out);
    out
}

/// The float32 values of a tensor in stored order, element by element.
fn slot_values(bytes: &[u8], spec: &TensorSpec) -> Vec<u32> {
    let mut words = vec![0; bytes.len() / spec.dtype.size()];
    word::load(spec.dtype, bytes, &mut words);
    let Layout::ColumnTiles { tile } = spec.layout else { return words };
    let (k, n, tile) = (spec.shape[0] as usize, spec.shape[1] as usize, tile as usize);
    let mut out = Vec::new();
    for first in (0..n).step_by(tile) {
        for row in 0..k {
            out.extend_from_slice(&words[row * n + first..row * n + n.min(first + tile)]);
        }
    }
    out
}

fn check(src: &[u8], spec: &TensorSpec, k: Option<u8>, block_len: u32) {
    let blob = blob(src, spec, k, block_len);
    let expected = k.map_or(src.to_vec(), |k| rounded(src, spec.dtype, k));
    assert!(reference::decode(&blob).unwrap() == expected, "reference: {spec:?} k={k:?}");
    let header = Header::parse(&blob).unwrap();
    assert_eq!(header.is_lossless(), expected == src);
    let values = slot_values(&expected, spec);
    for backend in Backend::available() {
        let decoder = Decoder::with_backend(&blob, backend).unwrap();
        assert!(decoder.decode_bytes(&blob).unwrap() == expected, "{}: {spec:?} k={k:?}", backend.name);
        // Whole, and a stretch that starts and ends inside blocks.
        let n = values.len();
        for (from, to) in [(0, n), (n / 3, n), (n / 3, n / 3 + n.div_ceil(7).min(n - n / 3)), (n, n)] {
            let mut out = vec![0f32; to - from];
            decoder.decode_f32(&blob, from as u64, &mut out).unwrap();
            assert!(out.iter().map(|v| v.to_bits()).eq(values[from..to].iter().copied()), "{}", backend.name);
            let mut elements = vec![0; (to - from) * spec.dtype.size()];
            let mut expected = elements.clone();
            decoder.decode_elements(&blob, from as u64, &mut elements).unwrap();
            word::store(spec.dtype, &values[from..to], &mut expected);
            assert!(elements == expected, "{}: elements of {spec:?} k={k:?}", backend.name);
        }
    }
}

#[test]
fn all_backends_decode_what_the_reference_decodes() {
    for dtype in DTYPES {
        for (i, spec) in specs(dtype).iter().enumerate() {
            for kind in KINDS {
                let src = tensor(kind, dtype, spec.elements().unwrap() as usize, i as u64);
                for block_len in [64, 1024, 4096] {
                    check(&src, spec, None, block_len);
                }
            }
        }
    }
}

#[test]
fn every_number_of_mantissa_bits() {
    for dtype in DTYPES {
        let spec = TensorSpec::column_tiles(dtype, 50, 150, 128);
        for kind in [Kind::Gauss, Kind::Special, Kind::Bits, Kind::Subnormal] {
            let src = tensor(kind, dtype, 7500, 3);
            for k in 0..=dtype.mantissa_bits() {
                check(&src, &spec, Some(k), 4096);
            }
        }
    }
}

#[test]
fn products_with_blobs_are_products_with_decoded_weights() {
    check_products(Dtype::mantissa_bits, |src, spec, k, block_len| blob(src, spec, Some(k), block_len));
}

#[test]
fn large_outputs_are_what_small_ones_are() {
    // More than what is written past the caches, from a place that is not aligned for it, too.
    let n = 5 << 20;
    for dtype in DTYPES {
        let src = tensor(Kind::Gauss, dtype, n, 6);
        let blob = blob(&src, &TensorSpec::row_major(dtype, &[n as u64]), None, 4096);
        assert!(codec::decode(&blob).unwrap() == src, "{dtype:?}");
        let decoder = Decoder::open(&blob).unwrap();
        let mut out = vec![0f32; n];
        decoder.decode_f32(&blob, 1, &mut out[1..]).unwrap();
        let mut words = vec![0; n];
        word::load(dtype, &src, &mut words);
        assert!(out[1..].iter().map(|v| v.to_bits()).eq(words[1..].iter().copied()), "{dtype:?}");
    }
}

#[test]
fn stated_bound_of_the_cut_holds() {
    for dtype in DTYPES {
        for kind in [Kind::Gauss, Kind::Subnormal] {
            let src = tensor(kind, dtype, 50_000, 4);
            let spec = TensorSpec::row_major(dtype, &[50_000]);
            for k in 0..dtype.mantissa_bits() {
                let decoded = codec::decode(&blob(&src, &spec, Some(k), 4096)).unwrap();
                let error = max_relative_error(&src, &decoded, dtype);
                let bound = 1.0 / (f64::from(2u32 << k) + 1.0);
                assert!(
                    error <= bound && error > bound * 0.5,
                    "{dtype:?} {kind:?} k={k}: {error}, bound {bound}"
                );
            }
        }
    }
}

#[test]
fn subnormals_do_not_cost_more_than_their_mantissa_bits() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let src = tensor(Kind::Subnormal, dtype, 1 << 16, 9);
        let cut = blob(&src, &TensorSpec::row_major(dtype, &[1 << 16]), Some(4), 4096);
        assert!(cut.len() * 8 < (1 << 16) * 9, "{dtype:?}: {} bytes", cut.len());
    }
}

fn entropy_of_exponents(src: &[u8], dtype: Dtype) -> f64 {
    let mut words = vec![0; src.len() / dtype.size()];
    word::load(dtype, src, &mut words);
    let mut counts = [0u32; 256];
    words.iter().for_each(|w| counts[(w >> 23 & 255) as usize] += 1);
    let n = words.len() as f64;
    counts.iter().filter(|&&c| c > 0).map(|&c| f64::from(c) / n * (n / f64::from(c)).log2()).sum()
}

#[test]
fn lossless_size_is_near_shannon() {
    for dtype in DTYPES {
        let src = tensor(Kind::Gauss, dtype, 1 << 18, 5);
        let blob = blob(&src, &TensorSpec::row_major(dtype, &[512, 512]), None, 4096);
        let bits = blob.len() as f64 * 8.0 / f64::from(1 << 18);
        let bound = entropy_of_exponents(&src, dtype) + 1.0 + f64::from(dtype.mantissa_bits());
        assert!(bits < bound + 0.12, "{dtype:?}: {bits} bits a weight, bound {bound}");
    }
}

#[test]
fn upcasts_cost_what_their_origin_costs() {
    let src = tensor(Kind::Upcast, Dtype::F32, 1 << 16, 6);
    let blob = blob(&src, &TensorSpec::row_major(Dtype::F32, &[1 << 16]), None, 4096);
    assert!(blob.len() as f64 / (src.len() as f64) < 0.44, "{}", blob.len());
}

#[test]
fn survey_bounds_the_size_closely() {
    for dtype in DTYPES {
        for kind in KINDS {
            let spec = TensorSpec::column_tiles(dtype, 300, 700, 128);
            let src = tensor(kind, dtype, 210_000, 7);
            let survey = codec::survey(&src, &spec, &EncodeOptions::default()).unwrap();
            for k in [None, Some(0), Some(1), Some(3), Some(6)] {
                let (bound, actual) = (survey.size(k), blob(&src, &spec, k, 4096).len() as u64);
                assert!(actual <= bound, "{dtype:?} {kind:?} {k:?}: {actual} > {bound}");
                if kind == Kind::Gauss {
                    assert!(
                        (bound - actual) * 8 <= 210_000 / 40 + 2048,
                        "{dtype:?} {k:?}: {actual} << {bound}"
                    );
                }
            }
        }
    }
}

/// As [`codec::encode`] when nothing is left to a sample.
fn surveyed(src: &[u8], spec: &TensorSpec, k: Option<u8>) -> Vec<u8> {
    let coding = codec::survey(src, spec, &EncodeOptions::default()).unwrap().coding(k);
    codec::encode_as(src, spec, 4096, &coding).unwrap()
}

#[test]
fn large_tensors_come_out_about_as_small_as_a_whole_survey_makes_them() {
    let (rows, columns) = (1100, 1000);
    let n = rows * columns;
    for dtype in DTYPES {
        for kind in KINDS {
            let mut src = tensor(kind, dtype, n, 13);
            if kind == Kind::Gauss {
                // Rows of quite different sizes.
                let other = tensor(Kind::Constant, dtype, n, 13);
                let row = columns * dtype.size();
                src.chunks_mut(row).zip(other.chunks(row)).step_by(7).for_each(|(a, b)| a.copy_from_slice(b));
            }
            for spec in [
                TensorSpec::row_major(dtype, &[n as u64]),
                TensorSpec::column_tiles(dtype, rows as u64, columns as u64, 128),
            ] {
                for k in [None, Some(3)] {
                    let (found, best) = (blob(&src, &spec, k, 4096), surveyed(&src, &spec, k).len());
                    let over = (found.len() as f64 - best as f64) * 8.0 / n as f64;
                    assert!(over < 0.005, "{dtype:?} {kind:?} {k:?}: {over} bits a weight");
                    let decoded = codec::decode(&found).unwrap();
                    let expected = k.map_or(src.clone(), |k| rounded(&src, dtype, k));
                    assert!(decoded == expected, "{dtype:?} {kind:?} {k:?}");
                }
            }
        }
    }
}

#[test]
fn what_a_sample_misses_is_coded_as_a_whole_survey_says() {
    let n = 1 << 20;
    let spec = TensorSpec::row_major(Dtype::F32, &[n as u64]);
    let with = |src: &[u8], at: usize, word: u32| {
        let mut src = src.to_vec();
        src[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
        src
    };
    let gauss = tensor(Kind::Gauss, Dtype::F32, n, 14);
    let (few_bits, subnormal) = (rounded(&gauss, Dtype::F32, 3), tensor(Kind::Subnormal, Dtype::F32, n, 14));
    // In more places than one, of which a sample of some of each block sees at most one; also in the last chunks.
    for at in [500_000, 501_000, 502_000, n - 2000, n - 1000, n - 1] {
        for (src, k, transform) in [
            (with(&gauss, at, 5), Some(3), Transform::NormalisedSplit),
            (with(&few_bits, at, 5), None, Transform::NormalisedSplit),
            (with(&subnormal, at, 240 << 23), Some(3), Transform::Split),
            // Nothing to be gained here.
            (with(&gauss, at, 5), None, Transform::Split),
        ] {
            let found = blob(&src, &spec, k, 4096);
            let size = surveyed(&src, &spec, k).len();
            assert!(found.len() < size + n / 2000, "{at} {k:?}: {} and {size} bytes", found.len());
            assert_eq!(Header::parse(&found).unwrap().transform, transform, "{at} {k:?}");
            let expected = k.map_or(src.clone(), |k| rounded(&src, Dtype::F32, k));
            assert!(codec::decode(&found).unwrap() == expected, "{at} {k:?}");
        }
    }
}

#[test]
fn fast_blobs_have_one_tier_of_four_bits() {
    for dtype in DTYPES {
        for kind in KINDS {
            let spec = TensorSpec::column_tiles(dtype, 100, 150, 128);
            let src = tensor(kind, dtype, 15_000, 11);
            for k in [None, Some(3)] {
                let options = EncodeOptions {
                    mantissa_bits: k,
                    block_len: 1024,
                    profile: codec::Profile::Fast,
                    grid: None,
                };
                let blob = codec::encode(&src, &spec, &options).unwrap();
                let tiers = Header::parse(&blob).unwrap().tiers;
                assert!(tiers.len() == 1 && tiers[0].width == 4, "{dtype:?} {kind:?}: {tiers:?}");
                let bound = codec::survey(&src, &spec, &options).unwrap().size(k);
                assert!(blob.len() as u64 <= bound, "{dtype:?} {kind:?} {k:?}: {} > {bound}", blob.len());
                let expected = k.map_or(src.clone(), |k| rounded(&src, dtype, k));
                assert!(reference::decode(&blob).unwrap() == expected, "{dtype:?} {kind:?} {k:?}");
                for backend in Backend::available() {
                    let decoder = Decoder::with_backend(&blob, backend).unwrap();
                    let decoded = decoder.decode_bytes(&blob).unwrap();
                    assert!(decoded == expected, "{}: {dtype:?} {kind:?} {k:?}", backend.name);
                }
            }
        }
    }
}

#[test]
fn same_bytes_for_any_number_of_threads() {
    let src = tensor(Kind::Gauss, Dtype::F32, 1_500_000, 8);
    let spec = TensorSpec::column_tiles(Dtype::F32, 1500, 1000, 256);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| blob(&src, &spec, Some(7), 4096))
    };
    assert!(with(1) == with(2) && with(2) == with(5));
}

#[test]
fn arguments_are_checked() {
    let spec = TensorSpec::row_major(Dtype::F32, &[4]);
    let options = EncodeOptions::default();
    assert!(codec::encode(&[0; 15], &spec, &options).is_err());
    assert!(codec::encode(&[], &TensorSpec::row_major(Dtype::F32, &[0]), &options).is_err());
    assert!(codec::encode(&[0; 16], &TensorSpec::column_tiles(Dtype::F32, 2, 2, 65), &options).is_err());
    assert!(codec::encode(&[0; 16], &spec, &EncodeOptions { block_len: 100, ..options }).is_err());
    assert!(codec::encode(&[0; 16], &TensorSpec::row_major(Dtype::F32, &[u64::MAX, 16]), &options).is_err());
    let good = codec::encode(&[0; 16], &spec, &options).unwrap();
    let decoder = Decoder::open(&good).unwrap();
    assert!(decoder.decode_f32(&good, 3, &mut [0.0; 2]).is_err());
    assert!(decoder.decode_f32(&good[1..], 0, &mut [0.0; 2]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_bits_survive(
        dtype in prop::sample::select(&DTYPES[..]),
        src in prop::collection::vec(any::<u8>(), 4..20_000),
        block_len in prop::sample::select(&[64u32, 192, 1024, 4096][..]),
        columns in 1u64..300,
        tiled: bool,
        k in prop::option::of(0u8..24),
    ) {
        let n = src.len() / dtype.size();
        let (rows, columns) = if n as u64 >= columns { (n as u64 / columns, columns) } else { (1, n as u64) };
        let src = &src[..(rows * columns) as usize * dtype.size()];
        let spec = if tiled { TensorSpec::column_tiles(dtype, rows, columns, 64) } else { TensorSpec::row_major(dtype, &[rows, columns]) };
        check(src, &spec, k, block_len);
    }
}
