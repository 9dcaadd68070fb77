//! The licence texts of the crates that the command and the library link: made, and proven current, from the crates' own
//! files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::workspace::{self, Workspace};

const DOCUMENT: &str = "THIRD_PARTY_LICENSES";
const HEAD: &str = "\
Licences of what is linked into the command nz-onnx and the library libnz_onnx.
Made by `cargo xtask licenses` from the crates that Cargo.lock names. Do not edit.

Of a crate that offers MIT or MIT-0 beside other licences, that is taken. The Rust standard library is linked as well:
MIT OR Apache-2.0, taken under Apache-2.0, whose text is in LICENSE-APACHE.
";
const RULE: &str = "================================================================================";
/// What the Python package is built from, in build_wheel's words: its program links all that its library does.
const BUILT: &[&str] = &["--package", "onnx_tools", "--features", "nz-onnx/default"];
/// What it is built for.
const TARGETS: &[&str] = &["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];
/// How the names of files with a licence start, in lower case.
const NAMES: &[&str] = &["licen", "copying", "notice", "unlicense"];

/// Writes the texts.
///
/// # Errors
/// A crate is not there and cannot be fetched, or has no licence file.
pub fn run(workspace: &Workspace) -> Result<bool> {
    let path = workspace.root().join(DOCUMENT);
    std::fs::write(&path, make(workspace)?).with_context(|| format!("could not write {}", path.display()))?;
    println!("xtask licenses: {DOCUMENT} written");
    Ok(true)
}

/// Makes the texts anew, and compares them with those that are there.
///
/// # Errors
/// As [`run`], or the file is out of date.
pub fn check(workspace: &Workspace) -> Result<()> {
    let path = workspace.root().join(DOCUMENT);
    let found =
        std::fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
    ensure!(found == make(workspace)?, "{DOCUMENT} is not what Cargo.lock gives: run `cargo xtask licenses`");
    Ok(())
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    /// None of what is part of this workspace.
    source: Option<String>,
    /// An SPDX expression.
    license: Option<String>,
    repository: Option<String>,
    manifest_path: PathBuf,
}

/// The file as it has to be.
fn make(workspace: &Workspace) -> Result<String> {
    let linked = linked(workspace)?;
    // Crates that have the same text share it.
    let mut groups: BTreeMap<String, Vec<&Package>> = BTreeMap::new();
    for package in &linked {
        for text in texts(package, &linked)? {
            groups.entry(text).or_default().push(package);
        }
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    let place = |packages: &[&Package]| packages.first().map(|p| (p.name.clone(), p.version.clone()));
    groups.sort_by_cached_key(|(text, packages)| (place(packages), text.clone()));
    let mut document = HEAD.to_owned();
    for (text, packages) in groups {
        document.push_str(&format!("\n{RULE}\n"));
        for package in packages {
            let license = package.license.as_deref().unwrap_or("see below");
            document.push_str(&format!("{} {}: {license}\n", package.name, package.version));
        }
        document.push_str(&format!("\n{text}\n"));
    }
    Ok(document)
}

/// The crates that are linked, by name and version: neither those that only the build needs, nor procedural macros.
fn linked(workspace: &Workspace) -> Result<Vec<Package>> {
    let mut tree = workspace.cargo();
    tree.args(["tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"]);
    tree.args(BUILT).args(TARGETS.iter().flat_map(|target| ["--target", target]));
    let mut metadata = workspace.cargo();
    metadata.args(["metadata", "--locked", "--format-version", "1"]);
    metadata.args(TARGETS.iter().flat_map(|target| ["--filter-platform", target]));

    // "name v1.2.3", then what the crate is.
    let tree = workspace::read(&mut tree)?;
    let names: BTreeSet<(&str, &str)> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?.strip_prefix('v')?))
        })
        .collect();
    let metadata: Metadata = serde_json::from_str(&workspace::read(&mut metadata)?)
        .context("`cargo metadata` printed something else than expected")?;
    let mut packages = metadata.packages;
    packages.retain(|package| names.contains(&(package.name.as_str(), package.version.as_str())));
    ensure!(packages.len() == names.len(), "`cargo tree` and `cargo metadata` name other crates");
    packages.retain(|package| package.source.is_some());
    packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(packages)
}

/// The licence texts of a crate; where it brings none, those of another of `all` out of the same repository.
fn texts(package: &Package, all: &[Package]) -> Result<Vec<String>> {
    let own = files(package)?;
    if !own.is_empty() {
        return own.iter().map(|path| read(path)).collect();
    }
    let same = |other: &&Package| other.repository == package.repository && package.repository.is_some();
    for sibling in all.iter().filter(same) {
        let files = files(sibling)?;
        if !files.is_empty() {
            return files.iter().map(|path| read(path)).collect();
        }
    }
    bail!("crate {} {} brings no licence file, nor does one of its repository", package.name, package.version)
}

/// The files with a crate's licences; of licences to choose from MIT, and notices.
fn files(package: &Package) -> Result<Vec<PathBuf>> {
    let folder = package.manifest_path.parent().context("a manifest lies in no folder")?;
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("could not read {}", folder.display()))?;
        let name = entry.file_name().to_string_lossy().to_lowercase();
        if NAMES.iter().any(|start| name.starts_with(start)) && entry.path().is_file() {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    let is_mit = |name: &str| name.starts_with("license-mit");
    let offers_one = package.license.as_ref().is_some_and(|license| !license.contains("AND"));
    if offers_one && found.iter().any(|(name, _)| is_mit(name)) {
        found.retain(|(name, _)| is_mit(name) || name.starts_with("notice"));
    }
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// A text without the spaces at its ends and at those of its lines.
fn read(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))?;
    let lines: Vec<&str> = text.trim_start_matches('\u{feff}').lines().map(str::trim_end).collect();
    Ok(lines.join("\n").trim_matches('\n').to_owned())
}
