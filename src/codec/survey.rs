//! What a tensor would cost at each precision, from one pass over it.

use rayon::prelude::*;

use super::cascade::{self, Histogram};
use super::encode::{EncodeOptions, Source};
use super::word;
use crate::error::Result;
use crate::format::{Dtype, Layout, TensorSpec, Tier, Transform, header_bound};

const WIDTHS: usize = 24;

/// Counts from which the size of a tensor follows for any number of mantissa bits.
pub struct Survey {
    spec: TensorSpec,
    blocks: u64,
    /// `[exponent][leading ones of the mantissa]`: rounding to `k` bits carries into the exponent if and only
    /// if the top `k + 1` mantissa bits are ones. Subnormals are counted apart, as normalised words.
    joint: Box<[[u64; WIDTHS]; 256]>,
    subnormal: Box<[[u64; WIDTHS]; 256]>,
    /// `[m of the words that rounding changes][m of those it leaves alone]`: weights in blocks of that kind, if
    /// subnormals are normalised and if they are not.
    widths: Box<[[u64; WIDTHS]; WIDTHS]>,
    plain_widths: Box<[[u64; WIDTHS]; WIDTHS]>,
}

/// Mantissa bits needed so that none of the ones in `union` is dropped.
fn needed_bits(union: u32) -> usize {
    if union & 0x7f_ffff == 0 { 0 } else { 23 - union.trailing_zeros() as usize }
}

/// Ones at the top of a word's mantissa.
fn leading_ones(word: u32) -> usize {
    (!(word << 9)).leading_zeros().min(23) as usize
}

/// Surveys `src`, the row-major little-endian elements of `spec`.
///
/// # Errors
/// `src` does not have the length that `spec` calls for, or the options do not fit.
pub fn survey(src: &[u8], spec: &TensorSpec, options: &EncodeOptions) -> Result<Survey> {
    let source = Source::new(src, spec, options.block_len)?;
    let empty = || Survey {
        spec: spec.clone(),
        blocks: source.blocks.count(),
        joint: Box::new([[0; WIDTHS]; 256]),
        subnormal: Box::new([[0; WIDTHS]; 256]),
        widths: Box::new([[0; WIDTHS]; WIDTHS]),
        plain_widths: Box::new([[0; WIDTHS]; WIDTHS]),
    };
    let count = source.blocks.count();
    let step = 64;
    Ok((0..count.div_ceil(step))
        .into_par_iter()
        .fold(empty, |mut sum, chunk| {
            let mut words = vec![0u32; options.block_len as usize];
            for block in chunk * step..count.min((chunk + 1) * step) {
                let n = source.words(block, &mut words);
                sum.add(&words[..n]);
            }
            sum
        })
        .reduce(empty, Survey::merge))
}

impl Survey {
    fn add(&mut self, words: &[u32]) {
        let (mut normal, mut subnormal, mut normalised, mut special) = (0, 0, 0, 0);
        for &word in words {
            let exponent = word >> 23 & 255;
            if exponent == 0 && word << 1 != 0 {
                let word = word::normalise(word);
                self.subnormal[(word >> 23 & 255) as usize][leading_ones(word)] += 1;
                normalised |= word;
                subnormal |= word::denormalise(word);
            } else {
                // Half-way to the next power of two: rounded to no bits at all, an even exponent stays.
                let stays = word << 9 == 1 << 31 && exponent % 2 == 0;
                self.joint[exponent as usize][if stays { 0 } else { leading_ones(word) }] += 1;
                *(if exponent == 255 { &mut special } else { &mut normal }) |= word;
            }
        }
        let n = words.len() as u64;
        self.widths[needed_bits(normal | normalised)][needed_bits(special)] += n;
        self.plain_widths[needed_bits(normal)][needed_bits(special | subnormal)] += n;
    }

    fn merge(mut self, other: Survey) -> Survey {
        let add = |a: &mut [u64], b: &[u64]| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        add(self.joint.as_flattened_mut(), other.joint.as_flattened());
        add(self.subnormal.as_flattened_mut(), other.subnormal.as_flattened());
        add(self.widths.as_flattened_mut(), other.widths.as_flattened());
        add(self.plain_widths.as_flattened_mut(), other.plain_widths.as_flattened());
        self
    }

