//! Every rule of "What a reader checks" in `docs/format.md`, broken alone: all checksums are right, so it is
//! the rule that refuses the blob, and the message says which.

mod common;

use common::writer::{Plan, write};
use common::{DTYPES, Fill, Rng, payload, put_u64, reseal_payload, tensor, u64_at};
use nz_onnx::format::{Dtype, TensorSpec};

const ROWS: usize = 10;
const COLUMNS: usize = 100;

/// Bytes from the start: the shape, the tiers (one of width 2, one of width 1), the directory.
const TIERS: usize = 96 + 16;
const DIRECTORY: usize = TIERS + (1 + 3) + (1 + 1);

fn plan() -> Plan {
    let tiers = vec![(2, vec![121, 120, 119]), (1, vec![122])];
    Plan { block_len: 256, tiers, spare_bits: 0, normalise: false }
}

fn blob_of(spec: &TensorSpec, fill: Fill) -> Vec<u8> {
    let mut rng = Rng(50);
    let src = tensor(fill, spec.dtype, ROWS * COLUMNS, &mut rng);
    let blob = write(&src, spec, &plan(), &mut rng);
    assert_eq!(nz_cpp_twin::decode(&blob), Ok(src), "whole as long as nothing is changed");
    blob
}

fn row_major() -> Vec<u8> {
    blob_of(&TensorSpec::row_major(Dtype::F32, &[ROWS as u64, COLUMNS as u64]), Fill::Weights)
}

fn column_tiles() -> Vec<u8> {
    blob_of(&TensorSpec::column_tiles(Dtype::F32, ROWS as u64, COLUMNS as u64, 64), Fill::Weights)
}

/// Makes the checksums right, then expects the refusal to say `expected`.
fn refused(mut blob: Vec<u8>, expected: &str) {
    reseal_payload(&mut blob);
    refused_as_is(&blob, expected);
}

fn refused_as_is(blob: &[u8], expected: &str) {
    let message = nz_cpp_twin::decode(blob).expect_err(expected).to_string();
    assert!(message.contains(expected), "{expected:?} expected, {message:?} found");
}

/// `blob` with `byte` at `at`.
fn with_byte(mut blob: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    blob[at] = byte;
    blob
}

fn with_u32(mut blob: Vec<u8>, at: usize, value: u32) -> Vec<u8> {
    blob[at..at + 4].copy_from_slice(&value.to_le_bytes());
    blob
}

fn with_u64(mut blob: Vec<u8>, at: usize, value: u64) -> Vec<u8> {
    put_u64(&mut blob, at, value);
    blob
}

fn directory(blob: &[u8], entry: usize) -> u32 {
    let at = DIRECTORY + 4 * entry;
    u32::from_le_bytes(blob[at..at + 4].try_into().expect("4 bytes"))
}

fn with_directory(blob: Vec<u8>, entry: usize, value: u32) -> Vec<u8> {
    with_u32(blob, DIRECTORY + 4 * entry, value)
}

fn blocks(blob: &[u8]) -> usize {
    u64_at(blob, 88) as usize
}

#[test]
fn magic_and_checksum() {
    refused_as_is(&with_byte(row_major(), 0, 0), "magic");
    refused_as_is(&with_byte(row_major(), 64, 0xAA), "header checksum");
}

#[test]
fn reserved_bytes() {
    for at in [12, 13, 14, 15, 79] {
        refused(with_byte(row_major(), at, 1), "reserved");
    }
}

#[test]
fn header_size() {
    refused_as_is(&with_u64(row_major(), 16, 103), "header size is below the least");
    let blob = row_major();
    let (size, found) = (u64_at(&blob, 16), blob.len() as u64);
    refused_as_is(&with_u64(blob, 16, found + 1), "truncated");
    assert!(size < u64_at(&row_major(), 32), "room for a byte behind the tables");
    refused(with_u64(row_major(), 16, size + 1), "header size does not fit its tables");
}

#[test]
fn extent() {
    let (offset, size) = (u64_at(&row_major(), 32), u64_at(&row_major(), 40));
    refused(with_u64(row_major(), 40, size - 4), "payload size");
    refused(with_u64(with_u64(row_major(), 32, offset - 64), 40, size + 64), "payload offset");
    let mut longer = row_major();
    longer.push(0);
    refused(longer, "blob size against the buffer");
    // A blob that ends before the padding of its payload does.
    let mut cut = row_major();
    cut.truncate(offset as usize + 60);
    put_u64(&mut cut, 40, 0);
    let len = cut.len() as u64;
    refused(with_u64(cut, 24, len), "no room for the payload's padding");
}

