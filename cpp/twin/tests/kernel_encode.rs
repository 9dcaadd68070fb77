//! The CUDA kernels that encode, on the CPU, with all that the host does between them: the bytes are those of the codec.

mod common;

use std::collections::HashSet;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::twin::Twin;
use common::{DTYPES, FILLS, Fill, Rng, specs, tensor};
use nz_onnx::codec::{self, EncodeOptions, GridStep, Profile};
use nz_onnx::cuda::job::{Kernel, Launch};
use nz_onnx::cuda::port::Device;
use nz_onnx::cuda::{EncodeArguments, EncodeError, encode};
use nz_onnx::format::{Dtype, Header, TensorSpec, Transform};

const PROFILES: [Profile; 3] = [Profile::Compact, Profile::Fast, Profile::Gpu];

fn source(fill: Fill, spec: &TensorSpec, rng: &mut Rng) -> Vec<u8> {
    tensor(fill, spec.dtype, spec.elements().expect("small") as usize, rng)
}

/// A copy of a tensor in a device's memory.
struct Tensor<'d> {
    device: &'d dyn Device,
    address: u64,
}

impl<'d> Tensor<'d> {
    fn new(device: &'d dyn Device, bytes: &[u8]) -> Self {
        let address = device.allocate(bytes.len() as u64).expect("memory");
        // SAFETY: new memory of this length.
        unsafe { device.write(bytes, address) }.expect("written");
        Tensor { device, address }
    }
}

impl Drop for Tensor<'_> {
    fn drop(&mut self) {
        // SAFETY: from `allocate`, and no kernel runs.
        unsafe { self.device.free(self.address) }
    }
}

fn encode_on(
    device: &dyn Device,
    src: &[u8],
    spec: &TensorSpec,
    options: &EncodeOptions,
) -> Result<Vec<u8>, EncodeError> {
    let tensor = Tensor::new(device, src);
    // SAFETY: the tensor is alive, and the device has no streams.
    let encoded = unsafe { encode(device, ptr::null_mut(), tensor.address, spec, options) }?;
    let mut resident = vec![0; encoded.blob().len()];
    // SAFETY: the blob is there as long as `encoded` is.
    unsafe { device.read(encoded.address(), &mut resident) }?;
    assert!(resident == encoded.blob(), "what is on the device is what was read back");
    Ok(encoded.into_blob())
}

/// Encodes on the device, and compares with the codec; the header.
fn check(device: &dyn Device, src: &[u8], spec: &TensorSpec, options: &EncodeOptions, what: &str) -> Header {
    let expected = codec::encode(src, spec, options).expect("encodes");
    let found = encode_on(device, src, spec, options).expect("encodes");
    assert!(found == expected, "{spec:?} {options:?} {what}");
    Header::parse(&found).expect("whole")
}

/// Every dtype, fill, shape and layout that the other tests have, whole and cut, with every block length and profile.
#[test]
fn blobs_are_those_of_the_codec() {
    let (twin, mut rng) = (Twin::default(), Rng(80));
    let mut met = HashSet::new();
    for spec in DTYPES.into_iter().flat_map(specs) {
        for fill in FILLS {
            let src = source(fill, &spec, &mut rng);
            for mantissa_bits in [None, Some(rng.below(usize::from(spec.dtype.mantissa_bits())) as u8)] {
                let block_len = [64, 192, 576, 1024, 4096][rng.below(5)];
                let profile = PROFILES[rng.below(3)];
                let options = EncodeOptions { block_len, profile, mantissa_bits, ..Default::default() };
                let header = check(&twin, &src, &spec, &options, &format!("{fill:?}"));
                met.insert(header.transform);
                assert!(header.widths.len() == header.blocks().count() as usize);
            }
        }
    }
    assert_eq!(met, HashSet::from([Transform::Split, Transform::NormalisedSplit]));
}

