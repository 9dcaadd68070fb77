//! `--calibrate` with several inputs: what is taken is what serves inputs that had no part in it.

use std::fs;

use serde_json::Value;

use super::build::{self, ModelProto, f32_bytes, raw};
use super::tool::{Folder, chain, npz, with_runtime};

const ROWS: usize = 96;
const WIDTH: usize = 128;
const CONVERT: &str = "convert model.onnx --json --force --bits 4.6 --transform grid";

/// Rows with two directions in common; which ones, `of` says.
fn together(seed: u64, of: u64) -> Vec<f32> {
    let (own, common, mixed) =
        (build::floats(ROWS * WIDTH, seed), build::floats(ROWS * 2, seed + 1), build::floats(2 * WIDTH, of));
    let value = |i: usize| {
        let (row, column) = (i / WIDTH, i % WIDTH);
        let shared: f32 = (0..2).map(|k| common[row * 2 + k] * mixed[k * WIDTH + column]).sum();
        0.1 * own[i] + 20.0 * shared
    };
    (0..ROWS * WIDTH).map(value).collect()
}

/// A folder with `model.onnx`, eight inputs of which the third and the sixth are left out, and one besides.
fn folder(model: &ModelProto, seen: impl Fn(u64) -> Vec<f32>, left_out: impl Fn(u64) -> Vec<f32>) -> Folder {
    let folder = Folder::with(model);
    fs::create_dir(folder.at("inputs")).unwrap();
    for number in 0..8 {
        let values = if number % 3 == 2 { left_out(10 * number + 10) } else { seen(10 * number + 10) };
        write(&folder, &format!("inputs/{number}.npz"), &values);
    }
    write(&folder, "unseen.npz", &left_out(500));
    folder
}

fn write(folder: &Folder, name: &str, values: &[f32]) {
    let shape = format!("({ROWS}, {})", values.len() / ROWS);
    folder.write(name, &npz("x", &shape, &f32_bytes(values)));
}

/// Converts with these options; the report, and the outputs' decibels on an input that nothing has seen.
fn convert(folder: &Folder, options: &str) -> Option<(Value, f64)> {
    let document = with_runtime(folder, &format!("{CONVERT}{options}"))?.exits(0).json();
    let line = "verify model.nz.onnx --original model.onnx --run --inputs unseen.npz --json";
    let found = with_runtime(folder, line)?.exits(0).json();
    Some((document, found["run"]["outputs"][0]["snr_db"].as_f64().unwrap()))
}

/// The candidate that was taken, whether it is calibrated and whether compensated.
fn taken(document: &Value) -> (bool, bool) {
    let candidates = document["trial"]["candidates"].as_array().unwrap();
    let taken: Vec<&Value> = candidates.iter().filter(|c| c["taken"] == true).collect();
    let [one] = taken[..] else { panic!("{candidates:?}") };
    let most = candidates.iter().map(|c| c["snr_db"].as_f64().unwrap()).fold(f64::MIN, f64::max);
    assert!(one["snr_db"].as_f64().unwrap() > most - 0.11, "{candidates:?}");
    (one["calibrated"] == true, one["compensated"] == true)
}

#[test]
fn compensation_is_taken_where_it_helps() {
    let folder =
        folder(&chain(WIDTH, vec![raw("w", &[WIDTH, WIDTH], 7)]), |n| together(n, 99), |n| together(n, 99));
    let Some((document, snr)) = convert(&folder, " --calibrate inputs") else { return };
    assert!(taken(&document).1, "{}", document["trial"]);
    assert_eq!(
        (&document["trial"]["calibrated_on"], &document["trial"]["compared_on"]),
        (&6.into(), &2.into())
    );
    let (plain, without) = convert(&folder, " --calibrate inputs --compensate=off").unwrap();
    assert!(!taken(&plain).1 && snr > without + 2.0, "{snr} {without}");
    assert_eq!(folder.names(), ["inputs", "model.nz.onnx", "model.onnx", "unseen.npz"]);
}

#[test]
fn compensation_is_left_where_other_inputs_are_worse_for_it() {
    let folder = folder(
        &chain(WIDTH, vec![raw("w", &[WIDTH, WIDTH], 7)]),
        |n| together(n, 99),
        |n| build::floats(ROWS * WIDTH, n),
    );
    let Some((document, snr)) = convert(&folder, " --calibrate inputs") else { return };
    assert!(!taken(&document).1, "{}", document["trial"]);
    // It would have been, were it not for the inputs left out.
    let (forced, worse) = convert(&folder, " --calibrate inputs --compensate").unwrap();
    assert!(taken(&forced).1 && worse < snr, "{worse} {snr}");
}

