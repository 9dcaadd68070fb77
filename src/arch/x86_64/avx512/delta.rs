//! Deltas: 16 residuals of float32 weights at a time, or 32 of 16 bits. Their raw bits are so few that all of them lie in one
//! vector, wherever in a byte they start.

mod halves;
mod words;

use super::symbols::symbols_first;
use crate::arch::delta::{Bits, Raw, Sums, WINDOW, check_end, padded};
use crate::arch::{BadRecord, Scratch, Tables};
use crate::format::{Delta, Residual};

/// Bytes of elements that are worked on at a time.
const STEP: usize = 64;

/// As [`crate::arch::Backend::decode_delta`].
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn decode(
    tables: &Tables,
    record: &[u8],
    delta: &Delta,
    bits: Bits,
    elements: &mut [u8],
    (scratch, sums): (&mut Scratch, &mut Sums),
) -> Result<(), BadRecord> {
    let n = elements.len() / (bits.width as usize / 8);
    let (symbols, raw) = symbols_first(tables, record, n, scratch)?;
    let bytes = raw.len();
    let raw = padded(&mut sums.raw, raw)?;
    let end = match (bits.width, delta.residual) {
        (16, Residual::Xor) => halves::add::<false>(symbols, raw, delta, bits, elements),
        (16, Residual::Difference) => halves::add::<true>(symbols, raw, delta, bits, elements),
        (_, Residual::Xor) => words::add::<false>(symbols, raw, delta, bits, elements),
        (_, Residual::Difference) => words::add::<true>(symbols, raw, delta, bits, elements),
    }?;
    check_end(end, bytes)
}

/// The bytes that bit `at` and those that a step needs behind it are in.
#[inline(always)]
fn window(raw: &Raw, at: usize) -> Result<&[u8; WINDOW], BadRecord> {
    raw.get(at / 8..).and_then(|rest| rest.first_chunk()).ok_or(BadRecord)
}

/// Hands symbols and the elements that they are of to `add`, a number of vectors at a time, with the bit that raw bits start
/// at; it returns the one at which they end. Returns the last.
#[inline(always)]
fn in_steps<const LANES: usize>(
    symbols: &[u8],
    elements: &mut [u8],
    mut add: impl FnMut(&[[u8; LANES]], &mut [[u8; STEP]], usize) -> Result<usize, BadRecord>,
) -> Result<usize, BadRecord> {
    let ((symbols, last), (elements, rest)) = (symbols.as_chunks(), elements.as_chunks_mut());
    let end = add(symbols, elements, 0)?;
    if last.is_empty() {
        return Ok(end);
    }
    // A symbol of 0 leaves an element as it is.
    let (mut symbols, mut elements) = ([[0; LANES]], [[0; STEP]]);
    symbols[0][..last.len()].copy_from_slice(last);
    elements[0][..rest.len()].copy_from_slice(rest);
    let end = add(&symbols, &mut elements, end)?;
    rest.copy_from_slice(&elements[0][..rest.len()]);
    Ok(end)
}
