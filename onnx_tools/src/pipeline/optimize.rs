//! Runs ONNX Runtime's own optimiser over a model before it is converted.
//!
//! A weight that is decoded at run time is no constant, so whatever ONNX Runtime does with constants when it loads
//! a model must have been done before: folding, fusing, and laying weights of convolutions out in channel blocks.

use std::fmt;
use std::path::{Path, PathBuf};

use super::planning::{self, Options};
use super::runtime::{Runtime, locate};
use crate::onnx::{Error, Model, Result};
use crate::report::{Progress, json, units};
use crate::rewrite::normalise;
use crate::staged::Folder;

/// Metadata key: the [`Level`].
pub const LEVEL: &str = "nz.optimize";
/// Metadata key: version of the ONNX Runtime that optimised.
pub const ORT_VERSION: &str = "nz.ort_version";
/// Metadata key: SHA-256 of the file that was optimised. `nz.source_sha256` is that of the optimised model, which is
/// what `restore` gives back.
pub const ORIGINAL_SHA256: &str = "nz.original_sha256";
/// Metadata key: channels a block, where there are any.
pub const NCHWC_BLOCK: &str = "nz.nchwc_block";

/// Weights of more bytes in all go to a data file beside the optimised model: a protobuf message ends at 2 GiB, and
/// folding may make copies of them.
const EXTERNAL_ABOVE: u64 = 512 << 20;

/// How far ONNX Runtime optimises a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What holds on every CPU.
    Portable,
    /// All that it does for this CPU.
    Native,
}

impl Level {
    /// As the option and the metadata have it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Native => "native",
        }
    }

    /// The level of that name.
    pub fn from_name(name: &str) -> Option<Level> {
        [Level::Portable, Level::Native].into_iter().find(|level| level.name() == name)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How to optimise.
#[derive(Debug, Clone)]
pub struct OptimizeOptions {
    /// How far.
    pub level: Level,
    /// libonnxruntime as the user names it.
    pub ort_lib: Option<PathBuf>,
}

/// An optimised model under a temporary name. Dropped, it is removed.
#[derive(Debug)]
pub struct Optimized {
    /// Holds the model and its data file, if it has one.
    _folder: Folder,
    /// The model.
    pub path: PathBuf,
    /// Where it comes from.
    pub origin: Origin,
    /// The model that was optimised.
    original: json::Input,
    /// Bytes of its weights.
    original_weights: u64,
    /// Bytes of the optimised model's weights.
    weights: u64,
}

impl Optimized {
    /// What a document says of it.
    pub fn document(&self) -> json::Optimized {
        json::Optimized {
            level: self.origin.level.name(),
            ort_version: self.origin.ort_version.clone(),
            nchwc_block: self.origin.nchwc_block,
            original_weight_bytes: self.original_weights,
        }
    }

    /// The model that was optimised, as a document names it.
    pub fn input(&self) -> json::Input {
        self.original.clone()
    }

    /// What is to be said where optimising made weights larger, with `bytes_after` in the end.
    pub fn remark(&self, bytes_after: u64) -> Option<String> {
        // A little more is bookkeeping: constants that were attributes, say.
        (self.weights > self.original_weights + self.original_weights / 16).then(|| {
            format!(
                "optimising made the weights larger, {} of {}, as ONNX Runtime does when it loads the model; they keep \
                 {} of the original's bytes",
                units::bytes(self.weights),
                units::bytes(self.original_weights),
                units::percent(bytes_after as f64, self.original_weights as f64)
            )
        })
    }

    /// An error about the optimised model as one about the model at `path`: the temporary file is gone when it is read.
    pub fn rename(&self, path: &Path, error: Error) -> Error {
        let name = |text: String| text.replace(&*self.path.to_string_lossy(), &path.to_string_lossy());
        let file = |found: PathBuf| if found == self.path { path.to_path_buf() } else { found };
        match error {
            Error::Io { path, action, source } => Error::Io { path: file(path), action, source },
            Error::Corrupt { path, what } => Error::Corrupt { path: file(path), what },
            Error::Unsupported { path, what } => Error::Unsupported { path: file(path), what },
            Error::Internal(what) => Error::Internal(name(what)),
            Error::Usage(what) => Error::Usage(name(what)),
            Error::Unreachable(what) => Error::Unreachable(name(what)),
        }
    }
}

/// Where an optimised model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// How far it was optimised.
    pub level: Level,
    /// Version of the ONNX Runtime that did it.
    pub ort_version: String,
    /// SHA-256 of the original's file.
    pub original_sha256: String,
    /// Channels a block, where there are any: the model is for CPUs where ONNX Runtime has such blocks.
    pub nchwc_block: Option<u32>,
}

