//! The CUDA kernels' PTX: made, and proven current, by a pinned nvcc from PyPI. No GPU and no CUDA installation is needed.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::{self, Workspace, progress};

/// The compiler, in packages that hold nothing else. A newer one writes PTX that older drivers do not take.
const PACKAGES: &[&str] = &[
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-nvdisasm==13.2.51", // the first that there is
];
/// `cpp/cuda/<name>.cu` becomes `cpp/ptx/<name>.ptx`.
const MODULES: &[Module] = &[
    Module { name: "decode", target: "compute_75", architectures: ARCHITECTURES },
    Module { name: "delta", target: "compute_75", architectures: ARCHITECTURES },
    Module { name: "encode", target: "compute_75", architectures: ARCHITECTURES },
    Module { name: "gemv", target: "compute_75", architectures: ARCHITECTURES },
    Module { name: "tensor", target: "compute_80", architectures: &["sm_80", "sm_90"] },
];

/// Kernels that are compiled together.
struct Module {
    name: &'static str,
    /// The oldest compute capability that the PTX is for.
    target: &'static str,
    /// What it has to assemble for without spills.
    architectures: &'static [&'static str],
}

/// The PTX version that goes with it, and with drivers from 520 on. The kernels use nothing newer.
const PTX_VERSION: &str = ".version 7.8";
/// A hint that nvcc 13 gives with loads; PTX 7.8 does not know it, and it changes no result.
const NEWER_HINT: &str = "\"used_bytes_mask";
/// The first line of each file.
const HEAD: &str = "// Made from cpp/cuda by `cargo xtask cuda` with nvcc 13.0.88. Do not edit.\n";
/// What most of the PTX has to assemble for.
const ARCHITECTURES: &[&str] = &["sm_75", "sm_80", "sm_90"];
/// What instructions are counted for.
const COUNTED: &str = "sm_90";
const DOCUMENT: &str = "docs/cuda.md";
const REGISTERS: [&str; 2] =
    ["<!-- registers: written by `cargo xtask cuda` -->\n", "<!-- end of registers -->"];
const ROOFLINES: [&str; 2] =
    ["<!-- rooflines: written by `cargo xtask cuda` -->\n", "<!-- end of rooflines -->"];
/// The kernels' tests that are run with machine code, too.
const MACHINE_TESTS: &[&str] =
    &["kernels", "kernel_lean", "kernel_tensor", "kernel_products", "kernel_integers"];

/// Writes the PTX and the tables of registers and instructions.
///
/// # Errors
/// The compiler cannot be had, a kernel does not compile, or it spills registers.
pub fn run(workspace: &Workspace) -> Result<bool> {
    for (path, text) in make(workspace, true)? {
        std::fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
    }
    println!("xtask cuda: PTX and {DOCUMENT} written");
    Ok(true)
}

/// Makes PTX and the table of registers anew, and compares them with those that are there.
///
/// # Errors
/// As [`run`], or a file is out of date.
pub fn check(workspace: &Workspace) -> Result<()> {
    for (path, text) in make(workspace, false)? {
        let found =
            std::fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
        ensure!(found == text, "{} is not what its sources give: run `cargo xtask cuda`", path.display());
    }
    Ok(())
}

/// Builds the library with machine code of the PTX beside it, and has that looked at.
///
/// # Errors
/// The compiler cannot be had, or the machine code is not what it should be.
pub fn check_cubins(workspace: &Workspace) -> Result<()> {
    let mut tests = workspace.cargo();
    tests.args([
        "test",
        "--quiet",
        "--profile",
        "quick",
        "--package",
        "nz-onnx",
        "--features",
        "cubins",
        "--lib",
    ]);
    tests.arg("cuda::cubin").env("NZ_PTXAS", toolkit(workspace)?.join("bin/ptxas"));
    workspace::run(&mut tests)
}

/// Runs tests of the kernels with the machine code that `make` has left.
///
/// # Errors
/// There is none, or a test fails.
pub fn test_machine_code(workspace: &Workspace) -> Result<()> {
    let mut tests = workspace.cargo();
    tests.args(["test", "--quiet", "--profile", "quick", "--package", "nz-cpp-twin"]);
    for test in MACHINE_TESTS {
        tests.args(["--test", test]);
    }
    workspace::run(tests.env("NZ_SASS", workspace.scratch("cuda")?))
}

