//! Payloads of codebooks, integers, layers and deltas, whole and broken, under sanitizers: no access outside of any buffer, nor
//! outside of shared memory. What `simt_faults.rs` is for floats.

mod common;

use common::compiler::cpp_folder;
use common::deltas::{DeltaPlan, tuned, write_delta};
use common::program::{Case, SANITIZERS, Sources, is_caught, sanitizers_installed};
use common::writer::{Plan, write};
use common::{DTYPES, FILLS, Fill, Rng, encode_in_books, specs, tensor, without_values};
use nz_onnx::codec::{self, EncodeOptions, GridStep, Profile, reference};
use nz_onnx::format::{Dtype, Header, Residual, TensorSpec};

/// A blob of some form.
fn blob(rng: &mut Rng) -> (TensorSpec, Vec<u8>) {
    let options = EncodeOptions {
        block_len: [64, 576, 4096][rng.below(3)],
        profile: [Profile::Compact, Profile::Gpu][rng.below(2)],
        ..Default::default()
    };
    let shape = |dtype: Dtype, rng: &mut Rng| match rng.below(4) {
        0 => TensorSpec::row_major(dtype, &[9, 1000]),
        1 => TensorSpec::row_major(dtype, &[77]),
        2 => TensorSpec::column_tiles(dtype, 33, 192, 128),
        _ => TensorSpec::column_tiles(dtype, 21, 201, 64),
    };
    let form = rng.below(4);
    let dtype = if form == 0 { [Dtype::U8, Dtype::I8][rng.below(2)] } else { DTYPES[rng.below(3)] };
    let spec = shape(dtype, rng);
    let elements = spec.elements().expect("small") as usize;
    if form == 0 {
        let src: Vec<u8> = (0..elements).map(|_| (rng.weight() * 900.0) as i8 as u8).collect();
        return (spec.clone(), codec::encode(&src, &spec, &options).expect("encodes"));
    }
    let src = tensor(Fill::Weights, dtype, elements, rng);
    if form == 1 {
        let step = GridStep { cell: rng.below(3), raw_bits: rng.below(3) as u8 };
        return (spec.clone(), encode_in_books(&src, &spec, &options, step).expect("finite weights"));
    }
    let grid = (form == 2).then_some(GridStep { cell: 1, raw_bits: 6 });
    let plain = codec::encode(&src, &spec, &EncodeOptions { grid, ..options }).expect("encodes");
    let ends: &[u8] = [&[0, 3][..], &[2], &[1, 2, 4]][rng.below(3)];
    let layered = codec::layer(&plain, ends).expect("whole").expect("bits");
    (spec, layered)
}

#[test]
fn payloads_of_all_forms_under_sanitizers() {
    let sources = Sources::copy();
    if !sanitizers_installed(sources.folder.path()) {
        eprintln!("SKIPPED: the C++ compiler cannot link {SANITIZERS:?}; install its sanitizer runtimes");
        return;
    }
    let program = sources.build(&["-O1", "-g", SANITIZERS[0], SANITIZERS[1]]);
    let mut rng = Rng(120);
    let (mut damaged, mut products) = (0, 0);
    for round in 0..96 {
        let (spec, blob) = blob(&mut rng);
        let header = Header::parse(&blob).expect("whole");
        let mut changed = blob.clone();
        let start = header.payload().start;
        let len = blob.len() - start;
        match round % 4 {
            0 => {}
            1 => changed[start + rng.below(len)..].fill(0xff),
            2 => changed[start..].iter_mut().for_each(|byte| *byte = rng.next() as u8),
            _ => (0..8).for_each(|_| changed[start + rng.below(len)] = rng.next() as u8),
        }
        let failed = |e| panic!("{spec:?}, round {round}: {e:?}");
        let case = Case::decode(&header, &changed, &[], 8 * rng.below(2));
        let out = program.run(&case.bytes(rng.next())).unwrap_or_else(failed);
        let expected = reference::decode(&blob).expect("whole");
        if round % 4 == 0 {
            assert!(out[..expected.len()] == expected, "{spec:?}");
        }
        damaged += usize::from(out[expected.len()..expected.len() + 4] != [0; 4]);
        if spec.dtype.is_integer() {
            continue;
        }
        for case in Case::product(&header, &changed, [1, 7][rng.below(2)]).into_iter().flatten() {
            program.run(&case.bytes(rng.next())).unwrap_or_else(failed);
            products += 1;
        }
    }
    assert!(products > 20, "only {products} products were tried");
    assert!(damaged > 12, "only {damaged} payloads were found to be damaged");

    // Where the kernel takes no care of symbols that have no value, that is seen.
    let spec = TensorSpec::row_major(Dtype::F32, &[4096]);
    let src = tensor(Fill::Weights, Dtype::F32, 4096, &mut rng);
    let step = GridStep { cell: 1, raw_bits: 0 };
    let blob = encode_in_books(&src, &spec, &EncodeOptions::default(), step).expect("finite weights");
    let blob = without_values(&blob);
    let header = Header::parse(&blob).expect("whole");
    let case = Case::decode(&header, &blob, &[], 0);
    assert!(program.run(&case.bytes(0)).is_ok());
    let care = "quad.symbols & 31 * ONES";
    let careless = Sources::copy().plant("cuda/codebook.cuh", care, 0, "quad.symbols & 255 * ONES");
    let careless = careless.plant("cuda/codebook.cuh", "8 * i & (NZ_CUDA_BOOK - 1)", 0, "8 * i & 255");
    let (_, said) = careless.build(&["-O1", "-g", SANITIZERS[0]]).fails(&case.bytes(0));
    assert!(said.contains("heap-buffer-overflow"), "{said}");

    // A layer ends with the blob.
    let plain = codec::encode(&src, &spec, &EncodeOptions::default()).expect("encodes");
    let blob = codec::layer(&plain, &[2]).expect("whole").expect("bits");
    let case = Case::decode(&Header::parse(&blob).expect("whole"), &blob, &[], 8);
    assert_eq!(program.run(&case.bytes(0)).expect("runs")[..src.len()], src);
    let over_read = Sources::copy().plant("cuda/planes.cuh", "if (blob_end - source >= 16)", 0, "if (true)");
    let (_, said) = over_read.build(&["-O1", "-g", SANITIZERS[0]]).fails(&case.bytes(0));
    assert!(said.contains("heap-buffer-overflow") && said.contains("READ of size"), "{said}");
}

