//! Encoding: weights in, blob out.

use std::cell::{Cell, RefCell};

use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use super::cascade::Profile;
use super::grid::{self, GridStep};
use super::integer;
use super::lossless::lossless_coding;
use super::survey;
use super::survey::Coding;
use crate::arch::{BLOCK, Backend, Half, RECORD_ROOM, Scratch, Tables};
use crate::error::{Error, Result};
use crate::format::{ALIGN, Blocks, Dtype, Layout, MAX_BLOCK, Sections, TensorSpec, Transform};

/// What to keep and how to cut a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Round weights to this many mantissa bits; `None`, or as many as the dtype has: lossless.
    pub mantissa_bits: Option<u8>,
    /// Round weights to a uniform grid of this step instead.
    pub grid: Option<GridStep>,
    /// Weights a block: a multiple of 64 up to 4096. Short blocks are cheaper to read at random, and larger.
    pub block_len: u32,
    /// Size or speed.
    pub profile: Profile,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        EncodeOptions { mantissa_bits: None, grid: None, block_len: MAX_BLOCK, profile: Profile::default() }
    }
}

/// A tensor's bytes, seen block by block in stored order.
pub(super) struct Source<'a> {
    bytes: &'a [u8],
    pub(super) spec: &'a TensorSpec,
    pub(super) blocks: Blocks,
}

impl<'a> Source<'a> {
    pub(super) fn new(bytes: &'a [u8], spec: &'a TensorSpec, block_len: u32) -> Result<Self> {
        let blocks = Blocks::new(spec, block_len)?;
        let expected = spec.bytes()?;
        if bytes.len() as u64 != expected {
            return Err(Error::invalid(format!(
                "{} bytes given, {} of shape {:?} take {expected}",
                bytes.len(),
                spec.dtype.name(),
                spec.shape
            )));
        }
        Ok(Source { bytes, spec, blocks })
    }

    /// Where the elements of `block` start, as far as they lie in a row; nothing behind the last block.
    fn bytes_of(&self, block: u64) -> &[u8] {
        if block < self.blocks.count() { self.bytes_at(self.blocks.slots(block)) } else { &[] }
    }

    /// Where the elements of `slots` start, as far as they lie in a row.
    pub(super) fn bytes_at(&self, slots: std::ops::Range<u64>) -> &[u8] {
        let (run, size) = (runs(self.spec, slots).next(), self.spec.dtype.size());
        run.map_or(&[], |run| &self.bytes[run.element * size..][..run.len * size])
    }

    /// The elements of `slots` if they have 16 bits and lie in a row.
    pub(super) fn halves(&self, slots: std::ops::Range<u64>) -> Option<(Half, &[u8])> {
        let format = Half::of(self.spec.dtype)?;
        let len = 2 * (slots.end - slots.start);
        let bytes = self.bytes_at(slots);
        (bytes.len() as u64 == len).then_some((format, bytes))
    }

    /// Loads the words of `slots` to the front of `out`.
    pub(super) fn load<'b>(
        &self,
        backend: Backend,
        slots: std::ops::Range<u64>,
        out: &'b mut [u32],
    ) -> &'b mut [u32] {
        let out = &mut out[..(slots.end - slots.start) as usize];
        load_with(backend, self.spec, self.bytes, slots.start, out);
        out
    }

    /// The words of `slots`, where they are if they lie there as they should, or else loaded into `room`.
    pub(super) fn words<'b>(
        &'b self,
        backend: Backend,
        slots: std::ops::Range<u64>,
        room: &'b mut [u32],
    ) -> &'b [u32] {
        if cfg!(target_endian = "little") && self.spec.dtype == Dtype::F32 {
            let run = runs(self.spec, slots.clone()).next();
            let whole = run.filter(|run| run.len as u64 == slots.end - slots.start);
            let bytes = whole.map(|run| &self.bytes[run.element * 4..][..run.len * 4]);
            if let Some(Ok(words)) = bytes.map(bytemuck::try_cast_slice) {
                return words;
            }
        }
        self.load(backend, slots, room)
    }
}

/// Loads the words of `src`, the row-major little-endian elements of `spec`, from slot `first` on: in stored order.
///
/// # Panics
/// The slots are not all in the tensor.
pub fn load_slots(spec: &TensorSpec, src: &[u8], first: u64, out: &mut [u32]) {
    load_with(Backend::active(), spec, src, first, out);
}

