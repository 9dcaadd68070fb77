//! `roofline FOLDER [KERNEL]`: the table of docs/cuda.md that says what each kernel reads, writes and does for a weight, from the
//! machine code in FOLDER (`nvdisasm -c` of what ptxas makes). With KERNEL its lines alone, and its instructions: how often
//! each is done for a thread block. `cargo xtask cuda` calls it.

#[path = "../tests/common/twin.rs"]
mod twin;

use std::path::Path;
use std::ptr;

use half::{bf16, f16};
use nz_cpp_twin::sass::{Kind, Program, Work};
use nz_onnx::codec::{self, EncodeOptions, Profile};
use nz_onnx::cuda;
use nz_onnx::cuda::job::{DeltaMemory, DeviceDelta, DeviceWeight, Indices, Output, WeightMemory};
use nz_onnx::cuda::port::Device;
use nz_onnx::cuda::product::Operands;
use nz_onnx::format::{Dtype, Header, TensorSpec};
use twin::Twin;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Rows and columns of the weights.
const SIDE: u64 = 8192;
/// Weights that are different; they repeat.
const POOL: usize = 1 << 20;
/// Thread blocks of a launch that are run.
const BLOCKS: u32 = 128;
/// An H200: bytes a second of a copy, and of lane instructions, all of them and those on 32-bit integers.
const BANDWIDTH: f64 = 4.3e12;
const RATES: [f64; 2] = [33e12, 17e12];
/// Bytes by which rates and sizes are told.
const MB: f64 = 1e6;

const BF16: (Dtype, &str) = (Dtype::Bf16, "bfloat16");

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Normally distributed: by Box and Muller.
    fn normal(&mut self) -> f64 {
        let [radius, angle] = [(); 2].map(|()| (self.next() >> 11) as f64 / (1u64 << 53) as f64);
        (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }
}

/// The bits of a value that is rounded to `dtype`; of integers a value of deviation 1 becomes one of 32.
fn put(dtype: Dtype, value: f64, out: &mut Vec<u8>) {
    match dtype {
        Dtype::F32 => out.extend((value as f32).to_le_bytes()),
        Dtype::F16 => out.extend(f16::from_f64(value).to_le_bytes()),
        Dtype::Bf16 => out.extend(bf16::from_f64(value).to_le_bytes()),
        Dtype::I8 | Dtype::U8 => out.push((value * 1600.0).round().clamp(-128.0, 127.0) as i8 as u8),
    }
}

/// Weights of deviation 0.02 and, beside them, the same with `change` times as much added.
fn weights(dtype: Dtype, n: u64, change: f64) -> [Vec<u8>; 2] {
    let mut rng = Rng(1);
    let mut pools = [Vec::new(), Vec::new()];
    for _ in 0..POOL {
        let (weight, more) = (rng.normal(), rng.normal());
        put(dtype, 0.02 * weight, &mut pools[0]);
        put(dtype, 0.02 * (weight + change * more), &mut pools[1]);
    }
    pools.map(|pool| {
        let mut all = pool.repeat((n as usize).div_ceil(POOL));
        all.truncate(n as usize * dtype.size());
        all
    })
}

/// Device memory, which is freed with it.
struct Memory<'d>(&'d Twin, u64);

impl<'d> Memory<'d> {
    fn room(device: &'d Twin, bytes: u64) -> Outcome<Self> {
        Ok(Memory(device, device.allocate(bytes)?))
    }

    fn holding(device: &'d Twin, bytes: &[u8]) -> Outcome<Self> {
        let memory = Memory::room(device, bytes.len() as u64)?;
        // SAFETY: new memory of this length.
        unsafe { device.write(bytes, memory.1) }?;
        Ok(memory)
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        // SAFETY: from `allocate`, and no kernel runs.
        unsafe { self.0.free(self.1) }
    }
}

/// A line of the table.
struct Line {
    kernel: &'static str,
    workload: String,
    /// Of a weight in the blob, or both blobs.
    bits: f64,
    /// Weights that the kernel was run for, of so many.
    done: f64,
    of: f64,
    /// Bytes that are read whole in any case.
    fixed: f64,
    work: Work,
}