/// Deltas and bases, each whole and broken.
#[test]
fn payloads_of_deltas_under_sanitizers() {
    let sources = Sources::copy();
    if !sanitizers_installed(sources.folder.path()) {
        eprintln!("SKIPPED: the C++ compiler cannot link {SANITIZERS:?}; install its sanitizer runtimes");
        return;
    }
    let program = sources.build(&["-O1", "-g", SANITIZERS[0], SANITIZERS[1]]);
    let mut rng = Rng(121);
    let (mut damaged, mut products) = (0, 0);
    for round in 0..120 {
        let dtype = DTYPES[rng.below(3)];
        let spec = specs(dtype).swap_remove(rng.below(13));
        let elements = spec.elements().expect("small") as usize;
        let weights = tensor(FILLS[rng.below(FILLS.len())], dtype, elements, &mut rng);
        let base = match rng.below(2) {
            0 => write(&weights, &spec, &Plan::random(&mut rng), &mut rng),
            _ => codec::encode(&weights, &spec, &EncodeOptions::default()).expect("encodes"),
        };
        let src = match rng.below(2) {
            0 => tensor(FILLS[rng.below(FILLS.len())], dtype, elements, &mut rng),
            _ => tuned(&weights, dtype, &mut rng),
        };
        let delta = match rng.below(2) {
            0 => write_delta(&src, &base, &DeltaPlan::random(&mut rng)),
            _ => codec::encode_delta_to_blob(&src, &base).expect("encodes"),
        };
        let headers = [&delta, &base].map(|blob| Header::parse(blob).expect("whole"));
        let mut blobs = [delta, base];
        let broken = usize::from(rng.below(4) == 0);
        let range = headers[broken].payload();
        if !range.is_empty() {
            let changed = &mut blobs[broken];
            match round % 4 {
                0 => {}
                1 => changed[range.start + rng.below(range.len())..].fill(0xff),
                2 => changed[range].iter_mut().for_each(|byte| *byte = rng.next() as u8),
                _ => (0..8).for_each(|_| changed[range.start + rng.below(range.len())] = rng.next() as u8),
            }
        }
        let (headers, blobs) = ([&headers[0], &headers[1]], [&blobs[0][..], &blobs[1][..]]);
        let failed = |e| panic!("{spec:?}, round {round}: {e:?}");
        let case = Case::decode_delta(headers, blobs, 8 * rng.below(2));
        let out = program.run(&case.bytes(rng.next())).unwrap_or_else(failed);
        if round % 4 == 0 {
            assert!(out[..src.len()] == src, "{spec:?}, round {round}");
        }
        damaged += usize::from(out[src.len()..src.len() + 4] != [0; 4]);
        if spec.shape.len() == 2
            && let Some(case) = Case::product_delta(headers, blobs, [1, 7][rng.below(2)])
        {
            program.run(&case.bytes(rng.next())).unwrap_or_else(failed);
            products += 1;
        }
    }
    assert!(products > 30, "only {products} products were tried");
    assert!(damaged > 30, "only {damaged} payloads were found to be damaged");

    // Residuals of 1, without raw bits, when it was written, so that there is little room.
    let spec = TensorSpec::row_major(Dtype::Bf16, &[1024]);
    let base = codec::encode(&[0; 2048], &spec, &EncodeOptions::default()).expect("encodes");
    let tiers = (0..8u8).map(|tier| (2, (0..3).map(|i| [1, 16, 2][i] + 20 * tier).collect())).collect();
    let plan = DeltaPlan { block_len: 1024, tiers, residual: Residual::Xor, exponent: 255 };
    let delta = write_delta(&[1, 0].repeat(1024), &base, &plan);
    let headers = [&delta, &base].map(|blob| Header::parse(blob).expect("whole"));
    let record = headers[0].record(0);
    let with = |code: u8| {
        let mut changed = delta.clone();
        changed[record.start..record.start + 256].fill(code * 0x55);
        Case::decode_delta([&headers[0], &headers[1]], [&changed, &base], 0)
    };
    let lengths = "if (size > end - at || (tier > 0 && n + NZ_CUDA_PADDING > weight.tail_room)) return 0;";
    let raw_bits = "if (all > limit - bit) return false;";
    // Only escapes; then only symbols of 15 raw bits.
    for (code, check, without) in [(3, lengths, ""), (1, raw_bits, "(void)limit;")] {
        let broken = with(code);
        let out = program.run(&broken.bytes(0)).expect("runs");
        assert!(out[2048..2052] != [0; 4], "damage is told");
        let unchecked = Sources::copy().plant("cuda/delta.cuh", check, 0, without);
        let (_, said) = unchecked.build(&["-O1", "-g", SANITIZERS[0]]).fails(&broken.bytes(0));
        assert!(said.contains("heap-buffer-overflow"), "{check}: {said}");
    }
    // A symbol of a length that no residual has, before others that have raw bits.
    let plan = DeltaPlan { tiers: vec![(2, vec![1, 40, 2])], ..plan };
    let delta = write_delta(&[2, 0].repeat(1024), &base, &plan);
    let header = Header::parse(&delta).expect("whole");
    let mut changed = delta.clone();
    changed[header.record(0).start] = 0x55;
    let broken = Case::decode_delta([&header, &headers[1]], [&changed, &base], 0);
    assert!(program.run(&broken.bytes(0)).expect("runs")[2048..2052] != [0; 4], "damage is told");
    let check = "if (__ballot_sync(ALL_LANES, is_bad) != 0) return false;";
    let unchecked = Sources::copy().plant("cuda/delta.cuh", check, 0, "(void)is_bad;");
    let (_, said) = unchecked.build(&["-O1", "-g", SANITIZERS[0], SANITIZERS[1]]).fails(&broken.bytes(0));
    assert!(said.contains("shift exponent"), "{said}");
}