impl Origin {
    /// As entries of a converted model's metadata.
    pub fn metadata(&self) -> Vec<(String, String)> {
        let mut entries = vec![
            (LEVEL, self.level.to_string()),
            (ORT_VERSION, self.ort_version.clone()),
            (ORIGINAL_SHA256, self.original_sha256.clone()),
        ];
        entries.extend(self.nchwc_block.map(|size| (NCHWC_BLOCK, size.to_string())));
        entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
    }
}

/// What `convert` would do with the model at `path` once it is optimised.
///
/// # Errors
/// As [`optimize`] and [`planning::plan`].
pub fn plan(
    path: &Path,
    options: &Options,
    how: &OptimizeOptions,
    progress: &Progress,
) -> Result<json::Plan> {
    // Nothing is written in the end, and the model's own folder may not be writable.
    let optimized = optimize(path, &std::env::temp_dir().join("nz-onnx.plan"), how, progress)?;
    let mut document =
        planning::plan(&optimized.path, options, progress).map_err(|e| optimized.rename(path, e))?;
    document.input = optimized.input();
    document.optimized = Some(optimized.document());
    document.warnings.extend(optimized.remark(document.totals.bytes_after));
    Ok(document)
}

/// Optimises the model at `path` into a hidden folder beside `output`.
///
/// # Errors
/// There is no ONNX Runtime, it does not load the model, the model is converted already, or files cannot be written.
pub fn optimize(
    path: &Path,
    output: &Path,
    options: &OptimizeOptions,
    progress: &Progress,
) -> Result<Optimized> {
    let ort_lib = locate::require_onnxruntime(options.ort_lib.as_deref())?;
    let runtime = Runtime::load(&ort_lib, None)?;
    progress.note(&format!(
        "optimising in ONNX Runtime {}, {}, which loads the model whole",
        runtime.version(),
        ort_lib.display()
    ));
    optimize_in(&runtime, path, output, options.level)
}

/// As [`optimize`], in an ONNX Runtime that is loaded already: a process loads one.
///
/// # Errors
/// As there.
pub fn optimize_in(runtime: &Runtime, path: &Path, output: &Path, level: Level) -> Result<Optimized> {
    let original = Model::open(path)?;
    if original.is_converted() {
        return Err(Error::unsupported(
            path,
            "already converted; convert the original, or get it back with `nz-onnx restore`",
        ));
    }
    original.check_external_data()?;
    let original_weights = weight_bytes(&original);
    let folder = Folder::create(output)?;
    // Names that do not differ from run to run: a restored model has them.
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let data = (original_weights > EXTERNAL_ABOVE).then(|| format!("{stem}.optimized.onnx.data"));
    let raw = folder.path().join("raw.onnx");
    runtime.optimize(path, level, &raw, data.as_deref()).map_err(|what| match folder.probe() {
        // ONNX Runtime does not say that it could not write.
        Err(error) => Error::io(
            output,
            format!(
                "write the optimised model beside it, which needs room for twice the weights' {} (make room, or give \
                 another place with --output)",
                units::bytes(original_weights)
            ),
            error,
        ),
        Ok(()) => {
            Error::unsupported(path, format!("ONNX Runtime does not optimise it: {what}\nhelp: --optimize off"))
        }
    })?;

    let raw = Model::open(&raw)?;
    let weights = original.weights().iter().map(|w| w.name.clone()).collect();
    let path = folder.path().join(format!("{stem}.optimized.onnx"));
    let mut file = std::fs::File::create(&path).map_err(|e| Error::io(&path, "create", e))?;
    normalise::normalise(&raw, &weights)?.write_to(&raw, &mut file, &path)?;
    drop(file);
    let nchwc_block = if normalise::has_nchwc(&raw) { Some(block_size(runtime)?) } else { None };
    let original = json::Input {
        path: original.path().display().to_string(),
        bytes: original.source().len(),
        sha256: original.sha256()?.to_string(),
    };
    let origin = Origin {
        level,
        ort_version: runtime.version().to_string(),
        original_sha256: original.sha256.clone(),
        nchwc_block,
    };
    let weights = weight_bytes(&Model::open(&path)?);
    Ok(Optimized { _folder: folder, path, origin, original, original_weights, weights })
}

fn weight_bytes(model: &Model) -> u64 {
    model.weights().iter().fold(0, |sum, w| sum.saturating_add(w.bytes))
}

/// Channels a block, as measured; what the library takes for granted when it loads the model must agree.
fn block_size(runtime: &Runtime) -> Result<u32> {
    let found = runtime.nchwc_block().map_err(|what| {
        Error::Internal(format!("ONNX Runtime {}: no channel block could be made: {what}", runtime.version()))
    })?;
    match nz_onnx::nchwc::block_size() {
        Some(known) if known == found => Ok(found),
        known => Err(Error::Usage(format!(
            "ONNX Runtime {} uses channel blocks of {found} on this CPU, but libnz_onnx knows of {}\nhelp: --optimize \
             portable",
            runtime.version(),
            known.map_or("none".to_string(), |known| known.to_string())
        ))),
    }
}
