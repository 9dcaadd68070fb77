//! Rounded weights beside lossless ones of their dtype: decoding, and products with one row, within a cache.
//!
//! `cargo bench --bench rounded [-- [--quick] [--json FILE]]`: for each form the speed over that of lossless weights, with the
//! backend that this machine uses and one thread. Each round runs all forms of a dtype once, and a ratio is taken within the
//! round.

#[path = "common/mod.rs"]
mod common;
#[path = "common/report.rs"]
mod report;
#[path = "common/rounding.rs"]
mod rounding;

use std::hint::black_box;

use nz_onnx::arch::Backend;
use nz_onnx::codec::{self, Decoder, EncodeOptions, layer};
use nz_onnx::format::{Dtype, TensorSpec};
use serde_json::{Value, json};

use common::{median, time, weights};
use report::write_report;
use rounding::Rounding;

/// Weights of a blob: 256 KiB of float32.
const WEIGHTS: usize = 1 << 16;
/// Columns of the weight, of which a grid has a unit each.
const ROW: u64 = 4096;
/// Columns of what is multiplied with: those of a tile.
const COLUMNS: usize = 256;
/// What each is to reach.
const OF_LOSSLESS: f64 = 0.8;

struct Form {
    name: &'static str,
    dtype: Dtype,
    rounding: Rounding,
    /// Raw bits in the record and in each layer but the last.
    layers: &'static [u8],
}

const fn form(name: &'static str, dtype: Dtype, rounding: Rounding) -> Form {
    Form { name, dtype, rounding, layers: &[] }
}

const fn layered(name: &'static str, dtype: Dtype, rounding: Rounding, layers: &'static [u8]) -> Form {
    Form { name, dtype, rounding, layers }
}

use Dtype::{Bf16, F16, F32};
use Rounding::{Codebook, Grid, Lossless, Mantissa};

const FORMS: &[Form] = &[
    form("float32, 10 mantissa bits", F32, Mantissa(10)),
    form("float32, 7 mantissa bits", F32, Mantissa(7)),
    form("float32, 3 mantissa bits", F32, Mantissa(3)),
    form("float32, grid of no raw bits", F32, Grid { raw_bits: 0 }),
    form("float32, grid of 3 raw bits", F32, Grid { raw_bits: 3 }),
    form("float32, grid of 5 raw bits", F32, Grid { raw_bits: 5 }),
    form("float32, grid of 9 raw bits", F32, Grid { raw_bits: 9 }),
    form("float32, codebooks", F32, Codebook(4)),
    layered("float32, a layer from 7 mantissa bits on", F32, Lossless, &[7]),
    layered("float32, layers from 3, 7 and 15 on", F32, Lossless, &[3, 7, 15]),
    layered("float32, 10 mantissa bits, a layer from 3 on", F32, Mantissa(10), &[3]),
    layered("float32, grid of 5 raw bits, a layer from 2 on", F32, Grid { raw_bits: 5 }, &[2]),
    layered("float32, grid of 9 raw bits, a layer from 4 on", F32, Grid { raw_bits: 9 }, &[4]),
    form("float16, 4 mantissa bits", F16, Mantissa(4)),
    form("float16, grid of 3 raw bits", F16, Grid { raw_bits: 3 }),
    form("float16, codebooks", F16, Codebook(4)),
    form("bfloat16, 3 mantissa bits", Bf16, Mantissa(3)),
    form("bfloat16, grid of no raw bits", Bf16, Grid { raw_bits: 0 }),
    form("bfloat16, grid of 2 raw bits", Bf16, Grid { raw_bits: 2 }),
    form("bfloat16, grid of 4 raw bits", Bf16, Grid { raw_bits: 4 }),
    form("bfloat16, grid of 5 raw bits", Bf16, Grid { raw_bits: 5 }),
    form("bfloat16, codebooks", Bf16, Codebook(4)),
    layered("bfloat16, a layer from 3 mantissa bits on", Bf16, Lossless, &[3]),
];

/// A blob, its decoder, and what its product is called with.
struct Side {
    blob: Vec<u8>,
    decoder: Decoder,
    out: Vec<u8>,
    x: Vec<f32>,
    y: Vec<f32>,
}

impl Side {
    /// Of the weights so rounded, in layers if there are any.
    fn new(source: &[u8], dtype: Dtype, rounding: Rounding, layers: &[u8]) -> Self {
        // As a matrix: a grid has a unit for each row.
        let spec = TensorSpec::row_major(dtype, &[WEIGHTS as u64 / ROW, ROW]);
        let options = EncodeOptions { mantissa_bits: rounding.mantissa_bits(), ..EncodeOptions::default() };
        let coding = rounding.coding(source, &spec, &options);
        let mut blob = codec::encode_as(source, &spec, options.block_len, &coding).expect("surveyed input");
        let expected = codec::decode(&blob).expect("own blob");
        if !layers.is_empty() {
            blob = layer(&blob, layers).expect("own blob").expect("raw bits beyond the first layer");
        }
        let decoder = Decoder::with_backend(&blob, Backend::active()).expect("own blob");
        let mut side = Side {
            out: vec![0; WEIGHTS * dtype.size()],
            x: (0..WEIGHTS / COLUMNS).map(|i| 1.0 + i as f32 / 256.0).collect(),
            y: vec![0.0; COLUMNS],
            blob,
            decoder,
        };
        side.decode();
        assert!(side.out == expected, "what is measured must be right");
        side
    }

