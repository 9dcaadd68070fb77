//! `cargo xtask test`: makes what the tests need and runs every test there is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::aarch64::Emulator;
use crate::bench;
use crate::cuda;
use crate::licenses;
use crate::python::{CURRENT, OLDER, OLDEST, OLDEST_PROVIDER, Python, TOO_OLD};
use crate::wheel;
use crate::workspace::{self, Workspace, progress};

/// The Python tests that depend on the ONNX Runtime version, beside those of the current one.
const MODEL_TESTS: &[&str] = &[
    "test_models.py",
    "test_ops.py",
    "test_lstm.py",
    "test_loops.py",
    "test_constants.py",
    "test_shared_base.py",
    UNREGISTERED,
    NO_PROVIDER,
];
const PROVIDER_TESTS: &[&str] = &["test_ep_ops.py", "test_ep_sessions.py"];
const OP_TESTS: &[&str] = &["test_cuda_ops.py", "test_ops.py", "test_lstm.py", "test_cache.py", UNREGISTERED];
const UNREGISTERED: &str = "test_guidance.py::test_without_the_library";
const NO_PROVIDER: &str = "test_ep_ops.py::test_too_old_an_onnxruntime_is_told_what_is_needed";
/// How pytest is called.
const PYTEST: &[&str] = &["pytest", "-q", "-rs", "-p", "no:cacheprovider"];
const TOO_OLD_TESTS: &[&str] = &["test_ops.py::test_too_old_an_onnxruntime_is_told_apart"];

/// Runs everything; goes on after a failed step so that one run shows all that is broken.
/// True when every step passed.
pub fn run(workspace: &Workspace) -> Result<bool> {
    let mut report = Report::default();
    let models = workspace.models();
    let scratch = workspace.scratch("test")?;

    let current = CURRENT.require(workspace)?;
    let mut optional = |environment: &crate::python::Environment| -> Result<Option<Python>> {
        let python = environment.make(workspace)?;
        if python.is_none() {
            report.left_out(&format!("onnxruntime {}: not on PyPI for this Python", environment.onnxruntime));
        }
        Ok(python)
    };
    let oldest_provider = optional(&OLDEST_PROVIDER)?;
    let older = optional(&OLDER)?;
    let oldest = optional(&OLDEST)?;
    let too_old = optional(&TOO_OLD)?;
    // The Rust tests that open a session load this library.
    let libonnxruntime = current.libonnxruntime()?;

    report.step("cargo fmt", || workspace::run(workspace.cargo().args(["fmt", "--all", "--check"])));
    report.step("cargo clippy", || {
        let arguments = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
        workspace::run(workspace.cargo().args(arguments))
    });
    report.step("licences of what is linked", || licenses::check(workspace));
    let built = report.step("cargo build", || {
        workspace::run(workspace.cargo().args(["build", "--quiet", "--release", "--workspace"]))?;
        let example = ["build", "--quiet", "--release", "--example", "encode_tensor"];
        workspace::run(workspace.cargo().args(example))?;
        // The CUDA provider's ops over kernels that run on the CPU.
        let ops = ["build", "--quiet", "--release", "-p", "nz-cpp-twin", "--example", "device_ops"];
        workspace::run(workspace.cargo().args(ops))
    });
    if !built {
        return Ok(report.finish());
    }
    report.step("cargo test", || {
        let mut command = workspace.cargo();
        command.args(["test", "--quiet", "--workspace", "--profile", "quick", "--no-fail-fast"]);
        command.env("ORT_DYLIB_PATH", &libonnxruntime).env("NZ_MODELS", &models);
        workspace::run(&mut command)
    });

    // nvcc is for x86-64 Linux.
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        report.step("PTX of the CUDA kernels", || cuda::check(workspace));
        report.step("machine code of the CUDA kernels", || cuda::check_cubins(workspace));
        report.step("CUDA kernels, by their machine code", || cuda::test_machine_code(workspace));
    } else {
        report.left_out("PTX and machine code of the CUDA kernels: needs an x86-64 Linux");
    }

    // On aarch64 itself the step above has run them.
    if !cfg!(target_arch = "aarch64") {
        match Emulator::make(workspace) {
            Ok(emulator) => _ = report.step("cargo test, emulated aarch64", || emulator.test(workspace)),
            Err(error) => report.left_out(&format!("emulated aarch64: {error:#}")),
        }
    }
    report.step("cargo xtask bench --quick", || {
        let arguments = bench::Arguments::parse(&["--quick".to_owned()])?;
        anyhow::ensure!(bench::run(workspace, &arguments)?, "a part of the benchmarks failed");
        Ok(())
    });

    let pytest = PythonTests {
        workspace,
        models: &models,
        scratch: &scratch,
        libonnxruntime: &libonnxruntime,
        too_old: too_old.as_ref(),
    };
    pytest.run(&mut report, &current, &[]);
    if let Some(python) = &oldest_provider {
        pytest.run(&mut report, python, PROVIDER_TESTS);
    }
    if let Some(python) = &older {
        pytest.run(&mut report, python, MODEL_TESTS);
    }
    if let Some(python) = &oldest {
        pytest.run(&mut report, python, OP_TESTS);
    }
    if let Some(python) = &too_old {
        pytest.run(&mut report, python, TOO_OLD_TESTS);
    }

    // Last, because cargo leaves the wheel's program, which has no symbols, where it had left the other.
    pytest.run_packaging(&mut report, &current, oldest.as_ref());
    Ok(report.finish())
}

