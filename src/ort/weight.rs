//! A node's weight: its blob, validated once, and the decoder over it.

use std::ffi::CStr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::api::{HostVersion, KernelContext, KernelInfo, Workers, threads};
use super::cache::{self, Place};
use super::depth::{DEPTH_BYTES, Limit};
use super::ep::Reading;
use super::fence::{Failure, Result};
use crate::codec::{Decoder, DeltaDecoder, check_base};
use crate::error::Error;
use crate::format::{Dtype, Header, Layout, TensorSpec};

/// The environment variable that says how much of a blob is checked when its kernel is created: `full`
/// (default) reads all of it and compares the payload's checksum; `header` checks the header alone, so that
/// a session opens without reading its weights. Memory safety does not depend on it.
pub const VERIFY_VARIABLE: &str = "NZ_VERIFY";

/// Bytes at the start of a blob that tell it from any other: they hold the checksums of its content.
pub(crate) const IDENTITY: usize = 96;

/// The widest tile that kernels work on: a row of it fits in their scratch.
const MAX_TILE: u64 = 1 << 16;

/// The layouts that a kernel can work on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// Row-major or column tiles.
    Any,
    /// Row-major.
    Rows,
    /// Column tiles.
    Tiles,
    /// Row-major integers of this dtype; all others are floats.
    Integers(Dtype),
}

/// The attribute of a node that names the file of its base's blob.
pub(crate) const BASE_FILE: &CStr = c"base_file";
/// The one with that blob's [`Header::identity`], where it is the weight itself.
pub(crate) const BASE_HASH: &CStr = c"base_hash";

/// The weight of one node.
pub(crate) struct Weight {
    /// Which input of the node the blob is.
    input: usize,
    name: String,
    shape: Vec<u64>,
    stored: Stored,
    verify: bool,
    /// The most that is read of weights in layers.
    limit: Option<Limit>,
    /// What the node says in [`DEPTH_BYTES`], or its like for its second blob.
    depth_bytes: Option<Vec<i64>>,
    host: HostVersion,
    base: Base,
    state: State,
}

/// What a node says of the base that its weight comes from, if from one.
#[derive(Default)]
struct Base {
    /// The input that is its blob, where the weight's own is a delta.
    input: Option<usize>,
    name: String,
    /// Its file, for messages.
    file: String,
    /// What the weight's own blob must be, where that is the base's.
    hash: Option<u64>,
}

/// A blob that was validated.
#[derive(Clone)]
struct Opened {
    /// Of the blob; of the base's, if it is a delta.
    decoder: Arc<Decoder>,
    delta: Option<Arc<DeltaDecoder>>,
}

enum State {
    /// The blob is an initializer of the node's graph and was validated with the kernel.
    Constant(Opened, Option<Place>),
    /// The blob comes from elsewhere (an outer graph's initializer, in the body of an If): validated when it
    /// is first seen, and again if another one is seen.
    Late(RwLock<Option<(Vec<u8>, Opened)>>),
    /// The blob is made from the node's constant input by this library.
    Packed(Reading),
}

/// A weight during one execution.
pub(crate) struct Bound<'a> {
    host: HostVersion,
    decoder: Arc<Decoder>,
    blob: &'a [u8],
    /// What the weight differs from that blob by.
    delta: Option<(Arc<DeltaDecoder>, &'a [u8])>,
    /// All weights in stored order, if they are kept decoded.
    kept: Option<Arc<Vec<f32>>>,
}

impl Bound<'_> {
    /// The version of the ONNX Runtime that runs the node.
    pub fn host(&self) -> HostVersion {
        self.host
    }

    /// The blob's header.
    pub fn header(&self) -> &Header {
        self.decoder.header()
    }

    /// `y += x W` or, if `transposed`, `y += W x`, where `W` starts at slot `first`, straight from the blob. Says
    /// whether that could be done: if not, the weights must be decoded first.
    pub fn multiply(&self, first: usize, transposed: bool, x: &[f32], y: &mut [f32]) -> Result<bool> {
        if self.kept.is_some() || self.delta.is_some() {
            return Ok(false);
        }
        let multiply = if transposed { Decoder::multiply_columns } else { Decoder::multiply_rows };
        multiply(&self.decoder, self.blob, first as u64, x, y).map_err(|error| Failure::fail(explain(&error)))
    }

    /// Whether all weights are decoded already.
    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// `len` decoded weights from slot `first` on, if they are kept.
    pub fn kept(&self, first: usize, len: usize) -> Option<&[f32]> {
        self.kept.as_ref().map(|weights| &weights[first..first + len])
    }

    /// Decodes weights from slot `first` on, in stored order, to elements of the blob's own dtype.
    pub fn decode_elements(&self, first: usize, out: &mut [u8]) -> Result<()> {
        let decoded = match &self.delta {
            Some((delta, own)) => delta.decode_elements(own, self.blob, first as u64, out),
            None => self.decoder.decode_elements(self.blob, first as u64, out),
        };
        decoded.map_err(|error| Failure::fail(explain(&error)))
    }

    /// Decodes `out.len()` weights from slot `first` on, in stored order.
    pub fn decode(&self, first: usize, out: &mut [f32]) -> Result<()> {
        if let Some(weights) = self.kept(first, out.len()) {
            out.copy_from_slice(weights);
            return Ok(());
        }
        let decoded = match &self.delta {
            Some((delta, own)) => delta.decode_f32(own, self.blob, first as u64, out),
            None => self.decoder.decode_f32(self.blob, first as u64, out),
        };
        decoded.map_err(|error| Failure::fail(explain(&error)))
    }
}