    fn decode(&mut self) {
        self.decoder.decode_elements(black_box(&self.blob), 0, &mut self.out).expect("own blob");
    }

    /// Whether there is such a product.
    fn multiply(&mut self) -> bool {
        self.decoder.multiply_rows(black_box(&self.blob), 0, &self.x, &mut self.y).expect("own blob")
    }
}

/// The 10^9 weights a second of `repeats` calls.
fn rate(repeats: usize, mut call: impl FnMut()) -> f64 {
    (repeats * WEIGHTS) as f64 / time(|| (0..repeats).for_each(|_| call())) / 1e9
}

/// Rates of decoding and of products, one a round; no products where there are none.
#[derive(Default)]
struct Rates([Vec<f64>; 2]);

impl Rates {
    fn measure(&mut self, side: &mut Side, repeats: usize, keep: bool) {
        let mut rates = vec![rate(repeats, || side.decode())];
        if side.multiply() {
            rates.push(rate(repeats, || {
                side.multiply();
            }));
        }
        if keep {
            self.0.iter_mut().zip(rates).for_each(|(all, rate)| all.push(rate));
        }
    }
}

/// The rows of a dtype.
fn measure(dtype: Dtype, rounds: usize, repeats: usize) -> Vec<Value> {
    let source = weights(WEIGHTS, dtype, dtype);
    let forms: Vec<&Form> = FORMS.iter().filter(|form| form.dtype == dtype).collect();
    let mut lossless = Side::new(&source, dtype, Lossless, &[]);
    let mut sides: Vec<Side> =
        forms.iter().map(|form| Side::new(&source, dtype, form.rounding, form.layers)).collect();
    let (mut exact, mut all) = (Rates::default(), Vec::new());
    all.resize_with(forms.len(), Rates::default);
    for round in 0..=rounds {
        // The first round warms up and is dropped.
        exact.measure(&mut lossless, repeats, round > 0);
        for (side, rates) in sides.iter_mut().zip(&mut all) {
            rates.measure(side, repeats, round > 0);
        }
    }
    let line = |name: &str, blob: &[u8], Rates([decoded, products]): &Rates, is_exact: bool| {
        let bits = blob.len() as f64 * 8.0 / WEIGHTS as f64;
        let of =
            |own: &[f64], exact: &[f64]| -> Vec<f64> { own.iter().zip(exact).map(|(a, b)| a / b).collect() };
        let of_lossless = [of(decoded, &exact.0[0]), of(products, &exact.0[1])];
        let some = |samples: &[f64]| (!samples.is_empty()).then(|| json!({"samples": samples, "digits": 2}));
        let shown =
            |samples: &[f64]| if samples.is_empty() { "-".into() } else { format!("{:.2}", median(samples)) };
        println!(
            "{name:<50} {bits:>6.2} {:>8} {:>6} {:>8} {:>6}",
            shown(decoded),
            shown(&of_lossless[0]),
            shown(products),
            shown(&of_lossless[1])
        );
        let target = |of: &str, samples: &[f64]| {
            (!is_exact && !samples.is_empty())
                .then(|| json!({"target": {"of": of, "at_least": OF_LOSSLESS, "digits": 2}}))
        };
        json!([
            name,
            {"value": bits, "digits": 2},
            some(decoded),
            if is_exact { None } else { some(&of_lossless[0]) },
            target(DECODED, &of_lossless[0]),
            some(products),
            if is_exact { None } else { some(&of_lossless[1]) },
            target(MULTIPLIED, &of_lossless[1]),
        ])
    };
    let mut rows = vec![line(dtype.name(), &lossless.blob, &exact, true)];
    for ((form, side), rates) in forms.iter().zip(&sides).zip(&all) {
        rows.push(line(form.name, &side.blob, rates, false));
    }
    rows
}

const DECODED: &str = "decoded, of lossless";
const MULTIPLIED: &str = "products, of lossless";
const TITLES: [&str; 8] = [
    "weights",
    "bits a weight",
    "decoded, Gweights/s",
    DECODED,
    "target",
    "products, Gweights/s",
    MULTIPLIED,
    "target of products",
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` passes --test.
    let quick = arguments.iter().any(|a| a == "--quick" || a == "--test");
    let report = arguments.iter().position(|a| a == "--json").and_then(|at| arguments.get(at + 1));
    let (rounds, repeats) = if quick { (2, 2) } else { (15, 100) };
    let rows: Vec<Value> =
        [F32, F16, Bf16].into_iter().flat_map(|dtype| measure(dtype, rounds, repeats)).collect();
    if let Some(path) = report {
        let about = format!(
            "Rounded weights beside lossless ones: {WEIGHTS} weights decoded to their own dtype in a cache, and \
             multiplied with one row (float32, {COLUMNS} columns), one thread, backend `{}`. \"Of lossless\" is the \
             speed over that of lossless weights of the dtype in the same round; its target is {OF_LOSSLESS}.",
            Backend::active().name,
        );
        let table = json!({"title": "Rounded weights, in cache", "columns": TITLES, "rows": rows});
        write_report(path, &about, &table);
    }
}
