//! What is done for the outputs where no inputs are given: rounding by a rule, and bytes by weights' places in the model.

use onnx_tools::onnx::Model;
use serde_json::Value;

use super::build::{self, GraphProto, ModelProto, NodeProto, raw};
use super::tool::Folder;

const WINDOW: usize = 9;

/// Of `x`, 64 pictures of 16 channels: a convolution, what `between` makes of it, and a product.
fn model(between: &str) -> ModelProto {
    let conv = |x: &str, w: &str, y: &str| {
        let node: NodeProto = build::node("Conv", &[x, w], &[y]).ints("pads", &[1, 1, 1, 1]);
        node
    };
    let graph = GraphProto {
        name: Some("without inputs".into()),
        input: vec![build::info("x", 1, &[64, 16, 4, 4])],
        output: vec![build::info("y", 1, &[64, 128])],
        node: vec![
            conv("x", "first", "a"),
            conv("a", "second", "b"),
            build::node("GlobalMaxPool", &["b"], &["pooled"]),
            build::node("Flatten", &["pooled"], &["flat"]),
            build::node(between, &["flat"], &["bent"]),
            build::node("MatMul", &["bent", "last"], &["y"]),
        ],
        initializer: vec![
            raw("first", &[16, 16, 3, 3], 1),
            raw("second", &[256, 16, 3, 3], 2),
            raw("last", &[256, 128], 3),
        ],
        ..Default::default()
    };
    build::model(8, 17, graph)
}

fn values(model: &Model, name: &str) -> Vec<f32> {
    let weight = model.weights().iter().find(|w| w.name == name).unwrap();
    let bytes = model.read_weight(weight).unwrap();
    bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Converts with these options, checks the result, and gives the weights' errors by name.
fn errors(folder: &Folder, options: &str) -> (Value, impl Fn(&str) -> Vec<f64>) {
    let line = format!("convert model.onnx --force --json --min-size 1 --transform grid --bits 4 {options}");
    folder.run(&line).exits(0);
    let found = folder.run("verify model.nz.onnx --original model.onnx --json").exits(0).json();
    folder.run("restore model.nz.onnx --force -o back.onnx").exits(0);
    let (before, after) =
        (Model::open(&folder.at("model.onnx")).unwrap(), Model::open(&folder.at("back.onnx")).unwrap());
    let of = move |name: &str| -> Vec<f64> {
        let pairs = values(&before, name).into_iter().zip(values(&after, name));
        pairs.map(|(a, b)| f64::from(a) - f64::from(b)).collect()
    };
    (found, of)
}

fn energy(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum()
}

/// Names of the blobs that verify calls compensated.
fn compensated(found: &Value) -> Vec<&str> {
    let blobs = found["blobs"].as_array().unwrap().iter();
    blobs.filter(|blob| blob["compensated"] == true).map(|blob| blob["name"].as_str().unwrap()).collect()
}

#[test]
fn errors_of_a_sum_and_of_a_window_are_made_good() {
    let folder = Folder::with(&model("Relu"));
    let (found, by_rule) = errors(&folder, "");
    let (plain, each) = errors(&folder, "--compensate=off");
    // The first is so small that its levels may change its size by more than there is room for.
    assert!(["second", "last"].iter().all(|name| compensated(&found).contains(name)), "{found}");
    assert_eq!(compensated(&plain), [""; 0], "{plain}");

    // Sums over the inputs of each output, in rows of "second" and columns of "last"; and of each window.
    let rows = |errors: &[f64], len: usize| energy(errors.chunks(len).map(|row| row.iter().sum()));
    let columns = |errors: &[f64]| energy((0..128).map(|c| errors.iter().skip(c).step_by(128).sum()));
    let (ours, theirs) = (by_rule("second"), each("second"));
    assert!(rows(&ours, 16 * WINDOW) < 0.05 * rows(&theirs, 16 * WINDOW));
    assert!(rows(&ours, WINDOW) < 0.5 * rows(&theirs, WINDOW));
    let (ours, theirs) = (by_rule("last"), each("last"));
    assert!(columns(&ours) < 0.05 * columns(&theirs));
    // Errors themselves are hardly larger for it.
    assert!(energy(ours.into_iter()) < 1.2 * energy(theirs.into_iter()));
}

#[test]
fn what_may_be_below_0_is_left_alone() {
    let folder = Folder::with(&model("Tanh"));
    let (found, _) = errors(&folder, "");
    let names = compensated(&found);
    assert!(names.contains(&"second") && !names.contains(&"last"), "{found}");
}

#[test]
fn the_first_convolution_is_more_exact() {
    let folder = Folder::with(&model("Relu"));
    let document =
        folder.run("plan model.onnx --json --min-size 1 --transform grid --bits 4").exits(0).json();
    let noise = |name: &str| {
        let tensors = document["tensors"].as_array().unwrap();
        tensors.iter().find(|t| t["name"] == name).unwrap()["snr_db"].as_f64().unwrap()
    };
    // Sixteen times the sensitivity, and a sixteenth of the weights: 12 dB each.
    assert!((noise("first") - noise("second") - 24.0).abs() < 4.0, "{document}");
}

#[test]
fn a_promise_of_each_weight_is_kept() {
    let folder = Folder::with(&model("Relu"));
    folder.run("convert model.onnx --min-size 1 --transform grid --snr 30").exits(0);
    let found = folder.run("verify model.nz.onnx --original model.onnx --json").exits(0).json();
    assert_eq!(compensated(&found), [""; 0], "{found}");
    assert!(found["blobs"].as_array().unwrap().iter().all(|b| b["snr_db"].as_f64().unwrap() >= 30.0));
}
