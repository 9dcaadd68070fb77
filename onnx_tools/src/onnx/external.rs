//! External data: which file a tensor's bytes are in, and that it is one the model may name.

use std::io;
use std::path::{Component, Path, PathBuf};

use super::error::{Error, Result};
use super::proto::StringStringEntry;
use super::tensor::Storage;

/// The storage that the entries of `external_data` describe. Opens no file.
pub(crate) fn storage(
    model: &Path,
    tensor: &str,
    entries: &[StringStringEntry],
    expected: Option<u64>,
) -> Result<Storage> {
    let bad = |what: String| Error::corrupt(model, format!("tensor {tensor:?}: {what}"));
    let (mut location, mut offset, mut length) = (None, 0u64, None);
    for entry in entries {
        let value = entry.value.as_deref().unwrap_or_default();
        let number = || {
            let key = entry.key.as_deref().unwrap_or_default();
            value.parse::<u64>().map_err(|_| bad(format!("external data has {key} {value:?}, not a number")))
        };
        match entry.key.as_deref() {
            Some("location") => location = Some(value.to_string()),
            Some("offset") => offset = number()?,
            Some("length") => length = Some(number()?),
            _ => {}
        }
    }
    let location = location.ok_or_else(|| bad("external data names no file".to_string()))?;
    let path = join(model, &location).map_err(bad)?;
    let length = match (length, expected) {
        (Some(found), Some(expected)) if found != expected => {
            return Err(bad(format!("needs {expected} bytes, but its external data has length {found}")));
        }
        (Some(length), _) | (None, Some(length)) => length,
        (None, None) => return Err(bad("external data of a dtype without a size".to_string())),
    };
    offset
        .checked_add(length)
        .ok_or_else(|| bad(format!("external data at offset {offset} with length {length}")))?;
    Ok(Storage::External { path, location, offset, length })
}

/// `location` in the folder of `model`; an absolute path or one with `..` is refused.
pub(crate) fn join(model: &Path, location: &str) -> std::result::Result<PathBuf, String> {
    let relative = Path::new(location);
    let plain = relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    // A backslash or a colon is an ordinary character here and a way out of the folder on Windows.
    if location.is_empty() || !plain || relative.file_name().is_none() || location.contains(['\\', ':', '\0'])
    {
        return Err(format!(
            "external data location {location:?} is refused: only files in the model's folder are read"
        ));
    }
    Ok(folder(model).join(relative))
}

/// The folder that `model` is in.
pub fn folder(model: &Path) -> &Path {
    match model.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Checks that `path`, symbolic links followed, lies in the folder of `model`.
pub(crate) fn check_inside(model: &Path, tensor: &str, path: &Path) -> Result<()> {
    let find = |path: &Path| std::fs::canonicalize(path);
    let missing = |e: io::Error| {
        Error::io(path, format!("open the external data of tensor {tensor:?} of {}", model.display()), e)
    };
    let folder = find(folder(model)).map_err(missing)?;
    let real = find(path).map_err(missing)?;
    if real.starts_with(&folder) {
        return Ok(());
    }
    // A download cache links the model and its data from one folder into another: what counts then is
    // where the model itself really lies.
    if let Ok(real_model) = find(model)
        && real_model != *model
        && real.starts_with(self::folder(&real_model))
    {
        return Ok(());
    }
    Err(Error::corrupt(
        model,
        format!(
            "tensor {tensor:?}: external data file {} is refused: it is a link to {}, outside the model's folder",
            path.display(),
            real.display()
        ),
    ))
}
