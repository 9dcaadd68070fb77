//! What there is to measure.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::debian::Apt;
use crate::demo;
use crate::python::{DFLOAT11, FIDELITY, GPU, Python};
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
    /// The page under `docs`.
    pub page: &'static str,
    /// Whether ONNX Runtime is one of the things measured.
    pub onnxruntime: bool,
    /// Whether it is measured only where it is named: not every machine has what it is for.
    pub on_demand: bool,
    /// Measures and writes the report to the path given; no report, if it skips.
    pub measure: fn(&Tools, &Path) -> Result<()>,
}

/// All parts, in the order of the page.
pub const PARTS: &[Part] = &[
    part("decode", "Decoding", false, decode),
    part("encode", "Encoding and size", false, encode),
    part("gemv", "Products", true, gemv),
    part("models", "Whole models", true, models),
    Part { page: "fidelity.md", ..part("fidelity", "Beside the others", true, fidelity) },
    Part { on_demand: true, ..part("gpu", "On a GPU", false, gpu) },
];

const fn part(
    name: &'static str,
    heading: &'static str,
    onnxruntime: bool,
    measure: fn(&Tools, &Path) -> Result<()>,
) -> Part {
    Part { name, heading, page: "benchmarks.md", onnxruntime, on_demand: false, measure }
}

/// Debian packages with espeak-ng and all that it links to.
const ESPEAK: &[&str] = &[
    "espeak-ng",
    "espeak-ng-data",
    "libespeak-ng1",
    "libpcaudio0",
    "libsonic0",
    "libasound2",
    "libpulse0",
    "libasyncns0",
    "libdbus-1-3",
    "libsndfile1",
    "libflac12",
    "libvorbis0a",
    "libvorbisenc2",
    "libopus0",
    "libogg0",
    "libmpg123-0",
    "libmp3lame0",
    "libx11-6",
    "libxcb1",
    "libxau6",
    "libxdmcp6",
    "libbsd0",
    "libmd0",
];

/// Decoding of all weights, and of rounded ones beside lossless ones.
fn decode(tools: &Tools, report: &Path) -> Result<()> {
    run_bench(tools, "decode", report)?;
    let rounded = report.with_extension("rounded.json");
    run_bench(tools, "rounded", &rounded)?;
    append_report(report, &rounded)
}

/// Runs a benchmark of cargo's that writes its report.
fn run_bench(tools: &Tools, name: &str, report: &Path) -> Result<()> {
    let mut command = tools.workspace.cargo();
    command.args(["bench", "--quiet", "--bench", name, "--", "--json"]).arg(report);
    if tools.quick {
        command.arg("--quick");
    }
    workspace::run(&mut command)
}

/// The tests that need a GPU, and then the figures of kernels, models and other decoders.
fn gpu(tools: &Tools, report: &Path) -> Result<()> {
    let weights = if tools.quick { "10000000" } else { "1000000000" };
    let mut tests = tools.workspace.cargo();
    tests.args(["test", "--release", "--test", "gpu", "--", "--nocapture"]);
    workspace::run(tests.env("NZ_GPU_WEIGHTS", weights))?;
    run_bench(tools, "gpu", report)?;
    if !report.exists() {
        // No GPU: that was said, and is no failure unless it was asked to be.
        return Ok(());
    }
    let python = GPU.require(tools.workspace)?;
    if !tools.quick {
        let installed = python.pip("install").arg("--quiet").args(DFLOAT11).status();
        if !installed.is_ok_and(|status| status.success()) {
            progress("left out: pip could not install DFloat11");
        }
    }
    let models = report.with_extension("models.json");
    workspace::run(&mut Tools { python: &python, ..*tools }.script("bench_gpu_models.py", &models)?)?;
    append_report(report, &models)
}

/// Appends the paragraphs and tables of the report `more` to `report`, and removes it.
fn append_report(report: &Path, more: &Path) -> Result<()> {
    let read = |path: &Path| -> Result<serde_json::Value> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("could not read the report {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no valid JSON", path.display()))
    };
    let (mut whole, mut added) = (read(report)?, read(more)?);
    for key in ["about", "tables"] {
        let (Some(all), Some(new)) = (whole[key].as_array_mut(), added[key].as_array_mut()) else {
            bail!("a report without {key}: {} or {}", report.display(), more.display());
        };
        all.append(new);
    }
    std::fs::write(report, format!("{whole:#}\n"))
        .with_context(|| format!("could not write {}", report.display()))?;
    std::fs::remove_file(more).with_context(|| format!("could not remove {}", more.display()))
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

fn fidelity(tools: &Tools, report: &Path) -> Result<()> {
    // Packages that the other parts have no use for.
    let python = FIDELITY.require(tools.workspace)?;
    let tools = Tools { python: &python, ..*tools };
    let mut command = tools.script("bench_fidelity.py", report)?;
    tools.with_models(&mut command)?;
    if !tools.quick {
        command.arg("--wheel").arg(demo::wheel(tools.workspace, &python)?);
    }
    match espeak(tools.workspace) {
        Ok(folder) => {
            command.arg("--espeak").arg(folder);
        }
        Err(error) => progress(&format!("no speech, so the models for speech are left out: {error:#}")),
    }
    workspace::run(&mut command)
}

/// espeak-ng, unpacked; fetched unless it is there.
fn espeak(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.scratch("espeak")?;
    let root = folder.join("root");
    if !root.is_dir() {
        let unpacked = folder.join("unpacked");
        if unpacked.exists() {
            std::fs::remove_dir_all(&unpacked)
                .with_context(|| format!("could not remove {}", unpacked.display()))?;
        }
        let names: Vec<String> = ESPEAK.iter().map(|&name| name.to_owned()).collect();
        Apt::new(&folder, "amd64")?.unpack(&names, &unpacked)?;
        std::fs::rename(&unpacked, &root).context("could not keep the unpacked packages")?;
    }
    Ok(root)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_joined() {
        let folder = std::env::temp_dir().join(format!("nz-reports-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("created");
        let (first, second) = (folder.join("a.json"), folder.join("b.json"));
        std::fs::write(&first, r#"{"about": ["A."], "tables": [1]}"#).expect("written");
        std::fs::write(&second, r#"{"about": ["B."], "tables": [2, 3]}"#).expect("written");
        append_report(&first, &second).expect("two reports");
        assert!(!second.exists());
        let text = std::fs::read_to_string(&first).expect("read");
        let joined: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(joined, serde_json::json!({"about": ["A.", "B."], "tables": [1, 2, 3]}));
        let missing = append_report(&first, &second).expect_err("it is gone").to_string();
        assert!(missing.contains("b.json"), "{missing}");
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