fn load_with(backend: Backend, spec: &TensorSpec, src: &[u8], first: u64, out: &mut [u32]) {
    let size = spec.dtype.size();
    for run in runs(spec, first..first + out.len() as u64) {
        let src = &src[run.element * size..][..run.len * size];
        backend.load(spec.dtype, src, &mut out[run.at..run.at + run.len]);
    }
}

/// A stretch of slots that is also contiguous in the row-major tensor.
pub(super) struct Run {
    /// Its start, counted from the first slot asked for.
    pub(super) at: usize,
    /// Its first element in the row-major tensor.
    pub(super) element: usize,
    pub(super) len: usize,
}

/// Cuts slots into contiguous runs of the row-major tensor.
pub(super) fn runs(spec: &TensorSpec, slots: std::ops::Range<u64>) -> impl Iterator<Item = Run> {
    let (k, n, width) = match (spec.layout, spec.shape.as_slice()) {
        (Layout::ColumnTiles { tile }, &[k, n]) => (k, n, n.min(u64::from(tile))),
        // Row-major is a single row in a single tile.
        (_, shape) => {
            let elements = shape.iter().product();
            (1, elements, elements)
        }
    };
    let mut next = slots.start;
    std::iter::from_fn(move || {
        if next == slots.end {
            return None;
        }
        let left = next / (k * width) * width;
        let columns = width.min(n - left);
        let (row, column) = ((next - left * k) / columns, (next - left * k) % columns);
        let len = (columns - column).min(slots.end - next);
        let element = row * n + left + column;
        let run = Run { at: (next - slots.start) as usize, element: element as usize, len: len as usize };
        next += len;
        Some(run)
    })
}

/// Encodes `src`, the row-major little-endian elements of `spec`.
///
/// Blocks are encoded in parallel on the current rayon pool; the bytes do not depend on it. A large tensor is coded
/// as a part of it calls for: it can come out up to 0.005 bits a weight larger than by [`super::survey`] and
/// [`encode_as`].
///
/// # Errors
/// `src` has the wrong length, shape, layout or options do not go together, the payload would pass 16 GiB, or there are
/// weights that the grid asked for cannot hold. Integers are not rounded: options that ask for it do not go with them.
pub fn encode(src: &[u8], spec: &TensorSpec, options: &EncodeOptions) -> Result<Vec<u8>> {
    if spec.dtype.is_integer() && (options.grid.is_some() || options.mantissa_bits.is_some()) {
        return Err(Error::invalid(format!("{} weights are not rounded", spec.dtype.name())));
    }
    if let Some(step) = options.grid {
        let survey = grid::survey_grid(src, spec, options)?;
        let survey = survey
            .ok_or_else(|| Error::invalid("weights that no grid can hold: not all finite, or too large"))?;
        return encode_as(src, spec, options.block_len, &survey.coding(step));
    }
    let coding = fitting_coding(src, spec, options)?;
    if let Some(blob) = encode_into(Vec::new(), src, spec, options.block_len, &coding)? {
        return Ok(blob);
    }
    let coding = survey::survey(src, spec, options)?.coding(options.mantissa_bits);
    encode_as(src, spec, options.block_len, &coding)
}

/// The coding that [`encode`] takes first: one that suits the tensor, or a part of it if it is large. It may be that
/// it has no room for words in the rest.
///
/// # Errors
/// As [`encode`].
pub fn fitting_coding(src: &[u8], spec: &TensorSpec, options: &EncodeOptions) -> Result<Coding> {
    if spec.dtype.is_integer() {
        return integer::integer_coding(src, spec, options);
    }
    match options.mantissa_bits.filter(|&k| k < spec.dtype.mantissa_bits()) {
        None => lossless_coding(src, spec, options),
        Some(k) => survey::rounded_coding(src, spec, options, k),
    }
}

/// As [`encode_as`], in the memory of `room` as far as that goes, such as [`Coding::size`] bytes that the caller has
/// allocated where it likes. `None` if the coding has no room for some words.
///
/// # Errors
/// As [`encode`].
pub fn encode_into(
    room: Vec<u8>,
    src: &[u8],
    spec: &TensorSpec,
    block_len: u32,
    coding: &Coding,
) -> Result<Option<Vec<u8>>> {
    encode_with(Backend::active(), room, src, spec, block_len, coding)
}

