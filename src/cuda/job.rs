//! Launches: which kernel, how many threads, and what it is told.

mod delta;
mod kernel;
mod rooms;
mod table;

use super::layout::{
    BlockEntry, COUNTS_SIZE, CUT, DAMAGED_RECORD, DecodeArguments, EVEN_THREADS, GATHER, INDEX_OUT_OF_RANGE,
    LEAN_THREADS, ROW_MAJOR, SELECTORS_SIZE, STORED, WARP_SLOTS, WeightArguments,
};
use super::product::SHARED_LIMIT;
use crate::error::{Error, Result};
use crate::format::{Dtype, Header, Layout, MAX_BLOCK, Transform, Units};

pub use delta::{DeltaMemory, DeviceDelta};
pub use kernel::Kernel;
use rooms::Rooms;
use table::Table;

/// The most thread blocks that a launch has in its second dimension.
pub(super) const MAX_GRID_Y: u64 = 65_535;

/// A kernel with its arguments and as many threads as it needs.
#[derive(Clone, Copy, Debug)]
pub struct Launch<A> {
    /// Which one.
    pub kernel: Kernel,
    /// Thread blocks, in two dimensions.
    pub grid: (u32, u32),
    /// Threads a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory a block.
    pub shared: u32,
    /// The only argument, passed by value.
    pub arguments: A,
}

/// What a kernel found, out of the bits of its status word.
///
/// # Errors
/// A record was damaged, or an index named no row.
pub fn check_status(status: u32) -> Result<()> {
    if status & DAMAGED_RECORD != 0 {
        return Err(Error::corrupt("the record of a block is damaged"));
    }
    if status & INDEX_OUT_OF_RANGE != 0 {
        return Err(Error::invalid("an index names no row of the weight"));
    }
    Ok(())
}

/// Device memory that a weight is in: addresses, as integers.
#[derive(Clone, Copy, Debug)]
pub struct WeightMemory {
    /// The blob.
    pub blob: u64,
    /// [`DeviceWeight::table`].
    pub table: u64,
}

/// Device memory that decoded weights go to.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// The element type: the blob's own, or float32 if that is a float.
    pub dtype: Dtype,
    /// The first element, at a multiple of 16 bytes.
    pub address: u64,
    /// A 32-bit word in which the kernel sets bits for [`check_status`].
    pub status: u64,
}

/// Device memory with indices of rows, each of `size` bytes (4 or 8, signed).
#[derive(Clone, Copy, Debug)]
pub struct Indices {
    /// The first index, at a multiple of its size.
    pub address: u64,
    /// How many.
    pub count: u64,
    /// Bytes of each.
    pub size: u32,
}

/// A blob's header as kernels want it. Made once; the blob's payload is not read.
#[derive(Clone, Debug)]
pub struct DeviceWeight {
    pub(super) arguments: WeightArguments,
    blocks: Vec<BlockEntry>,
    table: Table,
    pub(super) dtype: Dtype,
    pub(super) layout: Layout,
    pub(super) shape: Vec<u64>,
}

impl DeviceWeight {
    /// Takes from the validated header of a blob what kernels need that read all of its layers, if it has any.
    ///
    /// # Errors
    /// The blob is a delta, a record is longer than any block's can be, or there are more blocks than a launch has thread
    /// blocks.
    pub fn new(header: &Header) -> Result<Self> {
        DeviceWeight::to_depth(header, usize::MAX)
    }

