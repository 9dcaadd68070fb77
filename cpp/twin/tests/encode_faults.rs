//! The kernels that encode as programs of their own: under sanitizers, and with faults planted in their sources.

mod common;

use std::fs;
use std::mem::offset_of;
use std::ptr;
use std::sync::{Arc, Mutex};

use common::compiler::cpp_folder;
use common::program::{Case, EXIT_FAILED, SANITIZERS, Sources, is_caught, sanitizers_installed};
use common::twin::{Hook, Twin};
use common::{DTYPES, FILLS, Fill, Rng, specs, tensor};
use nz_onnx::codec::{EncodeOptions, Profile};
use nz_onnx::cuda::job::{Kernel, Launch};
use nz_onnx::cuda::port::Device;
use nz_onnx::cuda::{EncodeArguments, encode};
use nz_onnx::format::{Dtype, TensorSpec};

/// A launch as a program runs it, and what its first buffer holds afterwards.
struct Step {
    kernel: Kernel,
    case: Case,
    expected: Vec<u8>,
}

/// Where a kernel's output is named.
fn output(kernel: Kernel) -> usize {
    match kernel {
        Kernel::Survey => offset_of!(EncodeArguments, counts),
        Kernel::Measure => offset_of!(EncodeArguments, measured),
        Kernel::Write => offset_of!(EncodeArguments, payload),
        other => panic!("{other:?} does not encode"),
    }
}

fn address(launch: &Launch<EncodeArguments>, field: usize) -> u64 {
    let bytes = &bytemuck::bytes_of(&launch.arguments)[field..field + 8];
    u64::from_ne_bytes(bytes.try_into().expect("8 bytes"))
}

/// The launches that encoding `src` takes.
fn steps(src: &[u8], spec: &TensorSpec, options: &EncodeOptions) -> Vec<Step> {
    let found = Arc::new(Mutex::new(Vec::new()));
    let (before, behind) = (Arc::clone(&found), Arc::clone(&found));
    let record: Hook = Box::new(move |twin, launch| {
        let output = output(launch.kernel);
        let inputs = [
            offset_of!(EncodeArguments, source),
            offset_of!(EncodeArguments, blocks),
            offset_of!(EncodeArguments, status),
        ];
        let fields = std::iter::once(output).chain(inputs).filter(|&field| address(launch, field) != 0);
        let buffers = fields.map(|field| {
            let address = address(launch, field);
            (field, address as usize % 16, twin.bytes_at(address))
        });
        let case = Case::new(launch, buffers.collect());
        before.lock().expect("whole").push(Step { kernel: launch.kernel, case, expected: vec![] });
    });
    let expect: Hook = Box::new(move |twin, launch| {
        let mut steps = behind.lock().expect("whole");
        let step = steps.last_mut().expect("recorded");
        step.expected = twin.bytes_at(address(launch, output(launch.kernel)));
    });
    let twin = Twin::around_encode(record, expect);
    let source = twin.allocate(src.len() as u64).expect("memory");
    // SAFETY: new memory of this length, which is there until it is freed behind the last launch.
    unsafe {
        twin.write(src, source).expect("written");
        drop(encode(&twin, ptr::null_mut(), source, spec, options).expect("encodes"));
        twin.free(source);
    }
    drop(twin);
    let steps = Arc::into_inner(found).expect("the twin is gone");
    steps.into_inner().expect("whole")
}

fn source(fill: Fill, spec: &TensorSpec, rng: &mut Rng) -> Vec<u8> {
    tensor(fill, spec.dtype, spec.elements().expect("small") as usize, rng)
}

/// Two blocks and a short one; tails of several tiers and a field of several planes.
fn sample() -> Vec<Step> {
    let spec = TensorSpec::row_major(Dtype::Bf16, &[3, 3001]);
    let src = source(Fill::Weights, &spec, &mut Rng(90));
    let steps = steps(&src, &spec, &EncodeOptions { mantissa_bits: Some(6), ..Default::default() });
    assert_eq!(
        steps.iter().map(|step| step.kernel).collect::<Vec<_>>(),
        [Kernel::Survey, Kernel::Measure, Kernel::Write]
    );
    steps
}

