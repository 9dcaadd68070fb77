//! How to make the original out of a converted model: kept in the converted model's metadata.
//!
//! The original is described as a row of segments: copied from the converted file, literal, or the elements
//! of a weight that is now a blob. External data files are described the same way.

mod constant;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::Compression as Level;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use prost::Message;
use sha2::{Digest, Sha256};

pub use self::constant::Constant;
use self::constant::{StoredConstant, place_of};
use super::rope::{Piece, Rope};
use super::splice::{Placement, Plan};
use crate::onnx::{Error, Model, Result, Source, Storage, Weight, WeightId, external, payload};

/// The metadata key.
pub const KEY: &str = "nz.restore";
/// Version of the recipe.
const VERSION: u32 = 1;
/// That of one that takes weights from a base, or with weights in a form of [`super::fold`]: version 1 knows neither.
const LATER_VERSION: u32 = 2;
/// The largest recipe that is read, in bytes: it is decompressed in memory.
const MAX_RECIPE: u64 = 1 << 30;
/// The largest gap in an external data file that is kept if it is not zero.
const MAX_GAP: u64 = 64 << 10;

/// A file of the converted model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlobFile {
    /// The `.onnx` file.
    Model,
    /// The data file beside it.
    Data,
    /// The base's data file.
    Base,
}

/// Where a weight of the original is in the converted model.
#[derive(Clone, Debug)]
pub struct RecipeBlob {
    /// Its number in the original model.
    pub weight: WeightId,
    /// Its name there.
    pub name: String,
    /// The file that its blob is in.
    pub file: BlobFile,
    /// First byte of the blob.
    pub offset: u64,
    /// Bytes of the blob.
    pub len: u64,
    /// XXH3 of the weight, if it was rounded so as to make good errors of others: its values are then not the nearest
    /// on the blob's grid.
    pub compensated: Option<u128>,
    /// How it is stored, if it is no blob but a constant; `offset` and `len` are then those of its elements.
    pub constant: Option<Constant>,
}

/// How a converted model becomes the original again.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub(crate) stored: Stored,
}

/// The recipe as it is written.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Stored {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(uint64, tag = "2")]
    pub source_len: u64,
    /// The converted file up to the recipe: its length and SHA-256.
    #[prost(uint64, tag = "3")]
    pub prefix_len: u64,
    #[prost(bytes = "vec", tag = "4")]
    pub prefix_sha256: Vec<u8>,
    /// SHA-256 of all bytes of the original but the weights'.
    #[prost(bytes = "vec", tag = "5")]
    pub skeleton_sha256: Vec<u8>,
    #[prost(string, tag = "6")]
    pub data_file: String,
    #[prost(message, repeated, tag = "7")]
    pub blobs: Vec<StoredBlob>,
    #[prost(message, repeated, tag = "8")]
    pub segments: Vec<StoredSegment>,
    #[prost(message, repeated, tag = "9")]
    pub files: Vec<StoredFile>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredBlob {
    #[prost(uint64, tag = "1")]
    pub weight: u64,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(bool, tag = "3")]
    pub in_data: bool,
    #[prost(uint64, tag = "4")]
    pub offset: u64,
    #[prost(uint64, tag = "5")]
    pub len: u64,
    #[prost(message, optional, tag = "6")]
    pub constant: Option<StoredConstant>,
    /// The base's blob that it is a delta to, or that the weight is if `len` is 0: where it is in the base's data file,
    /// and what its header hashes to.
    #[prost(uint64, tag = "7")]
    pub base_offset: u64,
    #[prost(uint64, tag = "8")]
    pub base_len: u64,
    #[prost(fixed64, tag = "9")]
    pub base_hash: u64,
    /// XXH3 of the weight, little-endian, if it was rounded so as to make good errors of others; else nothing.
    #[prost(bytes = "vec", tag = "10")]
    pub compensated: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredSegment {
    #[prost(oneof = "Content", tags = "1, 2, 3")]
    pub content: Option<Content>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Content {
    #[prost(message, tag = "1")]
    Copy(StoredCopy),
    #[prost(bytes, tag = "2")]
    Literal(Vec<u8>),
    #[prost(message, tag = "3")]
    Tensor(StoredTensor),
}

/// Bytes of the converted model; the hash is there for those in the data file.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredCopy {
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    #[prost(uint64, tag = "2")]
    pub len: u64,
    #[prost(bool, tag = "3")]
    pub in_data: bool,
    #[prost(bytes = "vec", tag = "4")]
    pub sha256: Vec<u8>,
}