impl Bound<'_> {
    /// The same weight, decoded for as long as the value lives.
    pub fn decoded(mut self, workers: &Workers<'_>) -> Result<Self> {
        if self.kept.is_none() {
            let mut weights = vec![0f32; self.header().blocks().elements() as usize];
            self.decode_on_all(workers, 0, &mut weights)?;
            self.kept = Some(Arc::new(weights));
        }
        Ok(self)
    }

    /// The same with its weights decoded, if `place` has them or room for them.
    fn keep(mut self, place: Option<&Place>, context: &KernelContext<'_>) -> Result<Self> {
        if let Some(place) = place {
            self.kept = place.weights(|out| self.decode_on_all(&context.workers(), 0, out))?;
        }
        Ok(self)
    }

    /// As [`Bound::decode`], on all threads.
    pub fn decode_on_all(&self, workers: &Workers<'_>, first: usize, out: &mut [f32]) -> Result<()> {
        let block = self.header().block_len as usize;
        let mut rest = out;
        let parts: Vec<_> = cache::cut(rest.len(), block, 4 * threads())
            .map(|range| {
                let part;
                (part, rest) = std::mem::take(&mut rest).split_at_mut(range.len());
                Mutex::new((range.start, part))
            })
            .collect();
        workers.run(parts.len(), |index| {
            let mut part = parts[index].lock().unwrap_or_else(PoisonError::into_inner);
            let (start, out) = &mut *part;
            self.decode(first + *start, out)
        })
    }
}

/// The error and what to do about it.
pub(crate) fn explain(error: &Error) -> String {
    let advice = match error {
        Error::Corrupt(_) => "; the model's data file is damaged: copy or convert the model again",
        Error::Truncated { .. } => "; the model's data file is incomplete: copy or convert the model again",
        _ => "",
    };
    format!("{error}{advice}")
}

/// What is wrong with the blob of a base, and what to do about it.
pub(crate) fn put_back(error: &Error, base_file: &str) -> String {
    format!(
        "{error}; put the {base_file} back that the model was converted with, or convert the model again with --base"
    )
}

/// What [`VERIFY_VARIABLE`] says: whether payloads are read and their checksums compared.
pub(crate) fn verify_payload() -> Result<bool> {
    match std::env::var_os(VERIFY_VARIABLE) {
        None => Ok(true),
        Some(value) if value.is_empty() || value == "full" => Ok(true),
        Some(value) if value == "header" => Ok(false),
        Some(value) => Err(Failure::fail(format!(
            "environment variable {VERIFY_VARIABLE} is '{}': set it to 'full' or 'header', or unset it",
            value.to_string_lossy()
        ))),
    }
}

/// Attribute `shape` of a node that is being created, of this rank if one is given.
pub(crate) fn attribute_shape(info: &KernelInfo<'_>, rank: Option<usize>) -> Result<Vec<u64>> {
    let shape = info.ints(c"shape").map_err(|e| e.at("attribute 'shape' (ints) is required"))?;
    if rank.is_some_and(|rank| rank != shape.len()) || shape.is_empty() {
        let wanted = rank.map_or("1 or more".into(), |r| r.to_string());
        return Err(Failure::fail(format!("attribute shape {shape:?} must have rank {wanted}")));
    }
    let unsigned: Option<Vec<u64>> = shape.iter().map(|&d| u64::try_from(d).ok()).collect();
    unsigned.ok_or_else(|| Failure::fail(format!("attribute shape {shape:?} is negative")))
}

