//! A node's weight on the device: its header, read back once, and the table that kernels want.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use xxhash_rust::xxh3::Xxh3Default;

use super::shared::{Memory, Shared, told};
use crate::codec::check_base;
use crate::cuda::DecodeArguments;
use crate::cuda::job::{DeltaMemory, DeviceDelta, DeviceWeight, Launch, WeightMemory, check_status};
use crate::cuda::port::{Device, StatusWord};
use crate::cuda::product::{Operands, Product};
use crate::error::Error;
use crate::format::{Dtype, Header};
use crate::ort::api::{Api, KernelContext, KernelInfo, Tensor, element};
use crate::ort::depth::{DEPTH_BYTES, Limit};
use crate::ort::fence::{Failure, Result};
use crate::ort::weight::{
    BASE_FILE, BASE_HASH, IDENTITY, Stored, attribute_shape, check_spec, explain, put_back, verify_payload,
};

/// Bytes of a header that are read at first.
const FIRST_READ: u64 = 64 << 10;
/// Bytes of a payload that are read at a time to compare its checksum.
const CHUNK: usize = 16 << 20;

/// The weight of one node.
pub(super) struct Weight {
    api: Api,
    /// Which input of the node the blob is.
    input: usize,
    name: String,
    shape: Vec<u64>,
    stored: Stored,
    verify: bool,
    /// The most that is read of weights in layers.
    limit: Option<Limit>,
    /// What the node says in [`DEPTH_BYTES`].
    depth_bytes: Option<Vec<i64>>,
    /// What the blob's header must be, if the blob is that of a base.
    base_hash: Option<u64>,
    /// Which input is the base's blob, if the node's own is a delta, and its name.
    base: Option<(usize, String)>,
    /// The file that a base's blob is in, for messages.
    base_file: String,
    state: State,
}

enum State {
    /// The blob is an initializer of the node's graph.
    Constant(Arc<Resident>),
    /// The blob comes from elsewhere: read when it is first seen, and again if another one is seen.
    Late(RwLock<Option<(Vec<u8>, Arc<Resident>)>>),
}

/// What is decoded.
enum Content {
    Blob(Box<DeviceWeight>),
    Delta(Box<DeviceDelta>),
}

/// What is known of a blob on the device, or of a delta and its base.
pub(super) struct Resident {
    content: Content,
    pub dtype: Dtype,
    pub shared: Arc<Shared>,
    status: Box<dyn StatusWord>,
    table: Memory,
    /// Bytes of the blob, and of the base's.
    blob_lens: (u64, Option<u64>),
}

impl Resident {
    pub fn device(&self) -> &dyn Device {
        self.shared.device()
    }

    /// The address of the word that kernels report to.
    pub fn status(&self) -> u64 {
        self.status.address()
    }

    /// The weight, for planning; a delta's is of units.
    pub fn weight(&self) -> &DeviceWeight {
        match &self.content {
            Content::Blob(weight) => weight,
            Content::Delta(delta) => delta.weight(),
        }
    }
}

/// A weight during one execution.
pub(super) struct Bound {
    pub resident: Arc<Resident>,
    pub memory: WeightMemory,
    /// The address of the base's blob.
    base: Option<u64>,
}

impl Bound {
    /// Puts what `wanted` plans on `stream`.
    ///
    /// # Safety
    /// The stream is alive, and so is the memory that is decoded to until the stream has passed that.
    pub unsafe fn decode(
        &self,
        stream: *mut c_void,
        wanted: impl FnOnce(&DeviceWeight, WeightMemory) -> crate::error::Result<Launch<DecodeArguments>>,
    ) -> Result<()> {
        let refused = |error: Error| Failure::fail(explain(&error));
        let (device, WeightMemory { blob, table }) = (self.resident.device(), self.memory);
        match (&self.resident.content, self.base) {
            (Content::Delta(delta), Some(base)) => {
                let launch = delta.decode(DeltaMemory { blob, table, base }, wanted).map_err(refused)?;
                // SAFETY: blobs, table and status word live as long as the node; for the rest the caller vouches.
                told(unsafe { device.decode_delta(stream, &launch) })
            }
            (content, _) => {
                let Content::Blob(weight) = content else {
                    return Err(Failure::fail("internal error: a delta without its base"));
                };
                let launch = wanted(weight, self.memory).map_err(refused)?;
                // SAFETY: as above.
                told(unsafe { device.decode(stream, &launch) })
            }
        }
    }

