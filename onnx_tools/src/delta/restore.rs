//! From a delta file and its base to the model.

use std::path::{Path, PathBuf};

use nz_onnx::codec;
use sha2::{Digest, Sha256};

use super::base::FoundBase;
use super::container::{Form, Index, Segment, StoredFile, inflate, read_index};
use crate::onnx::{Error, Result, Source, external};
use crate::pipeline::paths::OutputFiles;
use crate::report::json;
use crate::staged::{Staged, check_free, commit};

/// Restores the model in the delta file at `path` to `output`, or beside it, and its data files beside that. The base
/// is at `base`, or in the delta file's folder.
///
/// # Errors
/// The file is no delta file or damaged, the base is missing or another one, or the model cannot be written. Nothing
/// lies under the final names then, or what lay there before.
pub fn restore(
    path: &Path,
    base: Option<&Path>,
    output: Option<&Path>,
    force: bool,
) -> Result<json::Restore> {
    let output = OutputFiles::restored_from_delta(path, output)?.model;
    let source = Source::open(path)?;
    let index = read_index(&source)?;
    let targets = targets(path, &index, &output, force)?;
    let base = FoundBase::find(path, &index, base)?;
    let own: Vec<PathBuf> =
        base.paths().chain([path]).filter_map(|p| std::fs::canonicalize(p).ok()).collect();
    if let Some(target) = targets.iter().find(|t| std::fs::canonicalize(t).is_ok_and(|t| own.contains(&t))) {
        let what = "is a file that the restored model is made of\nhelp: restore to another folder";
        return Err(Error::Usage(format!("{}: {what}", target.display())));
    }
    let mut weights = 0;
    let mut written = Vec::new();
    let mut bytes = 0;
    for (file, target) in index.files.iter().zip(&targets) {
        let folder = external::folder(target);
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "make the folder", e))?;
        let mut staged = Staged::create(target)?;
        weights += restore_file(&source, &base, file, |bytes| staged.write(bytes))?;
        staged.sync()?;
        bytes += file.len;
        written.push(staged);
    }
    // The model last: what it names is there by then.
    written.rotate_left(1);
    commit(written, force)?;
    Ok(json::Restore {
        schema: "nz-onnx.restore/1",
        input: path.display().to_string(),
        output: json::Output {
            path: output.display().to_string(),
            data_path: targets.get(1).map(|data| data.display().to_string()),
            bytes,
        },
        weights,
        identical: true,
        rounded: Vec::new(),
        optimized: None,
    })
}

/// Where the files go, the model first.
fn targets(path: &Path, index: &Index, output: &Path, force: bool) -> Result<Vec<PathBuf>> {
    let Some((_, data)) = index.files.split_first() else {
        return Err(Error::corrupt(path, "it holds no model"));
    };
    let mut targets = vec![output.to_path_buf()];
    for file in data {
        let target = external::join(output, &file.name).map_err(|what| Error::corrupt(path, what))?;
        if targets.contains(&target) {
            let what = "the original has a data file of that name; name another output";
            return Err(Error::Usage(format!("{}: {what}", target.display())));
        }
        targets.push(target);
    }
    targets.iter().try_for_each(|target| check_free(target, force))?;
    Ok(targets)
}

/// Hands the bytes of one file to `sink`; the number of weights decoded for it.
///
/// # Errors
/// `sink` fails, a chunk is damaged, or the file does not have its SHA-256 in the end.
pub(super) fn restore_file(
    source: &Source,
    base: &FoundBase,
    file: &StoredFile,
    mut sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<usize> {
    let mut hash = Sha256::new();
    let (mut weights, mut len) = (0, 0);
    for segment in &file.segments {
        let bytes = segment_bytes(source, base, segment)?;
        if bytes.len() as u64 != segment.len {
            let what = format!("a segment of {} has {} bytes, not {}", file.name, bytes.len(), segment.len);
            return Err(Error::corrupt(source.path(), what));
        }
        weights += usize::from([Form::Delta, Form::Blob].contains(&segment.form()));
        hash.update(&bytes);
        len += segment.len;
        sink(&bytes)?;
    }
    if len != file.len || hash.finalize().as_slice() != file.sha256 {
        let what =
            format!("what was restored of {:?} does not have its SHA-256: the file is damaged", file.name);
        return Err(Error::corrupt(source.path(), what));
    }
    Ok(weights)
}

fn segment_bytes(source: &Source, base: &FoundBase, segment: &Segment) -> Result<Vec<u8>> {
    let bad = |what: &str| Error::corrupt(source.path(), format!("a segment {what}"));
    let codec = |e: nz_onnx::error::Error| Error::codec(source.path(), "", e);
    let of_base = || {
        let bytes = base.read(segment.base_file, &segment.base())?;
        bytes.ok_or_else(|| bad("names a base file that there is not"))
    };
    let form = Form::try_from(segment.form).map_err(|_| bad("has an unknown form"))?;
    match form {
        Form::Base => of_base(),
        Form::Plain => source.read(&segment.chunk()),
        Form::Deflate => {
            let packed = source.read(&segment.chunk())?;
            inflate(&packed, segment.len).ok_or_else(|| bad("cannot be unpacked"))
        }
        Form::Delta => {
            let blob = source.read(&segment.chunk())?;
            codec::decode_delta(&blob, &of_base()?).map_err(codec)
        }
        Form::Blob => codec::decode(&source.read(&segment.chunk())?).map_err(codec),
    }
}
