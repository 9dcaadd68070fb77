//! The kernels: one file an op, over one engine for products.

mod activation;
mod attention;
mod buffers;
mod conv;
mod decode;
mod gather;
mod gemm;
mod gru;
mod lstm;
mod matmul;
mod notice;
mod patch;
mod plan;
mod product;
mod recurrent;
mod scratch;
mod turn;

pub(crate) use activation::Activation;
pub(crate) use attention::Attention;
pub(crate) use buffers::Buffers;
pub(crate) use conv::Conv;
pub(crate) use decode::Decode;
pub(crate) use gather::Gather;
pub(crate) use gemm::{Gemm, addend_strides, rows_of};
pub(crate) use gru::Gru;
pub(crate) use lstm::Lstm;
pub(crate) use matmul::{MatMul, Matrix};
pub(crate) use notice::Notice;
