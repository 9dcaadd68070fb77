//! Kernels as programs of their own (`cpp/tools/run_kernel.cpp`), from sources in which faults can be planted, and the launches
//! that they run.

use std::fs;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::compiler::{STRICT, compile, cpp_folder, text};
use nz_onnx::cuda::job::{
    DeltaMemory, DeviceDelta, DeviceWeight, Indices, Launch, Output as Memory, WeightMemory,
};
use nz_onnx::cuda::product::{Operands, Product};
use nz_onnx::cuda::{
    DecodeArguments, DeltaArguments, DeltaDecodeArguments, DeltaProductArguments, ProductArguments,
    WeightArguments,
};
use nz_onnx::format::{Dtype, Header, Layout};

pub const SANITIZERS: [&str; 2] = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
pub const EXIT_FAILED: i32 = 3;
/// Addresses are filled in by the program.
pub const NOWHERE: WeightMemory = WeightMemory { blob: 0, table: 0 };
/// The same of a delta.
const DELTA_NOWHERE: DeltaMemory = DeltaMemory { blob: 0, table: 0, base: 0 };

/// The sources that kernels are made of, in a folder where they can be changed.
pub struct Sources {
    pub folder: tempfile::TempDir,
}

impl Sources {
    pub fn copy() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for part in ["include", "cuda", "simt", "tools"] {
            fs::create_dir(folder.path().join(part)).expect("created");
            for file in fs::read_dir(cpp_folder().join(part)).expect("there") {
                let file = file.expect("there");
                fs::copy(file.path(), folder.path().join(part).join(file.file_name())).expect("copied");
            }
        }
        Sources { folder }
    }

    /// Replaces the `nth` occurrence of `old` in `file`, so that a fault is where it is meant to be.
    pub fn plant(self, file: &str, old: &str, nth: usize, new: &str) -> Self {
        let path = self.folder.path().join(file);
        let source = fs::read_to_string(&path).expect("read");
        let (at, _) = source.match_indices(old).nth(nth).unwrap_or_else(|| panic!("{file} has no {old:?}"));
        fs::write(&path, [&source[..at], new, &source[at + old.len()..]].concat()).expect("written");
        self
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("a path in UTF-8").to_owned()
    }

    pub fn build(self, flags: &[&str]) -> Program {
        let include = ["include", "simt", "cuda"].map(|part| format!("-I{}", self.path(part)));
        let files = [self.path("tools/run_kernel.cpp"), "-o".to_owned(), self.path("run_kernel")];
        let common = ["-std=c++17", "-fno-strict-aliasing", "-Wno-unknown-pragmas"];
        let paths = include.iter().chain(&files).map(String::as_str);
        let arguments: Vec<&str> =
            STRICT.into_iter().chain(common).chain(flags.iter().copied()).chain(paths).collect();
        let output = run_compiler(&arguments);
        assert!(output.status.success(), "{}", text(&output));
        Program { sources: self }
    }
}

/// Like `compile`, without the folder of the sources as they are.
pub fn run_compiler(arguments: &[&str]) -> Output {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    Command::new(&compiler).args(arguments).output().unwrap_or_else(|e| panic!("{compiler}: {e}"))
}

pub struct Program {
    pub sources: Sources,
}

impl Program {
    /// Runs a case; what the buffers hold afterwards, or the exit status and all that was said.
    pub fn run(&self, case: &[u8]) -> Result<Vec<u8>, (Option<i32>, String)> {
        let (input, output) = (self.sources.path("case"), self.sources.path("out"));
        fs::write(&input, case).expect("written");
        let done =
            Command::new(self.sources.path("run_kernel")).args([&input, &output]).output().expect("runs");
        match done.status.success() {
            true => Ok(fs::read(output).expect("read")),
            false => Err((done.status.code(), text(&done))),
        }
    }

    /// Runs a case that has to fail; how it did.
    pub fn fails(&self, case: &[u8]) -> (Option<i32>, String) {
        match self.run(case) {
            Ok(_) => panic!("the fault that was planted is not noticed"),
            Err(outcome) => outcome,
        }
    }
}

