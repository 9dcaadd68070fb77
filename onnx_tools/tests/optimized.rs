//! Models as ONNX Runtime's optimiser leaves them: what is made of them, without ONNX Runtime.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use onnx_tools::onnx::Model;
use onnx_tools::rewrite::normalise::{has_nchwc, normalise};
use onnx_tools::rewrite::{Decision, Plan, Rules, build, decide};
use prost::Message;
use support::build::*;
use support::reason;
use tempfile::TempDir;

fn write(folder: &TempDir, name: &str, model: &ModelProto) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, model.encode_to_vec()).unwrap();
    path
}

fn nchwc(op: &str, inputs: &[&str], outputs: &[&str], name: &str) -> NodeProto {
    NodeProto { domain: Some("com.microsoft.nchwc".into()), ..node(op, inputs, outputs).named(name) }
}

/// Reorder, convolve, reorder back, twice over from one input.
fn blocked(order: &[usize], names: &[&str; 4]) -> ModelProto {
    let nodes = [
        nchwc("ReorderInput", &["x"], &["a"], names[0]),
        nchwc("Conv", &["a", "w"], &["b"], "conv"),
        nchwc("ReorderOutput", &["b"], &["c"], names[1]),
        nchwc("ReorderInput", &["y"], &["d"], names[2]),
        nchwc("Conv", &["d", "v"], &["e"], "other"),
        nchwc("ReorderOutput", &["e"], &["f"], names[3]),
        node("Concat", &["c", "f"], &["z"]).int("axis", 1),
    ];
    let graph = GraphProto {
        node: order.iter().map(|&i| nodes[i].clone()).collect(),
        initializer: vec![raw("w", &[32, 32, 3, 3], 1), raw("v", &[32, 32, 3, 3], 2)],
        input: vec![info("x", 1, &[1, 32, 8, 8]), info("y", 1, &[1, 32, 8, 8])],
        output: vec![info("z", 1, &[1, 64, 6, 6])],
        ..Default::default()
    };
    model(8, 13, graph)
}

const NAMES: [&str; 4] = ["token_9", "token_10", "token_11", "token_12"];

/// The model that `normalise` makes, and its bytes.
fn normal(folder: &TempDir, model: &ModelProto, defaults: &[&str]) -> (Vec<u8>, Model) {
    let source = Model::open(&write(folder, "raw.onnx", model)).unwrap();
    let defaults: HashSet<String> = defaults.iter().map(|d| d.to_string()).collect();
    let mut bytes = Vec::new();
    normalise(&source, &defaults).unwrap().write_to(&source, &mut bytes, Path::new("bytes")).unwrap();
    let path = folder.path().join("normal.onnx");
    fs::write(&path, &bytes).unwrap();
    (bytes, Model::open(&path).unwrap())
}

#[test]
fn order_and_names_left_to_chance_do_not_matter() {
    let folder = TempDir::new().unwrap();
    let (first, found) = normal(&folder, &blocked(&[0, 1, 2, 3, 4, 5, 6], &NAMES), &[]);
    let ops: Vec<&str> = found.graphs()[0].nodes.iter().map(|n| n.op.as_str()).collect();
    let branch = ["ReorderInput", "Conv", "ReorderOutput"];
    assert_eq!(ops, [&branch[..], &branch, &["Concat"]].concat());
    let names: Vec<&str> = found.graphs()[0].nodes.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["", "conv", "", "", "other", "", ""]);

    let others = ["token_101", "token_10", "", "token_7"];
    for (order, names) in
        [([3, 0, 4, 1, 5, 2, 6], &NAMES), ([3, 4, 5, 0, 1, 2, 6], &others), ([0, 1, 2, 3, 4, 5, 6], &others)]
    {
        assert_eq!(normal(&folder, &blocked(&order, names), &[]).0, first, "{order:?} {names:?}");
    }
    // What differs in more than chance stays different.
    let mut swapped = blocked(&[0, 1, 2, 3, 4, 5, 6], &NAMES);
    swapped.graph.as_mut().unwrap().node[6].input.reverse();
    assert_ne!(normal(&folder, &swapped, &[]).0, first);
}

