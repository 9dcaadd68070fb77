//! What there is to measure.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::demo;
use crate::python::Python;
use crate::workspace::{self, Workspace, progress};

/// What a part needs to measure.
pub struct Tools<'a> {
    pub workspace: &'a Workspace,
    pub python: &'a Python,
    /// Where the parts keep what they make.
    pub scratch: &'a Path,
    /// Small sizes: a smoke test, not a measurement.
    pub quick: bool,
}

/// A section of the page.
#[derive(Debug)]
pub struct Part {
    /// The name in the command line and in the section's markers.
    pub name: &'static str,
    pub heading: &'static str,
    /// Whether ONNX Runtime is one of the things measured.
    pub onnxruntime: bool,
    /// Whether it is measured only where it is named: not every machine has what it is for.
    pub on_demand: bool,
    /// Measures and writes the report to the path given; no report, if it skips.
    pub measure: fn(&Tools, &Path) -> Result<()>,
}

/// All parts, in the order of the page.
pub const PARTS: &[Part] = &[
    Part { name: "decode", heading: "Decoding", onnxruntime: false, on_demand: false, measure: decode },
    Part {
        name: "encode",
        heading: "Encoding and size",
        onnxruntime: false,
        on_demand: false,
        measure: encode,
    },
    Part { name: "gemv", heading: "Products", onnxruntime: true, on_demand: false, measure: gemv },
    Part { name: "models", heading: "Whole models", onnxruntime: true, on_demand: false, measure: models },
    Part { name: "gpu", heading: "On a GPU", onnxruntime: false, on_demand: true, measure: gpu },
];

fn decode(tools: &Tools, report: &Path) -> Result<()> {
    let mut command = tools.workspace.cargo();
    command.args(["bench", "--quiet", "--bench", "decode", "--", "--json"]).arg(report);
    if tools.quick {
        command.arg("--quick");
    }
    workspace::run(&mut command)
}

/// The tests that need a GPU, and then its figures.
fn gpu(tools: &Tools, report: &Path) -> Result<()> {
    let weights = if tools.quick { "10000000" } else { "1000000000" };
    let mut tests = tools.workspace.cargo();
    tests.args(["test", "--release", "--test", "gpu", "--", "--nocapture"]);
    workspace::run(tests.env("NZ_GPU_WEIGHTS", weights))?;
    let mut command = tools.workspace.cargo();
    command.args(["bench", "--quiet", "--bench", "gpu", "--", "--json"]).arg(report);
    if tools.quick {
        command.arg("--quick");
    }
    workspace::run(&mut command)
}

fn encode(tools: &Tools, report: &Path) -> Result<()> {
    let encoder = bench_program(tools.workspace, "encode")?;
    let mut command = tools.script("bench_encode.py", report)?;
    command.arg("--encoder").arg(encoder);
    tools.with_models(&mut command)?;
    workspace::run(&mut command)
}

fn gemv(tools: &Tools, report: &Path) -> Result<()> {
    workspace::run(&mut tools.script("bench_gemv.py", report)?)
}

fn models(tools: &Tools, report: &Path) -> Result<()> {
    let mut command = tools.script("bench_models.py", report)?;
    tools.with_models(&mut command)?;
    workspace::run(&mut command)
}

impl Tools<'_> {
    /// A measuring script with the arguments that all of them take.
    fn script(&self, name: &str, report: &Path) -> Result<Command> {
        let mut command = self.python.script(self.workspace.root().join("xtask/python").join(name));
        command
            .arg("--report")
            .arg(report)
            .arg("--tool")
            .arg(self.workspace.tool())
            .arg("--library")
            .arg(self.workspace.library())
            .arg("--scratch")
            .arg(self.scratch)
            // The tool is to use the ONNX Runtime that is measured, where it uses one.
            .env("ORT_DYLIB_PATH", self.python.libonnxruntime()?);
        if self.quick {
            command.arg("--quick");
        }
        Ok(command)
    }

    /// Names the real models there are: those of NZ_MODELS, and MiniLM, which comes from PyPI.
    fn with_models(&self, command: &mut Command) -> Result<()> {
        let folder = self.workspace.models();
        if folder.is_dir() {
            command.arg("--models").arg(folder);
        } else {
            progress(&format!("no real models at {}: set NZ_MODELS to measure them", folder.display()));
        }
        // A smoke test is not worth a download.
        if !self.quick {
            command.arg("--minilm").arg(demo::minilm(self.workspace, self.python)?);
        }
        Ok(())
    }
}

/// The program of a benchmark of this package, built as `cargo bench` builds it.
fn bench_program(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let mut command = workspace.cargo();
    command.args(["bench", "--quiet", "--no-run", "--message-format", "json", "--bench", name]);
    let output = workspace::read(&mut command)?;
    let program = output
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| match (message["target"]["name"].as_str(), message["executable"].as_str()) {
            (Some(found), Some(path)) if found == name => Some(PathBuf::from(path)),
            _ => None,
        });
    program.with_context(|| format!("cargo named no program for the benchmark {name}"))
}