impl Line {
    fn print(&self) {
        let Line { kernel, workload, bits, done, of, fixed, work } = self;
        let scale = of / done;
        let (read, written) = ((work.read as f64 - fixed) * scale + fixed, work.written as f64 * scale);
        let each = |instructions: u64| instructions as f64 * 32.0 / done;
        let total = each(work.total());
        let of_kind = |kind: Kind| each(work.instructions.get(&kind).copied().unwrap_or(0));
        let others = of_kind(Kind::Slow) + of_kind(Kind::Control) + of_kind(Kind::Uniform);
        let [fast, slow] = RATES.map(|rate| total * of / rate * 1e6);
        println!(
            "| `{kernel}` | {workload} | {bits:.1} | {:.1} MB | {:.1} MB | **{total:.1}** | {:.1} + {:.1} + {:.1} + {:.1} + {others:.1} | {:.0} us | {fast:.0} to {slow:.0} us |",
            read / MB,
            written / MB,
            of_kind(Kind::Integer),
            of_kind(Kind::Product),
            of_kind(Kind::Real),
            of_kind(Kind::Memory),
            (read + written) / BANDWIDTH * 1e6,
        );
    }
}

/// What all lines need.
struct Bench {
    device: Twin,
    listed: Option<String>,
}

/// How a weight is stored, told in words.
#[derive(Clone, Copy)]
struct Stored {
    dtype: (Dtype, &'static str),
    profile: (Profile, &'static str),
    mantissa_bits: Option<u8>,
    is_tiled: bool,
}

/// What of a product is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Parts,
    Sums,
    /// Parts, of a delta.
    Delta,
    /// Parts, with tensor cores.
    TensorCores,
}

const GPU: (Profile, &str) = (Profile::Gpu, "gpu");
const COMPACT: (Profile, &str) = (Profile::Compact, "compact");

impl Stored {
    fn new(dtype: (Dtype, &'static str), profile: (Profile, &'static str)) -> Self {
        Stored { dtype, profile, mantissa_bits: None, is_tiled: false }
    }

    fn tiled(self) -> Self {
        Stored { is_tiled: true, ..self }
    }

    fn spec(&self, rows: u64, columns: u64) -> TensorSpec {
        match self.is_tiled {
            true => TensorSpec::column_tiles(self.dtype.0, rows, columns, 256),
            false => TensorSpec::row_major(self.dtype.0, &[rows, columns]),
        }
    }

    fn options(&self) -> EncodeOptions {
        EncodeOptions {
            profile: self.profile.0,
            mantissa_bits: self.mantissa_bits,
            ..EncodeOptions::default()
        }
    }

    fn told(&self) -> String {
        let cut = self.mantissa_bits.map_or(String::new(), |bits| format!(" cut to {bits} mantissa bits"));
        let order = if self.is_tiled { ", tiles of 256 columns" } else { "" };
        format!("{}{cut}, {}{order}", self.dtype.1, self.profile.1)
    }
}

impl Bench {
    fn wants(&self, kernel: &str) -> bool {
        self.listed.as_deref().is_none_or(|listed| listed == kernel)
    }

    /// Prints the line of the only launch since the last one.
    fn tell(&self, workload: String, blobs: &[&[u8]], done: f64, fixed: f64) -> Outcome<()> {
        let of = (SIDE * SIDE) as f64;
        for (kernel, work) in self.device.take_work() {
            let bits = blobs.iter().map(|blob| blob.len()).sum::<usize>() as f64 * 8.0 / of;
            self.list(kernel, &work, done);
            Line { kernel, workload: workload.clone(), bits, done, of, fixed, work }.print();
        }
        Ok(())
    }

    /// Prints the instructions of the kernel that was asked for: how often for a thread block of 4096 weights.
    fn list(&self, kernel: &str, work: &Work, done: f64) {
        if self.listed.as_deref() == Some(kernel) {
            for (text, count) in &work.listing {
                println!("{:9.2}  {text}", *count as f64 * 4096.0 / done);
            }
        }
    }

    fn check(&self, status: &Memory<'_>) -> Outcome<()> {
        let word = self.device.bytes_at(status.1);
        if word == [0; 4] { Ok(()) } else { Err(format!("a kernel's verdict is {word:?}").into()) }
    }

