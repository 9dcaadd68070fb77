//! `nz.register_libnz_onnx_so_before_loading_this_model`: a node that is there to be missed.
//!
//! Without this library ONNX Runtime says only that the first op it does not know is not registered, so the
//! converter puts a node first whose op type says what to do about it.

use crate::ort::api::KernelContext;
use crate::ort::fence::Result;
use crate::ort::ops::Kernel;

pub(crate) struct Notice;

impl Kernel for Notice {
    fn compute(&self, mut context: KernelContext<'_>) -> Result<()> {
        context.output(&[])?.fill(0.0);
        Ok(())
    }
}
