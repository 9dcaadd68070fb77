//! Makes a delta file.

use std::path::{Path, PathBuf};

use nz_onnx::codec::{self, EncodeOptions, decode_delta, encode_delta};
use nz_onnx::format::{Header, TensorSpec};

use super::base::Base;
use super::container::{Form, Index, Segment, StoredFile, deflate, head, inflate, tail};
use super::parts::{Part, files};
use super::shared::delta_name;
use crate::onnx::{Error, Model, Result, Weight};
use crate::pipeline::paths::OutputFiles;
use crate::report::{Progress, delta as report, json};
use crate::staged::{Staged, commit};

/// Fewer bytes are not worth a segment of their own that refers to the base.
const LEAST: usize = 64;

/// How to make a delta file.
#[derive(Debug, Clone)]
pub struct DeltaOptions {
    /// The model to which the delta is.
    pub base: PathBuf,
    /// The file to write; beside the input if none.
    pub output: Option<PathBuf>,
    /// Replace a file that exists.
    pub force: bool,
    /// Write nothing.
    pub dry_run: bool,
}

/// Writes the model at `path` as what tells it from its base.
///
/// # Errors
/// Whatever it is, nothing lies under the final name then, or what lay there before.
pub fn convert(path: &Path, options: &DeltaOptions, progress: &Progress) -> Result<report::Document> {
    let output = OutputFiles::delta(path, options.output.as_deref())?.model;
    let model = Model::open(path)?;
    if !options.dry_run {
        OutputFiles { data: output.clone(), model: output.clone() }.check(&model, options.force)?;
    }
    let base = Base::open(&options.base)?;
    let same_file = |file: &super::parts::File| {
        std::fs::canonicalize(file.source.path())
            .ok()
            .is_some_and(|path| std::fs::canonicalize(&output).ok() == Some(path))
    };
    if base.files.iter().any(same_file) {
        return Err(Error::Usage(format!(
            "{}: is a file of the base\nhelp: give another --output",
            output.display()
        )));
    }
    let files = files(&model)?;
    let total = files.iter().map(|file| file.source.len()).sum();
    let mut step = progress.step("encoding", total);
    let mut writer = Writer { staged: None, position: 0 };
    if !options.dry_run {
        writer.staged = Some(Staged::create(&output)?);
    }
    writer.write(&head())?;
    let tool = format!("nz-onnx {}", nz_onnx::VERSION);
    let mut index = Index { tool, base: base.described.clone(), files: Vec::new() };
    let mut tensors = Vec::new();
    for file in &files {
        let mut segments = Vec::new();
        for part in &file.parts {
            let bytes = file.source.read(&part.range)?;
            let weight = part.weight.map(|id| model.weight(id));
            let (segment, chunk, encoding) = encode(&model, &base, part, weight, bytes)?;
            if let Some(weight) = weight {
                progress.note(&format!("{}: {encoding}, {} -> {}", weight.name, weight.bytes, chunk.len()));
                tensors.push(report::Tensor::new(weight, chunk.len() as u64, encoding));
            }
            segments.push(Segment { chunk: writer.position, chunk_len: chunk.len() as u64, ..segment });
            writer.write(&chunk)?;
            step.advance(part.range.end - part.range.start);
        }
        index.files.push(StoredFile {
            name: file.name.clone(),
            len: file.source.len(),
            sha256: file.source.sha256_bytes()?,
            segments,
        });
    }
    writer.write(&tail(&index, writer.position))?;
    let bytes = writer.position;
    let input = json::Input {
        path: path.display().to_string(),
        bytes: model.source().len(),
        sha256: model.sha256()?.to_string(),
    };
    let base = json::Input {
        path: options.base.display().to_string(),
        bytes: base.files[0].source.len(),
        sha256: crate::onnx::source::hex(&base.described[0].sha256),
    };
    if let Some(staged) = writer.staged {
        staged.sync()?;
        commit(vec![staged], options.force)?;
    }
    let output = (!options.dry_run).then(|| output.display().to_string());
    Ok(report::Document::new(input, base, output, total, bytes, tensors))
}

/// How one part is stored: its segment, but for where the chunk is, the chunk, and the way in words.
fn encode(
    model: &Model,
    base: &Base,
    part: &Part,
    weight: Option<&Weight>,
    bytes: Vec<u8>,
) -> Result<(Segment, Vec<u8>, &'static str)> {
    let segment = Segment {
        len: part.range.end - part.range.start,
        weight: weight.map_or(String::new(), |weight| weight.name.clone()),
        ..Default::default()
    };
    if bytes.len() >= LEAST
        && let Some(place) = base.same(&bytes)
    {
        let segment =
            Segment { form: Form::Base as i32, base_file: place.file, base: place.offset, ..segment.clone() };
        return Ok((segment, Vec::new(), "base"));
    }
    let mut ways = Vec::new();
    if let Some((weight, dtype)) = weight.and_then(|weight| Some((weight, weight.dtype()?))) {
        let failed = |e| Error::codec(model.path(), &weight.name, e);
        if let Some(place) = base.weight(weight) {
            let of_base = base.read(place, segment.len)?;
            let blob = encode_delta(&bytes, &of_base, dtype, &weight.shape).map_err(failed)?;
            if decode_delta(&blob, &of_base).map_err(failed)? != bytes {
                return Err(wrong(model, weight));
            }
            let name = delta_name(&Header::parse(&blob).map_err(failed)?).unwrap_or("delta");
            let (base_file, base) = (place.file, place.offset);
            ways.push((Segment { form: Form::Delta as i32, base_file, base, ..segment.clone() }, blob, name));
        }
        let spec = TensorSpec::row_major(dtype, &weight.shape);
        let blob = codec::encode(&bytes, &spec, &EncodeOptions::default()).map_err(failed)?;
        if codec::decode(&blob).map_err(failed)? != bytes {
            return Err(wrong(model, weight));
        }
        ways.push((Segment { form: Form::Blob as i32, ..segment.clone() }, blob, "float-split lossless"));
    } else {
        let packed = deflate(&bytes);
        if inflate(&packed, segment.len).is_some_and(|back| back == bytes) {
            ways.push((Segment { form: Form::Deflate as i32, ..segment.clone() }, packed, "deflate"));
        }
    }
    ways.push((Segment { form: Form::Plain as i32, ..segment }, bytes, "kept"));
    // The first of equals.
    let best = ways.into_iter().min_by_key(|(_, chunk, _)| chunk.len());
    best.ok_or_else(|| Error::Internal("a part without a form".to_string()))
}

fn wrong(model: &Model, weight: &Weight) -> Error {
    let path = model.path().display();
    Error::Internal(format!("{path}: tensor {:?} does not decode to its source", weight.name))
}

/// Writes, or only counts.
struct Writer {
    staged: Option<Staged>,
    position: u64,
}

impl Writer {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.position += bytes.len() as u64;
        self.staged.as_mut().map_or(Ok(()), |staged| staged.write(bytes))
    }
}
