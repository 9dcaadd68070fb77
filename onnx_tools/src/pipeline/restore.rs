//! Writes a converted model back as a plain one.

use std::fs;
use std::path::Path;

use super::paths::OutputFiles;
use super::{inspect, optimize};
use crate::onnx::{Error, Model, Result};
use crate::report::json;
use crate::rewrite::restore::{Outcome, restore as rewrite_back};

/// Restores the converted model at `path` to `output`, or beside it.
///
/// # Errors
/// It is no converted model, was changed since, or cannot be written.
pub fn restore(path: &Path, output: Option<&Path>, force: bool) -> Result<json::Restore> {
    let files = OutputFiles::restored(path, output)?;
    let model = Model::open(path)?;
    if !inspect::is_converted(&model) {
        return Err(Error::Usage(format!(
            "{}: is not a converted model; there is nothing to restore",
            path.display()
        )));
    }
    files.check_model(&model, force)?;
    let restored = rewrite_back(path, &files.model, force)?;
    let bytes = restored.files.iter().filter_map(|f| fs::metadata(f).ok()).map(|m| m.len()).sum();
    let data_path = restored.files.iter().find(|f| **f != files.model).map(|f| f.display().to_string());
    Ok(json::Restore {
        schema: "nz-onnx.restore/1",
        input: path.display().to_string(),
        output: json::Output { path: files.model.display().to_string(), data_path, bytes },
        weights: restored.weights,
        identical: restored.outcome == Outcome::ByteIdentical,
        rounded: restored.rounded,
        optimized: model.metadata(optimize::LEVEL).map(str::to_string),
    })
}
