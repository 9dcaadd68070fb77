//! Broken and hostile blobs: an error or, where nothing that matters changed, the right bytes. Never a crash.

mod common;

use common::{DTYPES, Fill, Rng, payload, put_u64, reseal_header, reseal_payload, tensor, u64_at};
use nz_cpp_twin::Error;
use nz_onnx::codec::{self, EncodeOptions};
use nz_onnx::format::{Dtype, TensorSpec};

/// A tiled tensor of several blocks with literals, and its blob.
fn sample(dtype: Dtype) -> (Vec<u8>, Vec<u8>) {
    sample_of(dtype, Fill::Weights, Fill::Specials)
}

/// The same with other weights: mostly `fill`, the first of them `first`.
fn sample_of(dtype: Dtype, fill: Fill, first: Fill) -> (Vec<u8>, Vec<u8>) {
    let spec = TensorSpec::column_tiles(dtype, 21, 150, 128);
    let mut rng = Rng(30);
    let mut src = tensor(fill, dtype, 21 * 150, &mut rng);
    let specials = tensor(first, dtype, 200, &mut rng);
    src[..specials.len()].copy_from_slice(&specials);
    let blob = codec::encode(&src, &spec, &EncodeOptions { block_len: 320, ..Default::default() });
    (src, blob.expect("encodes"))
}

#[test]
fn every_changed_header_byte_is_noticed() {
    for dtype in DTYPES {
        let (_, blob) = sample(dtype);
        for at in 0..u64_at(&blob, 16) as usize {
            for flip in [0x01, 0x80, 0xff] {
                let mut broken = blob.clone();
                broken[at] ^= flip;
                assert!(nz_cpp_twin::decode(&broken).is_err(), "{dtype:?}: byte {at} ^ {flip:#x}");
                assert!(nz_cpp_twin::parse_header(&broken).is_err(), "{dtype:?}: byte {at} ^ {flip:#x}");
            }
        }
    }
}

#[test]
fn every_truncation_is_noticed() {
    for dtype in DTYPES {
        let (_, blob) = sample(dtype);
        for len in 0..blob.len() {
            let error = nz_cpp_twin::decode(&blob[..len]).expect_err("truncated");
            assert!(matches!(error, Error::Truncated(_)), "{dtype:?}: {len} bytes: {error}");
        }
    }
}

#[test]
fn every_changed_payload_byte_is_noticed() {
    for dtype in DTYPES {
        let (_, blob) = sample(dtype);
        for at in payload(&blob) {
            let mut broken = blob.clone();
            broken[at] ^= 0x10;
            let error = nz_cpp_twin::decode(&broken).expect_err("a changed payload");
            assert!(error.to_string().contains("payload checksum"), "{dtype:?}: byte {at}: {error}");
        }
    }
}

/// With all checksums but the tensor's made right, the decoder itself meets the changed bits. It stops, or
/// the tensor's checksum does, or the bit was padding.
#[test]
fn changed_payloads_behind_right_checksums_are_noticed() {
    let mut rng = Rng(31);
    for dtype in DTYPES {
        let (src, blob) = sample(dtype);
        for _ in 0..3000 {
            let mut broken = blob.clone();
            let range = payload(&blob);
            for _ in 0..1 + rng.below(4) {
                broken[range.start + rng.below(range.len())] ^= 1 << rng.below(8);
            }
            reseal_payload(&mut broken);
            if let Ok(decoded) = nz_cpp_twin::decode(&broken) {
                assert!(decoded == src, "{dtype:?}: wrong bytes passed");
            }
        }
    }
}

