//! The tables of `inspect` and `env`.

use super::json::{Blob, Env, Inspect, Kind};
use super::style::Style;
use super::table::{Align, Table, printable};
use super::units;

/// What a file is and what is in it.
pub fn inspect(document: &Inspect, style: Style) -> String {
    let what = match document.kind {
        Kind::Converted => {
            format!("a converted model with {}", units::count(document.blobs.len(), "compressed weight"))
        }
        Kind::Plain => "a plain ONNX model; it is not converted".to_string(),
        Kind::Blob => "a blob".to_string(),
    };
    let mut text =
        format!("{}: {what}, {}\n", style.bold(&printable(&document.path)), units::bytes(document.bytes));
    for (key, value) in &document.metadata {
        text += &format!("  {key} = {}\n", printable(value));
    }
    if !document.blobs.is_empty() {
        text += &format!("\n{}", blobs(&document.blobs));
    }
    if !document.constants.is_empty() {
        let mut table = Table::new(&[
            ("constant", Align::Left),
            ("encoding", Align::Left),
            ("bytes", Align::Right),
            ("lossless", Align::Left),
        ]);
        for constant in &document.constants {
            let lossless = if constant.lossless { "yes" } else { "no" };
            table.row(vec![
                constant.name.clone(),
                constant.encoding.clone(),
                units::bytes(constant.bytes),
                lossless.to_string(),
            ]);
        }
        text += &format!("\n{}", table.render(0));
    }
    if !document.weights.is_empty() {
        let mut table = Table::new(&[
            ("weight", Align::Left),
            ("dtype", Align::Left),
            ("shape", Align::Left),
            ("bytes", Align::Right),
        ]);
        for weight in &document.weights {
            table.row(vec![
                weight.name.clone(),
                weight.dtype.clone(),
                units::shape(&weight.shape),
                units::bytes(weight.bytes),
            ]);
        }
        text += &format!("\n{}", table.render(0));
    }
    text
}

fn blobs(blobs: &[Blob]) -> String {
    use Align::{Left, Right};
    let layered = blobs.iter().any(|blob| !blob.depths.is_empty());
    let mut columns = vec![
        ("compressed weight", Left),
        ("dtype", Left),
        ("shape", Left),
        ("layout", Left),
        ("block", Right),
        ("tiers", Left),
        ("encoding", Left),
        ("bits/w", Right),
        ("bytes", Right),
        ("of", Right),
        ("lossless", Left),
        ("checksum", Left),
    ];
    if layered {
        columns.push(("bits/w of layers", Left));
    }
    let mut table = Table::new(&columns);
    for blob in blobs {
        let widths: Vec<String> = blob.tiers.iter().map(|t| t.width.to_string()).collect();
        let mut row = vec![
            blob.weights.join(", "),
            blob.dtype.clone(),
            units::shape(&blob.shape),
            blob.layout.clone(),
            blob.block_len.to_string(),
            widths.join("+"),
            blob.encoding.clone(),
            format!("{:.2}", blob.bits_per_weight),
            units::bytes(blob.bytes),
            units::bytes(blob.weight_bytes),
            if blob.lossless { "yes" } else { "no" }.to_string(),
            if blob.checksum_ok { "ok" } else { "WRONG" }.to_string(),
        ];
        if layered {
            // Rounded up, so that asking for the number printed is enough.
            let up = |bits: f64| format!("{:.2}", (bits * 100.0).ceil() / 100.0);
            row.push(blob.depths.iter().map(|d| up(d.bits_per_weight)).collect::<Vec<_>>().join(" "));
        }
        table.row(row);
    }
    table.render(0)
}

/// What `env` found.
pub fn env(document: &Env) -> String {
    let or_none = |value: &Option<String>, none: &str| value.clone().unwrap_or_else(|| none.to_string());
    let ort = match (&document.ort_lib, &document.ort_version) {
        (Some(path), Some(version)) => format!("{path} ({version})"),
        (path, _) => or_none(path, "not found"),
    };
    [
        ("nz-onnx", document.version.to_string()),
        ("blob format", document.format.clone()),
        ("library", or_none(&document.library, "not found; set NZ_LIBRARY to the path of libnz_onnx")),
        ("ONNX Runtime", ort),
        ("SIMD", if document.simd.is_empty() { "none".to_string() } else { document.simd.join(", ") }),
        ("CUDA", or_none(&document.cuda, "none")),
        ("threads", document.threads.to_string()),
    ]
    .iter()
    .map(|(name, value)| format!("{name:13} {value}\n"))
    .collect()
}
