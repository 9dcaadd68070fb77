//! Decoding: the production decoder, over a backend of [`crate::arch`].

use std::cell::RefCell;

use super::encode::runs;
use super::word;
use crate::arch::{self, BLOCK, Backend, Scratch, Tables};
use crate::error::{Error, Result};
use crate::format::{Header, Transform, payload_hash};

/// A validated header and the tables to decode its blob with.
///
/// The blob itself is passed to each call: inside ONNX Runtime it is a mapped file that nobody owns. Its
/// payload may even change underneath; decoded values are wrong then, but nothing outside is read or written.
pub struct Decoder {
    header: Header,
    tables: Tables,
    backend: Backend,
}

thread_local! {
    static SCRATCH: RefCell<(Box<Scratch>, Box<[u32; BLOCK]>)> =
        RefCell::new((Scratch::new(), Box::new([0; BLOCK])));
}

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
        let header = &decoder.header;
        if payload_hash(&blob[header.payload_offset()..]) != header.payload_hash {
            return Err(Error::corrupt("payload checksum differs"));
        }
        Ok(decoder)
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
        let tables = Tables::new(&header.tiers);
        Ok(Decoder { header, tables, backend })
    }

    /// The blob's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Decodes `out.len()` weights from slot `first_slot` on, in stored order, to float32.
    ///
    /// # Errors
    /// The slots are not all in the tensor, `blob` does not have the length of the one that was opened, or a
    /// record is corrupt.
    pub fn decode_f32(&self, blob: &[u8], first_slot: u64, out: &mut [f32]) -> Result<()> {
        self.decode_words(blob, first_slot, bytemuck::cast_slice_mut(out))
    }

    /// Decodes the whole tensor to row-major little-endian elements of its dtype.
    ///
    /// # Errors
    /// As [`Decoder::decode_f32`].
    pub fn decode_bytes(&self, blob: &[u8]) -> Result<Vec<u8>> {
        let (spec, blocks) = (&self.header.spec, self.header.blocks());
        let size = spec.dtype.size();
        let mut out = vec![0u8; blocks.elements() as usize * size];
        let mut words = [0u32; BLOCK];
        for block in 0..blocks.count() {
            let slots = blocks.slots(block);
            let words = &mut words[..(slots.end - slots.start) as usize];
            self.decode_words(blob, slots.start, words)?;
            for run in runs(spec, slots) {
                let words = &words[run.at..run.at + run.len];
                word::store(spec.dtype, words, &mut out[run.element * size..][..run.len * size]);
            }
        }
        Ok(out)
    }

    /// Decodes the words of the slots from `first` on.
    fn decode_words(&self, blob: &[u8], first: u64, out: &mut [u32]) -> Result<()> {
        let blocks = self.header.blocks();
        if blob.len() as u64 != self.header.blob_len {
            return Err(Error::Truncated { needed: self.header.blob_len, found: blob.len() as u64 });
        }
        let end = first.checked_add(out.len() as u64).filter(|&end| end <= blocks.elements());
        let end = end.ok_or_else(|| {
            Error::invalid(format!(
                "slots {first}+{} of a tensor of {} weights",
                out.len(),
                blocks.elements()
            ))
        })?;
        SCRATCH.with_borrow_mut(|(scratch, partial)| {
            let (mut next, mut out) = (first, out);
            while next < end {
                let block = blocks.block_of(next);
                let slots = blocks.slots(block);
                let n = (slots.end - slots.start) as usize;
                let (here, after) = out.split_at_mut((slots.end.min(end) - next) as usize);
                // A block that is wanted whole is decoded in place.
                let whole = here.len() == n;
                let words = if whole { &mut here[..] } else { &mut partial[..n] };
                let (record, m) =
                    (&blob[self.header.record(block as usize)], self.header.widths[block as usize]);
                if slots.end < end {
                    arch::prefetch(&blob[self.header.record(block as usize + 1)]);
                }
                self.backend
                    .decode(&self.tables, record, m, scratch, words)
                    .map_err(|_| Error::corrupt(format!("record of block {block} is damaged")))?;
                if self.header.transform == Transform::NormalisedSplit {
                    words.iter_mut().for_each(|w| *w = word::denormalise(*w));
                }
                if !whole {
                    let skip = (next - slots.start) as usize;
                    here.copy_from_slice(&partial[skip..skip + here.len()]);
                }
                next = slots.end;
                out = after;
            }
            Ok(())
        })
    }
}
