//! The codec's tests on an emulated aarch64: a compiler, its standard library and QEMU out of Debian packages, which
//! are unpacked under the target folder. Nothing is installed, and nobody needs to be root.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::debian::Apt;
use crate::workspace::{self, Workspace};

const TARGET: &str = "aarch64-unknown-linux-gnu";
/// Packages of this machine's architecture, beside those that rustc names with its version.
const TOOLS: &[&str] = &[
    "rustc-web",
    "libstd-rust-web-dev",
    "gcc-12-aarch64-linux-gnu",
    "cpp-12-aarch64-linux-gnu",
    "binutils-aarch64-linux-gnu",
    "libgcc-12-dev-arm64-cross",
    "libgcc-s1-arm64-cross",
    "libc6-arm64-cross",
    "libc6-dev-arm64-cross",
    "qemu-user-static",
];
/// Packages of aarch64.
const LIBRARIES: &[&str] = &["libstd-rust-web-dev"];
/// The tests that go through the decoder of this architecture.
const TESTS: &[&str] = &["backends", "codec", "corruption", "golden"];

/// Runs the tests; true when they pass.
pub fn run(workspace: &Workspace) -> Result<bool> {
    Emulator::make(workspace)?.test(workspace)?;
    println!("xtask aarch64: passed");
    Ok(true)
}

/// The unpacked packages.
pub struct Emulator {
    root: PathBuf,
    build: PathBuf,
}

impl Emulator {
    /// Fetches what is not there yet.
    ///
    /// # Errors
    /// This machine is not one for which Debian 12 has the packages, or they cannot be fetched.
    pub fn make(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.scratch("aarch64")?;
        let emulator = Self { root: folder.join("root"), build: folder.join("target") };
        if !emulator.root.is_dir() {
            let unpacked = folder.join("unpacked");
            if unpacked.exists() {
                std::fs::remove_dir_all(&unpacked)
                    .with_context(|| format!("could not remove {}", unpacked.display()))?;
            }
            let tools = Apt::new(&folder, "amd64")?;
            tools.unpack(&versioned(&tools, TOOLS)?, &unpacked)?;
            let libraries: Vec<String> = LIBRARIES.iter().map(|&name| name.to_owned()).collect();
            Apt::new(&folder, "arm64")?.unpack(&libraries, &unpacked)?;
            std::fs::rename(&unpacked, &emulator.root).context("could not keep the unpacked packages")?;
        }
        for tool in ["rustc", "aarch64-linux-gnu-gcc-12", "qemu-aarch64-static"] {
            workspace::read(emulator.prepare(&mut Command::new(emulator.tool(tool))).arg("--version"))?;
        }
        Ok(emulator)
    }

    fn tool(&self, name: &str) -> PathBuf {
        self.root.join("usr/bin").join(name)
    }

    fn prepare<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("LD_LIBRARY_PATH", self.root.join("usr/lib/x86_64-linux-gnu"))
    }

    /// Builds the codec's tests for aarch64 and runs them.
    ///
    /// # Errors
    /// They cannot be built, or one fails.
    pub fn test(&self, workspace: &Workspace) -> Result<()> {
        let libc = self.root.join("usr/aarch64-linux-gnu");
        let flag = |before: &str, path: &Path| format!("-Clink-arg={before}{}", path.display());
        let flags =
            [flag("--sysroot=", &self.root), flag("-B", &libc.join("lib")), flag("-L", &libc.join("lib"))];
        let mut command = workspace.cargo();
        command.args(["test", "--quiet", "--profile", "quick", "--no-fail-fast", "--package", "nz-onnx"]);
        command.args(["--target", TARGET, "--no-default-features", "--lib"]);
        command.args(TESTS.iter().flat_map(|&test| ["--test", test]));
        self.prepare(&mut command)
            .env("RUSTC", self.tool("rustc"))
            .env("CARGO_TARGET_DIR", &self.build)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", self.tool("aarch64-linux-gnu-gcc-12"))
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", self.tool("qemu-aarch64-static"))
            .env("QEMU_LD_PREFIX", &libc);
        workspace::run(&mut command)
    }
}

/// `names`, and the libraries that rustc depends on by a name with a version in it.
fn versioned(apt: &Apt, names: &[&str]) -> Result<Vec<String>> {
    let mut all: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut next = "libstd-rust-web-dev".to_owned();
    for library in ["libstd-rust-web-", "libllvm"] {
        let text = workspace::read(apt.command("apt-cache").args(["depends", &next]))?;
        let depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        next = depends
            .filter(|name| name.starts_with(library))
            .max()
            .with_context(|| format!("{next} depends on no {library}*: {text}"))?
            .to_owned();
        all.push(next.clone());
    }
    Ok(all)
}
