//! The `nz-onnx` command; see `nz-onnx --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    onnx_tools::cli::main()
}
