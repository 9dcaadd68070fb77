//! Debian packages, unpacked into a folder. Nothing is installed, and nobody needs to be root.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// apt with lists and caches of its own, for one architecture.
pub struct Apt {
    folder: PathBuf,
    architecture: &'static str,
}

impl Apt {
    /// Makes its folders under `parent` and fetches the lists.
    ///
    /// # Errors
    /// This machine is no x86-64 Linux, or the lists cannot be fetched.
    pub fn new(parent: &Path, architecture: &'static str) -> Result<Self> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            bail!("needs an x86-64 Linux");
        }
        let apt = Self { folder: parent.join(architecture), architecture };
        for folder in ["lists/partial", "cache/archives/partial", "packages"] {
            let path = apt.folder.join(folder);
            std::fs::create_dir_all(&path).with_context(|| format!("could not create {}", path.display()))?;
        }
        std::fs::write(apt.folder.join("status"), "").context("could not write apt's status")?;
        workspace::read(apt.command("apt-get").arg("update"))?;
        Ok(apt)
    }

    /// A command of apt's that sees these lists and caches only.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let folder = self.folder.display();
        for option in [
            format!("APT::Architecture={}", self.architecture),
            format!("APT::Architectures::={}", self.architecture),
            "APT::Sandbox::User=".to_owned(),
            format!("Dir::State={folder}"),
            format!("Dir::State::lists={folder}/lists"),
            format!("Dir::State::status={folder}/status"),
            format!("Dir::Cache={folder}/cache"),
        ] {
            command.args(["-q", "-o", &option]);
        }
        command.current_dir(self.folder.join("packages"));
        command
    }

    /// Fetches packages and unpacks them to a folder; their dependencies must be among them.
    ///
    /// # Errors
    /// A package cannot be fetched or unpacked.
    pub fn unpack(&self, names: &[String], to: &Path) -> Result<()> {
        workspace::read(self.command("apt-get").arg("download").args(names))?;
        let packages = self.folder.join("packages");
        let files =
            std::fs::read_dir(&packages).with_context(|| format!("could not read {}", packages.display()))?;
        for file in files {
            let path = file.context("could not read apt's folder")?.path();
            workspace::read(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(to))?;
            std::fs::remove_file(&path).with_context(|| format!("could not remove {}", path.display()))?;
        }
        Ok(())
    }
}
