//! Encoding, against a copy of the same input, measured in turn in one run.
//!
//! `cargo bench --bench encode [-- [MiB] [--quick]]`: input bytes a second for each dtype, one thread.
//!
//! With `--serve` it encodes and decodes tensors for `xtask/python/bench_encode.py`, which has other compressors take
//! turns with it. It reads one JSON command a line from stdin and answers each with one JSON line:
//!
//! ```text
//! {"do": "load", "path": P, "dtype": D, "elements": [N, ...]}   the tensors that file P holds, one after the other
//! {"do": "encode"}     -> {"seconds", "bytes": [B, ...]}        the size of each blob
//! {"do": "decode"}     -> {"seconds"}                           of the blobs made last; compared with the tensors
//! ```
//!
//! A command that fails is answered with {"error": message}.

#[path = "common/mod.rs"]
mod common;

use std::hint::black_box;
use std::io::BufRead;

use nz_onnx::codec::{self, Decoder, EncodeOptions};
use nz_onnx::format::{Dtype, TensorSpec};
use serde_json::{Value, json};

use common::{median, time, weights};

const ROUNDS: usize = 7;
const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

type Failure = Box<dyn std::error::Error>;

fn encode(source: &[u8], dtype: Dtype) -> Result<Vec<u8>, nz_onnx::error::Error> {
    let spec = TensorSpec::row_major(dtype, &[(source.len() / dtype.size()) as u64]);
    codec::encode(source, &spec, &EncodeOptions::default())
}

/// A pool of one thread: what is measured on a core.
fn one_thread() -> Result<rayon::ThreadPool, rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new().num_threads(1).build()
}

/// The tensors that are measured, and their blobs.
#[derive(Default)]
struct Server {
    tensors: Vec<(Dtype, Vec<u8>)>,
    blobs: Vec<Vec<u8>>,
}

impl Server {
    fn answer(&mut self, line: &str) -> Result<Value, Failure> {
        let command: Value = serde_json::from_str(line)?;
        match command["do"].as_str() {
            Some("load") => self.load(&command),
            Some("encode") => self.encode(),
            Some("decode") => self.decode(),
            _ => Err(format!("no such command: {line}").into()),
        }
    }

    fn load(&mut self, command: &Value) -> Result<Value, Failure> {
        let path = command["path"].as_str().ok_or("load needs a path")?;
        let name = command["dtype"].as_str().ok_or("load needs a dtype")?;
        let dtype = DTYPES.into_iter().find(|dtype| dtype.name() == name).ok_or("no such dtype")?;
        let elements: Vec<usize> = serde_json::from_value(command["elements"].clone())?;
        let bytes = std::fs::read(path)?;
        let mut rest = &bytes[..];
        *self = Server::default();
        for n in elements {
            let (tensor, after) = rest.split_at_checked(n * dtype.size()).ok_or("the file is too short")?;
            self.tensors.push((dtype, tensor.to_vec()));
            rest = after;
        }
        Ok(json!({}))
    }

    fn encode(&mut self) -> Result<Value, Failure> {
        self.blobs.clear();
        let mut failed = None;
        let seconds = time(|| {
            for (dtype, tensor) in &self.tensors {
                match encode(black_box(tensor), *dtype) {
                    Ok(blob) => self.blobs.push(blob),
                    Err(error) => failed = Some(error),
                }
            }
        });
        failed.map_or(Ok(()), Err)?;
        let bytes: Vec<usize> = self.blobs.iter().map(Vec::len).collect();
        Ok(json!({"seconds": seconds, "bytes": bytes}))
    }

    fn decode(&mut self) -> Result<Value, Failure> {
        let mut seconds = 0.0;
        for ((_, tensor), blob) in self.tensors.iter().zip(&self.blobs) {
            let mut decoded = Ok(vec![]);
            seconds += time(|| {
                decoded = Decoder::open_unverified(black_box(blob)).and_then(|d| d.decode_bytes(blob));
            });
            if decoded? != *tensor {
                return Err("decoding gives other weights".into());
            }
        }
        Ok(json!({"seconds": seconds}))
    }
}

fn serve() -> Result<(), Failure> {
    let (pool, mut server) = (one_thread()?, Server::default());
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = pool.install(|| server.answer(&line).map_err(|error| error.to_string()));
        println!("{}", answer.unwrap_or_else(|error| json!({"error": error})));
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--serve") {
        return serve();
    }
    let quick = arguments.iter().any(|a| a == "--quick" || a == "--test");
    let mib = arguments.iter().find_map(|a| a.parse::<usize>().ok()).unwrap_or(if quick { 1 } else { 64 });
    println!("{mib} MiB, one thread; ratio: input bytes a second over those of memcpy");
    println!("{:<10} {:>8} {:>8} {:>8}", "dtype", "b/w", "ratio", "GB/s");
    let pool = one_thread()?;
    for dtype in DTYPES {
        let source = weights((mib << 20) / dtype.size(), dtype, dtype);
        let mut copy = vec![1; source.len()];
        let (mut ratios, mut rates, mut size) = (vec![], vec![], 0);
        for _ in 0..if quick { 1 } else { ROUNDS } {
            let copying = time(|| copy.copy_from_slice(black_box(&source)));
            let mut blob = Ok(vec![]);
            let encoding = time(|| blob = pool.install(|| encode(black_box(&source), dtype)));
            size = blob?.len();
            ratios.push(copying / encoding);
            rates.push(source.len() as f64 / encoding / 1e9);
        }
        let bits = size as f64 * 8.0 * dtype.size() as f64 / source.len() as f64;
        println!("{:<10} {bits:>8.2} {:>8.3} {:>8.2}", dtype.name(), median(&ratios), median(&rates));
    }
    Ok(())
}
