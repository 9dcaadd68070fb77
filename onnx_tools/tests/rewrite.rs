//! What is compressed, what the graph looks like then, and that all else keeps its bytes.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::PathBuf;

use onnx_tools::onnx::{Model, Node};
use onnx_tools::rewrite::{Rules, decide};
use prost::Message;
use support::build::*;
use support::{INLINE, convert, reason};
use tempfile::TempDir;

fn write(folder: &TempDir, name: &str, model: &ModelProto) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, model.encode_to_vec()).unwrap();
    path
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// Converts and reads back what came of it.
fn converted(model: &ModelProto) -> (TempDir, Model, Model) {
    let folder = TempDir::new().unwrap();
    let source = write(&folder, "m.onnx", model);
    let out = folder.path().join("m.nz.onnx");
    convert(&source, &out, &Rules::default(), None, INLINE);
    (folder, Model::open(&source).unwrap(), Model::open(&out).unwrap())
}

/// The main graph's nodes behind the first, which is the notice.
fn nodes(model: &Model) -> &[Node] {
    let (notice, rest) = model.graphs()[0].nodes.split_first().expect("no node at all");
    assert_eq!(notice.op, "register_libnz_onnx_so_before_loading_this_model");
    assert!(notice.inputs.is_empty());
    rest
}

fn ops(model: &Model) -> Vec<&str> {
    nodes(model).iter().map(|n| n.op.as_str()).collect()
}

fn find<'m>(model: &'m Model, op: &str) -> &'m Node {
    model.graphs().iter().flat_map(|g| &g.nodes).find(|n| n.op == op).expect("no such node")
}

fn ints(node: &Node, name: &str) -> Vec<i64> {
    node.attribute(name).map(|a| a.ints.clone()).unwrap_or_default()
}

fn decisions(model: &ModelProto, rules: &Rules, weights: &[&str]) -> Vec<String> {
    let folder = TempDir::new().unwrap();
    let model = Model::open(&write(&folder, "m.onnx", model)).unwrap();
    let decisions = decide(&model, rules).unwrap();
    weights.iter().map(|w| reason(&model, &decisions, w)).collect()
}

#[test]
fn a_matmul_and_all_that_is_around_it() {
    let untouched =
        NodeProto { doc_string: Some("why".into()), unknown: Some(7), ..node("Relu", &["y"], &["z"]) };
    let graph = GraphProto {
        node: vec![
            NodeProto {
                doc_string: Some("kept".into()),
                unknown: Some(9),
                ..node("MatMul", &["x", "w"], &["y"]).named("mm")
            },
            untouched.clone(),
            node("Add", &["z", "bias"], &["out"]),
        ],
        name: Some("g".into()),
        initializer: vec![raw("w", &[64, 48], 1), raw("bias", &[48], 2)],
        input: vec![info("x", 1, &[-1, 64])],
        output: vec![info("out", 1, &[-1, 48])],
        value_info: vec![info("w", 1, &[64, 48]), info("y", 1, &[-1, 48])],
        unknown: Some(vec![1, 2, 3]),
    };
    let mut proto = model(8, 17, graph);
    proto.unknown = Some("a field of the future".into());
    proto.metadata_props = vec![Entry { key: Some("author".into()), value: Some("me".into()) }];
    let (folder, _, out) = converted(&proto);

    assert_eq!(ops(&out), ["DecodeMatMul", "Relu", "Add"]);
    let fused = find(&out, "DecodeMatMul");
    assert_eq!((fused.domain.as_str(), fused.name.as_str()), ("nz", "mm"));
    assert_eq!((fused.inputs.join(" "), fused.outputs.join(" ")), ("x w.nz".into(), "y".into()));
    assert_eq!(ints(fused, "shape"), [64, 48]);
    assert_eq!(fused.int("transB", 0), 0);
    assert_eq!((out.opset("nz"), out.opset(""), out.ir_version()), (Some(1), Some(17), 8));
    assert_eq!(out.metadata("author"), Some("me"));
    assert_eq!(out.metadata("nz.format"), Some("1.0"));
    assert!(out.metadata("nz.source_sha256").unwrap().len() == 64);
    let values: Vec<_> = out.graphs()[0].value_info.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(values, ["y"]);

    let bytes = fs::read(folder.path().join("m.nz.onnx")).unwrap();
    assert!(contains(&bytes, &untouched.encode_to_vec()));
    assert!(contains(&bytes, &raw("bias", &[48], 2).encode_to_vec()));
    let node: NodeProto =
        NodeProto::decode(&bytes[fused.body.start as usize..fused.body.end as usize]).unwrap();
    assert_eq!((node.doc_string.as_deref(), node.unknown), (Some("kept"), Some(9)));
    let again = ModelProto::decode(bytes.as_slice()).unwrap();
    assert_eq!(again.unknown.as_deref(), Some("a field of the future"));
    assert_eq!(again.graph.unwrap().unknown, Some(vec![1, 2, 3]));
    let blobs = out.blobs();
    assert_eq!((blobs.len(), blobs[0].name.as_str(), blobs[0].nodes.join(" ")), (1, "w", "mm".to_string()));
}

