//! A node's weight on the device: its header, read back once, and the table that kernels want.

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use xxhash_rust::xxh3::Xxh3Default;

use super::shared::{Memory, Shared, told};
use crate::codec::check_base;
use crate::cuda::job::{DeviceWeight, WeightMemory, check_status};
use crate::cuda::port::{Device, StatusWord};
use crate::error::Error;
use crate::format::{Dtype, Header};
use crate::ort::api::{Api, KernelContext, KernelInfo, Tensor, element};
use crate::ort::depth::{DEPTH_BYTES, Limit};
use crate::ort::fence::{Failure, Result};
use crate::ort::weight::{BASE_HASH, IDENTITY, Stored, attribute_shape, check_spec, explain, verify_payload};

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
    state: State,
}

enum State {
    /// The blob is an initializer of the node's graph.
    Constant(Arc<Resident>),
    /// The blob comes from elsewhere: read when it is first seen, and again if another one is seen.
    Late(RwLock<Option<(Vec<u8>, Arc<Resident>)>>),
}

/// What is known of a blob on the device.
pub(super) struct Resident {
    pub weight: DeviceWeight,
    pub dtype: Dtype,
    pub shared: Arc<Shared>,
    status: Box<dyn StatusWord>,
    table: Memory,
    blob_len: u64,
}

impl Resident {
    pub fn device(&self) -> &dyn Device {
        self.shared.device()
    }

    /// The address of the word that kernels report to.
    pub fn status(&self) -> u64 {
        self.status.address()
    }
}

/// A weight during one execution.
pub(super) struct Bound {
    pub resident: Arc<Resident>,
    pub memory: WeightMemory,
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
            state: State::Late(RwLock::new(None)),
        };
        if let Some(blob) = info.constant_input(input)? {
            weight.state = State::Constant(Arc::new(weight.open(&blob)?));
        }
        Ok(weight)
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
        let resident = match &self.state {
            State::Constant(resident) => Arc::clone(resident),
            State::Late(known) => self.late(known, &blob, context)?,
        };
        check_status(resident.status.take()).map_err(|error| {
            Failure::fail(explain(&error)).at(format!("{}, in an earlier run", self.label()))
        })?;
        if blob.count() as u64 != resident.blob_len {
            return Err(Failure::fail(format!("{} has changed its size", self.label())));
        }
        let memory = WeightMemory { blob: blob.address(), table: resident.table.address };
        Ok(Bound { resident, memory })
    }

    fn late(
        &self,
        known: &RwLock<Option<(Vec<u8>, Arc<Resident>)>>,
        blob: &Tensor<'_>,
        context: &KernelContext<'_>,
    ) -> Result<Arc<Resident>> {
        let shared = Shared::of(blob.device(self.api)?)?;
        let mut identity = vec![0; IDENTITY.min(blob.count())];
        // SAFETY: the host's stream, and its tensor; what writes it is done once the stream is waited for.
        unsafe {
            told(shared.device().wait(context.stream()?))?;
            told(shared.device().read(blob.address(), &mut identity))?;
        }
        if let Some((known, resident)) = &*known.read().unwrap_or_else(PoisonError::into_inner)
            && *known == identity
            && resident.blob_len == blob.count() as u64
        {
            return Ok(Arc::clone(resident));
        }
        let resident = Arc::new(self.open(blob)?);
        *known.write().unwrap_or_else(PoisonError::into_inner) = Some((identity, Arc::clone(&resident)));
        Ok(resident)
    }

    fn label(&self) -> String {
        format!("blob '{}' (input {})", self.name, self.input)
    }

    fn open(&self, blob: &Tensor<'_>) -> Result<Resident> {
        if blob.element() != element::UINT8 {
            let found = blob.element();
            return Err(
                Failure::invalid(format!("uint8 expected, found element type {found}")).at(self.label())
            );
        }
        let explained = |error: Error| Failure::fail(explain(&error)).at(self.label());
        let shared = Shared::of(blob.device(self.api)?)?;
        let (address, len) = (blob.address(), blob.count() as u64);
        let mut start = Vec::new();
        let mut wanted = FIRST_READ.min(len);
        let header = loop {
            start.resize(wanted as usize, 0);
            // SAFETY: within the host's tensor, which is constant or waited for.
            told(unsafe { shared.device().read(address, &mut start) })?;
            match Header::parse_start(&start, len) {
                Err(Error::Truncated { needed, .. }) if needed <= len && needed > wanted => {
                    wanted = needed.max(2 * wanted).min(len);
                }
                outcome => break outcome.map_err(explained)?,
            }
        };
        if let Some(hash) = self.base_hash {
            check_base(&header, &start, hash).map_err(explained)?;
        }
        check_spec(&self.label(), &header.spec, &self.shape, self.stored)?;
        let depth = match self.limit {
            Some(limit) => limit
                .depth(&header, self.depth_bytes.as_deref())
                .map_err(|failure| failure.at(self.label()))?,
            None => header.layers.len(),
        };
        if self.verify
            && let Some(damage) = damage(shared.device(), address, &header, depth)?
        {
            return Err(explained(Error::corrupt(damage)));
        }
        let weight = DeviceWeight::to_depth(&header, depth).map_err(explained)?;
        let (table, status) = (shared.upload(weight.table())?, told(shared.device().status())?);
        Ok(Resident { dtype: header.spec.dtype, weight, shared, status, table, blob_len: len })
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
