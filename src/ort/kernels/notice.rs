//! `nz.register_libnz_onnx_so_before_loading_this_model`: a node that is there to be missed.
//!
//! Without this library ONNX Runtime says only that the first op it does not know is not registered, so the
//! converter puts a node first whose op type says what to do about it. With the library, the node also says what
//! the CPU must be like, and how much memory there must be for weights.

use crate::nchwc;
use crate::ort::api::{KernelContext, KernelInfo};
use crate::ort::depth::DEPTH_BYTES;
use crate::ort::fence::{Failure, Result};
use crate::ort::ops::Kernel;

pub(crate) struct Notice;

impl Notice {
    /// The kernel of the node that `info` describes; fails if the model holds weights in channel blocks of a size
    /// that ONNX Runtime does not use here: it would read them as another layout and say nothing. It fails too if the
    /// compressed weights do not fit into what the session has for them.
    pub fn new(info: &KernelInfo<'_>) -> Result<Self> {
        if let Some(limit) = info.limit() {
            limit.check(info.ints(DEPTH_BYTES).ok().as_deref())?;
        }
        let here = nchwc::block_size();
        match info.int(c"nchwc_block") {
            Some(made_for) if here.map(i64::from) != Some(made_for) => {
                let here = here.map_or("has no channel blocks".to_string(), |size| {
                    format!("uses channel blocks of {size}")
                });
                Err(Failure::invalid(format!(
                    "the model was optimised for CPUs on which ONNX Runtime uses channel blocks of {made_for}, on this \
                     one it {here}: convert the original model on a machine like this one, with `nz-onnx convert \
                     --optimize native`, or for any machine, with `--optimize portable`"
                )))
            }
            _ => Ok(Notice),
        }
    }
}

impl Kernel for Notice {
    fn compute(&self, mut context: KernelContext<'_>) -> Result<()> {
        context.only_output(&[])?.fill(0.0);
        Ok(())
    }
}
