//! Files that are not what they should be: an error, never a panic and never a read outside the folder.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;

use onnx_tools::onnx::Model;
use onnx_tools::rewrite::{Rules, decide, restore};
use prost::Message;
use support::build::*;
use support::{INLINE, convert};
use tempfile::TempDir;

fn small() -> ModelProto {
    let body = GraphProto {
        node: vec![constant("k", raw("", &[8, 8], 3)), node("MatMul", &["x", "k"], &["t"])],
        output: vec![info("t", 1, &[-1, 8])],
        ..Default::default()
    };
    let graph = GraphProto {
        node: vec![
            node("If", &["c"], &["y"]).body("then_branch", body.clone()).body("else_branch", body),
            node("MatMul", &["y", "w"], &["z"]),
        ],
        initializer: vec![raw("w", &[8, 8], 1), half_int32("h", &[4, 4], 10, 2)],
        input: vec![info("x", 1, &[-1, 8]), info("c", 9, &[])],
        output: vec![info("z", 1, &[-1, 8])],
        ..Default::default()
    };
    model(8, 17, graph)
}

fn everything() -> Rules {
    Rules::new(0, &[], &[], &[]).unwrap()
}

/// All that reads: structure, decisions, weights.
fn read(path: &Path) -> onnx_tools::onnx::Result<()> {
    let model = Model::open(path)?;
    decide(&model, &everything())?;
    model.weights().iter().try_for_each(|w| model.read_weight(w).map(drop))
}

#[test]
fn every_truncation_is_an_error() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.onnx");
    let bytes = ModelProto { opset_import: vec![], ..small() }.encode_to_vec();
    fs::write(&path, &bytes).unwrap();
    read(&path).unwrap();
    for len in 0..bytes.len() {
        fs::write(&path, &bytes[..len]).unwrap();
        let error = read(&path).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{len}: {error}");
    }
}

#[test]
fn no_change_of_a_byte_panics() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.onnx");
    let bytes = small().encode_to_vec();
    let mut refused = 0;
    for at in 0..bytes.len() {
        for bit in [1, 0x80, 0x7f] {
            let mut changed = bytes.clone();
            changed[at] ^= bit;
            fs::write(&path, changed).unwrap();
            refused += usize::from(read(&path).is_err());
        }
    }
    assert!(refused > bytes.len() / 4);
}

#[test]
fn every_truncation_of_a_converted_model_is_an_error() {
    let folder = TempDir::new().unwrap();
    let (source, out, back) =
        (folder.path().join("m.onnx"), folder.path().join("m.nz.onnx"), folder.path().join("back.onnx"));
    fs::write(&source, small().encode_to_vec()).unwrap();
    convert(&source, &out, &everything(), None, INLINE);
    let good = fs::read(&out).unwrap();
    for len in 0..good.len() {
        fs::write(&out, &good[..len]).unwrap();
        assert!(restore(&out, &back, true).is_err(), "{len}");
    }
}

#[test]
fn other_files_are_not_models() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.onnx");
    for bytes in [&b""[..], b"hello, this is no model", &[0; 64], &[0xff; 64], b"PK\x03\x04"] {
        fs::write(&path, bytes).unwrap();
        let error = Model::open(&path).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("not a"), "{error}");
    }
    assert_eq!(Model::open(&folder.path().join("none.onnx")).unwrap_err().exit_code(), 1);
    assert_eq!(Model::open(folder.path()).unwrap_err().exit_code(), 2);
}

#[test]
fn deep_nesting_is_an_error() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.onnx");
    let mut graph = GraphProto::default();
    for _ in 0..200 {
        graph = GraphProto {
            node: vec![node("If", &["c"], &["y"]).body("then_branch", graph)],
            ..Default::default()
        };
    }
    fs::write(&path, model(8, 17, graph).encode_to_vec()).unwrap();
    let error = Model::open(&path).unwrap_err();
    assert!(error.to_string().contains("nest deeper"), "{error}");
}

