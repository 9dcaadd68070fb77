//! Raw bits that lie apart from a block's record: put into its words, and taken out of it. Loops that a compiler can
//! vectorise; the instruction set rooms compile them again with their features.

use super::{BLOCK, BadRecord, RECORD_ROOM, Record, Scratch, Tables, generic, pack};
use crate::format::{MAX_LAYERS, layer_planes, plane_bytes};

const MAGNITUDE: u32 = 0x7fff_ffff;

/// What a block's record leaves out of its words.
#[derive(Clone, Copy, Debug)]
pub struct Refinement<'a> {
    raw: Raw<'a>,
    /// Bits below those of all layers used, for the middle of what words may be that are cut there.
    pub(super) centre: u32,
    /// The least magnitude that gets these bits: that of an exponent.
    pub(super) least: u32,
}

/// Where raw bits are that the record leaves out.
#[derive(Clone, Copy, Debug)]
enum Raw<'a> {
    /// In the planes of each layer used, with the bits that weights have with it.
    Layers { planes: [&'a [u8]; MAX_LAYERS], ends: [u8; MAX_LAYERS], count: u8 },
    /// With those of the record, for a backend that puts them together before it decodes the block.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Joined(Joined<'a>),
}

/// All raw bits of a block as planes of bytes, from the lowest byte of a word up; in the last, the sign is below the mantissa.
#[derive(Clone, Copy, Debug)]
pub(super) struct Joined<'a> {
    pub planes: [&'a [u8]; 3],
    /// How far behind each plane that of the next block is, if it lies in a layer.
    pub ahead: [u32; 3],
    /// What [`Refinement::bits`] says.
    pub bits: u8,
}

impl<'a> Refinement<'a> {
    /// The planes of these layers, in order, each with the raw bits that the block's weights have with it. Words with a
    /// magnitude of at least `least` then get the bits `centre`.
    ///
    /// # Panics
    /// There are more than [`MAX_LAYERS`], bits descend or are over 23, `centre` is no bit below those, or `least` has a
    /// mantissa.
    pub fn new(layers: impl Iterator<Item = (&'a [u8], u8)>, m: u8, centre: u32, least: u32) -> Self {
        let (mut planes, mut ends, mut count): ([&[u8]; _], _, _) = ([&[]; MAX_LAYERS], [0; MAX_LAYERS], 0u8);
        let mut most = m;
        for (bytes, end) in layers {
            assert!(end >= most && end <= 23);
            most = end;
            (planes[usize::from(count)], ends[usize::from(count)]) = (bytes, end);
            count += 1;
        }
        assert!(centre >> (23 - most) == 0 && centre.count_ones() <= 1 && least << 9 == 0);
        Refinement { raw: Raw::Layers { planes, ends, count }, centre, least }
    }

    /// Each layer's planes, and the raw bits that they hold, of a block with `m` in its record.
    pub(super) fn layers(&self, m: u8) -> impl Iterator<Item = (&'a [u8], u8, u8)> {
        let (planes, ends, count) = match self.raw {
            Raw::Layers { planes, ends, count } => (planes, ends, count),
            Raw::Joined(_) => ([&[] as &[u8]; MAX_LAYERS], [0; MAX_LAYERS], 0),
        };
        let mut from = m;
        planes
            .into_iter()
            .zip(ends)
            .take(count.into())
            .map(move |(bytes, to)| (bytes, std::mem::replace(&mut from, to), to))
    }

    /// Mantissa bits that words may have in the end, where the record gives `m`.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) fn bits(&self, m: u8) -> u8 {
        let raw = match self.raw {
            Raw::Joined(joined) => return joined.bits,
            Raw::Layers { ends, count, .. } => ends[..count.into()].last().copied().unwrap_or(m),
        };
        raw.max(if self.centre == 0 { 0 } else { 23 - self.centre.trailing_zeros() as u8 })
    }

    /// The same with all raw bits together.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) fn joined(&self, joined: Joined<'a>) -> Self {
        Refinement { raw: Raw::Joined(joined), ..*self }
    }

    /// The planes of raw bits that are together.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) fn together(&self) -> Option<&Joined<'a>> {
        match &self.raw {
            Raw::Joined(joined) => Some(joined),
            Raw::Layers { .. } => None,
        }
    }
}

/// Puts the bits that the record of `words` leaves out into them.
///
/// # Errors
/// The layers' bytes are fewer than their planes take.
pub(super) fn refine(record: &Record<'_>, scratch: &mut Scratch, words: &mut [u32]) -> Result<(), BadRecord> {
    refine_inline(record, scratch, words)
}

#[inline(always)]
pub(super) fn refine_inline(
    record: &Record<'_>,
    scratch: &mut Scratch,
    words: &mut [u32],
) -> Result<(), BadRecord> {
    let Some(refinement) = &record.layers else { return Ok(()) };
    let n = words.len();
    for (bytes, from, to) in refinement.layers(record.m) {
        let mut planes = bytes;
        for (width, shift) in layer_planes(from, to) {
            let plane = take(&mut planes, width, n)?;
            generic::unpack(width, plane, &mut scratch.codes, n);
            let bits = scratch.codes[..n].iter();
            words.iter_mut().zip(bits).for_each(|(word, &bits)| *word |= u32::from(bits) << shift);
        }
    }
    let (centre, least) = (refinement.centre, refinement.least);
    if centre != 0 {
        words.iter_mut().for_each(|word| *word |= if *word & MAGNITUDE >= least { centre } else { 0 });
    }
    Ok(())
}

/// Cuts the plane of `n` values of `width` bits off the front.
pub(super) fn take<'a>(planes: &mut &'a [u8], width: u8, n: usize) -> Result<&'a [u8], BadRecord> {
    let (plane, rest) = planes.split_at_checked(plane_bytes(width, n)).ok_or(BadRecord)?;
    *planes = rest;
    Ok(plane)
}

/// Takes a record of `n` weights with `m` mantissa bits apart: appends one with the first of `ends` bits at most to the
/// first of `out`, and the planes of the bits from each end to the next to those behind it. Each is filled up to a
/// multiple of 4 bytes.
///
/// # Errors
/// The planes of the record do not fill it.
///
/// # Panics
/// `n` is over [`BLOCK`], `m` over 23, or `out` has fewer places than `ends`.
pub fn split_record(
    tables: &Tables,
    (record, m, n): (&[u8], u8, usize),
    scratch: &mut Scratch,
    ends: &[u8],
    out: &mut [Vec<u8>],
) -> Result<(), BadRecord> {
    assert!(n <= BLOCK && m <= 23 && out.len() >= ends.len());
    let mut words = vec![0; n];
    let (codes, tail) = generic::raw_bits(tables, record, m, scratch, &mut words)?;
    let mut room = vec![0; RECORD_ROOM];
    let mut from = None;
    for (&end, out) in ends.iter().zip(out) {
        let (planes, to) = (&mut &mut room[..], end.min(m));
        match from {
            None => {
                planes.split_off_mut(..codes.len()).ok_or(BadRecord)?.copy_from_slice(codes);
                pack::raw_bits(&words, to, scratch, planes);
                planes.split_off_mut(..tail.len()).ok_or(BadRecord)?.copy_from_slice(tail);
            }
            Some(from) => {
                for (width, shift) in layer_planes(from, to) {
                    pack::plane_at(&words, width, shift, scratch, planes);
                }
            }
        }
        let len = RECORD_ROOM - planes.len();
        out.extend_from_slice(&room[..len]);
        out.resize(out.len().next_multiple_of(crate::format::ALIGN), 0);
        from = Some(to);
    }
    Ok(())
}