    /// Decodes part of a weight to `out`, or rows of it.
    fn decode(&self, stored: Stored, out: (Dtype, &str), row_len: u64, rows: bool) -> Outcome<()> {
        let device = &self.device;
        let spec = stored.spec(SIDE * SIDE / row_len, row_len);
        let [src, _] = weights(stored.dtype.0, SIDE * SIDE, 0.0);
        let blob = codec::encode(&src, &spec, &stored.options())?;
        let plan = DeviceWeight::new(&Header::parse(&blob)?)?;
        let (table, blob_at) = (Memory::holding(device, plan.table())?, Memory::holding(device, &blob)?);
        let (to, status) =
            (Memory::room(device, SIDE * SIDE * out.0.size() as u64)?, Memory::holding(device, &[0; 4])?);
        let memory = WeightMemory { blob: blob_at.1, table: table.1 };
        let output = Output { dtype: out.0, address: to.1, status: status.1 };
        // Any rows, none twice.
        let all_rows = SIDE * SIDE / row_len;
        let indices: Vec<i64> = (0..(1 << 19) / row_len).map(|i| (i * 4099 % all_rows) as i64).collect();
        let mut launch = if rows {
            let indices = Indices { address: indices.as_ptr() as u64, count: indices.len() as u64, size: 8 };
            plan.gather(memory, output, indices)?
        } else {
            plan.decode_all(memory, output)?
        };
        let blocks = u64::from(launch.grid.0) * u64::from(launch.grid.1);
        let done = if rows {
            indices.len() as u64 * row_len
        } else if stored.is_tiled {
            // The first blocks of the first tile.
            let of_launch = if launch.arguments.lean_blocks > 0 { launch.threads / 32 } else { 1 };
            launch.grid = (BLOCKS, 1);
            u64::from(BLOCKS * of_launch) * 4096
        } else {
            launch.grid.0 = launch.grid.0.min(BLOCKS);
            (SIDE * SIDE) * u64::from(launch.grid.0) / blocks
        };
        // SAFETY: all memory is alive.
        unsafe { device.decode(ptr::null_mut(), &launch) }?;
        self.check(&status)?;
        if stored.dtype.0 == out.0 && stored.mantissa_bits.is_none() && !stored.is_tiled && !rows {
            let bytes = done as usize * out.0.size();
            let mut found = vec![0; bytes];
            // SAFETY: as long as the output is, and no kernel runs.
            unsafe { device.read(to.1, &mut found) }?;
            if found != src[..bytes] {
                return Err("weights are not what they were".into());
            }
        }
        let what = match rows {
            true => format!("rows of {row_len} by index: {}", stored.told()),
            false => stored.told(),
        };
        let what = if stored.dtype.0 == out.0 { what } else { format!("{what}, to {}", out.1) };
        self.tell(what, &[&blob], done as f64, 0.0)
    }

    /// Multiplies `m` rows with part of a weight, or adds up the sums of all of it.
    fn multiply(&self, stored: Stored, m: u32, what: What) -> Outcome<()> {
        let device = &self.device;
        let (tuned, whole) = (what == What::Delta, what == What::Sums);
        let spec = stored.spec(SIDE, SIDE);
        let [src, changed] = weights(stored.dtype.0, SIDE * SIDE, 0.004);
        let base = codec::encode(&src, &spec, &stored.options())?;
        let header = Header::parse(&base)?;
        let delta = if tuned { codec::encode_delta_to_blob(&changed, &base)? } else { Vec::new() };
        let base_at = Memory::holding(device, &base)?;
        let [x, y] = [(); 2].map(|()| Memory::holding(device, &vec![0; (u64::from(m) * SIDE * 2) as usize]));
        let (x, y, status) = (x?, y?, Memory::holding(device, &[0; 4])?);
        let operands = |partial: &Memory<'_>| Operands {
            dtype: Dtype::Bf16,
            x: x.1,
            y: y.1,
            partial: partial.1,
            status: status.1,
            alpha: 1.0,
            addend: None,
        };
        // Some blocks of a row-major weight, or a part of each tile.
        let all = (SIDE * SIDE) as f64;
        let cut = |grid: &mut (u32, u32)| -> f64 {
            let before = grid.0;
            grid.0 = before.min(if stored.is_tiled { 1 } else { BLOCKS });
            all * f64::from(grid.0) / f64::from(before)
        };
        let done;
        if tuned {
            let plan = DeviceDelta::new(&Header::parse(&delta)?, &header)?;
            let (table, delta_at) =
                (Memory::holding(device, plan.table())?, Memory::holding(device, &delta)?);
            let memory = DeltaMemory { blob: delta_at.1, table: table.1, base: base_at.1 };
            let product = plan.weight().product(m)?;
            let partial = Memory::room(device, product.partial_bytes())?;
            let (mut launch, _) = plan.multiply(memory, &product, operands(&partial))?;
            done = cut(&mut launch.grid);
            // SAFETY: all memory is alive.
            unsafe { device.multiply_delta(ptr::null_mut(), &launch) }?;
        } else {
            let plan = DeviceWeight::new(&header)?;
            let table = Memory::holding(device, plan.table())?;
            let memory = WeightMemory { blob: base_at.1, table: table.1 };
            let product = match what {
                What::TensorCores => {
                    plan.tensor_product(m, Dtype::Bf16).ok_or("no product with tensor cores")?
                }
                _ => plan.product(m)?,
            };
            let partial = Memory::room(device, product.partial_bytes())?;
            let [mut parts, sum] = product.launches(memory, operands(&partial))?;
            if whole {
                // SAFETY: all memory is alive.
                unsafe { device.multiply(ptr::null_mut(), &sum) }?;
                done = all;
            } else {
                done = cut(&mut parts.grid);
                // SAFETY: the same.
                unsafe { device.multiply(ptr::null_mut(), &parts) }?;
            }
        }
        self.check(&status)?;
        // Each thread block of a row-major weight reads all of X, of tiles its part.
        let fixed = if stored.is_tiled || whole { 0.0 } else { (u64::from(m) * SIDE * 2) as f64 };
        let rows = if m == 1 { "1 row".to_owned() } else { format!("{m} rows") };
        let what = match (whole, tuned) {
            (true, _) => format!("{rows}: sums of {}", stored.told()),
            (_, true) => format!("{rows}: {}, and a delta", stored.told()),
            _ => format!("{rows}: {}", stored.told()),
        };
        self.tell(what, &[&base, &delta], done, fixed)
    }

