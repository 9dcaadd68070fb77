//! What is in a file: a converted model, a plain one, or a bare blob.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use nz_onnx::codec::Decoder;
use nz_onnx::format::{Header, Layout, MAGIC, Transform, payload_hash};

use super::allocation::{Encoding, Folded};
use super::{constants, optimize};
use crate::delta::shared::delta_name;
use crate::onnx::{Error, Model, Result, Source, Weight};
use crate::report::json;
use crate::rewrite::base;

/// Metadata keys that `convert` writes.
const METADATA: [&str; 9] = [
    "nz.format",
    "nz.tool",
    "nz.source_sha256",
    optimize::LEVEL,
    optimize::ORT_VERSION,
    optimize::ORIGINAL_SHA256,
    optimize::NCHWC_BLOCK,
    base::FILE,
    base::SHA256,
];

/// Looks at `path`.
///
/// # Errors
/// It cannot be read, or is neither a model nor a blob. A payload with a wrong checksum is no error here.
pub fn inspect(path: &Path) -> Result<json::Inspect> {
    let document = |kind, bytes| json::Inspect {
        schema: "nz-onnx.inspect/1",
        path: path.display().to_string(),
        bytes,
        kind,
        metadata: BTreeMap::new(),
        blobs: Vec::new(),
        constants: Vec::new(),
        weights: Vec::new(),
    };
    let source = Source::open(path)?;
    if is_blob(&source)? {
        let bytes = source.read(&(0..source.len()))?;
        let blob = describe(&bytes).map_err(|e| Error::codec(path, "", e))?;
        return Ok(json::Inspect { blobs: vec![blob], ..document(json::Kind::Blob, source.len()) });
    }
    let model = Model::open(path)?;
    let kind = if is_converted(&model) { json::Kind::Converted } else { json::Kind::Plain };
    let mut found = document(kind, model.source().len());
    for key in METADATA {
        if let Some(value) = model.metadata(key) {
            found.metadata.insert(key.to_string(), value.to_string());
        }
    }
    // Whether it is missing, before any blob of it is missed.
    base::open(&model)?;
    let mut holders = HashSet::new();
    for blob in model.blobs() {
        let holder = model.weight(blob.weight);
        holders.insert(blob.weight);
        holders.extend(blob.base);
        let bytes = model.read_weight(holder)?;
        let described = describe(&bytes).map_err(|e| Error::codec(path, &holder.name, e))?;
        found.blobs.push(json::Blob {
            name: Some(holder.name.clone()),
            weights: vec![blob.name],
            ..described
        });
    }
    let constants = constants::of(&model);
    for blob in &constants {
        let Some(constant) = blob.constant else { continue };
        found.constants.push(json::Constant {
            name: blob.name.clone(),
            encoding: Coded::Constant(constant.how).name(),
            bytes: blob.len + 4 * constant.scales,
            lossless: constant.exact,
        });
    }
    let is_plain = |w: &&Weight| !holders.contains(&w.id) && !constants::is_part(w, &constants);
    for weight in model.weights().iter().filter(is_plain) {
        found.weights.push(json::PlainWeight {
            name: weight.name.clone(),
            dtype: weight.dtype_name().to_string(),
            shape: weight.shape.clone(),
            bytes: weight.bytes,
        });
    }
    Ok(found)
}

/// Whether `convert` made the model, be it that no weight was worth compressing.
pub fn is_converted(model: &Model) -> bool {
    model.is_converted() || model.metadata(METADATA[0]).is_some()
}

/// Whether the file starts as blobs do.
fn is_blob(source: &Source) -> Result<bool> {
    let len = MAGIC.len() as u64;
    Ok(source.len() >= len && source.read(&(0..len))? == MAGIC)
}

/// The layout in words.
pub fn layout_name(layout: Layout) -> String {
    match layout {
        Layout::RowMajor => "row-major".to_string(),
        Layout::ColumnTiles { tile } => format!("column-tiles {tile}"),
    }
}

/// What was done to weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coded {
    /// Nothing.
    Lossless,
    /// They were rounded to so many mantissa bits.
    Mantissa(u8),
    /// They were rounded to levels of so many raw bits.
    Grid(u8),
    /// They were rounded to values of codebooks.
    Codebook,
    /// They are no blob: ONNX Runtime makes a constant of them as it loads the model.
    Constant(Folded),
}

impl Coded {
    /// What `encoding` asked for, unless rounding changed nothing.
    pub fn of(encoding: Encoding, lossless: bool) -> Coded {
        match encoding {
            Encoding::Mantissa(k) if !lossless => Coded::Mantissa(k),
            Encoding::Grid(step) if !lossless => Coded::Grid(step.raw_bits),
            _ => Coded::Lossless,
        }
    }

    /// In words: "float-split lossless", "float-split k=12", "grid k=5".
    pub fn name(self) -> String {
        match self {
            Coded::Lossless => "float-split lossless".to_string(),
            Coded::Mantissa(k) => format!("float-split k={k}"),
            Coded::Grid(k) => format!("grid k={k}"),
            Coded::Codebook => "codebook".to_string(),
            Coded::Constant(how) => constants::name(how).to_string(),
        }
    }
}

fn coded(header: &Header) -> Coded {
    match header.transform {
        _ if header.is_lossless() => Coded::Lossless,
        Transform::Grid => Coded::Grid(header.mantissa_bits),
        Transform::Codebook => Coded::Codebook,
        // Nothing else is known of a delta without its base; integers are never rounded.
        Transform::Delta | Transform::Integer => Coded::Lossless,
        Transform::Split | Transform::NormalisedSplit => Coded::Mantissa(header.mantissa_bits),
    }
}

fn depths(header: &Header, elements: u64) -> Vec<json::Depth> {
    let depth = |(depth, raw_bits)| {
        let bytes = header.bytes_to(depth);
        json::Depth { raw_bits, bytes, bits_per_weight: 8.0 * bytes as f64 / elements as f64 }
    };
    let bits = std::iter::once(header.base_bits).chain(header.layers.iter().map(|layer| layer.bits));
    match header.layers.is_empty() {
        true => Vec::new(),
        false => bits.enumerate().map(depth).collect(),
    }
}

fn describe(blob: &[u8]) -> nz_onnx::error::Result<json::Blob> {
    let header = Header::parse(blob)?;
    let (elements, weight_bytes) = (header.spec.elements()?, header.spec.bytes()?);
    // A delta is not decoded without its base.
    let checksum_ok = match header.delta {
        Some(_) => payload_hash(&blob[header.payload()]) == header.payload_hash,
        None => Decoder::open(blob).is_ok(),
    };
    Ok(json::Blob {
        name: None,
        weights: Vec::new(),
        format: format!("{}.{}", header.major, header.minor),
        dtype: header.spec.dtype.name().to_string(),
        shape: header.spec.shape.clone(),
        layout: layout_name(header.spec.layout),
        block_len: header.block_len,
        tiers: header
            .tiers
            .iter()
            .map(|t| json::Tier { width: t.width, symbols: t.symbols.clone() })
            .collect(),
        encoding: delta_name(&header).map_or_else(|| coded(&header).name(), str::to_string),
        mantissa_bits: header.mantissa_bits,
        weight_bytes,
        bytes: header.blob_len,
        bits_per_weight: 8.0 * header.blob_len as f64 / elements as f64,
        lossless: header.is_lossless(),
        depths: depths(&header, elements),
        checksum_ok,
    })
}