/// Every number of mantissa bits, and tiers of all widths.
#[test]
fn cut_mantissas_are_those_of_the_codec() {
    let (twin, mut rng) = (Twin::default(), Rng(81));
    let (mut widths, mut most_tiers, mut planes) = (HashSet::new(), 0, HashSet::new());
    for dtype in DTYPES {
        for k in 0..dtype.mantissa_bits() {
            for fill in [Fill::Weights, Fill::Subnormals, Fill::Specials, Fill::RandomBits] {
                let spec = match rng.below(3) {
                    0 => TensorSpec::row_major(dtype, &[5, 911]),
                    1 => TensorSpec::column_tiles(dtype, 37, 201, 128),
                    _ => TensorSpec::row_major(dtype, &[2, 4096]),
                };
                let src = source(fill, &spec, &mut rng);
                let profile = PROFILES[rng.below(3)];
                let options = EncodeOptions { mantissa_bits: Some(k), profile, ..Default::default() };
                let header = check(&twin, &src, &spec, &options, &format!("{fill:?}"));
                widths.extend(header.tiers.iter().map(|tier| tier.width));
                most_tiers = most_tiers.max(header.tiers.len());
                planes.extend(header.widths);
            }
        }
    }
    assert_eq!(widths, HashSet::from([1, 2, 3, 4]));
    assert!(most_tiers > 4, "{most_tiers}");
    assert!((0..23).all(|m| planes.contains(&m)), "{planes:?}");
}

/// All 65536 values of the two-byte formats.
#[test]
fn every_two_byte_pattern_is_coded_as_by_the_codec() {
    let twin = Twin::default();
    let src: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for dtype in [Dtype::F16, Dtype::Bf16] {
        for mantissa_bits in [None, Some(0), Some(3), Some(6)] {
            let options = EncodeOptions { mantissa_bits, ..Default::default() };
            check(&twin, &src, &TensorSpec::row_major(dtype, &[65_536]), &options, "");
            check(&twin, &src, &TensorSpec::column_tiles(dtype, 256, 256, 64), &options, "");
        }
    }
}

/// Tensors that the codec looks at only a part of, and what that part does not tell.
#[test]
fn large_tensors_are_sampled_as_by_the_codec() {
    let (twin, mut rng) = (Twin::default(), Rng(82));
    for (i, spec) in [
        TensorSpec::row_major(Dtype::Bf16, &[512, 512]),
        TensorSpec::column_tiles(Dtype::F32, 700, 381, 128),
        TensorSpec::row_major(Dtype::F16, &[400_001]),
    ]
    .into_iter()
    .enumerate()
    {
        let mut src = source(Fill::Weights, &spec, &mut rng);
        let profile = PROFILES[i];
        for mantissa_bits in [None, Some(4)] {
            let options = EncodeOptions { profile, mantissa_bits, ..Default::default() };
            let header = check(&twin, &src, &spec, &options, "sampled");
            assert_eq!(header.transform, Transform::Split);
        }
        // One subnormal that no sample has: at the end, behind the last stretch.
        if spec.dtype != Dtype::F16 {
            let at = src.len() - spec.dtype.size();
            src[at..].fill(0);
            src[at] = 1;
            let options = EncodeOptions { profile, mantissa_bits: Some(4), ..Default::default() };
            let header = check(&twin, &src, &spec, &options, "a subnormal at the end");
            assert_eq!(header.transform, Transform::NormalisedSplit);
        }
    }
}

/// More blocks than a survey has thread blocks.
#[test]
fn many_blocks_are_coded_as_by_the_codec() {
    let (twin, mut rng) = (Twin::default(), Rng(85));
    for (dtype, fill) in [(Dtype::F32, Fill::Upcast), (Dtype::Bf16, Fill::Subnormals)] {
        let spec = TensorSpec::row_major(dtype, &[100_003]);
        let src = source(fill, &spec, &mut rng);
        let header = check(&twin, &src, &spec, &EncodeOptions { block_len: 64, ..Default::default() }, "");
        assert!(header.blocks().count() > 1024);
    }
}

/// Each encode has launches with seeds of their own; many of them give the same.
#[test]
fn the_order_of_warps_and_lanes_does_not_matter() {
    let (twin, mut rng) = (Twin::default(), Rng(83));
    let spec = TensorSpec::row_major(Dtype::F32, &[4096 + 777]);
    for fill in [Fill::Weights, Fill::Subnormals, Fill::RandomBits] {
        let src = source(fill, &spec, &mut rng);
        for _ in 0..25 {
            check(&twin, &src, &spec, &EncodeOptions::default(), "again");
        }
    }
}