/// No access outside of any buffer, nor outside of shared memory, with tensors of all kinds; also where the source is not what
/// was measured. And where a check is left out, it is seen.
#[test]
fn tensors_under_sanitizers() {
    let sources = Sources::copy();
    if !sanitizers_installed(sources.folder.path()) {
        eprintln!("SKIPPED: the C++ compiler cannot link {SANITIZERS:?}; install its sanitizer runtimes");
        return;
    }
    let program = sources.build(&["-O1", "-g", SANITIZERS[0], SANITIZERS[1]]);
    let mut rng = Rng(91);
    let place = offset_of!(EncodeArguments, source);
    for round in 0..25 {
        let dtype = DTYPES[rng.below(3)];
        let spec = specs(dtype).swap_remove(rng.below(13));
        let src = source(FILLS[rng.below(FILLS.len())], &spec, &mut rng);
        let mantissa_bits = [None, Some(rng.below(usize::from(dtype.mantissa_bits())) as u8)][rng.below(2)];
        let profile = [Profile::Compact, Profile::Fast, Profile::Gpu][rng.below(3)];
        let block_len = [64, 576, 4096][rng.below(3)];
        let options = EncodeOptions { mantissa_bits, profile, block_len, ..Default::default() };
        for mut step in steps(&src, &spec, &options) {
            let context = |e| format!("{spec:?}, {options:?}, round {round}, {:?}: {e:?}", step.kernel);
            let out = program.run(&step.case.bytes(rng.next())).map_err(context).expect("runs");
            assert!(out[..step.expected.len()] == step.expected, "{spec:?} {options:?} {:?}", step.kernel);
            // Other weights than those that were surveyed and measured.
            for (field, _, bytes) in &mut step.case.buffers {
                if *field == place {
                    bytes.iter_mut().for_each(|byte| *byte = rng.next() as u8);
                }
            }
            program.run(&step.case.bytes(rng.next())).map_err(context).expect("runs");
        }
    }

    // Reading behind the tensor would be seen.
    let mut write = sample().pop().expect("the last step");
    let over_read = Sources::copy().plant(
        "cuda/encode.cu",
        "rows[row] = slot < block.n ? coded_word(job, block.word(job, slot), told) : 0;",
        0,
        "rows[row] = coded_word(job, block.word(job, slot), told);",
    );
    let (_, said) = over_read.build(&["-O1", "-g", SANITIZERS[0]]).fails(&write.case.bytes(0));
    assert!(said.contains("heap-buffer-overflow") && said.contains("READ of size"), "{said}");
    // Many escapes where few were measured: told in the last buffer, and nothing is written.
    for (field, _, bytes) in &mut write.case.buffers {
        if *field == place {
            bytes.iter_mut().for_each(|byte| *byte = rng.next() as u8);
        }
    }
    let untouched = write.case.buffers[0].2.clone();
    let out = program.run(&write.case.bytes(0)).expect("runs");
    assert!(out[..untouched.len()] == untouched && out[out.len() - 4..] == [4, 0, 0, 0]);
}

/// A survey of four blocks, one after the other, of which each needs as many mantissa bits as one word of the last warp has.
fn survey_of_few_bits() -> Step {
    let spec = TensorSpec::row_major(Dtype::F32, &[4, 256]);
    let word = |i: usize| 0x3f80_0000u32 | if i % 256 == 250 { 1 << (3 + 5 * (i / 256)) } else { 0 };
    let src: Vec<u8> = (0..1024).flat_map(|i| word(i).to_le_bytes()).collect();
    let mut step = steps(&src, &spec, &EncodeOptions { block_len: 256, ..Default::default() }).swap_remove(0);
    assert_eq!((step.kernel, step.case.grid), (Kernel::Survey, (4, 1)));
    step.case.grid = (1, 1);
    step
}

/// Each barrier is needed: without it some order of warps gives something else.
#[test]
fn missing_barriers_are_caught() {
    let mut steps = sample();
    steps.push(survey_of_few_bits());
    let intact = Sources::copy().build(&["-O0"]);
    for step in &steps {
        assert!(!is_caught(&intact, &step.case, &step.expected, 0..12), "{:?}", step.kernel);
    }
    let barrier = "__syncthreads();";
    let text = fs::read_to_string(cpp_folder().join("cuda/encode.cu")).expect("read");
    for nth in 0..text.matches(barrier).count() {
        let program = Sources::copy().plant("cuda/encode.cu", barrier, nth, ";").build(&["-O0"]);
        let caught = steps.iter().any(|step| is_caught(&program, &step.case, &step.expected, 0..40));
        let at = text.match_indices(barrier).nth(nth).expect("counted").0;
        assert!(caught, "barrier {nth}, behind {}", &text[at.saturating_sub(120)..at]);
    }
}

/// A ballot that part of a warp does not come to is named.
#[test]
fn divergent_ballots_are_caught() {
    let write = sample().pop().expect("the last step");
    let (vote, divergent) = (
        "escaped += (u32)__popc(__ballot_sync(ALL_LANES, escapes));",
        "if (escapes) escaped += (u32)__popc(__ballot_sync(ALL_LANES, escapes));",
    );
    for nth in 0..2 {
        let program = Sources::copy().plant("cuda/encode.cu", vote, nth, divergent).build(&["-O0"]);
        let (status, said) = program.fails(&write.case.bytes(1));
        assert!(status == Some(EXIT_FAILED) && said.contains("__ballot_sync, waits for"), "{said}");
    }
}
