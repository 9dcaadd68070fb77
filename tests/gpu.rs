//! The CUDA kernels on a device, against the reference decoder. Where there is no driver these tests say so and skip;
//! with `REQUIRE_GPU=1` they fail there.
#![cfg(feature = "cuda")]

mod common;

use std::sync::Arc;

use common::{DTYPES, KINDS, Kind, Rng, tensor};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, sys};
use nz_onnx::codec::{self, EncodeOptions, GridStep, Profile, reference};
use nz_onnx::cuda::device::{DeviceError, Kernels, is_driver_present};
use nz_onnx::cuda::encode;
use nz_onnx::cuda::job::{
    DeltaMemory, DeviceDelta, DeviceWeight, Indices, Output, WeightMemory, check_status,
};
use nz_onnx::cuda::port::Device as _;
use nz_onnx::cuda::product::{Operands, Product};
use nz_onnx::format::{Dtype, Header, Layout, TensorSpec};

/// A device, and a stream on it that its owner keeps.
struct Device {
    kernels: Kernels,
    stream: Arc<CudaStream>,
}

fn device() -> Option<Device> {
    if !is_driver_present() {
        let required = std::env::var("REQUIRE_GPU").is_ok_and(|value| value == "1");
        assert!(!required, "REQUIRE_GPU=1, and there is no CUDA driver on this machine");
        eprintln!("SKIPPED: no CUDA driver on this machine; REQUIRE_GPU=1 makes this a failure");
        return None;
    }
    let kernels = Kernels::load(0).expect("the kernels load");
    let stream = kernels.context().new_stream().expect("a stream");
    Some(Device { kernels, stream })
}

impl Device {
    fn put(&self, bytes: &[u8]) -> CudaSlice<u8> {
        self.stream.clone_htod(bytes).expect("copied")
    }

    fn get(&self, memory: &CudaSlice<u8>) -> Vec<u8> {
        self.stream.clone_dtoh(memory).expect("copied")
    }

    fn address(&self, memory: &CudaSlice<u8>) -> u64 {
        memory.device_ptr(&self.stream).0
    }

    fn raw_stream(&self) -> *mut std::ffi::c_void {
        self.stream.cu_stream().cast()
    }

    fn verdict(&self, status: &CudaSlice<u8>) -> nz_onnx::error::Result<()> {
        check_status(u32::from_le_bytes(self.get(status).try_into().expect("4 bytes")))
    }
}

/// Device memory of a product's operands.
struct ProductMemory {
    x: CudaSlice<u8>,
    y: CudaSlice<u8>,
    partial: CudaSlice<u8>,
    status: CudaSlice<u8>,
    dtype: Dtype,
}

impl ProductMemory {
    /// With `x`, and room for what the product of `n` columns writes, in elements of `dtype`.
    fn new(device: &Device, product: &Product<'_>, x: &[u8], n: usize, dtype: Dtype) -> Self {
        ProductMemory {
            x: device.put(x),
            y: device.put(&vec![0x5a; product.rows() as usize * n * dtype.size()]),
            partial: device.put(&vec![0xff; product.partial_bytes() as usize]),
            status: device.put(&[0; 4]),
            dtype,
        }
    }

    fn operands(&self, device: &Device) -> Operands {
        Operands {
            dtype: self.dtype,
            x: device.address(&self.x),
            y: device.address(&self.y),
            partial: device.address(&self.partial),
            status: device.address(&self.status),
            alpha: 1.0,
            addend: None,
        }
    }
}

/// A blob on the device.
struct Weight {
    device_weight: DeviceWeight,
    memory: WeightMemory,
    _keep: [CudaSlice<u8>; 2],
}

impl Weight {
    fn new(device: &Device, blob: &[u8]) -> Self {
        Weight::to_depth(device, blob, usize::MAX)
    }

    fn to_depth(device: &Device, blob: &[u8], depth: usize) -> Self {
        let header = Header::parse(blob).expect("whole");
        let device_weight = DeviceWeight::to_depth(&header, depth).expect("a header of ours");
        let keep = [device.put(blob), device.put(device_weight.table())];
        let memory = WeightMemory { blob: device.address(&keep[0]), table: device.address(&keep[1]) };
        Weight { device_weight, memory, _keep: keep }
    }
}

fn decode(device: &Device, blob: &[u8], dtype: Dtype) -> Vec<u8> {
    decode_weight(device, &Weight::new(device, blob), dtype)
}