#[test]
fn a_body_that_reads_from_outside_comes_behind_what_it_reads() {
    let folder = TempDir::new().unwrap();
    let body = |name: &str| GraphProto {
        node: vec![node("Neg", &[name], &["in"])],
        output: vec![info("in", 1, &[4])],
        ..Default::default()
    };
    let graph = GraphProto {
        // Two producers, of which one is read by the body only.
        node: vec![
            node("Relu", &["x"], &["late"]),
            node("Greater", &["x", "x"], &["cond"]),
            node("If", &["cond"], &["y"]).body("then_branch", body("late")).body("else_branch", body("x")),
            node("Abs", &["x"], &["unread"]),
        ],
        input: vec![info("x", 1, &[4])],
        output: vec![info("y", 1, &[4])],
        ..Default::default()
    };
    let (_, found) = normal(&folder, &model(8, 17, graph), &[]);
    let ops: Vec<&str> = found.graphs()[0].nodes.iter().map(|n| n.op.as_str()).collect();
    assert_eq!(ops.len(), 4, "{ops:?}");
    let at = |op: &str| ops.iter().position(|o| *o == op).unwrap();
    assert!(at("Relu") < at("If") && at("Greater") < at("If"), "{ops:?}");
    assert_eq!(found.graphs().len(), 3);
}

#[test]
fn inputs_that_were_initializers_are_none() {
    let folder = TempDir::new().unwrap();
    let graph = || GraphProto {
        node: vec![node("MatMul", &["x", "w"], &["y"])],
        initializer: vec![raw("w", &[64, 64], 1)],
        // `gone` was folded into `w`; to ONNX Runtime it is an input now that every caller must give.
        input: vec![info("x", 1, &[1, 64]), info("w", 1, &[64, 64]), info("gone", 1, &[64])],
        output: vec![info("y", 1, &[1, 64])],
        ..Default::default()
    };
    let (_, found) = normal(&folder, &model(3, 7, graph()), &["w", "gone"]);
    let inputs: Vec<&str> = found.graphs()[0].inputs.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(inputs, ["x"]);
    assert_eq!(found.ir_version(), 4);
    // From IR version 4 on such an input is a default that a caller may replace.
    let (bytes, found) = normal(&folder, &model(4, 9, graph()), &["w", "gone"]);
    assert_eq!((found.ir_version(), found.graphs()[0].inputs.len()), (4, 3));
    assert_eq!(bytes, model(4, 9, graph()).encode_to_vec());
}

#[test]
fn operator_sets_that_no_node_is_of_are_not_imported() {
    let folder = TempDir::new().unwrap();
    let mut listed = blocked(&[0, 1, 2, 3, 4, 5, 6], &NAMES);
    let set = |domain: &str, version| Opset { domain: Some(domain.into()), version: Some(version) };
    listed.opset_import.extend([
        set("ai.onnx.ml", 5),
        set("com.microsoft.nchwc", 1),
        set("com.microsoft", 1),
        set("org.pytorch.aten", 1),
    ]);
    // One that only a body has.
    let body = GraphProto {
        node: vec![NodeProto { domain: Some("com.microsoft".into()), ..node("Gelu", &["z"], &["g"]) }],
        output: vec![info("g", 1, &[1, 64, 6, 6])],
        ..Default::default()
    };
    let graph = listed.graph.as_mut().unwrap();
    graph.input.push(info("c", 9, &[]));
    graph.node.push(node("If", &["c"], &["h"]).body("then_branch", body.clone()).body("else_branch", body));
    graph.output.push(info("h", 1, &[1, 64, 6, 6]));
    let (_, found) = normal(&folder, &listed, &[]);
    let versions = ["", "com.microsoft.nchwc", "com.microsoft", "ai.onnx.ml", "org.pytorch.aten"];
    assert_eq!(versions.map(|domain| found.opset(domain)), [Some(13), Some(1), Some(1), None, None]);
}