    /// Decodes part of a delta.
    fn decode_delta(&self, stored: Stored) -> Outcome<()> {
        let device = &self.device;
        let [src, changed] = weights(stored.dtype.0, SIDE * SIDE, 0.004);
        let base = codec::encode(&src, &stored.spec(SIDE, SIDE), &stored.options())?;
        let delta = codec::encode_delta_to_blob(&changed, &base)?;
        let plan = DeviceDelta::new(&Header::parse(&delta)?, &Header::parse(&base)?)?;
        let (table, base_at) = (Memory::holding(device, plan.table())?, Memory::holding(device, &base)?);
        let (blob, status) = (Memory::holding(device, &delta)?, Memory::holding(device, &[0; 4])?);
        let to = Memory::room(device, changed.len() as u64)?;
        let memory = DeltaMemory { blob: blob.1, table: table.1, base: base_at.1 };
        let output = Output { dtype: stored.dtype.0, address: to.1, status: status.1 };
        let mut launch = plan.decode(memory, |weight, memory| weight.decode_all(memory, output))?;
        let all = launch.grid.0;
        launch.grid.0 = all.min(BLOCKS);
        let done = SIDE * SIDE * u64::from(launch.grid.0) / u64::from(all);
        // SAFETY: all memory is alive.
        unsafe { device.decode_delta(ptr::null_mut(), &launch) }?;
        self.check(&status)?;
        let mut found = vec![0; done as usize * stored.dtype.0.size()];
        // SAFETY: not longer than the output is, and no kernel runs.
        unsafe { device.read(to.1, &mut found) }?;
        if found != changed[..found.len()] {
            return Err("weights are not what they were".into());
        }
        self.tell(format!("{}, and a delta", stored.told()), &[&base, &delta], done as f64, 0.0)
    }

