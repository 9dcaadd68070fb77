//! The development models, converted and restored. They are found by `NZ_MODELS`.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "support/real.rs"]
mod real;
mod support;

use std::fs;
use std::path::PathBuf;

use onnx_tools::onnx::Model;
use onnx_tools::rewrite::{Decision, Outcome, Rules, restore};
use real::models;
use support::{INLINE, convert};
use tempfile::TempDir;

#[test]
fn real_models_come_back_byte_for_byte() {
    for source in models() {
        let folder = TempDir::new().unwrap();
        let name = source.file_name().unwrap().to_str().unwrap();
        let out = folder.path().join("converted.nz.onnx");
        let result = convert(&source, &out, &Rules::default(), None, INLINE);
        let original = Model::open(&source).unwrap();
        let converted = Model::open(&out).unwrap();
        converted.check_external_data().unwrap();
        // Two hold integers only; the third's weights are defaults that a caller may replace (IR 4, also inputs).
        let has_none = ["qdq", "int8", "super_resolution"].iter().any(|part| name.contains(part));
        assert_eq!(converted.blobs().is_empty(), has_none, "{name}");
        for weight in converted.weights() {
            converted
                .read_weight(weight)
                .map(drop)
                .or_else(|e| if e.exit_code() == 5 { Ok(()) } else { Err(e) })
                .unwrap();
        }
        let restored = restore(&out, &folder.path().join("back.onnx"), false).unwrap();
        assert_eq!(restored.outcome, Outcome::ByteIdentical, "{name}");
        assert!(fs::read(&source).unwrap() == fs::read(folder.path().join("back.onnx")).unwrap(), "{name}");
        for data in &restored.files[..restored.files.len() - 1] {
            let original = source.with_file_name(data.file_name().unwrap());
            assert!(fs::read(data).unwrap() == fs::read(original).unwrap(), "{name}");
        }
        let bytes: u64 = original.weights().iter().map(|w| w.bytes).sum();
        let compressed = original.weights().iter().zip(&result.plan.decisions);
        let compressed = compressed.filter(|(_, d)| matches!(d, Decision::Compress(_))).map(|(w, _)| w.bytes);
        println!("{name}: {} of {bytes} bytes compressed", compressed.sum::<u64>());
        if let Some(keep) = std::env::var_os("NZ_KEEP_CONVERTED") {
            for file in fs::read_dir(folder.path()).unwrap() {
                let file = file.unwrap();
                let to = PathBuf::from(&keep).join(name);
                fs::create_dir_all(&to).unwrap();
                fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
        }
    }
}
