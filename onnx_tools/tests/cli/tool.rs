//! Runs the command in a folder of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use prost::Message;
use serde_json::Value;
use tempfile::TempDir;

use super::build::{self, GraphProto, ModelProto, TensorProto};

/// A folder with models, and the command run in it.
pub struct Folder {
    temp: TempDir,
}

/// What a run of the command gave.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn new(output: Output) -> Ran {
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Checks the exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Ran {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// One message that holds all of `parts`, and an empty stdout.
    #[track_caller]
    pub fn complains(self, code: i32, parts: &[&str]) -> Ran {
        let ran = self.exits(code);
        assert_eq!(ran.stdout, "");
        assert_eq!(ran.stderr.matches("error: ").count(), 1, "{}", ran.stderr);
        for part in parts {
            assert!(ran.stderr.contains(part), "{part:?} is not in: {}", ran.stderr);
        }
        ran
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nz-onnx"));
    command.stdin(Stdio::null()).env_remove("NO_COLOR");
    command
}

impl Folder {
    pub fn new() -> Folder {
        Folder { temp: TempDir::new().unwrap() }
    }

    /// A folder with `model.onnx`.
    pub fn with(model: &ModelProto) -> Folder {
        let folder = Folder::new();
        folder.write("model.onnx", &model.encode_to_vec());
        folder
    }

    pub fn path(&self) -> &Path {
        self.temp.path()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.at(name), bytes).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.at(name)).unwrap()
    }

    /// Names of all files, hidden ones too.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Runs `line`, split at spaces.
    pub fn run(&self, line: &str) -> Ran {
        let arguments = line.split(' ').filter(|a| !a.is_empty());
        Ran::new(command().current_dir(self.path()).args(arguments).output().unwrap())
    }
}

/// `y = x W0 W1 ...` with square weights of `n` columns each.
pub fn chain(n: usize, weights: Vec<TensorProto>) -> ModelProto {
    let mut graph = GraphProto {
        name: Some("chain".into()),
        input: vec![build::info("x", 1, &[-1, n as i64])],
        output: vec![build::info("y", 1, &[-1, n as i64])],
        ..Default::default()
    };
    let last = weights.len() - 1;
    for (i, weight) in weights.into_iter().enumerate() {
        let value = |i: usize| if i == 0 { "x".to_string() } else { format!("h{i}") };
        let output = if i == last { "y".to_string() } else { value(i + 1) };
        let node = build::node("MatMul", &[&value(i), weight.name.as_deref().unwrap()], &[&output]);
        graph.node.push(node.named(&format!("layer{i}")));
        graph.initializer.push(weight);
    }
    build::model(8, 17, graph)
}

/// Three weights of 64 columns: two large enough to compress, one that is not.
pub fn small() -> ModelProto {
    let mut model = chain(64, vec![build::raw("a", &[64, 64], 1), build::raw("b", &[64, 64], 2)]);
    let graph = model.graph.as_mut().unwrap();
    graph.initializer.push(build::raw("bias", &[64], 3));
    graph.node[1].output[0] = "before_bias".into();
    graph.node.push(build::node("Add", &["before_bias", "bias"], &["y"]).named("add"));
    model
}

/// Two weights of 1 MiB each: their blobs go to the data file.
pub fn large() -> ModelProto {
    chain(512, vec![build::raw("a", &[512, 512], 1), build::raw("b", &[512, 512], 2)])
}

/// Runs `line` if this machine has ONNX Runtime and the library; says so if not.
pub fn with_runtime(folder: &Folder, line: &str) -> Option<Ran> {
    let env = folder.run("env --json").exits(0).json();
    if env["ort_lib"].is_null() || env["library"].is_null() {
        eprintln!(
            "SKIPPED: {line}: libonnxruntime is {}, libnz_onnx {} (set ORT_DYLIB_PATH and NZ_LIBRARY)",
            env["ort_lib"], env["library"]
        );
        return None;
    }
    Some(Ran::new(command().current_dir(folder.path()).args(line.split(' ')).output().unwrap()))
}

/// An `.npz` file with one float32 array.
pub fn npz(name: &str, shape: &str, values: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut npy = b"\x93NUMPY\x01\x00".to_vec();
    npy.extend((header.len() as u16).to_le_bytes());
    npy.extend(header.as_bytes());
    npy.extend(values);
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    archive.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
    std::io::Write::write_all(&mut archive, &npy).unwrap();
    archive.finish().unwrap().into_inner()
}