#[test]
fn a_ring_of_names_is_no_endless_walk() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.onnx");
    let graph = GraphProto {
        node: vec![
            node("Identity", &["w"], &["a"]),
            node("Identity", &["a"], &["b"]),
            node("Identity", &["b"], &["a"]),
            node("MatMul", &["x", "b"], &["y"]),
        ],
        initializer: vec![raw("w", &[64, 64], 1)],
        input: vec![info("x", 1, &[-1, 64])],
        output: vec![info("y", 1, &[-1, 64])],
        ..Default::default()
    };
    fs::write(&path, model(8, 17, graph).encode_to_vec()).unwrap();
    let model = Model::open(&path).unwrap();
    let reason = support::reason(&model, &decide(&model, &everything()).unwrap(), "w");
    assert!(reason.contains("ring"), "{reason}");
}

fn with_external(location: &str, offset: usize) -> ModelProto {
    let graph = GraphProto {
        node: vec![node("MatMul", &["x", "w"], &["y"])],
        initializer: vec![external("w", &[64, 64], location, offset)],
        input: vec![info("x", 1, &[-1, 64])],
        output: vec![info("y", 1, &[-1, 64])],
        ..Default::default()
    };
    model(8, 17, graph)
}

#[test]
fn external_data_stays_in_the_folder() {
    let outside = TempDir::new().unwrap();
    let folder = outside.path().join("inner");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("m.onnx");
    fs::write(outside.path().join("secret"), vec![1; 16384]).unwrap();
    let absolute = outside.path().join("secret");
    let absolute = absolute.to_str().unwrap();
    for location in ["../secret", "a/../../secret", absolute, "", ".", "..", "..\\secret", "C:secret"] {
        fs::write(&path, with_external(location, 0).encode_to_vec()).unwrap();
        let error = read(&path).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{location}: {error}");
        assert!(error.to_string().contains("refused"), "{error}");
    }
    std::os::unix::fs::symlink(outside.path().join("secret"), folder.join("link")).unwrap();
    fs::write(&path, with_external("link", 0).encode_to_vec()).unwrap();
    let error = read(&path).unwrap_err();
    assert!(error.to_string().contains("outside the model's folder"), "{error}");
    // The folder itself may be reached through links, and a cache may link model and data one by one.
    fs::write(folder.join("data"), vec![0; 16384]).unwrap();
    fs::write(&path, with_external("data", 0).encode_to_vec()).unwrap();
    let view = outside.path().join("view");
    fs::create_dir(&view).unwrap();
    std::os::unix::fs::symlink(&path, view.join("m.onnx")).unwrap();
    std::os::unix::fs::symlink(folder.join("data"), view.join("data")).unwrap();
    read(&view.join("m.onnx")).unwrap();
}

#[test]
fn external_data_missing_or_short() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.onnx");
    fs::write(&path, with_external("data", 100).encode_to_vec()).unwrap();
    let error = read(&path).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("data") && error.to_string().contains("\"w\""), "{error}");
    fs::write(folder.path().join("data"), vec![0; 16384]).unwrap();
    let error = read(&path).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    let text = error.to_string();
    assert!(text.contains("100..16484") && text.contains("16384") && text.contains("\"w\""), "{text}");
}

#[test]
fn a_recipe_writes_only_beside_its_output() {
    let folder = TempDir::new().unwrap();
    let (source, out) = (folder.path().join("m.onnx"), folder.path().join("m.nz.onnx"));
    fs::write(folder.path().join("aa.data"), f32_bytes(&floats(4096, 1))).unwrap();
    fs::write(&source, with_external("aa.data", 0).encode_to_vec()).unwrap();
    convert(&source, &out, &everything(), None, INLINE);
    // A data file of the original that has the name of the converted model's own is not written over it.
    fs::remove_file(folder.path().join("aa.data")).unwrap();
    let error = restore(&out, &folder.path().join("aa.data"), false).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(!folder.path().join("aa.data").exists());
}
