//! Kernels on a CUDA device: decoding against copies within the device, products against cuBLAS.
//!
//! `cargo bench --bench gpu [-- [--quick] [--json FILE]]`. Without a CUDA driver it says that it skips; with
//! `REQUIRE_GPU=1` that is a failure. Times are taken with events of the device, around launches that rotate among
//! copies of the weight, so that no cache holds it; all sides are measured in turn in each round.

#[allow(dead_code)] // the clock is the device's
#[path = "common/mod.rs"]
mod common;

use std::error::Error;
use std::ffi::c_void;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use cudarc::cublas::{result as blas, sys as blas_sys};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, result, sys};
use nz_onnx::codec::{self, EncodeOptions, Profile};
use nz_onnx::cuda;
use nz_onnx::cuda::device::{Kernels, is_driver_present};
use nz_onnx::cuda::job::{DeviceWeight, Output, WeightMemory, check_status};
use nz_onnx::cuda::port::Device as _;
use nz_onnx::cuda::product::{MOST_ROWS, Operands};
use nz_onnx::format::{Dtype, Header, TensorSpec};
use serde_json::{Value, json};

use common::weights;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Copies of a weight that launches rotate among.
const COPIES: usize = 3;
/// Launches between two events.
const REPEATS: usize = 24;
const PROFILES: [(&str, Profile); 2] = [("compact", Profile::Compact), ("gpu", Profile::Gpu)];

struct Gpu {
    kernels: Kernels,
    stream: Arc<CudaStream>,
    rounds: usize,
}

/// A blob in several places of the device's memory.
struct Weight {
    plan: DeviceWeight,
    copies: Vec<[CudaSlice<u8>; 2]>,
    bits: f64,
}

/// What one side of a comparison does for launch `i`.
type Side<'a> = Box<dyn Fn(usize) -> Outcome<()> + 'a>;

impl Gpu {
    fn put(&self, bytes: &[u8]) -> Outcome<CudaSlice<u8>> {
        Ok(self.stream.clone_htod(bytes)?)
    }

    fn room(&self, bytes: u64) -> Outcome<CudaSlice<u8>> {
        Ok(self.stream.alloc_zeros(bytes as usize)?)
    }

    fn at(&self, memory: &CudaSlice<u8>) -> u64 {
        memory.device_ptr(&self.stream).0
    }

    fn raw_stream(&self) -> *mut c_void {
        self.stream.cu_stream().cast()
    }

    fn weight(&self, src: &[u8], spec: &TensorSpec, options: &EncodeOptions) -> Outcome<Weight> {
        let blob = codec::encode(src, spec, options)?;
        let plan = DeviceWeight::new(&Header::parse(&blob)?)?;
        let copies = (0..COPIES).map(|_| Ok([self.put(&blob)?, self.put(plan.table())?]));
        let bits = 8.0 * blob.len() as f64 / plan.elements() as f64;
        Ok(Weight { copies: copies.collect::<Outcome<_>>()?, plan, bits })
    }

    fn memory(&self, weight: &Weight, i: usize) -> WeightMemory {
        let [blob, table] = &weight.copies[i % COPIES];
        WeightMemory { blob: self.at(blob), table: self.at(table) }
    }

