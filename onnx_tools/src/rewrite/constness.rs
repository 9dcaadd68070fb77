//! Which values depend on the model's inputs; ONNX Runtime computes the others once, at load.

use std::collections::HashSet;

use super::ops;
use crate::onnx::scope::{Definition, Scope, ValueKey};
use crate::onnx::{GraphId, Model};

/// The values that depend on an input.
#[derive(Debug)]
pub struct Variables<'m> {
    values: HashSet<ValueKey<'m>>,
}

impl<'m> Variables<'m> {
    /// Finds them.
    pub fn new(model: &'m Model, scope: &Scope<'m>) -> Self {
        let mut found = Variables { values: HashSet::new() };
        for graph in model.graphs() {
            for input in &graph.inputs {
                let is_input =
                    matches!(scope.resolve(graph.id, &input.name), Some((_, Definition::Input(_))));
                // From IR 4 on an initializer that is also an input is a default that a caller may replace.
                if is_input || model.ir_version() >= 4 {
                    found.values.insert((graph.id, input.name.as_str()));
                }
            }
        }
        // Nodes are in topological order, so one pass does but for what flows out of bodies.
        while found.pass(model, scope) {}
        found
    }

    /// Whether `name`, as read in `graph`, depends on an input.
    pub fn has(&self, scope: &Scope<'m>, graph: GraphId, name: &'m str) -> bool {
        scope.resolve(graph, name).is_some_and(|(owner, _)| self.values.contains(&(owner, name)))
    }

    fn pass(&mut self, model: &'m Model, scope: &Scope<'m>) -> bool {
        let mut changed = false;
        let mut varies = vec![false; model.graphs().len()];
        for graph in model.graphs().iter().rev() {
            for node in &graph.nodes {
                let bodies = node.attributes.iter().flat_map(|a| &a.graphs);
                let variable = ops::is_random(&node.op)
                    || node.inputs.iter().any(|input| self.has(scope, graph.id, input))
                    || bodies.map(|(id, _)| id).any(|id| varies[id.0]);
                if !variable {
                    continue;
                }
                varies[graph.id.0] = true;
                for output in node.outputs.iter().filter(|o| !o.is_empty()) {
                    changed |= self.values.insert((graph.id, output.as_str()));
                }
            }
        }
        changed
    }
}
