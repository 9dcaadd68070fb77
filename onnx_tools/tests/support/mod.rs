//! Tiny ONNX models built by hand, and a conversion of them without the command line.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod build;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use nz_onnx::codec::{self, EncodeOptions};
use onnx_tools::onnx::Model;
use onnx_tools::rewrite::{self, Decision, Placement, Plan, Rules};

/// Blobs below this stay in the model, as in the command.
pub const INLINE: usize = 64 << 10;

/// A converted model and how it came to be.
pub struct Converted {
    pub path: PathBuf,
    pub plan: Plan,
}

impl Converted {
    pub fn reason(&self, model: &Model, weight: &str) -> String {
        reason(model, &self.plan.decisions, weight)
    }
}

/// Why `weight` is kept, or the ops that decode it.
pub fn reason(model: &Model, decisions: &[Decision], weight: &str) -> String {
    let id = model.weights().iter().position(|w| w.name == weight).expect("no such weight");
    match &decisions[id] {
        Decision::Keep { reason } | Decision::Fold { reason } => reason.clone(),
        Decision::Compress(c) => c.uses.iter().map(|u| u.kind.op()).collect::<Vec<_>>().join(" "),
    }
}

/// Converts `source` to `out`; all blobs of `inline` bytes and more go to the data file.
pub fn convert(
    source: &Path,
    out: &Path,
    rules: &Rules,
    mantissa_bits: Option<u8>,
    inline: usize,
) -> Converted {
    let model = Model::open(source).unwrap();
    let decisions = rewrite::decide(&model, rules).unwrap();
    let data_file_name = format!("{}.data", out.file_name().unwrap().to_str().unwrap());
    let mut data = Vec::new();
    let mut placements = BTreeMap::new();
    let mut known = HashMap::new();
    for (weight, decision) in model.weights().iter().zip(&decisions) {
        let bytes = match decision {
            Decision::Compress(c) => {
                let elements = model.read_weight(weight).unwrap();
                let options = EncodeOptions { mantissa_bits, block_len: c.block_len, ..Default::default() };
                codec::encode(&elements, &c.spec, &options).unwrap()
            }
            _ if weight.is_external() => model.read_weight(weight).unwrap(),
            _ => continue,
        };
        if let Some(&root) = known.get(&bytes) {
            placements.insert(weight.id, Placement::SameAs(root));
            continue;
        }
        known.insert(bytes.clone(), weight.id);
        let placement = if bytes.len() < inline {
            Placement::Inline(bytes)
        } else {
            data.resize(data.len().next_multiple_of(64 << 10), 0);
            let offset = data.len() as u64;
            data.extend_from_slice(&bytes);
            Placement::External { offset, len: bytes.len() as u64 }
        };
        placements.insert(weight.id, placement);
    }
    if !data.is_empty() {
        fs::write(out.with_file_name(&data_file_name), &data).unwrap();
    }
    let folded = BTreeMap::new();
    let plan = Plan {
        decisions,
        placements,
        folded,
        data_file_name,
        format: (1, 0),
        metadata: vec![],
        nchwc_block: None,
        base: None,
        depths: Default::default(),
        compensated: Default::default(),
    };
    let rope = rewrite::build(&model, &plan).unwrap();
    let mut bytes = Vec::new();
    rope.write_to(&model, &mut bytes, out).unwrap();
    assert_eq!(bytes.len() as u64, rope.len());
    fs::write(out, bytes).unwrap();
    Converted { path: out.to_path_buf(), plan }
}
