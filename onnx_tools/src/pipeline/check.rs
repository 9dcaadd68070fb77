//! Is a blob what its source says? Compared a few blocks at a time: memory does not grow with the tensor.

use nz_onnx::arch::STRIP;
use nz_onnx::codec::{Decoder, allocation, load_slots, word};
use nz_onnx::error::{Error, Result};
use nz_onnx::format::{Dtype, Header, TensorSpec, Transform};
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
    /// Largest `|a - b|` over the root of the mean square, of finite weights; none if there is no error, or it is not
    /// known.
    pub max_error_to_rms: Option<f64>,
    /// The energy of finite weights over that of their errors, in decibels; none if there is no error.
    pub snr_db: Option<f64>,
}

impl Match {
    /// No weight is changed.
    pub const EXACT: Match =
        Match { lossless: true, max_relative_error: 0.0, max_error_to_rms: None, snr_db: None };
}

/// Errors of some weights.
#[derive(Debug, Clone, Copy, Default)]
struct Errors {
    relative: f64,
    absolute: f64,
    /// Sums of squares: of the errors and of the weights.
    noise: f64,
    energy: f64,
}

impl Errors {
    fn add(&mut self, weight: f64, error: f64) {
        if !weight.is_finite() {
            return;
        }
        self.energy += weight * weight;
        self.noise += error * error;
        self.absolute = self.absolute.max(error.abs());
        if weight != 0.0 {
            self.relative = self.relative.max(error.abs() / weight.abs());
        }
    }

    /// What was found of a tensor of so many elements.
    fn found(self, lossless: bool, elements: u64) -> Match {
        let Errors { relative, absolute, noise, energy } = self;
        let rms = (energy / elements as f64).sqrt();
        Match {
            lossless,
            max_relative_error: relative,
            max_error_to_rms: (absolute > 0.0).then_some(absolute / rms),
            snr_db: (noise > 0.0).then(|| 10.0 * (energy / noise).log10()),
        }
    }

    fn and(self, other: Errors) -> Errors {
        Errors {
            relative: self.relative.max(other.relative),
            absolute: self.absolute.max(other.absolute),
            noise: self.noise + other.noise,
            energy: self.energy + other.energy,
        }
    }
}

/// Decodes `blob` and compares each weight with that of `source`, rounded to the mantissa bits or the grid that the
/// blob states. Checksums are compared too.
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
    Ok(compare(&decoder, blob, source)?.found(header.is_lossless(), spec.elements()?))
}

/// How far `blob` is from `source`, whatever it was rounded to.
///
/// # Errors
/// The blob is corrupt, or its dtype, shape or layout is not `spec`.
pub fn distance(blob: &[u8], source: &[u8], spec: &TensorSpec) -> Result<Match> {
    let decoder = Decoder::open(blob)?;
    if decoder.header().spec != *spec || spec.bytes()? != source.len() as u64 {
        return Err(Error::Corrupt(format!("the blob is {:?}, expected {spec:?}", decoder.header().spec)));
    }
    let decoded = decoder.decode_bytes(blob)?;
    let chunk = CHUNK as usize * spec.dtype.size();
    let of_chunk = |(source, decoded): (&[u8], &[u8])| {
        let words = |bytes: &[u8]| {
            let mut words = vec![0; bytes.len() / spec.dtype.size()];
            word::load(spec.dtype, bytes, &mut words);
            words.into_iter().map(|word| f64::from(f32::from_bits(word)))
        };
        let mut errors = Errors::default();
        words(source).zip(words(decoded)).for_each(|(a, b)| errors.add(a, a - b));
        errors
    };
    let errors: Vec<Errors> = source.par_chunks(chunk).zip(decoded.par_chunks(chunk)).map(of_chunk).collect();
    Ok(errors.into_iter().fold(Errors::default(), Errors::and).found(source == decoded, spec.elements()?))
}

/// Every decoded weight against its source.
fn compare(decoder: &Decoder, blob: &[u8], source: &[u8]) -> Result<Errors> {
    let elements = decoder.header().spec.elements()?;
    let errors: Vec<Errors> = (0..elements.div_ceil(CHUNK))
        .into_par_iter()
        .map(|chunk| {
            let first = chunk * CHUNK;
            compare_chunk(decoder, blob, source, first, CHUNK.min(elements - first))
        })
        .collect::<Result<_>>()?;
    // In order: sums must not depend on the number of threads.
    Ok(errors.into_iter().fold(Errors::default(), Errors::and))
}

fn compare_chunk(decoder: &Decoder, blob: &[u8], source: &[u8], first: u64, count: u64) -> Result<Errors> {
    let Header { spec, mantissa_bits, transform, .. } = decoder.header();
    let exact = decoder.header().is_lossless();
    let mut decoded = vec![0f32; count as usize];
    decoder.decode_f32(blob, first, &mut decoded)?;
    let mut words = vec![0u32; count as usize];
    load_slots(spec, source, first, &mut words);
    if exact && decoded.iter().zip(&words).all(|(value, &word)| value.to_bits() == word) {
        return Ok(energy_of(&decoded));
    }
    let mut rounded = words.clone();
    if !exact {
        // The plain function, not the encoder's loops, which it is to find fault with.
        match transform {
            Transform::Grid => to_grid(decoder.header(), first, &mut rounded)?,
            Transform::Codebook => in_books(decoder.header(), first, &decoded, &mut rounded)?,
            _ => rounded.iter_mut().for_each(|w| *w = word::round(*w, *mantissa_bits, spec.dtype)),
        }
    }
    let mut errors = Errors::default();
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
        errors.add(a, a - b);
    }
    Ok(errors)
}

