//! What this machine and this installation offer.

use std::path::Path;

use super::runtime::locate;
use crate::report::json;

/// Looks around. `ort_lib` is libonnxruntime as the user names it.
pub fn env(ort_lib: Option<&Path>) -> json::Env {
    let ort = locate::onnxruntime(ort_lib);
    let (major, minor) = nz_onnx::format::VERSION;
    json::Env {
        schema: "nz-onnx.env/1",
        library: locate::library().map(|p| p.display().to_string()),
        version: nz_onnx::VERSION,
        format: format!("{major}.{minor}"),
        simd: simd(),
        cuda: None,
        ort_version: ort.as_deref().and_then(locate::version_in_name),
        ort_lib: ort.map(|p| p.display().to_string()),
        threads: rayon::current_num_threads(),
    }
}

/// Instruction sets of this machine that matter to decoding, least first.
fn simd() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let all = [
            ("avx2", std::is_x86_feature_detected!("avx2")),
            ("avx512f", std::is_x86_feature_detected!("avx512f")),
            ("avx512bw", std::is_x86_feature_detected!("avx512bw")),
            ("avx512vbmi", std::is_x86_feature_detected!("avx512vbmi")),
            ("avx512vbmi2", std::is_x86_feature_detected!("avx512vbmi2")),
        ];
        all.into_iter().filter_map(|(name, there)| there.then_some(name)).collect()
    }
    #[cfg(target_arch = "aarch64")]
    {
        if std::arch::is_aarch64_feature_detected!("neon") { vec!["neon"] } else { Vec::new() }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Vec::new()
    }
}
