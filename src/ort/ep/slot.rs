//! One weight of a session: its original goes in when the session is made, its blob stays.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use memmap2::Mmap;

use super::session::Shared;
use super::store::Key;
use super::ties::transpose;
use crate::codec::{self, Coding, Decoder, EncodeOptions};
use crate::error::Error;
use crate::format::TensorSpec;
use crate::ort::api::Tensor;
use crate::ort::cache::Place;
use crate::ort::fence::{Failure, Result};
use crate::ort::kernels::Buffers;

/// How a weight is to be coded.
pub(crate) struct Recipe {
    /// The weight's shape in the model.
    pub shape: Vec<u64>,
    /// What is stored: the same elements, in this shape.
    pub spec: TensorSpec,
    pub options: EncodeOptions,
    /// What is known from a look at the whole weight, if there was one.
    pub coding: Option<Coding>,
    /// The blob's place in the store, if the session has one.
    pub key: Option<Key>,
}

/// A weight that any number of kernels share.
pub(crate) struct Slot {
    name: String,
    recipe: Recipe,
    shared: Arc<Shared>,
    packed: OnceLock<Result<Packed>>,
}

/// A blob, where it lies, and its decoder.
pub(crate) struct Packed {
    decoder: Arc<Decoder>,
    blob: Blob,
    place: Option<Place>,
}

/// The bytes of a blob.
pub(super) enum Blob {
    /// In this process's own memory.
    Owned(Vec<u8>),
    /// In a file of the store.
    Mapped(Mmap),
}

impl Blob {
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Blob::Owned(bytes) => bytes,
            Blob::Mapped(map) => map,
        }
    }
}

impl Packed {
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    pub fn blob(&self) -> &[u8] {
        self.blob.as_slice()
    }

    /// Where the weight may be kept decoded.
    pub fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }
}

/// A slot as a node reads it.
#[derive(Clone)]
pub(crate) struct Reading {
    pub slot: Arc<Slot>,
    /// Whether the node's weight is the transpose of the slot's.
    pub turned: bool,
}

impl Reading {
    /// The blob, made from `original`, the node's own weight, the first time. Others who ask meanwhile wait for it.
    pub fn pack<'a>(&self, original: impl FnOnce() -> Result<Tensor<'a>>) -> Result<&Packed> {
        self.slot.pack(original, self.turned)
    }
}

impl Slot {
    pub(super) fn new(name: String, recipe: Recipe, shared: Arc<Shared>) -> Self {
        Slot { name, recipe, shared, packed: OnceLock::new() }
    }

    /// The weight's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its shape in the model.
    pub fn shape(&self) -> &[u64] {
        &self.recipe.shape
    }

    /// Its dtype, and how it is stored.
    pub fn spec(&self) -> &TensorSpec {
        &self.recipe.spec
    }

    /// What the kernels of its session work in.
    pub fn buffers(&self) -> &Arc<Buffers> {
        &self.shared.buffers
    }

    fn pack<'a>(&self, original: impl FnOnce() -> Result<Tensor<'a>>, turned: bool) -> Result<&Packed> {
        let packed = self.packed.get_or_init(|| {
            let started = Instant::now();
            self.shared.trim(self.recipe.spec.bytes().unwrap_or_default());
            let packed = original().and_then(|original| self.make(&original, turned));
            if let Ok(packed) = &packed {
                let before = self.recipe.spec.bytes().unwrap_or_default();
                self.shared.tally.packed(before, packed.blob().len() as u64);
            }
            self.shared.tally.spent(started.elapsed());
            packed.map_err(|failure| failure.at(format!("weight '{}'", self.name)))
        });
        packed.as_ref().map_err(Failure::clone)
    }

    fn make(&self, original: &Tensor<'_>, turned: bool) -> Result<Packed> {
        let Recipe { shape, spec, key, .. } = &self.recipe;
        let mut dims: Vec<u64> = original.dims().iter().map(|&d| d as u64).collect();
        if turned {
            dims.reverse();
        }
        if dims != *shape {
            return Err(Failure::fail(format!(
                "internal error: shape {dims:?} where {shape:?} was announced"
            )));
        }
        let found = match (&self.shared.store, key) {
            (Some(store), Some(key)) => store.load(key, spec),
            _ => None,
        };
        let (decoder, blob) = match found {
            Some(found) => found,
            None => {
                let bytes = original.raw(spec.dtype)?;
                let bytes = match (turned, &dims[..]) {
                    // The weight itself is another node's, which comes later.
                    (true, &[rows, columns]) => {
                        self.encode(&transpose(bytes, spec.dtype.size(), (columns as usize, rows as usize)))?
                    }
                    _ => self.encode(bytes)?,
                };
                let stored = match (&self.shared.store, key) {
                    (Some(store), Some(key)) => store.save(key, bytes),
                    _ => Blob::Owned(bytes),
                };
                let decoder = Decoder::open_unverified(stored.as_slice());
                (decoder.map_err(|e| Failure::fail(e.to_string()))?, stored)
            }
        };
        let len = usize::try_from(spec.elements().unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let place = self.shared.cache.as_ref().and_then(|cache| cache.place(len));
        Ok(Packed { decoder: Arc::new(decoder), blob, place })
    }

    fn encode(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let Recipe { spec, options, coding, .. } = &self.recipe;
        let fail = |error: Error| Failure::fail(error.to_string());
        let coding = match coding {
            Some(coding) => coding.clone(),
            None => {
                let coding = self.shared.on_all_cores(|| match options.grid {
                    None => codec::fitting_coding(bytes, spec, options).map(Some),
                    Some(step) => {
                        codec::survey_grid(bytes, spec, options).map(|survey| survey.map(|s| s.coding(step)))
                    }
                })?;
                let missing =
                    || Failure::fail("internal error: no grid holds a weight that one was chosen for");
                coding.map_err(fail)?.ok_or_else(missing)?
            }
        };
        let encode = |coding: &Coding| {
            // This thread's own heap, where it fills the gaps that originals leave, and not one of a thread that encodes.
            // In pages as they come: huge ones are no faster to fill, and those of a virtual machine are often new to
            // its host, which then takes ten times as long to provide them.
            let room = Vec::with_capacity(usize::try_from(coding.size()).unwrap_or_default());
            let encoded = self
                .shared
                .on_all_cores(|| codec::encode_into(room, bytes, spec, options.block_len, coding))?;
            encoded.map_err(fail)
        };
        let blob = match encode(&coding)? {
            Some(blob) => Some(blob),
            None => {
                let survey = self.shared.on_all_cores(|| codec::survey(bytes, spec, options))?;
                encode(&survey.map_err(fail)?.coding(options.mantissa_bits))?
            }
        };
        let mut blob =
            blob.ok_or_else(|| Failure::fail("internal error: a coding does not fit its own weight"))?;
        blob.shrink_to_fit();
        Ok(blob)
    }
}
