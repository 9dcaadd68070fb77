//! Integers of 8 bits, as quantised models have them: entropy-coded as they are, nothing rounded.
//!
//! An integer is split like a level of a grid: a sign, the upper bits of its magnitude as symbol, the `k` bits below
//! raw. Weights that were quantised to the whole range of a byte have an entropy of 6 to 7 bits; nearly all of what can
//! be gained is in the upper bits.

use rayon::prelude::*;

use super::cascade::{self, Histogram, Known};
use super::encode::{EncodeOptions, Source};
use super::survey::{Coding, tiles};
use crate::error::{Error, Result};
use crate::format::{INTEGER_BITS, TensorSpec, Tier, Transform, header_bound};

/// Bytes that one task counts.
const CHUNK: usize = 1 << 16;

/// How `src`, the elements of `spec`, is coded: with as many raw bits as make the smallest blob.
///
/// # Errors
/// `spec` is not of 8-bit integers, `src` does not have the length that it calls for, or the options do not fit.
pub fn integer_coding(src: &[u8], spec: &TensorSpec, options: &EncodeOptions) -> Result<Coding> {
    if !spec.dtype.is_integer() {
        return Err(Error::invalid(format!("{} is no integer of 8 bits", spec.dtype.name())));
    }
    let source = Source::new(src, spec, options.block_len)?;
    let counts = magnitudes(src, spec.dtype.word_flip());
    let known = Known { rounded: false, sampled: false };
    let cost = |k: u8| {
        let mut histogram: Histogram = [0; 256];
        counts.iter().enumerate().for_each(|(magnitude, &n)| histogram[magnitude >> k] += n);
        let tiers = cascade::choose_tiers(&histogram, options.profile, known);
        let bits = cascade::coded_bits(&tiers, &histogram) + src.len() as u64 * (1 + u64::from(k));
        (bits, k, tiers)
    };
    let best: Option<(u64, u8, Vec<Tier>)> = (0..=INTEGER_BITS).map(cost).min_by_key(|(bits, ..)| *bits);
    let (bits, k, tiers) = best.ok_or_else(|| Error::invalid("no number of raw bits"))?;
    // As `Survey::size`.
    let planes: u64 = tiers[1..].iter().map(|t| if t.width == 3 { 3 } else { 1 }).sum();
    let blocks = source.blocks.count();
    let (tail, ragged) = ((planes + 3) * blocks, 11 * tiles(spec));
    let size = header_bound(spec, &tiers, blocks, 0) + bits.div_ceil(8) + tail + ragged;
    Ok(Coding {
        mantissa_bits: Some(k),
        transform: Transform::Integer,
        tiers,
        one_width: true,
        no_subnormals: false,
        grid: None,
        books: None,
        size,
    })
}

/// How often each magnitude occurs.
fn magnitudes(src: &[u8], flip: u8) -> [u64; 128] {
    let count = |chunk: &[u8]| {
        let mut counts = [0u64; 256];
        chunk.iter().for_each(|&byte| counts[usize::from(byte ^ flip)] += 1);
        // A negative number has the magnitude of its complement.
        std::array::from_fn::<u64, 128, _>(|m| counts[m] + counts[255 - m])
    };
    let add = |mut a: [u64; 128], b: [u64; 128]| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    src.par_chunks(CHUNK).map(count).reduce(|| [0; 128], add)
}

/// Moves the magnitudes of words, all of whose bits are below the symbol, up so that `k` bits are.
pub(super) fn raise(words: &mut [u32], k: u8) {
    let up = u32::from(INTEGER_BITS - k);
    words.iter_mut().for_each(|w| *w = *w & 1 << 31 | (*w & 0x7fff_ffff) << up);
}

/// Undoes [`raise`].
pub(super) fn lower(words: &mut [u32], k: u8) {
    let down = u32::from(INTEGER_BITS - k);
    words.iter_mut().for_each(|w| *w = *w & 1 << 31 | (*w & 0x7fff_ffff) >> down);
}