    /// Puts `product`, one of the resident's weight, on `stream`.
    ///
    /// # Safety
    /// The stream is alive, and so are the operands until the stream has passed the product.
    pub unsafe fn multiply(
        &self,
        stream: *mut c_void,
        product: &Product<'_>,
        operands: Operands,
    ) -> Result<()> {
        let refused = |error: Error| Failure::fail(explain(&error));
        let (device, WeightMemory { blob, table }) = (self.resident.device(), self.memory);
        if let (Content::Delta(delta), Some(base)) = (&self.resident.content, self.base) {
            let memory = DeltaMemory { blob, table, base };
            let (parts, sum) = delta.multiply(memory, product, operands).map_err(refused)?;
            // SAFETY: as in `decode`.
            return told(unsafe {
                device.multiply_delta(stream, &parts).and_then(|()| device.multiply(stream, &sum))
            });
        }
        for launch in product.launches(self.memory, operands).map_err(refused)? {
            // SAFETY: as in `decode`.
            told(unsafe { device.multiply(stream, &launch) })?;
        }
        Ok(())
    }
}

impl Weight {
    /// The weight of a node that is being created.
    pub fn new(info: &KernelInfo<'_>, input: usize, rank: Option<usize>, stored: Stored) -> Result<Weight> {
        let shape = attribute_shape(info, rank)?;
        let mut weight = Weight {
            api: info.api,
            input,
            name: info.input_name(input).unwrap_or_default(),
            shape,
            stored,
            verify: verify_payload()?,
            limit: info.limit(),
            depth_bytes: info.ints(DEPTH_BYTES).ok(),
            base_hash: info.int(BASE_HASH).map(|hash| hash as u64),
            base: info.base().map(|base| (base, info.input_name(base).unwrap_or_default())),
            base_file: info.text(BASE_FILE).unwrap_or_default(),
            state: State::Late(RwLock::new(None)),
        };
        let base = info.base().map(|input| info.constant_input(input)).transpose()?;
        if let Some(blob) = info.constant_input(input)?
            && !matches!(base, Some(None))
        {
            weight.state = State::Constant(Arc::new(weight.open(&blob, base.flatten().as_ref())?));
        }
        Ok(weight)
    }

    /// Whether the weight is a delta: the op then has one input more.
    pub fn has_base(&self) -> bool {
        self.base.is_some()
    }

    /// The decoded weight's shape, from the node's attribute; the blob's is the same.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// The blob's header and table, if they are known before the node is executed.
    pub fn constant(&self) -> Option<&Resident> {
        match &self.state {
            State::Constant(resident) => Some(resident),
            State::Late(_) => None,
        }
    }

    /// The weight, ready to be decoded in this execution. Fails if an execution before this one found damage: kernels
    /// are not waited for, so they are heard of late.
    pub fn bind(&self, context: &KernelContext<'_>) -> Result<Bound> {
        let blob = context.required(self.input)?;
        let base = self.base.as_ref().map(|(input, _)| context.required(*input)).transpose()?;
        let resident = match &self.state {
            State::Constant(resident) => Arc::clone(resident),
            State::Late(known) => self.late(known, (&blob, base.as_ref()), context)?,
        };
        check_status(resident.status.take()).map_err(|error| {
            Failure::fail(explain(&error)).at(format!("{}, in an earlier run", self.label()))
        })?;
        if lens(&blob, base.as_ref()) != resident.blob_lens {
            return Err(Failure::fail(format!("{} has changed its size", self.label())));
        }
        let memory = WeightMemory { blob: blob.address(), table: resident.table.address };
        Ok(Bound { resident, memory, base: base.map(|base| base.address()) })
    }

