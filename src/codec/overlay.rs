//! A weight as the blob of its base and a delta to that: decoded piece by piece, as other weights are.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use super::decode::{Decoder, damaged};
use super::encode::runs;
use crate::arch::delta::{Bits, Sums};
use crate::arch::{BLOCK, Backend, BadRecord, Scratch, Tables};
use crate::error::{Error, Result};
use crate::format::{Delta, Dtype, Header, payload_hash};

/// Weights that are worked on at once: some of the base's blocks.
const CHUNK: u64 = 4 * BLOCK as u64;

/// A validated delta to a blob, and the decoder of that blob.
///
/// As with [`Decoder`], both blobs are passed to each call.
pub struct DeltaDecoder {
    header: Header,
    delta: Delta,
    tables: Tables,
    base: Arc<Decoder>,
}

/// Buffers of a thread.
struct Buffers {
    scratch: Box<Scratch>,
    sums: Box<Sums>,
    elements: Vec<u8>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::new(Buffers {
        scratch: Scratch::new(),
        sums: Sums::new(),
        elements: Vec::new(),
    });
}

impl DeltaDecoder {
    /// Validates header and payload of both blobs.
    ///
    /// # Errors
    /// Either is damaged, `blob` is no delta to a blob, or `base` is another blob than the one that it is to.
    pub fn open(blob: &[u8], base: &[u8]) -> Result<DeltaDecoder> {
        let decoder = DeltaDecoder::open_unverified(blob, base)?;
        if payload_hash(&blob[decoder.header.payload_offset()..]) != decoder.header.payload_hash {
            return Err(Error::corrupt("payload checksum differs"));
        }
        Decoder::open(base).map_err(of_base)?;
        Ok(decoder)
    }

    /// Validates the headers and leaves the payloads unread.
    ///
    /// # Errors
    /// As [`DeltaDecoder::open`].
    pub fn open_unverified(blob: &[u8], base: &[u8]) -> Result<DeltaDecoder> {
        let header = Header::parse(blob)?;
        let Some(delta) = header.delta.filter(|delta| delta.of_blob) else {
            return Err(Error::invalid("not a delta to a blob"));
        };
        let base = {
            let decoder = Decoder::open_unverified(base).map_err(of_base)?;
            check_base(decoder.header(), base, delta.base_hash)?;
            decoder
        };
        if base.header().spec != header.spec {
            let (found, expected) = (&base.header().spec, &header.spec);
            return Err(Error::corrupt(format!("a delta of {expected:?} to a base of {found:?}")));
        }
        let tables = Tables::new(&header.tiers);
        Ok(DeltaDecoder { header, delta, tables, base: Arc::new(base) })
    }

    /// The delta's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The base's decoder.
    pub fn base(&self) -> &Arc<Decoder> {
        &self.base
    }

    /// Decodes `out.len()` weights from slot `first_slot` on, in stored order, to float32.
    ///
    /// # Errors
    /// The slots are not all in the tensor, a blob does not have the length of the one that was opened, or a record is
    /// damaged.
    pub fn decode_f32(&self, blob: &[u8], base: &[u8], first_slot: u64, out: &mut [f32]) -> Result<()> {
        let dtype = self.header.spec.dtype;
        if dtype == Dtype::F32 {
            return self.decode_elements(blob, base, first_slot, bytemuck::cast_slice_mut(out));
        }
        let size = dtype.size();
        let slots = self.slots(first_slot, out.len())?;
        self.chunks(blob, base, slots, |elements, at| {
            let n = elements.len() / size;
            Backend::active().load(dtype, elements, bytemuck::cast_slice_mut(&mut out[at..at + n]));
        })
    }

    /// Decodes `out.len() / dtype.size()` weights from slot `first_slot` on, in stored order, to little-endian elements.
    ///
    /// # Errors
    /// As [`DeltaDecoder::decode_f32`], or `out` is no whole number of elements.
    pub fn decode_elements(&self, blob: &[u8], base: &[u8], first_slot: u64, out: &mut [u8]) -> Result<()> {
        let size = self.header.spec.dtype.size();
        if !out.len().is_multiple_of(size) {
            return Err(Error::invalid(format!("{} bytes are no whole number of elements", out.len())));
        }
        let slots = self.slots(first_slot, out.len() / size)?;
        self.chunks(blob, base, slots, |elements, at| {
            out[at * size..][..elements.len()].copy_from_slice(elements);
        })
    }