/// A device on which something writes to the tensor before each launch of `kernel`: words that the survey has not seen, or
/// the same in another order.
fn busy(kernel: Kernel, strange: bool, times: &Arc<AtomicU32>) -> Twin {
    let times = Arc::clone(times);
    let write = move |twin: &Twin, launch: &Launch<EncodeArguments>| {
        if launch.kernel != kernel {
            return;
        }
        let source = launch.arguments.source;
        let mut bytes = twin.bytes_at(source);
        match strange {
            true => bytes.fill(0x01),
            false => bytes.reverse(),
        }
        // SAFETY: the tensor's own memory.
        unsafe { twin.write(&bytes, source) }.expect("written");
        times.fetch_add(1, Ordering::Relaxed);
    };
    Twin::around_encode(Box::new(write), Box::new(|_, _| {}))
}

/// It is told, and nothing is written beside the blob: the device looks at what it frees.
#[test]
fn a_tensor_that_changes_is_told() {
    let mut rng = Rng(84);
    let times = Arc::new(AtomicU32::new(0));
    for dtype in DTYPES {
        for strange in [false, true] {
            let spec = TensorSpec::row_major(dtype, &[3, 4001]);
            let src = source(Fill::Weights, &spec, &mut rng);
            let twin = busy(Kernel::Write, strange, &times);
            let outcome = encode_on(&twin, &src, &spec, &EncodeOptions::default());
            assert!(matches!(outcome, Err(EncodeError::Changed { .. })), "{dtype:?} {strange}: {outcome:?}");
        }
    }
    assert_eq!(times.load(Ordering::Relaxed), 6);
    // A sample finds no subnormal, then there are only such; all blocks are looked at, and there are none again.
    let spec = TensorSpec::row_major(Dtype::Bf16, &[512, 512]);
    let subnormals: Vec<u8> = [0x11, 0].repeat(512 * 512);
    let (mut turn, measured) = (subnormals.clone(), Arc::clone(&times));
    turn.rotate_left(1); // 0x1100: normal
    let swap = move |twin: &Twin, launch: &Launch<EncodeArguments>| {
        if launch.kernel != Kernel::Write {
            let bytes = if launch.kernel == Kernel::Survey { &turn } else { &subnormals };
            // SAFETY: the tensor's own memory.
            unsafe { twin.write(bytes, launch.arguments.source) }.expect("written");
            measured.fetch_add(1, Ordering::Relaxed);
        }
    };
    let twin = Twin::around_encode(Box::new(swap), Box::new(|_, _| {}));
    let options = EncodeOptions { mantissa_bits: Some(2), ..Default::default() };
    let src = [0, 0x11].repeat(512 * 512);
    let outcome = encode_on(&twin, &src, &spec, &options);
    // The sample is followed by a survey of all, whose coding takes any word but those of other transforms.
    assert_eq!(times.load(Ordering::Relaxed), 6 + 4, "{outcome:?}");
    let blob = outcome.expect("a blob of what was measured and written");
    assert!(codec::decode(&blob).is_ok());
}

#[test]
fn what_cannot_be_is_refused() {
    let twin = Twin::default();
    let spec = TensorSpec::row_major(Dtype::F32, &[64]);
    let refused = |source: u64, spec: &TensorSpec, options: &EncodeOptions| {
        // SAFETY: the tensor is not looked at.
        let outcome = unsafe { encode(&twin, ptr::null_mut(), source, spec, options) };
        outcome.err().expect("refused").to_string()
    };
    let plain = EncodeOptions::default();
    let grid = EncodeOptions { grid: Some(GridStep { cell: 1, raw_bits: 4 }), ..plain };
    assert!(refused(64, &spec, &grid).contains("not encoded on a device"));
    assert!(
        refused(64, &TensorSpec::row_major(Dtype::I8, &[64]), &plain).contains("not encoded on a device")
    );
    assert!(refused(66, &spec, &plain).contains("0x42, not at a multiple of 4"));
    assert!(refused(64, &spec, &EncodeOptions { block_len: 100, ..plain }).contains("block length 100"));
    let huge = TensorSpec::row_major(Dtype::F32, &[1 << 41]);
    assert!(refused(64, &huge, &plain).contains("too large"));
}