/// Exact weights.
fn energy_of(weights: &[f32]) -> Errors {
    let mut errors = Errors::default();
    weights.iter().for_each(|&weight| errors.add(weight.into(), 0.0));
    errors
}

/// Which of a codebook's values a weight should have is the encoder's choice: it may have any of its own unit's. Those
/// are decoded weights' own; where one is none of them, the nearest.
fn in_books(header: &Header, first: u64, decoded: &[f32], words: &mut [u32]) -> Result<()> {
    let Some(codebook) = &header.codebook else { return Err(Error::Corrupt("no codebook".to_string())) };
    for (strip, (words, decoded)) in words.chunks_mut(STRIP).zip(decoded.chunks(STRIP)).enumerate() {
        let slot = first + (strip * STRIP) as u64;
        let (unit, place) = header
            .unit(slot)
            .zip(header.unit_place(slot))
            .ok_or_else(|| Error::Corrupt("codebooks without units".to_string()))?;
        let group = codebook.groups.get(place).copied().unwrap_or(0);
        let values = codebook.tables[usize::from(group)].map(|value| {
            let value = value * unit.value();
            match header.spec.dtype {
                Dtype::F16 => half::f16::from_f32(value).to_f32(),
                Dtype::Bf16 => half::bf16::from_f32(value).to_f32(),
                _ => value,
            }
        });
        for (word, &found) in words.iter_mut().zip(decoded) {
            let own = values.iter().find(|value| value.to_bits() == found.to_bits());
            let wanted = f32::from_bits(*word);
            let nearest = || values.iter().min_by(|a, b| (*a - wanted).abs().total_cmp(&(*b - wanted).abs()));
            *word = own.or_else(nearest).map_or(*word, |value| value.to_bits());
        }
    }
    Ok(())
}

/// Turns the words of slots from `first` on, the start of a strip, into those of the values nearest on the blob's grid.
fn to_grid(header: &Header, first: u64, words: &mut [u32]) -> Result<()> {
    let (k, dtype) = (header.mantissa_bits, header.spec.dtype);
    for (strip, words) in words.chunks_mut(STRIP).enumerate() {
        let unit = header
            .unit(first + (strip * STRIP) as u64)
            .ok_or_else(|| Error::Corrupt("a grid without units".to_string()))?;
        words.iter_mut().for_each(|w| *w = word::level_value(word::level(*w, unit, k), unit, k, dtype));
    }
    Ok(())
}

/// The smallest bound of the relative error of a weight rounded to `k` mantissa bits.
pub fn error_bound(k: u8, dtype: Dtype) -> f64 {
    if k >= dtype.mantissa_bits() { 0.0 } else { allocation::error_bound(k) }
}

#[cfg(test)]
mod tests {
    use nz_onnx::codec::{EncodeOptions, GridStep, encode, max_relative_error};

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
    fn weights_on_a_grid_are_those_that_the_clear_form_gives() {
        let source = floats(1000 * 320);
        for spec in [
            TensorSpec::row_major(Dtype::F32, &[1000, 320]),
            TensorSpec::column_tiles(Dtype::F32, 1000, 320, 128),
        ] {
            let grid = Some(GridStep { cell: 1, raw_bits: 6 });
            let blob =
                encode(&source, &spec, &EncodeOptions { grid, ..Default::default() }).expect("encoded");
            let found = against_source(&blob, &source, &spec).expect("matches");
            let decoded = nz_onnx::codec::decode(&blob).expect("decoded");
            let values = |bytes: &[u8]| -> Vec<f64> {
                bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().expect("four")).into()).collect()
            };
            let (a, b) = (values(&source), values(&decoded));
            let energy: f64 = a.iter().map(|x| x * x).sum();
            let noise: f64 = a.iter().zip(&b).map(|(x, y)| (x - y) * (x - y)).sum();
            let worst = a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
            let rms = (energy / a.len() as f64).sqrt();
            assert!((found.snr_db.expect("rounded") - 10.0 * (energy / noise).log10()).abs() < 1e-6);
            assert!((found.max_error_to_rms.expect("rounded") / (worst / rms) - 1.0).abs() < 1e-9);
            assert_eq!(found.max_relative_error, max_relative_error(&source, &decoded, Dtype::F32));
            // Half a step, and a step is a small part of a row's size.
            assert!(worst / rms < 0.01 && !found.lossless);
            let mut other = source.clone();
            other[4321 * 4 + 3] ^= 0x80;
            assert!(matches!(against_source(&blob, &other, &spec), Err(Error::Corrupt(_))));
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
