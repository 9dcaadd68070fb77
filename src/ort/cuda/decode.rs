//! `nz.Decode` and `nz.DecodeGather` on a device, and their like for integers and for deltas.

use super::weight::Weight;
use crate::cuda::job::{Indices, Output};
use crate::format::Dtype;
use crate::ort::api::{KernelContext, KernelInfo, element};
use crate::ort::fence::{Failure, Result};
use crate::ort::ops::Kernel;
use crate::ort::weight::Stored;

/// The whole weight, row-major.
pub(super) struct Decode {
    weight: Weight,
    dims: Vec<i64>,
    /// Of the output.
    dtype: Dtype,
}

impl Decode {
    /// The kernel of the node that `info` describes.
    pub fn new(info: &KernelInfo<'_>) -> Result<Self> {
        Ok(Decode::with(Weight::new(info, 0, None, Stored::Any)?, Dtype::F32))
    }

    /// The same for a weight of integers of `dtype`.
    pub fn of_integers(info: &KernelInfo<'_>, dtype: Dtype) -> Result<Self> {
        Ok(Decode::with(Weight::new(info, 0, None, Stored::Integers(dtype))?, dtype))
    }

    fn with(weight: Weight, dtype: Dtype) -> Self {
        let dims = weight.shape().iter().map(|&d| d as i64).collect();
        Decode { weight, dims, dtype }
    }
}

impl Kernel for Decode {
    fn compute(&self, context: KernelContext<'_>) -> Result<()> {
        let bound = self.weight.bind(&context)?;
        let address = context.output_address(0, &self.dims)?;
        let out = Output { dtype: self.dtype, address, status: bound.resident.status() };
        // SAFETY: the host's stream; the output lives until the host is done with it.
        unsafe { bound.decode(context.stream()?, |weight, memory| weight.decode_all(memory, out)) }
    }
}

/// The rows asked for, and no others.
pub(super) struct Gather {
    weight: Weight,
    row_dims: Vec<i64>,
    /// Of the output.
    dtype: Dtype,
}

impl Gather {
    /// The kernel of the node that `info` describes.
    pub fn new(info: &KernelInfo<'_>) -> Result<Self> {
        Ok(Gather::with(Weight::new(info, 0, None, Stored::Rows)?, Dtype::F32))
    }

    /// The same for a weight of integers of `dtype`.
    pub fn of_integers(info: &KernelInfo<'_>, dtype: Dtype) -> Result<Self> {
        Ok(Gather::with(Weight::new(info, 0, None, Stored::Integers(dtype))?, dtype))
    }

    fn with(weight: Weight, dtype: Dtype) -> Self {
        let row_dims = weight.shape().iter().skip(1).map(|&d| d as i64).collect();
        Gather { weight, row_dims, dtype }
    }
}

impl Kernel for Gather {
    fn compute(&self, context: KernelContext<'_>) -> Result<()> {
        let bound = self.weight.bind(&context)?;
        let indices = context.required(1)?;
        let size = match indices.element() {
            element::INT32 => 4,
            element::INT64 => 8,
            other => {
                return Err(Failure::invalid(format!(
                    "indices (input 1) must be int32 or int64, found element type {other}"
                )));
            }
        };
        let dims: Vec<i64> = indices.dims().iter().chain(&self.row_dims).copied().collect();
        let address = context.output_address(0, &dims)?;
        if dims.contains(&0) {
            return Ok(());
        }
        let out = Output { dtype: self.dtype, address, status: bound.resident.status() };
        let indices = Indices { address: indices.address(), count: indices.count() as u64, size };
        // SAFETY: as in `Decode`; the indices are the host's, and kept until the node is done.
        unsafe { bound.decode(context.stream()?, |weight, memory| weight.gather(memory, out, indices)) }
    }
}
