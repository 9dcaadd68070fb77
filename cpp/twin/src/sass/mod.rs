//! Runs machine code for sm_90, as nvdisasm shows it, on the CPU: instruction by instruction, and counts them.
//!
//! What instructions do is not documented by the vendor; here it is as their names and results say. The kernels'
//! tests pass with it, bit for bit, so nothing that they depend on is read wrongly (`NZ_SASS`, see docs/cuda.md).
//! No word on time: neither latency nor caches are modelled.

mod machine;
mod op;
mod parse;
mod warp;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::simt::Grid;
pub use op::Kind;

/// Bytes of memory that are fetched at once.
pub const SECTOR: u64 = 32;

/// What a launch has done.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// Instructions of warps, by kind. One counts once, however many of the warp's lanes it is for.
    pub instructions: BTreeMap<Kind, u64>,
    /// Bytes that were read, in sectors: each once, however often.
    pub read: u64,
    /// Bytes that were written, in the same way.
    pub written: u64,
    /// The kernel's instructions, and how often each was one of these.
    pub listing: Vec<(String, u64)>,
}

impl Work {
    /// Instructions of warps.
    pub fn total(&self) -> u64 {
        self.instructions.values().sum()
    }
}

/// Kernels as machine code.
pub struct Program {
    kernels: HashMap<String, machine::Code>,
}

impl Program {
    /// Reads all `*.sass` in a folder, which `nvdisasm -c` has written.
    ///
    /// # Errors
    /// A file cannot be read, or has an instruction that is not known.
    pub fn load(folder: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("could not read {}: {error}", folder.display());
        let mut kernels = HashMap::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_none_or(|extension| extension != "sass") {
                continue;
            }
            for (name, kernel) in parse::parse(&std::fs::read_to_string(&path).map_err(failed)?)? {
                let code = machine::Code::new(&kernel).map_err(|error| format!("{name}: {error}"))?;
                kernels.insert(name, code);
            }
        }
        if kernels.is_empty() {
            Err(format!("{} has no kernels", folder.display()))
        } else {
            Ok(Program { kernels })
        }
    }

    /// As [`crate::simt::launch`]; what was done.
    ///
    /// # Safety
    /// As [`crate::simt::launch`].
    ///
    /// # Errors
    /// There is no such kernel; it does what the machine does not allow, or what is not known here.
    pub unsafe fn launch(&self, kernel: &str, grid: &Grid, argument: &[u8]) -> Result<Work, String> {
        let code = self.kernels.get(kernel).ok_or_else(|| format!("there is no kernel {kernel}"))?;
        // SAFETY: the caller vouches for the pointers.
        unsafe { machine::run(code, grid, argument) }
    }
}
