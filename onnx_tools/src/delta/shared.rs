//! Weights shared with a base at run time: a converted model that takes them from another one's data file, as they are or
//! with a delta.

use std::collections::HashMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;

use nz_onnx::codec::{Decoder, DeltaDecoder, encode_delta_to_blob};
use nz_onnx::format::{Header, Residual, TensorSpec};
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::onnx::{Error, Model, Result, Source, external};
use crate::pipeline::inspect::is_converted;
use crate::pipeline::paths::OutputFiles;
use crate::rewrite::base::FILE;
use crate::rewrite::{BaseBlob, BlobFile, PlanBase, Recipe};

/// A delta is decoded on top of its base, so it must save this part of the blob that a weight takes without one.
const LEAST_SAVING: usize = 8;

/// A converted model from whose data file another one takes weights.
#[derive(Debug)]
pub struct SharedBase {
    source: Source,
    file: String,
    sha256: Vec<u8>,
    /// The greatest format version of its blobs.
    format: (u8, u8),
    /// Blobs by the name of their weight.
    names: HashMap<String, Known>,
    /// The same by their elements.
    contents: HashMap<u128, Known>,
    seed: u64,
}

/// A blob of the base.
#[derive(Debug, Clone)]
struct Known {
    blob: BaseBlob,
    spec: TensorSpec,
    format: (u8, u8),
}

/// How a weight is stored with the help of the base.
#[derive(Debug)]
pub enum Shared {
    /// It is the base's blob.
    Same(BaseBlob),
    /// It is that blob and this delta.
    Delta(BaseBlob, Vec<u8>),
}

/// Whether `base` is of use at run time to the model at `path`: a converted one to one that is not.
///
/// # Errors
/// One of them cannot be read.
pub fn is_shared(path: &Path, base: &Path) -> Result<bool> {
    Ok(is_converted(&Model::open(base)?) && !is_converted(&Model::open(path)?))
}

impl SharedBase {
    /// The converted model at `path`, for one that is written to `output`. Decodes all of its blobs once.
    ///
    /// # Errors
    /// It cannot be read, takes weights from a base itself, or lies in another folder: ONNX Runtime loads data from the
    /// model's own folder only.
    pub fn open(path: &Path, output: &OutputFiles) -> Result<SharedBase> {
        let model = Model::open(path)?;
        if let Some(file) = model.metadata(FILE) {
            return Err(Error::Usage(format!(
                "{}: takes weights from a base itself, whose data file is {file}\nhelp: name that base",
                path.display()
            )));
        }
        let recipe = Recipe::read(&model)?;
        let file = recipe.data_file().to_string();
        let data = external::join(path, &file).map_err(|what| Error::corrupt(path, what))?;
        let folder = |path: &Path| {
            let folder = external::folder(path);
            fs::canonicalize(folder).map_err(|e| Error::io(folder, "find the folder", e))
        };
        let (here, there) = (folder(&output.model)?, folder(path)?);
        if here != there {
            return Err(Error::Usage(format!(
                "{}: must lie in the folder of its base {}, from whose data file it takes weights: ONNX Runtime reads no \
                 other folder\nhelp: --output {}",
                output.model.display(),
                path.display(),
                there.join(output.model.file_name().unwrap_or_default()).display()
            )));
        }
        if [&output.model, &output.data].iter().any(|out| [path, &data].contains(&out.as_path())) {
            let what = "is a file of the base\nhelp: give another --output";
            return Err(Error::Usage(format!("{}: {what}", output.model.display())));
        }
        external::check_inside(path, "of the weights", &data)?;
        let source = Source::open(&data)?;
        // A seed that nobody can know beforehand: contents cannot be made to collide on purpose.
        let seed = RandomState::new().hash_one(0u64);
        let blobs = recipe.blobs();
        // Small ones are in the model's own file.
        let found = blobs.par_iter().filter(|blob| blob.file == BlobFile::Data).map(|blob| {
            let end = blob.offset.saturating_add(blob.len);
            let bytes = source.read(&(blob.offset..end))?;
            let codec = |e| Error::codec(&data, &blob.name, e);
            let decoder = Decoder::open(&bytes).map_err(codec)?;
            let content = xxh3_128_with_seed(&decoder.decode_bytes(&bytes).map_err(codec)?, seed);
            let header = decoder.header();
            let known = BaseBlob { offset: blob.offset, len: blob.len, hash: header.identity(&bytes) };
            let format = (header.major, header.minor);
            Ok((blob.name.clone(), content, Known { blob: known, spec: header.spec.clone(), format }))
        });
        let (mut names, mut contents, mut format) = (HashMap::new(), HashMap::new(), (1, 0));
        for (name, content, known) in found.collect::<Result<Vec<_>>>()? {
            format = known.format.max(format);
            names.entry(name).or_insert_with(|| known.clone());
            contents.entry(content).or_insert(known);
        }
        let sha256 = source.sha256_bytes()?;
        Ok(SharedBase { source, file, sha256, format, names, contents, seed })
    }

    /// How the weight `name` is stored, if not as its blob without a base, which takes `own` bytes. What is returned was
    /// decoded and compared.
    ///
    /// # Errors
    /// The base cannot be read, or what was encoded does not decode to `elements`.
    pub fn share(
        &self,
        name: &str,
        elements: &[u8],
        spec: &TensorSpec,
        own: usize,
    ) -> Result<Option<Shared>> {
        let codec = |e| Error::codec(self.source.path(), name, e);
        let fits = |known: &&Known| known.spec == *spec;
        if let Some(known) = self.contents.get(&xxh3_128_with_seed(elements, self.seed)).filter(fits)
            && self.decoded(known).map_err(codec)? == elements
        {
            return Ok(Some(Shared::Same(known.blob)));
        }
        let Some(known) = self.names.get(name).filter(fits) else { return Ok(None) };
        let base = self.read(known)?;
        let delta = encode_delta_to_blob(elements, &base).map_err(codec)?;
        if delta.len() * LEAST_SAVING > own * (LEAST_SAVING - 1) {
            return Ok(None);
        }
        let decoded = DeltaDecoder::open(&delta, &base).and_then(|d| d.decode_bytes(&delta, &base));
        if decoded.map_err(codec)? != elements {
            return Err(Error::Internal(format!("tensor {name:?} does not decode to its source")));
        }
        Ok(Some(Shared::Delta(known.blob, delta)))
    }

    fn read(&self, known: &Known) -> Result<Vec<u8>> {
        self.source.read(&(known.blob.offset..known.blob.offset + known.blob.len))
    }

    fn decoded(&self, known: &Known) -> nz_onnx::error::Result<Vec<u8>> {
        let bytes = self.read(known).map_err(|e| nz_onnx::error::Error::Base(e.to_string()))?;
        nz_onnx::codec::decode(&bytes)
    }

    /// Name of the data file.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// What a plan says of the base.
    pub fn plan(&self) -> PlanBase {
        let (file, sha256) = (self.file.clone(), self.sha256.clone());
        PlanBase { file, sha256, format: self.format, blobs: Default::default() }
    }
}

/// How a delta's residuals were made, in words; none if it is none.
pub fn delta_name(header: &Header) -> Option<&'static str> {
    header.delta.map(|delta| match delta.residual {
        Residual::Xor => "delta xor",
        Residual::Difference => "delta difference",
    })
}
