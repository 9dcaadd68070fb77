//! The base: where its bytes are, and whether it is the right one.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::container::{BaseFile, Index};
use super::parts::{File, files};
use crate::onnx::source::hex;
use crate::onnx::{Error, Model, Result, Source, Weight, external};

/// A stretch of one of the base's files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub file: u32,
    pub offset: u64,
}

/// A base to make a delta to.
pub(super) struct Base {
    pub files: Vec<File>,
    pub described: Vec<BaseFile>,
    /// Parts by content.
    contents: HashMap<u128, Place>,
    /// Weights by name, dtype and shape.
    weights: HashMap<(String, i32, Vec<u64>), Place>,
    seed: u64,
}

impl Base {
    /// Reads the base at `path` once.
    pub fn open(path: &Path) -> Result<Base> {
        let model = Model::open(path)?;
        let files = files(&model)?;
        // A seed that nobody can know beforehand: contents cannot be made to collide on purpose.
        let seed = RandomState::new().hash_one(0u64);
        let (mut contents, mut weights) = (HashMap::new(), HashMap::new());
        for (index, file) in files.iter().enumerate() {
            for part in &file.parts {
                let bytes = file.source.read(&part.range)?;
                let place = Place { file: index as u32, offset: part.range.start };
                contents.entry(xxh3_128_with_seed(&bytes, seed)).or_insert(place);
                if let Some(id) = part.weight {
                    weights.entry(key(model.weight(id))).or_insert(place);
                }
            }
        }
        let described = files.iter().map(describe).collect::<Result<_>>()?;
        Ok(Base { files, described, contents, weights, seed })
    }

    /// Where the base has the same bytes.
    pub fn same(&self, bytes: &[u8]) -> Option<Place> {
        self.contents.get(&xxh3_128_with_seed(bytes, self.seed)).copied()
    }

    /// Where the base has the weight of the same name, dtype and shape.
    pub fn weight(&self, weight: &Weight) -> Option<Place> {
        self.weights.get(&key(weight)).copied()
    }

    /// `len` bytes of the base.
    pub fn read(&self, place: Place, len: u64) -> Result<Vec<u8>> {
        self.files[place.file as usize].source.read(&(place.offset..place.offset + len))
    }
}

fn key(weight: &Weight) -> (String, i32, Vec<u64>) {
    (weight.name.clone(), weight.onnx_dtype, weight.shape.clone())
}

fn describe(file: &File) -> Result<BaseFile> {
    let sha256 = file.source.sha256_bytes()?;
    Ok(BaseFile { name: file.name.clone(), len: file.source.len(), sha256 })
}

/// The base's files, found to be those that the delta file was made with.
pub(super) struct FoundBase {
    sources: Vec<Source>,
}

impl FoundBase {
    /// Takes the base at `given`, or looks for it beside the delta file at `delta`: under its name, or else under any.
    pub fn find(delta: &Path, index: &Index, given: Option<&Path>) -> Result<FoundBase> {
        let Some((model, data)) = index.base.split_first() else {
            return Err(Error::corrupt(delta, "it names no base"));
        };
        let model_path = match given {
            Some(path) => path.to_path_buf(),
            None => beside(delta, model)?,
        };
        let mut sources = vec![checked(delta, &model_path, model)?];
        for file in data {
            let path = external::join(&model_path, &file.name).map_err(|what| Error::corrupt(delta, what))?;
            if !path.exists() {
                return Err(Error::Usage(format!(
                    "{}: the base {} needs its data file {}, SHA-256 {}, which is not there",
                    delta.display(),
                    model_path.display(),
                    path.display(),
                    hex(&file.sha256)
                )));
            }
            sources.push(checked(delta, &path, file)?);
        }
        Ok(FoundBase { sources })
    }

    /// Bytes of the base.
    pub fn read(&self, file: u32, range: &Range<u64>) -> Result<Option<Vec<u8>>> {
        self.sources.get(file as usize).map(|source| source.read(range)).transpose()
    }

    /// The base's files.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(Source::path)
    }
}

/// The base's model in the folder of the delta file.
fn beside(delta: &Path, model: &BaseFile) -> Result<PathBuf> {
    let named = external::join(delta, &model.name).map_err(|what| Error::corrupt(delta, what))?;
    if named.exists() && Source::open(&named)?.sha256_bytes()? == model.sha256 {
        return Ok(named);
    }
    // Renamed, perhaps: any file of that length and hash is it.
    let folder = external::folder(delta);
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "list the folder", e))?;
    let mut others: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.metadata().is_ok_and(|m| m.is_file() && m.len() == model.len))
        .map(|entry| entry.path())
        .collect();
    others.sort();
    for path in others {
        if Source::open(&path)?.sha256_bytes()? == model.sha256 {
            return Ok(path);
        }
    }
    if named.exists() {
        // The check of what was found says what is wrong with it.
        return Ok(named);
    }
    Err(Error::Usage(format!(
        "{}: its base {:?}, SHA-256 {}, is not in {}; name it with --base",
        delta.display(),
        model.name,
        hex(&model.sha256),
        folder.display()
    )))
}

fn checked(delta: &Path, path: &Path, expected: &BaseFile) -> Result<Source> {
    let source = Source::open(path)?;
    let found = source.sha256_bytes()?;
    if found == expected.sha256 {
        return Ok(source);
    }
    Err(Error::Usage(format!(
        "{} is not the base of {}: expected {:?} with SHA-256 {}, found SHA-256 {}; name the right one with --base",
        path.display(),
        delta.display(),
        expected.name,
        hex(&expected.sha256),
        hex(&found)
    )))
}