/// A launch and its buffers, as `run_kernel.cpp` reads them.
pub struct Case {
    pub kernel: &'static str,
    pub grid: (u32, u32),
    pub threads: u32,
    pub shared: u32,
    pub argument: Vec<u8>,
    /// Where in the argument the address goes, how far behind a multiple of 16 it is, and the bytes.
    pub buffers: Vec<(usize, usize, Vec<u8>)>,
}

impl Case {
    pub fn new<A: bytemuck::Pod>(launch: &Launch<A>, buffers: Vec<(usize, usize, Vec<u8>)>) -> Self {
        let argument = bytemuck::bytes_of(&launch.arguments).to_vec();
        let Launch { kernel, grid, threads, shared, .. } = *launch;
        Case { kernel: kernel.name(), grid, threads, shared, argument, buffers }
    }

    /// The whole of `blob`, or the rows that `rows` names; `shift` is 0 or 8. The output is the first buffer.
    pub fn decode(header: &Header, blob: &[u8], rows: &[i64], shift: usize) -> Self {
        let weight = DeviceWeight::new(header).expect("a header of ours");
        let out = Memory { dtype: header.spec.dtype, address: 0, status: 0 };
        let row = weight.elements() / header.spec.shape.first().copied().unwrap_or(1);
        let (launch, count) = if rows.is_empty() {
            (weight.decode_all(NOWHERE, out), weight.elements())
        } else {
            let indices = Indices { address: 0, count: rows.len() as u64, size: 8 };
            (weight.gather(NOWHERE, out, indices), rows.len() as u64 * row)
        };
        let mut buffers = vec![
            (offset_of!(DecodeArguments, out), 0, vec![0x5a; count as usize * header.spec.dtype.size()]),
            (offset_of!(DecodeArguments, status), 0, vec![0; 4]),
            (offset_of!(DecodeArguments, weight.blob), shift, blob.to_vec()),
        ];
        let launch = launch.expect("a launch");
        let at = offset_of!(DecodeArguments, weight);
        buffers.extend(table_buffers(&weight, &launch.arguments.weight, at));
        if !rows.is_empty() {
            buffers.push((offset_of!(DecodeArguments, indices), 0, bytemuck::cast_slice(rows).to_vec()));
        }
        Case::new(&launch, buffers)
    }

    /// The two launches of a product of `m` rows of float16 ones; none if the blob is no matrix for it.
    pub fn product(header: &Header, blob: &[u8], m: u32) -> Option<[Self; 2]> {
        let weight = DeviceWeight::new(header).expect("a header of ours");
        let product = weight.product(m).ok()?;
        Some(Case::of_product(&weight, &product, header, blob, (m, Dtype::F16)))
    }

    /// The same with tensor cores, of bfloat16 ones.
    pub fn tensor_product(header: &Header, blob: &[u8], m: u32) -> Option<[Self; 2]> {
        let weight = DeviceWeight::new(header).expect("a header of ours");
        let product = weight.tensor_product(m, Dtype::Bf16)?;
        Some(Case::of_product(&weight, &product, header, blob, (m, Dtype::Bf16)))
    }