/// The elements of a blob in one of the forms of [`Form`].
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredTensor {
    #[prost(uint64, tag = "1")]
    pub blob: u64,
    #[prost(enumeration = "Form", tag = "2")]
    pub form: i32,
    #[prost(uint64, tag = "3")]
    pub len: u64,
}

/// As the variants of [`Storage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Form {
    Plain = 0,
    TaggedFloats = 1,
    Varints = 2,
    TaggedVarints = 3,
}

/// An external data file of the original; what no part covers is zero.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredFile {
    #[prost(string, tag = "1")]
    pub location: String,
    #[prost(uint64, tag = "2")]
    pub len: u64,
    #[prost(message, repeated, tag = "3")]
    pub parts: Vec<StoredPart>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredPart {
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    #[prost(message, optional, tag = "2")]
    pub segment: Option<StoredSegment>,
}

impl StoredBlob {
    /// Whether the weight is the base's blob, and not a delta to it.
    pub fn is_in_base(&self) -> bool {
        self.base_len > 0 && self.len == 0
    }
}

impl StoredSegment {
    fn new(content: Content) -> Self {
        StoredSegment { content: Some(content) }
    }
}

impl Recipe {
    /// The recipe that makes `model` out of `prefix`, the converted file but for the recipe.
    pub(crate) fn new(model: &Model, plan: &Plan, prefix: &Rope) -> Result<Recipe> {
        let (copies, inline) = survey(prefix);
        let mut stored = Stored {
            version: if plan.folded.is_empty() && plan.base.is_none() { VERSION } else { LATER_VERSION },
            source_len: model.source().len(),
            prefix_len: prefix.len(),
            data_file: plan.data_file_name.clone(),
            ..Default::default()
        };
        let mut payloads = Vec::new();
        let mut index = BTreeMap::new();
        for id in plan.changed() {
            let weight = model.weight(id);
            let (root, placement) = plan.place(id)?;
            let (in_data, mut offset, mut len) = match placement {
                Placement::InBase => (false, 0, 0),
                _ => located(plan, &inline, id)?,
            };
            let base = plan.base_of(root).map(|(_, blob)| blob);
            let hash = plan.compensated.get(&root);
            let constant = match plan.folded.get(&id) {
                None => None,
                Some(form) => {
                    let ranges = inline.get(&id).map_or(&[][..], Vec::as_slice);
                    let found = place_of(weight, form, placement, ranges)?;
                    (offset, len) = (found.1.start, found.1.end - found.1.start);
                    Some(found.0)
                }
            };
            index.insert(id, stored.blobs.len() as u64);
            let blob = stored.blobs.len() as u64;
            stored.blobs.push(StoredBlob {
                weight: id.0 as u64,
                name: weight.name.clone(),
                in_data,
                offset,
                len,
                constant,
                base_offset: base.map_or(0, |base| base.offset),
                base_len: base.map_or(0, |base| base.len),
                base_hash: base.map_or(0, |base| base.hash),
                compensated: hash.map_or(Vec::new(), |hash| hash.to_le_bytes().to_vec()),
            });
            if let Some((range, form)) = payload_of(weight) {
                payloads.push((range.clone(), blob, form));
            }
        }
        payloads.sort_by_key(|(range, ..)| range.start);
        stored.segments = segments(model, &copies, &payloads)?;
        stored.files = files(model, plan, &inline, &index)?;

        let mut hash = Sha256::new();
        prefix.stream(model, |chunk| {
            hash.update(chunk);
            Ok(())
        })?;
        stored.prefix_sha256 = hash.finalize().to_vec();
        stored.skeleton_sha256 = skeleton_hash(model, &payloads)?;
        Ok(Recipe { stored })
    }

