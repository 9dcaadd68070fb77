//! Reading and copying the elements of one weight.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use super::error::{Error, Result};
use super::external;
use super::model::Model;
use super::source::Source;
use super::tensor::{Storage, Weight};
use super::wire::Scanner;

/// The external data file of `weight`, found to be in the model's folder and long enough.
pub(crate) fn open_external(model: &Model, weight: &Weight) -> Result<Option<(Source, Range<u64>)>> {
    let Storage::External { path, offset, length, .. } = &weight.storage else {
        return Ok(None);
    };
    external::check_inside(model.path(), &weight.name, path)?;
    let source = Source::open(path)?;
    let end = offset + length;
    if end > source.len() {
        return Err(Error::corrupt(
            path,
            format!(
                "tensor {:?} of {} needs bytes {offset}..{end}, but the file has {}: is it complete?",
                weight.name,
                model.path().display(),
                source.len()
            ),
        ));
    }
    Ok(Some((source, *offset..end)))
}

pub(crate) fn read(model: &Model, weight: &Weight) -> Result<Vec<u8>> {
    let source = model.source();
    match &weight.storage {
        Storage::Empty => Ok(Vec::new()),
        Storage::Plain(range) => source.read(range),
        Storage::External { .. } => match open_external(model, weight)? {
            Some((file, range)) => file.read(&range),
            None => Ok(Vec::new()),
        },
        Storage::TaggedFloats(range) => {
            let tagged = source.read(range)?;
            // Tag 4 << 3 | 5 in one byte; the length was checked when the model was opened.
            if tagged.chunks(5).any(|entry| entry.len() != 5 || entry[0] != 0x25) {
                return Err(unusual(model, weight));
            }
            Ok(tagged.chunks_exact(5).flat_map(|entry| &entry[1..]).copied().collect())
        }
        Storage::Varints(range) => varints(model, weight, range, false),
        Storage::TaggedVarints(range) => varints(model, weight, range, true),
        Storage::Other => Err(unusual(model, weight)),
    }
}

/// 16-bit patterns from `int32_data`.
fn varints(model: &Model, weight: &Weight, range: &Range<u64>, tagged: bool) -> Result<Vec<u8>> {
    let mut scanner = Scanner::new(model.source());
    // An element takes at least one byte, so what is allocated is bounded by what the file really has.
    let capacity = (range.end - range.start).min(weight.elements).saturating_mul(2);
    let mut out = Vec::with_capacity(usize::try_from(capacity).unwrap_or(0));
    let mut at = range.start;
    while at < range.end {
        if tagged {
            scanner.varint(&mut at, range.end)?;
        }
        let value = scanner.varint(&mut at, range.end)?;
        let value = u16::try_from(value).map_err(|_| {
            let what = format!("tensor {:?}: int32_data holds {value}, not a 16-bit pattern", weight.name);
            Error::corrupt(model.path(), what)
        })?;
        out.extend_from_slice(&value.to_le_bytes());
    }
    if out.len() as u64 != weight.bytes {
        return Err(Error::corrupt(
            model.path(),
            format!(
                "tensor {:?}: {} {:?} needs {} elements, but int32_data has {}",
                weight.name,
                weight.dtype_name(),
                weight.shape,
                weight.elements,
                out.len() / 2
            ),
        ));
    }
    Ok(out)
}

/// Whether every element is written in the one way that [`crate::rewrite::restore()`] writes it, so that
/// the model can be restored byte for byte.
pub(crate) fn is_canonical(model: &Model, weight: &Weight) -> Result<bool> {
    let (range, tagged) = match &weight.storage {
        Storage::Plain(_) | Storage::External { .. } | Storage::Empty => return Ok(true),
        Storage::Other => return Ok(false),
        Storage::TaggedFloats(range) => {
            let mut at = 0u64;
            let mut same = (range.end - range.start).is_multiple_of(5);
            model.source().stream(range, |chunk| {
                for byte in chunk {
                    same &= !at.is_multiple_of(5) || *byte == 0x25;
                    at += 1;
                }
                Ok(())
            })?;
            return Ok(same);
        }
        Storage::Varints(range) => (range, false),
        Storage::TaggedVarints(range) => (range, true),
    };
    let mut scanner = Scanner::new(model.source());
    let (mut at, mut count) = (range.start, 0u64);
    while at < range.end {
        if tagged {
            let start = at;
            if scanner.varint(&mut at, range.end)? != 0x28 || at - start != 1 {
                return Ok(false);
            }
        }
        let start = at;
        let value = scanner.varint(&mut at, range.end)?;
        if value > 0xffff || at - start != prost::encoding::encoded_len_varint(value) as u64 {
            return Ok(false);
        }
        count += 1;
    }
    Ok(count == weight.elements)
}

pub(crate) fn copy(model: &Model, weight: &Weight, out: &mut dyn Write, name: &Path) -> Result<u64> {
    match &weight.storage {
        Storage::Plain(range) => model.source().copy_to(range, out, name)?,
        Storage::External { .. } => {
            if let Some((file, range)) = open_external(model, weight)? {
                file.copy_to(&range, out, name)?;
            }
        }
        _ => {
            let bytes = read(model, weight)?;
            out.write_all(&bytes).map_err(|e| Error::io(name, "write", e))?;
        }
    }
    Ok(weight.bytes)
}

fn unusual(model: &Model, weight: &Weight) -> Error {
    Error::unsupported(
        model.path(),
        format!(
            "tensor {:?}: its data is in several pieces or in fields not meant for its dtype",
            weight.name
        ),
    )
}