    /// The same for kernels that read the first `depth` layers, all if there are fewer. Weights then are in the middle of
    /// what they may be.
    ///
    /// # Errors
    /// As [`DeviceWeight::new`].
    pub fn to_depth(header: &Header, depth: usize) -> Result<Self> {
        let depth = depth.min(header.layers.len());
        let transform = match header.transform {
            Transform::Split => 1,
            Transform::NormalisedSplit => 2,
            Transform::Grid => 3,
            Transform::Integer => 5,
            Transform::Codebook => 6,
            Transform::Delta => {
                return Err(Error::invalid("a delta without its base"));
            }
        };
        let blocks = header.blocks();
        let count = u32::try_from(blocks.count()).ok().filter(|&count| count <= i32::MAX as u32);
        let count = count.ok_or_else(|| unsupported("more than 2^31 blocks"))?;
        let mut entries = Vec::with_capacity(count as usize + 1);
        let mut rooms = Rooms::new(depth);
        let payload = header.payload_offset();
        for block in 0..count as usize {
            let (slots, record) = (blocks.slots(block as u64), header.record(block));
            let bits = header.widths[block];
            let known = known_bits(header, depth, bits);
            rooms.add(header, block, (slots.end - slots.start) as usize, known)?;
            // Of a level the kernels know the middle by its grid.
            let is_cut = known < bits && header.transform != Transform::Grid;
            entries.push(BlockEntry {
                first_slot: slots.start,
                offset: ((record.start - payload) / 4) as u32,
                record: (record.len() / 4) as u16,
                known: known | if is_cut { CUT } else { 0 },
                m: header.record_bits(block),
            });
        }
        entries.push(BlockEntry { first_slot: blocks.elements(), ..Default::default() });

        let mut arguments = WeightArguments {
            blob_len: header.blob_len,
            payload: payload as u64,
            elements: blocks.elements(),
            block_len: header.block_len,
            blocks_per_tile: tile_slots(header).div_ceil(header.block_len.into()) as u32,
            tiers: header.tiers.len() as u32,
            transform,
            is_even: u32::from(is_even(header)),
            raw_bits: header.mantissa_bits.into(),
            known_bits: known_bits(header, depth, header.mantissa_bits).into(),
            layers: depth as u32,
            layer_at: rooms.layer_at(),
            joined_at: rooms.joined_at(),
            element: element(header.spec.dtype),
            record_room: rooms.all(),
            tail_room: rooms.tail(header.tiers.len()),
            ..Default::default()
        };
        for (i, tier) in header.tiers.iter().enumerate() {
            arguments.tier_widths[i] = tier.width;
            arguments.symbols[i][..tier.symbols.len()].copy_from_slice(&tier.symbols);
        }
        for (i, layer) in header.layers[..depth].iter().enumerate() {
            arguments.layer_starts[i] = layer.start;
            arguments.layer_bits[i] = layer.bits;
        }
        let spec = &header.spec;
        if !header.units.is_empty() {
            arguments.units_of = match header.units_of {
                Units::Tensor => 0,
                Units::Block => 1,
                Units::Row => 2,
            };
            arguments.tile_slots = tile_slots(header);
            if let (Layout::ColumnTiles { tile }, [_, columns]) = (spec.layout, &spec.shape[..]) {
                (arguments.tile_width, arguments.columns) = (tile, *columns);
            }
        }
        Ok(DeviceWeight {
            arguments,
            table: Table::new(header, depth, &entries, is_lean(header)),
            blocks: entries,
            dtype: spec.dtype,
            layout: spec.layout,
            shape: spec.shape.clone(),
        })
    }

    /// The table that has to be in device memory, at a multiple of 16 bytes.
    pub fn table(&self) -> &[u8] {
        &self.table.bytes
    }

    /// Blocks of the blob.
    pub(super) fn block_count(&self) -> u32 {
        self.blocks.len() as u32 - 1
    }

    /// The order in which the tensor is stored.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Dimensions of the tensor, outermost first.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Weights in the tensor.
    pub fn elements(&self) -> u64 {
        self.arguments.elements
    }

    /// Decodes the whole tensor in ONNX order.
    ///
    /// # Errors
    /// The element type is not one that the blob decodes to, an address is not aligned, or a tile has 2^32 weights.
    pub fn decode_all(&self, memory: WeightMemory, out: Output) -> Result<Launch<DecodeArguments>> {
        match self.layout {
            Layout::RowMajor => self.decode_slots(memory, out, 0, self.elements()),
            Layout::ColumnTiles { .. } => self.decode_columns(memory, out, 0, self.shape[1]),
        }
    }

    /// Decodes `columns` columns from column `first` on, of a tensor in column tiles, to a matrix of just those columns.
    ///
    /// # Errors
    /// The columns are not whole tiles of a tensor in column tiles; as [`DeviceWeight::decode_all`].
    pub fn decode_columns(
        &self,
        memory: WeightMemory,
        out: Output,
        first: u64,
        columns: u64,
    ) -> Result<Launch<DecodeArguments>> {
        let wrong = || Error::invalid(format!("columns {first}+{columns} of a tensor of {:?}", self.layout));
        let Layout::ColumnTiles { tile } = self.layout else { return Err(wrong()) };
        let (rows, all) = (self.shape[0], self.shape[1]);
        let width = u64::from(tile).min(all);
        let end = first.checked_add(columns).filter(|&end| columns > 0 && end <= all).ok_or_else(wrong)?;
        if !first.is_multiple_of(width) || (end != all && !end.is_multiple_of(width)) {
            return Err(wrong());
        }
        let tiles = columns.div_ceil(width);
        if rows.checked_mul(width).is_none_or(|slots| slots > u64::from(u32::MAX)) || tiles > MAX_GRID_Y {
            return Err(unsupported("a tile of 2^32 weights, or 65536 tiles"));
        }
        let mut launch = self.launch(memory, out)?;
        launch.grid = (self.arguments.blocks_per_tile, tiles as u32);
        let is_whole = matches!(width, 64 | 128 | 256) && columns.is_multiple_of(width);
        launch.arguments = DecodeArguments {
            order: ROW_MAJOR,
            first_block: (first / width) as u32 * self.arguments.blocks_per_tile,
            columns,
            tile_width: width as u32,
            tiles: tiles as u32,
            rows,
            ..launch.arguments
        };
        if is_whole {
            self.shorten(&mut launch, out.dtype);
        }
        Ok(launch)
    }

