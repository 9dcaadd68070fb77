//! The kernels as programs of their own: under sanitizers over broken payloads, and with faults planted in their
//! sources, each of which has to be caught.

mod common;

use std::fs;

use common::compiler::cpp_folder;
use common::program::{Case, EXIT_FAILED, SANITIZERS, Sources, is_caught, sanitizers_installed};
use common::writer::{Plan, write};
use common::{DTYPES, FILLS, Fill, Rng, payload, specs, tensor};
use nz_onnx::codec::{self, EncodeOptions, Profile, reference};
use nz_onnx::format::{Dtype, Header, TensorSpec};

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

/// The same with two tiers of 2-bit codes: float16, whose blocks a thread block each decodes.
fn even_sample() -> (Vec<u8>, Vec<u8>) {
    two_tiers(Dtype::F16, 2)
}

/// And bfloat16, whose blocks a warp each decodes.
fn lean_sample() -> (Vec<u8>, Vec<u8>) {
    two_tiers(Dtype::Bf16, 2)
}

fn two_tiers(dtype: Dtype, rows: u64) -> (Vec<u8>, Vec<u8>) {
    let spec = TensorSpec::row_major(dtype, &[rows, 4096]);
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
    let (mut damaged, mut products, mut with_tensor_cores) = (0, 0, 0);
    for round in 0..120 {
        let dtype = DTYPES[rng.below(3)];
        // Whole blocks, which a warp decodes on its own.
        let is_lean = round >= 80 && rng.below(3) == 0;
        let dtype = if is_lean { Dtype::Bf16 } else { dtype };
        let (spec, plan) = if is_lean && rng.below(2) == 0 {
            (TensorSpec::column_tiles(dtype, 64, 256, [128, 256][rng.below(2)]), even_plan())
        } else if is_lean {
            (TensorSpec::row_major(dtype, &[8, 1024]), even_plan())
        } else if round < 80 {
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
        for case in Case::tensor_product(&header, &changed, [1, 9][rng.below(2)]).into_iter().flatten() {
            program.run(&case.bytes(rng.next())).unwrap_or_else(|e| panic!("{spec:?}, round {round}: {e:?}"));
            with_tensor_cores += 1;
        }
    }
    assert!(with_tensor_cores > 8, "only {with_tensor_cores} products with tensor cores were tried");
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
    assert_eq!((count("cuda/block.cuh"), count("cuda/decode.cuh")), (3, 1), "all barriers are tried below");
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
    // Between the two barriers of a warp in lean.cuh's tails all lanes come together in shuffles: the first is not seen to miss.
    let (lean_src, lean_blob) = lean_sample();
    let lean = Case::decode(&Header::parse(&lean_blob).expect("whole"), &lean_blob, &[], 0);
    assert_eq!(lean.kernel, "nz_decode_lean_bfloat16");
    assert!(!is_caught(&intact, &lean, &lean_src, 0..12));
    assert_eq!(count("cuda/lean.cuh"), 1, "all barriers are tried below");
    for (call, nth) in [(barrier, 0), ("__syncwarp();", 3)] {
        let program = Sources::copy().plant("cuda/lean.cuh", call, nth, "").build(&["-O0"]);
        assert!(is_caught(&program, &lean, &lean_src, 0..60), "{call} of lean.cuh");
    }
    let program = Sources::copy().plant("cuda/decode.cuh", barrier, 0, "").build(&["-O0"]);
    assert!(is_caught(&program, &gather, &gathered, 0..60), "the barrier between rows");
}

/// Without any of these barriers of `file` the sums of a product with tensor cores are others.
fn barriers_are_needed(
    file: &str,
    barriers: std::ops::Range<usize>,
    (header, blob): (&Header, &[u8]),
    m: u32,
) {
    let [product, _] = Case::tensor_product(header, blob, m).expect("a product with tensor cores");
    let intact = Sources::copy().build(&["-O0"]);
    // All buffers follow each other: Y is not written by this launch, and the sums are the fifth.
    let sums = intact.run(&product.bytes(0)).expect("runs");
    assert!(!is_caught(&intact, &product, &sums, 0..6));
    for nth in barriers {
        let program = Sources::copy().plant(file, "__syncthreads();", nth, "").build(&["-O0"]);
        assert!(is_caught(&program, &product, &sums, 0..60), "barrier {nth} of {file}");
    }
}

fn barriers_of(file: &str) -> usize {
    let source = fs::read_to_string(cpp_folder().join(file)).expect("read");
    source.matches("__syncthreads();").count()
}

/// The same of products with tensor cores.
#[test]
fn missing_barriers_of_products_are_caught() {
    let file = "cuda/tensor.cuh";
    assert_eq!(barriers_of(file), 5, "all barriers are tried below");
    // As many rows as a thread block has: what a warp decodes takes the place of what another has yet to.
    let (_, blob) = two_tiers(Dtype::Bf16, 16);
    let header = Header::parse(&blob).expect("whole");
    barriers_are_needed(file, 0..5, (&header, &blob), 17);
}

/// And of weights in column tiles.
#[test]
fn missing_barriers_of_tiles_are_caught() {
    let file = "cuda/tensor_tiles.cuh";
    assert_eq!(barriers_of(file), 7, "all barriers are tried below");
    let spec = TensorSpec::column_tiles(Dtype::Bf16, 256, 256, 256);
    let mut src = source(Fill::Weights, &spec, &mut Rng(75));
    let options = EncodeOptions { profile: Profile::Gpu, ..Default::default() };
    let encode = |src: &[u8]| {
        let blob = codec::encode(src, &spec, &options).expect("encodes");
        (Header::parse(&blob).expect("whole"), blob)
    };
    let (header, blob) = encode(&src);
    barriers_are_needed(file, 0..3, (&header, &blob), 1);
    barriers_are_needed(file, 3..7, (&header, &blob), 17);
    // An infinite weight in each part, for which sums are done again.
    for row in (0..256).step_by(64) {
        src[row * 512 + 100..][..2].copy_from_slice(&0x7f80u16.to_le_bytes());
    }
    let (header, blob) = encode(&src);
    barriers_are_needed(file, 0..1, (&header, &blob), 1);
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
    let (_, blob) = lean_sample();
    let header = Header::parse(&blob).expect("whole");
    let [product, _] = Case::tensor_product(&header, &blob, 1).expect("a product with tensor cores");
    let multiply = "multiply_add(lower, eight.word, words[1], words[3]);";
    let program = Sources::copy()
        .plant("cuda/tensor.cuh", multiply, 0, &format!("if (lane_id() < 30) {multiply}"))
        .build(&["-O0"]);
    let (status, said) = program.fails(&product.bytes(0));
    assert!(status == Some(EXIT_FAILED) && said.contains("waits for"), "{said}");
    let spec = TensorSpec::column_tiles(Dtype::Bf16, 32, 256, 256);
    let options = EncodeOptions { profile: Profile::Gpu, ..Default::default() };
    let blob = codec::encode(&source(Fill::Weights, &spec, &mut Rng(76)), &spec, &options).expect("encodes");
    let header = Header::parse(&blob).expect("whole");
    let [product, _] = Case::tensor_product(&header, &blob, 2).expect("a product with tensor cores");
    let load = "load_matrices<true>(w + step * 16 * SQUARE_PITCH, a);";
    let program = Sources::copy()
        .plant("cuda/tensor_tiles.cuh", load, 0, &format!("if (lane_id() < 30) {load}"))
        .build(&["-O0"]);
    let (status, said) = program.fails(&product.bytes(0));
    assert!(status == Some(EXIT_FAILED) && said.contains("ldmatrix, waits for"), "{said}");
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
