//! The survey for a lossless code: exponents and bits that are zero in whole blocks, and no more.

use std::ops::Range;

use rayon::prelude::*;

use super::encode::{EncodeOptions, Source};
use super::survey::{Coding, Sample, Surveyed, Widths, count_in_parts, needed_bits};
use super::word::SUBNORMAL_CODES;
use crate::arch::{BLOCK, Backend, ExponentCounts, Half, prefetch};
use crate::error::Result;
use crate::format::{TensorSpec, Transform};

/// Parts of a sample that are fetched ahead.
const AHEAD: u64 = 4;

/// The lossless coding that a tensor calls for, or a part of it if it is large: that of [`super::Survey`]. It is not to be
/// relied on for a large one.
///
/// # Errors
/// `src` does not have the length that `spec` calls for, or the options do not fit.
pub(super) fn lossless_coding(src: &[u8], spec: &TensorSpec, options: &EncodeOptions) -> Result<Coding> {
    coding_with(Backend::active(), src, spec, options)
}

fn coding_with(backend: Backend, src: &[u8], spec: &TensorSpec, options: &EncodeOptions) -> Result<Coding> {
    let source = Source::new(src, spec, options.block_len)?;
    let blocks = source.blocks.count();
    let surveyed = |sampled| Surveyed { spec: source.spec, profile: options.profile, blocks, sampled };
    Ok(match Sample::of(spec.elements()?) {
        None => count(backend, &source, blocks, |block| source.blocks.slots(block)).coding(surveyed(false)),
        Some(sample) => {
            let mut counts = count(backend, &source, sample.stretches, |stretch| {
                // They lie too far from each other for the processor to foresee them.
                if stretch + AHEAD < sample.stretches {
                    prefetch(source.bytes_at(sample.slots(stretch + AHEAD)));
                }
                sample.slots(stretch)
            });
            counts.scale(sample.of);
            let coding = counts.coding(surveyed(true));
            surveyed(true).of_sample(coding, counts.has_subnormals(), &counts.plain_widths)
        }
    })
}

/// Counts what `slots` gives for each of `count` numbers.
fn count(
    backend: Backend,
    source: &Source<'_>,
    count: u64,
    slots: impl Fn(u64) -> Range<u64> + Sync + Send,
) -> Counts {
    count_in_parts(count, Counter::new, |counter, n| counter.add(backend, source, slots(n)))
        .map(Counter::finish)
        .reduce_with(Counts::merge)
        .unwrap_or_else(Counts::empty)
}

/// Counts from which a lossless code follows; as those of [`super::Survey`], whatever ones a mantissa begins with.
struct Counts {
    exponents: [u64; 256],
    /// By the code that stands for it once it is normalised.
    subnormal: [u64; 256],
    widths: Widths,
    plain_widths: Widths,
}

impl Counts {
    fn empty() -> Self {
        let widths = Widths::default();
        Counts { exponents: [0; 256], subnormal: [0; 256], widths, plain_widths: widths }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut u64> {
        let Counts { exponents, subnormal, widths, plain_widths } = self;
        let by_width = widths.as_flattened_mut().iter_mut().chain(plain_widths.as_flattened_mut());
        exponents.iter_mut().chain(subnormal).chain(by_width)
    }

    fn merge(mut self, mut other: Counts) -> Counts {
        self.all().zip(other.all()).for_each(|(a, b)| *a += *b);
        self
    }

    /// Makes each weight of a sample count `times`.
    fn scale(&mut self, times: u64) {
        self.all().for_each(|count| *count *= times);
    }

    fn has_subnormals(&self) -> bool {
        self.subnormal.iter().any(|&n| n > 0)
    }

    fn coding(&self, surveyed: Surveyed<'_>) -> Coding {
        let taken = self.exponents[SUBNORMAL_CODES as usize..255].iter().any(|&n| n > 0);
        Surveyed::lossless(self.has_subnormals(), taken, |transform| {
            let mut histogram = self.exponents;
            if transform == Transform::NormalisedSplit {
                histogram.iter_mut().zip(&self.subnormal).for_each(|(all, n)| *all += n);
                return surveyed.coding(None, transform, &histogram, &self.widths);
            }
            histogram[0] += self.subnormal.iter().sum::<u64>();
            surveyed.coding(None, transform, &histogram, &self.plain_widths)
        })
    }
}

/// Counts in the making.
struct Counter {
    counts: Counts,
    exponents: Box<ExponentCounts>,
    room: Vec<u32>,
}

impl Counter {
    fn new() -> Self {
        Counter { counts: Counts::empty(), exponents: ExponentCounts::new(), room: Vec::new() }
    }