/// Whether a node can work on a blob of `spec`; `label` names the blob.
pub(crate) fn check_spec(label: &str, spec: &TensorSpec, shape: &[u64], stored: Stored) -> Result<()> {
    if spec.shape != shape {
        return Err(Failure::fail(format!(
            "{} holds a tensor of shape {:?}, but attribute shape is {:?}: model and data file do not belong \
             together; convert the model again",
            label, spec.shape, shape
        )));
    }
    if let (Layout::ColumnTiles { tile }, Some(&columns)) = (spec.layout, spec.shape.last())
        && u64::from(tile).min(columns) > MAX_TILE
    {
        return Err(Failure::fail(format!(
            "{} has tiles of {tile} columns, at most {MAX_TILE} can be worked on; convert the model again",
            label
        )));
    }
    let of_dtype = match stored {
        Stored::Integers(dtype) => spec.dtype == dtype,
        _ => !spec.dtype.is_integer(),
    };
    if !of_dtype {
        return Err(Failure::fail(format!(
            "{label} holds {} weights, which this op does not decode; convert the model again",
            spec.dtype.name()
        )));
    }
    let wanted = match (stored, spec.layout) {
        (Stored::Rows | Stored::Integers(_), Layout::ColumnTiles { .. }) => "row-major",
        (Stored::Tiles, Layout::RowMajor) => "in column tiles",
        _ => return Ok(()),
    };
    Err(Failure::fail(format!(
        "{} must be stored {wanted} for this node, found {:?}; convert the model again",
        label, spec.layout
    )))
}

impl Weight {
    /// The weight of a node that is being created; the blob is validated here if it is known by now.
    pub fn new(info: &KernelInfo<'_>, input: usize, rank: Option<usize>, stored: Stored) -> Result<Weight> {
        let shape = attribute_shape(info, rank)?;
        Weight::with_shape(info, input, shape, stored, DEPTH_BYTES)
    }

    /// The same for a weight whose shape is not attribute `shape`; attribute `depth_bytes` is what [`DEPTH_BYTES`] is.
    pub fn with_shape(
        info: &KernelInfo<'_>,
        input: usize,
        shape: Vec<u64>,
        stored: Stored,
        depth_bytes: &CStr,
    ) -> Result<Weight> {
        let name = info.input_name(input).unwrap_or_default();
        let verify = verify_payload()?;
        let base = Base {
            input: info.base(),
            name: info.base().and_then(|input| info.input_name(input).ok()).unwrap_or_default(),
            file: info.text(BASE_FILE).unwrap_or_default(),
            hash: info.int(BASE_HASH).map(|hash| hash as u64),
        };
        let mut weight = Weight {
            input,
            name,
            shape,
            stored,
            verify,
            limit: info.limit(),
            depth_bytes: info.ints(depth_bytes).ok(),
            host: info.host(),
            base,
            state: State::Late(RwLock::new(None)),
        };
        let base = weight.base.input.map(|input| info.constant_input(input)).transpose()?;
        if let Some(blob) = info.constant_input(input)?
            && !matches!(base, Some(None))
        {
            let blob = blob.bytes().map_err(|e| e.at(weight.label()))?;
            let base = base.flatten().map(|base| base.bytes().map_err(|e| e.at(weight.base_label())));
            let opened = weight.open(blob, base.transpose()?)?;
            let header = opened.decoder.header();
            let len = usize::try_from(header.blocks().elements()).unwrap_or(usize::MAX);
            let floats = !header.spec.dtype.is_integer();
            let place = info.cache().filter(|_| floats).and_then(|cache| cache.place(len));
            weight.state = State::Constant(opened, place);
        }
        Ok(weight)
    }

    /// The weight that is compressed to a slot, as input `input` of a node.
    pub fn packed(reading: Reading, input: usize, host: HostVersion) -> Self {
        let slot = &reading.slot;
        Weight {
            input,
            name: slot.name().to_owned(),
            shape: slot.shape().to_vec(),
            stored: Stored::Any,
            verify: false,
            limit: None,
            depth_bytes: None,
            host,
            base: Base::default(),
            state: State::Packed(reading),
        }
    }

    /// The decoded weight's shape, from the node's attribute or input; the blob's may be that of a matrix.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Whether that is the shape of its transpose, which is what is stored.
    pub fn is_turned(&self) -> bool {
        matches!(&self.state, State::Packed(reading) if reading.turned)
    }