#[test]
fn tied_gather_transpose_matmul_reads_one_row_major_blob() {
    let graph = GraphProto {
        node: vec![
            node("Gather", &["w", "ids"], &["x"]),
            node("Transpose", &["w"], &["wt"]).ints("perm", &[1, 0]),
            node("MatMul", &["x", "wt"], &["y"]),
        ],
        initializer: vec![raw("w", &[96, 32], 1)],
        input: vec![info("ids", 7, &[-1])],
        output: vec![info("y", 1, &[-1, 96])],
        value_info: vec![info("wt", 1, &[32, 96])],
        ..Default::default()
    };
    let (_folder, _, out) = converted(&model(8, 17, graph));
    assert_eq!(ops(&out), ["DecodeGather", "DecodeMatMul"]);
    assert_eq!(find(&out, "DecodeGather").inputs, ["w.nz", "ids"]);
    assert_eq!(find(&out, "DecodeMatMul").int("transB", 0), 1);
    assert_eq!(out.weights().len(), 1);
    assert!(out.graphs()[0].value_info.is_empty());
}

#[test]
fn rows_win_over_columns() {
    let graph = GraphProto {
        node: vec![
            node("Gather", &["w", "ids"], &["x"]).int("axis", -2),
            node("MatMul", &["h", "w"], &["y"]),
        ],
        initializer: vec![raw("w", &[96, 32], 1)],
        input: vec![info("ids", 7, &[-1]), info("h", 1, &[-1, 96])],
        output: vec![info("y", 1, &[-1, 32]), info("x", 1, &[-1, 32])],
        ..Default::default()
    };
    let (_folder, _, out) = converted(&model(8, 17, graph));
    assert_eq!(ops(&out), ["DecodeGather", "Decode", "MatMul"]);
    assert_eq!(find(&out, "Decode").inputs, ["w.nz", "h"]);
    assert_eq!(find(&out, "MatMul").inputs[1], find(&out, "Decode").outputs[0]);
}

#[test]
fn gemm_keeps_its_attributes() {
    let mut gemm = node("Gemm", &["x", "w", "c"], &["y"]).int("transB", 1).int("transA", 1);
    gemm.attribute.push(AttributeProto {
        name: Some("alpha".into()),
        f: Some(0.5),
        r#type: Some(1),
        ..Default::default()
    });
    let graph = GraphProto {
        node: vec![gemm],
        initializer: vec![raw("w", &[48, 64], 1), raw("c", &[48], 2)],
        input: vec![info("x", 1, &[64, -1])],
        output: vec![info("y", 1, &[-1, 48])],
        ..Default::default()
    };
    let (_folder, _, out) = converted(&model(8, 17, graph));
    let gemm = find(&out, "DecodeGemm");
    assert_eq!(gemm.inputs, ["x", "w.nz", "c"]);
    assert_eq!((gemm.int("transA", 0), gemm.int("transB", 0)), (1, 1));
    assert_eq!((gemm.float("alpha", 1.0), gemm.float("beta", 0.0)), (0.5, 1.0));
}

#[test]
fn float16_is_cast_where_weights_come_as_float32() {
    let graph = GraphProto {
        node: vec![
            node("MatMul", &["x", "w"], &["y"]),
            node("Conv", &["img", "k"], &["z"]),
            node("Gather", &["e", "ids"], &["g"]),
        ],
        initializer: vec![
            half_raw("w", &[64, 64], 10, 1),
            half_int32("k", &[32, 32, 3, 3], 10, 2),
            half_raw("e", &[128, 32], 10, 3),
        ],
        input: vec![info("x", 10, &[-1, 64]), info("img", 10, &[1, 32, 8, 8]), info("ids", 7, &[-1])],
        output: vec![info("y", 10, &[-1, 64]), info("z", 10, &[1, 32, 6, 6]), info("g", 10, &[-1, 32])],
        ..Default::default()
    };
    let (_folder, _, out) = converted(&model(8, 17, graph));
    // ONNX Runtime itself puts casts around the product.
    assert_eq!(ops(&out), ["DecodeMatMul", "Decode", "Cast", "Conv", "DecodeGather", "Cast"]);
    let to: Vec<_> =
        out.graphs()[0].nodes.iter().filter(|n| n.op == "Cast").map(|n| n.int("to", 0)).collect();
    assert_eq!(to, [10, 10]);
    assert_eq!(find(&out, "DecodeMatMul").inputs, ["x", "w.nz"]);
    assert_eq!(find(&out, "DecodeMatMul").outputs, ["y"]);
    assert_eq!(find(&out, "Decode").inputs[1], "img");
}