    /// Surveys a weight, or measures and writes the first rows of it, whose counts do not depend on how many there are.
    fn encode(&self, stored: Stored, rows: u64, only: Option<(Program, &'static str)>) -> Outcome<()> {
        let survey = only.map(|(program, kernel)| Twin::running_only(program, kernel));
        let device = survey.as_ref().unwrap_or(&self.device);
        let [src, _] = weights(stored.dtype.0, rows * SIDE, 0.0);
        let source = Memory::holding(device, &src)?;
        let spec = stored.spec(rows, SIDE);
        // SAFETY: the tensor is alive, and the device has no streams.
        let encoded = unsafe { cuda::encode(device, ptr::null_mut(), source.1, &spec, &stored.options()) };
        let blob = codec::encode(&src, &spec, &stored.options())?;
        let done = (rows * SIDE) as f64;
        for (kernel, work) in device.take_work() {
            if survey.is_none()
                && (kernel == "nz_survey" || encoded.as_ref().is_ok_and(|encoded| encoded.blob() != blob))
            {
                continue;
            }
            self.list(kernel, &work, done);
            let bits = blob.len() as f64 * 8.0 / done;
            Line { kernel, workload: stored.told(), bits, done, of: (SIDE * SIDE) as f64, fixed: 0.0, work }
                .print();
        }
        Ok(())
    }
}

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("a folder of machine code")?;
    let bench = Bench { device: Twin::running(Program::load(Path::new(&folder))?), listed: arguments.next() };
    println!(
        "| kernel | workload | bits a weight | bytes in | bytes out | instructions a weight | integer + IMAD + float + memory + others | at copy speed | by instructions, 33 to 17 T |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let (float16, float32, integers) =
        ((Dtype::F16, "float16"), (Dtype::F32, "float32"), (Dtype::I8, "int8"));
    let [half, single, integer] =
        [float16, float32, integers].map(|dtype| [GPU, COMPACT].map(|p| Stored::new(dtype, p)));
    let [plain, compact] = [GPU, COMPACT].map(|profile| Stored::new(BF16, profile));
    let cut = Stored { mantissa_bits: Some(4), ..plain };
    if bench.wants("nz_decode_lean_bfloat16") {
        for stored in [plain, cut, plain.tiled()] {
            bench.decode(stored, BF16, SIDE, false)?;
        }
    }
    if bench.wants("nz_decode_bfloat16") {
        bench.decode(compact, BF16, SIDE, false)?;
        for row_len in [SIDE, 1024] {
            bench.decode(plain, BF16, row_len, true)?;
        }
    }
    for (kernel, [gpu, compact], out) in [
        ("nz_decode_float16", half, float16),
        ("nz_decode_float32", single, float32),
        ("nz_decode_integer", integer, integers),
    ] {
        if bench.wants(kernel) {
            bench.decode(gpu, out, SIDE, false)?;
            bench.decode(compact, out, SIDE, false)?;
            bench.decode(gpu, out, SIDE, true)?;
        }
    }
    if bench.wants("nz_decode_lean_float32") {
        bench.decode(plain, float32, SIDE, false)?;
    }
    if bench.wants("nz_decode_float32") {
        bench.decode(plain, float32, SIDE, true)?;
    }
    for (kernel, all, m) in [
        ("nz_gemv_rows_1", &[plain, compact, cut][..], 1),
        ("nz_gemv_rows_8", &[plain, compact], 8),
        ("nz_gemv_tiles_1", &[plain.tiled(), compact.tiled(), cut.tiled()], 1),
        ("nz_gemv_tiles_4", &[plain.tiled(), compact.tiled()], 4),
        ("nz_gemv_tiles_4", &[plain.tiled(), compact.tiled()], 8),
    ] {
        for &stored in all.iter().filter(|_| bench.wants(kernel)) {
            bench.multiply(stored, m, What::Parts)?;
        }
    }
    if bench.wants("nz_tensor_row") {
        for stored in [plain, cut] {
            bench.multiply(stored, 1, What::TensorCores)?;
        }
    }
    for (kernel, m) in [
        ("nz_tensor_rows_8", 8),
        ("nz_tensor_rows_16", 16),
        ("nz_tensor_rows_32", 32),
        ("nz_tensor_rows_64", 64),
    ] {
        for stored in [plain, cut].into_iter().filter(|_| bench.wants(kernel)) {
            bench.multiply(stored, m, What::TensorCores)?;
        }
    }
    for (kernel, m) in [
        ("nz_tensor_tiles_1", 1),
        ("nz_tensor_tiles_8", 8),
        ("nz_tensor_tiles_16", 16),
        ("nz_tensor_tiles_32", 32),
    ] {
        for stored in [plain.tiled(), cut.tiled()].into_iter().filter(|_| bench.wants(kernel)) {
            bench.multiply(stored, m, What::TensorCores)?;
        }
    }
    for (stored, m) in [(plain, 1), (plain, 8), (plain.tiled(), 1), (plain.tiled(), 8)] {
        if bench.wants("nz_gemv_sum") {
            bench.multiply(stored, m, What::Sums)?;
        }
    }
    for stored in [plain, compact] {
        if bench.wants("nz_delta_decode") {
            bench.decode_delta(stored)?;
        }
    }
    for (kernel, stored, m) in [
        ("nz_delta_rows_1", plain, 1),
        ("nz_delta_rows_8", plain, 8),
        ("nz_delta_tiles_1", plain.tiled(), 1),
        ("nz_delta_tiles_4", plain.tiled(), 8),
    ] {
        if bench.wants(kernel) {
            bench.multiply(stored, m, What::Delta)?;
        }
    }
    if bench.wants("nz_survey") {
        bench.encode(plain, SIDE, Some((Program::load(Path::new(&folder))?, "nz_survey")))?;
    }
    for stored in [plain, compact] {
        if bench.wants("nz_measure") || bench.wants("nz_write") {
            bench.encode(stored, 64, None)?;
        }
    }
    Ok(())
}
