//! Caches, memory, and copies that set the speed limit of a decoder.

/// Bytes of the largest cache that the first core sees; 32 MiB where the system does not tell.
pub fn largest_cache() -> usize {
    let sizes = (0..8).filter_map(|index| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let text = std::fs::read_to_string(path).ok()?;
        text.trim().strip_suffix('K')?.parse::<usize>().ok().map(|kib| kib << 10)
    });
    sizes.max().unwrap_or(32 << 20)
}

/// Bytes of memory that can be had without swapping, where the system tells.
pub fn available_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok().map(|kib| kib << 10)
}

/// A buffer that starts at a cache line, every page of it touched.
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Of `len` bytes.
    pub fn new(len: usize) -> Self {
        let bytes = vec![1; len + 64];
        let start = bytes.as_ptr().align_offset(64);
        Buffer { bytes, start, len }
    }

    /// A copy of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut buffer = Buffer::new(bytes.len());
        buffer.as_mut_slice().copy_from_slice(bytes);
        buffer
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }
}

/// How [`streaming_copy`] writes on this machine.
pub fn streaming_kind() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "64-byte streaming stores";
        }
        if is_x86_feature_detected!("avx") {
            return "32-byte streaming stores";
        }
    }
    "memcpy: no streaming stores here"
}

/// Copies without reading the destination into the cache first: the least memory traffic that bytes can be
/// made with. Where there are no such stores it is `memcpy`.
///
/// # Panics
/// The lengths differ, or `to` does not start at a cache line.
pub fn streaming_copy(from: &[u8], to: &mut [u8]) {
    assert_eq!(from.len(), to.len());
    assert_eq!(to.as_ptr().align_offset(64), 0);
    let whole = from.len() / 256 * 256;
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: AVX-512F is there; both slices have `whole` bytes, a multiple of 256; `to` is aligned.
            unsafe { stream_512(from.as_ptr(), to.as_mut_ptr(), whole) };
            to[whole..].copy_from_slice(&from[whole..]);
            return;
        }
        if is_x86_feature_detected!("avx") {
            // SAFETY: as above, with AVX.
            unsafe { stream_256(from.as_ptr(), to.as_mut_ptr(), whole) };
            to[whole..].copy_from_slice(&from[whole..]);
            return;
        }
    }
    let _ = whole;
    to.copy_from_slice(from);
}

/// # Safety
/// `from` and `to` have `len` bytes, a multiple of 256; `to` is aligned to 64.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn stream_512(from: *const u8, to: *mut u8, len: usize) {
    use std::arch::x86_64::{__m512i, _mm_sfence, _mm512_loadu_si512, _mm512_stream_si512};
    for at in (0..len).step_by(256) {
        // SAFETY: `at + 256 <= len`, and `to + at` is aligned to 64.
        unsafe {
            let (source, target) = (from.add(at).cast::<__m512i>(), to.add(at).cast::<__m512i>());
            let lines = [0, 1, 2, 3].map(|i| _mm512_loadu_si512(source.add(i)));
            for (i, line) in lines.into_iter().enumerate() {
                _mm512_stream_si512(target.add(i), line);
            }
        }
    }
    _mm_sfence();
}

/// # Safety
/// `from` and `to` have `len` bytes, a multiple of 256; `to` is aligned to 32.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn stream_256(from: *const u8, to: *mut u8, len: usize) {
    use std::arch::x86_64::{__m256i, _mm_sfence, _mm256_loadu_si256, _mm256_stream_si256};
    for at in (0..len).step_by(256) {
        // SAFETY: `at + 256 <= len`, and `to + at` is aligned to 32.
        unsafe {
            let (source, target) = (from.add(at).cast::<__m256i>(), to.add(at).cast::<__m256i>());
            let parts = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| _mm256_loadu_si256(source.add(i)));
            for (i, part) in parts.into_iter().enumerate() {
                _mm256_stream_si256(target.add(i), part);
            }
        }
    }
    _mm_sfence();
}
