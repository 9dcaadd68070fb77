//! Decoding: the production decoder, over a backend of [`crate::arch`].

use std::cell::RefCell;
use std::ops::Range;

use super::encode::runs;
use super::integer;
use crate::arch::{
    self, BLOCK, Backend, BadRecord, Grid, Half, Record, Refinement, STRIP, Scratch, Step, Store, Tables,
    Values,
};
use crate::error::{Error, Result};
use crate::format::{Dtype, Header, Layer, Layout, Transform, Units, payload_hash};

/// A validated header and the tables to decode its blob with.
///
/// The blob itself is passed to each call: inside ONNX Runtime it is a mapped file that nobody owns. Its
/// payload may even change underneath; decoded values are wrong then, but nothing outside is read or written.
pub struct Decoder {
    header: Header,
    tables: Tables,
    /// Of each unit.
    steps: Vec<Step>,
    codebooks: Vec<Values>,
    /// Layers that are read.
    depth: usize,
    backend: Backend,
}

thread_local! {
    static SCRATCH: RefCell<(Box<Scratch>, Box<[u32; BLOCK]>)> =
        RefCell::new((Scratch::new(), Box::new([0; BLOCK])));
}

/// What a fused product of a backend returns.
type Fused = Option<std::result::Result<(), BadRecord>>;

/// Decodes a blob to row-major little-endian elements of its dtype. All checksums are verified.
///
/// # Errors
/// The blob is corrupt, truncated or of a version that this library does not know.
pub fn decode(blob: &[u8]) -> Result<Vec<u8>> {
    Decoder::open(blob)?.decode_bytes(blob)
}

impl Decoder {
    /// Validates header and payload of `blob`.
    ///
    /// # Errors
    /// As [`Header::parse`], or the payload's checksum differs.
    pub fn open(blob: &[u8]) -> Result<Decoder> {
        let decoder = Decoder::open_unverified(blob)?;
        decoder.verify(blob)?;
        Ok(decoder)
    }

    /// Compares the checksums of what is decoded: of the records and of the layers that are read.
    ///
    /// # Errors
    /// One differs.
    pub fn verify(&self, blob: &[u8]) -> Result<()> {
        let header = &self.header;
        if blob.len() as u64 != header.blob_len {
            return Err(Error::Truncated { needed: header.blob_len, found: blob.len() as u64 });
        }
        if payload_hash(&blob[header.payload()]) != header.payload_hash {
            return Err(Error::corrupt("payload checksum differs"));
        }
        let mut end = header.payload().end;
        for (i, layer) in self.layers().iter().enumerate() {
            if blob[end..layer.range().start].iter().any(|&byte| byte != 0) {
                return Err(Error::corrupt(format!("padding before layer {} is not zero", i + 1)));
            }
            end = layer.range().end;
            if payload_hash(&blob[layer.range()]) != layer.hash {
                return Err(Error::corrupt(format!("checksum of layer {} differs", i + 1)));
            }
        }
        Ok(())
    }

    /// The same decoder reading the first `depth` layers only, all if there are fewer. Weights then are in the middle of
    /// what they may be; those beyond are never touched.
    #[must_use]
    pub fn to_depth(mut self, depth: usize) -> Decoder {
        self.depth = depth.min(self.header.layers.len());
        self.steps = steps(&self.header, self.depth);
        self
    }

    /// How many layers are read.
    pub fn depth(&self) -> usize {
        self.depth
    }

    fn layers(&self) -> &[Layer] {
        &self.header.layers[..self.depth]
    }

    /// Validates the header of `blob` and leaves its payload unread.
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub fn open_unverified(blob: &[u8]) -> Result<Decoder> {
        Decoder::with_backend(blob, Backend::active())
    }

    /// As [`Decoder::open_unverified`], on a backend of the caller's choice.
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub fn with_backend(blob: &[u8], backend: Backend) -> Result<Decoder> {
        let header = Header::parse(blob)?;
        if header.transform == Transform::Delta {
            return Err(Error::Unsupported(
                "a delta, which is of use with its base only: `nz-onnx restore` puts them together".into(),
            ));
        }
        let tables = Tables::new(&header.tiers);
        let depth = header.layers.len();
        let steps = steps(&header, depth);
        let codebooks =
            header.codebook.iter().flat_map(|codebook| &codebook.tables).map(Values::new).collect();
        Ok(Decoder { header, tables, steps, codebooks, depth, backend })
    }

