//! What to make of a model.

use std::collections::BTreeMap;

use nz_onnx::codec::allocation::Folded;

use crate::onnx::{Error, Result, WeightId};
use crate::rewrite::base::{BaseBlob, PlanBase};
use crate::rewrite::decide::{Compression, Decision};
use crate::rewrite::depths::DepthBytes;

/// Where a weight's bytes are in the converted model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In the data file.
    External {
        /// First byte, a multiple of 64 KiB.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// In the model: for small ones.
    Inline(Vec<u8>),
    /// In the base's data file, where [`Plan::base`] says: it is the base's own.
    InBase,
    /// The same blob as that weight's, whose placement is one of the others.
    SameAs(WeightId),
}

/// A weight in a form of [`crate::rewrite::fold`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Which.
    pub how: Folded,
    /// XXH3 of its bytes.
    pub checksum: u64,
    /// Whether the weight comes back bit for bit.
    pub exact: bool,
}

/// What to make of a model.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What happens to each weight, in the order of [`crate::onnx::Model::weights`].
    pub decisions: Vec<Decision>,
    /// For each compressed weight its blob, for each kept one with external data its elements.
    pub placements: BTreeMap<WeightId, Placement>,
    /// The weights stored in a form of [`crate::rewrite::fold`], which their placements hold. Their decisions are to keep them.
    pub folded: BTreeMap<WeightId, Form>,
    /// Name of the data file, which lies beside the converted model.
    pub data_file_name: String,
    /// The greatest format version, major and minor, of a blob that the model needs; 1.0 if there is none.
    pub format: (u8, u8),
    /// Further `metadata_props`; those named `nz.format`, `nz.tool`, `nz.source_sha256` and `nz.restore` are
    /// added by [`super::build`].
    pub metadata: Vec<(String, String)>,
    /// Channels a block in the weights of `com.microsoft.nchwc` nodes, if the model has any: the library refuses it
    /// where ONNX Runtime takes another number.
    pub nchwc_block: Option<u32>,
    /// What weights come from a base, if any.
    pub base: Option<PlanBase>,
    /// What blobs take with each layer, if they were to get some; else empty.
    pub depths: DepthBytes,
    /// The weights whose rounding made good others' errors, with XXH3 of what they were.
    pub compensated: BTreeMap<WeightId, u128>,
}

impl Plan {
    /// The placement of a weight, [`Placement::SameAs`] followed, and the weight it belongs to.
    pub(crate) fn place(&self, id: WeightId) -> Result<(WeightId, &Placement)> {
        let missing = || Error::Internal(format!("weight {} has no placement", id.0));
        match self.placements.get(&id).ok_or_else(missing)? {
            Placement::SameAs(root) => match self.placements.get(root).ok_or_else(missing)? {
                Placement::SameAs(_) => Err(Error::Internal(format!("weight {} is tied twice over", id.0))),
                found => Ok((*root, found)),
            },
            found => Ok((id, found)),
        }
    }

    /// The base's blob that a weight is, or that its blob is a delta to.
    pub(crate) fn base_of(&self, root: WeightId) -> Option<(&PlanBase, BaseBlob)> {
        let base = self.base.as_ref()?;
        Some((base, *base.blobs.get(&root)?))
    }

    /// Whether the model that is made needs the library.
    pub(super) fn needs_library(&self) -> bool {
        self.nchwc_block.is_some() || self.compressed().next().is_some()
    }

    pub(crate) fn compressed(&self) -> impl Iterator<Item = (WeightId, &Compression)> {
        self.decisions.iter().enumerate().filter_map(|(i, decision)| match decision {
            Decision::Compress(compression) => Some((WeightId(i), compression)),
            Decision::Keep { .. } | Decision::Fold { .. } => None,
        })
    }

    /// The weights that are not in the converted model as they were.
    pub(crate) fn changed(&self) -> impl Iterator<Item = WeightId> {
        self.compressed().map(|(id, _)| id).chain(self.folded.keys().copied())
    }
}
