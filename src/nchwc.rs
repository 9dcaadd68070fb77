//! Channel blocks: ONNX Runtime's optimiser lays weights of convolutions out in blocks of channels, as many as the
//! CPU has lanes, and its kernels for such weights (domain `com.microsoft.nchwc`) take the layout for granted.
//!
//! A weight in blocks of another size is a wrong result and no error, so a model that holds such weights says which
//! size it was made for, and is refused elsewhere.

/// Channels a block in ONNX Runtime's kernels on this CPU; none where it has no such kernels.
///
/// This is the choice that MLAS makes (`NchwcBlockSize` in its `platform.cpp`) and keeps to itself: on x86-64 16 with
/// AVX-512F, which it looks for only where there are AVX2 and FMA, else 8; a constant on other architectures. There,
/// and in builds without these kernels, ONNX Runtime itself refuses the nodes.
pub fn block_size() -> Option<u32> {
    #[cfg(target_arch = "x86_64")]
    {
        let wide = std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("fma");
        Some(if wide { 16 } else { 8 })
    }
    #[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
    {
        Some(16)
    }
    #[cfg(target_arch = "loongarch64")]
    {
        Some(8)
    }
    #[cfg(not(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64"
    )))]
    {
        None
    }
}
