//! `--compensate`: each weight on a grid is rounded so as to make good the errors of those before it.

use serde_json::Value;

use super::build::{self, GraphProto, ModelProto, NodeProto, TensorProto, f32_bytes, raw};
use super::tool::{Folder, npz, with_runtime};

/// So many vectors to calibrate with, and as many others to measure with.
const ROWS: usize = 384;
/// What is asked for, at one step of the grid or another.
const BITS: &str = "--bits 4.6 --transform grid";

/// Vectors whose elements go together, as activations do.
fn vectors(width: usize, seed: u64) -> Vec<u8> {
    let (own, common, mixed) =
        (build::floats(ROWS * width, seed), build::floats(ROWS * 2, seed + 1), build::floats(2 * width, 99));
    let value = |i: usize| {
        let (row, column) = (i / width, i % width);
        let shared: f32 = (0..2).map(|k| common[row * 2 + k] * mixed[k * width + column]).sum();
        0.1 * own[i] + 20.0 * shared
    };
    f32_bytes(&(0..ROWS * width).map(value).collect::<Vec<_>>())
}

fn graph(nodes: Vec<NodeProto>, weights: Vec<TensorProto>, output: &[i64]) -> ModelProto {
    let graph = GraphProto {
        name: Some("compensated".into()),
        input: vec![build::info("x", 1, &[-1, 128])],
        output: vec![build::info("y", 1, output)],
        node: nodes,
        initializer: weights,
        ..Default::default()
    };
    build::model(8, 17, graph)
}

