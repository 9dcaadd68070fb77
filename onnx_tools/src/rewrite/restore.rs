//! Back from a converted model to the original.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use nz_onnx::codec::{Decoder, DeltaDecoder, check_base};
use sha2::{Digest, Sha256};

use super::base;
use super::fold;
use super::recipe::{Content, Form, Recipe, StoredBlob, StoredCopy, StoredFile, StoredSegment, StoredTensor};
use crate::onnx::source::hex;
use crate::onnx::wire::put_varint;
use crate::onnx::{Error, Model, Result, Source, external};
use crate::staged::{Staged, commit};

/// What was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    /// How close it is to the original.
    pub outcome: Outcome,
    /// Weights that were decoded.
    pub weights: usize,
    /// Names of those that had been rounded.
    pub rounded: Vec<String>,
    /// The files written, the model last.
    pub files: Vec<PathBuf>,
}

/// How close a restored model is to the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The model's file has the original's SHA-256, and every weight its own bits.
    ByteIdentical,
    /// All bytes but the weights' are the original's; some weights had been rounded.
    SameGraphRoundedWeights,
}

/// Writes the original of the model at `converted` to `out`, and its external data files, if it had any,
/// beside that under the names that the original calls them by. Existing files are replaced only if
/// `overwrite`. Everything is written under other names first and checked.
pub fn restore(converted: &Path, out: &Path, overwrite: bool) -> Result<Restored> {
    let model = Model::open(converted)?;
    let recipe = Recipe::read(&model)?;
    let stored = &recipe.stored;
    let targets = targets(&model, &recipe, out, overwrite)?;
    let mut kitchen = Kitchen::new(&model, &recipe)?;

    let mut written = Vec::new();
    for (file, path) in stored.files.iter().zip(&targets) {
        written.push(kitchen.data_file(file, path)?);
    }
    let mut target = Target::create(out)?;
    let (mut whole, mut skeleton) = (Sha256::new(), Sha256::new());
    for segment in &stored.segments {
        let is_weight = matches!(segment.content, Some(Content::Tensor(_)));
        kitchen.segment(segment, &mut |chunk| {
            whole.update(chunk);
            if !is_weight {
                skeleton.update(chunk);
            }
            target.write(chunk)
        })?;
    }
    let changed =
        |what: &str| Error::corrupt(converted, format!("{what}: the model was changed since its conversion"));
    if target.len != stored.source_len || skeleton.finalize().as_slice() != stored.skeleton_sha256 {
        return Err(changed("what was restored is not the original graph"));
    }
    let outcome = if kitchen.rounded.is_empty() {
        if model.metadata("nz.source_sha256") != Some(&hex(&whole.finalize())) {
            return Err(changed("what was restored does not have the original's SHA-256"));
        }
        Outcome::ByteIdentical
    } else {
        Outcome::SameGraphRoundedWeights
    };
    written.push(target.finish()?);
    commit(written, overwrite)?;
    let files = targets.into_iter().chain([out.to_path_buf()]).collect();
    Ok(Restored {
        outcome,
        weights: stored.blobs.len(),
        rounded: kitchen.rounded.into_iter().collect(),
        files,
    })
}

/// Where the data files go; fails where one would replace a file that it must not.
fn targets(model: &Model, recipe: &Recipe, out: &Path, overwrite: bool) -> Result<Vec<PathBuf>> {
    let data = external::join(model.path(), &recipe.stored.data_file)
        .map_err(|what| Error::corrupt(model.path(), what))?;
    let mut targets = Vec::new();
    for file in &recipe.stored.files {
        let path = external::join(out, &file.location).map_err(|what| Error::corrupt(model.path(), what))?;
        targets.push(path);
    }
    let base = base::open(model)?.map(|source| source.path().to_path_buf());
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    for path in targets.iter().map(PathBuf::as_path).chain([out]) {
        let Some(found) = real(path) else { continue };
        let mut own = [model.path(), &data].into_iter().chain(base.as_deref());
        let own = own.any(|own| real(own).as_ref() == Some(&found));
        if own {
            return Err(Error::Usage(format!(
                "{}: restoring would replace the converted model itself; restore to another folder",
                path.display()
            )));
        }
        if !overwrite {
            return Err(Error::Usage(format!(
                "{} exists; name another output, or replace it with --force",
                path.display()
            )));
        }
    }
    let distinct: BTreeSet<&Path> = targets.iter().map(PathBuf::as_path).chain([out]).collect();
    if distinct.len() != targets.len() + 1 {
        return Err(Error::Usage(format!(
            "{}: the original has a data file of that name; name another output",
            out.display()
        )));
    }
    Ok(targets)
}

