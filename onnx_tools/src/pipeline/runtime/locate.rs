//! Where libonnxruntime and libnz_onnx are on this machine.

use std::env::{self, consts};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::onnx::{Error, Result};

/// Environment variable that names libnz_onnx.
pub const LIBRARY_VARIABLE: &str = "NZ_LIBRARY";
/// Environment variable that names libonnxruntime.
pub const ORT_VARIABLE: &str = "ORT_DYLIB_PATH";

/// libnz_onnx: `NZ_LIBRARY`, beside the program, in `../lib`, or in the Python package that brought the program.
pub fn library() -> Option<PathBuf> {
    if let Some(path) = env::var_os(LIBRARY_VARIABLE).filter(|v| !v.is_empty()) {
        return Some(PathBuf::from(path)).filter(|p| p.is_file()).map(absolute);
    }
    let name = format!("{}nz_onnx{}", consts::DLL_PREFIX, consts::DLL_SUFFIX);
    let program = env::current_exe().and_then(fs::canonicalize).ok()?;
    let folder = program.parent()?;
    let mut places = vec![folder.to_path_buf(), folder.join("../lib")];
    // `pip install --target` makes no tree of its own for packages.
    places.push(folder.join("../nz_onnx"));
    places.extend(packages(&folder.join("..")).into_iter().map(|packages| packages.join("nz_onnx")));
    places.into_iter().map(|place| place.join(&name)).find(|p| p.is_file()).map(absolute)
}

/// libnz_onnx as the user names it, or as found.
///
/// # Errors
/// There is none.
pub fn require_library(given: Option<&Path>) -> Result<PathBuf> {
    match given {
        Some(path) if path.is_file() => Ok(absolute(path.to_path_buf())),
        Some(path) => Err(Error::Usage(format!("{}: no such library (--library)", path.display()))),
        None => library().ok_or_else(|| {
            Error::Usage(format!(
                "{}nz_onnx{} is not beside this program\nhelp: build it with `cargo build --release`, or name it \
                 with --library or {LIBRARY_VARIABLE}",
                consts::DLL_PREFIX,
                consts::DLL_SUFFIX
            ))
        }),
    }
}

/// libonnxruntime: as given, `ORT_DYLIB_PATH`, the active virtual environment, the Python package: of the
/// environment that the program is in, or of the Python on the path.
pub fn onnxruntime(given: Option<&Path>) -> Option<PathBuf> {
    if let Some(path) = given {
        return Some(path.to_path_buf()).filter(|p| p.is_file()).map(absolute);
    }
    if let Some(path) = env::var_os(ORT_VARIABLE).filter(|v| !v.is_empty()) {
        return Some(PathBuf::from(path)).filter(|p| p.is_file()).map(absolute);
    }
    in_virtual_env().or_else(beside_program).or_else(by_python).map(absolute)
}

/// As [`onnxruntime`].
///
/// # Errors
/// There is none; the message says where it was sought.
pub fn require_onnxruntime(given: Option<&Path>) -> Result<PathBuf> {
    onnxruntime(given).ok_or_else(|| {
        Error::Usage(match (given, env::var_os(ORT_VARIABLE).filter(|v| !v.is_empty())) {
            (Some(path), _) => format!("{}: no such library (--ort-lib)", path.display()),
            (None, Some(path)) => format!("{}: no such library ({ORT_VARIABLE})", Path::new(&path).display()),
            (None, None) => format!(
                "ONNX Runtime was not found in the active virtual environment, nor by python3\nhelp: `pip install -U \
                 onnxruntime` (packages before 1.20 have no libonnxruntime), or name one with --ort-lib or \
                 {ORT_VARIABLE}"
            ),
        })
    })
}

/// The version in a library's file name: "1.31.1" of `libonnxruntime.so.1.31.1`.
pub fn version_in_name(path: &Path) -> Option<String> {
    let path = fs::canonicalize(path).ok()?;
    let name = path.file_name()?.to_str()?;
    let start = name.find(|c: char| c.is_ascii_digit())?;
    let version = name[start..].trim_end_matches(|c: char| !c.is_ascii_digit());
    (version.split('.').count() >= 2).then(|| version.to_string())
}