/// y = u a + v b, where u and v are the halves of x.
fn halves() -> ModelProto {
    let mut model = chain(WIDTH, vec![raw("a", &[WIDTH, WIDTH], 1)]);
    let graph = model.graph.as_mut().unwrap();
    graph.input = vec![build::info("x", 1, &[-1, 2 * WIDTH as i64])];
    graph.initializer.push(raw("b", &[WIDTH, WIDTH], 2));
    graph.node = vec![
        build::node("Split", &["x"], &["u", "v"]).int("axis", 1),
        build::node("MatMul", &["u", "a"], &["ua"]),
        build::node("MatMul", &["v", "b"], &["vb"]),
        build::node("Add", &["ua", "vb"], &["y"]),
    ];
    model
}

#[test]
fn bytes_are_allotted_as_other_inputs_like_it() {
    let scaled = |first: f32, second: f32| {
        move |seed: u64| -> Vec<f32> {
            let scale = |i: usize| if i % (2 * WIDTH) < WIDTH { first } else { second };
            let values = build::floats(2 * ROWS * WIDTH, seed).into_iter().enumerate();
            values.map(|(i, value)| value * scale(i)).collect()
        }
    };
    let snr_of = |document: &Value, name: &str| {
        let tensors = document["tensors"].as_array().unwrap();
        tensors.iter().find(|t| t["name"] == name).unwrap()["snr_db"].as_f64().unwrap()
    };
    let like = folder(&halves(), scaled(1.0, 0.01), scaled(1.0, 0.01));
    let Some((document, _)) = convert(&like, " --calibrate inputs") else { return };
    assert!(taken(&document).0, "{}", document["trial"]);
    assert!(snr_of(&document, "a") > snr_of(&document, "b") + 10.0);
    let unlike = folder(&halves(), scaled(1.0, 0.01), scaled(0.01, 1.0));
    let (document, _) = convert(&unlike, " --calibrate inputs").unwrap();
    assert!(!taken(&document).0, "{}", document["trial"]);
    assert!((snr_of(&document, "a") - snr_of(&document, "b")).abs() < 4.0);
}

#[test]
fn threads_change_nothing() {
    let folder =
        folder(&halves(), |n| build::floats(2 * ROWS * WIDTH, n), |n| build::floats(2 * ROWS * WIDTH, n));
    let Some((one, _)) = convert(&folder, " --calibrate inputs --threads 1") else { return };
    let bytes = folder.read("model.nz.onnx");
    let (three, _) = convert(&folder, " --calibrate inputs --threads 3").unwrap();
    assert_eq!((one["trial"].clone(), bytes), (three["trial"].clone(), folder.read("model.nz.onnx")));
}

#[test]
fn too_few_inputs_are_not_judged_by() {
    let folder =
        folder(&chain(WIDTH, vec![raw("w", &[WIDTH, WIDTH], 7)]), |n| together(n, 99), |n| together(n, 99));
    for number in 2..8 {
        fs::remove_file(folder.at(&format!("inputs/{number}.npz"))).unwrap();
    }
    let Some((document, _)) = convert(&folder, " --calibrate inputs") else { return };
    let trial = &document["trial"];
    assert_eq!((&trial["calibrated_on"], &trial["compared_on"]), (&2.into(), &0.into()));
    let candidates = trial["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 1, "{trial}");
    assert_eq!((&candidates[0]["compensated"], &candidates[0]["snr_db"]), (&false.into(), &Value::Null));
    assert!(document["warnings"][0].as_str().unwrap().contains("2 inputs"), "{}", document["warnings"]);
    let summary = with_runtime(&folder, &format!("{} --calibrate inputs", CONVERT.replace(" --json", "")));
    assert!(summary.unwrap().exits(0).stderr.contains("2 inputs"));
}

#[test]
fn the_summary_says_what_was_taken() {
    let folder =
        folder(&chain(WIDTH, vec![raw("w", &[WIDTH, WIDTH], 7)]), |n| together(n, 99), |n| together(n, 99));
    let line = format!("{} --calibrate inputs", CONVERT.replace(" --json", ""));
    let Some(ran) = with_runtime(&folder, &line) else { return };
    let text = ran.exits(0).stdout;
    assert!(text.contains("2 inputs left out") && text.contains("taken"), "{text}");
}