fn decode_weight(device: &Device, weight: &Weight, dtype: Dtype) -> Vec<u8> {
    let out = device.put(&vec![0x5a; weight.device_weight.elements() as usize * dtype.size()]);
    let status = device.put(&[0; 4]);
    let output = Output { dtype, address: device.address(&out), status: device.address(&status) };
    let launch = weight.device_weight.decode_all(weight.memory, output).expect("a launch");
    // SAFETY: all memory lives until it is read back on the same stream.
    unsafe { device.kernels.launch(device.raw_stream(), &launch) }.expect("launched");
    device.verdict(&status).expect("whole");
    device.get(&out)
}

#[test]
fn no_driver_is_told() {
    if is_driver_present() {
        return;
    }
    let error = Kernels::load(0).err().expect("no driver");
    assert_eq!(error, DeviceError::NoDriver);
    assert!(error.to_string().contains("libcuda.so.1"));
}

/// Bit for bit, all kinds of weights, both layouts, cut and whole.
#[test]
fn blobs_decode_bit_for_bit() {
    let Some(device) = device() else { return };
    for dtype in DTYPES {
        for kind in KINDS {
            for spec in
                [TensorSpec::row_major(dtype, &[129, 1000]), TensorSpec::column_tiles(dtype, 300, 700, 256)]
            {
                let src = tensor(kind, dtype, spec.elements().expect("small") as usize, 1);
                let grid = Some(GridStep { cell: 1, raw_bits: 4 });
                for (mantissa_bits, grid, profile) in [
                    (None, None, Profile::Compact),
                    (None, None, Profile::Fast),
                    (None, None, Profile::Gpu),
                    (Some(3), None, Profile::Compact),
                    (Some(3), None, Profile::Gpu),
                    (None, grid, Profile::Gpu),
                ] {
                    if grid.is_some() && kind != Kind::Gauss {
                        continue; // no grid holds all kinds
                    }
                    let options = EncodeOptions { mantissa_bits, grid, profile, ..Default::default() };
                    let blob = codec::encode(&src, &spec, &options).expect("encodes");
                    let expected = reference::decode(&blob).expect("whole");
                    assert!(decode(&device, &blob, dtype) == expected, "{spec:?} {kind:?} {options:?}");
                }
            }
        }
    }
}

/// Codebooks, integers, and layers at every depth.
#[test]
fn other_forms_decode_bit_for_bit() {
    let Some(device) = device() else { return };
    let (rows, tiles) = ([129, 1000], (300, 704, 256));
    let specs = |dtype| {
        [TensorSpec::row_major(dtype, &rows), TensorSpec::column_tiles(dtype, tiles.0, tiles.1, tiles.2)]
    };
    let options = EncodeOptions::default();
    for spec in DTYPES.into_iter().flat_map(specs) {
        let src = tensor(Kind::Gauss, spec.dtype, spec.elements().expect("small") as usize, 7);
        let survey =
            codec::survey_codebooks(&src, &spec, &options).expect("elements").expect("finite weights");
        let coding = survey.coding(GridStep { cell: 1, raw_bits: 1 });
        let blob = codec::encode_as(&src, &spec, options.block_len, &coding).expect("encodes");
        let expected = reference::decode(&blob).expect("whole");
        assert!(decode(&device, &blob, spec.dtype) == expected, "codebooks of {spec:?}");
        for grid in [None, Some(GridStep { cell: 1, raw_bits: 6 })] {
            let plain = codec::encode(&src, &spec, &EncodeOptions { grid, ..options }).expect("encodes");
            let blob = codec::layer(&plain, &[2, 4]).expect("whole").expect("bits");
            for depth in 0..=2 {
                let weight = Weight::to_depth(&device, &blob, depth);
                let expected = reference::decode_to(&blob, depth).expect("whole");
                assert!(decode_weight(&device, &weight, spec.dtype) == expected, "{spec:?} {grid:?} {depth}");
            }
        }
    }
    for spec in [Dtype::I8, Dtype::U8].into_iter().flat_map(specs) {
        let mut rng = Rng(8);
        let src: Vec<u8> =
            (0..spec.elements().expect("small")).map(|_| (rng.gauss() * 20.0) as i8 as u8).collect();
        let blob = codec::encode(&src, &spec, &options).expect("encodes");
        assert!(decode(&device, &blob, spec.dtype) == src, "{spec:?}");
    }
}

