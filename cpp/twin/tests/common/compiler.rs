//! The C++ compiler, for tests that build without cargo.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// `cpp/` of the repository.
pub fn cpp_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs the compiler named by the variable `variable`, or else `default`.
pub fn compile(variable: &str, default: &str, arguments: &[&str]) -> Output {
    let compiler = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    let mut command = Command::new(&compiler);
    command.arg("-I").arg(cpp_folder().join("include")).args(arguments);
    command.output().unwrap_or_else(|e| panic!("{compiler}: {e}"))
}

/// The arguments every C and C++ file of ours has to pass.
pub const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

/// What the compiler had to say.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
