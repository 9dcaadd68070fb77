//! Names of output files, and what they must not be.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::onnx::{Error, Model, Result, Storage};
use crate::staged;

/// Ending of a converted model.
const CONVERTED: &str = ".nz.onnx";
/// Ending of a delta file.
const DELTA: &str = ".nzd";
/// Ending of a plain model.
const PLAIN: &str = ".onnx";

/// A model and the data file beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFiles {
    /// The model.
    pub model: PathBuf,
    /// Its data file, should it need one.
    pub data: PathBuf,
}

impl OutputFiles {
    /// The files that go with the model `path`: its data file has the same name and ".data".
    fn of(path: PathBuf) -> Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(Error::Usage(format!("{}: is not the name of a file", path.display())));
        };
        if name.to_str().is_none() {
            let what =
                "is not UTF-8, and a model names its data file in UTF-8\nhelp: name the output with --output";
            return Err(Error::Usage(format!("{}: {what}", path.display())));
        }
        let mut data = name.to_os_string();
        data.push(".data");
        Ok(OutputFiles { data: path.with_file_name(data), model: path })
    }

    /// What `convert` writes: as given, or `X.nz.onnx` beside `X.onnx`.
    ///
    /// # Errors
    /// The name cannot be used.
    pub fn converted(input: &Path, given: Option<&Path>) -> Result<Self> {
        OutputFiles::of(given.map_or_else(|| with_ending(input, PLAIN, CONVERTED), Path::to_path_buf))
    }

    /// What `restore` writes: as given, or `X.restored.onnx` beside `X.nz.onnx`.
    ///
    /// # Errors
    /// The name cannot be used.
    pub fn restored(input: &Path, given: Option<&Path>) -> Result<Self> {
        OutputFiles::of(
            given.map_or_else(|| with_ending(input, CONVERTED, ".restored.onnx"), Path::to_path_buf),
        )
    }

    /// What `convert --base` writes: as given, or `X.nzd` beside `X.onnx`. There is no data file.
    ///
    /// # Errors
    /// The name cannot be used.
    pub fn delta(input: &Path, given: Option<&Path>) -> Result<Self> {
        OutputFiles::of(given.map_or_else(|| with_ending(input, PLAIN, DELTA), Path::to_path_buf))
    }

    /// What `restore` writes of a delta file: as given, or `X.restored.onnx` beside `X.nzd`.
    ///
    /// # Errors
    /// The name cannot be used.
    pub fn restored_from_delta(input: &Path, given: Option<&Path>) -> Result<Self> {
        OutputFiles::of(given.map_or_else(|| with_ending(input, DELTA, ".restored.onnx"), Path::to_path_buf))
    }

    /// Refuses names that exist, unless `force`, and those of the input's own files in any case.
    ///
    /// # Errors
    /// One of these.
    pub fn check(&self, input: &Model, force: bool) -> Result<()> {
        self.check_model(input, force)?;
        check_target(&self.data, input, force)
    }

    /// As [`OutputFiles::check`], where the data file has another name, or there is none.
    ///
    /// # Errors
    /// As there.
    pub fn check_model(&self, input: &Model, force: bool) -> Result<()> {
        check_target(&self.model, input, force)
    }
}

fn check_target(target: &Path, input: &Model, force: bool) -> Result<()> {
    let external = input.weights().iter().filter_map(|weight| match &weight.storage {
        Storage::External { path, .. } => Some(path.as_path()),
        _ => None,
    });
    let mut inputs: Vec<&Path> = external.collect();
    inputs.dedup();
    inputs.push(input.path());
    if inputs.iter().any(|path| same_file(path, target)) {
        return Err(Error::Usage(format!(
            "{}: is a file of the model that is read\nhelp: give another --output",
            target.display()
        )));
    }
    staged::check_free(target, force)
}

/// `path` with one ending in place of another; an ending that it does not have is not taken away.
fn with_ending(path: &Path, old: &str, new: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let keep = match name.len().checked_sub(old.len()) {
        Some(n) if n > 0 && name[n..].eq_ignore_ascii_case(old.as_bytes()) => n,
        _ => name.len(),
    };
    // A name that is not UTF-8 keeps its ending; for a model it is refused later.
    let stem = std::str::from_utf8(&name[..keep]).map(OsString::from);
    let mut renamed = stem.unwrap_or_else(|_| path.file_name().unwrap_or_default().to_os_string());
    renamed.push(new);
    path.with_file_name(renamed)
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::canonicalize(a), fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b || same_inode(&a, &b),
        _ => false,
    }
}

#[cfg(unix)]
fn same_inode(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    id(a).is_some() && id(a) == id(b)
}

#[cfg(not(unix))]
fn same_inode(_: &Path, _: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_input() {
        let name = |input: &str| OutputFiles::converted(Path::new(input), None).expect("a name");
        assert_eq!(name("a/m.onnx").model, Path::new("a/m.nz.onnx"));
        assert_eq!(name("a/m.onnx").data, Path::new("a/m.nz.onnx.data"));
        assert_eq!(name("M.ONNX").model, Path::new("M.nz.onnx"));
        assert_eq!(name("model").model, Path::new("model.nz.onnx"));
        assert_eq!(name(".onnx").model, Path::new(".onnx.nz.onnx"));
        let back = OutputFiles::restored(Path::new("a/m.nz.onnx"), None).expect("a name");
        assert_eq!(back.model, Path::new("a/m.restored.onnx"));
        assert!(OutputFiles::converted(Path::new("m.onnx"), Some(Path::new(".."))).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_not_utf_8_are_not_made_up() {
        use std::os::unix::ffi::OsStrExt;
        let input = Path::new(std::ffi::OsStr::from_bytes(b"a\xff.onnx"));
        let error = OutputFiles::converted(input, None).expect_err("another name was made up");
        assert!(error.to_string().contains("--output"), "{error}");
        assert!(OutputFiles::converted(input, Some(Path::new("a.nz.onnx"))).is_ok());
    }
}