/// As [`encode`], with the coding that [`super::Survey::coding`] gave for the same tensor: it is read only once more.
///
/// # Errors
/// As [`encode`], or the coding is of another tensor and cannot hold this one.
pub fn encode_as(src: &[u8], spec: &TensorSpec, block_len: u32, coding: &Coding) -> Result<Vec<u8>> {
    encode_into(Vec::new(), src, spec, block_len, coding)?
        .ok_or_else(|| Error::invalid("the coding is of another tensor: it has no room for some exponents"))
}

/// Blocks in a row that one task encodes: their records stay in a core's cache until they are joined.
const CHUNK: u64 = 8;
/// The same where there is but one thread.
const ALONE: u64 = 2;
/// Chunks for each thread between one meeting of all threads and the next.
const CHUNKS_A_THREAD: u64 = 4;

/// `None`: the coding does not fit all words.
fn encode_with(
    backend: Backend,
    room: Vec<u8>,
    src: &[u8],
    spec: &TensorSpec,
    block_len: u32,
    coding: &Coding,
) -> Result<Option<Vec<u8>>> {
    let source = Source::new(src, spec, block_len)?;
    let encoder = BlockEncoder { backend, source: &source, tables: Tables::new(&coding.tiers), coding };
    let count = source.blocks.count();
    let mut blob = Assembly::new(room, &source, block_len, coding);

    let mut batches = CHUNKS.take();
    if rayon::current_num_threads() == 1 {
        // Nobody to wait for: each few records are joined while they are in the nearest cache.
        let [mut batch, other] = batches;
        batch.resize_with(batch.len().max(1), Chunk::new);
        for first in (0..count).step_by(ALONE as usize) {
            encoder.encode(first..count.min(first + ALONE), &mut batch[0]);
            if !blob.append_all(&mut batch[..1])? {
                return Ok(None);
            }
        }
        CHUNKS.set([batch, other]);
        return Ok(Some(blob.finish()));
    }
    let chunks = (CHUNKS_A_THREAD * rayon::current_num_threads() as u64).min(count.div_ceil(CHUNK));
    batches.iter_mut().for_each(|batch| batch.resize_with(chunks as usize, Chunk::new));
    let [mut now, mut before] = batches;
    for first in (0..count).step_by((chunks * CHUNK) as usize) {
        // While these chunks are encoded, those of the last round are joined.
        let (joined, ()) = rayon::join(
            || blob.append_all(&mut before),
            || {
                now.par_iter_mut().enumerate().for_each(|(i, chunk)| {
                    let start = first + i as u64 * CHUNK;
                    encoder.encode(start.min(count)..count.min(start + CHUNK), chunk);
                });
            },
        );
        if !joined? {
            return Ok(None);
        }
        std::mem::swap(&mut now, &mut before);
    }
    // Chunks that were not appended are not kept: they are not empty.
    if !blob.append_all(&mut before)? {
        return Ok(None);
    }
    CHUNKS.set([now, before]);
    Ok(Some(blob.finish()))
}

/// Consecutive records; the memory is used again for others.
struct Chunk {
    /// The records are at the front.
    bytes: Vec<u8>,
    len: usize,
    /// The size of each, in units of [`ALIGN`].
    sizes: Vec<u16>,
    widths: Vec<u8>,
    /// Whether rounding changed no weight.
    lossless: bool,
    /// Whether the coding fits all words.
    fits: bool,
}

impl Chunk {
    /// Room for [`CHUNK`] blocks.
    fn new() -> Self {
        let (bytes, sizes, widths) = (vec![0; RECORD_ROOM * CHUNK as usize], Vec::new(), Vec::new());
        Chunk { bytes, len: 0, sizes, widths, lossless: true, fits: true }
    }
}

thread_local! {
    /// Chunks of the last tensor that this thread had encoded: for small ones, fresh pages cost as much as encoding.
    static CHUNKS: Cell<[Vec<Chunk>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
}

/// What an encoding thread keeps.
struct Workspace {
    words: [u32; BLOCK],
    scratch: Box<Scratch>,
}

thread_local! {
    static WORKSPACE: RefCell<Box<Workspace>> =
        RefCell::new(Box::new(Workspace { words: [0; BLOCK], scratch: Scratch::new() }));
}

struct BlockEncoder<'a> {
    backend: Backend,
    source: &'a Source<'a>,
    tables: Tables,
    coding: &'a Coding,
}