    /// The blob's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Decodes `out.len()` weights from slot `first_slot` on, in stored order, to float32; integers to floats with the
    /// bits of their words.
    ///
    /// # Errors
    /// The slots are not all in the tensor, `blob` does not have the length of the one that was opened, or a
    /// record is corrupt.
    pub fn decode_f32(&self, blob: &[u8], first_slot: u64, out: &mut [f32]) -> Result<()> {
        self.decode_as(Dtype::F32, blob, first_slot, bytemuck::cast_slice_mut(out))
    }

    /// Decodes `out.len() / dtype.size()` weights from slot `first_slot` on, in stored order, to little-endian elements
    /// of the blob's dtype.
    ///
    /// # Errors
    /// As [`Decoder::decode_f32`], or `out` is no whole number of elements.
    pub fn decode_elements(&self, blob: &[u8], first_slot: u64, out: &mut [u8]) -> Result<()> {
        let dtype = self.header.spec.dtype;
        if !out.len().is_multiple_of(dtype.size()) {
            let (len, name) = (out.len(), dtype.name());
            return Err(Error::invalid(format!("{len} bytes are no whole number of {name} elements")));
        }
        self.decode_as(dtype, blob, first_slot, out)
    }

    /// Decodes slots to elements of `dtype`, the blob's own or float32.
    fn decode_as(&self, dtype: Dtype, blob: &[u8], first_slot: u64, out: &mut [u8]) -> Result<()> {
        let size = dtype.size();
        let store = if out.len() >= STREAM_FROM { Store::Streamed } else { Store::Cached };
        SCRATCH.with_borrow_mut(|(scratch, words)| {
            let mut out = out;
            let mut parts = self.blocks(blob, first_slot, out.len() / size)?.peekable();
            let mut records = [Record::default(); BATCH];
            while let Some(part) = parts.next() {
                let here;
                self.find(blob, &part, &mut records[0]);
                if part.is_whole() {
                    // Whole blocks are decoded in place, some at a time.
                    let (mut count, mut len) = (1, part.len());
                    while count < BATCH
                        && let Some(next) = parts.next_if(Part::is_whole)
                    {
                        self.find(blob, &next, &mut records[count]);
                        count += 1;
                        len += next.len();
                    }
                    (here, out) = out.split_at_mut(len * size);
                    if self.decode_in_place(dtype, &records[..count], scratch, here, store)? {
                        continue;
                    }
                    let mut here = here;
                    for record in &records[..count] {
                        let block;
                        (block, here) = here.split_at_mut(record.len * size);
                        let words = &mut words[..record.len];
                        self.decode_records(&[*record], scratch, words, Store::Cached)?;
                        self.backend.store(dtype, words, block);
                    }
                } else {
                    (here, out) = out.split_at_mut(part.range.len() * size);
                    let words = &mut words[..part.len()];
                    self.decode_records(&records[..1], scratch, words, Store::Cached)?;
                    self.backend.store(dtype, &words[part.range], here);
                }
            }
            Ok(())
        })?;
        if store == Store::Streamed {
            arch::fence();
        }
        Ok(())
    }