#[test]
fn block_length() {
    for length in [0, 63, 100, 4097, 4160, 8192, 1 << 31] {
        refused(with_u32(row_major(), 80, length), "block length");
    }
}

#[test]
fn layout() {
    refused(with_u32(row_major(), 84, 64), "tile width of a row-major tensor");
    for width in [0, 1, 63, 65, 100] {
        refused(with_u32(column_tiles(), 84, width), "tile width");
    }
    let cube = TensorSpec::row_major(Dtype::F32, &[2, 5, 100]);
    let cube = blob_of(&cube, Fill::Weights);
    refused(with_u32(with_byte(cube, 75, 1), 84, 64), "rank of a tensor in column tiles");
}

#[test]
fn shape() {
    refused(with_byte(row_major(), 76, 9), "rank 9 is above 8");
    refused(with_byte(row_major(), 76, 255), "rank 255 is above 8");
    let huge = with_u64(with_u64(row_major(), 96, 1 << 32), 104, 1 << 32);
    refused(huge, "the shape's product overflows");
    // The product wraps to the right number of elements: only the check for overflow notices.
    let wrapping = with_u64(with_u64(row_major(), 96, (1 << 62) + 10), 104, 100);
    refused(wrapping, "the shape's product overflows");
    refused(with_u64(with_u64(row_major(), 96, 1 << 62), 104, 1), "the tensor's size overflows");
}

#[test]
fn block_count() {
    let count = u64_at(&row_major(), 88);
    for wrong in [0, count - 1, count + 1, u64::MAX] {
        refused(with_u64(row_major(), 88, wrong), "number of blocks");
    }
    refused(with_u64(row_major(), 96, ROWS as u64 + 10), "number of blocks");
}

#[test]
fn tiers() {
    for count in [0, 9, 255] {
        refused(with_byte(row_major(), 77, count), "number of tiers");
    }
    for width in [0, 3, 5, 8, 255] {
        refused(with_byte(row_major(), TIERS, width), &format!("tier width {width}"));
    }
    refused(with_byte(row_major(), TIERS + 2, 121), "symbol 121 is listed twice"); // within a tier
    refused(with_byte(row_major(), TIERS + 5, 119), "symbol 119 is listed twice"); // in two tiers
}

#[test]
fn mantissa_bits() {
    for dtype in DTYPES {
        let blob = blob_of(&TensorSpec::row_major(dtype, &[ROWS as u64, COLUMNS as u64]), Fill::Zeros);
        let first = DIRECTORY + 4 * (blocks(&blob) + 1);
        let over = dtype.mantissa_bits() + 1;
        refused(with_byte(blob.clone(), first, over), "more than the dtype has");
        refused(with_byte(blob.clone(), first + 1, 255), "more than the dtype has");
        refused(with_byte(blob, 78, over), "mantissa bits kept");
    }
}

#[test]
fn directory_offsets() {
    let blob = row_major();
    let last = blocks(&blob);
    refused(with_directory(blob.clone(), 0, 1), "offset of the first record");
    refused(with_directory(blob.clone(), last, directory(&blob, last) - 1), "end of the last record");
    refused(with_directory(blob.clone(), last, u32::MAX), "end of the last record");
    refused(with_directory(blob.clone(), 2, directory(&blob, 1) - 1), "do not ascend at block 1");
    refused(with_directory(blob.clone(), 1, u32::MAX), "do not ascend at block 1");
    refused(with_directory(blob.clone(), 2, directory(&blob, 1)), "record of block 1 is too short");
    // One word less than the fixed part: a code of 2 bits, a head of 8 and a rest of 16 a weight.
    let least = 256 * (2 + 8 + 16) / 8 / 4;
    refused(with_directory(blob, 1, least - 1), "record of block 0 is too short");
}

