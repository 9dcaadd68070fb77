//! What is in a delta file, and whether it is whole.

use std::path::Path;

use nz_onnx::format::{Header, payload_hash};

use super::base::FoundBase;
use super::container::{BaseFile, Form, Segment, StoredFile, read_index};
use super::restore::restore_file;
use super::shared::delta_name;
use crate::onnx::source::hex;
use crate::onnx::{Error, Result, Source};
use crate::report::Progress;
use crate::report::delta::{File, Inspect, Part, Verified, Verify};

/// Looks at the delta file at `path`; the base is not needed.
///
/// # Errors
/// It cannot be read, or its index is damaged. A damaged chunk is no error here.
pub fn inspect(path: &Path) -> Result<Inspect> {
    let source = Source::open(path)?;
    let index = read_index(&source)?;
    let mut parts = Vec::new();
    for (number, file) in index.files.iter().enumerate() {
        for segment in &file.segments {
            parts.push(part(&source, number, segment)?);
        }
    }
    let base = |file: &BaseFile| described(&file.name, file.len, &file.sha256);
    let stored = |file: &StoredFile| described(&file.name, file.len, &file.sha256);
    Ok(Inspect {
        schema: "nz-onnx.inspect-delta/1",
        path: path.display().to_string(),
        bytes: source.len(),
        tool: index.tool.clone(),
        base: index.base.iter().map(base).collect(),
        files: index.files.iter().map(stored).collect(),
        parts,
    })
}

fn described(name: &str, bytes: u64, sha256: &[u8]) -> File {
    File { name: name.to_string(), bytes, sha256: hex(sha256) }
}

fn part(source: &Source, file: usize, segment: &Segment) -> Result<Part> {
    let mut part = Part {
        file,
        weight: Some(segment.weight.clone()).filter(|name| !name.is_empty()),
        dtype: None,
        shape: None,
        bytes_before: segment.len,
        bytes_after: segment.chunk_len,
        encoding: "unknown".to_string(),
        checksum_ok: None,
    };
    let Ok(form) = Form::try_from(segment.form) else { return Ok(part) };
    part.encoding = match form {
        Form::Plain => "kept",
        Form::Deflate => "deflate",
        Form::Base => "base",
        Form::Delta => "delta",
        Form::Blob => "float-split lossless",
    }
    .to_string();
    if form == Form::Base {
        part.bytes_after = 0;
    }
    if matches!(form, Form::Delta | Form::Blob) {
        let blob = source.read(&segment.chunk())?;
        match Header::parse(&blob) {
            Ok(header) => {
                part.dtype = Some(header.spec.dtype.name());
                part.encoding = delta_name(&header).map_or(part.encoding, str::to_string);
                part.checksum_ok =
                    Some(payload_hash(&blob[header.payload_offset()..]) == header.payload_hash);
                part.shape = Some(header.spec.shape);
            }
            Err(_) => part.checksum_ok = Some(false),
        }
    }
    Ok(part)
}

/// Checks every hash of the delta file at `path`, and that restoring would give what it states. Nothing is written. The
/// base is at `base`, or looked for in the file's folder. What is wrong is in the document.
///
/// # Errors
/// The file or its index cannot be read, or the base is missing or another one.
pub fn verify(path: &Path, base: Option<&Path>, progress: &Progress) -> Result<Verify> {
    let source = Source::open(path)?;
    let index = read_index(&source)?;
    if index.files.is_empty() {
        return Err(Error::corrupt(path, "it holds no model"));
    }
    let base = FoundBase::find(path, &index, base)?;
    let mut step = progress.step("checking", index.files.iter().map(|file| file.len).sum());
    let mut files = Vec::new();
    for file in &index.files {
        let restored = restore_file(&source, &base, file, |bytes| {
            step.advance(bytes.len() as u64);
            Ok(())
        });
        let problem = match restored {
            Ok(_) => None,
            Err(error @ (Error::Corrupt { .. } | Error::Usage(_))) => Some(error.to_string()),
            Err(error) => return Err(error),
        };
        files.push(Verified { file: described(&file.name, file.len, &file.sha256), problem });
    }
    let base_path = base.paths().next().map(|path| path.display().to_string());
    Ok(Verify {
        schema: "nz-onnx.verify-delta/1",
        path: path.display().to_string(),
        base: base_path,
        ok: files.iter().all(|file| file.problem.is_none()),
        files,
    })
}