#[test]
fn bfloat16_behind_a_cast_needs_no_other() {
    let graph = GraphProto {
        node: vec![node("Cast", &["w"], &["w32"]).int("to", 1), node("MatMul", &["x", "w32"], &["y"])],
        initializer: vec![half_raw("w", &[64, 64], 16, 1)],
        input: vec![info("x", 1, &[-1, 64])],
        output: vec![info("y", 1, &[-1, 64])],
        ..Default::default()
    };
    let (_folder, _, out) = converted(&model(8, 17, graph));
    assert_eq!(ops(&out), ["DecodeMatMul"]);
}

#[test]
fn bodies_hold_their_own_blobs() {
    let body = |weight: &str, out: &str, constant_too: bool| {
        let mut nodes = vec![node("MatMul", &["x", weight], &[out])];
        if constant_too {
            nodes.insert(0, constant(weight, raw("", &[64, 64], 5)));
        }
        GraphProto { node: nodes, output: vec![info(out, 1, &[-1, 64])], ..Default::default() }
    };
    let graph = GraphProto {
        node: vec![
            node("If", &["cond"], &["y"])
                .body("then_branch", body("outer", "t", false))
                .body("else_branch", body("own", "e", true)),
        ],
        initializer: vec![raw("outer", &[64, 64], 1)],
        input: vec![info("cond", 9, &[]), info("x", 1, &[-1, 64])],
        output: vec![info("y", 1, &[-1, 64])],
        ..Default::default()
    };
    let (_folder, original, out) = converted(&model(8, 17, graph));
    assert_eq!(original.graphs().len(), 3);
    for (graph, op) in out.graphs()[1..].iter().zip(["outer.nz", "own.nz"]) {
        assert_eq!(graph.nodes.len(), 1);
        assert_eq!(graph.nodes[0].inputs, ["x", op]);
        assert_eq!(graph.initializers.len(), 1);
        assert_eq!(out.weight(graph.initializers[0]).name, op);
    }
    assert!(out.graphs()[0].initializers.is_empty());
}

#[test]
fn equal_blobs_are_stored_once() {
    let graph = GraphProto {
        node: vec![node("MatMul", &["x", "a"], &["y"]), node("MatMul", &["y", "b"], &["z"])],
        initializer: vec![raw("a", &[64, 64], 1), raw("b", &[64, 64], 1)],
        input: vec![info("x", 1, &[-1, 64])],
        output: vec![info("z", 1, &[-1, 64])],
        ..Default::default()
    };
    let (_folder, _, out) = converted(&model(8, 17, graph));
    assert_eq!(out.weights().len(), 1);
    assert_eq!(nodes(&out)[1].inputs, ["y", "a.nz"]);
}

#[test]
fn before_ir_4_initializers_are_inputs_and_constants() {
    let graph = |ir| {
        let graph = GraphProto {
            node: vec![
                node("MatMul", &["x", "w"], &["y"]),
                node("MatMul", &["y", "v"], &["z"]),
                constant("v", raw("", &[64, 64], 9)),
            ],
            initializer: vec![raw("w", &[64, 64], 1)],
            input: vec![info("x", 1, &[-1, 64]), info("w", 1, &[64, 64])],
            output: vec![info("z", 1, &[-1, 64])],
            ..Default::default()
        };
        model(ir, 7, graph)
    };
    let (_folder, _, out) = converted(&graph(3));
    assert_eq!(ops(&out), ["DecodeMatMul", "DecodeMatMul"]);
    let inputs = &out.graphs()[0].inputs;
    let names: Vec<_> = inputs.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names, ["x", "v.nz", "w.nz"]);
    for input in &inputs[1..] {
        let blob = out.weights().iter().find(|w| w.name == input.name).unwrap();
        assert_eq!(input.elem_type, Some(2));
        assert_eq!(input.shape, Some(vec![Some(blob.bytes)]));
    }
    let kept = decisions(&graph(4), &Rules::default(), &["w", "v"]);
    assert!(kept[0].contains("the caller may replace"), "{kept:?}");
    assert_eq!(kept[1], "nz.DecodeMatMul");
}

