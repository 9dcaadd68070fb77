//! A copy of a model in which weights are changed, to see what that does to values, and the user's inputs to run it on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use prost::Message;

use super::calibrate::CalibrateOptions;
use super::runtime::session::Ran;
use super::runtime::{Array, Loaded, Runtime, inputs, locate};
use crate::onnx::{Error, GraphId, Model, Result, Storage, Weight, proto};
use crate::staged::Folder;

/// The arrays of one run, by input.
pub(super) type Inputs = BTreeMap<String, Array>;

/// Of every so many inputs one is left out; of fewer none.
const LEFT_OUT: usize = 3;

/// A copy of a model and its data files in the folder for temporary files. Dropped, it is removed.
pub(super) struct Replica<'a> {
    model: &'a Model,
    folder: Folder,
    path: PathBuf,
    /// On as many threads as the user likes.
    runtime: Runtime,
    /// On one: the last bits of values, on which a rounding or a choice may hang, are then the same each time.
    exact: Runtime,
    /// Inputs to learn from.
    pub seen: Vec<Inputs>,
    /// Inputs to judge by what was learnt; none where there are too few.
    pub left_out: Vec<Inputs>,
}

/// `ModelProto` with more outputs: behind a model, they are added to its own.
#[derive(Clone, PartialEq, prost::Message)]
struct MoreOutputs {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphOutputs>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GraphOutputs {
    #[prost(message, repeated, tag = "12")]
    outputs: Vec<proto::ValueInfo>,
}

impl<'a> Replica<'a> {
    /// A copy of `model`, and the inputs that `how` names.
    ///
    /// # Errors
    /// There is no ONNX Runtime, it does not load the model, the inputs do not fit it, or there is no room.
    pub fn make(model: &'a Model, how: &CalibrateOptions) -> Result<Self> {
        let library = locate::require_onnxruntime(how.ort_lib.as_deref())?;
        let runtime = Runtime::load(&library, how.threads)?;
        let exact = Runtime::load(&library, Some(1))?;
        let folder = Folder::create(&std::env::temp_dir().join("nz-onnx.calibrate"))?;
        let path = folder.path().join("model.onnx");
        copy(model.path(), &path)?;
        let mut data = BTreeMap::new();
        for weight in model.weights() {
            if let Storage::External { path, location, .. } = &weight.storage {
                data.insert(location, path);
            }
        }
        for (location, path) in data {
            copy(path, &folder.path().join(location))?;
        }
        let (seen, left_out) = Default::default();
        let mut replica = Replica { model, folder, path, runtime, exact, seen, left_out };
        let slots = replica.open()?.inputs()?;
        (replica.seen, replica.left_out) = split(inputs::given(&how.inputs, &slots)?);
        Ok(replica)
    }

    /// The copy in ONNX Runtime, on one thread.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    pub fn open(&self) -> Result<Loaded> {
        self.exact.open(&self.path, None).map_err(|what| self.refused(&what))
    }

    /// The version of ONNX Runtime.
    pub fn version(&self) -> &str {
        self.exact.version()
    }

    /// Runs the copy as it is on each of the inputs to learn from, on as many threads as there are.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    pub fn run_seen(&self) -> Result<Vec<Ran>> {
        let session = self.runtime.open(&self.path, None).map_err(|what| self.refused(&what))?;
        self.run(session, &self.seen)
    }

    /// The same on each of those left out, on one thread.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    pub fn run_left_out(&self) -> Result<Vec<Ran>> {
        self.run(self.open()?, &self.left_out)
    }

    fn run(&self, mut session: Loaded, inputs: &[Inputs]) -> Result<Vec<Ran>> {
        inputs.iter().map(|inputs| session.run(inputs).map_err(|what| self.fails(&what))).collect()
    }

    /// The error for a model that is not loaded.
    fn refused(&self, what: &str) -> Error {
        let path = self.model.path();
        Error::unsupported(path, format!("ONNX Runtime does not load it, to calibrate: {what}"))
    }

    /// The error for inputs that a model does not run on.
    pub fn fails(&self, what: &str) -> Error {
        let path = self.model.path().display();
        Error::Usage(format!("{path}: ONNX Runtime does not run it on these inputs: {what}"))
    }

    /// Whether [`Replica::write`] can change a weight: its elements lie one after the other.
    pub fn holds(&self, weight: &Weight) -> bool {
        self.place(weight).is_some()
    }

    /// Puts `bytes` in the place of a weight's elements, if they lie one after the other.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write(&self, weight: &Weight, bytes: &[u8]) -> Result<()> {
        let Some((path, offset)) = self.place(weight) else { return Ok(()) };
        let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            file.write_all(bytes)
        });
        written.map_err(|e| Error::io(&path, "write a rounded weight", e))
    }

    fn place(&self, weight: &Weight) -> Option<(PathBuf, u64)> {
        match &weight.storage {
            Storage::Plain(range) => Some((self.path.clone(), range.start)),
            Storage::External { location, offset, .. } => Some((self.folder.path().join(location), *offset)),
            _ => None,
        }
    }

    /// Makes the copy give these values besides its outputs, and no others.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn ask_for(&self, names: &BTreeSet<&str>) -> Result<()> {
        let graph = self.model.graph(GraphId(0));
        let known =
            |name: &&&str| graph.inputs.iter().chain(&graph.outputs).all(|value| value.name != ***name);
        let output = |name: &&str| proto::ValueInfo { name: Some(name.to_string()), ..Default::default() };
        let outputs: Vec<_> = names.iter().filter(known).map(output).collect();
        let more = match outputs.is_empty() {
            true => Vec::new(),
            false => MoreOutputs { graph: Some(GraphOutputs { outputs }) }.encode_to_vec(),
        };
        let len = self.model.source().len();
        let written = OpenOptions::new().write(true).open(&self.path).and_then(|mut file| {
            file.set_len(len)?;
            file.seek(SeekFrom::Start(len))?;
            file.write_all(&more)
        });
        written.map_err(|e| Error::io(&self.path, "add outputs to a copy of the model", e))
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let failed = |e| Error::io(from, format!("copy to {}", to.display()), e);
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut out = File::create(to).map_err(failed)?;
    let mut source = File::open(from).map_err(failed)?;
    std::io::copy(&mut source, &mut out).map(drop).map_err(failed)
}

/// Inputs to learn from, and those left out: spread evenly, so that a series of several things has some of each in both.
fn split(all: Vec<Inputs>) -> (Vec<Inputs>, Vec<Inputs>) {
    let (mut seen, mut left_out) = (Vec::new(), Vec::new());
    for (number, inputs) in all.into_iter().enumerate() {
        let part = if number % LEFT_OUT == LEFT_OUT - 1 { &mut left_out } else { &mut seen };
        part.push(inputs);
    }
    (seen, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_inputs_are_left_out() {
        let numbered = |count: usize| {
            let of = |i: usize| {
                let array = Array {
                    dtype: ort::value::TensorElementType::Uint8,
                    shape: vec![1],
                    bytes: vec![i as u8],
                };
                BTreeMap::from([("x".to_string(), array)])
            };
            let (seen, left_out) = split((0..count).map(of).collect());
            let numbers =
                |part: Vec<Inputs>| part.iter().map(|inputs| inputs["x"].bytes[0]).collect::<Vec<_>>();
            (numbers(seen), numbers(left_out))
        };
        assert_eq!(numbered(2), (vec![0, 1], vec![]));
        assert_eq!(numbered(3), (vec![0, 1], vec![2]));
        assert_eq!(numbered(7), (vec![0, 1, 3, 4, 6], vec![2, 5]));
    }
}