    /// Seconds of a launch of each side, by round.
    fn measure(&self, sides: &[Side<'_>]) -> Outcome<Vec<Vec<f64>>> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let mut found = vec![Vec::new(); sides.len()];
        for round in 0..=self.rounds {
            for (side, times) in sides.iter().zip(&mut found) {
                let start = self.stream.record_event(flags)?;
                (0..REPEATS).try_for_each(side)?;
                let end = self.stream.record_event(flags)?;
                // The first round warms up and is dropped.
                let seconds = f64::from(start.elapsed_ms(&end)?) / 1e3 / REPEATS as f64;
                if round > 0 {
                    times.push(seconds);
                }
            }
        }
        Ok(found)
    }

    fn verdict(&self, status: &CudaSlice<u8>) -> Outcome<()> {
        let word = self.stream.clone_dtoh(status)?;
        Ok(check_status(u32::from_le_bytes(word.as_slice().try_into()?))?)
    }
}

fn samples(values: impl Iterator<Item = f64>, digits: usize) -> Value {
    json!({ "samples": values.collect::<Vec<_>>(), "digits": digits })
}

/// `[k, n]` in column tiles, or `[n, k]` row by row.
fn specs(dtype: Dtype, k: u64, n: u64) -> [(&'static str, TensorSpec); 2] {
    [
        ("[N, K] rows", TensorSpec::row_major(dtype, &[n, k])),
        ("[K, N] tiles", TensorSpec::column_tiles(dtype, k, n, 256)),
    ]
}

fn decoding(gpu: &Gpu, side: u64) -> Outcome<Value> {
    let mut rows = Vec::new();
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let src = weights((side * side) as usize, dtype, dtype);
        let bytes = src.len() as u64;
        let (out, status, source) = (gpu.room(bytes)?, gpu.room(4)?, gpu.put(&src)?);
        for (order, spec) in specs(dtype, side, side) {
            let encoded = PROFILES.map(|(_, profile)| {
                gpu.weight(&src, &spec, &EncodeOptions { profile, ..Default::default() })
            });
            let [compact, fast] = encoded;
            let all = [compact?, fast?];
            let mut sides: Vec<Side<'_>> = vec![Box::new(|_| {
                // SAFETY: both are `bytes` long, and live until the stream is waited for.
                let copied = unsafe {
                    result::memcpy_dtod_async(
                        gpu.at(&out),
                        gpu.at(&source),
                        bytes as usize,
                        gpu.stream.cu_stream(),
                    )
                };
                Ok(copied?)
            })];
            for weight in &all {
                sides.push(Box::new(|i| {
                    let output = Output { dtype, address: gpu.at(&out), status: gpu.at(&status) };
                    let launch = weight.plan.decode_all(gpu.memory(weight, i), output)?;
                    // SAFETY: all memory lives until the stream is waited for.
                    Ok(unsafe { gpu.kernels.launch(gpu.raw_stream(), &launch) }?)
                }));
            }
            let times = gpu.measure(&sides)?;
            drop(sides);
            gpu.verdict(&status)?;
            if gpu.stream.clone_dtoh(&out)? != src {
                return Err(format!("{} {order}: the device decodes something else", dtype.name()).into());
            }
            for ((name, _), (weight, found)) in PROFILES.iter().zip(all.iter().zip(&times[1..])) {
                let rate = found.iter().map(|seconds| bytes as f64 / seconds / 1e12);
                let of_copy = found.iter().zip(&times[0]).map(|(decode, copy)| copy / decode);
                rows.push(json!([
                    dtype.name(),
                    order,
                    name,
                    { "value": weight.bits, "digits": 2 },
                    samples(rate, 2),
                    samples(of_copy, 2),
                ]));
            }
        }
    }
    Ok(json!({
        "title": format!("Decoding {side} x {side} weights, lossless"),
        "columns": ["dtype", "stored", "profile", "bits a weight", "TB/s of output", "of a copy"],
        "rows": rows,
    }))
}

/// The whole of it, the host's part and reading back included, beside the CPU's encoder.
fn encoding(gpu: &Gpu, side: u64) -> Outcome<Value> {
    let mut rows = Vec::new();
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let src = weights((side * side) as usize, dtype, dtype);
        let source = gpu.put(&src)?;
        gpu.stream.synchronize()?;
        for (order, spec) in specs(dtype, side, side) {
            for (name, profile) in PROFILES {
                let options = EncodeOptions { profile, ..Default::default() };
                let (mut device, mut host) = (Vec::new(), Vec::new());
                for round in 0..=gpu.rounds {
                    let start = Instant::now();
                    // SAFETY: the tensor lives until this is done, and is on the device by now.
                    let encoded = unsafe {
                        cuda::encode(&gpu.kernels, gpu.raw_stream(), gpu.at(&source), &spec, &options)
                    }?;
                    let first = start.elapsed();
                    let start = Instant::now();
                    let expected = codec::encode(&src, &spec, &options)?;
                    let second = start.elapsed();
                    if encoded.blob() != expected {
                        return Err(format!("{} {order}: the device encodes otherwise", dtype.name()).into());
                    }
                    // The first round warms up and is dropped.
                    if round > 0 {
                        device.push(first.as_secs_f64());
                        host.push(second.as_secs_f64());
                    }
                }
                let rate = |times: &[f64]| {
                    let rates: Vec<f64> =
                        times.iter().map(|seconds| src.len() as f64 / seconds / 1e9).collect();
                    samples(rates.into_iter(), 2)
                };
                let gain = host.iter().zip(&device).map(|(host, device)| host / device);
                rows.push(json!([dtype.name(), order, name, rate(&device), rate(&host), samples(gain, 2)]));
            }
        }
    }
    Ok(json!({
        "title": format!("Encoding {side} x {side} weights that are on the device, lossless"),
        "columns": ["dtype", "stored", "profile", "GB/s of source", "CPU, GB/s of source", "times as fast"],
        "rows": rows,
    }))
}