    /// The weight, ready to be decoded in this execution.
    pub fn bind<'a>(&'a self, context: &KernelContext<'a>) -> Result<Bound<'a>> {
        let host = self.host;
        match &self.state {
            State::Packed(reading) => {
                // ONNX Runtime keeps the input only where it did not hand it over when the session was made.
                let packed = reading.pack(|| context.required(self.input))?;
                let decoder = Arc::clone(packed.decoder());
                Bound { host, decoder, blob: packed.blob(), delta: None, kept: None }
                    .keep(packed.place(), context)
            }
            State::Constant(opened, place) => {
                let (blob, base) = (self.blob(context)?, self.base(context)?);
                self.bound(opened.clone(), blob, base).keep(place.as_ref(), context)
            }
            State::Late(known) => {
                let (blob, base) = (self.blob(context)?, self.base(context)?);
                Ok(self.bound(self.late(known, blob, base)?, blob, base))
            }
        }
    }

    fn bound<'a>(&self, opened: Opened, blob: &'a [u8], base: Option<&'a [u8]>) -> Bound<'a> {
        let (host, Opened { decoder, delta }) = (self.host, opened);
        match (delta, base) {
            (Some(delta), Some(base)) => {
                Bound { host, decoder, blob: base, delta: Some((delta, blob)), kept: None }
            }
            _ => Bound { host, decoder, blob, delta: None, kept: None },
        }
    }

    /// Whether the weight is a delta: the op then has one input more.
    pub fn has_base(&self) -> bool {
        self.base.input.is_some()
    }

    fn base<'a>(&self, context: &KernelContext<'a>) -> Result<Option<&'a [u8]>> {
        let read = |input| context.required(input)?.bytes().map_err(|e| e.at(self.base_label()));
        self.base.input.map(read).transpose()
    }

    fn blob<'a>(&self, context: &KernelContext<'a>) -> Result<&'a [u8]> {
        context.required(self.input)?.bytes().map_err(|e| e.at(self.label()))
    }

    /// The decoder of a blob that was not there when the kernel was created.
    fn late(
        &self,
        cache: &RwLock<Option<(Vec<u8>, Opened)>>,
        blob: &[u8],
        base: Option<&[u8]>,
    ) -> Result<Opened> {
        let start = |blob: &[u8]| blob[..IDENTITY.min(blob.len())].to_vec();
        let identity = [start(blob), base.map(start).unwrap_or_default()].concat();
        if let Some((known, opened)) = &*cache.read().unwrap_or_else(PoisonError::into_inner)
            && *known == identity
        {
            return Ok(opened.clone());
        }
        let opened = self.open(blob, base)?;
        *cache.write().unwrap_or_else(PoisonError::into_inner) = Some((identity, opened.clone()));
        Ok(opened)
    }

    fn label(&self) -> String {
        format!("blob '{}' (input {})", self.name, self.input)
    }

    fn base_label(&self) -> String {
        format!("base '{}' of {}, in {}", self.base.name, self.label(), self.base.file)
    }

    /// The decoder of a blob that is no delta, to the depth that the session reads.
    fn decoder(&self, blob: &[u8]) -> Result<Decoder> {
        let failed = |error: Error| match self.base.hash {
            // Whatever is wrong with it then, it is another blob.
            Some(_) => self.refuse(Error::Base(format!("the base: {error}")), self.label()),
            None => self.refuse(error, self.label()),
        };
        let mut decoder = Decoder::open_unverified(blob).map_err(failed)?;
        if let Some(limit) = self.limit {
            let depth = limit.depth(decoder.header(), self.depth_bytes.as_deref());
            decoder = decoder.to_depth(depth.map_err(|failure| failure.at(self.label()))?);
        }
        if self.verify {
            decoder.verify(blob).map_err(failed)?;
        }
        if let Some(hash) = self.base.hash {
            check_base(decoder.header(), blob, hash).map_err(|error| self.refuse(error, self.label()))?;
        }
        Ok(decoder)
    }

    /// What is wrong with a blob, and what to do about it; `label` names the one that should be the base's.
    fn refuse(&self, error: Error, label: String) -> Failure {
        match error {
            Error::Base(_) => Failure::fail(put_back(&error, &self.base.file)).at(label),
            error => Failure::fail(explain(&error)).at(self.label()),
        }
    }

    fn open(&self, blob: &[u8], base: Option<&[u8]>) -> Result<Opened> {
        let open_delta = if self.verify { DeltaDecoder::open } else { DeltaDecoder::open_unverified };
        let opened = match base {
            // A delta is to all bits of its base.
            Some(base) => {
                let delta = open_delta(blob, base).map_err(|e| self.refuse(e, self.base_label()))?;
                Opened { decoder: Arc::clone(delta.base()), delta: Some(Arc::new(delta)) }
            }
            None => Opened { decoder: Arc::new(self.decoder(blob)?), delta: None },
        };
        check_spec(&self.label(), &opened.decoder.header().spec, &self.shape, self.stored)?;
        Ok(opened)
    }
}