/// Builds the Python package's wheel and runs its tests; true when they pass.
pub fn run_wheel(workspace: &Workspace) -> Result<bool> {
    let mut report = Report { task: "wheel", ..Report::default() };
    let current = CURRENT.require(workspace)?;
    let pytest = PythonTests {
        workspace,
        models: &workspace.models(),
        scratch: &workspace.scratch("test")?,
        libonnxruntime: &current.libonnxruntime()?,
        too_old: None,
    };
    let wheel = pytest.run_packaging(&mut report, &current, OLDEST.make(workspace)?.as_ref());
    if let Some(wheel) = wheel {
        progress(&format!("the wheel is {}", wheel.display()));
    }
    Ok(report.finish())
}

/// What a run of pytest needs besides the interpreter.
struct PythonTests<'a> {
    workspace: &'a Workspace,
    models: &'a Path,
    scratch: &'a Path,
    libonnxruntime: &'a Path,
    too_old: Option<&'a Python>,
}

impl PythonTests<'_> {
    /// Runs the named files of tests/python, all of them when none is named.
    fn run(&self, report: &mut Report, python: &Python, files: &[&str]) {
        let version = python.onnxruntime();
        self.pytest(report, &format!("pytest, onnxruntime {version}"), "tests/python", || {
            let mut command = python.script("-m");
            command.args(PYTEST).args(files);
            command
                .env("NZ_ONNX", self.workspace.tool())
                .env("NZ_LIB", self.workspace.library())
                .env("NZ_DEVICE_LIB", self.workspace.built("examples/libdevice_ops.so"))
                .env("NZ_ENCODE", self.workspace.built("examples/encode_tensor"))
                .env("NZ_MODELS", self.models)
                .env("ORT_DYLIB_PATH", self.libonnxruntime);
            if let Some(too_old) = self.too_old {
                command.env("NZ_PY_1_16", too_old.interpreter());
            }
            Ok(command)
        });
    }

    /// Builds the wheel, and runs the package's tests with each ONNX Runtime.
    fn run_packaging(
        &self,
        report: &mut Report,
        current: &Python,
        oldest: Option<&Python>,
    ) -> Option<PathBuf> {
        report.step("mypy", || wheel::check_types(self.workspace, current));
        let mut built = None;
        report.step("pip wheel", || {
            built = Some(wheel::build(self.workspace, current)?);
            Ok(())
        });
        report.step("source distribution", || wheel::build_from_sources(self.workspace, current));
        for python in [Some(current), oldest].into_iter().flatten() {
            self.run_package(report, python, built.as_deref()?);
        }
        built
    }

    /// Installs the wheel in an environment of its own, beside the ONNX Runtime of `python`, and runs the package's
    /// tests there.
    fn run_package(&self, report: &mut Report, python: &Python, wheel: &Path) {
        let name = format!("pytest of the wheel, onnxruntime {}", python.onnxruntime());
        self.pytest(report, &name, "python/tests", || {
            let python = python.with_wheel(self.workspace, wheel)?;
            let mut command = python.script("-m");
            command.args(PYTEST).env("NZ_WHEEL", wheel).env_remove("NZ_LIBRARY").env_remove("ORT_DYLIB_PATH");
            Ok(command)
        });
    }

    /// Runs a prepared pytest in a folder of tests, as one step.
    fn pytest(
        &self,
        report: &mut Report,
        name: &str,
        folder: &str,
        prepare: impl FnOnce() -> Result<Command>,
    ) {
        let summary = self.scratch.join(format!("{}.json", name.replace([' ', ','], "-")));
        report.step(name, || {
            if summary.exists() {
                std::fs::remove_file(&summary)
                    .with_context(|| format!("could not remove {}", summary.display()))?;
            }
            let mut command = prepare()?;
            command.current_dir(self.workspace.root().join(folder)).env("NZ_PYTEST_SUMMARY", &summary);
            workspace::run(&mut command)
        });
        match counts(&summary) {
            Ok((passed, skipped)) => {
                report.python_passed += passed;
                report.python_skipped += skipped;
            }
            Err(error) => report.failed.push(format!("{error:#}")),
        }
    }
}