/// Carries out a recipe.
struct Kitchen<'a> {
    model: &'a Model,
    recipe: &'a Recipe,
    data: Option<Source>,
    base: Option<Source>,
    rounded: BTreeSet<String>,
}

/// Takes the next bytes of a file.
type Sink<'s> = &'s mut dyn FnMut(&[u8]) -> Result<()>;

impl<'a> Kitchen<'a> {
    fn new(model: &'a Model, recipe: &'a Recipe) -> Result<Self> {
        let stored = &recipe.stored;
        let mut hash = Sha256::new();
        if stored.prefix_len <= model.source().len() {
            model.source().stream(&(0..stored.prefix_len), |chunk| {
                hash.update(chunk);
                Ok(())
            })?;
        }
        if hash.finalize().as_slice() != stored.prefix_sha256 {
            return Err(Error::corrupt(
                model.path(),
                "the model was changed since its conversion, so the original cannot be restored from it",
            ));
        }
        let from_data = |s: &StoredSegment| matches!(&s.content, Some(Content::Copy(c)) if c.in_data);
        let parts = stored.files.iter().flat_map(|f| &f.parts).filter_map(|p| p.segment.as_ref());
        let data = if stored.blobs.iter().any(|b| b.in_data) || parts.into_iter().any(from_data) {
            let path = external::join(model.path(), &stored.data_file)
                .map_err(|what| Error::corrupt(model.path(), what))?;
            external::check_inside(model.path(), "of the weights", &path)?;
            Some(Source::open(&path)?)
        } else {
            None
        };
        let base = base::open_checked(model)?;
        Ok(Kitchen { model, recipe, data, base, rounded: BTreeSet::new() })
    }

    fn file(&self, in_data: bool) -> Result<&Source> {
        match &self.data {
            Some(data) if in_data => Ok(data),
            None if in_data => Err(self.bad("it names a data file that it does not have")),
            _ => Ok(self.model.source()),
        }
    }

    fn bad(&self, what: &str) -> Error {
        Error::corrupt(self.model.path(), format!("metadata {}: {what}", super::recipe::KEY))
    }

    /// Hands the bytes of a segment to `sink`.
    fn segment(&mut self, segment: &StoredSegment, sink: Sink<'_>) -> Result<()> {
        match &segment.content {
            Some(Content::Copy(copy)) => self.copy(copy, sink),
            Some(Content::Literal(bytes)) => sink(bytes),
            Some(Content::Tensor(tensor)) => sink(&self.tensor(tensor)?),
            None => Err(self.bad("a segment is empty")),
        }
    }

    fn copy(&self, copy: &StoredCopy, sink: Sink<'_>) -> Result<()> {
        let source = self.file(copy.in_data)?;
        let end = copy.offset.checked_add(copy.len).filter(|&end| end <= source.len()).ok_or_else(|| {
            let what = format!("{} bytes at {} wanted, it has {}", copy.len, copy.offset, source.len());
            Error::corrupt(source.path(), what)
        })?;
        let mut hash = Sha256::new();
        source.stream(&(copy.offset..end), |chunk| {
            if !copy.sha256.is_empty() {
                hash.update(chunk);
            }
            sink(chunk)
        })?;
        if !copy.sha256.is_empty() && hash.finalize().as_slice() != copy.sha256 {
            let what = format!("the bytes from {} on were changed since the conversion", copy.offset);
            return Err(Error::corrupt(source.path(), what));
        }
        Ok(())
    }

    /// The elements of a blob in the form that the original has them in.
    fn tensor(&mut self, tensor: &StoredTensor) -> Result<Vec<u8>> {
        let blob = usize::try_from(tensor.blob).ok().and_then(|i| self.recipe.stored.blobs.get(i));
        let blob = blob.ok_or_else(|| self.bad("it names a blob that it does not have"))?;
        let (elements, lossless) = self.elements(blob)?;
        let form = Form::try_from(tensor.form).map_err(|_| self.bad("a tensor has an unknown form"))?;
        let out = match form {
            Form::Plain => elements,
            Form::TaggedFloats => {
                elements.chunks(4).flat_map(|e| std::iter::once(&0x25).chain(e)).copied().collect()
            }
            Form::Varints => varints(&elements, false, tensor.len),
            Form::TaggedVarints => varints(&elements, true, tensor.len),
        };
        if out.len() as u64 != tensor.len {
            let what = format!(
                "tensor {:?}: {} bytes where the original has {}; its weights, rounded, do not fit there",
                blob.name,
                out.len(),
                tensor.len
            );
            return Err(Error::unsupported(self.model.path(), what));
        }
        let name = blob.name.clone();
        if !lossless {
            self.rounded.insert(name);
        }
        Ok(out)
    }

