//! `inspect` and `env`.

use onnx_tools::onnx::Model;

use super::tool::{Folder, large, small};

#[test]
fn a_plain_model_is_not_converted() {
    let folder = Folder::with(&small());
    let shown = folder.run("inspect model.onnx --json").exits(0).json();
    assert_eq!((&shown["schema"], &shown["kind"]), (&"nz-onnx.inspect/1".into(), &"plain".into()));
    assert_eq!(shown["weights"].as_array().unwrap().len(), 3);
    assert!(folder.run("inspect model.onnx").exits(0).stdout.contains("not converted"));
}

#[test]
fn a_converted_model_shows_its_blobs() {
    let folder = Folder::with(&large());
    let done = folder.run("convert model.onnx --json").exits(0).json();
    let shown = folder.run("inspect model.nz.onnx --json").exits(0).json();
    assert_eq!(shown["kind"], "converted");
    assert_eq!(shown["metadata"]["nz.source_sha256"], done["input"]["sha256"]);
    let blobs = shown["blobs"].as_array().unwrap();
    assert_eq!(blobs.len(), 2);
    for (blob, tensor) in blobs.iter().zip(done["tensors"].as_array().unwrap()) {
        assert_eq!(blob["weights"][0], tensor["name"]);
        assert_eq!(blob["shape"], tensor["shape"]);
        assert_eq!(blob["bytes"], tensor["bytes_after"]);
        assert_eq!(blob["lossless"], tensor["lossless"]);
        assert_eq!(blob["layout"], "column-tiles 128");
        assert_eq!(blob["checksum_ok"], true);
        assert_eq!(format!("float-split k={}", blob["mantissa_bits"]), tensor["encoding"].as_str().unwrap());
    }
    let text = folder.run("inspect model.nz.onnx").exits(0).stdout;
    assert!(text.contains("column-tiles 128") && text.contains("nz.format"), "{text}");
}

/// A reader that knows the version that a model states knows all of its blobs.
#[test]
fn a_converted_model_states_the_greatest_format_of_its_blobs() {
    let folder = Folder::with(&large());
    for (options, expected) in
        [("--lossless", "1.0"), ("--bits 5", "1.2"), ("--lossless --layers=3,7", "1.3")]
    {
        folder.run(&format!("convert model.onnx --force {options}")).exits(0);
        let shown = folder.run("inspect model.nz.onnx --json").exits(0).json();
        let blobs = shown["blobs"].as_array().unwrap();
        let greatest = blobs.iter().map(|blob| blob["format"].as_str().unwrap()).max().unwrap();
        assert_eq!(shown["metadata"]["nz.format"], greatest, "{options}");
        assert!(greatest == expected || options.starts_with("--bits") && greatest == "1.1", "{options}");
    }
}

#[test]
fn a_bare_blob_is_shown_and_checked() {
    let folder = Folder::with(&large());
    folder.run("convert model.onnx").exits(0);
    let model = Model::open(&folder.at("model.nz.onnx")).unwrap();
    let mut blob = model.read_weight(model.weight(model.blobs()[0].weight)).unwrap();
    folder.write("a.nz", &blob);
    let shown = folder.run("inspect a.nz --json").exits(0).json();
    assert_eq!((&shown["kind"], &shown["blobs"][0]["dtype"]), (&"blob".into(), &"float32".into()));
    let middle = blob.len() / 2;
    blob[middle] ^= 1;
    folder.write("a.nz", &blob);
    let shown = folder.run("inspect a.nz --json").exits(4).json();
    assert_eq!(shown["blobs"][0]["checksum_ok"], false);
    folder.write("a.nz", &blob[..100]);
    folder.run("inspect a.nz").complains(4, &["a.nz"]);
}

#[test]
fn env_says_what_there_is() {
    let folder = Folder::new();
    let shown = folder.run("env --json").exits(0).json();
    assert_eq!(shown["schema"], "nz-onnx.env/1");
    assert_eq!(shown["version"], env!("CARGO_PKG_VERSION"));
    assert!(shown["simd"].is_array() && shown["threads"].as_u64() > Some(0));
    for key in ["library", "cuda", "ort_lib", "format"] {
        assert!(shown.get(key).is_some(), "{key}");
    }
    assert_eq!(folder.run("env --json --threads 3").exits(0).json()["threads"], 3);
    assert!(folder.run("env").exits(0).stdout.contains("library"));
}