    fn add(&mut self, backend: Backend, source: &Source<'_>, slots: Range<u64>) {
        let n = slots.end - slots.start;
        let halves = source.halves(slots.clone());
        if self.exponents.must_drain(matches!(halves, Some((Half::F16, _)))) {
            self.drain();
        }
        let unions = match halves {
            Some((format, halves)) => backend.count_half_exponents(format, halves, &mut self.exponents),
            None => {
                self.room.resize(BLOCK, 0);
                let words = source.words(backend, slots, &mut self.room);
                backend.count_exponents(words, &mut self.exponents)
            }
        };
        let special = needed_bits(unions.special);
        self.counts.widths[needed_bits(unions.normal | unions.normalised)][special] += n;
        self.counts.plain_widths[needed_bits(unions.normal)]
            [needed_bits(unions.special | unions.subnormal)] += n;
    }

    fn drain(&mut self) {
        let Counts { exponents, subnormal, .. } = &mut self.counts;
        self.exponents.drain(|row, count| match row.checked_sub(256) {
            None => exponents[row] += count,
            Some(top) => subnormal[SUBNORMAL_CODES as usize + top] += count,
        });
    }

    fn finish(mut self) -> Counts {
        self.drain();
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::survey::{survey, survey_sample};
    use crate::format::{Dtype, Layout};

    /// Elements of `dtype`: normal numbers but where `odd` gives another word for the index.
    fn elements(dtype: Dtype, n: usize, odd: impl Fn(usize, u32) -> u32) -> Vec<u8> {
        let mut state = 0x9e37_79b9u32;
        let words: Vec<u32> = (0..n)
            .map(|i| {
                state = state.wrapping_mul(0x915f_77f5).wrapping_add(0x1405_7b7e);
                let exponent = 122 - (state >> 8).trailing_zeros().min(9);
                odd(i, state & 0x807f_ffff | exponent << 23)
            })
            .collect();
        let mut bytes = vec![0; n * dtype.size()];
        super::super::word::store(dtype, &words, &mut bytes);
        bytes
    }

    type Odd = fn(usize, u32) -> u32;

    #[test]
    fn the_coding_is_that_of_the_whole_survey() {
        let kinds: [(&str, Odd); 6] = [
            ("normal", |_, word| word),
            ("few bits", |i, word| if i / 4096 % 3 == 1 { word & !0xfff } else { word & !0xf_ffff }),
            ("subnormal", |i, word| if i % 5 == 0 { word & 0x807f_ffff } else { word }),
            ("all subnormal", |_, word| word & 0x807f_0000),
            ("small", |i, word| if i % 3 == 0 { word & 0x807f_ffff | 108 << 23 } else { word }),
            ("special", |i, word| if i % 301 == 7 { word | 255 << 23 } else { word & !(i as u32 % 7 / 6) }),
        ];
        let rows = |n: usize| (vec![n as u64], Layout::RowMajor);
        let tiled = |k: u64, n: u64| (vec![k, n], Layout::ColumnTiles { tile: 64 });
        // The last two are large enough to be looked at in part.
        let shapes = [rows(1), rows(63), rows(5000), tiled(70, 130), rows((1 << 18) + 77), tiled(2100, 130)];
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for (shape, layout) in &shapes {
                let spec = TensorSpec { dtype, shape: shape.clone(), layout: *layout };
                let n = shape.iter().product::<u64>();
                for (kind, odd) in kinds {
                    let src = elements(dtype, n as usize, odd);
                    let options = EncodeOptions::default();
                    let expected = match Sample::of(n) {
                        None => survey(&src, &spec, &options).unwrap().coding(None),
                        Some(_) => survey_sample(&src, &spec, &options).unwrap().sampled_coding(None),
                    };
                    for backend in Backend::available() {
                        let found = coding_with(backend, &src, &spec, &options).unwrap();
                        assert!(found == expected, "{} {dtype:?} {shape:?} {kind}", backend.name);
                    }
                }
            }
        }
    }
}