#[test]
fn each_reason_to_keep_a_weight() {
    let graph = GraphProto {
        node: vec![
            node("Conv", &["img", "depthwise"], &["a"]).int("group", 64),
            node("Conv", &["img", "plain"], &["b"]),
            node("Resize", &["img", "", "scales"], &["c"]),
            node("Add", &["const1", "const2"], &["folded"]),
            node("Custom", &["x", "unknown"], &["d"]),
            node("MatMul", &["x", "small"], &["e"]),
            node("MatMul", &["x", "pinned"], &["f"]).named("head"),
            node("MatMul", &["x", "both"], &["h"]),
            node("Softmax", &["both"], &["i"]),
        ],
        initializer: vec![
            raw("depthwise", &[64, 1, 5, 5], 1),
            raw("plain", &[32, 64, 3, 3], 2),
            raw("scales", &[2000], 3),
            raw("const1", &[2000], 4),
            raw("const2", &[2000], 5),
            raw("unknown", &[64, 64], 6),
            raw("small", &[64, 8], 7),
            raw("pinned", &[64, 64], 8),
            raw("unread", &[64, 64], 9),
            raw("shown", &[64, 64], 10),
            raw("both", &[64, 64], 11),
            TensorProto { data_type: Some(6), ..raw("ids", &[64, 64], 12) },
        ],
        input: vec![info("img", 1, &[1, 64, 9, 9]), info("x", 1, &[-1, 64])],
        output: vec![info("shown", 1, &[64, 64])],
        ..Default::default()
    };
    let names = [
        "depthwise",
        "plain",
        "scales",
        "const1",
        "unknown",
        "small",
        "pinned",
        "unread",
        "shown",
        "both",
        "ids",
    ];
    let rules = Rules::new(4096, &[], &[], &["hea?".to_string()]).unwrap();
    let proto = model(8, 17, graph);
    let found = decisions(&proto, &rules, &names);
    let expected = [
        "depthwise",
        "nz.Decode",
        "Resize, which is not known",
        "constants only",
        "Custom, which is not known",
        "smaller than 4096",
        "--exclude-nodes",
        "nothing reads it",
        "graph output",
        "Softmax, which is not known",
        "int32, not a float",
    ];
    for ((name, found), expected) in names.iter().zip(&found).zip(expected) {
        assert!(found.contains(expected), "{name}: {found}");
    }
    let rules = Rules::new(0, &["s*".into(), "pinned".into()], &["pin*".into()], &[]).unwrap();
    let found = decisions(&proto, &rules, &["small", "pinned", "plain"]);
    assert_eq!(found, ["nz.DecodeMatMul", "excluded by --exclude", "not among --include"]);
}

/// A model of one LSTM, `lstm`, and one Gemm whose `C` is large enough for a blob.
fn recurrent(lstm: NodeProto) -> ModelProto {
    let graph = GraphProto {
        node: vec![lstm, node("Gemm", &["h", "g", "c"], &["z"])],
        initializer: vec![
            raw("w", &[1, 64, 32], 1),
            raw("r", &[1, 64, 16], 2),
            raw("b", &[1, 128], 5),
            raw("p", &[1, 48], 6),
            raw("g", &[64, 64], 3),
            raw("c", &[64, 64], 4),
        ],
        input: vec![info("x", 1, &[-1, 1, 32]), info("h", 1, &[64, 64]), info("s", 1, &[1, 1, 16])],
        output: vec![info("y", 1, &[-1, 1, 1, 16]), info("z", 1, &[64, 64])],
        ..Default::default()
    };
    model(8, 17, graph)
}

fn lstm(inputs: &[&str]) -> NodeProto {
    node("LSTM", inputs, &["y"]).int("hidden_size", 16)
}

#[test]
fn several_weights_of_one_node() {
    let unusual = lstm(&["x", "w", "r"]).text("activations", &["Relu", "Tanh", "Tanh"]);
    let (_folder, _, out) = converted(&recurrent(unusual));
    assert_eq!(ops(&out), ["Decode", "Decode", "LSTM", "Decode", "DecodeGemm"]);
    assert_eq!(find(&out, "LSTM").inputs, ["x", "w.nz.decoded", "r.nz.decoded"]);
    assert_eq!(find(&out, "LSTM").int("hidden_size", 0), 16);
    assert_eq!(find(&out, "DecodeGemm").inputs, ["h", "g.nz", "c.nz.decoded"]);
}

