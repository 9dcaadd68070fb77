//! The CUDA kernels, run on the CPU (`cpp/simt`).

use std::path::Path;
use std::sync::OnceLock;

use crate::sass::Program;

#[cxx::bridge(namespace = "nz::twin")]
mod ffi {
    /// How a kernel is launched.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Grid {
        /// Thread blocks in the first dimension.
        x: u32,
        /// Thread blocks in the second dimension.
        y: u32,
        /// Threads a block.
        threads: u32,
        /// Bytes of dynamic shared memory a block.
        shared: usize,
        /// In which order warps and lanes run; 0: one after the other.
        seed: u64,
    }

    unsafe extern "C++" {
        include!("nz-cpp-twin/src/simt.hpp");

        /// [`super::launch`], with its error as text.
        unsafe fn launch(kernel: &str, grid: &Grid, argument: &[u8]) -> String;
        /// Sizes and offsets of the structs in `nz_cuda.h`, in the order in which simt.cpp lists them.
        fn layout() -> Vec<u64>;
    }
}

pub use ffi::{Grid, layout};

/// Set: runs the machine code in this folder ([`crate::sass`]) in place of the sources.
const MACHINE_CODE: &str = "NZ_SASS";

/// Runs a kernel with its only argument, the bytes of the struct that it takes.
///
/// # Safety
/// The pointers in `argument` are to memory that the kernel may use as `cpp/include/nz_cuda.h` says.
///
/// # Errors
/// There is no such kernel; or its threads diverged or came to a deadlock: the shim's sentence on it.
pub unsafe fn launch(kernel: &str, grid: &Grid, argument: &[u8]) -> Result<(), String> {
    static PROGRAM: OnceLock<Option<Result<Program, String>>> = OnceLock::new();
    let program = PROGRAM
        .get_or_init(|| std::env::var_os(MACHINE_CODE).map(|folder| Program::load(Path::new(&folder))));
    if let Some(program) = program {
        let program = program.as_ref().map_err(Clone::clone)?;
        // SAFETY: the caller vouches for the pointers.
        return unsafe { program.launch(kernel, grid, argument) }.map(|_| ());
    }
    // SAFETY: the caller vouches for the pointers.
    let error = unsafe { ffi::launch(kernel, grid, argument) };
    if error.is_empty() { Ok(()) } else { Err(error) }
}
