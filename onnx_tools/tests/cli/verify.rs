//! `verify`: what it finds, and both models in ONNX Runtime where there is one.

use std::fs;

use super::build::{self, raw};
use super::tool::{Folder, chain, large, npz, small, with_runtime};

#[test]
fn a_sound_model_passes() {
    let folder = Folder::with(&large());
    let done = folder.run("convert model.onnx --json").exits(0).json();
    let alone = folder.run("verify model.nz.onnx --json").exits(0).json();
    assert_eq!((&alone["schema"], &alone["ok"]), (&"nz-onnx.verify/1".into(), &true.into()));
    assert_eq!(alone["blobs"][0]["matches_original"], serde_json::Value::Null);
    let both = folder.run("verify model.nz.onnx --original model.onnx --json").exits(0).json();
    for (blob, tensor) in both["blobs"].as_array().unwrap().iter().zip(done["tensors"].as_array().unwrap()) {
        assert_eq!((&blob["name"], &blob["matches_original"]), (&tensor["name"], &true.into()));
        assert_eq!(blob["max_relative_error"], tensor["max_relative_error"]);
    }
    assert!(folder.run("verify model.nz.onnx").exits(0).stdout.contains("All checks passed"));
}

#[test]
fn a_flipped_bit_is_found() {
    let folder = Folder::with(&large());
    folder.run("convert model.onnx").exits(0);
    let mut data = folder.read("model.nz.onnx.data");
    // In the first of the two blobs.
    let inside = data.len() / 4;
    data[inside] ^= 0x10;
    folder.write("model.nz.onnx.data", &data);
    let found = folder.run("verify model.nz.onnx --json").exits(4).json();
    assert_eq!(found["ok"], false);
    let bad: Vec<_> =
        found["blobs"].as_array().unwrap().iter().filter(|b| b["checksum_ok"] == false).collect();
    assert_eq!(bad.len(), 1);
    assert!(bad[0]["problem"].is_string());
    folder.run("verify model.nz.onnx --original model.onnx").exits(4);
    let quiet = folder.run("verify model.nz.onnx -q").exits(4);
    assert!(quiet.stdout.contains("wrong:"), "a failure shows even under --quiet");
    folder.write("model.nz.onnx.data", &data[..inside]);
    folder.run("verify model.nz.onnx").exits(4);
    fs::remove_file(folder.at("model.nz.onnx.data")).unwrap();
    folder.run("verify model.nz.onnx").complains(1, &["model.nz.onnx.data"]);
}

#[test]
fn another_original_does_not_match() {
    let folder = Folder::with(&large());
    folder.run("convert model.onnx --lossless").exits(0);
    let other = Folder::with(&chain(512, vec![raw("a", &[512, 512], 1), raw("b", &[512, 512], 9)]));
    fs::copy(other.at("model.onnx"), folder.at("other.onnx")).unwrap();
    let ran = folder.run("verify model.nz.onnx --original other.onnx --json").exits(4);
    let blobs = ran.json()["blobs"].clone();
    assert_eq!((&blobs[0]["matches_original"], &blobs[1]["matches_original"]), (&true.into(), &false.into()));
    assert!(ran.stderr.contains("warning:"), "{}", ran.stderr);
}

#[test]
fn what_cannot_be_checked_is_a_usage_error() {
    let folder = Folder::with(&small());
    folder.run("convert model.onnx").exits(0);
    folder.run("verify model.onnx").complains(2, &["not a converted model", "help: "]);
    folder.run("restore model.onnx").complains(2, &["not a converted model"]);
    folder.run("verify model.nz.onnx --run").complains(2, &["--original"]);
    folder.run("verify model.nz.onnx --seed 1").exits(2);
    let line = "verify model.nz.onnx --original model.onnx --run --ort-lib no/such/libonnxruntime.so";
    folder.run(line).complains(2, &["no/such/libonnxruntime.so"]);
}

