//! What a tensor would cost at each precision, from one pass over it.

use rayon::prelude::*;

use super::cascade::{self, Histogram};
use super::encode::{EncodeOptions, Source};
use super::word;
use crate::error::Result;
use crate::format::{Dtype, Sections, TensorSpec, Tier, Transform};

const WIDTHS: usize = 24;

/// Counts from which the size of a tensor follows for any number of mantissa bits.
pub struct Survey {
    spec: TensorSpec,
    block_len: u32,
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
        block_len: options.block_len,
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
                self.joint[exponent as usize][leading_ones(word)] += 1;
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

    /// How the encoder transforms this tensor: subnormals are normalised if there are any and no other weight
    /// has an exponent that stands for one.
    pub fn transform(&self) -> Transform {
        let any = |counts: &[[u64; WIDTHS]]| counts.as_flattened().iter().any(|&n| n > 0);
        let taken = any(&self.joint[word::SUBNORMAL_CODES as usize..255]);
        if any(&self.subnormal[..]) && !taken { Transform::NormalisedSplit } else { Transform::Split }
    }

    /// How often each exponent occurs after rounding to `mantissa_bits` (`None`: no rounding).
    pub fn histogram(&self, mantissa_bits: Option<u8>) -> Histogram {
        let mut out = [0u64; 256];
        let k = mantissa_bits
            .filter(|&k| k < self.spec.dtype.mantissa_bits())
            .map_or(WIDTHS, |k| usize::from(k) + 1);
        let carried = |by_ones: &[u64; WIDTHS]| by_ones[k.min(WIDTHS)..].iter().sum::<u64>();
        let largest = if self.spec.dtype == Dtype::F16 { 142 } else { 254 };
        let normalised = self.transform() == Transform::NormalisedSplit;
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
        cascade::choose_tiers(&self.histogram(mantissa_bits))
    }

    /// An upper bound of the blob's size in bytes, less than .02 bits a weight above the true one in blocks of
    /// 4096. `None` is lossless.
    pub fn size(&self, mantissa_bits: Option<u8>) -> u64 {
        let histogram = self.histogram(mantissa_bits);
        let tiers = cascade::choose_tiers(&histogram);
        let k = usize::from(mantissa_bits.unwrap_or(self.spec.dtype.mantissa_bits()));
        let mut bits = cascade::coded_bits(&tiers, &histogram);
        let normalised = self.transform() == Transform::NormalisedSplit;
        let widths = if normalised { &self.widths } else { &self.plain_widths };
        for (rounded, row) in widths.iter().enumerate() {
            for (exact, &weights) in row.iter().enumerate() {
                bits += weights * (1 + rounded.min(k).max(exact)) as u64;
            }
        }
        // Planes are whole bytes and records multiples of 4: at most a byte a tail plane and three more. Only the
        // last block of a tile can also have ragged code and raw planes, at most 9.
        let tail = (tiers.len() as u64 + 3) * self.blocks;
        let ragged = 9 * self.tiles();
        let sections = Sections {
            spec: self.spec.clone(),
            transform: self.transform(),
            mantissa_bits: 0,
            block_len: self.block_len,
            tiers,
            widths: vec![],
            offsets: vec![],
            payload_hash: 0,
            decoded_hash: 0,
            source_hash: 0,
        };
        let header = (sections.header_len() as u64 + 4 + 5 * self.blocks).next_multiple_of(64);
        header + bits.div_ceil(8) + tail + ragged + crate::format::PADDING as u64
    }

    fn tiles(&self) -> u64 {
        match (self.spec.layout, self.spec.shape.as_slice()) {
            (crate::format::Layout::ColumnTiles { tile }, &[_, n]) => n.div_ceil(u64::from(tile)),
            _ => 1,
        }
    }
}
