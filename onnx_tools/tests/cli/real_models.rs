//! The development models through the command. They are found by `NZ_MODELS`.

use std::fs;

use super::convert::adds_up;
use super::real::models;
use super::tool::Folder;

#[test]
fn default_halves_every_compressed_weight() {
    for model in models() {
        let folder = Folder::new();
        let (from, name) = (model.display(), model.file_name().unwrap().to_str().unwrap());
        let done = folder.run(&format!("convert {from} -o m.nz.onnx --json")).exits(0).json();
        adds_up(&done);
        let compressed =
            || done["tensors"].as_array().unwrap().iter().filter(|t| t["decision"] == "compressed");
        let sum = |key: &str| compressed().map(|t| t[key].as_u64().unwrap()).sum::<u64>();
        assert!(2 * sum("bytes_after") <= sum("bytes_before"), "{name}");
        let short = done["totals"]["ratio"].as_f64().unwrap() > 0.5;
        assert_eq!(short, done["warnings"].as_array().is_some_and(|w| !w.is_empty()), "{name}");

        // The error that is stated is the one that is there.
        let checked = folder.run(&format!("verify m.nz.onnx --original {from} --json")).exits(0).json();
        let worst =
            checked["blobs"].as_array().unwrap().iter().filter_map(|b| b["max_relative_error"].as_f64());
        assert_eq!(done["totals"]["max_relative_error"], worst.fold(0.0, f64::max), "{name}");
    }
}

#[test]
fn lossless_is_lossless() {
    for model in models() {
        let folder = Folder::new();
        let (from, name) = (model.display(), model.file_name().unwrap().to_str().unwrap());
        let done = folder.run(&format!("convert {from} -o m.nz.onnx --lossless --json")).exits(0).json();
        adds_up(&done);
        assert_eq!(done["totals"]["lossless"], true, "{name}");
        folder.run(&format!("verify m.nz.onnx --original {from}")).exits(0);
        let back = folder.run("restore m.nz.onnx -o back.onnx --json").exits(0).json();
        assert_eq!(back["identical"], true, "{name}");
        assert!(folder.read("back.onnx") == fs::read(&model).unwrap(), "{name}");
    }
}