    /// Decodes `slots` weights from slot `first` on, in stored order: a range of rows of a row-major tensor, or one or
    /// more column tiles, each row by row.
    ///
    /// # Errors
    /// The slots are not all in the tensor, or there are none; as [`DeviceWeight::decode_all`].
    pub fn decode_slots(
        &self,
        memory: WeightMemory,
        out: Output,
        first: u64,
        slots: u64,
    ) -> Result<Launch<DecodeArguments>> {
        let end = first.checked_add(slots).filter(|&end| slots > 0 && end <= self.elements());
        let end = end.ok_or_else(|| {
            Error::invalid(format!("slots {first}+{slots} of a tensor of {} weights", self.elements()))
        })?;
        let block_of = |slot: u64| self.blocks.partition_point(|block| block.first_slot <= slot) - 1;
        let (first_block, last_block) = (block_of(first), block_of(end - 1));
        let mut launch = self.launch(memory, out)?;
        launch.grid = ((last_block - first_block + 1) as u32, 1);
        let block_len = u64::from(self.arguments.block_len);
        launch.arguments = DecodeArguments {
            order: STORED,
            first_block: first_block as u32,
            first_slot: first,
            slots,
            ..launch.arguments
        };
        if first.is_multiple_of(block_len) && slots.is_multiple_of(block_len) {
            self.shorten(&mut launch, out.dtype);
        }
        Ok(launch)
    }

    /// Decodes the rows that `indices` name, a negative one counted from the end, one after the other.
    ///
    /// # Errors
    /// The tensor has column tiles or no dimension, there are no indices; as [`DeviceWeight::decode_all`].
    pub fn gather(
        &self,
        memory: WeightMemory,
        out: Output,
        indices: Indices,
    ) -> Result<Launch<DecodeArguments>> {
        let rows = match (self.layout, self.shape.first()) {
            (Layout::RowMajor, Some(&rows)) => rows,
            _ => {
                return Err(Error::invalid(
                    "rows are gathered from a row-major tensor with a first dimension",
                ));
            }
        };
        let Indices { address, count, size } = indices;
        if count == 0 || !matches!(size, 4 | 8) || !address.is_multiple_of(size.into()) {
            return Err(Error::invalid(format!("{count} indices of {size} bytes at {address:#x}")));
        }
        let row_len = self.elements() / rows;
        // A row may start in the middle of a block.
        let block_len = u64::from(self.arguments.block_len);
        let blocks_per_row = match row_len % block_len {
            0 => row_len / block_len,
            _ => (row_len - 1) / block_len + 2,
        };
        let mut launch = self.launch(memory, out)?;
        launch.grid =
            (blocks_per_row.min(self.arguments.blocks_per_tile.into()) as u32, count.min(MAX_GRID_Y) as u32);
        launch.arguments = DecodeArguments {
            order: GATHER,
            indices: address,
            index_count: count,
            rows,
            row_len,
            index_size: size,
            ..launch.arguments
        };
        Ok(launch)
    }

    /// Has whole blocks decoded in a shorter way, if there is one to this type.
    fn shorten(&self, launch: &mut Launch<DecodeArguments>, dtype: Dtype) {
        let shared = lean_shared(&self.arguments);
        if self.is_lean() && matches!(dtype, Dtype::Bf16 | Dtype::F32) && shared <= SHARED_LIMIT {
            launch.kernel = Kernel::DecodeLean(dtype);
            launch.threads = LEAN_THREADS;
            launch.shared = shared;
            launch.arguments.lean_blocks = launch.grid.0;
            launch.grid.0 = launch.grid.0.div_ceil(LEAN_THREADS / 32);
        } else if self.is_all_even() {
            launch.threads = EVEN_THREADS;
        }
    }

