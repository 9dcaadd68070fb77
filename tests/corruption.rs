//! Damaged blobs: an error, never a panic and never wrong weights.
#![allow(clippy::unwrap_used)]

mod common;

use common::{DTYPES, Kind, Rng, tensor};
use nz_onnx::arch::Backend;
use nz_onnx::codec::{self, Decoder, EncodeOptions, GridStep, reference};
use nz_onnx::error::Error;
use nz_onnx::format::{Dtype, Header, TensorSpec};

fn blob(dtype: Dtype) -> Vec<u8> {
    let src = tensor(Kind::Gauss, dtype, 100 * 150, 1);
    let spec = TensorSpec::column_tiles(dtype, 100, 150, 128);
    codec::encode(&src, &spec, &EncodeOptions { block_len: 1024, ..Default::default() }).unwrap()
}

/// The same, and blobs on grids with units of their own for blocks and for rows, and with layers.
fn blobs(dtype: Dtype) -> [Vec<u8>; 5] {
    let mut src = tensor(Kind::Gauss, dtype, 100 * 192, 1);
    src[..2 * dtype.size()].fill(0);
    let on_grid = |spec: &TensorSpec, raw_bits| {
        let grid = Some(GridStep { cell: 2, raw_bits });
        codec::encode(&src, spec, &EncodeOptions { grid, block_len: 1024, ..Default::default() }).unwrap()
    };
    let (rows, tiles) =
        (TensorSpec::row_major(dtype, &[100, 192]), TensorSpec::column_tiles(dtype, 100, 192, 128));
    let in_layers = |blob: &[u8]| codec::layer(blob, &[2, 6]).unwrap().unwrap();
    let (plain, rows, tiles) = (blob(dtype), on_grid(&rows, 5), on_grid(&tiles, 9));
    [in_layers(&plain), in_layers(&tiles), plain, rows, tiles]
}

/// Both decoders must refuse it.
fn refused(blob: &[u8], what: &str) {
    assert!(codec::decode(blob).is_err(), "decoded with {what}");
    assert!(reference::decode(blob).is_err(), "the reference decoded with {what}");
}

#[test]
fn every_header_byte_matters() {
    for good in DTYPES.into_iter().flat_map(blobs) {
        let header = Header::parse(&good).unwrap().payload_offset();
        for at in 0..header {
            for bit in [0x01, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= bit;
                refused(&bad, &format!("byte {at} of the header changed by {bit:#x}"));
            }
        }
    }
}

#[test]
fn every_truncation_is_an_error() {
    for good in blobs(Dtype::Bf16) {
        for len in 0..good.len() {
            assert!(Header::parse(&good[..len]).is_err(), "header accepted at {len} bytes");
            assert!(codec::decode(&good[..len]).is_err() && reference::decode(&good[..len]).is_err());
        }
        let mut long = good.clone();
        long.push(0);
        refused(&long, "a byte behind it");
    }
}

#[test]
fn flips_in_the_payload_are_found() {
    let mut rng = Rng(11);
    for good in DTYPES.into_iter().flat_map(blobs) {
        let start = Header::parse(&good).unwrap().payload_offset();
        for _ in 0..300 {
            let mut bad = good.clone();
            for _ in 0..1 + rng.next() % 4 {
                let at = start + rng.next() as usize % (good.len() - start);
                bad[at] ^= 1 << (rng.next() % 8);
            }
            if bad != good {
                refused(&bad, "flipped payload bits");
            }
        }
    }
}

/// The runtime decodes a mapped file that can change after it was checked: any payload must be safe.
#[test]
fn unchecked_payloads_cannot_harm() {
    let mut rng = Rng(12);
    let mut outcomes = [0u32; 2];
    for good in DTYPES.into_iter().flat_map(blobs) {
        for backend in Backend::available() {
            let decoder = Decoder::with_backend(&good, backend).unwrap();
            let start = decoder.header().payload_offset();
            let n = decoder.header().blocks().elements();
            for round in 0..60 {
                let mut bad = good.clone();
                match round % 3 {
                    0 => bad[start..].iter_mut().for_each(|b| *b = rng.next() as u8),
                    1 => bad[start..].fill(0xff),
                    _ => bad[start + rng.next() as usize % 2000..]
                        .iter_mut()
                        .take(50)
                        .for_each(|b| *b ^= rng.next() as u8),
                }
                let mut out = vec![0f32; n as usize];
                let decoded = decoder.decode_f32(&bad, 0, &mut out).is_ok();
                outcomes[usize::from(decoded)] += 1;
                assert_eq!(decoder.decode_bytes(&bad).is_ok(), decoded);
                assert!(codec::decode(&bad).is_err(), "the payload checksum must differ");
            }
        }
    }
    assert!(outcomes[0] > 0, "structural damage must be noticed");
}

/// With a good checksum over nonsense, the checks behind it must hold on their own.
#[test]
fn forged_headers_are_refused_or_decoded_safely() {
    let mut rng = Rng(13);
    for good in blobs(Dtype::F32) {
        let header_len = Header::parse(&good).unwrap().header_len as usize;
        let seal = |at: usize, value: u8| {
            let mut bad = good.clone();
            bad[at] = value;
            let hash = xxhash_rust::xxh3::xxh3_64(&bad[..header_len - 4]) as u32;
            bad[header_len - 4..header_len].copy_from_slice(&hash.to_le_bytes());
            if bad != good {
                let ok = codec::decode(&bad);
                // The forger may say what he likes of the minor version, the dtype, and how it was encoded, and may
                // exchange symbols: the tensor he gets is his own. Both decoders must make the same of it.
                assert_eq!(ok.ok(), reference::decode(&bad).ok(), "byte {at} = {value}");
            }
        };
        for at in 0..header_len - 4 {
            for value in [0, 1, 0xff, rng.next() as u8] {
                seal(at, value);
            }
        }
    }
}

#[test]
fn newer_formats_say_so() {
    let mut newer = blob(Dtype::F32);
    newer[4] = 2;
    let error = codec::decode(&newer).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    assert!(error.to_string().contains("2.0") && error.to_string().contains("update"), "{error}");
    assert!(reference::decode(&newer).unwrap_err().contains("version 2"));
}
