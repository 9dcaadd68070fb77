//! Which values depend on the model's inputs; ONNX Runtime computes the others once, at load.

use std::collections::{BTreeMap, HashSet};

use super::carried::Carried;
use super::ops;
use crate::onnx::scope::{Definition, Reader, Scope, ValueKey};
use crate::onnx::{GraphId, Model};

/// The values that depend on an input.
#[derive(Debug)]
pub struct Variables<'m> {
    values: HashSet<ValueKey<'m>>,
}

impl<'m> Variables<'m> {
    /// Finds them, given all variables that loops hand on as they are.
    pub fn new(model: &'m Model, scope: &Scope<'m>, carried: &BTreeMap<Reader, Carried>) -> Self {
        let mut found = Variables { values: HashSet::new() };
        // What a loop hands on as it is varies if its initial value does.
        let starts: HashSet<ValueKey<'m>> =
            carried.values().filter_map(|c| Some((c.body, c.start(model)?))).collect();
        for graph in model.graphs() {
            for input in &graph.inputs {
                let is_input =
                    matches!(scope.resolve(graph.id, &input.name), Some((_, Definition::Input(_))));
                // From IR 4 on an initializer that is also an input is a default that a caller may replace.
                let is_carried = starts.contains(&(graph.id, input.name.as_str()));
                if !is_carried && (is_input || model.ir_version() >= 4) {
                    found.values.insert((graph.id, input.name.as_str()));
                }
            }
        }
        // Nodes are in topological order, so one pass does but for what flows out of bodies.
        while found.pass(model, scope, carried) {}
        found
    }

    /// Whether `name`, as read in `graph`, depends on an input.
    pub fn has(&self, scope: &Scope<'m>, graph: GraphId, name: &'m str) -> bool {
        scope.resolve(graph, name).is_some_and(|(owner, _)| self.values.contains(&(owner, name)))
    }

    fn pass(&mut self, model: &'m Model, scope: &Scope<'m>, carried: &BTreeMap<Reader, Carried>) -> bool {
        let mut changed = false;
        let mut constant = HashSet::new();
        for variable in carried.values() {
            let (graph, initial) = variable.initial(model);
            if !self.has(scope, graph, initial) {
                constant.extend(variable.last(model));
            } else if let Some(start) = variable.start(model) {
                changed |= self.values.insert((variable.body, start));
            }
        }
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
                    let value = (graph.id, output.as_str());
                    changed |= !constant.contains(&value) && self.values.insert(value);
                }
            }
        }
        changed
    }
}
