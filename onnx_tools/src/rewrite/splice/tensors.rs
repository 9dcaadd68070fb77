//! The tensors of the converted graphs, and where their data is.

use std::ops::Range;

use nz_onnx::codec::allocation::Folded;

use super::{Placement, Splicer, owned};
use crate::onnx::proto::{self, dtype};
use crate::onnx::wire::Scanner;
use crate::onnx::{Error, GraphId, Result, Weight, WeightId};
use crate::rewrite::rope::Rope;
use crate::rewrite::{fold, nodes};

impl Splicer<'_> {
    /// The blobs that a graph holds, and those of the base, as its fields.
    pub(super) fn blobs(&self, id: GraphId, is_old: bool) -> Result<Rope> {
        let mut out = Rope::new();
        let here = (id, WeightId(0))..=(id, WeightId(usize::MAX));
        let bases = self.bases.range(here.clone()).map(|(key, name)| (key, name, &Placement::InBase));
        let blobs = self.blobs.range(here).map(|(key, name)| Ok((key, name, self.plan.place(key.1)?.1)));
        for blob in blobs.chain(bases.map(Ok)).collect::<Result<Vec<_>>>()? {
            let ((_, root), name, placement) = blob;
            let len = match placement {
                Placement::External { len, .. } => *len,
                Placement::Inline(bytes) => bytes.len() as u64,
                Placement::InBase => self.plan.base_of(*root).map_or(0, |(_, blob)| blob.len),
                Placement::SameAs(_) => 0,
            };
            let dim = i64::try_from(len).map_err(|_| Error::Internal("a blob beyond 63 bits".to_string()))?;
            let mut tensor = owned(&proto::Tensor {
                dims: vec![dim],
                data_type: Some(dtype::UINT8),
                name: Some(name.clone()),
                ..Default::default()
            });
            tensor.append(self.data(*root, placement)?);
            out.field(5, tensor);
            // Before IR 4 every initializer of the main graph is an input too; a body's inputs are its node's.
            if is_old && id == GraphId(0) {
                out.field(11, owned(&value_info(name, dtype::UINT8, vec![dim])));
            }
        }
        Ok(out)
    }

    /// What takes the place of Shape nodes that are gone, as fields of the graph.
    pub(super) fn shapes(&self, id: GraphId, is_old: bool) -> Rope {
        let graph = self.model.graph(id);
        let mut out = Rope::new();
        for ((_, node), shape) in self.shapes.range((id, 0)..=(id, usize::MAX)) {
            let (name, rank) = (&graph.nodes[*node].outputs[0], shape.len() as i64);
            let tensor = proto::Tensor {
                dims: vec![rank],
                data_type: Some(dtype::INT64),
                name: Some(name.clone()),
                raw_data: Some(shape.iter().flat_map(|dim| dim.to_le_bytes()).collect()),
                ..Default::default()
            };
            out.field(5, owned(&tensor));
            if is_old && id == GraphId(0) {
                out.field(11, owned(&value_info(name, dtype::INT64, vec![rank])));
            }
        }
        out
    }

    /// Appends the nodes that make a weight out of its form to `nodes`, under its own name; returns the tensors, as fields
    /// of the graph.
    pub(super) fn fold(
        &mut self,
        weight: &Weight,
        how: Folded,
        is_old: bool,
        nodes: &mut Rope,
    ) -> Result<Rope> {
        let broken = || Error::Internal(format!("weight {:?} is in no form to be folded", weight.name));
        let (_, placement) = self.plan.place(weight.id)?;
        let len = match placement {
            Placement::External { len, .. } => *len,
            Placement::Inline(bytes) => bytes.len() as u64,
            Placement::InBase | Placement::SameAs(_) => 0,
        };
        let shape =
            weight.shape.iter().map(|&dim| i64::try_from(dim)).collect::<std::result::Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| broken())?;
        let (scales, elements) = fold::parts(len, fold::scales(how, &weight.shape)).ok_or_else(broken)?;
        let is_half = how == Folded::Half;
        let stored =
            self.names.fresh(&format!("{}.nz.{}", weight.name, if is_half { "half" } else { "levels" }));
        let mut tensors = vec![(
            stored.clone(),
            if is_half { dtype::FLOAT16 } else { dtype::INT8 },
            shape.clone(),
            elements,
        )];
        if is_half {
            nodes.append(nodes::cast_up(&mut self.names, &stored, &weight.name));
        } else {
            let scale = self.names.fresh(&format!("{}.nz.scale", weight.name));
            nodes.append(nodes::scaled(&mut self.names, &stored, &scale, &weight.name));
            // One for each index of the first dimension, or for all.
            let rows =
                (how == Folded::Rows).then(|| (0..shape.len()).map(|i| if i == 0 { shape[0] } else { 1 }));
            tensors.push((scale, dtype::FLOAT, rows.into_iter().flatten().collect(), scales));
        }
        let mut out = Rope::new();
        for (name, dtype, dims, part) in tensors {
            if is_old && weight.graph == GraphId(0) {
                out.field(11, owned(&value_info(&name, dtype, dims.clone())));
            }
            let fields =
                proto::Tensor { dims, data_type: Some(dtype), name: Some(name), ..Default::default() };
            let mut tensor = owned(&fields);
            tensor.append(self.part(weight.id, placement, part)?);
            out.field(5, tensor);
        }
        Ok(out)
    }

    /// The fields of a tensor that say that its data is a part of what is placed there.
    fn part(&self, id: WeightId, placement: &Placement, part: Range<u64>) -> Result<Rope> {
        let part = match placement {
            Placement::External { offset, .. } => {
                Placement::External { offset: offset + part.start, len: part.end - part.start }
            }
            Placement::Inline(bytes) => {
                Placement::Inline(bytes[part.start as usize..part.end as usize].to_vec())
            }
            same @ (Placement::SameAs(_) | Placement::InBase) => same.clone(),
        };
        self.data(id, &part)
    }

    /// The tensor message of a kept weight whose data moves from one external file to another.
    pub(super) fn moved(&self, weight: &Weight) -> Result<Rope> {
        let mut out = Rope::new();
        let mut scanner = Scanner::new(self.model.source());
        let mut at = weight.message.start;
        while let Some(field) = scanner.field(&mut at, weight.message.end)? {
            if !matches!(field.number, 9 | 13 | 14) {
                out.source(field.whole);
            }
        }
        let (root, placement) = self.plan.place(weight.id)?;
        out.append(self.data(root, placement)?);
        Ok(out)
    }

    /// The fields of a tensor that say where its data is.
    fn data(&self, root: WeightId, placement: &Placement) -> Result<Rope> {
        let mut out = Rope::new();
        let external = |location: &str, offset: u64, len: u64| {
            let entry = |key: &str, value: String| proto::StringStringEntry {
                key: Some(key.to_string()),
                value: Some(value),
            };
            owned(&proto::Tensor {
                external_data: vec![
                    entry("location", location.to_string()),
                    entry("offset", offset.to_string()),
                    entry("length", len.to_string()),
                ],
                data_location: Some(1),
                ..Default::default()
            })
        };
        match placement {
            Placement::External { offset, len } => {
                out.append(external(&self.plan.data_file_name, *offset, *len));
            }
            Placement::InBase => {
                let of_base = self.plan.base_of(root);
                let (base, blob) = of_base.ok_or_else(|| {
                    Error::Internal(format!("weight {} is said to be in a base that has it not", root.0))
                })?;
                out.append(external(&base.file, blob.offset, blob.len));
            }
            Placement::Inline(bytes) => {
                let mut raw = Rope::new();
                raw.inline(root, bytes);
                out.field(9, raw);
            }
            Placement::SameAs(_) => {}
        }
        Ok(out)
    }
}

fn value_info(name: &str, elem_type: i32, dims: Vec<i64>) -> proto::ValueInfo {
    let dim = |dim: i64| proto::Dimension { dim_value: Some(dim), dim_param: None };
    let shape = proto::TensorShape { dim: dims.into_iter().map(dim).collect() };
    proto::ValueInfo {
        name: Some(name.to_string()),
        r#type: Some(proto::Type {
            tensor_type: Some(proto::TensorType { elem_type: Some(elem_type), shape: Some(shape) }),
        }),
    }
}
