//! "Device" memory for kernels that run on the CPU, and launches over it.

use super::Rng;
use nz_cpp_twin::simt::{self, Grid};
use nz_onnx::codec::word;
use nz_onnx::cuda::DecodeArguments;
use nz_onnx::cuda::job::{
    DeltaMemory, DeviceDelta, DeviceWeight, Indices, Launch, Output, WeightMemory, check_status,
};
use nz_onnx::cuda::product::{Addend, Operands, Product};
use nz_onnx::format::{Dtype, Header};

/// What lies around outputs, and must stay there.
const GUARD: u8 = 0xa5;
const GUARD_LEN: usize = 64;

/// Memory of which only `bytes[at..]` is given away.
pub struct Memory {
    words: Vec<u128>,
    at: usize,
    len: usize,
}

impl Memory {
    /// `len` bytes of `fill` between guards, `shift` bytes behind a multiple of 16.
    pub fn filled(len: usize, fill: u8, shift: usize) -> Self {
        let at = GUARD_LEN + shift;
        let words = (at + len + GUARD_LEN).div_ceil(16);
        let mut memory = Memory { words: vec![u128::from_ne_bytes([GUARD; 16]); words], at, len };
        memory.all_mut()[at..at + len].fill(fill);
        memory
    }

    pub fn holding(bytes: &[u8], shift: usize) -> Self {
        let mut memory = Memory::filled(bytes.len(), 0, shift);
        let at = memory.at;
        memory.all_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        memory
    }

    fn all(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }

    fn all_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.words)
    }

    pub fn address(&mut self) -> u64 {
        let at = self.at;
        self.all_mut()[at..].as_mut_ptr() as u64
    }

    /// The bytes that were given away, after a look at those around them.
    pub fn bytes(&self) -> &[u8] {
        let (before, rest) = self.all().split_at(self.at);
        let (bytes, behind) = rest.split_at(self.len);
        assert!(before.iter().chain(behind).all(|&byte| byte == GUARD), "a kernel wrote beside its output");
        bytes
    }
}

/// What is decoded, and into which order.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// The tensor in ONNX order.
    All,
    /// Slots from the first on, and how many.
    Slots(u64, u64),
    /// Columns from the first on, and how many, of a tensor in column tiles.
    Columns(u64, u64),
    /// Rows by 64-bit indices.
    Rows(Vec<i64>),
    /// Rows by 32-bit indices.
    ShortRows(Vec<i32>),
}

/// Runs a launch, and says what the shim has to say.
pub fn run<A: bytemuck::Pod>(launch: &Launch<A>, seed: u64) -> Result<(), String> {
    let (x, y) = launch.grid;
    let grid = Grid { x, y, threads: launch.threads, shared: launch.shared as usize, seed };
    // SAFETY: callers have made the launch over memory of theirs that is alive.
    unsafe { simt::launch(launch.kernel.name(), &grid, bytemuck::bytes_of(&launch.arguments)) }
}

/// Decodes the whole blob to its own type and to float32, somewhere in memory and in some order, and compares with
/// `expected`, elements of its own type.
pub fn check_all(blob: &[u8], expected: &[u8], context: &str, rng: &mut Rng) {
    check_to(blob, usize::MAX, expected, context, rng);
}

/// The same with the first `depth` layers.
pub fn check_to(blob: &[u8], depth: usize, expected: &[u8], context: &str, rng: &mut Rng) {
    let header = Header::parse(blob).expect("whole");
    let dtype = header.spec.dtype;
    let mut words = vec![0u32; expected.len() / dtype.size()];
    word::load(dtype, expected, &mut words);
    let as_float32: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    for (out, expected) in [(dtype, expected), (Dtype::F32, &as_float32[..])] {
        let (shift, seed) = (4 * rng.below(4), (rng.next() % 3).wrapping_mul(rng.next()));
        let (decoded, verdict) = decode_to((&header, depth), blob, out, &Wanted::All, shift, seed);
        assert!(verdict.is_ok(), "{context}: {verdict:?}");
        assert!(decoded == expected, "{context}: to {out:?}, shift {shift}, seed {seed}");
    }
}

/// Decodes a blob that lies `shift` bytes behind a multiple of 16 with the kernel for `dtype`. `header` may be that of
/// another blob than the one in memory: a payload can change. Elements, and the kernel's own verdict.
pub fn decode(
    header: &Header,
    blob: &[u8],
    dtype: Dtype,
    wanted: &Wanted,
    shift: usize,
    seed: u64,
) -> (Vec<u8>, nz_onnx::error::Result<()>) {
    decode_to((header, usize::MAX), blob, dtype, wanted, shift, seed)
}