/// Deltas to a base, to the weights' own type and to float32; and products with small integers, whose sums are exact.
#[test]
fn deltas_are_decoded_and_multiplied_bit_for_bit() {
    let Some(device) = device() else { return };
    for dtype in DTYPES {
        for spec in
            [TensorSpec::row_major(dtype, &[129, 1000]), TensorSpec::column_tiles(dtype, 1000, 129, 128)]
        {
            let elements = spec.elements().expect("small") as usize;
            let mut rng = Rng(9);
            let integers = |rng: &mut Rng| -> Vec<f32> {
                (0..elements).map(|_| (rng.next() >> 62) as f32 - 1.0).collect()
            };
            let bytes_of = |values: &[f32]| -> Vec<u8> {
                let bytes = |&value: &f32| match dtype {
                    Dtype::F32 => value.to_le_bytes().to_vec(),
                    Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
                    _ => half::bf16::from_f32(value).to_le_bytes().to_vec(),
                };
                values.iter().flat_map(bytes).collect()
            };
            let w = integers(&mut rng);
            let [base, src] = [bytes_of(&integers(&mut rng)), bytes_of(&w)];
            for profile in [Profile::Compact, Profile::Gpu] {
                let options = EncodeOptions { profile, ..Default::default() };
                let base = codec::encode(&base, &spec, &options).expect("encodes");
                let blob = codec::encode_delta_to_blob(&src, &base).expect("encodes");
                let [header, base_header] = [&blob, &base].map(|blob| Header::parse(blob).expect("whole"));
                let delta = DeviceDelta::new(&header, &base_header).expect("headers of ours");
                let [blob, base, table] = [&blob[..], &base, delta.table()].map(|bytes| device.put(bytes));
                let memory = DeltaMemory {
                    blob: device.address(&blob),
                    table: device.address(&table),
                    base: device.address(&base),
                };
                for (out_type, expected) in [(dtype, src.clone()), (Dtype::F32, floats_to_bytes(&w))] {
                    let (out, status) = (device.put(&vec![0x5a; expected.len()]), device.put(&[0; 4]));
                    let (address, status_address) = (device.address(&out), device.address(&status));
                    let output = Output { dtype: out_type, address, status: status_address };
                    let launch = delta.decode(memory, |weight, memory| weight.decode_all(memory, output));
                    // SAFETY: all memory lives until it is read back on the same stream.
                    unsafe { device.kernels.launch(device.raw_stream(), &launch.expect("a launch")) }
                        .expect("launched");
                    device.verdict(&status).expect("whole");
                    assert!(device.get(&out) == expected, "{spec:?} {profile:?} to {out_type:?}");
                }
                for m in [1, 5] {
                    let x: Vec<f32> = (0..m * 1000).map(|_| (rng.next() >> 62) as f32 - 2.0).collect();
                    let product = delta.weight().product(m as u32).expect("few rows of a matrix");
                    let in_memory =
                        ProductMemory::new(&device, &product, bytemuck::cast_slice(&x), 129, Dtype::F32);
                    let operands = in_memory.operands(&device);
                    let (parts, sum) = delta.multiply(memory, &product, operands).expect("aligned");
                    // SAFETY: as above.
                    unsafe {
                        device.kernels.launch(device.raw_stream(), &parts).expect("launched");
                        device.kernels.launch(device.raw_stream(), &sum).expect("launched");
                    }
                    device.verdict(&in_memory.status).expect("whole");
                    let weight_at = |i: usize, j: usize| match spec.layout {
                        Layout::RowMajor => w[j * 1000 + i],
                        _ => w[i * 129 + j],
                    };
                    let expected: Vec<f32> = (0..m * 129)
                        .map(|at| (0..1000).map(|i| x[at / 129 * 1000 + i] * weight_at(i, at % 129)).sum())
                        .collect();
                    assert!(
                        device.get(&in_memory.y) == floats_to_bytes(&expected),
                        "{spec:?} {profile:?}, {m} rows"
                    );
                }
            }
        }
    }
}

fn floats_to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// 10^8 weights; `NZ_GPU_WEIGHTS` asks for another number.
#[test]
fn a_large_tensor_decodes_bit_for_bit() {
    let Some(device) = device() else { return };
    let wanted =
        std::env::var("NZ_GPU_WEIGHTS").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000_000usize);
    let rows = wanted.div_ceil(1 << 20);
    for dtype in DTYPES {
        let src = tensor(Kind::Gauss, dtype, 1 << 20, 2).repeat(rows);
        let spec = TensorSpec::row_major(dtype, &[rows as u64, 1 << 20]);
        for profile in [Profile::Compact, Profile::Gpu] {
            let blob = codec::encode(&src, &spec, &EncodeOptions { profile, ..Default::default() });
            assert!(decode(&device, &blob.expect("encodes"), dtype) == src, "{rows} x 2^20 of {dtype:?}");
        }
    }
}

