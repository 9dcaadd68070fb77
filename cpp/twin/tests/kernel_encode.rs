//! The CUDA kernels that encode, on the CPU, with all that the host does between them: the bytes are those of the codec.

mod common;

use std::collections::HashSet;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use common::twin::Twin;
use common::{DTYPES, FILLS, Fill, Rng, specs, tensor};
use nz_onnx::codec::{self, EncodeOptions, GridStep, Profile};
use nz_onnx::cuda::job::{Kernel, Launch};
use nz_onnx::cuda::port::{Device, DeviceError, RowCopy, StatusWord};
use nz_onnx::cuda::{DecodeArguments, EncodeArguments, EncodeError, ProductArguments, encode};
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

/// A device on which something writes to the tensor before the launch of one kernel.
struct Busy {
    twin: Twin,
    before: Kernel,
    /// Whether there will be exponents that the survey has not seen, else the same words in another order.
    strange: bool,
    times: AtomicU32,
}

// SAFETY (of all blocks): the promise is passed on.
impl Device for Busy {
    fn allocate(&self, bytes: u64) -> Result<u64, DeviceError> {
        self.twin.allocate(bytes)
    }
    unsafe fn free(&self, address: u64) {
        // SAFETY: as above.
        unsafe { self.twin.free(address) }
    }
    unsafe fn read(&self, from: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        // SAFETY: as above.
        unsafe { self.twin.read(from, out) }
    }
    unsafe fn write(&self, bytes: &[u8], to: u64) -> Result<(), DeviceError> {
        // SAFETY: as above.
        unsafe { self.twin.write(bytes, to) }
    }
    unsafe fn wait(&self, stream: *mut c_void) -> Result<(), DeviceError> {
        // SAFETY: as above.
        unsafe { self.twin.wait(stream) }
    }
    unsafe fn copy_rows(&self, stream: *mut c_void, copy: RowCopy) -> Result<(), DeviceError> {
        // SAFETY: as above.
        unsafe { self.twin.copy_rows(stream, copy) }
    }
    unsafe fn decode(
        &self,
        stream: *mut c_void,
        launch: &Launch<DecodeArguments>,
    ) -> Result<(), DeviceError> {
        // SAFETY: as above.
        unsafe { self.twin.decode(stream, launch) }
    }
    unsafe fn multiply(
        &self,
        stream: *mut c_void,
        launch: &Launch<ProductArguments>,
    ) -> Result<(), DeviceError> {
        // SAFETY: as above.
        unsafe { self.twin.multiply(stream, launch) }
    }
    unsafe fn encode(
        &self,
        stream: *mut c_void,
        launch: &Launch<EncodeArguments>,
    ) -> Result<(), DeviceError> {
        if launch.kernel == self.before {
            let source = launch.arguments.source;
            let mut bytes = self.twin.bytes_at(source);
            match self.strange {
                true => bytes.fill(0x01),
                false => bytes.reverse(),
            }
            // SAFETY: the tensor's own memory.
            unsafe { self.twin.write(&bytes, source) }?;
            self.times.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as above.
        unsafe { self.twin.encode(stream, launch) }
    }
    fn status(&self) -> Result<Box<dyn StatusWord>, DeviceError> {
        self.twin.status()
    }
}

/// It is told, and nothing is written beside the blob: the device looks at what it frees.
#[test]
fn a_tensor_that_changes_is_told() {
    let mut rng = Rng(84);
    for dtype in DTYPES {
        for strange in [false, true] {
            let spec = TensorSpec::row_major(dtype, &[3, 4001]);
            let src = source(Fill::Weights, &spec, &mut rng);
            let busy =
                Busy { twin: Twin::default(), before: Kernel::Write, strange, times: AtomicU32::new(0) };
            let outcome = encode_on(&busy, &src, &spec, &EncodeOptions::default());
            assert!(matches!(outcome, Err(EncodeError::Changed { .. })), "{dtype:?} {strange}: {outcome:?}");
            assert_eq!(busy.times.into_inner(), 1);
        }
    }
    // A sample finds no subnormal, then there are only such; the same again when all blocks were looked at.
    let spec = TensorSpec::row_major(Dtype::Bf16, &[512, 512]);
    let src = source(Fill::Weights, &spec, &mut rng);
    let busy =
        Busy { twin: Twin::default(), before: Kernel::Measure, strange: false, times: AtomicU32::new(0) };
    let options = EncodeOptions { mantissa_bits: Some(2), ..Default::default() };
    let found = encode_on(&busy, &src, &spec, &options);
    assert!(busy.times.into_inner() >= 1);
    if let Ok(blob) = found {
        assert!(codec::decode(&blob).is_ok(), "a blob of what was there when it was measured");
    }
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
