//! Names that nothing else in the model has.

use std::collections::HashSet;

use crate::onnx::Model;

/// All names of a model: values and nodes of every graph.
#[derive(Debug)]
pub(crate) struct Names {
    taken: HashSet<String>,
}

impl Names {
    pub(crate) fn new(model: &Model) -> Self {
        let mut taken = HashSet::new();
        let mut take = |name: &str| {
            taken.insert(name.to_string());
        };
        for graph in model.graphs() {
            for info in graph.inputs.iter().chain(&graph.outputs).chain(&graph.value_info) {
                take(&info.name);
            }
            for node in &graph.nodes {
                take(&node.name);
                node.inputs.iter().chain(&node.outputs).for_each(|name| take(name));
            }
            graph.sparse.iter().for_each(|name| take(name));
        }
        model.weights().iter().for_each(|w| take(&w.name));
        Names { taken }
    }

    /// `base`, or `base.2`, `base.3`, ... if that is taken; taken from now on.
    pub(crate) fn fresh(&mut self, base: &str) -> String {
        let mut name = base.to_string();
        let mut n = 2u64;
        while !self.taken.insert(name.clone()) {
            name = format!("{base}.{n}");
            n += 1;
        }
        name
    }
}
