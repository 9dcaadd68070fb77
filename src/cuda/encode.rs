//! Encoding a tensor that is in the device's memory: the same bytes as [`crate::codec::encode`] gives.
//!
//! Three kernels: one counts what the words are like, from which the host chooses the coding as it does for its own
//! encoder; one measures each record, from which the host makes the header and the places of all records; one writes
//! them. Checksums are the host's: it reads the payload back for that, which is the only way that XXH3 can be had, as it
//! goes through its bytes one after the other.

use std::ffi::c_void;

use super::job::{Kernel, Launch, check_address, element, unsupported};
use super::layout::{
    BlockEntry, CODES_PADDING, EncodeArguments, MEASURE_SIZE, MEASURED_MISFIT, MEASURED_ROUNDED,
    SOURCE_CHANGED, SURVEY_COUNTS, SURVEY_SIZE, WARP_SLOTS, WRITE_SIZE,
};
use super::port::{Device, DeviceError};
use crate::codec::offload::{self, LookedAt, Measured, Outline, STRETCH};
use crate::codec::{Coding, EncodeOptions};
use crate::error::Error;
use crate::format::{Blocks, Layout, TensorSpec, Transform, payload_hash};

/// Thread blocks that share a survey, at most: their counts are added up in the end.
const SURVEY_BLOCKS: u32 = 1024;
/// Threads of each.
const SURVEY_THREADS: u32 = 256;
/// Weights that counts of 32 bits in each thread block have room for, and more than a blob can have.
const MOST_ELEMENTS: u64 = 1 << 40;

/// Why a tensor could not be encoded on the device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// What was asked for cannot be.
    #[error(transparent)]
    Codec(#[from] Error),
    /// The device does not do its part.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Something wrote to the tensor while it was encoded.
    #[error("the tensor at {address:#x} on the device changed while it was encoded: wait for what writes it")]
    Changed {
        /// The tensor's address.
        address: u64,
    },
}

/// A blob on the device, freed when this is dropped.
pub struct Encoded<'d> {
    memory: Memory<'d>,
    blob: Vec<u8>,
}

impl Encoded<'_> {
    /// The blob's address on the device, a multiple of 256.
    pub fn address(&self) -> u64 {
        self.memory.address
    }

    /// The blob, read back.
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// The blob, read back; the device's memory is freed.
    pub fn into_blob(self) -> Vec<u8> {
        self.blob
    }
}

/// Encodes the tensor at `source`, row-major elements of `spec` in the device's memory. The bytes are those of
/// [`crate::codec::encode`] with the same options.
///
/// Waits for the stream four times, and takes memory on the device for the blob and 20 bytes a block.
///
/// # Safety
/// The stream is alive and of this device. `source` is the address of all the tensor's elements, which nothing writes but what
/// was put on the stream before.
///
/// # Errors
/// Shape, layout or options do not go together, or ask for a grid; the tensor is of integers, or too large; the device refuses.
pub unsafe fn encode<'d>(
    device: &'d dyn Device,
    stream: *mut c_void,
    source: u64,
    spec: &TensorSpec,
    options: &EncodeOptions,
) -> Result<Encoded<'d>, EncodeError> {
    let plan = Encoding::new(source, spec, options)?;
    let run = Run { device, stream, plan: &plan };
    let mut looked_at = offload::first_look(spec)?;
    loop {
        let counts = run.survey(looked_at)?;
        let coding = offload::coding(spec, options, &plan.blocks, looked_at, &counts);
        if let Some(records) = run.measure(&coding)? {
            return run.write(&coding, &records);
        }
        // A sample has not seen all; nor can all blocks have been seen twice.
        if looked_at == LookedAt::Blocks {
            return Err(EncodeError::Changed { address: source });
        }
        looked_at = LookedAt::Blocks;
    }
}

/// A tensor that is to be encoded, and the launches that it takes.
struct Encoding<'a> {
    spec: &'a TensorSpec,
    block_len: u32,
    blocks: Blocks,
    arguments: EncodeArguments,
}