#[test]
fn weights_in_channel_blocks_are_compressed_and_say_so() {
    let folder = TempDir::new().unwrap();
    let source = Model::open(&write(&folder, "m.onnx", &blocked(&[0, 1, 2, 3, 4, 5, 6], &NAMES))).unwrap();
    assert!(has_nchwc(&source));
    let decisions = decide(&source, &Rules::default()).unwrap();
    assert_eq!(
        [reason(&source, &decisions, "w"), reason(&source, &decisions, "v")],
        ["nz.Decode", "nz.Decode"]
    );

    // The size is stated even where no weight is compressed: ONNX Runtime would run the model wrongly all the same.
    let keep = || Decision::Keep { reason: "so".to_string() };
    let plan = |nchwc_block| Plan {
        decisions: vec![keep(), keep()],
        placements: BTreeMap::new(),
        folded: BTreeMap::new(),
        data_file_name: "m.nz.onnx.data".to_string(),
        format: (1, 0),
        metadata: vec![("nz.nchwc_block".to_string(), "16".to_string())],
        nchwc_block,
        base: None,
        depths: Default::default(),
        compensated: Default::default(),
    };
    let made = |plan: &Plan| {
        let path = folder.path().join("made.onnx");
        let mut bytes = Vec::new();
        build(&source, plan).unwrap().write_to(&source, &mut bytes, &path).unwrap();
        fs::write(&path, bytes).unwrap();
        Model::open(&path).unwrap()
    };
    let with = made(&plan(Some(16)));
    let notice = &with.graphs()[0].nodes[0];
    assert_eq!((notice.domain.as_str(), notice.int("nchwc_block", 0)), ("nz", 16));
    assert_eq!((with.opset("nz"), with.metadata("nz.nchwc_block")), (Some(1), Some("16")));
    let without = made(&plan(None));
    assert_eq!(without.opset("nz"), None);
    assert_eq!(without.graphs()[0].nodes.len(), 7);
}

/// Convolutions of the same shape at falling resolution, then one that holds most of the weights.
fn pyramid(side: i64) -> ModelProto {
    let graph = GraphProto {
        node: vec![
            node("Conv", &["img", "first"], &["a"]).ints("strides", &[2, 2]),
            node("Conv", &["a", "second"], &["b"]).ints("strides", &[2, 2]),
            node("MaxPool", &["b"], &["c"]).ints("strides", &[2, 2]),
            node("Conv", &["c", "third"], &["d"]),
            node("Conv", &["d", "last"], &["e"]),
        ],
        initializer: vec![
            raw("first", &[32, 32, 1, 1], 1),
            raw("second", &[32, 32, 1, 1], 2),
            raw("third", &[32, 32, 1, 1], 3),
            raw("last", &[256, 32, 3, 3], 4),
        ],
        input: vec![info("img", 1, &[1, 32, side, side])],
        output: vec![info("e", 1, &[1, 256, -1, -1])],
        ..Default::default()
    };
    model(8, 17, graph)
}

#[test]
fn weights_that_cost_much_speed_for_their_bytes_are_kept() {
    let folder = TempDir::new().unwrap();
    let names = ["first", "second", "third", "last"];
    let found = |model: &ModelProto, rules: &Rules| {
        let model = Model::open(&write(&folder, "m.onnx", model)).unwrap();
        let decisions = decide(&model, rules).unwrap();
        names.map(|name| reason(&model, &decisions, name))
    };
    let kept = |reasons: [String; 4]| reasons.map(|reason| reason.contains("over a large image"));
    let all = Rules::default();
    // A sixteenth of the bytes holds four of the small weights.
    assert_eq!(kept(found(&pyramid(224), &all)), [true, true, true, false]);
    assert_eq!(kept(found(&pyramid(32), &all)), [true, true, false, false]);
    // A small one is not worth a node of its own, over however few positions.
    assert!(found(&pyramid(32), &all)[2].starts_with("small, and not read by"));
    // An image of open size is taken for one of 224 x 224.
    assert_eq!(kept(found(&pyramid(-1), &all)), [true, true, true, false]);
    // Where channels come last the sides are the others.
    let mut last = pyramid(224);
    last.graph.as_mut().unwrap().input = vec![info("img", 1, &[1, 32, 32, 32])];
    assert_eq!(kept(found(&last, &all)), kept(found(&pyramid(32), &all)));
    // Whoever names them gets them.
    let named = Rules::new(4096, &["*".to_string()], &[], &[]).unwrap();
    assert_eq!(found(&pyramid(224), &named), ["nz.Decode"; 4]);

    // The share of the bytes bounds it: here each weight is a good part of all.
    let mut few = pyramid(224);
    let graph = few.graph.as_mut().unwrap();
    graph.node.truncate(4);
    graph.initializer.truncate(3);
    graph.output = vec![info("d", 1, &[1, 32, -1, -1])];
    let model = Model::open(&write(&folder, "few.onnx", &few)).unwrap();
    let decisions = decide(&model, &all).unwrap();
    assert!(decisions.iter().all(|d| matches!(d, Decision::Compress(_))), "{decisions:?}");
}
