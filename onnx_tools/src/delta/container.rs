//! The file: a mark, chunks, an index that says what the chunks are, and where the index is.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;

use flate2::Compression as Level;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use prost::Message;
use xxhash_rust::xxh3::xxh3_64;

use crate::onnx::{Error, Result, Source};

/// The first bytes of a delta file, its version at the end.
const MAGIC: [u8; 8] = *b"\x89NZDELT\x01";
/// Bytes at the end: where the index is, its length and XXH3-64, the mark once more.
const FOOTER: u64 = 32;
/// The largest index that is read, in bytes: it is decompressed in memory.
const MAX_INDEX: u64 = 1 << 30;

/// What a delta file says of itself.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Index {
    /// The tool that wrote it.
    #[prost(string, tag = "1")]
    pub tool: String,
    /// The base's files, its model first.
    #[prost(message, repeated, tag = "2")]
    pub base: Vec<BaseFile>,
    /// The files to be restored, the model first.
    #[prost(message, repeated, tag = "3")]
    pub files: Vec<StoredFile>,
}

/// A file of the base.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BaseFile {
    /// Name of the model; location of an external data file.
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint64, tag = "2")]
    pub len: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub sha256: Vec<u8>,
}

/// A file of the model.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StoredFile {
    /// Name of the model; location of an external data file.
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint64, tag = "2")]
    pub len: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub sha256: Vec<u8>,
    /// What the file consists of, from its start to its end.
    #[prost(message, repeated, tag = "4")]
    pub segments: Vec<Segment>,
}

/// Some bytes of a file.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Segment {
    #[prost(enumeration = "Form", tag = "1")]
    pub form: i32,
    /// Bytes that it stands for.
    #[prost(uint64, tag = "2")]
    pub len: u64,
    /// Where the chunk is in the delta file; not of [`Form::Base`].
    #[prost(uint64, tag = "3")]
    pub chunk: u64,
    #[prost(uint64, tag = "4")]
    pub chunk_len: u64,
    /// Where the base's bytes are, of [`Form::Base`] and [`Form::Delta`]: index of the file, offset.
    #[prost(uint32, tag = "5")]
    pub base_file: u32,
    #[prost(uint64, tag = "6")]
    pub base: u64,
    /// Name of the weight that they are, if they are one.
    #[prost(string, tag = "7")]
    pub weight: String,
}

/// How a chunk becomes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Form {
    /// As it is.
    Plain = 0,
    /// Deflate.
    Deflate = 1,
    /// There is none: they are the base's.
    Base = 2,
    /// A blob of transform 4, to the base's bytes.
    Delta = 3,
    /// A blob of another transform.
    Blob = 4,
}

impl Segment {
    /// The chunk's place in the delta file.
    pub fn chunk(&self) -> Range<u64> {
        self.chunk..self.chunk.saturating_add(self.chunk_len)
    }

    /// The place of the base's bytes in their file.
    pub fn base(&self) -> Range<u64> {
        self.base..self.base.saturating_add(self.len)
    }
}

/// Whether the file starts as delta files do.
///
/// # Errors
/// It cannot be read.
pub fn is_delta(path: &Path) -> Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let mut start = Vec::with_capacity(MAGIC.len());
    file.take(MAGIC.len() as u64).read_to_end(&mut start).map_err(|e| Error::io(path, "read", e))?;
    Ok(start.starts_with(&MAGIC[..7]))
}

/// What comes before the chunks.
pub(super) fn head() -> [u8; 8] {
    MAGIC
}

/// What follows the chunks, which end at `position`.
pub(super) fn tail(index: &Index, position: u64) -> Vec<u8> {
    let mut out = deflate(&index.encode_to_vec());
    let (len, hash) = (out.len() as u64, xxh3_64(&out));
    for number in [position, len, hash] {
        out.extend(number.to_le_bytes());
    }
    out.extend(MAGIC);
    out
}

/// The index of a delta file.
pub(super) fn read_index(source: &Source) -> Result<Index> {
    let bad = |what: &str| Error::corrupt(source.path(), format!("not a whole delta file: {what}"));
    let least = MAGIC.len() as u64 + FOOTER;
    if source.len() < least {
        return Err(bad("too short"));
    }
    let version = source.read(&(0..MAGIC.len() as u64))?;
    if version != MAGIC {
        return Err(bad(
            "its first bytes are not a delta file's of version 1; use a newer nz-onnx, or copy it again",
        ));
    }
    let end = source.len() - FOOTER;
    let footer = source.read(&(end..source.len()))?;
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| footer[at + i]));
    let (start, len, hash) = (number(0), number(8), number(16));
    if footer[24..] != MAGIC {
        return Err(bad("its end is missing; copy it again"));
    }
    if start.checked_add(len) != Some(end) {
        return Err(bad("its index is not where it should be"));
    }
    let packed = source.read(&(start..end))?;
    if xxh3_64(&packed) != hash {
        return Err(bad("its index is damaged; copy it again"));
    }
    let bytes = inflate(&packed, MAX_INDEX).ok_or_else(|| bad("its index cannot be unpacked"))?;
    Index::decode(bytes.as_slice()).map_err(|e| bad(&format!("its index cannot be read: {e}")))
}

pub(super) fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut packed = DeflateEncoder::new(Vec::new(), Level::best());
    // Writing to a vector does not fail; if it did, the result would not inflate, which is checked.
    let _ = packed.write_all(bytes);
    packed.finish().unwrap_or_default()
}

/// At most `limit` bytes; `None` if they cannot be unpacked, or are more.
pub(super) fn inflate(packed: &[u8], limit: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    DeflateDecoder::new(packed).take(limit.saturating_add(1)).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= limit).then_some(bytes)
}
