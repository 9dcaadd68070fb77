//! Grids: every backend against the reference decoder and the clear form of a level, one weight at a time.
#![allow(clippy::unwrap_used)]

mod common;

use common::{DTYPES, Kind, check_products, specs, tensor};
use nz_onnx::arch::Backend;
use nz_onnx::codec::{self, Decoder, EncodeOptions, GridStep, reference, word};
use nz_onnx::format::{Dtype, Header, Layout, TensorSpec, Transform, Units};

fn options(cell: usize, raw_bits: u8, block_len: u32) -> EncodeOptions {
    EncodeOptions { grid: Some(GridStep { cell, raw_bits }), block_len, ..Default::default() }
}

/// The row-major element in `slot`.
fn element(spec: &TensorSpec, slot: usize) -> usize {
    let Layout::ColumnTiles { tile } = spec.layout else { return slot };
    let (k, n) = (spec.shape[0] as usize, spec.shape[1] as usize);
    let width = n.min(tile as usize);
    let left = slot / (k * width) * width;
    let columns = width.min(n - left);
    let inside = slot - left * k;
    inside / columns * n + left + inside % columns
}

/// What the blob must decode to, and its float32 words in stored order, by the clear forms.
fn expected(src: &[u8], header: &Header) -> (Vec<u8>, Vec<u32>) {
    let spec = &header.spec;
    let mut words = vec![0; src.len() / spec.dtype.size()];
    word::load(spec.dtype, src, &mut words);
    let mut slots = Vec::new();
    for slot in 0..words.len() {
        let at = element(spec, slot);
        let unit = match header.units_of {
            Units::Tensor => 0,
            Units::Block => header.blocks().block_of(slot as u64) as usize,
            Units::Row => at / spec.shape[1] as usize,
        };
        let (unit, k) = (header.units[unit], header.mantissa_bits);
        words[at] = word::level_value(word::level(words[at], unit, k), unit, k, spec.dtype);
        slots.push(words[at]);
    }
    let mut out = vec![0; src.len()];
    word::store(spec.dtype, &words, &mut out);
    (out, slots)
}

fn check(src: &[u8], spec: &TensorSpec, options: &EncodeOptions) -> Header {
    let at = format!("{spec:?} {options:?}");
    let blob = codec::encode(src, spec, options).unwrap();
    let header = Header::parse(&blob).unwrap();
    assert_eq!((header.transform, header.minor, header.is_lossless()), (Transform::Grid, 1, false), "{at}");
    let (elements, slots) = expected(src, &header);
    assert!(reference::decode(&blob).unwrap() == elements, "reference: {at}");
    for backend in Backend::available() {
        let decoder = Decoder::with_backend(&blob, backend).unwrap();
        assert!(decoder.decode_bytes(&blob).unwrap() == elements, "{}: {at}", backend.name);
        // Whole, and a stretch that starts and ends inside blocks.
        let n = slots.len();
        for (from, to) in [(0, n), (n / 3, n), (n / 3, n / 3 + n.div_ceil(7).min(n - n / 3)), (n, n)] {
            let mut out = vec![0f32; to - from];
            decoder.decode_f32(&blob, from as u64, &mut out).unwrap();
            assert!(out.iter().map(|v| v.to_bits()).eq(slots[from..to].iter().copied()), "{}", backend.name);
            let mut found = vec![0; (to - from) * spec.dtype.size()];
            let mut wanted = found.clone();
            decoder.decode_elements(&blob, from as u64, &mut found).unwrap();
            word::store(spec.dtype, &slots[from..to], &mut wanted);
            assert!(found == wanted, "{}: elements of {at}", backend.name);
        }
    }
    let bound = codec::survey_grid(src, spec, options).unwrap().unwrap().coding(options.grid.unwrap()).size();
    assert!(blob.len() as u64 <= bound, "{} bytes, at most {bound} foreseen: {at}", blob.len());
    header
}

/// Weights that grids can hold, with what is special among those.
const HELD: [Kind; 4] = [Kind::Gauss, Kind::Constant, Kind::Sparse, Kind::Upcast];

