//! Every rule of "What a reader checks" in `docs/format.md`, broken alone: all checksums are right, so it is
//! the rule that refuses the blob, and the message says which. The codec refuses it, too.

mod common;

use common::writer::{Draft, Plan, draft, leb128};
use common::{DTYPES, Fill, Rng, checksum_at, field, payload, tensor};
use nz_cpp_twin::Error;
use nz_onnx::codec;
use nz_onnx::format::{Dtype, TensorSpec};

const ROWS: usize = 10;
const COLUMNS: usize = 100;
const SHAPE: [u64; 2] = [ROWS as u64, COLUMNS as u64];

/// Two tiers, of widths 2 and 1.
fn plan() -> Plan {
    let tiers = vec![(2, vec![121, 120, 119]), (1, vec![122])];
    Plan { block_len: 256, tiers, spare_bits: 0, bits_per_block: true, normalise: false }
}

fn draft_of(spec: &TensorSpec, fill: Fill, plan: &Plan) -> Draft {
    let mut rng = Rng(50);
    let src = tensor(fill, spec.dtype, ROWS * COLUMNS, &mut rng);
    let draft = draft(&src, spec, plan, &mut rng);
    assert_eq!(nz_cpp_twin::decode(&draft.seal()), Ok(src), "whole as long as nothing is changed");
    draft
}

fn row_major() -> Draft {
    draft_of(&TensorSpec::row_major(Dtype::F32, &SHAPE), Fill::Weights, &plan())
}

fn column_tiles() -> Draft {
    draft_of(&TensorSpec::column_tiles(Dtype::F32, SHAPE[0], SHAPE[1], 64), Fill::Weights, &plan())
}

/// Breaks a part of `draft`, seals it, and expects the refusal to say `expected`.
fn refused(mut draft: Draft, expected: &str, broken: impl FnOnce(&mut Draft)) {
    broken(&mut draft);
    refused_as_is(&draft.seal(), expected);
}

fn refused_as_is(blob: &[u8], expected: &str) {
    let message = nz_cpp_twin::decode(blob).expect_err(expected).to_string();
    assert!(message.contains(expected), "{expected:?} expected, {message:?} found");
    assert!(codec::decode(blob).is_err(), "the codec misses: {message}");
}

#[test]
fn magic_comes_before_the_version() {
    for at in 0..4 {
        refused(row_major(), "magic", |d| {
            d.fixed[at] ^= 1;
            d.fixed[field::MAJOR] = 2;
        });
    }
}

/// A later major version is reported as such, whatever follows it.
#[test]
fn major_version_comes_before_all_else() {
    let mut blob = row_major().seal();
    blob[field::MAJOR] = 2;
    blob[field::DTYPE..].fill(0xff);
    let error = nz_cpp_twin::decode(&blob).expect_err("a later version");
    assert!(matches!(&error, Error::Unsupported(message) if message.contains("major version 2")), "{error}");
}

#[test]
fn limits_of_the_fixed_part() {
    for rank in [9, 255] {
        refused(row_major(), &format!("rank {rank} is above 8"), |d| d.fixed[field::RANK] = rank);
    }
    for count in [0, 9, 255] {
        refused(row_major(), "number of tiers", |d| d.fixed[field::TIERS] = count);
    }
    for flag in 2..8 {
        refused(row_major(), "unknown flags", |d| d.fixed[field::FLAGS] |= 1 << flag);
    }
    for length in [0, 63, 100, 4097, 4160, 8192, 1 << 15] {
        refused(row_major(), "block length", |d| d.put_u16(field::BLOCK_LENGTH, length));
    }
    for dtype in DTYPES {
        let draft = draft_of(&TensorSpec::row_major(dtype, &SHAPE), Fill::Zeros, &plan());
        refused(draft, "mantissa bits kept", |d| d.fixed[field::KEPT] = dtype.mantissa_bits() + 1);
    }
}

#[test]
fn layout() {
    refused(row_major(), "tile width of a row-major tensor", |d| d.put_u16(field::TILE_WIDTH, 64));
    for width in [0, 1, 63, 65, 100] {
        refused(column_tiles(), "tile width", |d| d.put_u16(field::TILE_WIDTH, width));
    }
    let cube = TensorSpec::row_major(Dtype::F32, &[2, 5, 100]);
    refused(draft_of(&cube, Fill::Weights, &plan()), "rank of a tensor in column tiles", |d| {
        d.fixed[field::LAYOUT] = 1;
        d.put_u16(field::TILE_WIDTH, 64);
    });
}

#[test]
fn shape() {
    refused(row_major(), "a dimension is 0", |d| d.shape = leb128(&[0, 1000]));
    refused(row_major(), "a dimension is 0", |d| d.shape = leb128(&[1000, 0]));
    refused(row_major(), "not as short as can be", |d| d.shape = vec![10, 0x80 | 100, 0]);
    refused(row_major(), "not as short as can be", |d| d.shape = vec![0x80, 0, 100]);
    let too_many: [&[u64]; 5] = [
        &[1 << 58, 1],
        &[1 << 29, 1 << 29],
        &[1 << 32, 1 << 32],    // 2^64
        &[(1 << 62) + 10, 100], // wraps to the right number of elements
        &[u64::MAX, u64::MAX],
    ];
    for shape in too_many {
        refused(row_major(), "too many elements", |d| d.shape = leb128(shape));
    }
    refused(row_major(), "too many elements", |d| d.shape = [0x80; 100].to_vec());
}