/// A model of one weight for each way that a weight is multiplied.
fn models() -> Vec<(&'static str, ModelProto)> {
    let node = |op: &str, inputs: &[&str]| build::node(op, inputs, &["y"]).named("product");
    let turned = || build::node("Transpose", &["x"], &["turned"]).ints("perm", &[1, 0]).named("turn");
    let numbers = |name: &str, values: &[i64]| TensorProto {
        data_type: Some(7),
        raw_data: Some(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        ..raw(name, &[values.len()], 1)
    };
    let planes = || build::node("Reshape", &["x", "planes"], &["image"]).named("fold");
    let conv = |group: i64| {
        let node = node("Conv", &["image", "w"]).int("group", group).ints("pads", &[1, 1, 1, 1]);
        let weight = raw("w", &[64, 8 / group as usize, 3, 3], 7);
        graph(vec![planes(), node], vec![weight, numbers("planes", &[-1, 8, 4, 4])], &[-1, 64, 4, 4])
    };
    vec![
        (
            "right of MatMul",
            graph(vec![node("MatMul", &["x", "w"])], vec![raw("w", &[128, 192], 7)], &[-1, 192]),
        ),
        (
            "left of MatMul",
            graph(vec![turned(), node("MatMul", &["w", "turned"])], vec![raw("w", &[96, 128], 7)], &[96, -1]),
        ),
        (
            "Gemm transB",
            graph(
                vec![node("Gemm", &["x", "w", "c"]).int("transB", 1)],
                vec![raw("w", &[100, 128], 7), raw("c", &[100], 8)],
                &[-1, 100],
            ),
        ),
        (
            "Gemm transA",
            graph(
                vec![turned(), node("Gemm", &["turned", "w"]).int("transA", 1)],
                vec![raw("w", &[128, 100], 7)],
                &[-1, 100],
            ),
        ),
        ("Conv", conv(1)),
        ("Conv of groups", conv(2)),
    ]
}

fn verify(folder: &Folder, original: &str) -> Value {
    let line = format!("verify model.nz.onnx --original {original} --run --inputs unseen.npz --json");
    with_runtime(folder, &line).unwrap().json()
}

fn folder(model: &ModelProto) -> Folder {
    let folder = Folder::with(model);
    folder.write("inputs.npz", &npz("x", &format!("({ROWS}, 128)"), &vectors(128, 10)));
    folder.write("unseen.npz", &npz("x", &format!("({ROWS}, 128)"), &vectors(128, 20)));
    folder
}

#[test]
fn outputs_get_closer_on_inputs_not_seen() {
    for (name, model) in models() {
        let folder = folder(&model);
        let Some(ran) = with_runtime(&folder, &format!("convert model.onnx --json {BITS} --compensate=off"))
        else {
            return;
        };
        let before = ran.exits(0).json();
        let by_itself = verify(&folder, "model.onnx");
        let line = format!("convert model.onnx --json --force {BITS} --calibrate inputs.npz --compensate");
        let after = with_runtime(&folder, &line).unwrap().exits(0).json();
        let compensated = verify(&folder, "model.onnx");
        let bytes = |document: &Value| document["totals"]["bytes_after"].as_f64().unwrap();
        assert!(bytes(&after) < 1.01 * bytes(&before), "{name}");
        let snr = |document: &Value| document["run"]["outputs"][0]["snr_db"].as_f64().unwrap();
        assert!(
            snr(&compensated) > snr(&by_itself) + 2.0,
            "{name}: {} {}",
            snr(&compensated),
            snr(&by_itself)
        );
        // The weight by itself is further off, and both reports say by how much.
        let weight = |document: &Value| document["blobs"][0]["snr_db"].as_f64().unwrap();
        assert!(weight(&compensated) < weight(&by_itself), "{name}");
        let converted = after["tensors"].as_array().unwrap().iter().find(|t| t["name"] == "w").unwrap();
        assert_eq!(converted["snr_db"], compensated["blobs"][0]["snr_db"], "{name}");
        for (document, is_compensated) in [(&by_itself, false), (&compensated, true)] {
            assert_eq!(document["ok"], true, "{name}: {document}");
            let blob = &document["blobs"][0];
            assert_eq!(blob["compensated"], is_compensated, "{name}");
            assert_eq!(
                (&blob["matches_original"], &blob["lossless"]),
                (&true.into(), &false.into()),
                "{name}"
            );
        }
        folder.run("verify model.nz.onnx").exits(0);
        folder.run("restore model.nz.onnx -o back.onnx").exits(0);
    }
}

#[test]
fn threads_change_nothing() {
    for (name, model) in models() {
        let folder = folder(&model);
        let convert = |threads: u32| {
            let line = format!(
                "convert model.onnx --force {BITS} --calibrate inputs.npz --compensate --threads {threads}"
            );
            Some((with_runtime(&folder, &line)?.exits(0), folder.read("model.nz.onnx")).1)
        };
        let Some(one) = convert(1) else { return };
        assert_eq!(Some(one), convert(3), "{name}");
    }
}

#[test]
fn another_weight_is_no_original() {
    let (_, model) = models().remove(0);
    let folder = folder(&model);
    let line = format!("convert model.onnx {BITS} --calibrate inputs.npz --compensate");
    let Some(ran) = with_runtime(&folder, &line) else { return };
    ran.exits(0);
    let mut other = model;
    other.graph.as_mut().unwrap().initializer[0] = raw("w", &[128, 192], 8);
    folder.write("other.onnx", &prost::Message::encode_to_vec(&other));
    let found = verify(&folder, "other.onnx");
    assert_eq!((&found["ok"], &found["blobs"][0]["matches_original"]), (&false.into(), &false.into()));
    assert!(found["blobs"][0]["problem"].as_str().unwrap().contains("other weights"), "{found}");
}

/// y = x a + (tanh x) a2 + (0 x) d + (x e) e', where a2 is a again, and e is looked up in too.
#[test]
fn shared_weights_are_rounded_for_all_their_readers_and_others_by_themselves() {
    let square = |name: &str, seed: u64| raw(name, &[128, 128], seed);
    let zero = TensorProto { raw_data: Some(f32_bytes(&[0.0])), ..raw("zero", &[1], 3) };
    let nodes = vec![
        build::node("MatMul", &["x", "a"], &["xa"]),
        build::node("Tanh", &["x"], &["bent"]),
        build::node("MatMul", &["bent", "a2"], &["xa2"]),
        build::node("Mul", &["x", "zero"], &["nothing"]),
        build::node("MatMul", &["nothing", "d"], &["xd"]),
        build::node("MatMul", &["x", "e"], &["xe"]),
        build::node("Abs", &["xe"], &["sizes"]),
        build::node("Clip", &["sizes", "", "most"], &["clipped"]),
        build::node("Cast", &["clipped"], &["places"]).int("to", 7),
        build::node("Gather", &["e", "places"], &["rows"]),
        build::node("ReduceMean", &["rows"], &["looked_up"]).ints("axes", &[1]).int("keepdims", 0),
        build::node("Sum", &["xa", "xa2", "xd", "xe", "looked_up"], &["y"]),
    ];
    let most = TensorProto { raw_data: Some(f32_bytes(&[127.0])), dims: vec![], ..raw("most", &[1], 3) };
    let weights = vec![square("a", 1), square("a2", 1), square("d", 2), square("e", 4), zero, most];
    let folder = folder(&graph(nodes, weights, &[-1, 128]));
    let Some(ran) = with_runtime(
        &folder,
        &format!("convert model.onnx --json {BITS} --calibrate inputs.npz --compensate"),
    ) else {
        return;
    };
    ran.exits(0);
    let found = verify(&folder, "model.onnx");
    assert_eq!(found["ok"], true, "{found}");
    let compensated: Vec<(&str, bool)> = found["blobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|blob| (blob["name"].as_str().unwrap(), blob["compensated"].as_bool().unwrap()))
        .collect();
    let of = |name: &str| compensated.iter().find(|(n, _)| *n == name).map(|(_, is)| *is);
    assert_eq!((of("a"), of("a2")), (Some(true), Some(true)), "{compensated:?}");
    // Nothing is known of the one, and the other is no matrix only.
    assert_eq!((of("d").unwrap_or(false), of("e").unwrap_or(false)), (false, false), "{compensated:?}");
}

#[test]
fn without_a_grid_or_inputs_it_is_refused() {
    let folder = folder(&models()[0].1);
    folder.run("convert model.onnx --bits 5 --compensate").complains(2, &["--calibrate"]);
    let line = "convert model.onnx --calibrate inputs.npz --compensate";
    folder.run(line).complains(2, &["--compensate", "--transform grid"]);
    folder.run(&format!("{line} --base model.onnx")).complains(2, &["--base"]);
    assert_eq!(folder.names(), ["inputs.npz", "model.onnx", "unseen.npz"]);
}