    fn late(
        &self,
        known: &RwLock<Option<(Vec<u8>, Arc<Resident>)>>,
        (blob, base): (&Tensor<'_>, Option<&Tensor<'_>>),
        context: &KernelContext<'_>,
    ) -> Result<Arc<Resident>> {
        let shared = Shared::of(blob.device(self.api)?)?;
        // SAFETY: the host's stream.
        told(unsafe { shared.device().wait(context.stream()?) })?;
        let mut identity = Vec::new();
        for blob in [Some(blob), base].into_iter().flatten() {
            let mut start = vec![0; IDENTITY.min(blob.count())];
            // SAFETY: the host's tensor; what writes it is done since the stream was waited for.
            told(unsafe { shared.device().read(blob.address(), &mut start) })?;
            identity.extend(start);
        }
        if let Some((known, resident)) = &*known.read().unwrap_or_else(PoisonError::into_inner)
            && *known == identity
            && resident.blob_lens == lens(blob, base)
        {
            return Ok(Arc::clone(resident));
        }
        let resident = Arc::new(self.open(blob, base)?);
        *known.write().unwrap_or_else(PoisonError::into_inner) = Some((identity, Arc::clone(&resident)));
        Ok(resident)
    }

    fn label(&self) -> String {
        format!("blob '{}' (input {})", self.name, self.input)
    }

    /// How messages call the blob of the base: the node's own, or that of its delta.
    fn base_label(&self) -> String {
        match &self.base {
            Some((_, name)) => format!("base '{name}' of {}, in {}", self.label(), self.base_file),
            None => self.label(),
        }
    }

    /// What is wrong with the blob itself, and what to do about it.
    fn refuse(&self, error: &Error) -> Failure {
        // Whatever is wrong with the blob of a base, it is another one.
        match (self.base_hash, error) {
            (None, error) if !matches!(error, Error::Base(_)) => {
                Failure::fail(explain(error)).at(self.label())
            }
            _ => self.refuse_base(error),
        }
    }

    fn refuse_base(&self, error: &Error) -> Failure {
        let told = match error {
            Error::Base(_) => put_back(error, &self.base_file),
            error => put_back(&Error::Base(format!("the base: {error}")), &self.base_file),
        };
        Failure::fail(told).at(self.base_label())
    }

    fn open(&self, blob: &Tensor<'_>, base: Option<&Tensor<'_>>) -> Result<Resident> {
        let shared = Shared::of(blob.device(self.api)?)?;
        let read = |blob: &Tensor<'_>, label: &dyn Fn() -> String, refuse: &dyn Fn(&Error) -> Failure| {
            if blob.element() != element::UINT8 {
                let found = blob.element();
                return Err(
                    Failure::invalid(format!("uint8 expected, found element type {found}")).at(label())
                );
            }
            let (header, start) = read_header(shared.device(), blob)?.map_err(|error| refuse(&error))?;
            Ok((header, start))
        };
        let (header, start) = read(blob, &|| self.label(), &|error| self.refuse(error))?;
        if let Some(hash) = self.base_hash {
            check_base(&header, &start, hash).map_err(|error| self.refuse(&error))?;
        }
        let base = base
            .map(|base| {
                let (found, start) = read(base, &|| self.base_label(), &|error| self.refuse_base(error))?;
                if let Some(delta) = header.delta.filter(|delta| delta.of_blob) {
                    check_base(&found, &start, delta.base_hash).map_err(|error| self.refuse_base(&error))?;
                }
                Ok::<_, Failure>((base, found))
            })
            .transpose()?;
        check_spec(&self.label(), &header.spec, &self.shape, self.stored)?;
        let depth = match self.limit {
            // A delta has no layers, and is to all bits of its base.
            Some(limit) if base.is_none() => limit
                .depth(&header, self.depth_bytes.as_deref())
                .map_err(|failure| failure.at(self.label()))?,
            _ => header.layers.len(),
        };
        if self.verify {
            if let Some(damage) = damage(shared.device(), blob.address(), &header, depth)? {
                return Err(self.refuse(&Error::corrupt(damage)));
            }
            if let Some((base, header)) = &base
                && let Some(damage) = damage(shared.device(), base.address(), header, header.layers.len())?
            {
                return Err(self.refuse_base(&Error::corrupt(damage)));
            }
        }
        let explained = |error: Error| self.refuse(&error);
        let content = match &base {
            Some((_, base)) => Content::Delta(Box::new(DeviceDelta::new(&header, base).map_err(explained)?)),
            None => Content::Blob(Box::new(DeviceWeight::to_depth(&header, depth).map_err(explained)?)),
        };
        let table = shared.upload(match &content {
            Content::Blob(weight) => weight.table(),
            Content::Delta(delta) => delta.table(),
        })?;
        let status = told(shared.device().status())?;
        let blob_lens = lens(blob, base.as_ref().map(|(base, _)| *base));
        Ok(Resident { content, dtype: header.spec.dtype, shared, status, table, blob_lens })
    }
}