/// The files that depend on the kernels' sources, as they have to be; the table of instructions, which takes minutes, only if
/// they are to be `count`ed.
fn make(workspace: &Workspace, count: bool) -> Result<Vec<(PathBuf, String)>> {
    let toolkit = toolkit(workspace)?;
    let (sources, scratch) = (workspace.root().join("cpp"), workspace.scratch("cuda")?);
    let mut files = Vec::new();
    let mut table = String::from(
        "| kernel | architecture | registers | stack, bytes | spilled, bytes |\n|---|---|---|---|---|\n",
    );
    for &Module { name: module, target, architectures } in MODULES {
        let raw = scratch.join(format!("{module}.ptx"));
        let mut nvcc = Command::new(toolkit.join("bin/nvcc"));
        nvcc.args(["-ptx", "-O3", "-std=c++17", "-arch", target, "-I"]).arg(sources.join("include"));
        nvcc.arg(sources.join(format!("cuda/{module}.cu"))).arg("-o").arg(&raw);
        workspace::run(with_tools(&mut nvcc, &toolkit)?)?;
        let ptx = lowered(&std::fs::read_to_string(&raw).context("could not read nvcc's PTX")?)?;
        std::fs::write(&raw, &ptx).context("could not write PTX")?;
        for architecture in architectures {
            let rows = assemble(&toolkit, &raw, architecture)?;
            ensure!(!rows.is_empty(), "ptxas names no kernel of {module}");
            for row in rows {
                ensure!(
                    row.spilled == 0 && row.stack == 0,
                    "{} spills {} bytes and has {} bytes of stack on {architecture}",
                    row.kernel,
                    row.spilled,
                    row.stack
                );
                writeln!(
                    table,
                    "| `{}` | {architecture} | {} | {} | {} |",
                    row.kernel, row.registers, row.stack, row.spilled
                )?;
            }
        }
        disassemble(&toolkit, &raw)?;
        files.push((sources.join(format!("ptx/{module}.ptx")), ptx));
    }
    let counted = if count { Some(rooflines(workspace, &scratch)?) } else { None };
    let document = workspace.root().join(DOCUMENT);
    let text = std::fs::read_to_string(&document).with_context(|| format!("could not read {DOCUMENT}"))?;
    let mut text = with_section(&text, REGISTERS, &table)?;
    if let Some(counted) = counted {
        text = with_section(&text, ROOFLINES, &counted)?;
    }
    files.push((document, text));
    Ok(files)
}

/// The table of instructions, counted by running the machine code in `folder`.
fn rooflines(workspace: &Workspace, folder: &Path) -> Result<String> {
    progress("counting instructions");
    let mut roofline = workspace.cargo();
    roofline.args([
        "run",
        "--quiet",
        "--profile",
        "quick",
        "--package",
        "nz-cpp-twin",
        "--example",
        "roofline",
    ]);
    workspace::read(roofline.arg("--").arg(folder)).context("instructions could not be counted")
}

/// The text with what is between two markers replaced.
fn with_section(text: &str, [start, end]: [&str; 2], section: &str) -> Result<String> {
    let from = text.find(start).with_context(|| format!("{DOCUMENT} has no {start:?}"))? + start.len();
    let to = text.find(end).with_context(|| format!("{DOCUMENT} has no {end:?}"))?;
    Ok([&text[..from], section, &text[to..]].concat())
}

/// Leaves beside the PTX what nvdisasm shows of the machine code that [`assemble`] has left.
fn disassemble(toolkit: &Path, ptx: &Path) -> Result<()> {
    let mut nvdisasm = Command::new(toolkit.join("bin/nvdisasm"));
    let shown = workspace::read(nvdisasm.arg("-c").arg(machine_code(ptx, COUNTED)))?;
    let listing = ptx.with_extension("sass");
    std::fs::write(&listing, shown).with_context(|| format!("could not write {}", listing.display()))
}

