//! Blobs that the format allows but the codec never writes: both readers have to understand them.

mod common;

use common::writer::{Plan, write};
use common::{DTYPES, FILLS, Rng, specs, tensor};
use nz_onnx::codec;
use nz_onnx::format::TensorSpec;

/// Any tiers, any block length, mantissa bits to spare: C++ and Rust give the source back.
#[test]
fn any_plan_is_read_by_both() {
    let mut rng = Rng(20);
    for spec in DTYPES.into_iter().flat_map(specs) {
        for fill in FILLS {
            let src = tensor(fill, spec.dtype, spec.elements().expect("small") as usize, &mut rng);
            let plan = Plan::random(&mut rng);
            let blob = write(&src, &spec, &plan, &mut rng);
            let what = format!("{spec:?} {fill:?} blocks of {} tiers {:?}", plan.block_len, plan.tiers);
            let cpp = nz_cpp_twin::decode(&blob).unwrap_or_else(|e| panic!("C++: {e}: {what}"));
            assert!(cpp == src, "C++: {what}");
            let rust = codec::decode(&blob).unwrap_or_else(|e| panic!("Rust: {e}: {what}"));
            assert!(rust == src, "Rust: {what}");
        }
    }
}

/// Every dimension is at least 1: neither reads a tensor without elements.
#[test]
fn tensors_without_elements_are_refused() {
    let mut rng = Rng(21);
    let shapes = [vec![0], vec![3, 0, 5], vec![0, 9], vec![9, 0]];
    for (dtype, shape) in DTYPES.into_iter().flat_map(|dtype| shapes.iter().map(move |shape| (dtype, shape)))
    {
        let mut specs = vec![TensorSpec::row_major(dtype, shape)];
        if let [k, n] = shape[..] {
            specs.push(TensorSpec::column_tiles(dtype, k, n, 64));
        }
        for spec in specs {
            let blob = write(&[], &spec, &Plan::random(&mut rng), &mut rng);
            assert!(nz_cpp_twin::decode(&blob).is_err(), "C++: {spec:?}");
            assert!(codec::decode(&blob).is_err(), "Rust: {spec:?}");
        }
    }
}