/// Bytes of a blob and of its base's.
fn lens(blob: &Tensor<'_>, base: Option<&Tensor<'_>>) -> (u64, Option<u64>) {
    (blob.count() as u64, base.map(|base| base.count() as u64))
}

/// The header of a blob on the device, constant or waited for, and the bytes that it was read from; or what is wrong with it.
fn read_header(
    device: &dyn Device,
    blob: &Tensor<'_>,
) -> Result<std::result::Result<(Header, Vec<u8>), Error>> {
    let (address, len) = (blob.address(), blob.count() as u64);
    let mut start = Vec::new();
    let mut wanted = FIRST_READ.min(len);
    loop {
        start.resize(wanted as usize, 0);
        // SAFETY: within the host's tensor, which is constant or waited for.
        told(unsafe { device.read(address, &mut start) })?;
        match Header::parse_start(&start, len) {
            Err(Error::Truncated { needed, .. }) if needed <= len && needed > wanted => {
                wanted = needed.max(2 * wanted).min(len);
            }
            outcome => return Ok(outcome.map(|header| (header, start))),
        }
    }
}

/// What is wrong with the payload of a blob, or with its first `depth` layers, that is at `address`, and constant or waited
/// for.
fn damage(device: &dyn Device, address: u64, header: &Header, depth: usize) -> Result<Option<String>> {
    let Range { start, mut end } = header.payload();
    if hash_of(device, address, start..end)? != header.payload_hash {
        return Ok(Some("payload checksum differs".into()));
    }
    for (i, layer) in header.layers[..depth].iter().enumerate() {
        let mut padding = vec![0; layer.range().start - end];
        // SAFETY: within the host's tensor, whose length is the header's.
        told(unsafe { device.read(address + end as u64, &mut padding) })?;
        if padding.iter().any(|&byte| byte != 0) {
            return Ok(Some(format!("padding before layer {} is not zero", i + 1)));
        }
        end = layer.range().end;
        if hash_of(device, address, layer.range())? != layer.hash {
            return Ok(Some(format!("checksum of layer {} differs", i + 1)));
        }
    }
    Ok(None)
}

/// The checksum of these bytes of a blob, as for [`damage`].
fn hash_of(device: &dyn Device, address: u64, bytes: Range<usize>) -> Result<u64> {
    let mut hash = Xxh3Default::new();
    let mut chunk = Vec::new();
    for at in bytes.clone().step_by(CHUNK) {
        chunk.resize((bytes.end - at).min(CHUNK), 0);
        // SAFETY: within the host's tensor, whose length is the header's.
        told(unsafe { device.read(address + at as u64, &mut chunk) })?;
        hash.update(&chunk);
    }
    Ok(hash.digest())
}