/// Each barrier between base, residuals and weights is needed.
#[test]
fn missing_barriers_of_deltas_are_caught() {
    let mut rng = Rng(122);
    let spec = TensorSpec::row_major(Dtype::Bf16, &[3, 3000]);
    let weights = tensor(Fill::Weights, Dtype::Bf16, 9000, &mut rng);
    // Two blocks of the base in a unit.
    let options = EncodeOptions { block_len: 1984, ..Default::default() };
    let base = codec::encode(&weights, &spec, &options).expect("encodes");
    let src = tuned(&weights, Dtype::Bf16, &mut rng);
    let delta = codec::encode_delta_to_blob(&src, &base).expect("encodes");
    let headers = [&delta, &base].map(|blob| Header::parse(blob).expect("whole"));
    let case = Case::decode_delta([&headers[0], &headers[1]], [&delta, &base], 0);
    let intact = Sources::copy().build(&["-O0"]);
    assert!(!is_caught(&intact, &case, &src, 0..12));
    let source = std::fs::read_to_string(cpp_folder().join("cuda/delta.cuh")).expect("read");
    let barrier = "__syncthreads();";
    assert_eq!(source.matches(barrier).count(), 3, "all barriers are tried below");
    for nth in 0..3 {
        let program = Sources::copy().plant("cuda/delta.cuh", barrier, nth, ";").build(&["-O0"]);
        assert!(is_caught(&program, &case, &src, 0..60), "barrier {nth} of delta.cuh");
    }
}
