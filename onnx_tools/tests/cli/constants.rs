//! Weights that stay constants, stored in fewer bytes where the size is asked for.

use serde_json::Value;

use super::build::{self, GraphProto, ModelProto, constant, info, node, raw};
use super::convert::adds_up;
use super::tool::Folder;
use onnx_tools::onnx::Model;

/// Three convolutions over channels of their own and one over all, whose weights are an initializer, in a file, in a
/// Constant node and an initializer.
fn model(ir: i64) -> ModelProto {
    let depthwise = |x: &str, w: &str, y: &str| node("Conv", &[x, w], &[y]).int("group", 512);
    let mut graph = GraphProto {
        node: vec![
            depthwise("x", "first", "a"),
            constant("third", raw("inner", &[512, 1, 3, 3], 2)),
            depthwise("a", "second", "b"),
            depthwise("b", "third", "c"),
            node("Conv", &["c", "all"], &["out"]),
        ],
        initializer: vec![
            raw("first", &[512, 1, 3, 3], 1),
            build::external("second", &[512, 1, 9, 9], "w.bin", 64),
            raw("all", &[256, 512, 1, 1], 4),
        ],
        input: vec![info("x", 1, &[1, 512, 20, 20])],
        output: vec![info("out", 1, &[1, 256, -1, -1])],
        ..Default::default()
    };
    if ir < 4 {
        graph.input.extend([info("first", 1, &[512, 1, 3, 3]), info("second", 1, &[512, 1, 9, 9])]);
        graph.input.push(info("all", 1, &[256, 512, 1, 1]));
    }
    build::model(ir, 13, graph)
}

fn folder(ir: i64) -> Folder {
    let folder = Folder::with(&model(ir));
    let mut data = vec![7; 64];
    data.extend(build::f32_bytes(&build::floats(512 * 81, 3)));
    folder.write("w.bin", &data);
    folder
}

fn encodings(document: &Value) -> Vec<String> {
    let tensors = document["tensors"].as_array().unwrap().iter();
    tensors.map(|t| t["encoding"].as_str().unwrap_or("none").to_string()).collect()
}

#[test]
fn a_size_is_reached_with_them_and_the_way_back_is_there() {
    for ir in [3, 8] {
        let folder = folder(ir);
        let document = folder.run("convert model.onnx --transform auto --ratio 0.2 --json").exits(0).json();
        adds_up(&document);
        let found = encodings(&document);
        assert_eq!(found.iter().filter(|e| e.starts_with("constant int8")).count(), 3, "{found:?}");
        assert!(document["totals"]["ratio"].as_f64().unwrap() <= 0.2);

        let check = folder.run("verify model.nz.onnx --original model.onnx --json").exits(0).json();
        let blobs = check["blobs"].as_array().unwrap();
        assert_eq!(blobs.len(), 4);
        for blob in blobs {
            let tensors = document["tensors"].as_array().unwrap();
            let tensor = tensors.iter().find(|t| t["name"] == blob["name"]).unwrap();
            assert_eq!(blob["matches_original"], true, "{blob}");
            assert!(blob["snr_db"].as_f64().unwrap() > 25.0 && blob["snr_db"] == tensor["snr_db"], "{blob}");
        }

        let seen = folder.run("inspect model.nz.onnx --json").exits(0).json();
        assert_eq!(seen["constants"].as_array().unwrap().len(), 3, "{seen}");
        assert_eq!(seen["weights"].as_array().unwrap().len(), 0, "their tensors are not named again: {seen}");
        assert!(folder.run("inspect model.nz.onnx").exits(0).stdout.contains("constant int8"));

        folder.run("restore model.nz.onnx -o back/model.onnx").exits(0);
        let (before, after) = (
            Model::open(&folder.at("model.onnx")).unwrap(),
            Model::open(&folder.at("back/model.onnx")).unwrap(),
        );
        let names = |model: &Model| model.weights().iter().map(|w| w.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&before), names(&after));
        let values = |model: &Model, at: usize| -> Vec<f32> {
            let bytes = model.read_weight(&model.weights()[at]).unwrap();
            bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        for at in 0..4 {
            let (before, after) = (values(&before, at), values(&after, at));
            let largest = before.iter().fold(0.0, |most: f32, v| most.max(v.abs()));
            let worst = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst > 0.0 && worst < largest / 20.0, "{worst} of {largest}");
        }
    }
}

#[test]
fn they_stay_as_they_were_unless_a_size_is_asked_for() {
    let folder = folder(8);
    for options in ["", "--transform auto", "--max-error 0.01", "--ratio 0.6", "--lossless"] {
        let document = folder.run(&format!("convert model.onnx --force --json {options}")).exits(0).json();
        let found = encodings(&document);
        assert_eq!(found.iter().filter(|e| *e == "none").count(), 3, "{options}: {found:?}");
    }
    let planned = folder.run("plan model.onnx --transform auto --ratio 0.2 --json").exits(0).json();
    assert_eq!(encodings(&planned).iter().filter(|e| e.starts_with("constant")).count(), 3);
    let snr = folder.run("convert model.onnx --force --transform grid --snr 60 --json").exits(0).json();
    assert!(encodings(&snr).contains(&"constant float16".to_string()), "{snr}");
    // The bits are those of all that is stored shorter.
    let bits = folder.run("convert model.onnx --force --transform auto --bits 7.8 --json").exits(0).json();
    assert!(bits["totals"]["bits_per_weight"].as_f64().unwrap() <= 7.8);
    assert_eq!(encodings(&bits).iter().filter(|e| e.starts_with("constant")).count(), 3, "{bits}");
}

#[test]
fn a_changed_level_is_found() {
    let folder = folder(8);
    folder.run("convert model.onnx --transform auto --ratio 0.2").exits(0);
    let model = Model::open(&folder.at("model.nz.onnx")).unwrap();
    let levels = model.weights().iter().find(|w| w.name == "first.nz.levels").unwrap();
    let at = levels.message.end - 10;
    let mut bytes = folder.read("model.nz.onnx");
    bytes[usize::try_from(at).unwrap()] ^= 1;
    folder.write("model.nz.onnx", &bytes);
    let found = folder.run("verify model.nz.onnx --json").exits(4).json();
    let bad: Vec<_> =
        found["blobs"].as_array().unwrap().iter().filter(|b| b["checksum_ok"] == false).collect();
    assert_eq!((bad.len(), &bad[0]["name"]), (1, &"first".into()));
    folder.run("restore model.nz.onnx -o back/model.onnx").exits(4);
}

#[test]
fn weights_that_float16_holds_come_back_bit_for_bit() {
    let mut original = model(8);
    let graph = original.graph.as_mut().unwrap();
    graph.node = vec![node("Conv", &["x", "first"], &["out"]).int("group", 512)];
    graph.initializer.truncate(1);
    let halves = build::floats(512 * 9, 1).into_iter().map(|v| half::f16::from_f32(v).to_f32());
    graph.initializer[0].raw_data = Some(build::f32_bytes(&halves.collect::<Vec<_>>()));
    let folder = Folder::with(&original);
    let document = folder.run("convert model.onnx --transform auto --ratio 0.5 --json").exits(0).json();
    assert_eq!(encodings(&document), ["constant float16"]);
    assert_eq!(document["totals"]["lossless"], true);
    folder.run("restore model.nz.onnx -o back.onnx").exits(0);
    assert!(folder.read("back.onnx") == folder.read("model.onnx"));
}