/// The codec's bytes, of tensors small and large: 10^8 weights, or as many as `NZ_GPU_WEIGHTS` says, in the latter.
#[test]
fn tensors_are_encoded_to_the_bytes_of_the_codec() {
    let Some(device) = device() else { return };
    let check = |src: &[u8], spec: &TensorSpec, options: &EncodeOptions| {
        let memory = device.put(src);
        device.stream.synchronize().expect("done");
        let (stream, source) = (device.raw_stream(), device.address(&memory));
        // SAFETY: the tensor lives until this is done, and is on the device by now.
        let encoded = unsafe { encode(&device.kernels, stream, source, spec, options) }.expect("encodes");
        let expected = codec::encode(src, spec, options).expect("encodes");
        assert!(encoded.into_blob() == expected, "{spec:?} {options:?}");
    };
    for dtype in DTYPES {
        for kind in KINDS {
            for spec in
                [TensorSpec::row_major(dtype, &[129, 1000]), TensorSpec::column_tiles(dtype, 300, 700, 256)]
            {
                let src = tensor(kind, dtype, spec.elements().expect("small") as usize, 5);
                for profile in [Profile::Compact, Profile::Fast, Profile::Gpu] {
                    for (mantissa_bits, block_len) in [(None, 4096), (Some(3), 4096), (None, 192)] {
                        let options =
                            EncodeOptions { mantissa_bits, profile, block_len, ..Default::default() };
                        check(&src, &spec, &options);
                    }
                }
            }
        }
        let wanted =
            std::env::var("NZ_GPU_WEIGHTS").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000_000usize);
        let rows = wanted.div_ceil(1 << 20);
        let src = tensor(Kind::Gauss, dtype, 1 << 20, 6).repeat(rows);
        check(&src, &TensorSpec::row_major(dtype, &[rows as u64, 1 << 20]), &EncodeOptions::default());
    }
}

#[test]
fn rows_are_gathered() {
    let Some(device) = device() else { return };
    let spec = TensorSpec::row_major(Dtype::F16, &[500, 300]);
    let src = tensor(Kind::Gauss, Dtype::F16, 150_000, 3);
    let options = EncodeOptions { block_len: 1024, ..Default::default() };
    let weight = Weight::new(&device, &codec::encode(&src, &spec, &options).expect("encodes"));
    let rows: Vec<i64> = (0..700).map(|i| i * 37 % 1000 - 500).collect();
    let (indices, status) = (device.put(bytemuck::cast_slice(&rows)), device.put(&[0; 4]));
    let out = device.put(&vec![0x5a; rows.len() * 600]);
    let output = Output { dtype: Dtype::F16, address: device.address(&out), status: device.address(&status) };
    let indices_memory = Indices { address: device.address(&indices), count: rows.len() as u64, size: 8 };
    let launch = weight.device_weight.gather(weight.memory, output, indices_memory).expect("a launch");
    // SAFETY: all memory lives until it is read back on the same stream.
    unsafe { device.kernels.launch(device.raw_stream(), &launch) }.expect("launched");
    device.verdict(&status).expect("whole");
    let expected: Vec<u8> =
        rows.iter().flat_map(|&row| src[row.rem_euclid(500) as usize * 600..][..600].to_vec()).collect();
    assert!(device.get(&out) == expected);
}

/// Small integers, whose sums are exact in any order; the launches are captured in a graph and run from it.
#[test]
fn products_are_exact_from_a_captured_graph() {
    let Some(device) = device() else { return };
    let mut rng = Rng(4);
    for spec in [
        TensorSpec::row_major(Dtype::Bf16, &[700, 1024]),
        TensorSpec::column_tiles(Dtype::Bf16, 1024, 700, 256),
    ] {
        let w: Vec<f32> = (0..700 * 1024).map(|_| (rng.next() >> 62) as f32 - 1.0).collect();
        let bytes: Vec<u8> = w.iter().flat_map(|&w| half::bf16::from_f32(w).to_le_bytes()).collect();
        for (m, profile) in (1..=8usize).flat_map(|m| [(m, Profile::Compact), (m, Profile::Gpu)]) {
            let options = EncodeOptions { profile, ..Default::default() };
            let weight = Weight::new(&device, &codec::encode(&bytes, &spec, &options).expect("encodes"));
            let x: Vec<f32> = (0..m * 1024).map(|_| (rng.next() >> 62) as f32 - 2.0).collect();
            let product = weight.device_weight.product(m as u32).expect("few rows of a matrix");
            let in_memory = ProductMemory::new(&device, &product, bytemuck::cast_slice(&x), 700, Dtype::F32);
            let operands = in_memory.operands(&device);
            let launches = product.launches(weight.memory, operands).expect("aligned");
            device.stream.synchronize().expect("done");
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            device.stream.begin_capture(mode).expect("a capture");
            for launch in &launches {
                // SAFETY: all memory lives until it is read back on the same stream.
                unsafe { device.kernels.launch(device.raw_stream(), launch) }.expect("captured");
            }
            let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            let graph = device.stream.end_capture(flags).expect("captured").expect("a graph");
            graph.launch().expect("launched");
            device.verdict(&in_memory.status).expect("whole");
            let weight_at = |i: usize, j: usize| match spec.layout {
                Layout::RowMajor => w[j * 1024 + i],
                _ => w[i * 700 + j],
            };
            let expected: Vec<f32> = (0..m * 700)
                .map(|at| (0..1024).map(|i| x[at / 700 * 1024 + i] * weight_at(i, at % 700)).sum())
                .collect();
            let floats = |bytes: &[u8]| {
                bytes.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            };
            let sums: Vec<f32> = floats(&device.get(&in_memory.y));
            assert_eq!(sums, expected, "{spec:?}, {m} rows");
        }
    }
}