/// Four more bytes at the end of a record, or four less, are no part of its planes.
#[test]
fn planes_fill_their_record() {
    let blob = row_major();
    for (delta, block) in [(1i64, 0), (-1, 0)] {
        let moved = (i64::from(directory(&blob, 1)) + delta) as u32;
        refused(
            with_directory(blob.clone(), 1, moved),
            &format!("planes of block {block} do not fill its record"),
        );
    }
    let (end, last) = (payload(&blob).end, blocks(&blob));
    let mut longer = with_directory(blob.clone(), last, directory(&blob, last) + 1);
    longer.splice(end..end, [0; 4]);
    for at in [24, 40] {
        let size = u64_at(&longer, at) + 4;
        put_u64(&mut longer, at, size);
    }
    refused(longer, &format!("planes of block {} do not fill its record", last - 1));
}

/// The tail of the last record would run on into the blob's padding: all codes changed to escapes.
#[test]
fn tails_stay_inside_their_record() {
    let mut blob = row_major();
    let start = payload(&blob).start + 4 * directory(&blob, blocks(&blob) - 1) as usize;
    blob[start..start + 16].fill(0xff);
    refused(blob, "do not fill its record");
}

#[test]
fn checksums_of_payload_and_tensor() {
    let blob = row_major();
    let at = payload(&blob).start + 64; // the first head, behind 256 codes of 2 bits
    let broken = with_byte(blob.clone(), at, blob[at] ^ 1);
    refused_as_is(&broken, "payload checksum");
    refused(broken, "checksum of the decoded tensor");
}

/// Words outside of float16: an exponent between its normals and infinity, or below its subnormals, and a
/// subnormal with more bits than it has room for.
#[test]
fn words_that_are_no_float16() {
    for exponent in [1, 102, 143, 200, 254] {
        let spec = TensorSpec::row_major(Dtype::F16, &[ROWS as u64, COLUMNS as u64]);
        let blob = blob_of(&spec, Fill::Weights);
        refused(with_byte(blob, TIERS + 1, exponent), "stands for no weight"); // in place of 121
    }
    // 112 is the greatest subnormals' exponent: 9 bits of mantissa left, so an odd tenth bit has no place.
    let blob = blob_of(&TensorSpec::row_major(Dtype::F16, &[ROWS as u64, COLUMNS as u64]), Fill::Weights);
    refused(with_byte(blob, TIERS + 1, 112), "stands for no weight");
    // Zero has no mantissa.
    let blob = blob_of(&TensorSpec::row_major(Dtype::F16, &[ROWS as u64, COLUMNS as u64]), Fill::Weights);
    refused(with_byte(blob, TIERS + 1, 0), "stands for no weight");
}

/// Normalised subnormals (exponents 232 to 254 under transform 2) with more bits than their size has.
#[test]
fn words_that_are_no_subnormal() {
    for dtype in DTYPES {
        let blob = blob_of(&TensorSpec::row_major(dtype, &[ROWS as u64, COLUMNS as u64]), Fill::Weights);
        // In place of 121: bits below the top one, for which there is no room. Float16 has no such word.
        let normalised = with_byte(blob, 73, 2);
        refused(with_byte(normalised.clone(), TIERS + 1, 232), "stands for no weight");
        if dtype != Dtype::F32 {
            // Room in the word, but not in the 16 bits.
            refused(with_byte(normalised, TIERS + 1, 240), "stands for no weight");
        }
    }
    // Only the top bit, but below those that bfloat16 has: all mantissas are zero, so all words fit.
    let ones = [0x80u8, 0x3c].repeat(ROWS * COLUMNS); // 2^-6, exponent 121
    let spec = TensorSpec::row_major(Dtype::Bf16, &[ROWS as u64, COLUMNS as u64]);
    let blob = with_byte(write(&ones, &spec, &plan(), &mut Rng(51)), 73, 2);
    refused(with_byte(blob.clone(), TIERS + 1, 232 + 15), "stands for no weight");
    refused(with_byte(blob, TIERS + 1, 232 + 16), "checksum of the decoded tensor"); // the least subnormal
    // The same in float16: a subnormal far below its least value is not zero.
    let ones = [0x00u8, 0x24].repeat(ROWS * COLUMNS); // 2^-6, exponent 121
    let spec = TensorSpec::row_major(Dtype::F16, &[ROWS as u64, COLUMNS as u64]);
    let blob = with_byte(write(&ones, &spec, &plan(), &mut Rng(52)), 73, 2);
    refused(with_byte(blob, TIERS + 1, 232), "stands for no weight");
}
