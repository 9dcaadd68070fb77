//! Deltas to a blob: some of a delta's blocks, and what their base has there, are decoded together.

use super::rooms::staged;
use super::table::Table;
use super::{DeviceWeight, Kernel, Launch, WeightMemory, tile_slots, unsupported};
use crate::cuda::layout::{
    BlockEntry, DecodeArguments, DeltaArguments, DeltaDecodeArguments, DeltaProductArguments, PADDING,
    ProductArguments, SUMS_SIZE, VERDICT_SIZE, WARP_SLOTS, WeightArguments,
};
use crate::cuda::product::{Operands, Product, SHARED_LIMIT};
use crate::error::{Error, Result};
use crate::format::{Header, MAX_BLOCK, Residual, Tier, plane_bytes};

/// Raw bits of a residual, at most.
const RAW_BITS: usize = 31;

/// Device memory that a delta and its base are in: addresses, as integers.
#[derive(Clone, Copy, Debug)]
pub struct DeltaMemory {
    /// The delta's blob.
    pub blob: u64,
    /// [`DeviceDelta::table`].
    pub table: u64,
    /// The base's blob.
    pub base: u64,
}

/// A delta to a blob as kernels want it. Made once of the headers of both; no payload is read.
#[derive(Clone, Debug)]
pub struct DeviceDelta {
    /// The delta, with units in place of blocks.
    units: DeviceWeight,
    base: DeviceWeight,
    arguments: DeltaArguments,
    table: Vec<u8>,
    /// Where in the table the sizes of records start, and where the base's table does.
    sizes_at: u64,
    base_at: u64,
    threads: u32,
}

impl DeviceDelta {
    /// Takes from validated headers what kernels need. That `base` is of the blob that the delta is to, the caller knows.
    ///
    /// # Errors
    /// The blob is no delta to a blob, the base is another kind of tensor, a record is longer than any block's can be; or
    /// [`Error::Unsupported`], as of [`DeviceWeight::new`].
    pub fn new(header: &Header, base: &Header) -> Result<Self> {
        let Some(delta) = header.delta.filter(|delta| delta.of_blob) else {
            return Err(Error::invalid("not a delta to a blob"));
        };
        if header.spec != base.spec {
            let (found, expected) = (&base.spec, &header.spec);
            return Err(Error::corrupt(format!("a delta of {expected:?} to a base of {found:?}")));
        }
        let base_weight = DeviceWeight::new(base)?;
        // As many blocks as the base's blocks have weights of; fewer where they are too much for the shared memory.
        let mut unit_blocks = (base.block_len / header.block_len).max(1);
        let (units, room) = loop {
            let units = units_of(header, unit_blocks)?;
            let warps = unit_blocks.min(MAX_BLOCK / WARP_SLOTS);
            let own = units.arguments.record_room + 2 * warps * units.arguments.tail_room;
            let room = own.max(base_weight.shared()).next_multiple_of(16);
            if shared(&units, room) <= SHARED_LIMIT {
                break (units, room);
            }
            if unit_blocks == 1 {
                return Err(unsupported("records of a delta and its base in the shared memory of 48 KiB"));
            }
            unit_blocks /= 2;
        };
        let mut table = units.table().to_vec();
        let sizes_at = table.len() as u64;
        let count = header.blocks().count() as usize;
        table.extend((0..count).flat_map(|block| ((header.record(block).len() / 4) as u16).to_le_bytes()));
        table.resize(table.len().next_multiple_of(size_of::<BlockEntry>()), 0);
        let base_at = table.len() as u64;
        table.extend(base_weight.table());
        let arguments = DeltaArguments {
            block_len: header.block_len,
            blocks_per_tile: tile_slots(header).div_ceil(header.block_len.into()) as u32,
            exponent: delta.exponent.into(),
            is_difference: u32::from(delta.residual == Residual::Difference),
            room,
            ..Default::default()
        };
        let threads = units.threads().max(base_weight.threads());
        Ok(DeviceDelta { units, base: base_weight, arguments, table, sizes_at, base_at, threads })
    }

    /// The table that has to be in device memory, at a multiple of 16 bytes.
    pub fn table(&self) -> &[u8] {
        &self.table
    }

    /// The weight: its blocks are units, which other kernels than those of deltas do not know.
    pub fn weight(&self) -> &DeviceWeight {
        &self.units
    }

    /// Has the kernel of deltas decode what `wanted` has of [`DeviceDelta::weight`].
    ///
    /// # Errors
    /// Those of `wanted`, or an address is not aligned.
    pub fn decode(
        &self,
        memory: DeltaMemory,
        wanted: impl FnOnce(&DeviceWeight, WeightMemory) -> Result<Launch<DecodeArguments>>,
    ) -> Result<Launch<DeltaDecodeArguments>> {
        let own = WeightMemory { blob: memory.blob, table: memory.table };
        let launch = wanted(&self.units, own)?;
        let Kernel::Decode(dtype) = launch.kernel else {
            return Err(Error::invalid("a delta of integers"));
        };
        Ok(Launch {
            kernel: Kernel::Delta,
            grid: launch.grid,
            threads: self.threads,
            shared: shared(&self.units, self.arguments.room),
            arguments: DeltaDecodeArguments {
                decode: launch.arguments,
                delta: self.at(memory)?,
                element: super::element(dtype),
                padding: 0,
            },
        })
    }