fn in_virtual_env() -> Option<PathBuf> {
    in_environment(Path::new(&env::var_os("VIRTUAL_ENV")?))
}

/// In the Python environment that pip put this program in.
fn beside_program() -> Option<PathBuf> {
    let program = env::current_exe().and_then(fs::canonicalize).ok()?;
    in_environment(program.parent()?.parent()?)
}

fn in_environment(root: &Path) -> Option<PathBuf> {
    packages(root).iter().find_map(|packages| in_capi(&packages.join("onnxruntime/capi")))
}

/// The folders of a Python environment that hold packages, in the order of their names.
fn packages(root: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = ["lib", "lib64"]
        .iter()
        .flat_map(|lib| fs::read_dir(root.join(lib)).into_iter().flatten().flatten())
        .filter(|e| e.file_name().as_encoded_bytes().starts_with(b"python"))
        .flat_map(|e| [e.path().join("site-packages"), e.path().join("dist-packages")])
        .collect();
    folders.sort();
    folders.push(root.join("Lib/site-packages"));
    folders
}

/// Asks Python where the package is, without importing it.
fn by_python() -> Option<PathBuf> {
    const SCRIPT: &str = "import importlib.util as u; s = u.find_spec('onnxruntime'); \
                          print(s.submodule_search_locations[0] if s else '')";
    let python = if cfg!(windows) { "python" } else { "python3" };
    let output =
        Command::new(python).args(["-c", SCRIPT]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    let folder = folder.trim();
    if folder.is_empty() { None } else { in_capi(&Path::new(folder).join("capi")) }
}

/// The library in a package's folder: `libonnxruntime.so.1.31.1`, not one of its providers.
fn in_capi(folder: &Path) -> Option<PathBuf> {
    let is_library = |name: &OsStr| {
        name.to_str().and_then(|n| n.strip_prefix(consts::DLL_PREFIX)).is_some_and(|n| {
            n.strip_prefix("onnxruntime").is_some_and(|rest| rest.starts_with('.'))
                && n.contains(consts::DLL_SUFFIX)
        })
    };
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter(|e| is_library(&e.file_name()))
        .map(|e| e.path())
        .collect();
    found.sort();
    found.pop()
}

/// ONNX Runtime and the `ort` crate take a relative path as relative to other things than the working folder.
fn absolute(path: PathBuf) -> PathBuf {
    fs::canonicalize(&path).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_of_an_environment() {
        let root = tempfile::tempdir().expect("folder");
        assert_eq!(in_environment(root.path()), None);
        let name = format!("{}onnxruntime{}.1.31.1", consts::DLL_PREFIX, consts::DLL_SUFFIX);
        for environment in ["lib/python3.11/site-packages", "lib/python3/dist-packages", "lib64/other"] {
            let capi = root.path().join(environment).join("onnxruntime/capi");
            fs::create_dir_all(&capi).expect("made");
            fs::write(capi.join(&name), b"").expect("written");
        }
        let first = root.path().join("lib/python3/dist-packages");
        assert!(packages(root.path()).starts_with(&[root.path().join("lib/python3/dist-packages")]));
        assert_eq!(in_environment(root.path()), Some(first.join("onnxruntime/capi").join(name)));
    }

    #[test]
    fn the_library_and_not_a_provider() {
        let folder = tempfile::tempdir().expect("folder");
        let name = format!("{}onnxruntime{}.1.31.1", consts::DLL_PREFIX, consts::DLL_SUFFIX);
        for file in [name.as_str(), "libonnxruntime_providers_shared.so", "onnxruntime_pybind11_state.so"] {
            fs::write(folder.path().join(file), b"").expect("written");
        }
        let found = in_capi(folder.path()).expect("found");
        assert_eq!(found.file_name(), Some(OsStr::new(&name)));
        assert_eq!(version_in_name(&found).as_deref(), Some("1.31.1"));
    }
}
