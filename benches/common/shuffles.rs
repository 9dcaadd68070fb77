//! What bounds the AVX-512 decoder within a cache: byte permutations, expansions, comparisons to masks and unpacking
//! all go through one execution port on the Intel cores that have these instructions.

use std::sync::OnceLock;

use nz_onnx::codec::{Decoder, load_slots};
use nz_onnx::format::{Dtype, Header, Transform};

/// What is counted, in words.
pub const ABOUT: &str = "permutations, expansions, unpacking and moves to masks";

/// Byte permutations of 64 bytes that a core executes a second; `None` where there are none.
pub fn per_second() -> Option<f64> {
    static FOUND: OnceLock<Option<f64>> = OnceLock::new();
    *FOUND.get_or_init(measured)
}

#[cfg(target_arch = "x86_64")]
fn measured() -> Option<f64> {
    use std::arch::asm;

    // As many as do not wait for each other, whatever the latency is.
    const CHAINS: u64 = 12;
    const TURNS: u64 = 1_500_000;
    if !is_x86_feature_detected!("avx512vbmi") {
        return None;
    }
    let run = || {
        // SAFETY: the processor has the instruction; all registers written are named.
        unsafe {
            asm!(
                "2:",
                "vpermb zmm0, zmm4, zmm0",
                "vpermb zmm1, zmm4, zmm1",
                "vpermb zmm2, zmm4, zmm2",
                "vpermb zmm3, zmm4, zmm3",
                "vpermb zmm5, zmm4, zmm5",
                "vpermb zmm6, zmm4, zmm6",
                "vpermb zmm7, zmm4, zmm7",
                "vpermb zmm8, zmm4, zmm8",
                "vpermb zmm9, zmm4, zmm9",
                "vpermb zmm10, zmm4, zmm10",
                "vpermb zmm11, zmm4, zmm11",
                "vpermb zmm12, zmm4, zmm12",
                "dec {turns}",
                "jnz 2b",
                turns = inout(reg) TURNS => _,
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
                out("zmm5") _, out("zmm6") _, out("zmm7") _, out("zmm8") _,
                out("zmm9") _, out("zmm10") _, out("zmm11") _, out("zmm12") _,
                options(nomem, nostack),
            );
        }
    };
    // The best of some: others use this machine too.
    let best = (0..15).map(|_| crate::common::time(run)).fold(f64::MAX, f64::min);
    Some((CHAINS * TURNS) as f64 / best)
}

#[cfg(not(target_arch = "x86_64"))]
fn measured() -> Option<f64> {
    None
}

/// 10^9 weights a second that the port lets a core decode of a lossless or cut blob.
pub fn limit(decoder: &Decoder, blob: &[u8]) -> Option<f64> {
    let header = decoder.header();
    if header.transform != Transform::Split {
        return None;
    }
    let shuffles = of_symbols(header, &words(decoder, blob)) + of_words(header);
    Some(per_second()? / shuffles * 64.0 / 1e9)
}

fn words(decoder: &Decoder, blob: &[u8]) -> Vec<u32> {
    let (spec, bytes) = (&decoder.header().spec, decoder.decode_bytes(blob).expect("own blob"));
    let mut words = vec![0; spec.elements().expect("own blob") as usize];
    load_slots(spec, &bytes, 0, &mut words);
    words
}

/// Shuffles for 64 weights' symbols: for 64 codes of a tier, two for the expansion, one that looks codes up and one
/// that finds the escapes, but in the first tier, or one that moves a bitmap to a mask, in tiers of three bits three.
fn of_symbols(header: &Header, words: &[u32]) -> f64 {
    let mut left: Vec<u8> = words.iter().map(|word| (word >> 23) as u8).collect();
    let mut shuffles = 0.0;
    for (t, tier) in header.tiers.iter().enumerate() {
        let of_codes = match tier.width {
            1 => 1.0,
            3 => 5.0,
            _ if t == 0 => 1.0,
            _ => 2.0,
        };
        shuffles += (2.0 + of_codes) * left.len() as f64 / words.len() as f64;
        left.retain(|symbol| !tier.symbols.contains(symbol));
    }
    shuffles
}

/// Shuffles that make elements of 64 symbols and raw bits: one that arranges each vector of bytes, two that unpack two
/// of them, four that unpack words, and one for each bitmap.
fn of_words(header: &Header) -> f64 {
    let m = header.widths.iter().copied().max().unwrap_or(0);
    let fields = [m.min(7) + 1, m.saturating_sub(7).min(8), m.saturating_sub(15)];
    let planes = fields.iter().filter(|&&bits| bits > 0).count();
    let bitmaps = fields.iter().filter(|&&bits| bits % 2 == 1).count();
    let pairs = if m > 7 { 2 } else { 1 };
    let last = match header.spec.dtype {
        Dtype::F32 => 4,
        Dtype::F16 => 1,
        Dtype::Bf16 | Dtype::U8 | Dtype::I8 => 0,
    };
    (1 + planes + bitmaps + 2 * pairs + last) as f64
}
