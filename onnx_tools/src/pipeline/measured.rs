//! What calibration has measured, kept in a file: another size of the same model need not wait for it again.
//!
//! What an error of a weight does to the outputs depends on the model, the inputs, ONNX Runtime and the error. The file is
//! of one of each of the first three, and says of each weight by which errors it was measured. What is asked for of another
//! model, other inputs or another version makes it anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::calibrate::Measured;
use super::replica::Replica;
use crate::onnx::source::hex;
use crate::onnx::{Error, Model, Result, Weight};
use crate::staged::{self, Staged};

const SCHEMA: &str = "nz-onnx.calibration/1";

#[derive(Serialize, Deserialize)]
struct Document {
    schema: String,
    /// SHA-256 of model, inputs and version.
    of: String,
    weights: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    /// SHA-256 of the rounded weights that it was measured by.
    by: String,
    /// Sensitivity and doubt, in as many digits as tell them; none if nothing could be compared.
    found: Option<[String; 2]>,
}

/// The file, and what is known.
pub(super) struct Kept {
    path: PathBuf,
    document: Document,
}

impl Kept {
    /// What the file at `path` has of this model and these inputs; nothing if it is of others, or not there.
    ///
    /// # Errors
    /// It is there and no such file, or the model cannot be read.
    pub fn open(path: &Path, model: &Model, replica: &Replica) -> Result<Kept> {
        let of = digest(model, replica)?;
        let empty = Document { schema: SCHEMA.to_string(), of: of.clone(), weights: BTreeMap::new() };
        let document = match fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => empty,
            Err(e) => return Err(Error::io(path, "read", e)),
            Ok(bytes) => {
                let read = serde_json::from_slice::<Document>(&bytes).ok();
                // Nobody's other file is to be written over.
                let document = read.filter(|document| document.schema == SCHEMA).ok_or_else(|| {
                    Error::corrupt(path, format!("no file of what was measured ({SCHEMA})"))
                })?;
                if document.of == of { document } else { empty }
            }
        };
        Ok(Kept { path: path.to_path_buf(), document })
    }

    /// What was found by rounding the weights `weights`, which are the same, to each of `probes`.
    pub fn find(&self, weights: &[&Weight], probes: &[&[u8]]) -> Option<Option<Measured>> {
        let entry = self.document.weights.get(&key(weights)).filter(|entry| entry.by == hash(probes))?;
        match &entry.found {
            None => Some(None),
            Some([sensitivity, doubt]) => {
                Some(Some(Measured { sensitivity: sensitivity.parse().ok()?, doubt: doubt.parse().ok()? }))
            }
        }
    }

    /// Remembers what was found.
    pub fn add(&mut self, weights: &[&Weight], probes: &[&[u8]], found: Option<Measured>) {
        let found = found.map(|m| [format!("{:e}", m.sensitivity), format!("{:e}", m.doubt)]);
        self.document.weights.insert(key(weights), Entry { by: hash(probes), found });
    }

    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.document)
            .map_err(|e| Error::Internal(format!("what was measured cannot be written: {e}")))?;
        let mut file = Staged::create(&self.path)?;
        file.write(text.as_bytes())?;
        file.write(b"\n")?;
        staged::commit(vec![file], true)
    }
}

/// A weight's name may be that of another in a body.
fn key(weights: &[&Weight]) -> String {
    weights.iter().map(|weight| format!("{}:{}", weight.id.0, weight.name)).collect::<Vec<_>>().join(" ")
}

fn hash(parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    parts.iter().for_each(|part| add(&mut digest, part));
    hex(&digest.finalize())
}

/// With its length, so that no two series of parts are the same.
fn add(digest: &mut Sha256, part: &[u8]) {
    digest.update((part.len() as u64).to_le_bytes());
    digest.update(part);
}

fn digest(model: &Model, replica: &Replica) -> Result<String> {
    let mut digest = Sha256::new();
    add(&mut digest, SCHEMA.as_bytes());
    add(&mut digest, env!("CARGO_PKG_VERSION").as_bytes());
    add(&mut digest, replica.version().as_bytes());
    add(&mut digest, model.sha256()?.as_bytes());
    for weight in model.weights().iter().filter(|weight| weight.is_external()) {
        add(&mut digest, &model.read_weight(weight)?);
    }
    for inputs in &replica.seen {
        for (name, array) in inputs {
            add(&mut digest, name.as_bytes());
            add(&mut digest, format!("{:?} {:?}", array.dtype, array.shape).as_bytes());
            add(&mut digest, &array.bytes);
        }
    }
    Ok(hex(&digest.finalize()))
}