    fn launch(&self, memory: WeightMemory, out: Output) -> Result<Launch<DecodeArguments>> {
        let integers = self.dtype.is_integer();
        if out.dtype != self.dtype && (integers || out.dtype != Dtype::F32) {
            let (dtype, wanted) = (self.dtype.name(), out.dtype.name());
            let more = if integers { "" } else { " or float32" };
            return Err(Error::invalid(format!("{dtype} weights decode to {dtype}{more}, not {wanted}")));
        }
        check_address(out.address, 16, "output")?;
        let weight = self.at(memory)?;
        Ok(Launch {
            kernel: if integers { Kernel::Integers } else { Kernel::Decode(out.dtype) },
            grid: (1, 1),
            threads: self.threads(),
            shared: self.shared(),
            arguments: DecodeArguments { weight, out: out.address, status: out.status, ..Default::default() },
        })
    }
}

impl DeviceWeight {
    /// What kernels are told of the weight where it is.
    pub(super) fn at(&self, memory: WeightMemory) -> Result<WeightArguments> {
        check_address(memory.blob, 4, "blob")?;
        check_address(memory.table, 16, "table of blocks")?;
        let at = |place: Option<u64>| place.map_or(0, |place| memory.table + place);
        Ok(WeightArguments {
            blob: memory.blob,
            blocks: memory.table,
            units: at(self.table.units),
            books: at(self.table.books),
            groups: at(self.table.groups),
            layer_offsets: at(self.table.layer_offsets),
            selectors: at(self.table.selectors),
            ..self.arguments
        })
    }

    /// Whether every block can go the short way: what asks for whole blocks then needs no more than [`EVEN_THREADS`].
    pub(super) fn is_all_even(&self) -> bool {
        let slots = u64::from(self.block_count()) * u64::from(self.arguments.block_len);
        self.arguments.is_even == 1 && self.elements() == slots
    }

    /// Whether a warp can decode each block on its own (`cpp/cuda/lean.cuh`).
    pub(super) fn is_lean(&self) -> bool {
        self.table.selectors.is_some()
    }

    /// Threads that decode a block.
    pub(super) fn threads(&self) -> u32 {
        32 * self.arguments.block_len.div_ceil(WARP_SLOTS)
    }

    /// Bytes of shared memory that decoding a block takes.
    pub(super) fn shared(&self) -> u32 {
        self.arguments.record_room + 2 * self.arguments.tail_room + COUNTS_SIZE as u32
    }
}

/// Bytes of shared memory of kernels with [`LEAN_THREADS`] threads, each warp of which has a block: tails and literals.
pub(super) fn lean_shared(weight: &WeightArguments) -> u32 {
    SELECTORS_SIZE + LEAN_THREADS / 32 * 2 * weight.tail_room
}

/// The same where each symbol of a tail has a window, of four bytes.
pub(super) fn lean_shared_of_windows(weight: &WeightArguments) -> u32 {
    SELECTORS_SIZE + LEAN_THREADS / 32 * 5 * weight.tail_room
}

pub(super) fn check_address(address: u64, align: u64, what: &str) -> Result<()> {
    if address.is_multiple_of(align) {
        return Ok(());
    }
    Err(Error::invalid(format!("the {what} is at {address:#x}, not at a multiple of {align}")))
}

/// The number that kernels have for an element type.
pub(super) fn element(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
        Dtype::U8 => 3,
        Dtype::I8 => 4,
    }
}

/// Of a weight's `bits` raw bits, those in its record and in the first `depth` layers.
fn known_bits(header: &Header, depth: usize, bits: u8) -> u8 {
    match depth.checked_sub(1) {
        _ if depth == header.layers.len() => bits,
        None => bits.min(header.base_bits),
        Some(last) => bits.min(header.layers[last].bits),
    }
}

/// Whether kernels have a short way for the blob's whole blocks.
fn is_even(header: &Header) -> bool {
    let Header { block_len, tiers, transform, layers, .. } = header;
    *block_len == MAX_BLOCK
        && *transform == Transform::Split
        && layers.is_empty()
        && tiers.len() <= 2
        && tiers.iter().all(|tier| tier.width == 2)
}

/// Whether a warp can decode each of its blocks on its own.
fn is_lean(header: &Header) -> bool {
    is_even(header)
        && header.tiers.len() == 2
        && header.spec.dtype == Dtype::Bf16
        && (0..header.blocks().count()).all(|block| {
            let slots = header.blocks().slots(block);
            slots.end - slots.start == u64::from(MAX_BLOCK)
        })
}

/// Slots of a whole tile.
fn tile_slots(header: &Header) -> u64 {
    match header.spec.layout {
        Layout::RowMajor => header.blocks().elements(),
        Layout::ColumnTiles { tile } => header.spec.shape[0] * header.spec.shape[1].min(tile.into()),
    }
}

pub(super) fn unsupported(what: &str) -> Error {
    Error::Unsupported(format!("{what}: too large for a CUDA device"))
}
