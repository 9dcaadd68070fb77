//! Broken and hostile blobs: an error or, where nothing that matters changed, the right bytes. Never a crash.

mod common;

use common::writer::{Draft, Plan, draft, leb128};
use common::{DTYPES, Fill, Rng, checksum_at, field, payload, reseal_header, reseal_payload, tensor};
use nz_cpp_twin::Error;
use nz_onnx::codec::{self, EncodeOptions};
use nz_onnx::format::{Dtype, TensorSpec};

/// A tiled tensor of blocks of 320 weights, some of them with literals, and its blob.
fn sample(dtype: Dtype) -> (Vec<u8>, Vec<u8>) {
    let spec = TensorSpec::column_tiles(dtype, 21, 150, 128);
    let mut rng = Rng(30);
    let mut src = tensor(Fill::Weights, dtype, 21 * 150, &mut rng);
    let specials = tensor(Fill::Specials, dtype, 200, &mut rng);
    src[..specials.len()].copy_from_slice(&specials);
    let blob = codec::encode(&src, &spec, &EncodeOptions { block_len: 320, ..Default::default() });
    (src, blob.expect("encodes"))
}

/// The parts of a blob with normalised subnormals.
fn normalised(dtype: Dtype) -> Draft {
    let mut rng = Rng(34);
    let src = tensor(Fill::Subnormals, dtype, 21 * 150, &mut rng);
    let spec = TensorSpec::column_tiles(dtype, 21, 150, 128);
    let draft = draft(&src, &spec, &Plan { normalise: true, ..Plan::random(&mut rng) }, &mut rng);
    assert_eq!(draft.fixed[field::TRANSFORM], 2);
    draft
}

#[test]
fn every_changed_header_byte_is_noticed() {
    for dtype in DTYPES {
        let (_, blob) = sample(dtype);
        for at in 0..payload(&blob).start {
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

/// Behind right checksums the decoders themselves meet the changed bits, wherever these are.
#[test]
fn changed_payloads_behind_right_checksums_give_an_error_or_a_tensor() {
    let mut rng = Rng(31);
    let (mut whole, mut refused) = (0, 0);
    for dtype in DTYPES {
        let (src, blob) = sample(dtype);
        for _ in 0..2000 {
            let mut broken = blob.clone();
            let range = payload(&blob);
            for _ in 0..1 + rng.below(4) {
                broken[range.start + rng.below(range.len())] ^= 1 << rng.below(8);
            }
            reseal_payload(&mut broken);
            for decoded in [nz_cpp_twin::decode(&broken).ok(), codec::decode(&broken).ok()] {
                *(if decoded.is_some() { &mut whole } else { &mut refused }) += 1;
                assert!(decoded.is_none_or(|bytes| bytes.len() == src.len()));
            }
        }
    }
    assert!(whole > 100 && refused > 100, "both verdicts are met: {whole} and {refused}");
}

/// Changed mantissas and signs are other weights, and the same ones to both.
#[test]
fn changed_mantissas_behind_right_checksums_are_read_alike() {
    let mut rng = Rng(32);
    for dtype in DTYPES {
        let (src, blob) = sample(dtype);
        let h = nz_cpp_twin::parse_header(&blob).expect("whole");
        for _ in 0..1000 {
            let mut broken = blob.clone();
            let block = rng.below(8); // those of the first tile are full, so that all their bits are used
            let start =
                (h.payload_offset + h.record_offsets[block]) as usize + 40 * usize::from(h.tiers[0].width);
            broken[start + rng.below(40 * usize::from(h.widths[block] + 1))] ^= 1 << rng.below(8);
            reseal_payload(&mut broken);
            let decoded = nz_cpp_twin::decode(&broken).expect("weights");
            assert!(decoded != src || dtype == Dtype::F16, "{dtype:?}");
            assert_eq!(judge(&broken, &format!("{dtype:?}")), None);
        }
    }
}

/// Headers that are wrong behind a right checksum: C++ and Rust take and refuse the same ones.
#[test]
fn headers_changed_behind_a_right_checksum_are_judged_alike() {
    let mut rng = Rng(32);
    let mut differences = vec![];
    for (dtype, blob) in DTYPES.into_iter().flat_map(|d| [(d, sample(d).1), (d, normalised(d).seal())]) {
        for at in 0..checksum_at(&blob).expect("a whole blob") {
            for _ in 0..12 {
                let mut broken = blob.clone();
                broken[at] = rng.mutated(broken[at]);
                reseal_header(&mut broken);
                differences.extend(judge(&broken, &format!("{dtype:?}: byte {at} = {}", broken[at])));
            }
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

/// A line where the two readers disagree about `blob`.
///
/// What becomes of a coded word that no weight of the dtype has is each reader's own affair. There is none as
/// long as nothing is normalised and the dtype is not float16.
fn judge(blob: &[u8], what: &str) -> Option<String> {
    let (cpp, rust) = (nz_cpp_twin::decode(blob), codec::decode(blob));
    match (&cpp, &rust) {
        (Err(_), Err(_)) => None,
        (Ok(a), Ok(b)) if a == b => None,
        (Ok(a), Ok(b)) if a.len() == b.len() && (blob[field::TRANSFORM] == 2 || blob[field::DTYPE] == 10) => {
            None
        }
        _ => Some(format!("{what}: C++ {:?}, Rust {:?}", cpp.map(|b| b.len()), rust.map(|b| b.len()))),
    }
}

/// What a hostile header may claim: sizes at the ends of their range. Both readers refuse, and neither
/// reserves memory for it.
#[test]
fn extreme_sizes_are_refused() {
    let extremes = [0, 1, u64::from(u32::MAX), 1 << 32, 1 << 57, 1 << 62, 1 << 63, u64::MAX - 63, u64::MAX];
    for shape in extremes.iter().flat_map(|&extreme| [[extreme, 150], [21, extreme], [extreme, extreme]]) {
        let mut broken = normalised(Dtype::F32);
        broken.shape = leb128(&shape);
        let blob = broken.seal();
        assert!(nz_cpp_twin::decode(&blob).is_err(), "{shape:?}");
        assert!(codec::decode(&blob).is_err(), "{shape:?}");
    }
}

#[test]
fn later_versions_and_unknown_codes_are_named() {
    let (_, blob) = sample(Dtype::F16);
    let fields = [
        (field::MAJOR, "major version"),
        (field::DTYPE, "dtype"),
        (field::TRANSFORM, "transform"),
        (field::CODER, "coder"),
        (field::LAYOUT, "layout"),
    ];
    for (at, name) in fields {
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
    blob[field::MINOR] = 7;
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
