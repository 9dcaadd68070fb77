//! Files written by earlier versions: they must decode for ever.
//!
//! `tests/golden/<name>.nzb` is a blob, `<name>.bin` the tensor it holds. Files are only ever added. To add the
//! ones of a new format version, run `NZ_WRITE_GOLDEN=1 cargo test --test golden`; existing ones are kept.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Kind, tensor};
use nz_onnx::codec::{self, Decoder, EncodeOptions, GridStep, reference};
use nz_onnx::format::{Dtype, TensorSpec};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Name, tensor and options of what versions 1.0 and 1.1 can write.
fn cases() -> Vec<(String, Kind, TensorSpec, EncodeOptions)> {
    let mut out = Vec::new();
    for (dtype, name) in [(Dtype::F32, "f32"), (Dtype::F16, "f16"), (Dtype::Bf16, "bf16")] {
        let rows = TensorSpec::row_major(dtype, &[5, 1000]);
        let tiles = TensorSpec::column_tiles(dtype, 40, 150, 128);
        let case = |suffix: &str, kind, spec: &TensorSpec, mantissa_bits, block_len| {
            let file = format!("v1_0_{name}_{suffix}");
            (file, kind, spec.clone(), EncodeOptions { mantissa_bits, block_len, ..Default::default() })
        };
        out.push(case("lossless", Kind::Gauss, &rows, None, 4096));
        out.push(case("tiles", Kind::Gauss, &tiles, None, 1024));
        out.push(case("special", Kind::Special, &tiles, None, 4096));
        out.push(case("bits", Kind::Bits, &rows, None, 192));
        out.push(case("k3", Kind::Gauss, &tiles, Some(3), 4096));
        out.push(case("subnormal", Kind::Subnormal, &tiles, Some(5), 4096));
        out.push(case("upcast", Kind::Upcast, &rows, None, 4096));
        let grid = |suffix: &str, kind, spec: &TensorSpec, cell, raw_bits| {
            let options = EncodeOptions { grid: Some(GridStep { cell, raw_bits }), ..Default::default() };
            (format!("v1_1_{name}_{suffix}"), kind, spec.clone(), options)
        };
        let units_of_rows = TensorSpec::column_tiles(dtype, 40, 192, 128);
        out.push(grid("grid", Kind::Gauss, &rows, 2, 4));
        out.push(grid("grid_zeros", Kind::Sparse, &tiles, 0, 9));
        out.push(grid("grid_rows", Kind::Gauss, &units_of_rows, 1, 7));
    }
    out
}

#[test]
fn golden_files_decode() {
    let mut seen = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "nzb") {
            let (blob, expected) = (fs::read(&path).unwrap(), fs::read(path.with_extension("bin")).unwrap());
            assert!(reference::decode(&blob).unwrap() == expected, "{path:?}");
            assert!(Decoder::open(&blob).unwrap().decode_bytes(&blob).unwrap() == expected, "{path:?}");
            seen += 1;
        }
    }
    assert!(seen >= 30, "only {seen} golden files: were some deleted?");
}

/// Not a promise of the format, but an encoder that changes its output should do so on purpose.
#[test]
fn encoder_still_writes_the_golden_bytes() {
    for (name, kind, spec, options) in cases() {
        let src = tensor(kind, spec.dtype, spec.elements().unwrap() as usize, 42);
        let blob = codec::encode(&src, &spec, &options).unwrap();
        let path = folder().join(format!("{name}.nzb"));
        if !path.exists() && std::env::var_os("NZ_WRITE_GOLDEN").is_some() {
            fs::write(&path, &blob).unwrap();
            fs::write(path.with_extension("bin"), reference::decode(&blob).unwrap()).unwrap();
        }
        assert!(fs::read(&path).unwrap() == blob, "{name}");
    }
}