    /// Decodes whole blocks straight to elements of `dtype`, if the backend can do that, and says whether it did.
    fn decode_in_place(
        &self,
        dtype: Dtype,
        records: &[Record<'_>],
        scratch: &mut Scratch,
        out: &mut [u8],
        store: Store,
    ) -> Result<bool> {
        let format = match dtype {
            Dtype::F32 => {
                let Ok(words) = bytemuck::try_cast_slice_mut(out) else { return Ok(false) };
                self.decode_records(records, scratch, words, store)?;
                return Ok(true);
            }
            Dtype::U8 | Dtype::I8 => return Ok(false),
            Dtype::F16 => Half::F16,
            Dtype::Bf16 => Half::Bf16,
        };
        let Ok(out) = bytemuck::try_cast_slice_mut(out) else { return Ok(false) };
        if self.header.transform == Transform::NormalisedSplit {
            return Ok(false);
        }
        match self.backend.decode_halves(&self.tables, records, scratch, format, out, store) {
            None => Ok(false),
            Some(Ok(())) => Ok(true),
            Some(Err(BadRecord)) => Err(damaged()),
        }
    }

    fn decode_records(
        &self,
        records: &[Record<'_>],
        scratch: &mut Scratch,
        words: &mut [u32],
        store: Store,
    ) -> Result<()> {
        let Header { transform, mantissa_bits, ref spec, .. } = self.header;
        let normalised = transform == Transform::NormalisedSplit;
        // Words that are gone over once more had better be in the cache.
        let store = if normalised { Store::Cached } else { store };
        self.backend.decode(&self.tables, records, scratch, words, store).map_err(|BadRecord| damaged())?;
        if normalised {
            self.backend.denormalise(words);
            if spec.dtype == Dtype::Bf16 && self.depth < self.header.layers.len() {
                // The middle of what a subnormal may be is no bfloat16.
                words.iter_mut().for_each(|word| *word &= 0xffff_0000);
            }
        }
        if transform == Transform::Integer {
            integer::lower(words, mantissa_bits);
        }
        Ok(())
    }

    /// Decodes the whole tensor to row-major little-endian elements of its dtype.
    ///
    /// # Errors
    /// As [`Decoder::decode_f32`].
    pub fn decode_bytes(&self, blob: &[u8]) -> Result<Vec<u8>> {
        let (spec, blocks) = (&self.header.spec, self.header.blocks());
        let size = spec.dtype.size();
        let mut out = vec![0u8; blocks.elements() as usize * size];
        if spec.layout == Layout::RowMajor {
            self.decode_elements(blob, 0, &mut out)?;
            return Ok(out);
        }
        let mut elements = vec![0u8; BLOCK * size];
        for block in 0..blocks.count() {
            let slots = blocks.slots(block);
            let elements = &mut elements[..(slots.end - slots.start) as usize * size];
            self.decode_elements(blob, slots.start, elements)?;
            for run in runs(spec, slots) {
                out[run.element * size..][..run.len * size]
                    .copy_from_slice(&elements[run.at * size..][..run.len * size]);
            }
        }
        Ok(out)
    }

    /// `y += x W`, where the slots from `first_slot` on are `W`, `[x.len(), y.len()]`, row by row. Every element of
    /// `y` is summed up in the order of rows, one rounding a step. Says whether it did so: if not, the weights must be
    /// decoded first.
    ///
    /// # Errors
    /// As [`Decoder::decode_f32`].
    pub fn multiply_rows(&self, blob: &[u8], first_slot: u64, x: &[f32], y: &mut [f32]) -> Result<bool> {
        self.multiply(blob, first_slot, x, y, Backend::multiply_rows)
    }

    /// `y += W x`, where the slots from `first_slot` on are `W`, `[y.len(), x.len()]`, row by row. Says whether it did
    /// so: if not, the weights must be decoded first.
    ///
    /// # Errors
    /// As [`Decoder::decode_f32`].
    pub fn multiply_columns(&self, blob: &[u8], first_slot: u64, x: &[f32], y: &mut [f32]) -> Result<bool> {
        self.multiply(blob, first_slot, x, y, Backend::multiply_columns)
    }

    fn multiply(
        &self,
        blob: &[u8],
        first_slot: u64,
        x: &[f32],
        y: &mut [f32],
        with: impl Fn(Backend, &Tables, &[Record<'_>], &mut Scratch, &[f32], &mut [f32]) -> Fused,
    ) -> Result<bool> {
        if matches!(self.header.transform, Transform::NormalisedSplit | Transform::Integer) {
            return Ok(false);
        }
        let weights = x.len() * y.len();
        let mut records = Vec::with_capacity(weights / self.header.block_len as usize + 1);
        for part in self.blocks(blob, first_slot, weights)? {
            if !part.is_whole() {
                return Ok(false);
            }
            let mut record = Record::default();
            self.find(blob, &part, &mut record);
            records.push(record);
        }
        let done =
            SCRATCH.with_borrow_mut(|(scratch, _)| with(self.backend, &self.tables, &records, scratch, x, y));
        match done {
            None => Ok(false),
            Some(Ok(())) => Ok(true),
            Some(Err(BadRecord)) => Err(damaged()),
        }
    }

    /// What layers add to the words of a block.
    fn refinement<'a>(&self, blob: &'a [u8], block: usize) -> Option<Refinement<'a>> {
        let Header { widths, layers, transform, spec, base_bits, .. } = &self.header;
        if layers.is_empty() {
            return None;
        }
        let m = widths[block];
        let known = self.layers().last().map_or(*base_bits, |layer| layer.bits);
        // Levels have their middle from their step.
        let is_cut = known < m && *transform != Transform::Grid;
        let centre = if is_cut { 1 << (22 - known) } else { 0 };
        let parts = self.layers().iter().map(|layer| (&blob[layer.block(block)], layer.bits.min(m)));
        let least = match spec.dtype {
            // A subnormal has no place for more bits.
            Dtype::F16 => 113 << 23,
            _ => 1 << 23,
        };
        Some(Refinement::new(parts, self.header.record_bits(block), centre, least))
    }

    /// The grid of the block that starts at slot `first`.
    fn grid(&self, block: usize, first: u64) -> Option<Grid<'_>> {
        let Header { spec, units_of, transform, .. } = &self.header;
        let dtype = spec.dtype;
        let grid = match (transform, units_of) {
            (Transform::Grid | Transform::Codebook, Units::Tensor) => {
                Some(Grid::uniform(&self.steps[0], dtype))
            }
            (Transform::Grid | Transform::Codebook, Units::Block) => {
                Some(Grid::uniform(&self.steps[block], dtype))
            }
            (Transform::Grid | Transform::Codebook, Units::Row) => {
                let row = spec.grid_row(first)?;
                let (strips, before) =
                    ((row.columns / STRIP as u64) as u32, (row.column / STRIP as u64) as u32);
                Some(Grid::of_rows(&self.steps[row.row as usize..], strips, before, dtype))
            }
            _ => None,
        };
        grid.map(|grid| grid.with_tables(&self.codebooks))
    }

    /// The blocks that have the `len` slots from `first` on.
    fn blocks(&self, blob: &[u8], first: u64, len: usize) -> Result<impl Iterator<Item = Part>> {
        let blocks = self.header.blocks();
        if blob.len() as u64 != self.header.blob_len {
            return Err(Error::Truncated { needed: self.header.blob_len, found: blob.len() as u64 });
        }
        let end = first.checked_add(len as u64).filter(|&end| end <= blocks.elements()).ok_or_else(|| {
            Error::invalid(format!("slots {first}+{len} of a tensor of {} weights", blocks.elements()))
        })?;
        let mut next = first;
        Ok(std::iter::from_fn(move || {
            if next == end {
                return None;
            }
            let block = blocks.block_of(next);
            let slots = blocks.slots(block);
            let range = (next - slots.start) as usize..(slots.end.min(end) - slots.start) as usize;
            next = slots.end.min(end);
            Some(Part { block: block as usize, slots, range })
        }))
    }

    /// Writes down the record of a block. (In its place: it is long, and most of it seldom used.)
    #[inline]
    fn find<'a>(&'a self, blob: &'a [u8], part: &Part, record: &mut Record<'a>) {
        let bytes = self.header.record(part.block);
        // What the third record after the next is likely to take: four are worked on side by side, and their ends are
        // wanted first.
        let at = |records: usize| (bytes.end + records * bytes.len()).min(self.header.payload().end);
        record.bytes = &blob[bytes.clone()];
        record.m = self.header.record_bits(part.block);
        record.len = part.len();
        record.grid = self.grid(part.block, part.slots.start);
        record.layers = self.refinement(blob, part.block);
        record.ahead = &blob[at(3)..at(4)];
    }
}

