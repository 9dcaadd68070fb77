//! Is a blob what its source says? Compared a few blocks at a time: memory does not grow with the tensor.

use nz_onnx::codec::{Decoder, load_slots, word};
use nz_onnx::error::{Error, Result};
use nz_onnx::format::{Dtype, Header, TensorSpec};
use rayon::prelude::*;

/// Weights a task compares at once: some whole blocks, whose words stay in a core's cache.
const CHUNK: u64 = 1 << 16;

/// What a comparison found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Match {
    /// Whether the weight comes back bit for bit.
    pub lossless: bool,
    /// Largest `|a - b| / |a|` over finite non-zero weights; 0 if lossless.
    pub max_relative_error: f64,
}

/// Decodes `blob` and compares each weight with that of `source`, rounded to the mantissa bits that the blob
/// states. Checksums are compared too.
///
/// # Errors
/// The blob is corrupt, its dtype, shape or layout is not `spec`, or a weight differs: the message says which.
pub fn against_source(blob: &[u8], source: &[u8], spec: &TensorSpec) -> Result<Match> {
    let decoder = Decoder::open(blob)?;
    let header = decoder.header();
    if header.spec != *spec {
        return Err(Error::Corrupt(format!("the blob is {:?}, expected {spec:?}", header.spec)));
    }
    if spec.bytes()? != source.len() as u64 {
        return Err(Error::InvalidArgument(format!("{} bytes for {spec:?}", source.len())));
    }
    let max_relative_error = compare(&decoder, blob, source)?;
    Ok(Match { lossless: header.is_lossless(), max_relative_error })
}

/// Every decoded weight against its source; the largest relative error.
fn compare(decoder: &Decoder, blob: &[u8], source: &[u8]) -> Result<f64> {
    let elements = decoder.header().spec.elements()?;
    (0..elements.div_ceil(CHUNK))
        .into_par_iter()
        .map(|chunk| {
            let first = chunk * CHUNK;
            compare_chunk(decoder, blob, source, first, CHUNK.min(elements - first))
        })
        .try_reduce(|| 0.0, |a, b| Ok(f64::max(a, b)))
}

fn compare_chunk(decoder: &Decoder, blob: &[u8], source: &[u8], first: u64, count: u64) -> Result<f64> {
    let Header { spec, mantissa_bits, .. } = decoder.header();
    let exact = decoder.header().is_lossless();
    let mut decoded = vec![0f32; count as usize];
    decoder.decode_f32(blob, first, &mut decoded)?;
    let mut words = vec![0u32; count as usize];
    load_slots(spec, source, first, &mut words);
    if exact && decoded.iter().zip(&words).all(|(value, &word)| value.to_bits() == word) {
        return Ok(0.0);
    }
    let mut rounded = words.clone();
    if !exact {
        // The plain function, not the encoder's loops, which it is to find fault with.
        rounded.iter_mut().for_each(|w| *w = word::round(*w, *mantissa_bits, spec.dtype));
    }
    let mut worst = 0f64;
    for (i, ((&word, &expected), value)) in words.iter().zip(&rounded).zip(&decoded).enumerate() {
        if value.to_bits() != expected {
            return Err(Error::Corrupt(format!(
                "weight in slot {} decodes to {value:e} ({:#010x}), expected {:e} ({expected:#010x})",
                first + i as u64,
                value.to_bits(),
                f32::from_bits(expected)
            )));
        }
        let (a, b) = (f64::from(f32::from_bits(word)), f64::from(*value));
        if word != expected && a.is_finite() && a != 0.0 {
            worst = worst.max((a - b).abs() / a.abs());
        }
    }
    Ok(worst)
}

/// The smallest bound of the relative error of a weight rounded to `k` mantissa bits.
pub fn error_bound(k: u8, dtype: Dtype) -> f64 {
    if k >= dtype.mantissa_bits() { 0.0 } else { 1.0 / (f64::from(k + 1).exp2() + 1.0) }
}

#[cfg(test)]
mod tests {
    use nz_onnx::codec::{EncodeOptions, encode, max_relative_error};

    use super::*;

    fn floats(n: usize) -> Vec<u8> {
        (0..n).flat_map(|i| ((i as f32 * 0.37).sin() * 0.1).to_le_bytes()).collect()
    }

    fn options(k: Option<u8>) -> EncodeOptions {
        EncodeOptions { mantissa_bits: k, ..EncodeOptions::default() }
    }

    #[test]
    fn agrees_with_the_codec_for_every_layout() {
        let source = floats(1000 * 300);
        for spec in [
            TensorSpec::row_major(Dtype::F32, &[1000, 300]),
            TensorSpec::column_tiles(Dtype::F32, 1000, 300, 128),
            TensorSpec::column_tiles(Dtype::F32, 300, 1000, 256),
        ] {
            for k in [None, Some(9)] {
                let blob = encode(&source, &spec, &options(k)).expect("encoded");
                let found = against_source(&blob, &source, &spec).expect("matches");
                let decoded = nz_onnx::codec::decode(&blob).expect("decoded");
                assert_eq!(found.lossless, k.is_none());
                assert_eq!(found.max_relative_error, max_relative_error(&source, &decoded, Dtype::F32));
                assert!(found.max_relative_error <= k.map_or(0.0, |k| error_bound(k, Dtype::F32)));
            }
        }
    }

    #[test]
    fn one_changed_weight_is_found() {
        let mut source = floats(5000);
        let spec = TensorSpec::row_major(Dtype::F32, &[5000]);
        let blob = encode(&source, &spec, &options(None)).expect("encoded");
        source[4321 * 4] ^= 1;
        assert!(matches!(against_source(&blob, &source, &spec), Err(Error::Corrupt(_))));
        let other = TensorSpec::row_major(Dtype::F32, &[50, 100]);
        assert!(against_source(&blob, &floats(5000), &other).is_err());
    }
}
