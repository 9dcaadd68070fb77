//! Which weights get layers, and what that costs.

use nz_onnx::codec::allocation::Candidate;
use nz_onnx::codec::{layer, layers_bound, load_slots};
use nz_onnx::error::Result;
use nz_onnx::format::{Blocks, Header, MAX_LAYERS, TensorSpec, Transform};

/// Smaller blobs stay whole: below so many bytes they are in the model, which is read at once.
const LAYERED_FROM: u64 = 64 << 10;
/// One in so many weights may be zero on a grid: where a level is not known to its end, a zero is in the middle of what
/// it may be, and is zero no longer.
const ZEROS: u64 = 32;
/// Weights that are looked at together.
const CHUNK: u64 = 1 << 16;

/// The raw bits, beside the sign, at which weights are cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers(Vec<u8>);

impl Default for Layers {
    /// What few bits a weight are good for; those that bfloat16 has; twice that.
    fn default() -> Self {
        Layers(vec![3, 7, 15])
    }
}

impl Layers {
    /// Cuts at these numbers of bits.
    ///
    /// # Errors
    /// What is wanted instead of them.
    pub fn new(cuts: Vec<u8>) -> std::result::Result<Self, String> {
        let ascend = cuts.windows(2).all(|pair| pair[0] < pair[1]);
        if cuts.is_empty() || cuts.len() > MAX_LAYERS || !ascend || cuts.last().is_some_and(|&cut| cut > 22) {
            return Err(format!(
                "expected 1 to {MAX_LAYERS} ascending numbers of bits from 0 to 22, such as 3,7,15"
            ));
        }
        Ok(Layers(cuts))
    }

    /// The blob of `source` in layers, if it is one that gets some, or as it is.
    ///
    /// # Errors
    /// The blob is corrupt, or has layers already.
    pub fn apply(&self, blob: Vec<u8>, source: &[u8], spec: &TensorSpec) -> Result<Vec<u8>> {
        if (blob.len() as u64) < LAYERED_FROM || !is_fit(&blob, source, spec)? {
            return Ok(blob);
        }
        Ok(layer(&blob, &self.0)?.unwrap_or(blob))
    }

    /// Adds to the sizes of a candidate what layers may cost.
    ///
    /// # Errors
    /// Shape, layout and block length do not go together.
    pub fn price(&self, candidate: &mut Candidate, spec: &TensorSpec, block_len: u32) -> Result<()> {
        let bound = layers_bound(Blocks::new(spec, block_len)?.count(), self.0.len());
        let Candidate { lossless, rounded, grids, .. } = candidate;
        let steps = grids.iter_mut().flat_map(|grids| &mut grids.steps).map(|(_, size, _)| size);
        for size in rounded.iter_mut().chain([lossless]).chain(steps) {
            *size += if *size >= LAYERED_FROM { bound } else { 0 };
        }
        Ok(())
    }
}

/// Whether the weights mean something when their lower bits are not known.
fn is_fit(blob: &[u8], source: &[u8], spec: &TensorSpec) -> Result<bool> {
    let header = Header::parse(blob)?;
    let elements = spec.elements()?;
    let (mut words, mut zeros) = (vec![0; CHUNK.min(elements) as usize], 0);
    for first in (0..elements).step_by(CHUNK as usize) {
        let words = &mut words[..CHUNK.min(elements - first) as usize];
        load_slots(spec, source, first, words);
        // An infinity or NaN has no middle.
        if words.iter().any(|word| word >> 23 & 255 == 255) {
            return Ok(false);
        }
        zeros += words.iter().filter(|&&word| word << 1 == 0).count() as u64;
    }
    Ok(header.transform != Transform::Grid || zeros <= elements / ZEROS)
}

#[cfg(test)]
mod tests {
    use nz_onnx::codec::{EncodeOptions, GridStep, encode};
    use nz_onnx::format::Dtype;

    use super::*;

    fn layers_of(weights: impl Iterator<Item = f32>, n: usize, grid: bool) -> usize {
        let source: Vec<u8> = weights.take(n).flat_map(f32::to_le_bytes).collect();
        let spec = TensorSpec::row_major(Dtype::F32, &[n as u64]);
        let grid = grid.then_some(GridStep { cell: 0, raw_bits: 9 });
        let blob = encode(&source, &spec, &EncodeOptions { grid, ..Default::default() }).expect("encoded");
        let blob = Layers::default().apply(blob, &source, &spec).expect("layered");
        Header::parse(&blob).expect("own").layers.len()
    }

    #[test]
    fn only_weights_that_gain_are_cut() {
        let weights = || (0..).map(|i| (i as f32 * 0.37).sin() * 0.1 + 0.2);
        assert_eq!(layers_of(weights(), 100_000, false), 3);
        assert_eq!(layers_of(weights(), 100_000, true), 2);
        assert_eq!(layers_of(weights(), 10_000, false), 0, "small");
        let sparse = || weights().enumerate().map(|(i, w)| if i % 8 == 0 { 0.0 } else { w });
        assert_eq!((layers_of(sparse(), 100_000, false), layers_of(sparse(), 100_000, true)), (3, 0));
        let special = weights().enumerate().map(|(i, w)| if i == 99_999 { f32::INFINITY } else { w });
        assert_eq!(layers_of(special, 100_000, false), 0);
        let coarse = (0..).map(|i| (i % 15) as f32);
        assert_eq!(layers_of(coarse, 500_000, false), 0, "three bits are all there are");
    }

    #[test]
    fn cuts_ascend() {
        assert_eq!(Layers::new(vec![3, 7, 15]), Ok(Layers::default()));
        for wrong in [vec![], vec![3, 3], vec![7, 3], vec![23], vec![1, 2, 3, 4]] {
            assert!(Layers::new(wrong.clone()).is_err_and(|e| e.contains("ascending")), "{wrong:?}");
        }
    }
}