    /// The elements of a weight, and whether they are the original's.
    fn elements(&self, blob: &StoredBlob) -> Result<(Vec<u8>, bool)> {
        if let Some(constant) = blob.constant.and_then(|constant| constant.read()) {
            let stored = constant.bytes(self.file(blob.in_data)?, blob.offset, blob.len)?;
            let elements = fold::decode(&stored, constant.how, constant.scales);
            let elements = elements.ok_or_else(|| self.bad("a constant has another size than it should"))?;
            return Ok((elements, constant.exact));
        }
        let read = |source: &Source, offset: u64, len: u64| {
            let end = offset.checked_add(len).ok_or_else(|| self.bad("a blob is too long"))?;
            source.read(&(offset..end))
        };
        let of_base = match (&self.base, blob.base_len) {
            (_, 0) => None,
            (Some(source), len) => Some((source, read(source, blob.base_offset, len)?)),
            (None, _) => return Err(self.bad("it names a base that it does not have")),
        };
        let own = match blob.is_in_base() {
            true => None,
            false => {
                let source = self.file(blob.in_data)?;
                Some((source, read(source, blob.offset, blob.len)?))
            }
        };
        match (own, of_base) {
            (Some((source, own)), Some((_, base))) => {
                let codec = |e| Error::codec(source.path(), &blob.name, e);
                let elements = DeltaDecoder::open(&own, &base).and_then(|d| d.decode_bytes(&own, &base));
                Ok((elements.map_err(codec)?, true))
            }
            (Some((source, bytes)), None) => {
                let codec = |e| Error::codec(source.path(), &blob.name, e);
                let decoder = Decoder::open(&bytes).map_err(codec)?;
                Ok((decoder.decode_bytes(&bytes).map_err(codec)?, decoder.header().is_lossless()))
            }
            (None, Some((source, bytes))) => {
                let codec = |e| Error::codec(source.path(), &blob.name, e);
                let decoder = Decoder::open(&bytes).map_err(codec)?;
                check_base(decoder.header(), &bytes, blob.base_hash).map_err(codec)?;
                // Where the base was rounded, it is what the original already was.
                Ok((decoder.decode_bytes(&bytes).map_err(codec)?, true))
            }
            (None, None) => Err(self.bad("a blob is nowhere")),
        }
    }

    fn data_file(&mut self, file: &StoredFile, path: &Path) -> Result<Staged> {
        let folder = external::folder(path);
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "make the folder", e))?;
        let mut target = Target::create(path)?;
        target.file.get_ref().set_len(file.len)?;
        for part in &file.parts {
            let Some(segment) = &part.segment else {
                continue;
            };
            target.seek(part.offset)?;
            self.segment(segment, &mut |chunk| target.write(chunk))?;
            if target.len > file.len {
                return Err(self.bad("a part lies outside its data file"));
            }
        }
        target.finish()
    }
}

/// 16-bit patterns as varints, in `len` bytes if they fit: a rounded weight may take fewer bytes than the
/// original did, and a varint may be longer than it needs.
fn varints(elements: &[u8], tagged: bool, len: u64) -> Vec<u8> {
    let values = || elements.chunks_exact(2).map(|e| u16::from_le_bytes([e[0], e[1]]));
    let size = |v: u16| prost::encoding::encoded_len_varint(u64::from(v)) as u64 + u64::from(tagged);
    let mut spare = len.saturating_sub(values().map(size).sum());
    let mut out = Vec::with_capacity(usize::try_from(len).unwrap_or(0).min(elements.len() * 2));
    for value in values() {
        if tagged {
            out.push(0x28);
        }
        put_varint(&mut out, u64::from(value));
        let mut width = prost::encoding::encoded_len_varint(u64::from(value));
        while spare > 0 && width < 10 {
            if let Some(last) = out.last_mut() {
                *last |= 0x80;
            }
            out.push(0);
            width += 1;
            spare -= 1;
        }
    }
    out
}

/// A file being written under another name, many small pieces at a time.
struct Target {
    path: PathBuf,
    file: BufWriter<Staged>,
    /// Position, which is the length of what is written front to back.
    len: u64,
}

impl Target {
    fn create(path: &Path) -> Result<Target> {
        let file = BufWriter::with_capacity(1 << 20, Staged::create(path)?);
        Ok(Target { path: path.to_path_buf(), file, len: 0 })
    }

    fn seek(&mut self, offset: u64) -> Result<()> {
        self.file.flush().map_err(|e| Error::io(&self.path, "write", e))?;
        self.file.get_mut().seek(offset)?;
        self.len = offset;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.len += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, "write", e))
    }

    fn finish(self) -> Result<Staged> {
        let file = self.file.into_inner().map_err(|e| Error::io(&self.path, "write", e.into_error()))?;
        file.sync()?;
        Ok(file)
    }
}