impl<'a> Encoding<'a> {
    fn new(source: u64, spec: &'a TensorSpec, options: &EncodeOptions) -> Result<Self, Error> {
        let EncodeOptions { mantissa_bits: _, grid, block_len, profile: _ } = *options;
        if grid.is_some() || spec.dtype.is_integer() {
            return Err(Error::Unsupported("grids and integers are not encoded on a device".to_owned()));
        }
        let blocks = Blocks::new(spec, block_len)?;
        let elements = blocks.elements();
        let few = elements <= MOST_ELEMENTS && blocks.count() <= i32::MAX as u64;
        if !few {
            return Err(unsupported("2^31 blocks, or 2^40 weights"));
        }
        check_address(source, spec.dtype.size() as u64, "tensor")?;
        let mut arguments = EncodeArguments {
            source,
            elements,
            rows: 1,
            columns: elements,
            tile_columns: elements,
            element: element(spec.dtype),
            block_len,
            blocks_per_tile: blocks.count() as u32,
            ..bytemuck::Zeroable::zeroed()
        };
        if let (Layout::ColumnTiles { tile }, &[rows, columns]) = (spec.layout, spec.shape.as_slice()) {
            let width = columns.min(tile.into());
            (arguments.rows, arguments.columns, arguments.tile_columns) = (rows, columns, width);
            arguments.blocks_per_tile = (rows * width).div_ceil(block_len.into()) as u32;
            arguments.is_tiled = 1;
        }
        Ok(Encoding { spec, block_len, blocks, arguments })
    }

    fn count(&self) -> u32 {
        self.blocks.count() as u32
    }

    /// Adds to `counts`, [`SURVEY_COUNTS`] numbers of 64 bits at a multiple of 8.
    fn survey(&self, looked_at: LookedAt, counts: u64) -> Launch<EncodeArguments> {
        let (parts, sampled_of) = match looked_at {
            LookedAt::Blocks => (self.count(), 0),
            LookedAt::OneIn(of) => ((self.blocks.elements() / STRETCH) as u32, of as u32),
        };
        Launch {
            kernel: Kernel::Survey,
            grid: (parts.min(SURVEY_BLOCKS), 1),
            threads: SURVEY_THREADS,
            shared: SURVEY_SIZE,
            arguments: EncodeArguments { parts, sampled_of, counts, ..self.arguments },
        }
    }

    /// The arguments with a coding.
    fn coded(&self, coding: &Coding) -> EncodeArguments {
        let tiers = coding.tiers();
        let mut arguments = EncodeArguments {
            transform: if coding.transform() == Transform::NormalisedSplit { 2 } else { 1 },
            kept: coding.rounded_to().map_or(23, u32::from),
            no_subnormals: coding.has_no_subnormals().into(),
            tiers: tiers.len() as u32,
            places: [(tiers.len() << 4) as u8; 256],
            ..self.arguments
        };
        for (i, tier) in tiers.iter().enumerate() {
            arguments.tier_widths[i] = tier.width;
            for (code, &symbol) in tier.symbols.iter().enumerate() {
                arguments.places[usize::from(symbol)] = (i << 4 | code) as u8;
            }
        }
        arguments
    }

    /// Threads for a block.
    fn threads(&self) -> u32 {
        32 * self.block_len.div_ceil(WARP_SLOTS)
    }

    /// Writes a word for each block to `measured`.
    fn measure(&self, coding: &Coding, measured: u64) -> Launch<EncodeArguments> {
        Launch {
            kernel: Kernel::Measure,
            grid: (self.count(), 1),
            threads: self.threads(),
            shared: 256 + MEASURE_SIZE,
            arguments: EncodeArguments { measured, ..self.coded(coding) },
        }
    }

    /// Writes all records, the largest of `largest` bytes.
    fn write(
        &self,
        coding: &Coding,
        largest: u32,
        table: u64,
        payload: u64,
        status: u64,
    ) -> Launch<EncodeArguments> {
        let record_room = largest.next_multiple_of(16);
        let arguments = EncodeArguments { blocks: table, payload, status, record_room, ..self.coded(coding) };
        Launch {
            kernel: Kernel::Write,
            grid: (self.count(), 1),
            threads: self.threads(),
            shared: record_room + 3 * (self.block_len + CODES_PADDING) + 256 + WRITE_SIZE,
            arguments,
        }
    }
}

/// Memory of a device.
struct Memory<'d> {
    device: &'d dyn Device,
    address: u64,
}

impl<'d> Memory<'d> {
    fn new(device: &'d dyn Device, bytes: u64) -> Result<Self, DeviceError> {
        Ok(Memory { device, address: device.allocate(bytes)? })
    }