/// How many tests passed and how many were skipped, as conftest.py wrote it down.
fn counts(summary: &Path) -> Result<(u64, u64)> {
    let text = std::fs::read_to_string(summary)
        .with_context(|| format!("pytest left no summary at {}", summary.display()))?;
    let value: serde_json::Value = serde_json::from_str(&text)
        .with_context(|| format!("the summary at {} is no valid JSON", summary.display()))?;
    let number = |key: &str| {
        value[key].as_u64().with_context(|| format!("{} has no number '{key}'", summary.display()))
    };
    Ok((number("passed")?, number("skipped")?))
}

/// What happened so far.
struct Report {
    task: &'static str,
    started: Instant,
    steps: usize,
    failed: Vec<String>,
    left_out: Vec<String>,
    python_passed: u64,
    python_skipped: u64,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            task: "test",
            started: Instant::now(),
            steps: 0,
            failed: Vec::new(),
            left_out: Vec::new(),
            python_passed: 0,
            python_skipped: 0,
        }
    }
}

impl Report {
    /// Does one step and notes how it went; true when it passed.
    fn step(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> bool {
        let started = Instant::now();
        let outcome = work();
        let passed = outcome.is_ok();
        let elapsed = seconds(started.elapsed());
        self.steps += 1;
        match outcome {
            Ok(()) => progress(&format!("{name}: passed in {elapsed}")),
            Err(error) => {
                progress(&format!("{name}: FAILED after {elapsed}: {error:#}"));
                self.failed.push(name.to_owned());
            }
        }
        passed
    }

    /// Notes something that could not be tested here.
    fn left_out(&mut self, what: &str) {
        progress(&format!("left out: {what}"));
        self.left_out.push(what.to_owned());
    }

    /// Prints the one line that sums up the run; true when nothing failed.
    fn finish(&self) -> bool {
        println!("{}", self.line(self.started.elapsed()));
        self.failed.is_empty()
    }

    fn line(&self, elapsed: Duration) -> String {
        let mut line = if self.failed.is_empty() {
            format!("xtask {}: passed: all {} steps", self.task, self.steps)
        } else {
            format!("xtask {}: FAILED: {}", self.task, self.failed.join("; "))
        };
        line += &format!(
            "; Python tests {} passed, {} skipped; {}",
            self.python_passed,
            self.python_skipped,
            seconds(elapsed)
        );
        if !self.left_out.is_empty() {
            line += &format!("; left out: {}", self.left_out.join("; "));
        }
        line
    }
}

fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs();
    match whole / 60 {
        0 => format!("{whole} s"),
        minutes => format!("{minutes} min {} s", whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_line_names_what_failed_and_what_was_left_out() {
        let mut report = Report::default();
        assert!(report.step("one", || Ok(())));
        report.python_passed = 7;
        assert_eq!(
            report.line(Duration::from_secs(75)),
            "xtask test: passed: all 1 steps; Python tests 7 passed, 0 skipped; 1 min 15 s"
        );
        assert!(!report.step("two", || anyhow::bail!("broken")));
        report.left_out("three");
        assert_eq!(
            report.line(Duration::from_secs(9)),
            "xtask test: FAILED: two; Python tests 7 passed, 0 skipped; 9 s; left out: three"
        );
        assert!(!report.finish());
    }
}