    /// Y is the first buffer, the partial sums the fifth.
    fn of_product(
        weight: &DeviceWeight,
        product: &Product<'_>,
        header: &Header,
        blob: &[u8],
        (m, dtype): (u32, Dtype),
    ) -> [Self; 2] {
        let (outer, inner) = (header.spec.shape[0], header.spec.shape[1]);
        let (k, n) = if header.spec.layout == Layout::RowMajor { (inner, outer) } else { (outer, inner) };
        let operands = Operands { dtype, x: 0, y: 0, partial: 0, status: 0, alpha: 1.0, addend: None };
        // From 1 up: rows differ, so that a sum in another's place is seen.
        let one: u16 = if dtype == Dtype::F16 { 0x3c00 } else { 0x3f80 };
        let operand = |count: u64| -> Vec<u8> {
            (0..count * u64::from(m)).flat_map(|i| (one + (i % 113) as u16).to_le_bytes()).collect()
        };
        product.launches(NOWHERE, operands).expect("aligned").map(|launch| {
            let mut buffers = vec![
                (offset_of!(ProductArguments, y), 0, operand(n)),
                (offset_of!(ProductArguments, status), 0, vec![0; 4]),
                (offset_of!(ProductArguments, weight.blob), 0, blob.to_vec()),
                (offset_of!(ProductArguments, x), 0, operand(k)),
                (offset_of!(ProductArguments, partial), 0, vec![0; product.partial_bytes() as usize]),
            ];
            let at = offset_of!(ProductArguments, weight);
            buffers.extend(table_buffers(weight, &launch.arguments.weight, at));
            Case::new(&launch, buffers)
        })
    }

    /// The whole of a delta; `shift` is 0 or 8. The output is the first buffer.
    pub fn decode_delta(headers: [&Header; 2], blobs: [&[u8]; 2], shift: usize) -> Self {
        let [header, base] = headers;
        let delta = DeviceDelta::new(header, base).expect("headers of ours");
        let out = Memory { dtype: header.spec.dtype, address: 0, status: 0 };
        let launch = delta.decode(DELTA_NOWHERE, |weight, memory| weight.decode_all(memory, out));
        let launch = launch.expect("a launch");
        let bytes = header.spec.bytes().expect("small") as usize;
        let weight = offset_of!(DeltaDecodeArguments, decode.weight);
        let mut buffers = vec![
            (offset_of!(DeltaDecodeArguments, decode.out), 0, vec![0x5a; bytes]),
            (offset_of!(DeltaDecodeArguments, decode.status), 0, vec![0; 4]),
        ];
        let at = offset_of!(DeltaDecodeArguments, delta);
        buffers.extend(delta_buffers(&delta, &launch.arguments.delta, blobs, shift, [weight, at]));
        Case::new(&launch, buffers)
    }

    /// The first launch of a product of `m` rows of float16 ones with a delta; none if it is no matrix for it.
    pub fn product_delta(headers: [&Header; 2], blobs: [&[u8]; 2], m: u32) -> Option<Self> {
        let [header, base] = headers;
        let delta = DeviceDelta::new(header, base).expect("headers of ours");
        let product = delta.weight().product(m).ok()?;
        let operands =
            Operands { dtype: Dtype::F16, x: 0, y: 0, partial: 0, status: 0, alpha: 1.0, addend: None };
        let (launch, _) = delta.multiply(DELTA_NOWHERE, &product, operands).expect("aligned");
        let k = header.spec.shape[usize::from(header.spec.layout == Layout::RowMajor)] * u64::from(m);
        let mut buffers = vec![
            (offset_of!(DeltaProductArguments, product.status), 0, vec![0; 4]),
            (offset_of!(DeltaProductArguments, product.x), 0, 0x3c00u16.to_le_bytes().repeat(k as usize)),
            (
                offset_of!(DeltaProductArguments, product.partial),
                0,
                vec![0; product.partial_bytes() as usize],
            ),
        ];
        let weight = offset_of!(DeltaProductArguments, product.weight);
        let at = offset_of!(DeltaProductArguments, delta);
        buffers.extend(delta_buffers(&delta, &launch.arguments.delta, blobs, 0, [weight, at]));
        Some(Case::new(&launch, buffers))
    }

    pub fn bytes(&self, seed: u64) -> Vec<u8> {
        let mut bytes = self.kernel.as_bytes().to_vec();
        bytes.resize(32, 0);
        let numbers =
            |bytes: &mut Vec<u8>, all: &[u64]| bytes.extend(all.iter().flat_map(|n| n.to_le_bytes()));
        let (x, y) = self.grid;
        let launch = [x.into(), y.into(), self.threads.into(), self.shared.into(), seed];
        numbers(&mut bytes, &launch);
        numbers(&mut bytes, &[self.argument.len() as u64]);
        bytes.extend_from_slice(&self.argument);
        numbers(&mut bytes, &[self.buffers.len() as u64]);
        for (place, shift, buffer) in &self.buffers {
            numbers(&mut bytes, &[*place as u64, *shift as u64, buffer.len() as u64]);
            bytes.extend_from_slice(buffer);
        }
        bytes
    }
}

