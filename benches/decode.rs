//! Decoding against copies of the same output bytes, measured in turn in one run.
//!
//! `cargo bench --bench decode [-- [MiB] [--quick] [--json FILE]]`: for each dtype and backend the ratio of decoded
//! bytes a second to copied ones, with output that no cache holds, and weights a second within a cache. MiB is the
//! size of the output; the default is twice the largest cache, and at least 256.
//!
//! No benchmark framework: criterion and divan measure one function to its end before the next, and on a machine
//! that others use too the two sides of a ratio then see different machines. Here each round runs all sides once,
//! and a ratio is taken within the round.

#[path = "common/mod.rs"]
mod common;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/report.rs"]
mod report;
#[path = "common/rounding.rs"]
mod rounding;
#[path = "common/shuffles.rs"]
mod shuffles;

use std::hint::black_box;

use nz_onnx::arch::Backend;

use nz_onnx::codec::{self, Coding, Decoder, EncodeOptions, Profile};
use nz_onnx::format::{Dtype, TensorSpec};
use serde_json::{Value, json};

use common::{median, time, weights};
use memory::{Buffer, available_memory, largest_cache, streaming_copy, streaming_kind};
use report::write_report;
use rounding::Rounding;

/// Weights decoded within a cache: 256 KiB of float32.
const CACHED: usize = 1 << 16;
/// Columns of the weight.
const ROW: u64 = 4096;

struct Case {
    name: &'static str,
    dtype: Dtype,
    /// The dtype that the weights were rounded to before they were stored.
    through: Dtype,
    rounding: Rounding,
    profile: Profile,
    /// Of a copy with streaming stores, one thread: with AVX-512, and with AVX2.
    targets: [Option<f64>; 2],
}

use Rounding::{Codebook, Grid, Lossless, Mantissa};

const fn case(
    name: &'static str,
    dtype: Dtype,
    through: Dtype,
    rounding: Rounding,
    avx512: Option<f64>,
) -> Case {
    // Stated for lossless blobs.
    let avx2 = if avx512.is_some() && matches!(rounding, Lossless) { Some(0.55) } else { None };
    Case { name, dtype, through, rounding, profile: Profile::Compact, targets: [avx512, avx2] }
}

const fn fast(name: &'static str, dtype: Dtype) -> Case {
    let targets = [None, Some(0.90)];
    Case { name, dtype, through: dtype, rounding: Lossless, profile: Profile::Fast, targets }
}

const CASES: &[Case] = &[
    case("float32", Dtype::F32, Dtype::F32, Lossless, Some(0.85)),
    case("float32, 10 mantissa bits", Dtype::F32, Dtype::F32, Mantissa(10), None),
    case("float32, 7 mantissa bits", Dtype::F32, Dtype::F32, Mantissa(7), None),
    case("float32, 3 mantissa bits", Dtype::F32, Dtype::F32, Mantissa(3), Some(1.2)),
    case("float32 upcast from float16", Dtype::F32, Dtype::F16, Lossless, None),
    case("float32 upcast from bfloat16", Dtype::F32, Dtype::Bf16, Lossless, None),
    case("float32, grid of 3 raw bits", Dtype::F32, Dtype::F32, Grid { raw_bits: 3 }, None),
    case("float32, grid of no raw bits", Dtype::F32, Dtype::F32, Grid { raw_bits: 0 }, None),
    case("float32, codebooks", Dtype::F32, Dtype::F32, Codebook(4), None),
    case("float16", Dtype::F16, Dtype::F16, Lossless, Some(0.80)),
    case("bfloat16", Dtype::Bf16, Dtype::Bf16, Lossless, Some(0.95)),
    case("bfloat16, grid of 2 raw bits", Dtype::Bf16, Dtype::Bf16, Grid { raw_bits: 2 }, None),
    case("bfloat16, codebooks", Dtype::Bf16, Dtype::Bf16, Codebook(4), None),
    fast("float32, profile fast", Dtype::F32),
    fast("float16, profile fast", Dtype::F16),
    fast("bfloat16, profile fast", Dtype::Bf16),
];
/// What bfloat16 is to reach within a cache, AVX-512, one thread, in 10^9 weights a second.
const CACHED_TARGET: f64 = 25.0;
/// What rounded weights are to reach of the speed of lossless ones of their dtype, AVX-512, one thread.
const OF_LOSSLESS: f64 = 0.8;

struct Settings {
    bytes: usize,
    rounds: usize,
    /// Decodes of a round within the cache.
    repeats: usize,
    threads: Vec<usize>,
}

