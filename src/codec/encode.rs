//! Encoding: weights in, blob out.

use rayon::prelude::*;

use super::{survey, word};
use crate::arch::{Backend, Scratch, Tables};
use crate::error::{Error, Result};
use crate::format::{ALIGN, Blocks, Layout, MAX_BLOCK, Sections, TensorSpec, Transform, payload_hash};

/// What to keep and how to cut a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Round weights to this many mantissa bits; `None`, or as many as the dtype has: lossless.
    pub mantissa_bits: Option<u8>,
    /// Weights a block: a multiple of 64 up to 4096. Short blocks are cheaper to read at random, and larger.
    pub block_len: u32,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        EncodeOptions { mantissa_bits: None, block_len: MAX_BLOCK }
    }
}

/// A tensor's bytes, seen block by block in stored order.
pub(super) struct Source<'a> {
    bytes: &'a [u8],
    spec: &'a TensorSpec,
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

    /// Loads the words of `block` into `out` and returns how many there are.
    pub(super) fn words(&self, block: u64, out: &mut [u32]) -> usize {
        let slots = self.blocks.slots(block);
        let n = (slots.end - slots.start) as usize;
        load_slots(self.spec, self.bytes, slots.start, &mut out[..n]);
        n
    }
}

/// Loads the words of `src`, the row-major little-endian elements of `spec`, from slot `first` on: in stored order.
///
/// # Panics
/// The slots are not all in the tensor.
pub fn load_slots(spec: &TensorSpec, src: &[u8], first: u64, out: &mut [u32]) {
    let size = spec.dtype.size();
    for run in runs(spec, first..first + out.len() as u64) {
        let src = &src[run.element * size..][..run.len * size];
        word::load(spec.dtype, src, &mut out[run.at..run.at + run.len]);
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
/// Blocks are encoded in parallel on the current rayon pool; the bytes do not depend on it.
///
/// # Errors
/// `src` has the wrong length, shape, layout or options do not go together, or the payload would pass 16 GiB.
pub fn encode(src: &[u8], spec: &TensorSpec, options: &EncodeOptions) -> Result<Vec<u8>> {
    let source = Source::new(src, spec, options.block_len)?;
    let k = options.mantissa_bits.filter(|&k| k < spec.dtype.mantissa_bits());
    let survey = survey(src, spec, options)?;
    let tiers = survey.tiers(k);
    let (bound, transform) = (survey.size(k), survey.transform(k));
    drop(survey);
    let tables = Tables::new(&tiers);
    let count = source.blocks.count();
    let mut sections = Sections {
        spec: spec.clone(),
        transform,
        mantissa_bits: k.unwrap_or(spec.dtype.mantissa_bits()),
        lossless: true,
        block_len: options.block_len,
        tiers,
        widths: Vec::with_capacity(count as usize),
        sizes: Vec::with_capacity(count as usize),
        payload_hash: 0,
    };
    // The header comes first, but its size is known only when the payload is: the bound leaves room for both.
    let mut payload = Vec::with_capacity(bound as usize);

    // A few chunks at a time, so that little more than source and blob are ever held.
    let step = 64u64;
    let batch = step * 2 * rayon::current_num_threads() as u64;
    for start in (0..count).step_by(batch as usize) {
        let end = count.min(start + batch);
        let encoder = || BlockEncoder::new(&source, &tables, k, transform);
        let firsts: Vec<u64> = (start..end).step_by(step as usize).collect();
        let chunks: Vec<Chunk> = firsts
            .into_par_iter()
            .map_init(encoder, |encoder, first| encoder.chunk(first..end.min(first + step)))
            .collect();
        for chunk in chunks {
            sections.widths.extend(chunk.widths);
            sections.sizes.extend(chunk.sizes);
            sections.lossless &= chunk.lossless;
            payload.extend_from_slice(&chunk.bytes);
        }
    }
    if payload.len() as u64 / ALIGN as u64 > u64::from(u32::MAX) {
        return Err(Error::invalid("the payload would be larger than 16 GiB"));
    }
    sections.payload_hash = payload_hash(&payload);
    payload.splice(0..0, sections.write());
    Ok(payload)
}

/// Consecutive records.
struct Chunk {
    bytes: Vec<u8>,
    /// The size of each, in units of [`ALIGN`].
    sizes: Vec<u16>,
    widths: Vec<u8>,
    /// Whether rounding changed no weight.
    lossless: bool,
}

struct BlockEncoder<'a> {
    source: &'a Source<'a>,
    tables: &'a Tables,
    k: Option<u8>,
    transform: Transform,
    words: Vec<u32>,
    scratch: Box<Scratch>,
}

impl<'a> BlockEncoder<'a> {
    fn new(source: &'a Source<'a>, tables: &'a Tables, k: Option<u8>, transform: Transform) -> Self {
        BlockEncoder {
            source,
            tables,
            k,
            transform,
            words: vec![0; MAX_BLOCK as usize],
            scratch: Scratch::new(),
        }
    }

    fn chunk(&mut self, blocks: std::ops::Range<u64>) -> Chunk {
        let mut chunk = Chunk { bytes: Vec::new(), sizes: Vec::new(), widths: Vec::new(), lossless: true };
        for block in blocks {
            let n = self.source.words(block, &mut self.words);
            let start = chunk.bytes.len();
            chunk.lossless &= self.round(n);
            chunk.widths.push(self.record(n, &mut chunk.bytes));
            chunk.bytes.resize(chunk.bytes.len().next_multiple_of(ALIGN), 0);
            // At most 8 tiers of 4 bits, their literals and 24 raw bits for 4096 weights: 33 KiB.
            chunk.sizes.push(((chunk.bytes.len() - start) / ALIGN) as u16);
        }
        chunk
    }

    /// Rounds the first `n` words and says whether they all stay as they are.
    fn round(&mut self, n: usize) -> bool {
        let (Some(k), dtype) = (self.k, self.source.spec.dtype) else { return true };
        let mut changed = 0;
        for word in &mut self.words[..n] {
            let rounded = word::round(*word, k, dtype);
            changed |= *word ^ rounded;
            *word = rounded;
        }
        changed == 0
    }

    /// Appends the record of the first `n` words and returns its `m`.
    fn record(&mut self, n: usize, out: &mut Vec<u8>) -> u8 {
        let words = &mut self.words[..n];
        if self.transform == Transform::NormalisedSplit {
            words.iter_mut().for_each(|w| *w = word::normalise(*w));
        }
        Backend::active().encode(self.tables, words, &mut self.scratch, out)
    }
}
