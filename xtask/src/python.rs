//! Virtual environments with an ONNX Runtime of a given version, made once and kept in the target folder.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, progress, read, run};

/// The ONNX Runtime that the product is tested with in full and that the demo runs in.
pub const CURRENT: Environment = Environment {
    onnxruntime: "1.31.1",
    distribution: "onnxruntime",
    purpose: None,
    packages: &[
        "numpy==2.4.6",
        "safetensors==0.8.0",
        "tokenizers==0.23.3",
        // For the Python package: its build backend, and the checker of its types.
        "maturin==1.16.0",
        "mypy==2.4.1",
    ],
    alone: &[],
};
/// What the benchmarks compare with.
pub const BENCH: Environment = Environment {
    onnxruntime: "1.31.1",
    distribution: "onnxruntime",
    purpose: Some("bench"),
    packages: &[
        "numpy==2.4.6",
        "safetensors==0.8.0",
        "onnx-ir==1.1.0",
        "sympy==1.14.0",
        "zstandard==0.25.0",
        "lz4==4.4.5",
        // setuptools and wheel build ZipNN, which comes as source.
        "setuptools==84.2.1",
        "wheel==0.47.0",
    ],
    // Its dependency torch takes gigabytes, and its byte interface does without.
    alone: &["zipnn==0.5.4"],
};
/// What the fidelity benchmark makes inputs and alternatives with.
pub const FIDELITY: Environment = Environment {
    onnxruntime: "1.31.1",
    distribution: "onnxruntime",
    purpose: Some("fidelity"),
    packages: &[
        "numpy==2.4.6",
        "safetensors==0.8.0",
        "tokenizers==0.23.3",
        "onnx-ir==1.1.0",
        "sympy==1.14.0",
        "pillow==13.0.0",
        // Photographs.
        "scikit-image==0.26.0",
    ],
    alone: &[],
};
/// What models are measured with on a GPU, and other decoders.
pub const GPU: Environment = Environment {
    onnxruntime: "1.31.1",
    distribution: "onnxruntime-gpu[cuda,cudnn]",
    purpose: Some("gpu"),
    packages: &[
        "numpy==2.4.6",
        "cupy-cuda13x==14.2.0",
        "nvidia-nvcomp-cu13==6.0.0.12",
        "nvidia-libnvcomp-cu13==6.0.0.12",
    ],
    alone: &[],
};
/// What DFloat11 takes, gigabytes of it: measured where it can be had. It still imports pkg_resources.
pub const DFLOAT11: &[&str] = &["dfloat11==0.5.0", "torch", "setuptools<81"];
/// The oldest ONNX Runtime that the execution provider works in.
pub const OLDEST_PROVIDER: Environment = plain("1.24.4", &["numpy==2.4.6"]);
/// An ONNX Runtime of two years ago: models must load and run in it too.
pub const OLDER: Environment = plain("1.20.1", &["numpy==2.2.6"]);
/// The oldest ONNX Runtime that the library loads in.
pub const OLDEST: Environment = plain("1.17.3", &["numpy==1.26.4"]);
/// One that is too old: the library must say so.
pub const TOO_OLD: Environment = plain("1.16.3", &["numpy==1.26.4"]);

/// What every environment holds besides ONNX Runtime.
const COMMON: &[&str] = &["onnx==1.23.2", "ml_dtypes>=0.5.4,<0.7", "pytest==9.2.0", "xxhash==4.1.0"];

/// The packages of one virtual environment.
pub struct Environment {
    /// Version of the PyPI package with ONNX Runtime.
    pub onnxruntime: &'static str,
    /// That package.
    distribution: &'static str,
    /// What it is for, when there is another one with this ONNX Runtime.
    purpose: Option<&'static str>,
    packages: &'static [&'static str],
    /// Packages that are installed without their dependencies, and built from source if need be. One that
    /// cannot be built is left out: its user says so.
    alone: &'static [&'static str],
}