impl BlockEncoder<'_> {
    /// The words of `block` as they will be decoded, but for subnormals that are coded normalised.
    fn words<'b>(&'b self, block: u64, room: &'b mut [u32], chunk: &mut Chunk) -> &'b [u32] {
        let (backend, coding, dtype) = (self.backend, self.coding, self.source.spec.dtype);
        let (slots, normalised) =
            (self.source.blocks.slots(block), coding.transform == Transform::NormalisedSplit);
        if coding.mantissa_bits.is_none() && !normalised {
            let words = self.source.words(backend, slots, room);
            chunk.fits &= !(coding.no_subnormals && backend.kinds(words).subnormal);
            return words;
        }
        if let Some(books) = &coding.books {
            let first = slots.start;
            let words = self.source.load(backend, slots, room);
            chunk.lossless = false;
            books.units.for_places(self.source.spec, block, first, words, |words, place| {
                books.assign(place, words);
            });
            return words;
        }
        if let (Some(units), Some(k)) = (&coding.grid, coding.mantissa_bits) {
            let first = slots.start;
            let words = self.source.load(backend, slots, room);
            // A source that is on the grid by chance is none the less stated to be rounded.
            chunk.lossless = false;
            units.for_units(self.source.spec, block, first, words, |words, unit| {
                backend.levels(words, unit, k);
            });
            return words;
        }
        let words = self.source.load(backend, slots, room);
        if let (Transform::Integer, Some(k)) = (coding.transform, coding.mantissa_bits) {
            integer::raise(words, k);
            return words;
        }
        if normalised || coding.no_subnormals {
            let kinds = backend.kinds(words);
            chunk.fits &= !(normalised && kinds.code || coding.no_subnormals && kinds.subnormal);
        }
        if let Some(k) = coding.mantissa_bits {
            chunk.lossless &= backend.round(words, k, dtype);
        }
        if normalised {
            backend.normalise(words);
        }
        words
    }

    /// The elements of `block` if they have 16 bits, are coded as they are, and lie in a row.
    fn halves(&self, block: u64) -> Option<(Half, &[u8])> {
        let as_it_is =
            self.coding.mantissa_bits.is_none() && self.coding.transform != Transform::NormalisedSplit;
        if as_it_is { self.source.halves(self.source.blocks.slots(block)) } else { None }
    }

    /// Fills `chunk`, which is empty, with the records of `blocks`, at most [`CHUNK`].
    fn encode(&self, blocks: std::ops::Range<u64>, chunk: &mut Chunk) {
        WORKSPACE.with_borrow_mut(|workspace| {
            let Workspace { words, scratch } = &mut **workspace;
            for block in blocks {
                let ahead = self.source.bytes_of(block + 1);
                let halves = self.halves(block).and_then(|(format, halves)| {
                    let out = &mut chunk.bytes[chunk.len..];
                    self.backend.encode_halves(&self.tables, format, halves, scratch, out, ahead)
                });
                let (m, len) = halves.unwrap_or_else(|| {
                    let words = self.words(block, words, chunk);
                    let out = &mut chunk.bytes[chunk.len..];
                    self.backend.encode(&self.tables, words, scratch, out, ahead)
                });
                let out = &mut chunk.bytes[chunk.len..];
                let padded = len.next_multiple_of(ALIGN);
                out[len..padded].fill(0);
                chunk.len += padded;
                chunk.widths.push(m);
                // At most 8 tiers of 4 bits, their literals and 24 raw bits for 4096 weights: 33 KiB.
                chunk.sizes.push((padded / ALIGN) as u16);
            }
        });
    }
}

/// A blob in the making. Its header comes first but is known last: the payload starts where it would start if the
/// blocks had widths as foreseen, and is moved if they have not.
struct Assembly {
    sections: Sections,
    blob: Vec<u8>,
    payload: usize,
    /// So many bytes of the blob's memory have been faulted in.
    faulted_in: usize,
    /// As [`crate::format::payload_hash`], bit by bit: what is hashed is still in the cache.
    hash: Xxh3,
}