/// Decodes to little-endian elements of the blob's dtype.
fn decode(decoder: &Decoder, blob: &[u8], first: u64, out: &mut [u8]) {
    decoder.decode_elements(blob, first, out).expect("own blob");
}

/// Runs `work` on as many parts of `out` as there are threads; it gets a part and where the part starts.
fn in_parts(out: &mut [u8], threads: usize, work: impl Fn(usize, &mut [u8]) + Sync) {
    // Parts start at blocks: no block is decoded by two threads.
    let part = out.len().div_ceil(threads).next_multiple_of(4 * 4096);
    let (first, rest) = out.split_at_mut(part.min(out.len()));
    let work = &work;
    std::thread::scope(|scope| {
        for (index, out) in rest.chunks_mut(part).enumerate() {
            scope.spawn(move || work((index + 1) * part, out));
        }
        work(0, first);
    });
}

/// The seconds of each round.
struct Rounds {
    streaming: Vec<f64>,
    memcpy: Vec<f64>,
    decodes: Vec<Vec<f64>>,
    /// Of each backend decoding the lossless blob, if there is one.
    lossless: Vec<Vec<f64>>,
}

/// Copies and decodes to memory, one after the other in each round.
fn to_memory(
    source: &Buffer,
    blob: &[u8],
    lossless: Option<&[u8]>,
    out: &mut Buffer,
    rounds: usize,
    threads: usize,
) -> Rounds {
    let decoders = decoders(blob);
    let exact = lossless.map(|blob| (blob, self::decoders(blob)));
    let size = decoders[0].header().spec.dtype.size();
    let source = source.as_slice();
    let each = vec![vec![]; decoders.len()];
    let mut found = Rounds { streaming: vec![], memcpy: vec![], decodes: each.clone(), lossless: each };
    for round in 0..=rounds {
        // The first round warms up and is dropped.
        let keep = |to: &mut Vec<f64>, seconds: f64| (round > 0).then(|| to.push(seconds));
        let seconds = time(|| {
            in_parts(out.as_mut_slice(), threads, |at, out| {
                streaming_copy(&black_box(source)[at..][..out.len()], out);
            });
        });
        keep(&mut found.streaming, seconds);
        let seconds = time(|| {
            in_parts(out.as_mut_slice(), threads, |at, out| {
                out.copy_from_slice(&black_box(source)[at..][..out.len()]);
            });
        });
        keep(&mut found.memcpy, seconds);
        for (i, decoder) in decoders.iter().enumerate() {
            let mut decoding = |decoder: &Decoder, blob: &[u8]| {
                time(|| {
                    in_parts(out.as_mut_slice(), threads, |at, out| {
                        decode(decoder, black_box(blob), (at / size) as u64, out);
                    });
                })
            };
            keep(&mut found.decodes[i], decoding(decoder, blob));
            if let Some((blob, decoders)) = &exact {
                keep(&mut found.lossless[i], decoding(&decoders[i], blob));
            }
        }
    }
    found
}

/// Weights a second that a backend decodes within the cache, one sample a round, and that over those of the lossless blob,
/// if there is one.
#[derive(Clone, Default)]
struct Cached {
    rates: Vec<f64>,
    of_lossless: Vec<f64>,
}

fn within_cache(blob: &[u8], lossless: Option<&[u8]>, settings: &Settings, threads: usize) -> Vec<Cached> {
    let decoders = decoders(blob);
    let exact = lossless.map(|blob| (blob, self::decoders(blob)));
    let len = CACHED * decoders[0].header().spec.dtype.size();
    let mut outs: Vec<Buffer> = (0..threads).map(|_| Buffer::new(len)).collect();
    let mut found = vec![Cached::default(); decoders.len()];
    for round in 0..=settings.rounds {
        for (i, (decoder, found)) in decoders.iter().zip(&mut found).enumerate() {
            let mut rate = |decoder: &Decoder, blob: &[u8]| {
                let seconds = time(|| {
                    std::thread::scope(|scope| {
                        for out in &mut outs {
                            scope.spawn(|| {
                                for _ in 0..settings.repeats {
                                    decode(decoder, black_box(blob), 0, out.as_mut_slice());
                                }
                            });
                        }
                    });
                });
                (threads * settings.repeats * CACHED) as f64 / seconds / 1e9
            };
            let own = rate(decoder, blob);
            let of_lossless = exact.as_ref().map(|(blob, decoders)| own / rate(&decoders[i], blob));
            if round > 0 {
                found.rates.push(own);
                found.of_lossless.extend(of_lossless);
            }
        }
    }
    found
}