    /// The two launches of `product`, one of [`DeviceDelta::weight`].
    ///
    /// # Errors
    /// As [`Product::launches`].
    pub fn multiply(
        &self,
        memory: DeltaMemory,
        product: &Product<'_>,
        operands: Operands,
    ) -> Result<(Launch<DeltaProductArguments>, Launch<ProductArguments>)> {
        let own = WeightMemory { blob: memory.blob, table: memory.table };
        let [parts, sum] = product.launches(own, operands)?;
        let (kernel, threads) = match parts.kernel {
            Kernel::Rows { many } => (Kernel::DeltaRows { many }, self.threads),
            Kernel::Tiles { many } => (Kernel::DeltaTiles { many }, parts.threads),
            other => (other, parts.threads),
        };
        // Weights of a block are where units are decoded; the sums of warps take the same place, in the end.
        let shared = shared(&self.units, self.arguments.room).max(SUMS_SIZE);
        let arguments = DeltaProductArguments { product: parts.arguments, delta: self.at(memory)? };
        Ok((Launch { kernel, grid: parts.grid, threads, shared, arguments }, sum))
    }

    /// What kernels are told of the delta where it is.
    fn at(&self, memory: DeltaMemory) -> Result<DeltaArguments> {
        let DeltaMemory { table, base, .. } = memory;
        let base = self.base.at(WeightMemory { blob: base, table: table + self.base_at })?;
        Ok(DeltaArguments { base, sizes: table + self.sizes_at, ..self.arguments })
    }
}

/// Bytes of shared memory that decoding a unit takes.
fn shared(units: &DeviceWeight, room: u32) -> u32 {
    4 * units.arguments.block_len + VERDICT_SIZE + room
}

/// The delta with units of `unit_blocks` blocks in place of blocks.
fn units_of(header: &Header, unit_blocks: u32) -> Result<DeviceWeight> {
    let (blocks, tiers) = (header.blocks(), &header.tiers);
    let count = u32::try_from(blocks.count()).ok().filter(|&count| count <= i32::MAX as u32);
    let count = count.ok_or_else(|| unsupported("more than 2^31 blocks"))?;
    let blocks_per_tile = tile_slots(header).div_ceil(header.block_len.into()) as u32;
    let payload = header.payload_offset();
    let (mut entries, mut record, mut tail) = (Vec::<BlockEntry>::new(), 0, 0);
    for block in 0..count {
        let (slots, place) = (blocks.slots(block.into()), header.record(block as usize));
        let (n, len) = ((slots.end - slots.start) as usize, place.len());
        let planes = |tiers: &[Tier]| -> usize { tiers.iter().map(|tier| plane_bytes(tier.width, n)).sum() };
        if len > planes(tiers) + n + (RAW_BITS * n).div_ceil(8) + 3 {
            return Err(Error::corrupt(format!(
                "record of block {block} is longer than {n} weights can take"
            )));
        }
        // Each code of tier 1 takes its width.
        if let Some(tier) = tiers.get(1) {
            let behind = len.saturating_sub(plane_bytes(tiers[0].width, n));
            tail = tail.max((8 * behind / usize::from(tier.width)).min(n));
        }
        let size = (len / 4) as u16;
        match entries.last_mut() {
            // Records follow each other.
            Some(unit) if !(block % blocks_per_tile).is_multiple_of(unit_blocks) => unit.record += size,
            _ => entries.push(BlockEntry {
                first_slot: slots.start,
                offset: ((place.start - payload) / 4) as u32,
                record: size,
                ..Default::default()
            }),
        }
        record = record.max(4 * entries.last().map_or(0, |unit| usize::from(unit.record)));
    }
    entries.push(BlockEntry { first_slot: blocks.elements(), ..Default::default() });
    let mut arguments = WeightArguments {
        blob_len: header.blob_len,
        payload: payload as u64,
        elements: blocks.elements(),
        block_len: unit_blocks * header.block_len,
        blocks_per_tile: blocks_per_tile.div_ceil(unit_blocks),
        tiers: tiers.len() as u32,
        element: super::element(header.spec.dtype),
        record_room: staged(record) as u32,
        tail_room: if tiers.len() == 1 { 0 } else { (tail.next_multiple_of(16) + PADDING) as u32 },
        ..Default::default()
    };
    for (i, tier) in tiers.iter().enumerate() {
        arguments.tier_widths[i] = tier.width;
        arguments.symbols[i][..tier.symbols.len()].copy_from_slice(&tier.symbols);
    }
    Ok(DeviceWeight {
        arguments,
        table: Table::of_blocks(&entries),
        blocks: entries,
        dtype: header.spec.dtype,
        layout: header.spec.layout,
        shape: header.spec.shape.clone(),
    })
}
