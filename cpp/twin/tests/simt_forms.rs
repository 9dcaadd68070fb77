//! Payloads of codebooks, integers and layers, whole and broken, under sanitizers: no access outside of any buffer, nor
//! outside of shared memory. What `simt_faults.rs` is for floats.

mod common;

use common::program::{Case, SANITIZERS, Sources, sanitizers_installed};
use common::{DTYPES, Fill, Rng, encode_in_books, tensor, without_values};
use nz_onnx::codec::{self, EncodeOptions, GridStep, Profile, reference};
use nz_onnx::format::{Dtype, Header, TensorSpec};

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