fn decoders(blob: &[u8]) -> Vec<Decoder> {
    let open = |backend| Decoder::with_backend(blob, backend).expect("own blob");
    Backend::available().into_iter().map(open).collect()
}

/// A blob of all weights, and one of the first [`CACHED`].
fn encode(source: &[u8], case: &Case) -> [Vec<u8>; 2] {
    let first = &source[..CACHED * case.dtype.size()];
    let mut word_coding = None;
    [source, first].map(|source| {
        let n = (source.len() / case.dtype.size()) as u64;
        // As a matrix: a grid has a unit for each row.
        let spec = TensorSpec::row_major(case.dtype, &[n / ROW, ROW]);
        let mantissa_bits = case.rounding.mantissa_bits();
        let options = EncodeOptions { mantissa_bits, profile: case.profile, ..EncodeOptions::default() };
        let coding = || case.rounding.coding(source, &spec, &options);
        let coding: Coding = match case.rounding {
            // Both in the same code.
            Lossless | Mantissa(_) => word_coding.get_or_insert_with(coding).clone(),
            Grid { .. } | Codebook(_) => coding(),
        };
        codec::encode_as(source, &spec, options.block_len, &coding).expect("surveyed input")
    })
}

/// The lossless blob of weights of a dtype, and that of the first of them.
type Exact = (Dtype, [Vec<u8>; 2]);

/// The rows of a case: one for each backend and number of threads.
fn measure(case: &Case, settings: &Settings, out: &mut Buffer, exact: &mut Vec<Exact>) -> Vec<Value> {
    let size = case.dtype.size();
    let source = Buffer::of(&weights(settings.bytes / size, case.dtype, case.through));
    let [blob, small] = encode(source.as_slice(), case);
    let limit = shuffles::limit(&Decoder::open(&small).expect("own blob"), &small);
    let bits = blob.len() as f64 * 8.0 / (settings.bytes / size) as f64;
    check(&blob, case, &source, out);
    let is_other = matches!(case.rounding, Grid { .. } | Codebook(_));
    let [lossless, small_lossless] = match exact.iter().find(|(dtype, _)| is_other && *dtype == case.dtype) {
        Some((_, [blob, small])) => [Some(&blob[..]), Some(&small[..])],
        None => [None; 2],
    };
    let mut rows = Vec::new();
    for &threads in &settings.threads {
        let slow = to_memory(&source, &blob, lossless, out, settings.rounds, threads);
        let fast = within_cache(&small, small_lossless, settings, threads);
        let each = slow.decodes.iter().zip(&slow.lossless).zip(fast);
        for (backend, ((times, exact), Cached { rates, of_lossless: cached })) in
            Backend::available().iter().zip(each)
        {
            let of = |copies: &[f64]| -> Vec<f64> { copies.iter().zip(times).map(|(c, d)| c / d).collect() };
            let (streaming, memcpy) = (of(&slow.streaming), of(&slow.memcpy));
            let gbps: Vec<f64> = times.iter().map(|d| settings.bytes as f64 / d / 1e9).collect();
            let limit = limit.filter(|_| backend.name == "avx512").map(|limit| limit * threads as f64);
            println!(
                "{:<32} {:>7} {threads:>7} {bits:>7.2} {:>15.2} {:>10.2} {:>8.2} {:>12.2} {:>7}",
                case.name,
                backend.name,
                median(&streaming),
                median(&memcpy),
                median(&gbps),
                median(&rates),
                limit.map_or("-".to_string(), |limit| format!("{limit:.2}"))
            );
            let of_lossless: Vec<f64> = exact.iter().zip(times).map(|(exact, own)| exact / own).collect();
            let is_first = (backend.name, threads) == ("avx512", 1);
            let compared = is_first && lossless.is_some();
            let target = match (backend.name, threads) {
                ("avx512", 1) => case.targets[0],
                ("avx2", 1) => case.targets[1],
                _ => None,
            };
            let at_least = |of: &str, least: f64, digits: u8| json!({"target": {"of": of, "at_least": least, "digits": digits}});
            let in_cache = match case.name == "bfloat16" && is_first {
                true => Some(at_least(IN_CACHE, CACHED_TARGET, 0)),
                false => compared.then(|| at_least(CACHED_OF_LOSSLESS, OF_LOSSLESS, 2)),
            };
            let to_memory = match target {
                Some(least) => Some(at_least(STREAMING, least, 2)),
                None => compared.then(|| at_least(MEMORY_OF_LOSSLESS, OF_LOSSLESS, 2)),
            };
            let some =
                |samples: &[f64]| (!samples.is_empty()).then(|| json!({"samples": samples, "digits": 2}));
            rows.push(json!([
                case.name,
                {"value": bits, "digits": 2},
                backend.name,
                threads.to_string(),
                {"samples": streaming, "digits": 2},
                {"samples": memcpy, "digits": 2},
                {"samples": gbps, "digits": 1},
                {"samples": rates, "digits": 2},
                some(&of_lossless),
                some(&cached),
                limit.map(|limit| json!({"value": limit, "digits": 1})),
                in_cache,
                to_memory,
            ]));
        }
    }
    if case.rounding == Lossless && case.dtype == case.through && exact.iter().all(|(d, _)| *d != case.dtype)
    {
        exact.push((case.dtype, [blob, small]));
    }
    rows
}

