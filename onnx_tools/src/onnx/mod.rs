//! Reading ONNX models: a wire scanner over positional reads, so that memory does not grow with the model.
//!
//! [`Model::open`] reads the structure of a model (graphs, nodes, where each tensor's bytes lie) and none of
//! its weights; [`Model::read_weight`] reads one weight.

pub mod error;
pub mod external;
pub mod graph;
pub mod model;
pub mod proto;
pub mod scope;
pub mod source;
pub mod tensor;
pub mod wire;

mod parse;
pub(crate) mod payload;

pub use error::{Error, Result};
pub use graph::{Attribute, Graph, GraphId, Node, ValueInfo};
pub use model::{Blob, DOMAIN, Model};
pub use source::Source;
pub use tensor::{Origin, Storage, Weight, WeightId};