/// The same with the first layers, as many as the number says.
pub fn decode_to(
    (header, depth): (&Header, usize),
    blob: &[u8],
    dtype: Dtype,
    wanted: &Wanted,
    shift: usize,
    seed: u64,
) -> (Vec<u8>, nz_onnx::error::Result<()>) {
    let weight = DeviceWeight::to_depth(header, depth).expect("a header of ours");
    let mut table = Memory::holding(weight.table(), 0);
    let mut blob = Memory::holding(blob, shift);
    let memory = WeightMemory { blob: blob.address(), table: table.address() };
    run_wanted(&weight, dtype, wanted, seed, |output| plan(&weight, memory, output, wanted))
}

/// Decodes a delta and its base, which lie `shift` bytes behind a multiple of 16, to `dtype`. The headers may be those of
/// other blobs than the ones in memory.
pub fn decode_delta(
    [header, base_header]: [&Header; 2],
    [blob, base]: [&[u8]; 2],
    dtype: Dtype,
    wanted: &Wanted,
    shift: usize,
    seed: u64,
) -> (Vec<u8>, nz_onnx::error::Result<()>) {
    let delta = DeviceDelta::new(header, base_header).expect("headers of ours");
    let mut table = Memory::holding(delta.table(), 0);
    let (mut blob, mut base) = (Memory::holding(blob, shift), Memory::holding(base, 4));
    let memory = DeltaMemory { blob: blob.address(), table: table.address(), base: base.address() };
    run_wanted(delta.weight(), dtype, wanted, seed, |output| {
        delta.decode(memory, |weight, memory| plan(weight, memory, output, wanted))
    })
}

fn plan(
    weight: &DeviceWeight,
    memory: WeightMemory,
    output: Output,
    wanted: &Wanted,
) -> nz_onnx::error::Result<Launch<DecodeArguments>> {
    match wanted {
        Wanted::All => weight.decode_all(memory, output),
        Wanted::Slots(first, slots) => weight.decode_slots(memory, output, *first, *slots),
        Wanted::Columns(first, columns) => weight.decode_columns(memory, output, *first, *columns),
        Wanted::Rows(rows) => {
            let indices = Indices { address: rows.as_ptr() as u64, count: rows.len() as u64, size: 8 };
            weight.gather(memory, output, indices)
        }
        Wanted::ShortRows(rows) => {
            let indices = Indices { address: rows.as_ptr() as u64, count: rows.len() as u64, size: 4 };
            weight.gather(memory, output, indices)
        }
    }
}

/// Runs the launch that decodes `wanted` of `weight` to an output; that, and the kernel's verdict.
fn run_wanted<A: bytemuck::Pod>(
    weight: &DeviceWeight,
    dtype: Dtype,
    wanted: &Wanted,
    seed: u64,
    launch: impl FnOnce(Output) -> nz_onnx::error::Result<Launch<A>>,
) -> (Vec<u8>, nz_onnx::error::Result<()>) {
    let shape = weight.shape();
    let row = weight.elements() / shape.first().copied().unwrap_or(1);
    let count = match wanted {
        Wanted::All => weight.elements(),
        Wanted::Slots(_, slots) => *slots,
        Wanted::Columns(_, columns) => shape[0] * columns,
        Wanted::Rows(rows) => rows.len() as u64 * row,
        Wanted::ShortRows(rows) => rows.len() as u64 * row,
    };
    // Every byte is to be written: what is left of the fill would differ.
    let mut out = Memory::filled(count as usize * dtype.size(), 0x5a, 0);
    let mut status = Memory::filled(4, 0, 0);
    let output = Output { dtype, address: out.address(), status: status.address() };
    let launch = launch(output).expect("a launch");
    run(&launch, seed).unwrap_or_else(|error| panic!("{wanted:?}, seed {seed}: {error}"));
    let status = u32::from_le_bytes(status.bytes().try_into().expect("4 bytes"));
    (out.bytes().to_vec(), check_status(status))
}

/// Has `run_all` run the launches of a product with operands in memory; Y, `len` elements of `dtype`, and the kernels'
/// verdict.
pub fn run_product(
    product: &Product<'_>,
    (dtype, len): (Dtype, usize),
    x: &[u8],
    (alpha, addend): (f32, Option<Addend>),
    run_all: impl FnOnce(Operands),
) -> (Vec<u8>, nz_onnx::error::Result<()>) {
    let mut x = Memory::holding(x, 0);
    let mut y = Memory::filled(len * dtype.size(), 0x5a, 0);
    // NaN, which would show in any sum.
    let mut partial = Memory::filled(product.partial_bytes() as usize, 0xff, 0);
    let mut status = Memory::filled(4, 0, 0);
    run_all(Operands {
        dtype,
        x: x.address(),
        y: y.address(),
        partial: partial.address(),
        status: status.address(),
        alpha,
        addend,
    });
    partial.bytes();
    let status = u32::from_le_bytes(status.bytes().try_into().expect("4 bytes"));
    (y.bytes().to_vec(), check_status(status))
}