    fn holding(device: &'d dyn Device, bytes: &[u8]) -> Result<Self, DeviceError> {
        let memory = Memory::new(device, bytes.len() as u64)?;
        // SAFETY: new memory of this length.
        unsafe { device.write(bytes, memory.address) }?;
        Ok(memory)
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        // SAFETY: from `allocate`; `Run` waits for each launch before it lets go of what that names.
        unsafe { self.device.free(self.address) }
    }
}

/// A run of the launches.
struct Run<'d, 'a> {
    device: &'d dyn Device,
    stream: *mut c_void,
    plan: &'a Encoding<'a>,
}

impl<'d> Run<'d, '_> {
    /// Runs a launch over memory that lives until this returns.
    fn wait_for(&self, launch: &Launch<EncodeArguments>) -> Result<(), DeviceError> {
        // SAFETY: the caller of `encode` vouches for stream and tensor, and nothing is freed before the stream is waited for.
        let launched = unsafe { self.device.encode(self.stream, launch) };
        // SAFETY: as above. Also after a refusal: memory is freed next.
        let waited = unsafe { self.device.wait(self.stream) };
        launched.and(waited)
    }

    fn survey(&self, looked_at: LookedAt) -> Result<Box<[u64; SURVEY_COUNTS]>, DeviceError> {
        let mut counts = Box::new([0; SURVEY_COUNTS]);
        let memory = Memory::holding(self.device, bytemuck::cast_slice(&counts[..]))?;
        self.wait_for(&self.plan.survey(looked_at, memory.address))?;
        // SAFETY: memory of this length that nothing writes any more.
        unsafe { self.device.read(memory.address, bytemuck::cast_slice_mut(&mut counts[..])) }?;
        Ok(counts)
    }

    /// `None`: the coding is not for this tensor.
    fn measure(&self, coding: &Coding) -> Result<Option<Vec<Measured>>, DeviceError> {
        let mut words = vec![0u32; self.plan.count() as usize];
        let memory = Memory::new(self.device, 4 * words.len() as u64)?;
        self.wait_for(&self.plan.measure(coding, memory.address))?;
        // SAFETY: memory of this length that nothing writes any more.
        unsafe { self.device.read(memory.address, bytemuck::cast_slice_mut(&mut words)) }?;
        let fits = words.iter().all(|word| word & MEASURED_MISFIT == 0);
        let measured = |word: u32| Measured {
            size: word as u16,
            m: (word >> 16) as u8,
            rounded: word & MEASURED_ROUNDED != 0,
        };
        Ok(fits.then(|| words.into_iter().map(measured).collect()))
    }

    fn write(&self, coding: &Coding, records: &[Measured]) -> Result<Encoded<'d>, EncodeError> {
        let outline = Outline::new(self.plan.spec, self.plan.block_len, coding, records.iter().copied())?;
        let mut offset = 0;
        let entries: Vec<BlockEntry> = records
            .iter()
            .map(|record| {
                let entry = BlockEntry { offset, record: record.size, m: record.m, ..BlockEntry::default() };
                // `Outline` has seen that all of them are within 32 bits.
                offset = offset.wrapping_add(record.size.into());
                entry
            })
            .collect();
        let largest = records.iter().map(|record| 4 * u32::from(record.size)).max().unwrap_or(0);
        let (header_len, blob_len) = (outline.header_len(), outline.blob_len());
        let memory = Memory::new(self.device, blob_len)?;
        let table = Memory::holding(self.device, bytemuck::cast_slice(&entries))?;
        let status = Memory::holding(self.device, &[0; 4])?;
        let payload = memory.address + header_len;
        self.wait_for(&self.plan.write(coding, largest, table.address, payload, status.address))?;
        let mut told = [0; 4];
        let mut blob = vec![0; blob_len as usize];
        // SAFETY: memory of these lengths that nothing writes any more.
        unsafe {
            self.device.read(status.address, &mut told)?;
            self.device.read(payload, &mut blob[header_len as usize..])?;
        }
        if u32::from_le_bytes(told) & SOURCE_CHANGED != 0 {
            return Err(EncodeError::Changed { address: self.plan.arguments.source });
        }
        let header = outline.header(payload_hash(&blob[header_len as usize..]));
        // SAFETY: the blob is longer, and nothing uses it yet.
        unsafe { self.device.write(&header, memory.address) }?;
        blob[..header.len()].copy_from_slice(&header);
        Ok(Encoded { memory, blob })
    }
}
