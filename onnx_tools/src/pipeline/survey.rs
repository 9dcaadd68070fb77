//! What each weight of a model would cost, before anything is encoded.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use nz_onnx::codec::{self, EncodeOptions};
use nz_onnx::format::{Dtype, Layout, TensorSpec};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::allocation::Candidate;
use crate::onnx::{Error, Model, Result, WeightId};
use crate::report::Progress;
use crate::rewrite::Decision;

/// Weights of the same content, layout and block length: they share one blob.
#[derive(Debug, Clone)]
pub struct Group {
    /// The weights, in the model's order; the first is where the blob is.
    pub weights: Vec<WeightId>,
    /// What the blob costs at each precision.
    pub candidate: Candidate,
}

/// What is known about a model before allocation.
#[derive(Debug)]
pub struct Surveyed {
    /// Weights that may be compressed.
    pub groups: Vec<Group>,
    /// Bytes of all other weights.
    pub kept_bytes: u64,
}

/// Reads each weight that `decisions` would compress, one at a time.
///
/// # Errors
/// A weight cannot be read.
pub fn survey(model: &Model, decisions: &[Decision], progress: &Progress) -> Result<Surveyed> {
    let work = |(w, d): (&crate::onnx::Weight, &Decision)| match d {
        Decision::Compress(_) => w.bytes,
        Decision::Keep { .. } => 0,
    };
    let mut step = progress.step("surveying", model.weights().iter().zip(decisions).map(work).sum());
    // A seed that nobody can know beforehand: two weights cannot be made to collide on purpose.
    let seed = RandomState::new().hash_one(0u64);
    let mut by_content: HashMap<(u128, Dtype, Layout, Vec<u64>, u32), usize> = HashMap::new();
    let mut found = Surveyed { groups: Vec::new(), kept_bytes: 0 };
    for (weight, decision) in model.weights().iter().zip(decisions) {
        let Decision::Compress(compression) = decision else {
            found.kept_bytes = found.kept_bytes.saturating_add(weight.bytes);
            continue;
        };
        let bytes = model.read_weight(weight)?;
        let TensorSpec { dtype, layout, shape } = compression.spec.clone();
        let key = (xxh3_128_with_seed(&bytes, seed), dtype, layout, shape, compression.block_len);
        if let Some(&group) = by_content.get(&key) {
            let group: &mut Group = &mut found.groups[group];
            group.weights.push(weight.id);
            group.candidate.copies += 1;
        } else {
            let candidate = candidate(&bytes, &compression.spec, compression.block_len)
                .map_err(|e| Error::codec(model.path(), &weight.name, e))?;
            by_content.insert(key, found.groups.len());
            found.groups.push(Group { weights: vec![weight.id], candidate });
        }
        step.advance(weight.bytes);
    }
    Ok(found)
}

fn candidate(bytes: &[u8], spec: &TensorSpec, block_len: u32) -> nz_onnx::error::Result<Candidate> {
    let survey = codec::survey(bytes, spec, &EncodeOptions { mantissa_bits: None, block_len })?;
    Ok(Candidate {
        bytes: bytes.len() as u64,
        copies: 1,
        lossless: survey.size(None),
        rounded: (0..spec.dtype.mantissa_bits()).map(|k| survey.size(Some(k))).collect(),
        floor: floor(spec.dtype),
    })
}

/// Fewest mantissa bits that the best-effort default leaves for the sake of the whole model: about 3 decimal
/// digits of a float32, 1 of the shorter types.
pub fn floor(dtype: Dtype) -> u8 {
    match dtype {
        Dtype::F32 => 10,
        Dtype::F16 | Dtype::Bf16 => 3,
    }
}
