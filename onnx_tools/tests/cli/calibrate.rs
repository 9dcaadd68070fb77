//! `--calibrate`: bytes go where they spare the outputs the most error.

use serde_json::Value;

use super::build::{self, ModelProto, TensorProto, external, f32_bytes, raw};
use super::tool::{Folder, chain, npz, with_runtime};

/// y = x a + (x b) / 10: an error of b is a hundredth of the same of a.
fn weighted(b: TensorProto) -> ModelProto {
    let mut model = chain(128, vec![raw("a", &[128, 128], 1)]);
    let graph = model.graph.as_mut().unwrap();
    graph.node[0].output[0] = "xa".into();
    graph.initializer.push(b);
    let tenth = TensorProto { raw_data: Some(f32_bytes(&[0.1])), ..raw("tenth", &[1], 3) };
    graph.initializer.push(tenth);
    graph.node.push(build::node("MatMul", &["x", "b"], &["xb"]));
    graph.node.push(build::node("Mul", &["xb", "tenth"], &["some"]));
    graph.node.push(build::node("Add", &["xa", "some"], &["y"]));
    model
}

fn inputs() -> Vec<u8> {
    let values: Vec<f32> = (0..1280).map(|i| (i as f32 * 0.7).sin()).collect();
    npz("x", "(10, 128)", &f32_bytes(&values))
}

fn of<'a>(document: &'a Value, name: &str) -> &'a Value {
    document["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap()
}

#[test]
fn what_matters_more_gets_more_bits() {
    let folder = Folder::with(&weighted(raw("b", &[128, 128], 2)));
    folder.write("inputs.npz", &inputs());
    for transform in ["cut", "grid"] {
        let line = format!("plan model.onnx --json --bits 7 --transform {transform}");
        let plain = folder.run(&line).exits(0).json();
        assert_eq!(of(&plain, "a")["sensitivity"], Value::Null);
        let Some(ran) = with_runtime(&folder, &format!("{line} --calibrate inputs.npz")) else { return };
        let measured = ran.exits(0).json();
        let number = |name: &str, key: &str| of(&measured, name)[key].as_f64().unwrap();
        let (a, b) = (number("a", "sensitivity"), number("b", "sensitivity"));
        assert!(a > 0.7 && a < 1.4, "{a}");
        assert!(b / a > 0.007 && b / a < 0.014, "{b} {a}");
        // A hundredth is 20 dB, and a bit 6.
        let gap = number("a", "snr_db") - number("b", "snr_db");
        assert!((13.0..27.0).contains(&gap), "{transform}: {gap}");
        let error = |document: &Value| {
            let noise = |name: &str| 10f64.powf(-of(document, name)["snr_db"].as_f64().unwrap() / 10.0);
            noise("a") + 0.01 * noise("b")
        };
        assert!(error(&measured) < 0.8 * error(&plain), "{transform}");
        let again = with_runtime(&folder, &format!("{line} --calibrate inputs.npz --threads 1")).unwrap();
        assert_eq!(again.exits(0).json()["tensors"], measured["tensors"], "threads change nothing");
    }
    assert_eq!(folder.names(), ["inputs.npz", "model.onnx"]);
}

#[test]
fn weights_in_other_files_are_measured_too_and_stay_as_they_are() {
    let folder = Folder::with(&weighted(external("b", &[128, 128], "more.bin", 256)));
    let bytes = [vec![0; 256], f32_bytes(&build::floats(128 * 128, 2))].concat();
    folder.write("more.bin", &bytes);
    folder.write("inputs.npz", &inputs());
    let line = "convert model.onnx --json --ratio 0.3 --transform auto --calibrate inputs.npz";
    let Some(ran) = with_runtime(&folder, line) else { return };
    let document = ran.exits(0).json();
    assert!(document["totals"]["ratio"].as_f64().unwrap() <= 0.3);
    assert!(
        of(&document, "a")["snr_db"].as_f64().unwrap()
            > of(&document, "b")["snr_db"].as_f64().unwrap() + 10.0
    );
    assert_eq!(folder.read("more.bin"), bytes);
    folder.run("verify model.nz.onnx --original model.onnx").exits(0);
}

