//! What is done for the outputs where no inputs are given: rounding by a rule, and bytes by weights' places in the model.

use onnx_tools::onnx::Model;
use serde_json::Value;

use super::build::{self, GraphProto, ModelProto, NodeProto, TensorProto, raw};
use super::tool::{Folder, chain};

const WINDOW: usize = 9;

/// Of `x`, 64 pictures of 16 channels: a convolution, what `between` makes of it, and a product.
fn model(between: &str) -> ModelProto {
    model_of(vec![build::node(between, &["flat"], &["bent"])])
}

/// The same with these nodes from "flat" to "bent".
fn model_of(between: Vec<NodeProto>) -> ModelProto {
    let conv = |x: &str, w: &str, y: &str| {
        let node: NodeProto = build::node("Conv", &[x, w], &[y]).ints("pads", &[1, 1, 1, 1]);
        node
    };
    let number = |name: &str, value: f32| TensorProto {
        dims: Vec::new(),
        raw_data: Some(value.to_le_bytes().to_vec()),
        ..raw(name, &[1], 1)
    };
    let mut node = vec![
        conv("x", "first", "a"),
        conv("a", "second", "b"),
        build::node("GlobalMaxPool", &["b"], &["pooled"]),
        build::node("Flatten", &["pooled"], &["flat"]),
    ];
    node.extend(between);
    node.push(build::node("MatMul", &["bent", "last"], &["y"]));
    let graph = GraphProto {
        name: Some("without inputs".into()),
        input: vec![build::info("x", 1, &[64, 16, 4, 4])],
        output: vec![build::info("y", 1, &[64, 128])],
        node,
        initializer: vec![
            raw("first", &[16, 16, 3, 3], 1),
            raw("second", &[256, 16, 3, 3], 2),
            raw("last", &[256, 128], 3),
            number("half", 0.5),
            number("one", 1.0),
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
fn what_gates_itself_is_above_0() {
    let node = build::node;
    // GELU as it is written out, and SiLU; a sigmoid of one value that gates another says nothing.
    let gelu = vec![
        node("Mul", &["flat", "half"], &["scaled"]),
        node("Erf", &["scaled"], &["erf"]),
        node("Add", &["erf", "one"], &["gate"]),
        node("Mul", &["flat", "half"], &["halved"]),
        node("Mul", &["halved", "gate"], &["bent"]),
    ];
    let silu = |gated: &str| {
        vec![
            node("Sigmoid", &["flat"], &["gate"]),
            node("Tanh", &["flat"], &["other"]),
            node("Mul", &[gated, "gate"], &["product"]),
            node("Mul", &["product", "half"], &["bent"]),
        ]
    };
    for (nodes, is_above) in [(gelu, true), (silu("flat"), true), (silu("other"), false)] {
        let folder = Folder::with(&model_of(nodes.clone()));
        let (found, _) = errors(&folder, "");
        assert_eq!(compensated(&found).contains(&"last"), is_above, "{nodes:?}: {found}");
    }
}

#[test]
fn bodies_are_looked_into() {
    let mut body = model("Relu").graph.unwrap();
    body.input.clear();
    let other = GraphProto {
        node: vec![build::node("Identity", &["x"], &["z"])],
        output: vec![build::info("z", 1, &[64, 16, 4, 4])],
        ..Default::default()
    };
    let graph = GraphProto {
        name: Some("bodies".into()),
        input: vec![build::info("x", 1, &[64, 16, 4, 4]), build::info("c", 9, &[])],
        output: vec![build::info("out", 1, &[])],
        node: vec![build::node("If", &["c"], &["out"]).body("then_branch", body).body("else_branch", other)],
        ..Default::default()
    };
    let folder = Folder::with(&build::model(8, 17, graph));
    let (found, by_rule) = errors(&folder, "");
    assert!(["second", "last"].iter().all(|name| compensated(&found).contains(name)), "{found}");
    let sums = energy(by_rule("second").chunks(16 * WINDOW).map(|row| row.iter().sum()));
    assert!(sums < 0.05 * energy(by_rule("second").into_iter()), "{sums}");
}

/// The decibels of each weight in a plan of the model.
fn planned(graph: GraphProto) -> impl Fn(&str) -> f64 {
    let folder = Folder::with(&build::model(8, 17, graph));
    let line = "plan model.onnx --json --min-size 1 --transform grid --bits 4";
    let document = folder.run(line).exits(0).json();
    move |name: &str| {
        let tensors = document["tensors"].as_array().unwrap();
        tensors.iter().find(|t| t["name"] == name).unwrap()["snr_db"].as_f64().unwrap()
    }
}

#[test]
fn weights_of_a_gate_are_less_exact() {
    let node = build::node;
    let square = |name: &str, seed: u64| raw(name, &[128, 128, 1, 1], seed);
    let noise = planned(GraphProto {
        name: Some("gate".into()),
        input: vec![build::info("x", 1, &[1, 16, 8, 8])],
        output: vec![build::info("y", 1, &[1, 128, 1, 1])],
        node: vec![
            node("Conv", &["x", "first"], &["a"]),
            node("GlobalAveragePool", &["a"], &["pooled"]),
            node("Conv", &["pooled", "squeeze"], &["few"]),
            node("Relu", &["few"], &["some"]),
            node("Conv", &["some", "excite"], &["many"]),
            node("HardSigmoid", &["many"], &["gate"]),
            node("Mul", &["a", "gate"], &["gated"]),
            node("Conv", &["gated", "beside"], &["b"]),
            node("GlobalAveragePool", &["b"], &["mean"]),
            node("Conv", &["mean", "head"], &["y"]),
        ],
        initializer: vec![
            raw("first", &[128, 16, 1, 1], 1),
            square("squeeze", 2),
            square("excite", 3),
            square("beside", 4),
            square("head", 5),
        ],
        ..Default::default()
    });
    for name in ["squeeze", "excite"] {
        assert!(
            (noise("beside") - noise(name) - 6.0).abs() < 2.0,
            "{name}: {} {}",
            noise("beside"),
            noise(name)
        );
    }
    assert!((noise("beside") - noise("head")).abs() < 2.0, "what is pooled at the end gates nothing");
}

/// Attention with these weights for what queries, keys and values are made of.
fn attention(nodes: Vec<NodeProto>, weights: Vec<TensorProto>) -> GraphProto {
    let node = build::node;
    let mut all = nodes;
    all.extend([
        node("Transpose", &["k"], &["turned"]).ints("perm", &[0, 2, 1]),
        node("MatMul", &["q", "turned"], &["scores"]),
        node("Add", &["scores", "mask"], &["masked"]),
        node("Softmax", &["masked"], &["shares"]),
        node("MatMul", &["shares", "v"], &["mixed"]),
        node("MatMul", &["mixed", "out"], &["y"]),
    ]);
    let mut initializer = weights;
    initializer.push(raw("out", &[128, 128], 9));
    GraphProto {
        name: Some("attention".into()),
        input: vec![build::info("x", 1, &[1, 32, 128]), build::info("mask", 1, &[1, 32, 32])],
        output: vec![build::info("y", 1, &[1, 32, 128])],
        node: all,
        initializer,
        ..Default::default()
    }
}

#[test]
fn queries_and_keys_are_less_exact_than_values() {
    let node = build::node;
    let nodes = ["q", "k", "v"].map(|name| node("MatMul", &["x", &format!("w{name}")], &[name]));
    let weights = [("wq", 1), ("wk", 2), ("wv", 3)].map(|(name, seed)| raw(name, &[128, 128], seed));
    let noise = planned(attention(nodes.into(), weights.into()));
    assert!((noise("wv") - noise("out")).abs() < 2.0);
    for name in ["wq", "wk"] {
        assert!((noise("wv") - noise(name) - 6.0).abs() < 2.0, "{name}");
    }
    // One weight for all three has the values in it.
    let nodes = vec![
        node("MatMul", &["x", "wqkv"], &["qkv"]),
        node("Split", &["qkv"], &["q", "k", "v"]).int("axis", 2),
    ];
    let noise = planned(attention(nodes, vec![raw("wqkv", &[128, 384], 4)]));
    // Three times the weights: 4.8 dB.
    assert!((noise("out") - noise("wqkv") - 4.8).abs() < 2.0);
}

#[test]
fn sizes_of_small_blobs_are_as_foreseen() {
    let weights = vec![raw("a", &[40, 40], 1), raw("b", &[40, 40], 2)];
    let folder = Folder::with(&chain(40, weights));
    let options = "--json --min-size 1 --transform grid --bits 5";
    let after = |line: &str| {
        folder.run(&format!("{line} model.onnx {options}")).exits(0).json()["totals"]["bytes_after"].clone()
    };
    assert_eq!(after("plan"), after("convert --force"));
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