/// Headers that are wrong behind a right checksum: C++ and Rust take and refuse the same ones.
#[test]
fn headers_changed_behind_a_right_checksum_are_judged_alike() {
    let mut rng = Rng(32);
    let mut differences = vec![];
    let mut transforms = vec![];
    for (dtype, special) in DTYPES.into_iter().flat_map(|d| [(d, true), (d, false)]) {
        let first = if special { Fill::Specials } else { Fill::Subnormals };
        let (_, blob) = sample_of(dtype, Fill::Weights, first);
        transforms.push(blob[73]);
        let body = u64_at(&blob, 16) as usize - 8;
        for at in 0..body {
            for _ in 0..12 {
                let mut broken = blob.clone();
                broken[at] = match rng.below(3) {
                    0 => broken[at] ^ (1 << rng.below(8)),
                    1 => broken[at].wrapping_add([1, 255][rng.below(2)]),
                    _ => rng.next() as u8,
                };
                // A changed header size moves the checksum; without room for it there is nothing to seal.
                let size = u64_at(&broken, 16);
                if broken[at] != blob[at] && (104..=blob.len() as u64).contains(&size) {
                    reseal_header(&mut broken);
                    differences.extend(judge(&broken, &format!("{dtype:?}: byte {at} = {}", broken[at])));
                }
            }
        }
    }
    assert!(transforms.contains(&1) && transforms.contains(&2), "both transforms are met: {transforms:?}");
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

/// A line where the two readers disagree about `blob`.
///
/// One difference is let through: the page does not say what becomes of a coded word that is no weight's, such
/// as an exponent that float16 lacks. C++ refuses it, the codec makes some weight of it and leaves the
/// verdict to the checksum.
fn judge(blob: &[u8], what: &str) -> Option<String> {
    let (cpp, rust) = (nz_cpp_twin::decode(blob), codec::decode(blob));
    match (&cpp, &rust) {
        (Ok(a), Ok(b)) if a == b => None,
        (Err(_), Err(_)) => None,
        (Err(e), Ok(_)) if e.to_string().ends_with("stands for no weight") => None,
        _ => Some(format!("{what}: C++ {:?}, Rust {:?}", cpp.map(|b| b.len()), rust.map(|b| b.len()))),
    }
}

/// What a hostile header may claim: sizes at the ends of their range. Both readers refuse, and neither
/// reserves memory for it.
#[test]
fn extreme_sizes_are_refused() {
    let (_, blob) = sample(Dtype::F32);
    let extremes = [0, 1, u64::from(u32::MAX), 1 << 32, 1 << 62, 1 << 63, u64::MAX - 63, u64::MAX];
    for at in [24, 32, 40, 88, 96, 104] {
        for value in extremes {
            let mut broken = blob.clone();
            put_u64(&mut broken, at, value);
            reseal_header(&mut broken);
            assert!(nz_cpp_twin::decode(&broken).is_err(), "{value:#x} at {at}");
            assert!(codec::decode(&broken).is_err(), "{value:#x} at {at}");
        }
    }
}

#[test]
fn later_versions_and_unknown_codes_are_named() {
    let (_, blob) = sample(Dtype::F16);
    for (at, name) in [(8, "major version"), (72, "dtype"), (73, "transform"), (74, "coder"), (75, "layout")]
    {
        let mut later = blob.clone();
        later[at] = 99;
        reseal_header(&mut later);
        let error = nz_cpp_twin::decode(&later).expect_err("unknown");
        assert!(matches!(error, Error::Unsupported(_)), "{name}: {error}");
        assert!(error.to_string().contains(name) && error.to_string().contains("99"), "{error}");
    }
}

/// A greater minor version alone keeps a blob readable.
#[test]
fn later_minor_versions_are_read() {
    let (src, mut blob) = sample(Dtype::Bf16);
    blob[10] = 7;
    reseal_header(&mut blob);
    assert!(nz_cpp_twin::decode(&blob).expect("decodes") == src);
    assert!(codec::decode(&blob).expect("decodes") == src);
}

/// Bytes behind the blob, and none at all.
#[test]
fn buffers_of_the_wrong_size_are_judged_alike() {
    let (_, blob) = sample(Dtype::F32);
    assert!(matches!(nz_cpp_twin::decode(&[]), Err(Error::Truncated(_))));
    for extra in [1, 4, 64] {
        let mut longer = blob.clone();
        longer.resize(blob.len() + extra, 0);
        assert_eq!(judge(&longer, "longer"), None);
    }
}