impl Assembly {
    fn new(mut blob: Vec<u8>, source: &Source<'_>, block_len: u32, coding: &Coding) -> Self {
        let count = source.blocks.count() as usize;
        let mut sections = coding.sections(source.spec, block_len);
        // As long as they will be.
        (sections.widths, sections.sizes) = (vec![0; count], vec![0; count]);
        if !coding.one_width {
            sections.widths[0] = 1;
        }
        let payload = sections.write().len();
        sections.widths.clear();
        sections.sizes.clear();
        blob.clear();
        // The caller's memory is as the caller wants it.
        let own = blob.capacity() == 0;
        blob.reserve_exact(coding.size() as usize);
        if own {
            huge_pages(blob.spare_capacity_mut());
        }
        let faulted_in = if own { 0 } else { usize::MAX };
        blob.resize(payload, 0);
        Assembly { sections, blob, payload, faulted_in, hash: Xxh3::new() }
    }

    /// Appends the chunks' records; whether all fit.
    fn append_all(&mut self, chunks: &mut [Chunk]) -> Result<bool> {
        if !chunks.iter().all(|chunk| chunk.fits) {
            return Ok(false);
        }
        chunks.iter_mut().try_for_each(|chunk| self.append(chunk))?;
        Ok(true)
    }

    fn append(&mut self, chunk: &mut Chunk) -> Result<()> {
        let bytes = &chunk.bytes[..chunk.len];
        self.hash.update(bytes);
        if self.blob.capacity() - self.blob.len() < bytes.len() {
            // The size was a guess: a little more of it, not twice as much.
            self.blob.reserve_exact(bytes.len().max(self.blob.len() / 16));
        }
        let end = self.blob.len() + bytes.len();
        if end > self.faulted_in {
            let more = bytes.len().max(FAULTED_IN).min(self.blob.capacity() - self.blob.len());
            fault_in(&mut self.blob.spare_capacity_mut()[..more]);
            self.faulted_in = self.blob.len() + more;
        }
        self.blob.extend_from_slice(bytes);
        self.sections.sizes.append(&mut chunk.sizes);
        self.sections.widths.append(&mut chunk.widths);
        self.sections.lossless &= chunk.lossless;
        if (self.blob.len() - self.payload) as u64 / ALIGN as u64 > u64::from(u32::MAX) {
            return Err(Error::invalid("the payload would be larger than 16 GiB"));
        }
        (chunk.len, chunk.lossless, chunk.fits) = (0, true, true);
        Ok(())
    }

    fn finish(mut self) -> Vec<u8> {
        self.sections.payload_hash = self.hash.digest();
        let header = self.sections.write();
        if header.len() == self.payload {
            self.blob[..header.len()].copy_from_slice(&header);
        } else {
            self.blob.splice(0..self.payload, header);
        }
        self.blob
    }
}

/// Asks for huge pages behind `memory`, which will be filled soon: a page fault each 4 KiB costs about as much as
/// encoding them.
fn huge_pages(memory: &mut [std::mem::MaybeUninit<u8>]) {
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let start = memory.as_mut_ptr().align_offset(HUGE);
        let len = memory.len().saturating_sub(start) / HUGE * HUGE;
        if len > 0 {
            // SAFETY: only whole pages within the slice are named, and the advice changes nothing but speed.
            unsafe { libc::madvise(memory.as_mut_ptr().add(start).cast(), len, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// Bytes that are faulted in at one go: they are still in a core's cache when they are written.
const FAULTED_IN: usize = 256 << 10;

/// Has pages of their own put behind `memory`, which is filled next: a fault for each of them takes longer than that.
fn fault_in(memory: &mut [std::mem::MaybeUninit<u8>]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4 << 10;
        let start = memory.as_mut_ptr().align_offset(PAGE);
        let len = memory.len().saturating_sub(start) / PAGE * PAGE;
        if len > PAGE {
            let first: *mut libc::c_void = memory[start..].as_mut_ptr().cast();
            let mut resident = 0;
            // SAFETY: only whole pages within the slice are named, which keep their contents, and a byte for one of them is
            // written. Where the kernel does not know the advice nothing happens.
            unsafe {
                // Memory that was used before need not be looked at page by page.
                let known = libc::mincore(first, PAGE, &mut resident) == 0;
                if !(known && resident & 1 != 0) {
                    libc::madvise(first, len, libc::MADV_POPULATE_WRITE);
                }
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}