#[test]
fn an_lstm_multiplies_with_both_its_weights() {
    let made = |lstm: NodeProto| converted(&recurrent(lstm)).2;
    let out = made(lstm(&["x", "w", "r"]));
    assert_eq!(ops(&out), ["DecodeLSTM", "Decode", "DecodeGemm"]);
    let node = find(&out, "DecodeLSTM");
    assert_eq!(
        (&node.inputs[..], node.int("reverse", -1)),
        (&["x", "w.nz", "r.nz"].map(String::from)[..], 0)
    );
    assert_eq!(node.attribute("shape").unwrap().ints, [1, 64, 32]);
    // All that the op has: ONNX Runtime 1.17 and 1.20 rely on it.
    assert_eq!(node.outputs.len(), 3);
    // "w" is read by nothing else: `inspect` and `verify` must know it all the same.
    let blobs: Vec<String> = out.blobs().into_iter().map(|blob| blob.name).collect();
    assert!(["w", "r"].iter().all(|name| blobs.contains(&name.to_string())), "{blobs:?}");
    // Input 4 has the lengths of sequences: the op has none, and the states move up.
    let all = lstm(&["x", "w", "r", "b", "", "s", "s"])
        .text("direction", &["reverse"])
        .text("activations", &["sigmoid", "Tanh", "tanh"]);
    let out = made(all);
    let node = find(&out, "DecodeLSTM");
    assert_eq!(node.inputs, ["x", "w.nz", "r.nz", "b", "s", "s"]);
    assert_eq!((node.int("reverse", 0), node.attribute("hidden_size").is_none()), (1, true));
    let out = made(lstm(&["x", "w", "r", "b", "", "", ""]));
    assert_eq!(find(&out, "DecodeLSTM").inputs, ["x", "w.nz", "r.nz", "b"]);

    for other in [
        lstm(&["x", "w", "r", "b", "s"]),
        lstm(&["x", "w", "r", "b", "", "s", "s", "p"]),
        // A gap among the inputs that would be left.
        lstm(&["x", "w", "r", "", "", "s", "s"]),
        lstm(&["x", "w", "r", "b", "", "", "s"]),
        lstm(&["x", "w", "r"]).int("layout", 1),
        lstm(&["x", "w", "r"]).int("input_forget", 1),
        lstm(&["x", "w", "r"]).int("clip", 1),
    ] {
        assert_eq!(ops(&made(other))[..3], ["Decode", "Decode", "LSTM"]);
    }
    // With one of the weights kept there is nothing to multiply both with.
    let folder = TempDir::new().unwrap();
    let source = write(&folder, "m.onnx", &recurrent(lstm(&["x", "w", "r"])));
    let path = folder.path().join("m.nz.onnx");
    convert(&source, &path, &Rules::new(4096, &[], &["w".into()], &[]).unwrap(), None, INLINE);
    let out = Model::open(&path).unwrap();
    assert_eq!(find(&out, "LSTM").inputs, ["x", "w", "r.nz.decoded"]);
}

#[test]
fn names_that_are_taken_are_not_given_again() {
    let graph = GraphProto {
        node: vec![node("MatMul", &["w.nz", "w"], &["y"])],
        initializer: vec![raw("w", &[64, 64], 1)],
        input: vec![info("w.nz", 1, &[-1, 64])],
        output: vec![info("y", 1, &[-1, 64])],
        ..Default::default()
    };
    let (_folder, _, out) = converted(&model(8, 17, graph));
    assert_eq!(find(&out, "DecodeMatMul").inputs, ["w.nz", "w.nz.2"]);
    assert_eq!(out.blobs()[0].name, "w");
}

#[test]
fn a_converted_model_is_not_converted_again() {
    let graph = GraphProto {
        node: vec![node("MatMul", &["x", "w"], &["y"])],
        initializer: vec![raw("w", &[64, 64], 1)],
        input: vec![info("x", 1, &[-1, 64])],
        output: vec![info("y", 1, &[-1, 64])],
        ..Default::default()
    };
    let (_folder, _, out) = converted(&model(8, 17, graph));
    let error = decide(&out, &Rules::default()).unwrap_err();
    assert_eq!(error.exit_code(), 5);
    assert!(error.to_string().contains("already converted"), "{error}");
}