    /// How the encoder transforms this tensor. Subnormals can be normalised if no other weight has an exponent
    /// that stands for one. They are when weights are rounded; lossless, when that is smaller.
    pub fn transform(&self, mantissa_bits: Option<u8>) -> Transform {
        let any = |counts: &[[u64; WIDTHS]]| counts.as_flattened().iter().any(|&n| n > 0);
        let taken = any(&self.joint[word::SUBNORMAL_CODES as usize..255]);
        if !any(&self.subnormal[..]) || taken {
            return Transform::Split;
        }
        let size = |transform| self.size_with(mantissa_bits, transform);
        let rounds = mantissa_bits.is_some_and(|k| k < self.spec.dtype.mantissa_bits());
        if rounds || size(Transform::NormalisedSplit) < size(Transform::Split) {
            Transform::NormalisedSplit
        } else {
            Transform::Split
        }
    }

    /// How often each exponent occurs after rounding to `mantissa_bits` (`None`: no rounding).
    pub fn histogram(&self, mantissa_bits: Option<u8>, transform: Transform) -> Histogram {
        let mut out = [0u64; 256];
        let k = mantissa_bits
            .filter(|&k| k < self.spec.dtype.mantissa_bits())
            .map_or(WIDTHS, |k| usize::from(k) + 1);
        let carried = |by_ones: &[u64; WIDTHS]| by_ones[k.min(WIDTHS)..].iter().sum::<u64>();
        let largest = if self.spec.dtype == Dtype::F16 { 142 } else { 254 };
        let normalised = transform == Transform::NormalisedSplit;
        for (exponent, (normal, subnormal)) in self.joint.iter().zip(self.subnormal.iter()).enumerate() {
            let carry = if (1..largest).contains(&exponent) { carried(normal) } else { 0 };
            out[exponent] += normal.iter().sum::<u64>() - carry;
            if carry > 0 {
                out[exponent + 1] += carry;
            }
            let (all, carry) = (subnormal.iter().sum::<u64>(), carried(subnormal));
            match (all, normalised) {
                (0, _) => {}
                // The largest subnormals round up to the least normal number.
                (_, true) => {
                    out[exponent] += all - carry;
                    out[if exponent == 254 { 1 } else { exponent + 1 }] += carry;
                }
                (_, false) => {
                    let carry = if exponent == 254 { carry } else { 0 };
                    out[0] += all - carry;
                    out[1] += carry;
                }
            }
        }
        out
    }

    /// The cascade that [`super::encode`] uses at this precision.
    pub fn tiers(&self, mantissa_bits: Option<u8>) -> Vec<Tier> {
        cascade::choose_tiers(&self.histogram(mantissa_bits, self.transform(mantissa_bits)))
    }

    /// An upper bound of the blob's size in bytes, less than .02 bits a weight above the true one in blocks of
    /// 4096. `None` is lossless.
    pub fn size(&self, mantissa_bits: Option<u8>) -> u64 {
        self.size_with(mantissa_bits, self.transform(mantissa_bits))
    }

    fn size_with(&self, mantissa_bits: Option<u8>, transform: Transform) -> u64 {
        let histogram = self.histogram(mantissa_bits, transform);
        let tiers = cascade::choose_tiers(&histogram);
        let k = usize::from(mantissa_bits.unwrap_or(self.spec.dtype.mantissa_bits()));
        let mut bits = cascade::coded_bits(&tiers, &histogram);
        let normalised = transform == Transform::NormalisedSplit;
        let widths = if normalised { &self.widths } else { &self.plain_widths };
        for (rounded, row) in widths.iter().enumerate() {
            for (exact, &weights) in row.iter().enumerate() {
                bits += weights * (1 + rounded.min(k).max(exact)) as u64;
            }
        }
        // Planes are whole bytes (three a tier of 3 bits) and records multiples of 4. Only the last block of a tile
        // can also have ragged code and raw planes, at most 11 bytes of them.
        let planes: u64 = tiers[1..].iter().map(|t| if t.width == 3 { 3 } else { 1 }).sum();
        let (tail, ragged) = ((planes + 3) * self.blocks, 11 * self.tiles());
        header_bound(&self.spec, &tiers, self.blocks) + bits.div_ceil(8) + tail + ragged
    }

    fn tiles(&self) -> u64 {
        match (self.spec.layout, self.spec.shape.as_slice()) {
            (Layout::ColumnTiles { tile }, &[_, n]) => n.div_ceil(u64::from(tile)),
            _ => 1,
        }
    }
}