/// What is measured must also be right: every backend gives the rounded weights, the first tells which those are.
fn check(blob: &[u8], case: &Case, source: &Buffer, out: &mut Buffer) {
    let mut expected = source.as_slice().to_vec();
    if case.rounding != Lossless {
        expected = codec::decode(blob).expect("own blob");
    }
    for decoder in decoders(blob) {
        out.as_mut_slice().fill(0xa5);
        decode(&decoder, blob, 0, out.as_mut_slice());
        assert!(expected == out.as_slice(), "{}: decoding gives other weights", case.name);
    }
}

const STREAMING: &str = "of a streaming copy";
const IN_CACHE: &str = "in cache, Gweights/s";
const MEMORY_OF_LOSSLESS: &str = "of lossless";
const CACHED_OF_LOSSLESS: &str = "of lossless, in cache";
const COLUMNS: [&str; 13] = [
    "weights",
    "bits a weight",
    "backend",
    "threads",
    STREAMING,
    "of memcpy",
    "GB/s",
    IN_CACHE,
    MEMORY_OF_LOSSLESS,
    CACHED_OF_LOSSLESS,
    "limit of the shuffle port",
    "target in cache",
    "target",
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` passes --test.
    let quick = arguments.iter().any(|a| a == "--quick" || a == "--test");
    let report = arguments.iter().position(|a| a == "--json").and_then(|at| arguments.get(at + 1));
    let mib = arguments.iter().find_map(|a| a.parse::<usize>().ok());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if cores > 1 { vec![1, 2] } else { vec![1] };
    let settings = if quick {
        Settings { bytes: mib.unwrap_or(1) << 20, rounds: 2, repeats: 2, threads }
    } else {
        // The tensor, its blob, the output and the encoder's copy of the blob are held at a time.
        let most = available_memory().map_or(usize::MAX, |bytes| bytes / 6);
        let bytes = mib.map_or((2 * largest_cache()).clamp(256 << 20, most.max(256 << 20)), |mib| mib << 20);
        Settings { bytes: bytes >> 20 << 20, rounds: 7, repeats: 100, threads }
    };
    let mib = settings.bytes >> 20;
    println!("{mib} MiB decoded to the weights' own dtype; ratios are of output bytes a second");
    println!(
        "{:<32} {:>7} {:>7} {:>7} {:>15} {:>10} {:>8} {:>12} {:>7}",
        "weights",
        "backend",
        "threads",
        "b/w",
        "of stream. copy",
        "of memcpy",
        "GB/s",
        "cache, Gw/s",
        "limit"
    );
    let mut out = Buffer::new(settings.bytes);
    // The first of a dtype is the compact one.
    let mut exact = Vec::new();
    let rows: Vec<Value> =
        CASES.iter().flat_map(|case| measure(case, &settings, &mut out, &mut exact)).collect();
    if let Some(path) = report {
        let about = format!(
            "{mib} MiB are decoded to the weights' own dtype in memory (the largest cache has {} MiB), and copied \
             there from a plain tensor: with {}, and with `memcpy`. \"Of\" a copy is its time over the time of \
             decoding, in the same round. The weights are normal numbers with a log-normal scale a row. `scalar` \
             is plain Rust, `avx2` and `avx512` are written by hand. In cache: \
             {CACHED} weights a thread, again and again. The limit of the shuffle port is what the AVX-512 decoder \
             could reach if nothing but its {} took time, at the {:.2} x 10^9 a second that this machine was found to \
             execute. \"Of lossless\" is the speed over that of decoding lossless weights of the dtype, in the same \
             round: to memory, and in cache. Its target is {OF_LOSSLESS} for grids and codebooks.",
            largest_cache() >> 20,
            streaming_kind(),
            shuffles::ABOUT,
            shuffles::per_second().unwrap_or_default() / 1e9,
        );
        let table = json!({"title": "", "columns": COLUMNS, "rows": rows});
        write_report(path, &about, &table);
    }
}
