//! A converted model and back, byte for byte.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::fs;

use onnx_tools::onnx::Model;
use onnx_tools::rewrite::{BlobFile, Outcome, Recipe, Rules, restore};
use prost::Message;
use support::build::*;
use support::{INLINE, convert};
use tempfile::TempDir;

/// A model with every form that a weight can be stored in.
fn zoo(ir: i64) -> Vec<u8> {
    let weights = ["raw", "floats", "half", "half32", "brain", "own"];
    let mut nodes = vec![constant("own", float_data("inner", &[64, 64], 6))];
    let mut last = "x".to_string();
    for (i, weight) in weights.iter().enumerate() {
        let (mut name, out) = (weight.to_string(), format!("y{i}"));
        if i > 1 && i < 5 {
            nodes.push(node("Cast", &[weight], &[&format!("{weight}/32")]).int("to", 1));
            name = format!("{weight}/32");
        }
        nodes.push(node("MatMul", &[&last, &name], &[&out]));
        last = out;
    }
    nodes.push(node("MatMul", &[&last, "tagged"], &["z"]));
    nodes.push(node("Cast", &["taggedhalf"], &["taggedhalf/32"]).int("to", 1));
    nodes.push(node("MatMul", &["z", "taggedhalf/32"], &["out"]));
    let mut graph = GraphProto {
        node: nodes,
        initializer: vec![
            raw("raw", &[64, 64], 1),
            float_data("floats", &[64, 64], 2),
            half_raw("half", &[64, 64], 10, 3),
            half_int32("half32", &[64, 64], 10, 4),
            half_int32("brain", &[64, 64], 16, 5),
            raw("kept", &[3], 6),
        ],
        input: vec![info("x", 1, &[-1, 64])],
        output: vec![info("out", 1, &[-1, 64])],
        unknown: Some(vec![9; 40]),
        ..Default::default()
    };
    if ir < 4 {
        graph.input.extend(weights[..5].iter().map(|w| info(w, 1, &[64, 64])));
    }
    let mut bytes = model(ir, 17, graph).encode_to_vec();
    // A second part of the graph, written as another tool would: merged by hand into the first.
    let unpacked = |name: &str, dtype, float_data: Vec<f32>, int32_data: Vec<i32>| {
        let tensor = UnpackedTensor {
            dims: vec![64, 64],
            data_type: Some(dtype),
            float_data,
            int32_data,
            name: Some(name.into()),
        };
        let (mut field, body) = (vec![0x2a], tensor.encode_to_vec());
        prost::encoding::encode_varint(body.len() as u64, &mut field);
        field.extend(body);
        field
    };
    let mut extra = unpacked("tagged", 1, floats(4096, 7), vec![]);
    let halves = halves(4096, 10, 8).into_iter().map(i32::from).collect();
    extra.extend(unpacked("taggedhalf", 10, vec![], halves));
    let proto = ModelProto::decode(bytes.as_slice()).unwrap();
    let mut graph = proto.graph.clone().unwrap().encode_to_vec();
    graph.extend(extra);
    bytes = ModelProto { graph: None, ..proto }.encode_to_vec();
    bytes.push(0x3a);
    prost::encoding::encode_varint(graph.len() as u64, &mut bytes);
    bytes.extend(graph);
    bytes
}

#[test]
fn every_form_comes_back_byte_for_byte() {
    for (ir, inline) in [(8, INLINE), (3, INLINE), (8, 0)] {
        let folder = TempDir::new().unwrap();
        let (source, out, back) =
            (folder.path().join("m.onnx"), folder.path().join("m.nz.onnx"), folder.path().join("back.onnx"));
        fs::write(&source, zoo(ir)).unwrap();
        let result = convert(&source, &out, &Rules::default(), None, inline);
        let compressed = result.plan.placements.len();
        assert_eq!(compressed, 8);
        let restored = restore(&out, &back, false).unwrap();
        assert_eq!(restored.outcome, Outcome::ByteIdentical);
        assert_eq!((restored.weights, restored.files), (8, vec![back.clone()]));
        assert!(fs::read(&source).unwrap() == fs::read(&back).unwrap());

        let recipe = Recipe::read(&Model::open(&out).unwrap()).unwrap();
        let original = Model::open(&source).unwrap();
        for blob in recipe.blobs() {
            assert_eq!(original.weight(blob.weight).name, blob.name);
            assert_eq!(blob.file, if inline == 0 { BlobFile::Data } else { BlobFile::Model });
        }
    }
}

