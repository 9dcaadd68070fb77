//! `convert` and `plan`: what they choose and what they say.

use nz_onnx::codec::max_relative_error;
use nz_onnx::format::Dtype;
use onnx_tools::onnx::Model;
use serde_json::Value;

use super::build::{self, TensorProto, half_raw, raw};
use super::tool::{Folder, chain, large, small};

fn tensor<'a>(document: &'a Value, name: &str) -> &'a Value {
    document["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap()
}

/// The totals are the sums of the tensors, and each tensor's numbers agree with each other.
pub fn adds_up(document: &Value) {
    let (totals, tensors) = (&document["totals"], document["tensors"].as_array().unwrap());
    let sum = |key: &str| tensors.iter().map(|t| t[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!(totals["bytes_before"], sum("bytes_before"));
    assert_eq!(totals["bytes_after"], sum("bytes_after"));
    assert_eq!(totals["weights"], tensors.len());
    let compressed = tensors.iter().filter(|t| t["decision"] == "compressed").count();
    assert_eq!(totals["compressed"], compressed);
    let ratio = sum("bytes_after") as f64 / sum("bytes_before") as f64;
    assert!((totals["ratio"].as_f64().unwrap() - ratio).abs() < 1e-12);
    let worst = tensors.iter().map(|t| t["max_relative_error"].as_f64().unwrap()).fold(0.0, f64::max);
    assert_eq!(totals["max_relative_error"], worst);
    assert_eq!(totals["lossless"], tensors.iter().all(|t| t["lossless"] == true));
    for t in tensors {
        let elements: u64 = t["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product();
        let bits = 8.0 * t["bytes_after"].as_f64().unwrap() / elements.max(1) as f64;
        assert!((t["bits_per_weight"].as_f64().unwrap() - bits).abs() < 1e-9, "{t}");
        assert_eq!(t["encoding"].is_null(), t["decision"] == "kept", "{t}");
        assert!(t["decision"] == "compressed" || t["reason"].is_string(), "{t}");
        assert_eq!(t["lossless"] == true, t["max_relative_error"] == 0.0, "{t}");
    }
}

#[test]
fn default_halves_and_states_the_error() {
    let folder = Folder::with(&chain(64, vec![raw("a", &[64, 64], 1), raw("b", &[64, 64], 2)]));
    let document = folder.run("convert model.onnx --json").exits(0).json();
    adds_up(&document);
    assert_eq!(document["schema"], "nz-onnx.convert/1");
    assert_eq!(document["warnings"], serde_json::json!([]));
    assert_eq!(document["input"]["bytes"], folder.read("model.onnx").len());
    assert_eq!(document["output"]["path"], "model.nz.onnx");
    assert_eq!(document["output"]["data_path"], Value::Null, "small blobs stay in the model");
    assert_eq!(document["output"]["bytes"], folder.read("model.nz.onnx").len());
    assert!(document["totals"]["ratio"].as_f64().unwrap() <= 0.5);
    assert_eq!(document["totals"]["lossless"], false);

    folder.run("restore model.nz.onnx -o back.onnx").exits(0);
    let (original, back) =
        (Model::open(&folder.at("model.onnx")).unwrap(), Model::open(&folder.at("back.onnx")).unwrap());
    for (a, b) in original.weights().iter().zip(back.weights()) {
        let stated = tensor(&document, &a.name)["max_relative_error"].as_f64().unwrap();
        let (a, b) = (original.read_weight(a).unwrap(), back.read_weight(b).unwrap());
        // The last bit may go where the number is read from text.
        assert!((max_relative_error(&a, &b, Dtype::F32) / stated - 1.0).abs() < 1e-15);
        assert!(stated > 0.0 && stated < 1e-3);
    }
}

#[test]
fn default_is_lossless_where_that_is_enough() {
    let upcast = |mut t: TensorProto| {
        for b in t.raw_data.as_mut().unwrap().chunks_exact_mut(4) {
            let value = f32::from_le_bytes(b.try_into().unwrap());
            b.copy_from_slice(&half::f16::from_f32(value).to_f32().to_le_bytes());
        }
        t
    };
    let folder = Folder::with(&chain(128, vec![upcast(raw("a", &[128, 128], 1)), raw("b", &[128, 128], 2)]));
    let document = folder.run("convert model.onnx --json").exits(0).json();
    adds_up(&document);
    assert_eq!(tensor(&document, "a")["encoding"], "float-split lossless");
    assert_eq!(tensor(&document, "b")["encoding"], "float-split k=12");
}

#[test]
fn lossless_comes_back_byte_for_byte() {
    let folder = Folder::with(&small());
    let document = folder.run("convert model.onnx --lossless --json").exits(0).json();
    adds_up(&document);
    assert_eq!(document["totals"]["lossless"], true);
    assert_eq!(document["totals"]["compressed"], 2);
    let restored = folder.run("restore model.nz.onnx --json").exits(0).json();
    assert_eq!(restored["schema"], "nz-onnx.restore/1");
    assert_eq!(restored["identical"], true);
    assert_eq!(restored["output"]["path"], "model.restored.onnx");
    assert_eq!(folder.read("model.onnx"), folder.read("model.restored.onnx"));
}

#[test]
fn the_fast_profile_has_one_tier_and_costs_a_little() {
    let folder = Folder::with(&large());
    let plan = folder.run("plan model.onnx --lossless --profile fast --json").exits(0).json();
    let fast = folder.run("convert model.onnx --lossless --profile fast -o fast.onnx --json").exits(0).json();
    let compact = folder.run("convert model.onnx --lossless -o compact.onnx --json").exits(0).json();
    let bytes = |document: &Value| document["totals"]["bytes_after"].as_u64().unwrap();
    assert!(bytes(&compact) < bytes(&fast) && bytes(&fast) <= bytes(&plan));
    let shown = folder.run("inspect fast.onnx --json").exits(0).json();
    for blob in shown["blobs"].as_array().unwrap() {
        assert_eq!(blob["tiers"].as_array().unwrap().len(), 1);
        assert_eq!(blob["tiers"][0]["width"], 4);
    }
    folder.run("restore fast.onnx -o back.onnx").exits(0);
    assert_eq!(folder.read("model.onnx"), folder.read("back.onnx"));
    folder.run("convert model.onnx --profile tiny").complains(2, &["compact", "fast"]);
}

#[test]
fn a_ratio_is_reached_or_nothing_is_written() {
    let folder = Folder::with(&small());
    for ratio in [0.8, 0.5, 0.3] {
        let document =
            folder.run(&format!("convert model.onnx --ratio {ratio} --json --force")).exits(0).json();
        adds_up(&document);
        assert!(document["totals"]["ratio"].as_f64().unwrap() <= ratio);
        std::fs::remove_file(folder.at("model.nz.onnx")).unwrap();
    }
    let ran = folder.run("convert model.onnx --ratio 0.01").complains(3, &["0.01", "the best is", "help: "]);
    assert_eq!(folder.names(), ["model.onnx"]);
    // The best ratio that the message names can be had.
    let best = ran.stderr.split_once("the best is ").unwrap().1.split_once(':').unwrap().0;
    folder.run(&format!("convert model.onnx --ratio {best}")).exits(0);
}

#[test]
fn a_size_and_bits_are_reached_or_nothing_is_written() {
    let folder = Folder::with(&small());
    let before =
        folder.run("plan model.onnx --json").exits(0).json()["totals"]["bytes_before"].as_u64().unwrap();
    for transform in ["cut", "grid", "auto"] {
        let convert = |what: &str| {
            let command = format!("convert model.onnx {what} --transform {transform} --force --json");
            let document = folder.run(&command).exits(0).json();
            adds_up(&document);
            document
        };
        let document = convert(&format!("--size {}", before / 3));
        let after = document["totals"]["bytes_after"].as_u64().unwrap();
        assert!(
            after <= before / 3 && after as f64 > before as f64 * 0.30,
            "{transform}: {after} of {before}"
        );
        let document = convert("--bits 6.5");
        let stored = |key: &str| -> f64 {
            let all = document["tensors"].as_array().unwrap().iter();
            all.filter(|t| t["decision"] == "compressed").map(|t| t[key].as_f64().unwrap()).sum()
        };
        let bits = document["totals"]["bits_per_weight"].as_f64().unwrap();
        assert!(bits <= 6.5 && bits > 5.5, "{transform}: {bits}");
        assert!(
            stored("bits_per_weight") > 0.0 && stored("bytes_after") * 8.0 / bits < before as f64 / 4.0 + 1.0
        );
    }
    std::fs::remove_file(folder.at("model.nz.onnx")).unwrap();
    folder.run("convert model.onnx --size 100KB").exits(0);
    std::fs::remove_file(folder.at("model.nz.onnx")).unwrap();
    let ran = folder.run("convert model.onnx --size 1KiB").complains(3, &["size of 1024 bytes", "help: "]);
    let least = ran.stderr.split_once("the least is ").unwrap().1.split_once(' ').unwrap().0;
    let ran = folder.run("plan model.onnx --bits 1").complains(3, &["1 bits a weight", "help: "]);
    let bits = ran.stderr.split_once("the least are ").unwrap().1.split_once(':').unwrap().0;
    assert_eq!(folder.names(), ["model.onnx"]);
    folder.run(&format!("convert model.onnx --size {least}")).exits(0);
    folder.run(&format!("convert model.onnx --bits {bits} --force")).exits(0);
    for wrong in ["--size 3parsec", "--bits 0", "--size 1MiB --ratio 0.5", "--snr -3", "--max-error 2"] {
        folder.run(&format!("convert model.onnx --force {wrong}")).exits(2);
    }
}

#[test]
fn an_error_named_is_kept_to_with_fewer_bytes_for_a_larger_one() {
    let folder = Folder::with(&small());
    let mut last = u64::MAX;
    for most in [0.0, 1e-5, 1e-3, 0.1] {
        let document =
            folder.run(&format!("convert model.onnx --max-error {most} --force --json")).exits(0).json();
        adds_up(&document);
        assert!(document["totals"]["max_relative_error"].as_f64().unwrap() <= most);
        assert_eq!(document["totals"]["lossless"], most == 0.0);
        let bytes = document["totals"]["bytes_after"].as_u64().unwrap();
        assert!(bytes < last);
        last = bytes;
    }
    let mut last = u64::MAX;
    for (least, transform) in [(60, "cut"), (60, "grid"), (30, "grid"), (20, "auto")] {
        let command = format!("convert model.onnx --snr {least} --transform {transform} --force --json");
        let document = folder.run(&command).exits(0).json();
        let found = document["totals"]["least_snr_db"].as_f64().unwrap();
        assert!(
            found >= f64::from(least) && found < f64::from(least) + 6.1,
            "{least} dB asked for, {found} found"
        );
        let bytes = document["totals"]["bytes_after"].as_u64().unwrap();
        assert!(bytes < last);
        last = bytes;
    }
    folder.run("convert model.onnx --max-error 0.1 --transform grid").complains(2, &["--max-error", "--snr"]);
    // Those who name bytes, or an error in all, get the closest there is; the others a bound for each weight.
    for (target, usual) in [
        ("--size 20KiB", "auto"),
        ("--bits 6", "auto"),
        ("--snr 30", "auto"),
        ("--ratio 0.3", "cut"),
        ("", "cut"),
    ] {
        let totals = |transform: &str| {
            let command = format!("convert model.onnx {target} {transform} --dry-run --json");
            folder.run(&command).exits(0).json()["totals"].clone()
        };
        let other = if usual == "auto" { "cut" } else { "grid" };
        assert_eq!(totals(""), totals(&format!("--transform {usual}")), "{target}");
        assert_ne!(totals(""), totals(&format!("--transform {other}")), "{target}");
    }
}

#[test]
fn a_plan_shows_what_there_is_to_choose_from() {
    let folder = Folder::with(&small());
    let document = folder.run("plan model.onnx --transform auto --json").exits(0).json();
    let curve = document["curve"].as_array().unwrap();
    assert!(curve.len() > 20, "{}", curve.len());
    let number = |point: &Value, key: &str| point[key].as_f64().unwrap();
    assert_eq!(curve[0]["least_snr_db"], Value::Null, "lossless comes first");
    for pair in curve.windows(2) {
        assert!(number(&pair[0], "bytes_after") > number(&pair[1], "bytes_after"));
    }
    for pair in curve[1..].windows(2) {
        assert!(number(&pair[0], "output_snr_db") > number(&pair[1], "output_snr_db"));
    }
    // Every point can be had by its size.
    for point in curve.iter().step_by(9) {
        let size = point["bytes_after"].as_u64().unwrap();
        let command = format!("convert model.onnx --size {size} --transform auto --dry-run --json");
        let done = folder.run(&command).exits(0).json();
        assert!(done["totals"]["bytes_after"].as_u64().unwrap() <= size);
        let found = done["totals"]["least_snr_db"].as_f64().unwrap_or(f64::INFINITY);
        assert!(found >= point["least_snr_db"].as_f64().unwrap_or(f64::INFINITY) - 0.5, "{point}: {found}");
    }
    let text = folder.run("plan model.onnx").exits(0).stdout;
    assert!(text.contains("To choose from") && text.contains("@ is this plan"), "{text}");
}

#[test]
fn a_generous_ratio_changes_nothing() {
    let folder = Folder::with(&small());
    let document = folder.run("convert model.onnx --ratio 0.95 --json").exits(0).json();
    assert_eq!(document["totals"]["lossless"], true);
    assert_eq!(document["totals"]["compressed"], 2);
}

#[test]
fn mantissa_bits_are_a_ceiling() {
    let halves = half_raw("h", &[64, 64], 10, 5);
    let mut model = chain(64, vec![raw("a", &[64, 64], 1), raw("b", &[64, 64], 2)]);
    let graph = model.graph.as_mut().unwrap();
    graph.input.push(build::info("z", 10, &[-1, 64]));
    graph.output.push(build::info("w", 10, &[-1, 64]));
    graph.initializer.push(halves);
    graph.node.push(build::node("MatMul", &["z", "h"], &["w"]));
    let folder = Folder::with(&model);
    let document = folder.run("convert model.onnx --mantissa-bits 12 --json").exits(0).json();
    adds_up(&document);
    assert_eq!(tensor(&document, "a")["encoding"], "float-split k=12");
    assert_eq!(tensor(&document, "h")["encoding"], "float-split lossless", "a float16 has 10");
    let bound = 1.0 / (2f64.powi(13) + 1.0);
    assert!(document["totals"]["max_relative_error"].as_f64().unwrap() <= bound);
    folder.run("convert model.onnx --mantissa-bits 24").exits(2);
}

#[test]
fn grids_are_closer_at_the_same_size_and_say_what_is_true_of_them() {
    let folder = Folder::with(&chain(256, vec![raw("a", &[256, 256], 1), raw("b", &[256, 256], 2)]));
    let convert = |how: &str| {
        let done =
            folder.run(&format!("convert model.onnx --ratio 0.3 --transform {how} --force --json")).exits(0);
        done.json()
    };
    let snr = |document: &Value| document["totals"]["least_snr_db"].as_f64().unwrap();
    let cut = convert("cut");
    for how in ["grid", "auto"] {
        let document = convert(how);
        adds_up(&document);
        assert!(document["totals"]["ratio"].as_f64().unwrap() <= 0.3);
        assert!(snr(&document) > snr(&cut) + 3.0, "{how}: {} dB, cut {} dB", snr(&document), snr(&cut));
        for t in document["tensors"].as_array().unwrap() {
            assert!(t["encoding"].as_str().unwrap().starts_with("grid k="), "{t}");
            assert!(t["max_error_to_rms"].as_f64().unwrap() < 0.05);
        }
        let inspected = folder.run("inspect model.nz.onnx --json").exits(0).json();
        assert_eq!(inspected["blobs"][0]["encoding"], document["tensors"][0]["encoding"]);
        assert_eq!(inspected["blobs"][0]["format"], "1.1");
        let verified = folder.run("verify model.nz.onnx --original model.onnx --json").exits(0).json();
        assert_eq!(verified["blobs"][0]["snr_db"], document["tensors"][0]["snr_db"]);
        let planned =
            folder.run(&format!("plan model.onnx --ratio 0.3 --transform {how} --json")).exits(0).json();
        // Foreseen from a sample.
        assert!((snr(&planned) - snr(&document)).abs() < 0.5);
        assert_eq!(planned["totals"]["max_relative_error"], Value::Null);
    }
    let text = folder.run("convert model.onnx --ratio 0.3 --transform grid --force").exits(0).stdout;
    assert!(text.contains("to errors at least ") && text.contains(" dB below them"), "{text}");
    folder.run("convert model.onnx --mantissa-bits 3 --transform grid").exits(2);
}

#[test]
fn what_falls_short_is_said() {
    let mut model = small();
    let graph = model.graph.as_mut().unwrap();
    let bytes = TensorProto {
        dims: vec![1 << 16],
        data_type: Some(3),
        name: Some("ballast".into()),
        raw_data: Some(vec![1; 1 << 16]),
        ..Default::default()
    };
    graph.initializer.push(bytes);
    graph.node.push(build::node("Identity", &["ballast"], &["out"]));
    graph.output.push(build::info("out", 3, &[1 << 16]));
    let folder = Folder::with(&model);
    let ran = folder.run("convert model.onnx --json").exits(0);
    let document = ran.json();
    adds_up(&document);
    let warning = document["warnings"][0].as_str().unwrap();
    assert!(warning.contains("50 %") && warning.contains("int8"), "{warning}");
    assert!(ran.stderr.contains(warning), "{}", ran.stderr);
    assert_eq!(tensor(&document, "a")["encoding"], "float-split k=10", "as far as the default goes");
    assert_eq!(folder.run("convert model.onnx --json --force -q").exits(0).stderr, "");
}

#[test]
fn tied_weights_are_stored_once() {
    let copy = TensorProto { name: Some("copy".into()), ..raw("a", &[512, 512], 1) };
    let folder = Folder::with(&chain(512, vec![raw("a", &[512, 512], 1), copy]));
    let document = folder.run("convert model.onnx --lossless --json").exits(0).json();
    adds_up(&document);
    let (first, second) = (tensor(&document, "a"), tensor(&document, "copy"));
    assert_eq!(second["bytes_after"], 0);
    assert!(second["reason"].as_str().unwrap().contains("\"a\""));
    let data = folder.read("model.nz.onnx.data").len() as u64;
    assert_eq!(data, first["bytes_after"].as_u64().unwrap());
    folder.run("verify model.nz.onnx --original model.onnx").exits(0);
    folder.run("restore model.nz.onnx").exits(0);
    assert_eq!(folder.read("model.onnx"), folder.read("model.restored.onnx"));
}

#[test]
fn weights_can_be_left_alone() {
    let folder = Folder::with(&small());
    for (options, kept, why) in [
        ("--exclude a", "a", "--exclude"),
        ("--include b", "a", "--include"),
        ("--exclude-nodes layer0", "a", "--exclude-nodes"),
        ("--min-size 1MiB", "b", "1048576 bytes"),
    ] {
        let document = folder.run(&format!("convert model.onnx --dry-run --json {options}")).exits(0).json();
        let reason = tensor(&document, kept)["reason"].as_str().unwrap().to_string();
        assert!(reason.contains(why), "{options}: {reason}");
    }
    for (options, why) in [("", "small, and not read by"), (" --include *", "does not pay")] {
        let command = format!("convert model.onnx --dry-run --json --lossless --min-size 64{options}");
        let all = folder.run(&command).exits(0).json();
        assert_eq!(tensor(&all, "bias")["decision"], "kept");
        assert!(tensor(&all, "bias")["reason"].as_str().unwrap().starts_with(why), "{options}");
    }
    folder.run("convert model.onnx --include [").exits(2);
}

#[test]
fn a_dry_run_says_the_same_and_writes_nothing() {
    let folder = Folder::with(&large());
    let dry = folder.run("convert model.onnx --dry-run --json").exits(0).json();
    assert_eq!(folder.names(), ["model.onnx"]);
    assert_eq!(dry["output"], Value::Null);
    let wet = folder.run("convert model.onnx --json").exits(0).json();
    assert_eq!(dry["totals"], wet["totals"]);
    assert_eq!(dry["tensors"], wet["tensors"]);
    let text = folder.run("convert model.onnx --dry-run").exits(0);
    assert!(text.stdout.contains("nothing was written"));
}

#[test]
fn threads_do_not_change_a_byte() {
    let folder = Folder::with(&large());
    std::fs::create_dir(folder.at("one")).unwrap();
    std::fs::create_dir(folder.at("two")).unwrap();
    folder.run("convert model.onnx --threads 1 -o one/m.nz.onnx").exits(0);
    folder.run("convert model.onnx --threads 2 -o two/m.nz.onnx").exits(0);
    assert!(folder.read("one/m.nz.onnx") == folder.read("two/m.nz.onnx"));
    assert!(folder.read("one/m.nz.onnx.data") == folder.read("two/m.nz.onnx.data"));
}

#[test]
fn blobs_in_the_data_file_are_aligned() {
    let folder = Folder::with(&large());
    let document = folder.run("convert model.onnx --json").exits(0).json();
    assert_eq!(document["output"]["data_path"], "model.nz.onnx.data");
    let sizes = folder.read("model.nz.onnx").len() + folder.read("model.nz.onnx.data").len();
    assert_eq!(document["output"]["bytes"], sizes);
    let converted = Model::open(&folder.at("model.nz.onnx")).unwrap();
    let mut external = 0;
    for weight in converted.weights() {
        if let onnx_tools::onnx::Storage::External { offset, location, .. } = &weight.storage {
            assert_eq!(offset % 65536, 0);
            assert_eq!(location, "model.nz.onnx.data");
            external += 1;
        }
    }
    assert_eq!(external, 2);
}

#[test]
fn the_plan_bounds_what_convert_does() {
    let folder = Folder::with(&small());
    let plan = folder.run("plan model.onnx --json").exits(0).json();
    assert_eq!(plan["schema"], "nz-onnx.plan/1");
    adds_up(&plan);
    assert_eq!(folder.names(), ["model.onnx"]);
    let done = folder.run("convert model.onnx --json").exits(0).json();
    for (p, d) in plan["tensors"].as_array().unwrap().iter().zip(done["tensors"].as_array().unwrap()) {
        assert_eq!((&p["name"], &p["encoding"], &p["reason"]), (&d["name"], &d["encoding"], &d["reason"]));
        assert!(p["bytes_after"].as_u64() >= d["bytes_after"].as_u64());
        assert!(p["max_relative_error"].as_f64() >= d["max_relative_error"].as_f64());
    }
    let a = tensor(&plan, "a");
    assert_eq!(
        a["consumers"][0],
        serde_json::json!({"node": "layer0", "op": "MatMul", "becomes": "nz.DecodeMatMul"})
    );
    assert_eq!(tensor(&plan, "bias")["consumers"][0]["op"], "Add");
    let text = folder.run("plan model.onnx").exits(0).stdout;
    assert!(text.contains("nz.DecodeMatMul") && text.contains("smaller than"), "{text}");
    folder.run("plan model.onnx --ratio 0.01").complains(3, &["the best is"]);
}

#[test]
fn the_summary_says_what_happened() {
    let folder = Folder::with(&small());
    let lossy = folder.run("convert model.onnx").exits(0);
    for part in
        ["compressed", "kept", "total", "Not lossless", "smaller than", "Took", "register_custom_ops_library"]
    {
        assert!(lossy.stdout.contains(part), "{part}: {}", lossy.stdout);
    }
    assert!(!lossy.stdout.contains('\x1b'), "no colours in a pipe");
    let exact = folder.run("convert model.onnx --lossless --force").exits(0);
    assert!(exact.stdout.contains("bit for bit"), "{}", exact.stdout);
    let quiet = folder.run("convert model.onnx --force -q").exits(0);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    let verbose = folder.run("convert model.onnx --force -v --json").exits(0);
    assert!(verbose.stderr.contains("float-split"), "{}", verbose.stderr);
}