/// The same with tensor cores, from 1 to 64 rows; and decoded in the way that they decode.
#[test]
fn products_with_tensor_cores_are_exact() {
    let Some(device) = device() else { return };
    if !device.kernels.has_tensor_cores() {
        eprintln!(
            "SKIPPED: the device has no kernels with tensor cores, which are for compute capability 8.0"
        );
        return;
    }
    let mut rng = Rng(5);
    let rows = [(100, 4096), (35, 8192), (64, 1024), (33 * 8, 512)];
    let rows = rows.map(|(n, k)| (n, k, TensorSpec::row_major(Dtype::Bf16, &[n as u64, k as u64])));
    // Many blocks a warp, and few; the last tile narrower.
    let tiles = [(256, 512, 256), (2048, 4096, 256), (32_768, 1024, 256), (640, 2048, 256), (192, 512, 64)];
    let tiles =
        tiles.map(|(n, k, tile)| (n, k, TensorSpec::column_tiles(Dtype::Bf16, k as u64, n as u64, tile)));
    for (n, k, spec) in rows.into_iter().chain(tiles) {
        // Of many exponents, so that there are escapes of escapes.
        let powers = [1.0f32, 0.5, 2.0, 4.0, 1.5, 0.25, 8.0, 0.125];
        let w: Vec<f32> = (0..n * k)
            .map(|_| {
                powers[((rng.next() >> 61) * (rng.next() >> 61) / 7) as usize]
                    * [1.0, -1.0][(rng.next() >> 63) as usize]
            })
            .collect();
        let bits = |values: &[f32]| -> Vec<u8> {
            values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect()
        };
        let stored = match spec.layout {
            Layout::RowMajor => bits(&w),
            _ => bits(&(0..n * k).map(|i| w[i % n * k + i / n]).collect::<Vec<_>>()),
        };
        let options = EncodeOptions { profile: Profile::Gpu, ..Default::default() };
        let weight = Weight::new(&device, &codec::encode(&stored, &spec, &options).expect("encodes"));
        for m in [1usize, 2, 8, 9, 16, 17, 32, 33, 64] {
            let Some(product) = weight.device_weight.tensor_product(m as u32, Dtype::Bf16) else {
                let has_none = match spec.layout {
                    Layout::RowMajor => k == 512,
                    _ => m > 32 || n % 256 != 0,
                };
                assert!(m > 1 && has_none, "{spec:?}, {m} rows");
                continue;
            };
            let x: Vec<f32> = (0..m * k).map(|_| if rng.next() >> 58 == 0 { 1.0 } else { 0.0 }).collect();
            let in_memory = ProductMemory::new(&device, &product, &bits(&x), n, Dtype::Bf16);
            let operands = in_memory.operands(&device);
            for launch in &product.launches(weight.memory, operands).expect("aligned") {
                // SAFETY: all memory lives until it is read back on the same stream.
                unsafe { device.kernels.launch(device.raw_stream(), launch) }.expect("launched");
            }
            device.verdict(&in_memory.status).expect("whole");
            let sums: Vec<f32> = (0..m * n)
                .map(|at| x[at / n * k..][..k].iter().zip(&w[at % n * k..][..k]).map(|(x, w)| x * w).sum())
                .collect();
            assert!(device.get(&in_memory.y) == bits(&sums), "{spec:?}, {m} rows");
        }
    }
}
