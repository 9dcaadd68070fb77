//! The tools use the codec and nothing of the runtime.
#![allow(missing_docs, clippy::unwrap_used)]

use std::process::Command;

use serde_json::Value;

fn metadata() -> Value {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path", manifest])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_tools_do_without_the_runtime() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let package = |name: &str| packages.iter().find(|p| p["name"] == name).unwrap();

    let tools = package("onnx_tools")["dependencies"].as_array().unwrap();
    let codec: Vec<_> = tools.iter().filter(|d| d["name"] == "nz-onnx").collect();
    assert_eq!(codec.len(), 1);
    assert_eq!(codec[0]["uses_default_features"], false);
    assert_eq!(codec[0]["features"], serde_json::json!([]), "neither ort nor cuda");

    let runtime = package("nz-onnx");
    assert!(runtime["features"]["ort"].is_array(), "the runtime is a feature that can be left out");
    let needed = runtime["dependencies"].as_array().unwrap().iter().filter(|d| d["optional"] == false);
    for dependency in needed.filter(|d| d["kind"].is_null()) {
        let name = dependency["name"].as_str().unwrap();
        assert!(!name.starts_with("ort") && !name.contains("cuda"), "{name} must be optional");
    }
    let back = runtime["dependencies"].as_array().unwrap().iter().any(|d| d["name"] == "onnx_tools");
    assert!(!back, "an import never points upward");
}