/// Where the machine code of a PTX file is for an architecture.
fn machine_code(ptx: &Path, architecture: &str) -> PathBuf {
    ptx.with_extension(format!("{architecture}.cubin"))
}

/// The folder with the compiler's `bin`, installed once.
fn toolkit(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.scratch("venv")?.join("nvcc-13.0.88");
    let stamp_file = folder.join("nz-requirements.txt");
    let stamp = PACKAGES.join("\n");
    if !std::fs::read_to_string(&stamp_file).is_ok_and(|found| found == stamp) {
        progress("fetching the CUDA compiler");
        if folder.exists() {
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("could not remove {}", folder.display()))?;
        }
        workspace::run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let mut pip = Command::new(folder.join("bin/python"));
        pip.args(["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]);
        workspace::run(pip.args(["--only-binary", ":all:"]).args(PACKAGES))?;
        std::fs::write(&stamp_file, stamp)
            .with_context(|| format!("could not write {}", stamp_file.display()))?;
    }
    let libraries = folder.join("lib");
    let entries =
        std::fs::read_dir(&libraries).with_context(|| format!("could not read {}", libraries.display()))?;
    for entry in entries {
        let path = entry.context("could not read the environment")?.path().join("site-packages/nvidia/cu13");
        if path.join("bin/nvcc").is_file() {
            return Ok(path);
        }
    }
    bail!("the packages hold no nvcc under {}", libraries.display())
}

/// nvcc looks for its other programs on the path.
fn with_tools<'c>(command: &'c mut Command, toolkit: &Path) -> Result<&'c mut Command> {
    let old = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(toolkit.join("bin")).chain(std::env::split_paths(&old));
    Ok(command.env("PATH", std::env::join_paths(path).context("a folder name with a colon")?))
}

/// nvcc's PTX as older drivers take it, without comments and empty lines.
fn lowered(ptx: &str) -> Result<String> {
    let mut versions = 0;
    let mut text = String::from(HEAD);
    let is_comment = |line: &str| line.trim_start().starts_with("//") || line.trim().is_empty();
    for line in ptx.lines().filter(|line| !line.contains(NEWER_HINT) && !is_comment(line)) {
        let is_version = line.starts_with(".version ");
        versions += usize::from(is_version);
        text.push_str(if is_version { PTX_VERSION } else { line });
        text.push('\n');
    }
    ensure!(versions == 1, "PTX with {versions} lines of version");
    Ok(text)
}

/// What ptxas says of a kernel.
struct Usage {
    kernel: String,
    registers: u32,
    stack: u32,
    spilled: u32,
}

/// Leaves machine code beside the PTX, and says what each kernel takes.
fn assemble(toolkit: &Path, ptx: &Path, architecture: &str) -> Result<Vec<Usage>> {
    let mut ptxas = Command::new(toolkit.join("bin/ptxas"));
    ptxas.args(["-v", "-arch", architecture, "-o"]).arg(machine_code(ptx, architecture)).arg(ptx);
    let output = ptxas.output().context("could not start ptxas")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ptxas does not take {} for {architecture}:\n{text}", ptx.display());
    let mut rows: Vec<Usage> = Vec::new();
    for line in text.lines() {
        let number = |before: &str| -> Option<u32> {
            let start = line[..line.find(before)?].trim_end();
            start[start.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1)..].parse().ok()
        };
        if let Some(kernel) =
            line.split("Compiling entry function '").nth(1).and_then(|rest| rest.split('\'').next())
        {
            rows.push(Usage { kernel: kernel.to_owned(), registers: 0, stack: 0, spilled: 0 });
        } else if let Some(row) = rows.last_mut() {
            if let (Some(stack), Some(stores), Some(loads)) =
                (number(" bytes stack frame"), number(" bytes spill stores"), number(" bytes spill loads"))
            {
                (row.stack, row.spilled) = (stack, stores + loads);
            }
            row.registers = number(" registers").unwrap_or(row.registers);
        }
    }
    ensure!(rows.iter().all(|row| row.registers > 0), "ptxas -v tells no registers:\n{text}");
    rows.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    Ok(rows)
}