    /// Decodes the whole tensor to row-major little-endian elements of its dtype.
    ///
    /// # Errors
    /// As [`DeltaDecoder::decode_f32`].
    pub fn decode_bytes(&self, blob: &[u8], base: &[u8]) -> Result<Vec<u8>> {
        let (spec, elements) = (&self.header.spec, self.header.blocks().elements());
        let size = spec.dtype.size();
        let mut stored = vec![0; elements as usize * size];
        self.decode_elements(blob, base, 0, &mut stored)?;
        let mut out = vec![0; stored.len()];
        for run in runs(spec, 0..elements) {
            out[run.element * size..][..run.len * size]
                .copy_from_slice(&stored[run.at * size..][..run.len * size]);
        }
        Ok(out)
    }

    fn slots(&self, first: u64, len: usize) -> Result<Range<u64>> {
        let elements = self.header.blocks().elements();
        let end = first.checked_add(len as u64).filter(|&end| end <= elements);
        let end = end.ok_or_else(|| {
            Error::invalid(format!("slots {first}+{len} of a tensor of {elements} weights"))
        })?;
        Ok(first..end)
    }

    /// Hands the elements of `slots` to `sink`, some at a time, with their place among them.
    fn chunks(
        &self,
        blob: &[u8],
        base: &[u8],
        slots: Range<u64>,
        mut sink: impl FnMut(&[u8], usize),
    ) -> Result<()> {
        if blob.len() as u64 != self.header.blob_len {
            return Err(Error::Truncated { needed: self.header.blob_len, found: blob.len() as u64 });
        }
        let (blocks, size) = (self.header.blocks(), self.header.spec.dtype.size());
        BUFFERS.with_borrow_mut(|Buffers { scratch, sums, elements }| {
            let mut next = slots.start;
            while next < slots.end {
                // Whole blocks: how long a residual is may depend on the weights before it.
                let start = blocks.slots(blocks.block_of(next)).start;
                let last = slots.end.min(start + CHUNK) - 1;
                let stop = blocks.slots(blocks.block_of(last)).end;
                elements.resize((stop - start) as usize * size, 0);
                self.base.decode_elements(base, start, elements).map_err(of_base)?;
                let mut rest = elements.as_mut_slice();
                for block in blocks.block_of(start)..=blocks.block_of(last) {
                    let slots = blocks.slots(block);
                    let part;
                    (part, rest) = rest.split_at_mut((slots.end - slots.start) as usize * size);
                    self.add_block(&blob[self.header.record(block as usize)], part, scratch, sums)?;
                }
                let end = stop.min(slots.end);
                let wanted = (next - start) as usize * size..(end - start) as usize * size;
                sink(&elements[wanted], (next - slots.start) as usize);
                next = end;
            }
            Ok(())
        })
    }

    /// Adds the residuals of a block to the base's elements.
    fn add_block(&self, record: &[u8], out: &mut [u8], scratch: &mut Scratch, sums: &mut Sums) -> Result<()> {
        if record.is_empty() {
            return Ok(());
        }
        let dtype = self.header.spec.dtype;
        Backend::active()
            .decode_delta(&self.tables, record, &self.delta, Bits::of(dtype), out, (scratch, sums))
            .map_err(|BadRecord| damaged())
    }
}

/// Checks that `base`, the blob of a base, is the one whose [`Header::identity`] is `expected`.
///
/// # Errors
/// It is another one.
pub fn check_base(header: &Header, base: &[u8], expected: u64) -> Result<()> {
    let found = header.identity(base);
    if found == expected { Ok(()) } else { Err(another_base(expected, found)) }
}

fn another_base(expected: u64, found: u64) -> Error {
    Error::Base(format!(
        "the base is not the blob that the model was converted with: its header has XXH3-64 {found:016x}, expected \
         {expected:016x}"
    ))
}

/// The same error, of the base.
fn of_base(error: Error) -> Error {
    Error::Base(format!("the base: {error}"))
}
