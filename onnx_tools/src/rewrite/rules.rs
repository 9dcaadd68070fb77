//! Which weights the user wants compressed.

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use crate::onnx::{Error, Result};

/// Weights smaller than this are kept unless told otherwise, in bytes: an op costs more than it saves there.
pub const DEFAULT_MIN_SIZE: u64 = 4096;

/// The user's choice; everything by default.
#[derive(Clone, Debug)]
pub struct Rules {
    min_size: u64,
    include: Option<Patterns>,
    exclude: Patterns,
    exclude_nodes: Patterns,
    integers: bool,
}

/// Glob patterns, and the same as plain names: ONNX names may hold brackets and stars.
#[derive(Clone, Debug, Default)]
struct Patterns {
    globs: GlobSet,
    names: Vec<String>,
}

impl Patterns {
    fn new(option: &str, patterns: &[String]) -> Result<Self> {
        let bad = |e: globset::Error| Error::Usage(format!("{option}: {e}"));
        let glob = |p: &String| -> std::result::Result<Glob, globset::Error> { GlobBuilder::new(p).build() };
        let mut globs = GlobSetBuilder::new();
        for pattern in patterns {
            globs.add(glob(pattern).map_err(bad)?);
        }
        Ok(Patterns { globs: globs.build().map_err(bad)?, names: patterns.to_vec() })
    }

    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name) || self.globs.is_match(name)
    }
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            min_size: DEFAULT_MIN_SIZE,
            include: None,
            exclude: Patterns::default(),
            exclude_nodes: Patterns::default(),
            integers: false,
        }
    }
}

impl Rules {
    /// `min_size` in bytes; `include` (empty: all) and `exclude` are glob patterns on names of weights,
    /// `exclude_nodes` on names of nodes. In a pattern `*` stands for any characters, slashes too.
    pub fn new(
        min_size: u64,
        include: &[String],
        exclude: &[String],
        exclude_nodes: &[String],
    ) -> Result<Rules> {
        let include = if include.is_empty() { None } else { Some(Patterns::new("--include", include)?) };
        Ok(Rules {
            min_size,
            include,
            exclude: Patterns::new("--exclude", exclude)?,
            exclude_nodes: Patterns::new("--exclude-nodes", exclude_nodes)?,
            integers: false,
        })
    }

    /// The same, and int8 and uint8 weights are wanted too, or not.
    pub fn with_integers(self, integers: bool) -> Rules {
        Rules { integers, ..self }
    }

    /// Whether int8 and uint8 weights are wanted.
    pub(crate) fn integers(&self) -> bool {
        self.integers
    }

    /// Least size of a weight, in bytes.
    pub fn min_size(&self) -> u64 {
        self.min_size
    }

    /// Whether there is an `include`.
    pub(crate) fn names_weights(&self) -> bool {
        self.include.is_some()
    }

    /// Why the weight of that name is not wanted, if it is not.
    pub(crate) fn refuses(&self, weight: &str) -> Option<&'static str> {
        if self.exclude.has(weight) {
            Some("excluded by --exclude")
        } else if self.include.as_ref().is_some_and(|include| !include.has(weight)) {
            Some("not among --include")
        } else {
            None
        }
    }

    /// Whether the node of that name keeps its weights.
    pub(crate) fn refuses_node(&self, node: &str) -> bool {
        !node.is_empty() && self.exclude_nodes.has(node)
    }
}
