//! Files that are wrong, in the way, or the input's own: one message, the right code, nothing left behind.

use std::fs;
use std::process::Stdio;

use prost::Message;

use super::build::{TensorProto, external, f32_bytes, floats};
use super::tool::{Folder, chain, command, large, small};

#[test]
fn what_is_no_model_is_refused() {
    let folder = Folder::with(&small());
    let whole = folder.read("model.onnx");
    folder.write("empty.onnx", b"");
    folder.write("text.onnx", b"this is not a model at all, it is a sentence");
    folder.write("cut.onnx", &whole[..whole.len() - 100]);
    let before = folder.names();
    folder.run("convert missing.onnx").complains(1, &["missing.onnx"]);
    folder.run("convert empty.onnx").complains(4, &["empty.onnx"]);
    folder.run("convert text.onnx").complains(4, &["text.onnx"]);
    folder.run("convert cut.onnx").complains(4, &["cut.onnx"]);
    folder.run("convert .").exits(2);
    folder.run("convert cut.onnx --json").complains(4, &["cut.onnx"]);
    for command in ["plan", "inspect", "verify", "restore"] {
        folder.run(&format!("{command} cut.onnx")).complains(4, &["cut.onnx"]);
        folder.run(&format!("{command} missing.onnx")).complains(1, &["missing.onnx"]);
    }
    assert_eq!(folder.names(), before);
}

/// `y = x a b` with `a` in `location`.
fn outside(location: &str) -> Vec<u8> {
    let a: TensorProto = external("a", &[64, 64], location, 0);
    chain(64, vec![a, super::build::raw("b", &[64, 64], 2)]).encode_to_vec()
}

#[test]
fn external_data_must_be_there_and_inside() {
    let folder = Folder::new();
    folder.write("model.onnx", &outside("weights.bin"));
    folder.run("convert model.onnx").complains(1, &["weights.bin"]);
    folder.write("weights.bin", &f32_bytes(&floats(64 * 64 - 1, 1)));
    folder.run("convert model.onnx").complains(4, &["weights.bin"]);
    folder.write("weights.bin", &f32_bytes(&floats(64 * 64, 1)));
    folder.run("convert model.onnx").exits(0);
    folder.run("verify model.nz.onnx --original model.onnx").exits(0);

    fs::create_dir(folder.at("inner")).unwrap();
    folder.write("inner/model.onnx", &outside("../weights.bin"));
    let ran = folder.run("convert inner/model.onnx");
    assert!(matches!(ran.code, Some(4 | 5)), "{}", ran.stderr);
    assert!(ran.stderr.contains("weights.bin"), "{}", ran.stderr);
    assert_eq!(fs::read_dir(folder.at("inner")).unwrap().count(), 1);
}

#[test]
fn existing_files_are_replaced_only_by_force() {
    let folder = Folder::with(&large());
    folder.write("model.nz.onnx", b"mine");
    folder.run("convert model.onnx").complains(2, &["model.nz.onnx", "--force"]);
    assert_eq!(folder.read("model.nz.onnx"), b"mine");
    assert_eq!(folder.names(), ["model.nz.onnx", "model.onnx"]);
    folder.run("convert model.onnx --force").exits(0);
    folder.run("inspect model.nz.onnx").exits(0);

    fs::remove_file(folder.at("model.nz.onnx")).unwrap();
    folder.run("convert model.onnx").complains(2, &["model.nz.onnx.data", "--force"]);
    // A conversion that fails leaves what was there.
    folder.run("convert model.onnx --force --ratio 0.01").exits(3);
    assert_eq!(folder.names(), ["model.nz.onnx.data", "model.onnx"]);
}

#[test]
fn the_input_is_never_the_output() {
    let folder = Folder::with(&small());
    let before = folder.read("model.onnx");
    for output in ["model.onnx", "./model.onnx", "../model.onnx"] {
        let output = output.replace("..", folder.path().to_str().unwrap());
        folder.run(&format!("convert model.onnx --force -o {output}")).complains(2, &["model that is read"]);
    }
    #[cfg(unix)]
    {
        fs::hard_link(folder.at("model.onnx"), folder.at("link.onnx")).unwrap();
        folder.run("convert model.onnx --force -o link.onnx").complains(2, &["model that is read"]);
    }
    assert_eq!(folder.read("model.onnx"), before);

    // Nor may the output's data file be the input's.
    let folder = Folder::new();
    folder.write("model.onnx", &outside("out.onnx.data"));
    folder.write("out.onnx.data", &f32_bytes(&floats(64 * 64, 1)));
    folder.run("convert model.onnx --force -o out.onnx").complains(2, &["out.onnx.data"]);
    folder.run("convert model.onnx -o folder/that/is/not/there.onnx").exits(1);
    assert_eq!(folder.names(), ["model.onnx", "out.onnx.data"]);
}

#[test]
fn external_data_that_is_kept_moves_along() {
    let folder = Folder::new();
    let big = external("big", &[256, 256], "weights.bin", 0);
    folder.write("model.onnx", &chain(256, vec![big]).encode_to_vec());
    folder.write("weights.bin", &f32_bytes(&floats(256 * 256, 1)));
    fs::create_dir(folder.at("out")).unwrap();
    folder.run("convert model.onnx -o out/m.onnx --exclude big").exits(0);
    fs::remove_file(folder.at("weights.bin")).unwrap();
    let shown = folder.run("inspect out/m.onnx --json").exits(0).json();
    assert_eq!(shown["weights"][0]["name"], "big");
    let model = onnx_tools::onnx::Model::open(&folder.at("out/m.onnx")).unwrap();
    assert!(model.read_weight(&model.weights()[0]).unwrap() == f32_bytes(&floats(256 * 256, 1)));
}

#[test]
fn usage_errors_are_2_and_help_is_0() {
    let folder = Folder::with(&small());
    for line in [
        "",
        "conwert m.onnx",
        "convert",
        "convert model.onnx --ratio 2",
        "convert model.onnx --lossless --ratio 0.5",
    ] {
        let ran = folder.run(line).exits(2);
        assert_eq!(ran.stdout, "");
        assert!(!ran.stderr.is_empty());
    }
    for option in ["ratio", "bits", "size", "max-error", "snr", "mantissa-bits", "min-size", "threads"] {
        // The message is about the option, not about an argument "-1" that nobody knows.
        folder.run(&format!("convert model.onnx --{option} -1")).complains(2, &[&format!("--{option} <")]);
    }
    let help = folder.run("convert --help").exits(0);
    assert!(help.stdout.contains("Exit codes:") && help.stdout.contains("Examples:"));
    assert!(folder.run("--version").exits(0).stdout.starts_with("nz-onnx "));
    assert_eq!(folder.names(), ["model.onnx"]);
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let folder = Folder::with(&small());
    let child = command()
        .current_dir(folder.path())
        .args(["plan", "model.onnx"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map(|mut child| {
            drop(child.stdout.take());
            child
        })
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}