#[test]
fn both_models_give_the_same() {
    let folder = Folder::with(&large());
    folder.run("convert model.onnx --lossless").exits(0);
    let line = "verify model.nz.onnx --original model.onnx --run --json --shape x=3,512 --seed 7";
    let Some(ran) = with_runtime(&folder, line) else { return };
    let found = ran.exits(0).json();
    let run = &found["run"];
    assert_eq!(run["custom_nodes"], 2);
    assert_eq!(run["tolerance"], 1e-5);
    assert_eq!(run["outputs"][0]["shape"], serde_json::json!([3, 512]));
    assert_eq!(run["outputs"][0]["within_tolerance"], true);

    // Rounded weights are reported, and judged only by a tolerance that the user gives.
    folder.run("convert model.onnx --mantissa-bits 3 --force").exits(0);
    let line = "verify model.nz.onnx --original model.onnx --run --json";
    let found = with_runtime(&folder, line).unwrap().exits(0).json();
    assert_eq!(found["run"]["tolerance"], serde_json::Value::Null);
    let error = found["run"]["outputs"][0]["max_error_to_largest"].as_f64().unwrap();
    assert!(error > 1e-4 && error < 1.0, "{error}");
    let output = &found["run"]["outputs"][0];
    let snr = output["snr_db"].as_f64().unwrap();
    assert!(snr > 15.0 && snr < 45.0, "{snr}");
    let cosine = output["least_cosine"].as_f64().unwrap();
    // Of one row, both say the same.
    assert!((1.0 - cosine - 10f64.powf(-snr / 10.0) / 2.0).abs() < 0.2 * (1.0 - cosine), "{cosine} {snr}");
    assert!(output["top5_agreement"].as_f64().unwrap() >= 0.2);
    assert_eq!(found["run"]["runs"], 1);

    // Inputs of a folder are one run each.
    fs::create_dir(folder.at("inputs")).unwrap();
    for (name, scale) in [("a.npz", 1.0f32), ("b.npz", -3.0)] {
        let values: Vec<u8> = (0..512).flat_map(|i| (scale * (i as f32).sin()).to_le_bytes()).collect();
        folder.write(&format!("inputs/{name}"), &npz("x", "(1, 512)", &values));
    }
    let of =
        |inputs: &str| with_runtime(&folder, &format!("{line} --inputs {inputs}")).unwrap().exits(0).json();
    let (both, one) = (of("inputs"), of("inputs/b.npz"));
    assert_eq!((&both["run"]["runs"], &one["run"]["runs"]), (&2.into(), &1.into()));
    let worst =
        |document: &serde_json::Value| document["run"]["outputs"][0]["max_abs_error"].as_f64().unwrap();
    assert!(worst(&both) >= worst(&one) && worst(&one) > 0.0);
    with_runtime(&folder, &format!("{line} --tolerance 1e-6")).unwrap().exits(4);
    with_runtime(&folder, &format!("{line} --shape nope=1")).unwrap().complains(2, &["nope"]);
    with_runtime(&folder, &format!("{line} --inputs model.onnx")).unwrap().complains(4, &["model.onnx"]);
}

#[test]
fn random_integers_get_smaller_until_the_original_runs() {
    // A table of two rows, as that of the segments of sentences.
    let graph = build::GraphProto {
        name: Some("segments".into()),
        input: vec![build::info("segment", 7, &[1, 32])],
        output: vec![build::info("y", 1, &[1, 32, 1024])],
        node: vec![build::node("Gather", &["table", "segment"], &["y"]).named("look_up")],
        initializer: vec![build::raw("table", &[2, 1024], 1)],
        ..Default::default()
    };
    let folder = Folder::with(&build::model(8, 17, graph));
    folder.run("convert model.onnx --lossless").exits(0);
    let line = "verify model.nz.onnx --original model.onnx --run --json";
    let Some(ran) = with_runtime(&folder, line) else { return };
    let found = ran.exits(0).json();
    assert_eq!(found["run"]["outputs"][0]["max_abs_error"], 0.0);
    assert_eq!(found["run"]["custom_nodes"], 1);
}

#[test]
fn fused_embeddings_keep_their_constants() {
    let ids = |name: &str| build::info(name, 6, &[1, 8]);
    let inputs = ["words", "segments", "word_table", "position_table", "segment_table", "gamma", "beta"];
    let embed = build::node("EmbedLayerNormalization", &inputs, &["e", "mask"]).named("embed");
    let graph = build::GraphProto {
        name: Some("embeddings".into()),
        input: vec![ids("words"), ids("segments")],
        output: vec![build::info("y", 1, &[1, 8, 64])],
        node: vec![
            build::NodeProto { domain: Some("com.microsoft".into()), ..embed },
            build::node("MatMul", &["e", "w"], &["y"]).named("product"),
        ],
        initializer: vec![
            raw("word_table", &[32, 1024], 1),
            raw("position_table", &[16, 1024], 2),
            raw("segment_table", &[16, 1024], 3),
            raw("gamma", &[1024], 4),
            raw("beta", &[1024], 5),
            raw("w", &[1024, 64], 6),
        ],
        ..Default::default()
    };
    let mut model = build::model(8, 17, graph);
    model.opset_import.push(build::Opset { domain: Some("com.microsoft".into()), version: Some(1) });
    let folder = Folder::with(&model);
    let found = folder.run("convert model.onnx --lossless --json").exits(0).json();
    let kept = |name: &str| {
        let tensors = found["tensors"].as_array().unwrap();
        let tensor = tensors.iter().find(|t| t["name"] == name).unwrap();
        tensor["decision"] == "kept"
    };
    assert!(inputs[2..].iter().all(|name| kept(name)) && !kept("w"));
    let line = "verify model.nz.onnx --original model.onnx --run --json";
    let Some(ran) = with_runtime(&folder, line) else { return };
    assert_eq!(ran.exits(0).json()["run"]["custom_nodes"], 1);
}