    /// The recipe in a converted model.
    pub fn read(converted: &Model) -> Result<Recipe> {
        let text = converted.metadata(KEY).ok_or_else(|| {
            Error::unsupported(
                converted.path(),
                format!(
                    "its metadata has no {KEY}: not made by nz-onnx, or saved by a tool that drops metadata"
                ),
            )
        })?;
        let bad = |what: String| Error::corrupt(converted.path(), format!("metadata {KEY}: {what}"));
        let packed = BASE64.decode(text).map_err(|e| bad(e.to_string()))?;
        let mut bytes = Vec::new();
        DeflateDecoder::new(packed.as_slice())
            .take(MAX_RECIPE)
            .read_to_end(&mut bytes)
            .map_err(|e| bad(e.to_string()))?;
        let stored = Stored::decode(bytes.as_slice()).map_err(|e| bad(e.to_string()))?;
        if !(VERSION..=LATER_VERSION).contains(&stored.version) {
            return Err(Error::unsupported(
                converted.path(),
                format!(
                    "metadata {KEY} has version {}, this nz-onnx reads {LATER_VERSION}; use a newer one",
                    stored.version
                ),
            ));
        }
        if stored.blobs.iter().filter_map(|b| b.constant).any(|constant| constant.read().is_none()) {
            return Err(bad("a weight is stored in a way not known here; use a newer nz-onnx".to_string()));
        }
        Ok(Recipe { stored })
    }

    /// Every compressed weight of the original and its blob.
    pub fn blobs(&self) -> Vec<RecipeBlob> {
        let blob = |b: &StoredBlob| RecipeBlob {
            weight: WeightId(usize::try_from(b.weight).unwrap_or(usize::MAX)),
            name: b.name.clone(),
            file: match b.is_in_base() {
                true => BlobFile::Base,
                false if b.in_data => BlobFile::Data,
                false => BlobFile::Model,
            },
            offset: if b.is_in_base() { b.base_offset } else { b.offset },
            len: if b.is_in_base() { b.base_len } else { b.len },
            constant: b.constant.and_then(|constant| constant.read()),
            compensated: b.compensated.as_slice().try_into().ok().map(u128::from_le_bytes),
        };
        self.stored.blobs.iter().map(blob).collect()
    }

    /// Name of the data file beside the model, whether there is one or not.
    pub fn data_file(&self) -> &str {
        &self.stored.data_file
    }

    /// Length in bytes of the original model's file.
    pub fn source_len(&self) -> u64 {
        self.stored.source_len
    }

    /// The recipe as the value of [`KEY`].
    pub(crate) fn to_text(&self) -> String {
        let mut packed = DeflateEncoder::new(Vec::new(), Level::best());
        // Writing to a vector does not fail; if it did, the text would not decode and restore would say so.
        let _ = packed.write_all(&self.stored.encode_to_vec());
        BASE64.encode(packed.finish().unwrap_or_default())
    }
}

/// Weights inside the converted file; one in two tensors has its elements first.
type Inside = BTreeMap<WeightId, Vec<Range<u64>>>;
/// Where the ranges of the original ended up in the converted file, by start, and the weights inside it.
type Survey = (BTreeMap<u64, (Range<u64>, u64)>, Inside);

fn survey(prefix: &Rope) -> Survey {
    let (mut copies, mut inline) = (BTreeMap::new(), Inside::new());
    let mut at = 0;
    for piece in prefix.pieces() {
        match piece {
            Piece::Source(range) => drop(copies.insert(range.start, (range.clone(), at))),
            Piece::Inline { weight, .. } => inline.entry(*weight).or_default().push(at..at + piece.len()),
            Piece::Owned(_) => {}
        }
        at += piece.len();
    }
    (copies, inline)
}

/// Where the blob or the elements of a weight are: in the data file or not, first byte, bytes.
fn located(plan: &Plan, inline: &Inside, id: WeightId) -> Result<(bool, u64, u64)> {
    let (root, placement) = plan.place(id)?;
    match placement {
        Placement::External { offset, len } => Ok((true, *offset, *len)),
        _ => match inline.get(&root).and_then(|ranges| ranges.first()) {
            Some(range) => Ok((false, range.start, range.end - range.start)),
            None => Err(Error::Internal(format!("weight {} is not in the converted model", root.0))),
        },
    }
}

fn payload_of(weight: &Weight) -> Option<(&Range<u64>, Form)> {
    match &weight.storage {
        Storage::Plain(range) => Some((range, Form::Plain)),
        Storage::TaggedFloats(range) => Some((range, Form::TaggedFloats)),
        Storage::Varints(range) => Some((range, Form::Varints)),
        Storage::TaggedVarints(range) => Some((range, Form::TaggedVarints)),
        Storage::External { .. } | Storage::Empty | Storage::Other => None,
    }
}

type Payloads = [(Range<u64>, u64, Form)];