#[test]
fn all_backends_decode_what_the_reference_decodes() {
    let mut seen = std::collections::HashSet::new();
    for dtype in DTYPES {
        let more =
            [TensorSpec::column_tiles(dtype, 70, 320, 128), TensorSpec::column_tiles(dtype, 40, 64, 128)];
        for (i, spec) in specs(dtype).iter().chain(&more).enumerate() {
            for kind in HELD {
                let src = tensor(kind, dtype, spec.elements().unwrap() as usize, i as u64);
                for (block_len, raw_bits) in [(64, 2), (1024, 5), (4096, 9), (4096, 15)] {
                    // One weight of which the sample is zero has no size to be measured by.
                    if src.iter().any(|b| b & 0x7f != 0) {
                        seen.insert(check(&src, spec, &options(i % 4, raw_bits, block_len)).units_of);
                    }
                }
            }
        }
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn every_step_of_the_ladder() {
    for dtype in DTYPES {
        for spec in [TensorSpec::column_tiles(dtype, 48, 256, 256), TensorSpec::row_major(dtype, &[7, 1100])]
        {
            let src = tensor(Kind::Gauss, dtype, spec.elements().unwrap() as usize, 3);
            let mut sizes = Vec::new();
            for step in GridStep::all() {
                check(&src, &spec, &options(step.cell, step.raw_bits, 4096));
                let survey = codec::survey_grid(&src, &spec, &options(0, 0, 4096)).unwrap().unwrap();
                sizes.push(survey.coding(step).size());
            }
            assert!(sizes.is_sorted_by(|a, b| a >= b), "{dtype:?}: {sizes:?}");
        }
    }
}

/// Blocks of elements of 16 bits may be looked up: of one step and of several, of some bits and of more, and with a weight
/// that is beyond what is looked up in some blocks only.
#[test]
fn few_and_many_levels_side_by_side() {
    for dtype in [Dtype::F16, Dtype::Bf16] {
        for shape in [[24, 512], [6, 2048], [3, 4096], [200, 64]] {
            let spec = TensorSpec::row_major(dtype, &shape);
            let mut src = tensor(Kind::Gauss, dtype, spec.elements().unwrap() as usize, 9);
            for raw_bits in 0..6 {
                check(&src, &spec, &options(1, raw_bits, 4096));
            }
            for (at, factor) in [(70, 8.0), (5000, -30.0)] {
                let element = &mut src.as_chunks_mut::<2>().0[at];
                *element = match dtype {
                    Dtype::F16 => half::f16::from_f32(half::f16::from_le_bytes(*element).to_f32() * factor)
                        .to_le_bytes(),
                    _ => half::bf16::from_f32(half::bf16::from_le_bytes(*element).to_f32() * factor)
                        .to_le_bytes(),
                };
            }
            for raw_bits in 0..6 {
                check(&src, &spec, &options(1, raw_bits, 4096));
            }
        }
    }
}

#[test]
fn products_with_blobs_are_products_with_decoded_weights() {
    check_products(
        |_| 15,
        |src, spec, k, block_len| {
            let cell = if spec.layout == Layout::RowMajor { 1 } else { 2 };
            codec::encode(src, spec, &options(cell, k, block_len)).unwrap()
        },
    );
}

#[test]
fn errors_are_at_most_half_a_step_and_zeros_stay() {
    for (kind, dtype) in [(Kind::Gauss, Dtype::F32), (Kind::Sparse, Dtype::F32)] {
        let spec = TensorSpec::row_major(dtype, &[5000]);
        let src = tensor(kind, dtype, 5000, 8);
        let values = |bytes: &[u8]| {
            bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
        };
        for k in [0, 4, 11] {
            let blob = codec::encode(&src, &spec, &options(0, k, 1024)).unwrap();
            let header = Header::parse(&blob).unwrap();
            let largest = header.units.iter().map(|u| f64::from(u.value())).fold(0.0, f64::max);
            let half = largest * (-1.0 - f64::from(k)).exp2() * (1.0 + 1e-5);
            let worst = values(&src).into_iter().zip(values(&codec::decode(&blob).unwrap())).map(|(a, b)| {
                assert!(kind != Kind::Sparse || a != 0.0 || b.to_bits() == a.to_bits());
                (f64::from(a) - f64::from(b)).abs()
            });
            let worst = worst.fold(0.0, f64::max);
            assert!(worst <= half && worst > half * 0.9, "{kind:?} k={k}: {worst}, half a step is {half}");
        }
    }
}

#[test]
fn a_grid_is_closer_than_a_cut_of_the_same_size() {
    let n = 1 << 16;
    let (rows, columns) = (256, 256);
    let src = tensor(Kind::Gauss, Dtype::F32, n, 4);
    let spec = TensorSpec::column_tiles(Dtype::F32, rows, columns, 256);
    let survey = codec::survey_grid(&src, &spec, &EncodeOptions::default()).unwrap().unwrap();
    let cut = codec::survey(&src, &spec, &EncodeOptions::default()).unwrap();
    for k in [1, 3, 5, 7, 9, 12] {
        let best = GridStep::all().find(|step| survey.coding(*step).size() <= cut.size(Some(k))).unwrap();
        let gain = 10.0 * (survey.cut_noise(k) / survey.noise(best)).log10();
        assert!(gain > 3.5, "k={k}: {gain} dB with {best:?}");
    }
}

#[test]
fn outliers_get_a_unit_of_their_own_and_what_no_grid_holds_is_refused() {
    let spec = TensorSpec::row_major(Dtype::F32, &[8192]);
    let with = |value: f32| {
        let mut src = tensor(Kind::Gauss, Dtype::F32, 8192, 2);
        src[20_000..20_004].copy_from_slice(&value.to_le_bytes());
        src
    };
    let header = check(&with(10.0), &spec, &options(1, 6, 4096));
    let [usual, own] = header.units[..] else { panic!("{} units", header.units.len()) };
    assert!(usual.value() < 0.03 && usual.is_centred() && own.value() > 0.039 && !own.is_centred());
    for value in [1e4, f32::NAN, f32::INFINITY, 1e38, -1e38] {
        assert!(codec::encode(&with(value), &spec, &options(1, 6, 4096)).is_err(), "{value}");
        assert!(
            codec::survey_grid(&with(value), &spec, &EncodeOptions::default()).unwrap().is_none(),
            "{value}"
        );
    }
    let largest = half::f16::MAX.to_bits().to_le_bytes().repeat(100);
    let spec = TensorSpec::row_major(Dtype::F16, &[100]);
    assert!(codec::survey_grid(&largest, &spec, &EncodeOptions::default()).unwrap().is_none());
    assert!(codec::survey_grid(&[0; 200], &spec, &EncodeOptions::default()).unwrap().is_none());
}

#[test]
fn same_bytes_for_any_number_of_threads() {
    for spec in
        [TensorSpec::column_tiles(Dtype::F32, 500, 1024, 256), TensorSpec::row_major(Dtype::F32, &[512_000])]
    {
        let src = tensor(Kind::Gauss, Dtype::F32, 512_000, 8);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| codec::encode(&src, &spec, &options(3, 4, 4096)).unwrap())
        };
        assert!(with(1) == with(2) && with(2) == with(5));
    }
}
