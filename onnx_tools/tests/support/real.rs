//! The development models.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Those in the folder that `NZ_MODELS` names; none, and a word of it, where there is no such folder.
pub fn models() -> Vec<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/models");
    let folder = std::env::var_os("NZ_MODELS").map_or(default, PathBuf::from);
    let Ok(entries) = fs::read_dir(&folder) else {
        eprintln!("SKIPPED: no models at {} (set NZ_MODELS)", folder.display());
        return Vec::new();
    };
    let mut models: Vec<_> =
        entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect();
    models.sort();
    models
}
