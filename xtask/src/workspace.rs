//! Where things lie, and how commands are run.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The checkout and its target folder.
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Finds the workspace that this program was built from; asks cargo for the target folder,
    /// because the environment and cargo's own configuration can both move it.
    pub fn locate() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the xtask package lies in no folder")?
            .to_path_buf();
        let mut command = cargo(&root);
        command.args(["metadata", "--format-version", "1", "--no-deps"]);
        let output = command.stderr(Stdio::inherit()).output().context("could not start cargo")?;
        if !output.status.success() {
            bail!("`cargo metadata` failed in {}: {}", root.display(), output.status);
        }
        let metadata: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("`cargo metadata` printed no valid JSON")?;
        let target = metadata["target_directory"]
            .as_str()
            .context("`cargo metadata` names no target_directory")?
            .into();
        Ok(Self { root, target })
    }

    /// The checkout.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target folder.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Where the tasks keep what they fetch and make. Created on demand.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let path = self.target.join("xtask").join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("could not create {}", path.display()))?;
        Ok(path)
    }

    /// A file that `cargo build --release` makes.
    pub fn built(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// The command line tool.
    pub fn tool(&self) -> PathBuf {
        self.built("nz-onnx")
    }

    /// The runtime library.
    pub fn library(&self) -> PathBuf {
        self.built("libnz_onnx.so")
    }

    /// The folder with the real models, which need not exist.
    pub fn models(&self) -> PathBuf {
        match std::env::var_os("NZ_MODELS") {
            Some(path) => std::path::absolute(&path).unwrap_or_else(|_| path.into()),
            None => self.root.join("../shared/models"),
        }
    }

    /// A cargo command that runs in the checkout.
    pub fn cargo(&self) -> Command {
        cargo(&self.root)
    }
}

fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    forget_cargo(&mut command);
    command
}

/// Takes what the `cargo run` that started this program has set out of a command's environment: it is not meant for
/// the cargo that the command is or starts.
pub fn forget_cargo(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n == "CARGO_MANIFEST_DIR") {
            command.env_remove(&name);
        }
    }
}

/// Says on stderr what is being done.
pub fn progress(text: &str) {
    eprintln!("xtask: {text}");
}

/// Runs a command to its end; an error when it cannot be started or does not succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    progress(&format!("$ {shown}"));
    let status = command.status().with_context(|| format!("could not start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

/// Runs a command to its end and returns what it wrote on stdout.
pub fn read(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("could not start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed: {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{shown}` printed something that is not UTF-8"))
}

fn show(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}