/// The parts of a weight's table, each a buffer of just its size. `arguments`, which are at `at` in the argument, name them
/// by their places in the table.
fn table_buffers(
    weight: &DeviceWeight,
    arguments: &WeightArguments,
    at: usize,
) -> Vec<(usize, usize, Vec<u8>)> {
    parts_of(weight.table(), arguments, at, 0)
}

/// The same of a table that starts at place `first`.
fn parts_of(
    table: &[u8],
    arguments: &WeightArguments,
    at: usize,
    first: u64,
) -> Vec<(usize, usize, Vec<u8>)> {
    let parts = [
        (offset_of!(WeightArguments, blocks), first),
        (offset_of!(WeightArguments, selectors), arguments.selectors),
        (offset_of!(WeightArguments, layer_offsets), arguments.layer_offsets),
        (offset_of!(WeightArguments, books), arguments.books),
        (offset_of!(WeightArguments, units), arguments.units),
        (offset_of!(WeightArguments, groups), arguments.groups),
    ];
    let there: Vec<_> = parts
        .into_iter()
        .enumerate()
        .filter(|(i, (_, start))| *i == 0 || *start > 0)
        .map(|(_, (place, start))| (place, (start - first) as usize))
        .collect();
    let ends = there.iter().skip(1).map(|(_, start)| *start).chain([table.len()]);
    let buffer = |((place, start), end): ((usize, usize), usize)| (at + place, 0, table[start..end].to_vec());
    there.iter().copied().zip(ends).map(buffer).collect()
}

/// The blobs of a delta and its base, and the parts of their table. In the argument the delta's weight is at `weight`, what is
/// told of the delta, with its base, at `at`; `arguments` name the parts by their places in the table.
fn delta_buffers(
    delta: &DeviceDelta,
    arguments: &DeltaArguments,
    [own, base]: [&[u8]; 2],
    shift: usize,
    [weight, at]: [usize; 2],
) -> Vec<(usize, usize, Vec<u8>)> {
    let base_at = at + offset_of!(DeltaArguments, base);
    let (sizes, blocks) = (arguments.sizes as usize, arguments.base.blocks as usize);
    let table = delta.table();
    let mut buffers = vec![
        (weight + offset_of!(WeightArguments, blob), shift, own.to_vec()),
        (base_at + offset_of!(WeightArguments, blob), 8 - shift, base.to_vec()),
        (weight + offset_of!(WeightArguments, blocks), 0, table[..sizes].to_vec()),
        (at + offset_of!(DeltaArguments, sizes), 0, table[sizes..blocks].to_vec()),
    ];
    buffers.extend(parts_of(&table[blocks..], &arguments.base, base_at, blocks as u64));
    buffers
}

/// Whether the program gets `case` wrong, or says that something is wrong, under one of some seeds.
pub fn is_caught(program: &Program, case: &Case, expected: &[u8], seeds: std::ops::Range<u64>) -> bool {
    let outcome = |seed| program.run(&case.bytes(seed));
    seeds.into_iter().any(|seed| outcome(seed).map_or(true, |out| out[..expected.len()] != *expected))
}

pub fn sanitizers_installed(folder: &Path) -> bool {
    let (source, program): (PathBuf, PathBuf) = (folder.join("empty.cpp"), folder.join("empty"));
    fs::write(&source, "int main() { return 0; }\n").expect("written");
    let path = |p: &Path| p.to_str().expect("a path in UTF-8").to_owned();
    let output = compile("CXX", "c++", &[SANITIZERS[0], &path(&source), "-o", &path(&program)]);
    output.status.success() && Command::new(&program).status().is_ok_and(|status| status.success())
}
