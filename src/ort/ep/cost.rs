//! Which convolutions are worth taking.
//!
//! ONNX Runtime lays constant weights of convolutions out in channel blocks, with kernels to match, and applies the
//! activation behind in the same go. A convolution that is taken goes without. What that costs grows with the positions
//! that the filter is applied to, what it saves does not.

use super::graph::Node;
use crate::ort::fence::Result;

/// Which convolutions are taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Convs {
    /// None.
    None,
    /// Those that are applied to no more positions than this.
    UpTo(f64),
    /// All.
    All,
}

impl Convs {
    /// Whether a `Conv` with a weight of this shape is one.
    pub fn pays(self, node: &Node<'_>, shape: &[u64]) -> Result<bool> {
        let (Convs::UpTo(_) | Convs::All, 3..=5) = (self, shape.len()) else { return Ok(false) };
        // One input channel a group: a depthwise one, which has few weights and a kernel of its own.
        if shape[1] == 1 && node.int(c"group").unwrap_or(1) > 1 {
            return Ok(false);
        }
        let Convs::UpTo(most) = self else { return Ok(true) };
        let outputs = node.outputs()?;
        let Some((_, dims)) = outputs.first().copied().flatten().map(|out| out.typed()).transpose()?.flatten() else {
            return Ok(false);
        };
        // Batches are not counted: they are 1 where they are not known.
        let positions = dims.iter().skip(2).map(|&d| if d < 0 { f64::INFINITY } else { d as f64 });
        Ok(positions.product::<f64>() <= most)
    }
}