/// A number of blocks whose tables the buffer has no room for is a matter of arithmetic, not of memory.
#[test]
fn tables_stay_inside_the_buffer() {
    for shape in [[1 << 29, (1 << 29) - 1], [1 << 40, 1], [1, 1 << 40], [ROWS as u64, 1 << 20]] {
        for draft in [row_major(), column_tiles()] {
            refused(draft, "truncated", |d| d.shape = leb128(&shape));
        }
    }
}

#[test]
fn header_checksum() {
    let blob = row_major().seal();
    let at = checksum_at(&blob).expect("a whole blob");
    for at in at..at + 4 {
        let mut broken = blob.clone();
        broken[at] ^= 1;
        refused_as_is(&broken, "header checksum");
    }
    // Another number of blocks, or of their mantissa bits, moves the checksum.
    refused(row_major(), "header checksum", |d| d.mantissa_bits.push(0));
    refused(row_major(), "header checksum", |d| d.shape = leb128(&[ROWS as u64 + 10, COLUMNS as u64]));
}

#[test]
fn padding_behind_the_header() {
    let (mut draft, mut seen) = (row_major(), 0);
    while seen < 3 {
        // One dimension more makes the header a byte longer.
        draft.shape.push(1);
        draft.fixed[field::RANK] += 1;
        let blob = draft.seal();
        let header = checksum_at(&blob).expect("a whole blob") + 4;
        for at in header..payload(&blob).start {
            let mut broken = blob.clone();
            broken[at] = 1;
            refused_as_is(&broken, "padding behind the header is not zero");
            seen += 1;
        }
    }
}

#[test]
fn tiers() {
    refused(row_major(), "symbol 121 is listed twice", |d| d.symbols[1] = 121); // within a tier
    refused(row_major(), "symbol 119 is listed twice", |d| d.symbols[3] = 119); // in two tiers
    for bit in 4..8 {
        refused(row_major(), "unused bits of the tier widths", |d| d.tier_widths[0] |= 1 << bit);
    }
}

#[test]
fn mantissa_bits() {
    for (dtype, bits_per_block) in DTYPES.into_iter().flat_map(|dtype| [(dtype, true), (dtype, false)]) {
        let plan = Plan { bits_per_block, ..plan() };
        let draft = draft_of(&TensorSpec::row_major(dtype, &SHAPE), Fill::Zeros, &plan);
        for block in 0..draft.mantissa_bits.len() {
            for m in [dtype.mantissa_bits() + 1, 255] {
                refused(draft.clone(), "more than the dtype has", |d| d.mantissa_bits[block] = m);
            }
        }
    }
}

/// One word less than the fixed part: a code of 2 bits, a head of 8 and a rest of 16 a weight.
#[test]
fn records_have_room_for_their_fixed_part() {
    refused(row_major(), "record of block 0 is too short", |d| d.sizes[0] = 256 * (2 + 8 + 16) / 8 / 4 - 1);
    refused(row_major(), "record of block 1 is too short", |d| d.sizes[1] = 0);
}

#[test]
fn records_end_with_the_buffer() {
    refused(row_major(), "truncated", |d| d.sizes[2] += 1);
    refused(row_major(), "truncated", |d| d.payload.truncate(d.payload.len() - 4));
    for extra in [1, 3, 4, 64] {
        refused(row_major(), "size of the blob", |d| d.payload.resize(d.payload.len() + extra, 0));
    }
}

/// Four more bytes at the end of a record, or four less, are no part of its planes.
#[test]
fn planes_fill_their_record() {
    for (longer, shorter) in [(0, 1), (1, 0), (2, 1)] {
        refused(
            row_major(),
            &format!("planes of block {} do not fill its record", longer.min(shorter)),
            |d| {
                d.sizes[longer] += 1;
                d.sizes[shorter] -= 1;
            },
        );
    }
    refused(row_major(), "planes of block 3 do not fill its record", |d| {
        d.sizes[3] += 1;
        d.payload.extend([0; 4]);
    });
}

/// The tail of the last record would run on behind the blob: all codes changed to escapes.
#[test]
fn tails_stay_inside_their_record() {
    refused(row_major(), "planes of block 3 do not fill its record", |d| {
        let start = d.payload.len() - 4 * usize::from(d.sizes[3]);
        d.payload[start..start + 16].fill(0xff);
    });
}

#[test]
fn payload_checksum() {
    let mut blob = row_major().seal();
    let at = payload(&blob).start + 64; // the first head, behind 256 codes of 2 bits
    blob[at] ^= 1;
    refused_as_is(&blob, "payload checksum");
}

/// A literal may be a listed symbol: writers do not do it, readers do not mind.
#[test]
fn literals_may_be_listed() {
    let plan = Plan { tiers: vec![(1, vec![127])], ..plan() };
    let ones: Vec<u8> = [0, 0, 0x80, 0xbf].repeat(64); // -1, exponent 127
    let spec = TensorSpec::row_major(Dtype::F32, &[64]);
    let mut draft = draft(&ones, &spec, &plan, &mut Rng(51));
    assert_eq!(draft.payload, [[0; 8], [0xff; 8]].concat(), "codes and signs");
    draft.payload[..8].fill(0xff);
    draft.payload.extend([127; 64]);
    draft.sizes[0] += 64 / 4;
    assert_eq!(nz_cpp_twin::decode(&draft.seal()), Ok(ones.clone()));
    assert_eq!(codec::decode(&draft.seal()).ok(), Some(ones));
}