/// The steps of the units of a blob of which so many layers are read.
fn steps(header: &Header, depth: usize) -> Vec<Step> {
    let units = header.units.iter();
    let k = header.mantissa_bits;
    let known = match depth.checked_sub(1) {
        _ if depth == header.layers.len() => k,
        None => header.base_bits.min(k),
        Some(last) => header.layers[last].bits.min(k),
    };
    match &header.codebook {
        Some(codebook) => {
            let group = |i: usize| codebook.groups.get(i).copied().unwrap_or(0);
            units.enumerate().map(|(i, &unit)| Step::of_codebook(unit, group(i))).collect()
        }
        None => units.map(|&unit| Step::new(unit, k, known)).collect(),
    }
}

/// A block of which some slots are wanted.
struct Part {
    block: usize,
    slots: Range<u64>,
    /// The slots wanted, counted from the block's first.
    range: Range<usize>,
}

impl Part {
    /// Slots of the block.
    fn len(&self) -> usize {
        (self.slots.end - self.slots.start) as usize
    }

    fn is_whole(&self) -> bool {
        self.range.len() == self.len()
    }
}

/// How many bytes of output are too many for the caches to be of use.
const STREAM_FROM: usize = 16 << 20;
/// Records that the backend gets at a time.
const BATCH: usize = 8;

pub(super) fn damaged() -> Error {
    Error::corrupt("the record of a block is damaged")
}