/// A cuBLAS handle on the stream; none if there is no cuBLAS.
fn cublas(gpu: &Gpu) -> Outcome<Option<blas_sys::cublasHandle_t>> {
    // SAFETY: looks for the library by its name.
    if !unsafe { blas_sys::is_culib_present() } {
        return Ok(None);
    }
    let handle = blas::create_handle()?;
    // SAFETY: the handle is new, the stream lives as long as the program.
    unsafe { blas::set_stream(handle, gpu.stream.cu_stream().cast()) }?;
    Ok(Some(handle))
}

/// Square products by cuBLAS, sums in float32.
struct Gemm {
    handle: blas_sys::cublasHandle_t,
    element: blas_sys::cudaDataType_t,
    side: i32,
    /// Whether the weight is `[N, K]`.
    transposed: bool,
}

impl Gemm {
    /// `Y = X W` for `m` rows; addresses on the device.
    ///
    /// # Safety
    /// They are those of matrices of just these sizes, which live until the stream is waited for.
    unsafe fn multiply(&self, m: u32, [w, x, y]: [u64; 3]) -> Outcome<()> {
        use blas_sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        let (n, alpha, beta) = (self.side, 1f32, 0f32);
        let op = if self.transposed { CUBLAS_OP_T } else { CUBLAS_OP_N };
        // Column by column this is Y^T = W^T X^T. SAFETY: the caller's.
        let done = unsafe {
            blas::gemm_ex(
                self.handle,
                op,
                CUBLAS_OP_N,
                n,
                m as i32,
                n,
                (&raw const alpha).cast(),
                w as *const c_void,
                self.element,
                n,
                x as *const c_void,
                self.element,
                n,
                (&raw const beta).cast(),
                y as *mut c_void,
                self.element,
                n,
                blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        Ok(done?)
    }
}

/// Weights whose products are measured: name, profile, mantissa bits that are kept. Of 16 bits, 4 mantissa bits are half.
const PRODUCTS: [(&str, Profile, Option<u8>); 3] = [
    ("lossless, compact", Profile::Compact, None),
    ("lossless, gpu", Profile::Gpu, None),
    ("4 mantissa bits, gpu", Profile::Gpu, Some(4)),
];

/// Straight from the blob, or, of more rows than the kernels take, decoded and multiplied by cuBLAS: beside cuBLAS alone.
fn products(gpu: &Gpu, side: u64, dtype: Dtype) -> Outcome<Value> {
    let src = weights((side * side) as usize, dtype, dtype);
    let plain = (0..COPIES).map(|_| gpu.put(&src)).collect::<Outcome<Vec<_>>>()?;
    let decoded = gpu.room(src.len() as u64)?;
    let (handle, mut rows) = (cublas(gpu)?, Vec::new());
    let element = match dtype {
        Dtype::F16 => blas_sys::cudaDataType_t::CUDA_R_16F,
        _ => blas_sys::cudaDataType_t::CUDA_R_16BF,
    };
    for (order, spec) in specs(dtype, side, side) {
        let transposed = matches!(spec.layout, nz_onnx::format::Layout::RowMajor);
        let gemm = handle.map(|handle| Gemm { handle, element, side: side as i32, transposed });
        for (name, profile, mantissa_bits) in PRODUCTS {
            let options = EncodeOptions { profile, mantissa_bits, ..Default::default() };
            let weight = gpu.weight(&src, &spec, &options)?;
            for m in [1u32, 2, 4, 8, 16, 32, 64, 128] {
                let x = gpu.put(&weights(m as usize * side as usize, dtype, dtype))?;
                let (y, status) = (gpu.room(u64::from(m) * side * 2)?, gpu.room(4)?);
                let [x_at, y_at, status_at] = [&x, &y, &status].map(|memory| gpu.at(memory));
                let partial;
                let with_tensor_cores = match gpu.kernels.has_tensor_cores() {
                    true => weight.plan.tensor_product(m, dtype),
                    false => None,
                };
                let how = match with_tensor_cores {
                    Some(_) => "from the blob, tensor cores",
                    None if m <= MOST_ROWS => "from the blob",
                    None => "decoded, cuBLAS",
                };
                let from_blob = match with_tensor_cores {
                    None if m <= MOST_ROWS => Some(weight.plan.product(m)?),
                    product => product,
                };
                let ours: Side<'_> = if let Some(product) = from_blob {
                    partial = gpu.room(product.partial_bytes())?;
                    let (partial, weight) = (gpu.at(&partial), &weight);
                    Box::new(move |i| {
                        let operands = Operands {
                            dtype,
                            x: x_at,
                            y: y_at,
                            partial,
                            status: status_at,
                            alpha: 1.0,
                            addend: None,
                        };
                        for launch in product.launches(gpu.memory(weight, i), operands)? {
                            // SAFETY: all memory lives until the stream is waited for.
                            unsafe { gpu.kernels.launch(gpu.raw_stream(), &launch) }?;
                        }
                        Ok(())
                    })
                } else if let Some(gemm) = &gemm {
                    let (output, weight) = (gpu.at(&decoded), &weight);
                    Box::new(move |i| {
                        let to = Output { dtype, address: output, status: status_at };
                        let launch = weight.plan.decode_all(gpu.memory(weight, i), to)?;
                        // SAFETY: as above; the matrices have just these sizes.
                        unsafe {
                            gpu.kernels.launch(gpu.raw_stream(), &launch)?;
                            gemm.multiply(m, [output, x_at, y_at])
                        }
                    })
                } else {
                    continue;
                };
                let mut sides = vec![ours];
                if let Some(gemm) = &gemm {
                    let plain = &plain;
                    // SAFETY: matrices of just these sizes, which live until the stream is waited for.
                    sides.push(Box::new(move |i| unsafe {
                        gemm.multiply(m, [gpu.at(&plain[i % COPIES]), x_at, y_at])
                    }));
                }
                let times = gpu.measure(&sides)?;
                drop(sides);
                gpu.verdict(&status)?;
                let micros = |times: &Vec<f64>| samples(times.iter().map(|seconds| seconds * 1e6), 1);
                let gain = times.get(1).map_or(Value::Null, |plain| {
                    samples(plain.iter().zip(&times[0]).map(|(plain, ours)| plain / ours), 2)
                });
                rows.push(json!([
                    order,
                    name,
                    { "value": weight.bits, "digits": 2 },
                    m.to_string(),
                    how,
                    micros(&times[0]),
                    times.get(1).map_or(json!("no cuBLAS"), micros),
                    gain,
                ]));
            }
        }
    }
    Ok(json!({
        "title": format!("Products with a {} weight of {side} x {side}", dtype.name()),
        "columns": ["stored", "weight", "bits a weight", "rows", "how", "us", "cuBLAS, us", "times as fast"],
        "rows": rows,
    }))
}

fn run(quick: bool, report: Option<String>) -> Outcome<()> {
    let kernels = Kernels::load(0)?;
    let stream = kernels.context().new_stream()?;
    let name = kernels.context().name()?;
    let gpu = Gpu { kernels, stream, rounds: if quick { 3 } else { 15 } };
    let side = if quick { 2048 } else { 8192 };
    let about = format!(
        "On a {name}: kernels alone, without ONNX Runtime. A time is that of {REPEATS} launches between two events of the \
         device, over their number; they rotate among {COPIES} copies of the weight. Weights are normally distributed. A \
         product is two launches, or a decoding and cuBLAS. Encoding is timed by the host's clock, blob and checksum on the host included."
    );
    let products = |dtype| products(&gpu, side, dtype);
    let tables =
        vec![decoding(&gpu, side)?, products(Dtype::Bf16)?, products(Dtype::F16)?, encoding(&gpu, side)?];
    let text = format!("{:#}\n", json!({ "about": [about], "tables": tables }));
    match report {
        Some(path) => std::fs::write(path, text)?,
        None => print!("{text}"),
    }
    Ok(())
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (mut quick, mut report) = (false, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--json" => report = arguments.next(),
            other => {
                eprintln!("gpu: unknown argument '{other}'; usage: gpu [--quick] [--json FILE]");
                return ExitCode::from(2);
            }
        }
    }
    if !is_driver_present() {
        let required = std::env::var("REQUIRE_GPU").is_ok_and(|value| value == "1");
        eprintln!("SKIPPED: no CUDA driver on this machine; REQUIRE_GPU=1 makes this a failure");
        return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    match run(quick, report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpu: {error}");
            ExitCode::FAILURE
        }
    }
}