#[test]
fn inputs_that_do_not_fit_are_an_error() {
    let folder = Folder::with(&weighted(raw("b", &[128, 128], 2)));
    folder.write("inputs.npz", &npz("z", "(1, 128)", &f32_bytes(&[0.0; 128])));
    let line = "convert model.onnx --ratio 0.3 --calibrate";
    let Some(ran) = with_runtime(&folder, &format!("{line} inputs.npz")) else { return };
    ran.complains(2, &["inputs.npz", "\"x\""]);
    with_runtime(&folder, &format!("{line} nothing.npz")).unwrap().complains(1, &["nothing.npz"]);
    folder.run("convert model.onnx --lossless --calibrate inputs.npz").exits(2);
    assert_eq!(folder.names(), ["inputs.npz", "model.onnx"]);
}

#[test]
fn what_was_measured_is_taken_from_the_file() {
    let folder = Folder::with(&weighted(raw("b", &[128, 128], 2)));
    folder.write("inputs.npz", &inputs());
    let line = "plan model.onnx --json --bits 7 --transform grid --calibrate inputs.npz";
    let kept = format!("{line} --calibration kept.json");
    let Some(ran) = with_runtime(&folder, line) else { return };
    let plain = ran.exits(0).json()["tensors"].clone();
    let plan = |line: &str| with_runtime(&folder, line).unwrap().exits(0).json()["tensors"].clone();
    // Measured, and then read, by another command and for another size too.
    assert_eq!(plan(&kept), plain);
    let written = folder.read("kept.json");
    assert_eq!(plan(&kept), plain);
    let convert = "convert model.onnx --force --json --transform grid --calibrate inputs.npz --bits 5";
    with_runtime(&folder, &format!("{convert} --calibration kept.json")).unwrap().exits(0);
    assert_eq!(folder.read("kept.json"), written);
    let with = folder.read("model.nz.onnx");
    with_runtime(&folder, convert).unwrap().exits(0);
    assert_eq!(folder.read("model.nz.onnx"), with);

    // It is taken as it stands there: with "a" and "b" in each other's place.
    let mut document: Value = serde_json::from_slice(&written).unwrap();
    let of_weight = |document: &Value, name: &str| {
        let weights = document["weights"].as_object().unwrap();
        weights.keys().find(|key| key.ends_with(&format!(":{name}"))).unwrap().clone()
    };
    let (a, b) = (of_weight(&document, "a"), of_weight(&document, "b"));
    let found = [&a, &b].map(|key| document["weights"][key]["found"].clone());
    document["weights"][&a]["found"] = found[1].clone();
    document["weights"][&b]["found"] = found[0].clone();
    folder.write("kept.json", document.to_string().as_bytes());
    let swapped = plan(&kept);
    let sensitivity = |tensors: &Value, name: &str| {
        let tensors = tensors.as_array().unwrap();
        tensors.iter().find(|t| t["name"] == name).unwrap()["sensitivity"].as_f64().unwrap()
    };
    assert_eq!(sensitivity(&swapped, "a"), sensitivity(&plain, "b"));

    // Of other errors, of other inputs and of another model nothing is taken.
    let by = document["weights"][&a]["by"].clone();
    document["weights"][&a]["by"] = document["weights"][&b]["by"].clone();
    folder.write("kept.json", document.to_string().as_bytes());
    let part = plan(&kept);
    assert!(sensitivity(&part, "a") > 10.0 * sensitivity(&swapped, "a"));
    document["weights"][&a]["by"] = by;
    folder.write("kept.json", document.to_string().as_bytes());
    let values: Vec<f32> = (0..1280).map(|i| (i as f32 * 0.3).sin()).collect();
    folder.write("inputs.npz", &npz("x", "(10, 128)", &f32_bytes(&values)));
    assert_eq!(plan(&kept), plan(line));
    assert_ne!(folder.read("kept.json"), written);
}

#[test]
fn another_file_is_not_written_over() {
    let folder = Folder::with(&weighted(raw("b", &[128, 128], 2)));
    folder.write("inputs.npz", &inputs());
    folder.write("notes.json", b"{}");
    let line = "plan model.onnx --bits 7 --calibrate inputs.npz --calibration notes.json";
    let Some(ran) = with_runtime(&folder, line) else { return };
    ran.complains(4, &["notes.json"]);
    assert_eq!(folder.read("notes.json"), b"{}");
}
