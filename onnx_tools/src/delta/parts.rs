//! A model's files, cut at the ends of its weights.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::onnx::{Error, Model, Result, Source, Storage, WeightId, external};

/// What lies between weights is cut in pieces of so many bytes: they are worked on in memory.
const PIECE: u64 = 8 << 20;

/// A file of a model.
pub(super) struct File {
    pub source: Source,
    /// The model's own name, or the location by which it calls an external data file.
    pub name: String,
    /// From the file's start to its end.
    pub parts: Vec<Part>,
}

/// Some bytes of a file: the elements of a weight, or what lies between weights.
#[derive(Clone)]
pub(super) struct Part {
    pub range: Range<u64>,
    pub weight: Option<WeightId>,
}

/// Where weights lie in a file.
type Places = Vec<(Range<u64>, WeightId)>;

/// The files of `model`: its own, then its external data files by name.
///
/// # Errors
/// A file cannot be read, is too short for what the model says is in it, or has a name that is not UTF-8.
pub(super) fn files(model: &Model) -> Result<Vec<File>> {
    if let Some(tensor) = model.stray_external() {
        let what =
            format!("tensor {tensor:?} has external data but is neither an initializer nor a Constant");
        return Err(Error::unsupported(model.path(), what));
    }
    model.check_external_data()?;
    let name = model.path().file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| {
        Error::Usage(format!("{}: its name is not UTF-8; rename the file", model.path().display()))
    })?;
    let inside = model.weights().iter().filter_map(|weight| match &weight.storage {
        Storage::Plain(range) => Some((range.clone(), weight.id)),
        _ => None,
    });
    let mut files = vec![file(model.path(), name, inside.collect())?];
    let mut data: BTreeMap<&String, (&PathBuf, Places)> = BTreeMap::new();
    for weight in model.weights() {
        if let Storage::External { path, location, offset, length } = &weight.storage {
            let range = *offset..offset + length;
            data.entry(location).or_insert_with(|| (path, Vec::new())).1.push((range, weight.id));
        }
    }
    for (location, (path, weights)) in data {
        // Two names of one file: each is restored for itself.
        external::check_inside(model.path(), location, path)?;
        files.push(file(path, location, weights)?);
    }
    Ok(files)
}

fn file(path: &Path, name: &str, mut weights: Places) -> Result<File> {
    let source = Source::open(path)?;
    weights.sort_by_key(|(range, id)| (range.start, *id));
    let mut parts: Vec<Part> = Vec::new();
    let mut at = 0;
    let gap = |parts: &mut Vec<Part>, range: Range<u64>| {
        for start in range.clone().step_by(PIECE as usize) {
            parts.push(Part { range: start..range.end.min(start + PIECE), weight: None });
        }
    };
    for (range, id) in weights {
        // Of weights that overlap the first one has the bytes.
        if range.start < at || range.is_empty() {
            continue;
        }
        gap(&mut parts, at..range.start);
        at = range.end;
        parts.push(Part { range, weight: Some(id) });
    }
    gap(&mut parts, at..source.len());
    Ok(File { source, name: name.to_string(), parts })
}
