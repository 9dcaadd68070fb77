//! With the feature `cubins`: assembles the checked-in PTX of the CUDA kernels, where there is an assembler. Without it, or
//! without an assembler, there is nothing to do.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The modules under `cpp/ptx`.
const MODULES: [&str; 5] = ["decode", "delta", "encode", "gemv", "tensor"];
/// The one that takes capability 8.0.
const TENSOR: &str = "tensor";
/// What machine code is made for: compute capabilities, as major and minor.
const CAPABILITIES: [(u32, u32); 3] = [(7, 5), (8, 0), (9, 0)];
/// Names the assembler.
const PTXAS: &str = "NZ_PTXAS";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUBINS").is_none() {
        return ExitCode::SUCCESS;
    }
    println!("cargo::rerun-if-changed=cpp/ptx");
    for name in [PTXAS, "PATH", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    match make() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The assembler: the one that is named, or else CUDA's.
fn ptxas() -> Result<Option<PathBuf>, String> {
    if let Some(path) = std::env::var_os(PTXAS) {
        let path = PathBuf::from(path);
        return match path.is_file() {
            true => Ok(Some(path)),
            false => Err(format!("{PTXAS} names no file: {}", path.display())),
        };
    }
    let path: OsString = std::env::var_os("PATH").unwrap_or_default();
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let homes = homes.chain([OsString::from("/usr/local/cuda")]).map(|home| Path::new(&home).join("bin"));
    Ok(homes
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join("ptxas"))
        .find(|path| path.is_file()))
}

/// Writes `cubins.rs`, a list of module, capability and machine code.
fn make() -> Result<(), String> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets no OUT_DIR")?);
    let mut list = String::from("&[\n");
    match ptxas()? {
        None => println!(
            "cargo::warning=feature cubins: there is no ptxas in CUDA_HOME, CUDA_PATH, /usr/local/cuda or on the path ({PTXAS} \
             names one), so the library has its CUDA kernels as PTX alone"
        ),
        Some(ptxas) => {
            for module in MODULES {
                for (major, minor) in
                    CAPABILITIES.into_iter().filter(|&made_for| module != TENSOR || made_for >= (8, 0))
                {
                    let cubin = out.join(format!("{module}-sm_{major}{minor}.cubin"));
                    let mut command = Command::new(&ptxas);
                    command.arg(format!("--gpu-name=sm_{major}{minor}")).arg("-o").arg(&cubin);
                    let output = command.arg(format!("cpp/ptx/{module}.ptx")).output();
                    let output = output.map_err(|error| format!("{}: {error}", ptxas.display()))?;
                    if !output.status.success() {
                        let said = String::from_utf8_lossy(&output.stderr);
                        return Err(format!(
                            "{} fails for {module}, sm_{major}{minor}: {said}",
                            ptxas.display()
                        ));
                    }
                    writeln!(list, "    ({module:?}, ({major}, {minor}), include_bytes!({cubin:?})),")
                        .map_err(|error| error.to_string())?;
                }
            }
        }
    }
    list.push_str("]\n");
    let path = out.join("cubins.rs");
    std::fs::write(&path, list).map_err(|error| format!("{}: {error}", path.display()))
}
