//! Which value a name means where it stands: a body sees the names of the graphs around it.

use std::collections::{HashMap, HashSet};

use super::graph::{GraphId, Node};
use super::model::Model;
use super::tensor::{Origin, Weight, WeightId};

/// What defines a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Definition {
    /// An initializer or a `Constant` node with a tensor.
    Weight(WeightId),
    /// A sparse initializer.
    Sparse,
    /// A graph input, by index.
    Input(usize),
    /// A node's output, by the node's index.
    Node(usize),
}

/// A value: the graph it is defined in and its name there.
pub type ValueKey<'m> = (GraphId, &'m str);

/// A place where a value is read: input `input` of node `node` of graph `graph`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reader {
    /// The graph of the node.
    pub graph: GraphId,
    /// The node's index.
    pub node: usize,
    /// The input's index.
    pub input: usize,
}

/// All names of a model, resolved.
#[derive(Debug)]
pub struct Scope<'m> {
    model: &'m Model,
    definitions: Vec<HashMap<&'m str, Definition>>,
    readers: HashMap<ValueKey<'m>, Vec<Reader>>,
    outputs: HashSet<ValueKey<'m>>,
}

impl<'m> Scope<'m> {
    /// Resolves the names of `model`.
    pub fn new(model: &'m Model) -> Self {
        let mut definitions: Vec<HashMap<&str, Definition>> = Vec::with_capacity(model.graphs().len());
        for graph in model.graphs() {
            let mut names = HashMap::new();
            for (i, input) in graph.inputs.iter().enumerate() {
                names.insert(input.name.as_str(), Definition::Input(i));
            }
            for (i, node) in graph.nodes.iter().enumerate() {
                for output in node.outputs.iter().filter(|o| !o.is_empty()) {
                    names.insert(output.as_str(), Definition::Node(i));
                }
            }
            for name in &graph.sparse {
                names.insert(name.as_str(), Definition::Sparse);
            }
            definitions.push(names);
        }
        // Weights last: an initializer may also be a graph input, a `Constant` is also a node.
        for weight in model.weights() {
            let names = &mut definitions[weight.graph.0];
            let hidden = match (weight.origin, names.get(weight.name.as_str())) {
                (Origin::Constant { node }, Some(Definition::Node(n))) => *n != node,
                (_, Some(Definition::Node(_) | Definition::Weight(_) | Definition::Sparse)) => true,
                _ => false,
            };
            if !hidden && !weight.name.is_empty() {
                names.insert(weight.name.as_str(), Definition::Weight(weight.id));
            }
        }
        let mut scope = Scope { model, definitions, readers: HashMap::new(), outputs: HashSet::new() };
        for graph in model.graphs() {
            for (node, n) in graph.nodes.iter().enumerate() {
                for (input, name) in n.inputs.iter().enumerate() {
                    if let Some((owner, _)) = scope.resolve(graph.id, name) {
                        let reader = Reader { graph: graph.id, node, input };
                        scope.readers.entry((owner, name.as_str())).or_default().push(reader);
                    }
                }
            }
            for output in &graph.outputs {
                if let Some((owner, _)) = scope.resolve(graph.id, &output.name) {
                    scope.outputs.insert((owner, output.name.as_str()));
                }
            }
        }
        scope
    }

    /// What `name` means in `graph`, and the graph that defines it.
    pub fn resolve(&self, graph: GraphId, name: &str) -> Option<(GraphId, Definition)> {
        if name.is_empty() {
            return None;
        }
        let mut here = Some(graph);
        while let Some(id) = here {
            if let Some(definition) = self.definitions[id.0].get(name) {
                return Some((id, *definition));
            }
            here = self.model.graph(id).parent.map(|(parent, _)| parent);
        }
        None
    }

    /// The node that makes what `name` means in `graph`, and the graph that it is in; `None` for what no node makes.
    pub fn maker(&self, graph: GraphId, name: &str) -> Option<(GraphId, &'m Node)> {
        match self.resolve(graph, name)? {
            (owner, Definition::Node(node)) => Some((owner, self.model.graph(owner).nodes.get(node)?)),
            _ => None,
        }
    }

    /// The weight that `name` means in `graph`, if it is one.
    pub fn weight(&self, graph: GraphId, name: &str) -> Option<&'m Weight> {
        match self.resolve(graph, name)? {
            (_, Definition::Weight(id)) => Some(self.model.weight(id)),
            _ => None,
        }
    }

    /// Where the value `name` of `graph` is read, bodies included.
    pub fn readers(&self, graph: GraphId, name: &'m str) -> &[Reader] {
        self.readers.get(&(graph, name)).map_or(&[], Vec::as_slice)
    }

    /// Whether the value `name` of `graph` is an output of its graph or of a body.
    pub fn is_output(&self, graph: GraphId, name: &'m str) -> bool {
        self.outputs.contains(&(graph, name))
    }
}
