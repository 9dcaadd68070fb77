//! The kernels as programs of their own: under sanitizers over broken payloads, and with faults planted in their
//! sources, each of which has to be caught.

mod common;

use std::fs;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::compiler::{STRICT, compile, cpp_folder, text};
use common::writer::{Plan, write};
use common::{DTYPES, FILLS, Fill, Rng, payload, specs, tensor};
use nz_onnx::codec::{self, EncodeOptions, Profile, reference};
use nz_onnx::cuda::job::{DeviceWeight, Indices, Launch, Output as Memory, WeightMemory};
use nz_onnx::cuda::product::Operands;
use nz_onnx::cuda::{DecodeArguments, ProductArguments};
use nz_onnx::format::{Dtype, Header, Layout, TensorSpec};

const SANITIZERS: [&str; 2] = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
const EXIT_FAILED: i32 = 3;
/// Addresses are filled in by the program.
const NOWHERE: WeightMemory = WeightMemory { blob: 0, table: 0 };

/// The sources that kernels are made of, in a folder where they can be changed.
struct Sources {
    folder: tempfile::TempDir,
}

impl Sources {
    fn copy() -> Self {
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
    fn plant(self, file: &str, old: &str, nth: usize, new: &str) -> Self {
        let path = self.folder.path().join(file);
        let source = fs::read_to_string(&path).expect("read");
        let (at, _) = source.match_indices(old).nth(nth).unwrap_or_else(|| panic!("{file} has no {old:?}"));
        fs::write(&path, [&source[..at], new, &source[at + old.len()..]].concat()).expect("written");
        self
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("a path in UTF-8").to_owned()
    }

    fn build(self, flags: &[&str]) -> Program {
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
fn run_compiler(arguments: &[&str]) -> Output {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    Command::new(&compiler).args(arguments).output().unwrap_or_else(|e| panic!("{compiler}: {e}"))
}

struct Program {
    sources: Sources,
}

impl Program {
    /// Runs a case; what the buffers hold afterwards, or the exit status and all that was said.
    fn run(&self, case: &[u8]) -> Result<Vec<u8>, (Option<i32>, String)> {
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
    fn fails(&self, case: &[u8]) -> (Option<i32>, String) {
        match self.run(case) {
            Ok(_) => panic!("the fault that was planted is not noticed"),
            Err(outcome) => outcome,
        }
    }
}

/// A launch and its buffers, as `run_kernel.cpp` reads them.
struct Case {
    kernel: &'static str,
    grid: (u32, u32),
    threads: u32,
    shared: u32,
    argument: Vec<u8>,
    /// Where in the argument the address goes, how far behind a multiple of 16 it is, and the bytes.
    buffers: Vec<(usize, usize, Vec<u8>)>,
}

impl Case {
    fn new<A: bytemuck::Pod>(launch: &Launch<A>, buffers: Vec<(usize, usize, Vec<u8>)>) -> Self {
        let argument = bytemuck::bytes_of(&launch.arguments).to_vec();
        let Launch { kernel, grid, threads, shared, .. } = *launch;
        Case { kernel: kernel.name(), grid, threads, shared, argument, buffers }
    }

    /// The whole of `blob`, or the rows that `rows` names; `shift` is 0 or 8. The output is the first buffer.
    fn decode(header: &Header, blob: &[u8], rows: &[i64], shift: usize) -> Self {
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
            (offset_of!(DecodeArguments, weight.blocks), 0, weight.table().to_vec()),
        ];
        if !rows.is_empty() {
            buffers.push((offset_of!(DecodeArguments, indices), 0, bytemuck::cast_slice(rows).to_vec()));
        }
        Case::new(&launch.expect("a launch"), buffers)
    }

    /// The two launches of a product of `m` rows of float16 ones; none if the blob is no matrix for it.
    fn product(header: &Header, blob: &[u8], m: u32) -> Option<[Self; 2]> {
        let weight = DeviceWeight::new(header).expect("a header of ours");
        let product = weight.product(m).ok()?;
        let (outer, inner) = (header.spec.shape[0], header.spec.shape[1]);
        let (k, n) = if header.spec.layout == Layout::RowMajor { (inner, outer) } else { (outer, inner) };
        let operands =
            Operands { dtype: Dtype::F16, x: 0, y: 0, partial: 0, status: 0, alpha: 1.0, addend: None };
        let halves = |count: u64| 0x3c00u16.to_le_bytes().repeat((count * u64::from(m)) as usize);
        let cases = product.launches(NOWHERE, operands).expect("aligned").map(|launch| {
            let buffers = vec![
                (offset_of!(ProductArguments, y), 0, halves(n)),
                (offset_of!(ProductArguments, status), 0, vec![0; 4]),
                (offset_of!(ProductArguments, weight.blob), 0, blob.to_vec()),
                (offset_of!(ProductArguments, weight.blocks), 0, weight.table().to_vec()),
                (offset_of!(ProductArguments, x), 0, halves(k)),
                (offset_of!(ProductArguments, partial), 0, vec![0; product.partial_bytes() as usize]),
            ];
            Case::new(&launch, buffers)
        });
        Some(cases)
    }

    fn bytes(&self, seed: u64) -> Vec<u8> {
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

fn source(fill: Fill, spec: &TensorSpec, rng: &mut Rng) -> Vec<u8> {
    tensor(fill, spec.dtype, spec.elements().expect("small") as usize, rng)
}

/// Two blocks and a short one, with tails of several tiers.
fn sample() -> (Vec<u8>, Vec<u8>) {
    let spec = TensorSpec::row_major(Dtype::Bf16, &[3, 3000]);
    let src = source(Fill::Weights, &spec, &mut Rng(70));
    let blob = codec::encode(&src, &spec, &EncodeOptions::default()).expect("encodes");
    assert!(Header::parse(&blob).expect("whole").tiers.len() > 2);
    (src, blob)
}

/// The same with two tiers of 2-bit codes.
fn even_sample() -> (Vec<u8>, Vec<u8>) {
    let spec = TensorSpec::row_major(Dtype::Bf16, &[2, 4096]);
    let src = source(Fill::Weights, &spec, &mut Rng(74));
    let options = EncodeOptions { profile: Profile::Gpu, ..Default::default() };
    let blob = codec::encode(&src, &spec, &options).expect("encodes");
    assert_eq!(Header::parse(&blob).expect("whole").tiers.len(), 2);
    (src, blob)
}

/// Tiers that kernels have a short way for.
fn even_plan() -> Plan {
    let tiers = vec![(2, vec![121, 120, 122]), (2, vec![119, 118, 117])];
    Plan { block_len: 4096, tiers, spare_bits: 1, bits_per_block: true, normalise: false }
}

/// Whether the program gets `case` wrong, or says that something is wrong, under one of some seeds.
fn is_caught(program: &Program, case: &Case, expected: &[u8], seeds: std::ops::Range<u64>) -> bool {
    let outcome = |seed| program.run(&case.bytes(seed));
    seeds.into_iter().any(|seed| outcome(seed).map_or(true, |out| out[..expected.len()] != *expected))
}

fn sanitizers_installed(folder: &Path) -> bool {
    let (source, program): (PathBuf, PathBuf) = (folder.join("empty.cpp"), folder.join("empty"));
    fs::write(&source, "int main() { return 0; }\n").expect("written");
    let path = |p: &Path| p.to_str().expect("a path in UTF-8").to_owned();
    let output = compile("CXX", "c++", &[SANITIZERS[0], &path(&source), "-o", &path(&program)]);
    output.status.success() && Command::new(&program).status().is_ok_and(|status| status.success())
}

/// Whole and broken payloads: no access outside of any buffer, nor outside of shared memory. And where the kernel
/// without its checks goes outside, it is seen.
#[test]
fn payloads_under_sanitizers() {
    let sources = Sources::copy();
    if !sanitizers_installed(sources.folder.path()) {
        eprintln!("SKIPPED: the C++ compiler cannot link {SANITIZERS:?}; install its sanitizer runtimes");
        return;
    }
    let program = sources.build(&["-O1", "-g", SANITIZERS[0], SANITIZERS[1]]);
    let mut rng = Rng(71);
    let (mut damaged, mut products) = (0, 0);
    for round in 0..120 {
        let dtype = DTYPES[rng.below(3)];
        let (spec, plan) = if round < 80 {
            (specs(dtype).swap_remove(rng.below(13)), Plan::random(&mut rng))
        } else if rng.below(2) == 0 {
            (TensorSpec::row_major(dtype, &[9, 1024]), even_plan())
        } else {
            (TensorSpec::column_tiles(dtype, 40, 256, 128), even_plan())
        };
        let src = source(FILLS[rng.below(FILLS.len())], &spec, &mut rng);
        let blob = write(&src, &spec, &plan, &mut rng);
        let header = Header::parse(&blob).expect("whole");
        let mut changed = blob.clone();
        let range = payload(&blob);
        match round % 4 {
            0 => {}
            // Escapes everywhere: the tails outgrow their records.
            1 => changed[range.start + rng.below(range.len())..].fill(0xff),
            2 => changed[range].iter_mut().for_each(|byte| *byte = rng.next() as u8),
            _ => (0..8).for_each(|_| changed[range.start + rng.below(range.len())] = rng.next() as u8),
        }
        let case = Case::decode(&header, &changed, &[], 8 * rng.below(2));
        let out =
            program.run(&case.bytes(rng.next())).unwrap_or_else(|e| panic!("{spec:?}, round {round}: {e:?}"));
        if round % 4 == 0 {
            assert!(out[..src.len()] == reference::decode(&blob).expect("whole"), "{spec:?}");
        }
        damaged += usize::from(out[src.len()..src.len() + 4] != [0; 4]);
        for case in Case::product(&header, &changed, [1, 7][rng.below(2)]).into_iter().flatten() {
            program.run(&case.bytes(rng.next())).unwrap_or_else(|e| panic!("{spec:?}, round {round}: {e:?}"));
            products += 1;
        }
    }
    assert!(products > 20, "only {products} products were tried");
    assert!(damaged > 15, "only {damaged} payloads were found to be damaged");

    let (src, blob) = sample();
    let header = Header::parse(&blob).expect("whole");
    let whole = Case::decode(&header, &blob, &[], 8);
    assert_eq!(program.run(&whole.bytes(0)).expect("runs")[..src.len()], src);
    let over_read = Sources::copy().plant("cuda/planes.cuh", "if (blob_end - source >= 16)", 0, "if (true)");
    let (_, said) = over_read.build(&["-O1", "-g", SANITIZERS[0]]).fails(&whole.bytes(0));
    assert!(said.contains("heap-buffer-overflow") && said.contains("READ of size"), "{said}");

    // Only symbols of the first tier when it was written, so that there is little room; then only escapes.
    let spec = TensorSpec::row_major(Dtype::Bf16, &[4096]);
    let tiers = (0..8u8).map(|tier| (4, (15 * tier..15 * tier + 15).collect())).collect();
    let plan = Plan { block_len: 4096, tiers, spare_bits: 0, bits_per_block: false, normalise: false };
    let mut blob = write(&[0; 8192], &spec, &plan, &mut rng);
    let header = Header::parse(&blob).expect("whole");
    let range = payload(&blob);
    blob[range].fill(0xff);
    let broken = Case::decode(&header, &blob, &[], 0);
    assert!(program.run(&broken.bytes(0)).is_ok());
    let check = "if (size > end - at || count + NZ_CUDA_PADDING > weight.tail_room) return false;";
    let unchecked = Sources::copy().plant("cuda/block.cuh", check, 0, "");
    let (_, said) = unchecked.build(&["-O1", "-g", SANITIZERS[0]]).fails(&broken.bytes(0));
    assert!(said.contains("heap-buffer-overflow"), "{said}");
}

/// Each barrier is needed: without it some order of warps gives something else.
#[test]
fn missing_barriers_are_caught() {
    let (src, blob) = sample();
    let header = Header::parse(&blob).expect("whole");
    let whole = Case::decode(&header, &blob, &[], 0);
    // One thread block does more rows than the grid has; the output is the rows in order.
    let rows: Vec<i64> = [0, 1, 2].repeat(2);
    let mut gather = Case::decode(&header, &blob, &rows, 0);
    gather.grid.1 = 1;
    let gathered = src.repeat(2);

    let intact = Sources::copy().build(&["-O0"]);
    assert!(!is_caught(&intact, &whole, &src, 0..12) && !is_caught(&intact, &gather, &gathered, 0..12));
    let barrier = "__syncthreads();";
    let count = |file: &str| {
        let source = fs::read_to_string(cpp_folder().join(file)).expect("read");
        source.matches(barrier).count()
    };
    assert_eq!((count("cuda/block.cuh"), count("cuda/decode.cu")), (3, 1), "all barriers are tried below");
    for nth in 0..3 {
        let program = Sources::copy().plant("cuda/block.cuh", barrier, nth, ";").build(&["-O0"]);
        assert!(is_caught(&program, &whole, &src, 0..60), "barrier {nth} of block.cuh");
    }
    for (call, nth) in [("        sync_warps(warps);", 0), ("if (tier > 1) sync_warps(warps);", 0)] {
        let program = Sources::copy().plant("cuda/block.cuh", call, nth, ";").build(&["-O0"]);
        assert!(is_caught(&program, &whole, &src, 0..60), "{call}");
    }
    let (even_src, even_blob) = even_sample();
    let even = Case::decode(&Header::parse(&even_blob).expect("whole"), &even_blob, &[], 0);
    assert!(!is_caught(&intact, &even, &even_src, 0..12));
    assert_eq!(count("cuda/even.cuh"), 3, "all barriers are tried below");
    let barriers = (0..3).map(|nth| (barrier, nth, ";"));
    for (call, nth, without) in barriers.chain([("sync_warps(warps);", 0, "(void)warps;")]) {
        let program = Sources::copy().plant("cuda/even.cuh", call, nth, without).build(&["-O0"]);
        assert!(is_caught(&program, &even, &even_src, 0..60), "{call} {nth} of even.cuh");
    }
    let program = Sources::copy().plant("cuda/decode.cu", barrier, 0, "").build(&["-O0"]);
    assert!(is_caught(&program, &gather, &gathered, 0..60), "the barrier between rows");
}

/// A collective that part of a warp does not come to is named.
#[test]
fn divergent_collectives_are_caught() {
    let (_, blob) = sample();
    let case = Case::decode(&Header::parse(&blob).expect("whole"), &blob, &[], 0);
    let scan = "const u32 inclusive = inclusive_scan(counts);";
    let divergent = "const u32 inclusive = lane_id() < 20 ? inclusive_scan(counts) : counts;";
    let program = Sources::copy().plant("cuda/block.cuh", scan, 0, divergent).build(&["-O0"]);
    for seed in 0..3 {
        let (status, said) = program.fails(&case.bytes(seed));
        assert!(status == Some(EXIT_FAILED) && said.contains("_sync, waits for"), "{said}");
    }
}

/// A barrier that some threads leave out is named, too.
#[test]
fn divergent_barriers_are_caught() {
    let (_, blob) = sample();
    let case = Case::decode(&Header::parse(&blob).expect("whole"), &blob, &[], 0);
    let program = Sources::copy()
        .plant("cuda/block.cuh", "__syncthreads();", 1, "if (warp_id() < 7) __syncthreads();")
        .build(&["-O0"]);
    let (status, said) = program.fails(&case.bytes(0));
    assert!(status == Some(EXIT_FAILED) && said.contains("__syncthreads, waits for"), "{said}");
}