/// The original as segments.
fn segments(
    model: &Model,
    copies: &BTreeMap<u64, (Range<u64>, u64)>,
    payloads: &Payloads,
) -> Result<Vec<StoredSegment>> {
    let mut out = Vec::new();
    let mut at = 0;
    let mut copies = copies.values().peekable();
    let mut payloads = payloads.iter().peekable();
    while at < model.source().len() {
        if let Some((range, offset)) = copies.next_if(|(range, _)| range.start == at) {
            let copy = StoredCopy { offset: *offset, len: range.end - range.start, ..Default::default() };
            out.push(StoredSegment::new(Content::Copy(copy)));
            at = range.end;
        } else if let Some((range, blob, form)) = payloads.next_if(|(range, ..)| range.start == at) {
            let tensor = StoredTensor { blob: *blob, form: *form as i32, len: range.end - range.start };
            out.push(StoredSegment::new(Content::Tensor(tensor)));
            at = range.end;
        } else {
            let next = [copies.peek().map(|(r, _)| r.start), payloads.peek().map(|(r, ..)| r.start)];
            let end = next.into_iter().flatten().min().unwrap_or(model.source().len());
            if end <= at {
                return Err(Error::Internal(
                    "the converted model holds a part of the original twice".to_string(),
                ));
            }
            out.push(StoredSegment::new(Content::Literal(model.source().read(&(at..end))?)));
            at = end;
        }
    }
    Ok(out)
}

fn skeleton_hash(model: &Model, payloads: &Payloads) -> Result<Vec<u8>> {
    let mut hash = Sha256::new();
    let mut at = 0;
    let end = model.source().len();
    for range in payloads.iter().map(|(range, ..)| range.clone()).chain(std::iter::once(end..end)) {
        model.source().stream(&(at..range.start), |chunk| {
            hash.update(chunk);
            Ok(())
        })?;
        at = range.end;
    }
    Ok(hash.finalize().to_vec())
}

/// The original's external data files.
fn files(
    model: &Model,
    plan: &Plan,
    inline: &Inside,
    index: &BTreeMap<WeightId, u64>,
) -> Result<Vec<StoredFile>> {
    let mut by_path: BTreeMap<&Path, (String, Vec<&Weight>)> = BTreeMap::new();
    for weight in model.weights() {
        if let Storage::External { path, location, .. } = &weight.storage {
            by_path.entry(path).or_insert_with(|| (location.clone(), Vec::new())).1.push(weight);
        }
    }
    let mut files = Vec::new();
    for (path, (location, weights)) in by_path {
        let source = Source::open(path)?;
        external::check_inside(model.path(), &weights[0].name, path)?;
        let mut file = StoredFile { location, len: source.len(), parts: Vec::new() };
        let mut covered = Vec::new();
        for weight in weights {
            let Some((_, range)) = payload::open_external(model, weight)? else {
                continue;
            };
            let content = match index.get(&weight.id) {
                Some(&blob) => Content::Tensor(StoredTensor {
                    blob,
                    form: Form::Plain as i32,
                    len: range.end - range.start,
                }),
                None => {
                    let (in_data, offset, len) = located(plan, inline, weight.id)?;
                    let mut hash = Sha256::new();
                    source.stream(&range, |chunk| {
                        hash.update(chunk);
                        Ok(())
                    })?;
                    Content::Copy(StoredCopy { offset, len, in_data, sha256: hash.finalize().to_vec() })
                }
            };
            let part = StoredPart { offset: range.start, segment: Some(StoredSegment::new(content)) };
            file.parts.push(part);
            covered.push(range);
        }
        file.parts.extend(gaps(&source, covered)?);
        files.push(file);
    }
    Ok(files)
}

/// What lies between the tensors of an external data file and is not zero.
fn gaps(source: &Source, mut covered: Vec<Range<u64>>) -> Result<Vec<StoredPart>> {
    covered.sort_by_key(|range| range.start);
    covered.push(source.len()..source.len());
    let mut parts = Vec::new();
    let mut at = 0;
    for range in covered {
        if range.start > at && range.start - at <= MAX_GAP {
            let bytes = source.read(&(at..range.start))?;
            if bytes.iter().any(|&b| b != 0) {
                let segment = Some(StoredSegment::new(Content::Literal(bytes)));
                parts.push(StoredPart { offset: at, segment });
            }
        }
        at = at.max(range.end);
    }
    Ok(parts)
}