const fn plain(onnxruntime: &'static str, packages: &'static [&'static str]) -> Environment {
    Environment { onnxruntime, distribution: "onnxruntime", purpose: None, packages, alone: &[] }
}

/// A virtual environment that is ready for use.
pub struct Python {
    interpreter: PathBuf,
    onnxruntime: &'static str,
}

impl Environment {
    /// Makes the environment, or takes the one that is there when its requirements have not changed.
    /// `None` when PyPI has no ONNX Runtime of this version for this Python.
    pub fn make(&self, workspace: &Workspace) -> Result<Option<Python>> {
        let name = self.purpose.map_or_else(|| format!("onnxruntime-{}", self.onnxruntime), str::to_owned);
        let folder = workspace.scratch("venv")?.join(name);
        let python = Python { interpreter: folder.join("bin/python"), onnxruntime: self.onnxruntime };
        let mut requirements = vec![format!("{}=={}", self.distribution, self.onnxruntime)];
        requirements.extend(COMMON.iter().chain(self.packages).map(|&package| package.to_owned()));
        let stamp_file = folder.join("nz-requirements.txt");
        let stamp = format!("{}{}\n{}", base_version()?, requirements.join("\n"), self.alone.join("\n"));
        if std::fs::read_to_string(&stamp_file).is_ok_and(|found| found == stamp) {
            return Ok(Some(python));
        }

        progress(&format!("making a Python environment with onnxruntime {}", self.onnxruntime));
        if folder.exists() {
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("could not remove {}", folder.display()))?;
        }
        let made = Command::new("python3").args(["-m", "venv"]).arg(&folder).output();
        let made = made.context("could not start python3: install Python 3")?;
        if !made.status.success() {
            bail!(
                "`python3 -m venv {}` failed ({}): install Python's venv module (on Debian and Ubuntu the \
                 package python3-venv)\n{}{}",
                folder.display(),
                made.status,
                String::from_utf8_lossy(&made.stdout),
                String::from_utf8_lossy(&made.stderr)
            );
        }
        let installed = python
            .pip("install")
            .args(["--quiet", "--only-binary", ":all:"])
            .args(&requirements)
            .stdin(Stdio::null())
            .output()
            .context("could not start pip")?;
        if !installed.status.success() {
            let text = String::from_utf8_lossy(&installed.stderr);
            // pip lists the versions that it found; an empty list means that it found no index at all.
            if text.contains("No matching distribution found") && !text.contains("(from versions: none)") {
                return Ok(None);
            }
            bail!("pip could not install {}:\n{text}", requirements.join(" "));
        }
        for package in self.alone {
            let mut install = python.pip("install");
            // The build sees the environment's own setuptools: nothing is fetched that is not named above.
            install.args(["--quiet", "--no-deps", "--no-build-isolation", package]);
            let built = install.stdin(Stdio::null()).output().context("could not start pip")?;
            if !built.status.success() {
                let text = String::from_utf8_lossy(&built.stderr);
                progress(&format!("left out: pip could not install {package}:\n{text}"));
            }
        }
        std::fs::write(&stamp_file, stamp)
            .with_context(|| format!("could not write {}", stamp_file.display()))?;
        Ok(Some(python))
    }

    /// Like [`Environment::make`], for an environment that nothing can be done without.
    pub fn require(&self, workspace: &Workspace) -> Result<Python> {
        self.make(workspace)?.with_context(|| {
            format!(
                "PyPI has no packages with onnxruntime {} for this Python: use another Python 3",
                self.onnxruntime
            )
        })
    }
}

/// The version of `python3`: an environment does not outlive it.
fn base_version() -> Result<String> {
    read(Command::new("python3").arg("--version")).context("could not run python3: install Python 3")
}

impl Python {
    /// The environment's interpreter.
    pub fn interpreter(&self) -> &Path {
        &self.interpreter
    }

    /// The version of its ONNX Runtime.
    pub fn onnxruntime(&self) -> &'static str {
        self.onnxruntime
    }

    /// A command that runs a Python script.
    pub fn script(&self, script: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(&self.interpreter);
        // Nothing is to be written beside the sources, and ONNX Runtime is not to call home.
        command.env("PYTHONDONTWRITEBYTECODE", "1").env("ORT_DISABLE_TELEMETRY", "1").arg(script);
        command
    }

    /// The environment's folder of programs.
    pub fn programs(&self) -> Result<&Path> {
        self.interpreter.parent().context("the interpreter lies in no folder")
    }

    /// A new environment that pip has installed nothing but this wheel in. It sees the packages of this one.
    ///
    /// # Errors
    /// The environment cannot be made, or the wheel needs a package: there is no index to get it from.
    pub fn with_wheel(&self, workspace: &Workspace, wheel: &Path) -> Result<Python> {
        let folder = workspace.scratch("venv")?.join(format!("wheel-{}", self.onnxruntime));
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
        let python = Python { interpreter: folder.join("bin/python"), onnxruntime: self.onnxruntime };
        run(python.pip("install").args(["--quiet", "--no-index"]).arg(wheel))?;
        let packages = |python: &Python| {
            let code = "import sysconfig; print(sysconfig.get_path('purelib'))";
            read(Command::new(&python.interpreter).args(["-c", code]))
        };
        let link = Path::new(packages(&python)?.trim()).join("packages.pth");
        std::fs::write(&link, packages(self)?)
            .with_context(|| format!("could not write {}", link.display()))?;
        Ok(python)
    }

    /// A pip command.
    pub fn pip(&self, action: &str) -> Command {
        let mut command = Command::new(&self.interpreter);
        command.args(["-m", "pip", "--disable-pip-version-check", action]);
        command
    }

    /// The environment's libonnxruntime, for programs that load it themselves.
    pub fn libonnxruntime(&self) -> Result<PathBuf> {
        let code = "import pathlib, onnxruntime\n\
                    capi = pathlib.Path(onnxruntime.__file__).parent / 'capi'\n\
                    print(*capi.glob('libonnxruntime.so.*'))";
        let path = read(Command::new(&self.interpreter).args(["-c", code]))?;
        let path = PathBuf::from(path.trim());
        if !path.is_file() {
            bail!("the onnxruntime {} package holds no single libonnxruntime.so", self.onnxruntime);
        }
        Ok(path)
    }
}
