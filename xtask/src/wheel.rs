//! The Python package: builds its wheel, and checks the types of its module.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::python::Python;
use crate::workspace::{self, Workspace};

/// Builds the wheel as `pip install .` does, but with the build backend of `python`: nothing is fetched.
///
/// # Errors
/// It cannot be built, or is not one file.
pub fn build(workspace: &Workspace, python: &Python) -> Result<PathBuf> {
    pip_wheel(workspace, python, ".".as_ref(), "wheel")
}

/// Builds the source distribution, and a wheel from that.
///
/// # Errors
/// One cannot be built, or is not one file.
pub fn build_from_sources(workspace: &Workspace, python: &Python) -> Result<()> {
    let folder = empty(workspace, "sdist")?;
    let mut command = Command::new(python.interpreter());
    command.args(["-c", "import nz_build, sys; nz_build.build_sdist(sys.argv[1])"]).arg(&folder);
    command.env("PYTHONPATH", workspace.root().join("python/backend")).env("PYTHONDONTWRITEBYTECODE", "1");
    run(workspace, python, &mut command)?;
    pip_wheel(workspace, python, &only_file(&folder)?, "sdist-wheel")?;
    Ok(())
}

fn pip_wheel(workspace: &Workspace, python: &Python, sources: &Path, folder: &str) -> Result<PathBuf> {
    let folder = empty(workspace, folder)?;
    let mut command = python.pip("wheel");
    command.args(["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]).arg(&folder).arg(sources);
    // Where the crates are that these depend on, compiled already; sources unpacked elsewhere have none.
    command.env("CARGO_TARGET_DIR", workspace.target());
    run(workspace, python, &mut command)?;
    only_file(&folder)
}

/// Runs a command that starts maturin, by its name, and cargo.
fn run(workspace: &Workspace, python: &Python, command: &mut Command) -> Result<()> {
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let programs = [python.programs()?.to_path_buf()].into_iter().chain(std::env::split_paths(&inherited));
    command.env("PATH", std::env::join_paths(programs).context("PATH cannot be extended")?);
    command.current_dir(workspace.root());
    workspace::forget_cargo(command);
    workspace::run(command)
}

fn empty(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let folder = workspace.scratch(name)?;
    std::fs::remove_dir_all(&folder)
        .and_then(|()| std::fs::create_dir(&folder))
        .with_context(|| format!("could not empty {}", folder.display()))?;
    Ok(folder)
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let files = std::fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))?;
    let files: Vec<PathBuf> = files.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
    match files.as_slice() {
        [file] => Ok(file.clone()),
        _ => bail!("there was to be one file in {}, there are {}", folder.display(), files.len()),
    }
}

/// Checks the types of the module with mypy, as pyproject.toml says.
///
/// # Errors
/// There are wrong or missing types.
pub fn check_types(workspace: &Workspace, python: &Python) -> Result<()> {
    let mut command = python.script("-m");
    command.arg("mypy").arg("--cache-dir").arg(workspace.scratch("mypy")?).current_dir(workspace.root());
    workspace::run(&mut command)
}
