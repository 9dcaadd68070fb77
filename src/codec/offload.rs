//! Encoding where the words are counted and the records written elsewhere, such as on a GPU: what remains to be done here,
//! by the same code.

use super::encode::EncodeOptions;
use super::survey::{self, Coding, Survey};
use crate::error::{Error, Result};
use crate::format::{ALIGN, Blocks, Sections, TensorSpec, Tier, Transform};

pub(crate) use super::survey::COUNTS;

/// Slots of a stretch that a sample looks at a part of.
pub(crate) const STRETCH: u64 = survey::STRETCH;

/// What is looked at to choose a coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LookedAt {
    /// All blocks.
    Blocks,
    /// One in so many weights of each whole stretch.
    OneIn(u64),
}

/// What [`super::encode`] looks at first.
///
/// # Errors
/// The tensor is not one.
pub(crate) fn first_look(spec: &TensorSpec) -> Result<LookedAt> {
    Ok(match survey::sampled_of(spec.elements()?) {
        1 => LookedAt::Blocks,
        of => LookedAt::OneIn(of),
    })
}

/// The coding that [`super::encode`] would choose after the same look.
pub(crate) fn coding(
    spec: &TensorSpec,
    options: &EncodeOptions,
    blocks: &Blocks,
    looked_at: LookedAt,
    counts: &[u64; COUNTS],
) -> Coding {
    let survey = |of| Survey::from_counts(spec, options.profile, blocks.count(), counts, of);
    match looked_at {
        LookedAt::Blocks => survey(1).coding(options.mantissa_bits),
        LookedAt::OneIn(of) => survey(of).sampled_coding(options.mantissa_bits),
    }
}

impl Coding {
    /// Mantissa bits that weights are rounded to, if they are.
    pub(crate) fn rounded_to(&self) -> Option<u8> {
        self.mantissa_bits
    }

    /// The tiers of all records.
    pub(crate) fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    /// Whether a subnormal weight makes it the wrong coding.
    pub(crate) fn has_no_subnormals(&self) -> bool {
        self.no_subnormals
    }
}

/// A record, before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measured {
    /// Its size in units of [`ALIGN`].
    pub size: u16,
    /// Stored mantissa bits.
    pub m: u8,
    /// Whether rounding has changed a weight.
    pub rounded: bool,
}

/// A blob whose payload is being written elsewhere.
pub(crate) struct Outline {
    sections: Sections,
    header_len: u64,
    payload_len: u64,
}

impl Outline {
    /// The outline of a blob with these records.
    ///
    /// # Errors
    /// The payload would pass 16 GiB.
    pub fn new(
        spec: &TensorSpec,
        block_len: u32,
        coding: &Coding,
        records: impl Iterator<Item = Measured>,
    ) -> Result<Outline> {
        let mut sections = coding.sections(spec, block_len);
        debug_assert!(matches!(coding.transform, Transform::Split | Transform::NormalisedSplit));
        let mut payload_len = 0;
        for record in records {
            sections.sizes.push(record.size);
            sections.widths.push(record.m);
            sections.lossless &= !record.rounded;
            payload_len += u64::from(record.size) * ALIGN as u64;
        }
        if payload_len / ALIGN as u64 > u64::from(u32::MAX) {
            return Err(Error::invalid("the payload would be larger than 16 GiB"));
        }
        let header_len = sections.write().len() as u64;
        Ok(Outline { sections, header_len, payload_len })
    }

    /// Bytes in front of the payload.
    pub fn header_len(&self) -> u64 {
        self.header_len
    }

    /// Bytes of header and payload.
    pub fn blob_len(&self) -> u64 {
        self.header_len + self.payload_len
    }

    /// The bytes in front of a payload with this XXH3-64.
    pub fn header(mut self, payload_hash: u64) -> Vec<u8> {
        self.sections.payload_hash = payload_hash;
        self.sections.write()
    }
}
