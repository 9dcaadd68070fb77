//! What a recipe says of weights that are no blobs, but constants in a form of [`super::super::fold`].

use std::ops::Range;

use nz_onnx::codec::allocation::Folded;
use xxhash_rust::xxh3::xxh3_64;

use super::super::fold;
use super::super::splice::{Form, Placement};
use crate::onnx::{Error, Result, Source, Weight};

/// A weight in a form of [`crate::rewrite::fold`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constant {
    /// The form.
    pub how: Folded,
    /// First byte of the scales.
    pub scales_at: u64,
    /// Scales.
    pub scales: u64,
    /// XXH3 of scales and elements.
    pub checksum: u64,
    /// Whether the weight comes back bit for bit.
    pub exact: bool,
}

impl Constant {
    /// Scales and elements, the latter `len` bytes at `offset` of `file`.
    ///
    /// # Errors
    /// They cannot be read, or have another checksum.
    pub fn bytes(&self, file: &Source, offset: u64, len: u64) -> Result<Vec<u8>> {
        let range = |start: u64, len: Option<u64>| {
            let end = len.and_then(|len| start.checked_add(len));
            end.map(|end| start..end).ok_or_else(|| Error::corrupt(file.path(), "a constant is too long"))
        };
        let mut stored = file.read(&range(self.scales_at, self.scales.checked_mul(4))?)?;
        stored.extend(file.read(&range(offset, Some(len))?)?);
        if xxh3_64(&stored) != self.checksum {
            return Err(Error::corrupt(
                file.path(),
                format!("the bytes from {offset} on, a constant's, do not have their checksum"),
            ));
        }
        Ok(stored)
    }
}

/// As [`Constant`].
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct StoredConstant {
    #[prost(enumeration = "How", tag = "1")]
    pub how: i32,
    #[prost(uint64, tag = "2")]
    pub scales_at: u64,
    #[prost(uint64, tag = "3")]
    pub scales: u64,
    #[prost(fixed64, tag = "4")]
    pub checksum: u64,
    #[prost(bool, tag = "5")]
    pub exact: bool,
}

/// As the variants of [`Folded`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum How {
    Unknown = 0,
    Half = 1,
    Rows = 2,
    Whole = 3,
}

impl StoredConstant {
    /// None if it is of a kind not known here.
    pub(crate) fn read(&self) -> Option<Constant> {
        let how = match How::try_from(self.how).ok()? {
            How::Unknown => return None,
            How::Half => Folded::Half,
            How::Rows => Folded::Rows,
            How::Whole => Folded::Whole,
        };
        let StoredConstant { scales_at, scales, checksum, exact, .. } = *self;
        Some(Constant { how, scales_at, scales, checksum, exact })
    }
}

/// What the recipe says of a weight, and where its elements are; `inside`: where its elements and its scales are in the
/// converted model, if they are there.
pub(super) fn place_of(
    weight: &Weight,
    form: &Form,
    placement: &Placement,
    inside: &[Range<u64>],
) -> Result<(StoredConstant, Range<u64>)> {
    let missing = || Error::Internal(format!("weight {:?} is not in the converted model", weight.name));
    let scales = fold::scales(form.how, &weight.shape);
    let (elements, scales_at) = match placement {
        Placement::External { offset, len } => {
            let (_, elements) = fold::parts(*len, scales).ok_or_else(missing)?;
            (offset + elements.start..offset + elements.end, *offset)
        }
        _ => {
            let elements = inside.first().ok_or_else(missing)?;
            (elements.clone(), inside.get(1).map_or(elements.start, |range| range.start))
        }
    };
    let how = match form.how {
        Folded::Half => How::Half,
        Folded::Rows => How::Rows,
        Folded::Whole => How::Whole,
    };
    let Form { checksum, exact, .. } = *form;
    Ok((StoredConstant { how: how as i32, scales_at, scales, checksum, exact }, elements))
}