#[test]
fn rounded_weights_come_back_in_the_same_graph() {
    let folder = TempDir::new().unwrap();
    let (source, out, back) =
        (folder.path().join("m.onnx"), folder.path().join("m.nz.onnx"), folder.path().join("back.onnx"));
    fs::write(&source, zoo(8)).unwrap();
    convert(&source, &out, &Rules::default(), Some(4), INLINE);
    let restored = restore(&out, &back, false).unwrap();
    assert_eq!(restored.outcome, Outcome::SameGraphRoundedWeights);
    assert_eq!(restored.rounded.len(), 8);
    let (a, b) = (Model::open(&source).unwrap(), Model::open(&back).unwrap());
    assert_eq!(a.source().len(), b.source().len());
    for (a, b) in a.weights().iter().zip(b.weights()) {
        assert_eq!((&a.name, &a.shape, a.onnx_dtype), (&b.name, &b.shape, b.onnx_dtype));
    }
    for (x, y) in a.weights().iter().zip(b.weights()).filter(|(w, _)| w.onnx_dtype == 1 && w.elements == 4096)
    {
        let (x, y) = (a.read_weight(x).unwrap(), b.read_weight(y).unwrap());
        let worst = nz_onnx::codec::max_relative_error(&x, &y, nz_onnx::format::Dtype::F32);
        assert!(worst > 0.0 && worst <= 1.0 / 32.0, "{worst}");
    }
}

#[test]
fn external_data_comes_back_too() {
    let folder = TempDir::new().unwrap();
    let (source, out) = (folder.path().join("m.onnx"), folder.path().join("m.nz.onnx"));
    let graph = GraphProto {
        node: vec![node("MatMul", &["x", "w"], &["y"]), node("Add", &["y", "b"], &["z"])],
        initializer: vec![
            external("w", &[64, 64], "weights/m.data", 4096),
            external("b", &[64], "./weights/m.data", 30000),
        ],
        input: vec![info("x", 1, &[-1, 64])],
        output: vec![info("z", 1, &[-1, 64])],
        ..Default::default()
    };
    let mut graph = graph;
    graph.node.push(constant("k", external("", &[64], "weights/m.data", 30256)));
    graph.node.push(node("Add", &["z", "k"], &["o"]));
    fs::write(&source, model(8, 17, graph).encode_to_vec()).unwrap();
    let mut data = vec![0u8; 40000];
    data[4096..4096 + 16384].copy_from_slice(&f32_bytes(&floats(4096, 1)));
    data[30000..30256].copy_from_slice(&f32_bytes(&floats(64, 2)));
    data[30256..30512].copy_from_slice(&f32_bytes(&floats(64, 3)));
    data[25000..25004].copy_from_slice(b"note");
    fs::create_dir(folder.path().join("weights")).unwrap();
    fs::write(folder.path().join("weights/m.data"), &data).unwrap();
    convert(&source, &out, &Rules::default(), None, 0);

    let new = Model::open(&out).unwrap();
    assert_eq!(new.weights().len(), 3);
    new.check_external_data().unwrap();
    let bias = new.weights().iter().find(|w| w.name == "b").unwrap();
    assert_eq!(new.read_weight(bias).unwrap(), &data[30000..30256]);
    let constant = new.weights().iter().find(|w| w.name == "k").unwrap();
    assert!(constant.is_external());
    assert_eq!(new.read_weight(constant).unwrap(), &data[30256..30512]);

    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let back = elsewhere.join("m.onnx");
    let restored = restore(&out, &back, false).unwrap();
    assert_eq!(restored.outcome, Outcome::ByteIdentical);
    assert!(fs::read(&source).unwrap() == fs::read(&back).unwrap());
    assert!(fs::read(elsewhere.join("weights/m.data")).unwrap() == data);

    // Beside the original its data file is in the way, and stays.
    let error = restore(&out, &folder.path().join("again.onnx"), false).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(!folder.path().join("again.onnx").exists());
    restore(&out, &folder.path().join("again.onnx"), true).unwrap();

    // A changed byte of a kept tensor is found.
    let path = folder.path().join("m.nz.onnx.data");
    let mut changed = fs::read(&path).unwrap();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    fs::write(&path, changed).unwrap();
    assert_eq!(restore(&out, &back, true).unwrap_err().exit_code(), 4);
}

#[test]
fn a_changed_model_is_not_restored() {
    let folder = TempDir::new().unwrap();
    let (source, out, back) =
        (folder.path().join("m.onnx"), folder.path().join("m.nz.onnx"), folder.path().join("back.onnx"));
    fs::write(&source, zoo(8)).unwrap();
    convert(&source, &out, &Rules::default(), None, INLINE);
    let good = fs::read(&out).unwrap();
    for at in (0..good.len()).step_by(good.len() / 97) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        fs::write(&out, bytes).unwrap();
        match restore(&out, &back, true) {
            // In the metadata some bits decide nothing; then all the same the original comes out.
            Ok(restored) => {
                assert_eq!(restored.outcome, Outcome::ByteIdentical);
                assert!(fs::read(&source).unwrap() == fs::read(&back).unwrap());
            }
            Err(error) => assert!([4, 5].contains(&error.exit_code()), "{error}"),
        }
    }
    let error = restore(&source, &back, true).unwrap_err();
    assert!(error.to_string().contains("not made by nz-onnx"), "{error}");
    fs::write(&out, &good).unwrap();
    assert_eq!(restore(&out, &out, true).unwrap_err().exit_code(), 2);
    assert_eq!(
        fs::read_dir(folder.path())
            .unwrap()
            .filter(|e| { e.as_ref().unwrap().file_name().to_string_lossy().contains("tmp") })
            .count(),
        0
    );
}
