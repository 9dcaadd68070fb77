//! The base that a converted model takes weights from: another converted model, whose data file lies in the same folder.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::onnx::source::hex;
use crate::onnx::{Error, Model, Result, Source, WeightId, external};

/// The metadata key for the name of the base's data file.
pub const FILE: &str = "nz.base_file";
/// The metadata key for that file's SHA-256.
pub const SHA256: &str = "nz.base_sha256";

/// A blob in the base's data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseBlob {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What tells it from any other: [`nz_onnx::format::Header::identity`].
    pub hash: u64,
}

/// What a plan takes from a base.
#[derive(Clone, Debug)]
pub struct PlanBase {
    /// Name of the data file, which lies beside the converted model.
    pub file: String,
    /// Its SHA-256.
    pub sha256: Vec<u8>,
    /// The greatest format version of its blobs.
    pub format: (u8, u8),
    /// The blobs that weights are, where they have [`super::Placement::InBase`], or that their own blobs are deltas to.
    pub blobs: BTreeMap<WeightId, BaseBlob>,
}

impl PlanBase {
    /// What the converted model says of the base.
    pub fn metadata(&self) -> [(String, String); 2] {
        [(FILE.to_string(), self.file.clone()), (SHA256.to_string(), hex(&self.sha256))]
    }
}

/// The base's data file, as `model` names it.
///
/// # Errors
/// It is missing, or is no file of the model's folder. The message says which one is wanted.
pub fn open(model: &Model) -> Result<Option<Source>> {
    let Some(file) = model.metadata(FILE) else { return Ok(None) };
    let path = path(model, file)?;
    if !path.exists() {
        return Err(Error::Usage(format!(
            "{}: its base's data file {} is missing, SHA-256 {}\nhelp: put it back into the folder",
            model.path().display(),
            path.display(),
            model.metadata(SHA256).unwrap_or("unknown")
        )));
    }
    external::check_inside(model.path(), "of the base", &path)?;
    Source::open(&path).map(Some)
}

fn path(model: &Model, file: &str) -> Result<PathBuf> {
    external::join(model.path(), file).map_err(|what| Error::corrupt(model.path(), what))
}

/// The same, read once and found to be the one that the model was converted with.
///
/// # Errors
/// As [`open`], or it is another one.
pub fn open_checked(model: &Model) -> Result<Option<Source>> {
    let Some(source) = open(model)? else { return Ok(None) };
    let (found, expected) = (source.sha256()?, model.metadata(SHA256).unwrap_or("unknown"));
    if found == expected {
        return Ok(Some(source));
    }
    Err(Error::corrupt(
        source.path(),
        format!(
            "not the base's data file that {} was converted with: SHA-256 {expected} expected, {found} found; put that \
             file back, or convert the model again with --base",
            model.path().display()
        ),
    ))
}
