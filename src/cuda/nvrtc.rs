//! The kernels' sources, compiled for the device at hand by NVRTC: an alternative to the PTX that is checked in.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cudarc::nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts, sys};

use super::port::DeviceError;

/// The environment variable that has the kernels compiled by NVRTC when they are loaded, if it is `1`; unset, empty or `0`,
/// the driver makes code of the PTX in this library.
pub const NVRTC_VARIABLE: &str = "NZ_CUDA_NVRTC";

/// All files of `cpp/cuda` and those of `cpp/include` that they include.
const FILES: [(&str, &str); 21] = [
    ("decode.cu", include_str!("../../cpp/cuda/decode.cu")),
    ("delta.cu", include_str!("../../cpp/cuda/delta.cu")),
    ("encode.cu", include_str!("../../cpp/cuda/encode.cu")),
    ("gemv.cu", include_str!("../../cpp/cuda/gemv.cu")),
    ("tensor.cu", include_str!("../../cpp/cuda/tensor.cu")),
    ("tensor.cuh", include_str!("../../cpp/cuda/tensor.cuh")),
    ("tensor_tiles.cuh", include_str!("../../cpp/cuda/tensor_tiles.cuh")),
    ("lean.cuh", include_str!("../../cpp/cuda/lean.cuh")),
    ("decode.cuh", include_str!("../../cpp/cuda/decode.cuh")),
    ("delta.cuh", include_str!("../../cpp/cuda/delta.cuh")),
    ("gemv.cuh", include_str!("../../cpp/cuda/gemv.cuh")),
    ("octets.cuh", include_str!("../../cpp/cuda/octets.cuh")),
    ("codebook.cuh", include_str!("../../cpp/cuda/codebook.cuh")),
    ("words.cuh", include_str!("../../cpp/cuda/words.cuh")),
    ("even.cuh", include_str!("../../cpp/cuda/even.cuh")),
    ("block.cuh", include_str!("../../cpp/cuda/block.cuh")),
    ("layers.cuh", include_str!("../../cpp/cuda/layers.cuh")),
    ("planes.cuh", include_str!("../../cpp/cuda/planes.cuh")),
    ("types.cuh", include_str!("../../cpp/cuda/types.cuh")),
    ("nz_cuda.h", include_str!("../../cpp/include/nz_cuda.h")),
    ("nz_layout.h", include_str!("../../cpp/include/nz_layout.h")),
];

/// Whether [`NVRTC_VARIABLE`] asks for NVRTC.
///
/// # Errors
/// It is something else than it may be.
pub(super) fn is_wanted() -> Result<bool, DeviceError> {
    match std::env::var_os(NVRTC_VARIABLE) {
        None => Ok(false),
        Some(value) if value.is_empty() || value == "0" => Ok(false),
        Some(value) if value == "1" => Ok(true),
        Some(value) => {
            Err(DeviceError::Setting { name: NVRTC_VARIABLE, value: value.to_string_lossy().into_owned() })
        }
    }
}

/// The file with all that it includes in its place.
fn flattened(name: &str, seen: &mut Vec<String>) -> Option<String> {
    let text = FILES.iter().find(|(known, _)| *known == name)?.1;
    seen.push(name.to_owned());
    let mut out = String::new();
    for line in text.lines() {
        match line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')) {
            Some(included) if seen.iter().any(|known| known == included) => {}
            Some(included) => out.push_str(&flattened(included, seen)?),
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    Some(out)
}

/// Compiles `cpp/cuda/<module>.cu` for a device of this compute capability. No device is needed.
///
/// # Errors
/// There is no NVRTC on this machine, or it does not take the sources.
pub fn compile(module: &str, capability: (i32, i32)) -> Result<Ptx, DeviceError> {
    // SAFETY: looks for the library by its names and for nothing else.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoNvrtc);
    }
    let failed = |reason: String| DeviceError::Driver { what: "compiling the kernels with NVRTC", reason };
    let source = flattened(&format!("{module}.cu"), &mut Vec::new());
    let source = source.ok_or_else(|| failed(format!("{module}.cu includes a file that is not here")))?;
    let options = CompileOptions {
        options: vec![
            format!("--gpu-architecture=compute_{}{}", capability.0, capability.1),
            "--std=c++17".to_owned(),
        ],
        name: Some(format!("{module}.cu")),
        ..Default::default()
    };
    // cudarc panics where the library lacks a function.
    let outcome = catch_unwind(AssertUnwindSafe(|| compile_ptx_with_opts(source, options)));
    match outcome {
        Ok(Ok(ptx)) => Ok(ptx),
        Ok(Err(CompileError::CompileError { log, .. })) => Err(failed(log.to_string_lossy().into_owned())),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("the NVRTC of this machine is too old".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_whole_without_their_includes() {
        for module in ["decode", "delta", "encode", "gemv", "tensor"] {
            let source = flattened(&format!("{module}.cu"), &mut Vec::new()).expect("all files are here");
            assert!(!source.contains("#include \""), "{module}");
            for text in ["typedef struct NzCudaWeight {", "#define NZ_MAX_TIERS", "struct Sixteen {"] {
                assert_eq!(source.matches(text).count(), 1, "{module}: {text}");
            }
        }
    }

    /// Where NVRTC is, the sources compile for devices old and new; else the message says what is missing.
    #[test]
    fn sources_compile_where_nvrtc_is() {
        for (module, kernel) in [
            ("decode", "nz_decode_bfloat16"),
            ("delta", "nz_delta_decode"),
            ("encode", "nz_write"),
            ("gemv", "nz_gemv_rows_1"),
            ("tensor", "nz_tensor_row"),
        ] {
            let oldest = if module == "tensor" { (8, 0) } else { (7, 5) };
            for capability in [oldest, (9, 0)] {
                match compile(module, capability) {
                    Ok(ptx) => assert!(ptx.to_src().contains(&format!(".entry {kernel}("))),
                    Err(error) => {
                        assert_eq!(error, DeviceError::NoNvrtc);
                        assert!(error.to_string().contains("libnvrtc"));
                        eprintln!("SKIPPED: {error}");
                    }
                }
            }
        }
    }
}
