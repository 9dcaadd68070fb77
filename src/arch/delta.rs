//! Deltas: from symbols, raw bits and a base's weights to the weights.

use super::{BLOCK, BadRecord, Scratch, Tables, generic};
use crate::format::{ALIGN, Delta, Dtype, Residual};

/// Bytes that the raw bits of a block take at most: 31 of each residual, and padding.
const RAW_ROOM: usize = BLOCK * 31 / 8 + ALIGN;
/// Bytes of raw bits that a backend reads at a time, at most.
pub(crate) const WINDOW: usize = 64 + 4;
/// The raw bits of a block, and zeros behind them.
pub(crate) type Raw = [u8; RAW_ROOM + WINDOW];

/// The `len` lowest bits.
pub(crate) fn mask(len: u32) -> u32 {
    ((1u64 << len) - 1) as u32
}

/// A dtype's elements as plain numbers.
#[derive(Clone, Copy)]
pub(crate) struct Bits {
    /// Bits an element.
    pub width: u32,
    /// Mantissa bits of an element.
    pub mantissa: u32,
}

impl Bits {
    pub fn of(dtype: Dtype) -> Bits {
        Bits { width: 8 * dtype.size() as u32, mantissa: dtype.mantissa_bits().into() }
    }

    #[inline(always)]
    pub fn load(self, bytes: &[u8], index: usize) -> u32 {
        match self.width {
            16 => u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).into(),
            _ => u32::from_le_bytes(std::array::from_fn(|i| bytes[4 * index + i])),
        }
    }

    #[inline(always)]
    fn load_all(self, bytes: &[u8], out: &mut [u32]) {
        if self.width == 16 {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = u16::from_le_bytes(*bytes).into();
            }
        } else {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = u32::from_le_bytes(*bytes);
            }
        }
    }

    #[inline(always)]
    fn store_all(self, bits: &[u32], out: &mut [u8]) {
        if self.width == 16 {
            for (out, bits) in out.as_chunks_mut().0.iter_mut().zip(bits) {
                *out = (*bits as u16).to_le_bytes();
            }
        } else {
            for (out, bits) in out.as_chunks_mut().0.iter_mut().zip(bits) {
                *out = bits.to_le_bytes();
            }
        }
    }

    #[inline(always)]
    pub fn exponent(self, bits: u32) -> u8 {
        (bits >> self.mantissa & mask(self.width - 1 - self.mantissa)) as u8
    }

    /// The place of a value in the order of all: from the largest negative one up.
    #[inline(always)]
    fn place(self, bits: u32) -> u32 {
        let sign = 1 << (self.width - 1);
        if bits & sign == 0 { bits | sign } else { !bits & mask(self.width) }
    }

    /// Undoes [`Bits::place`].
    #[inline(always)]
    fn at_place(self, place: u32) -> u32 {
        let sign = 1 << (self.width - 1);
        if place & sign == 0 { !place & mask(self.width) } else { place & !sign }
    }

    #[inline(always)]
    pub fn residual(self, how: Residual, bits: u32, base: u32) -> u32 {
        match how {
            Residual::Xor => bits ^ base,
            Residual::Difference => {
                // Its sign goes to the lowest bit, so that small ones of both signs are short.
                let difference = self.place(bits).wrapping_sub(self.place(base)) << (32 - self.width);
                let difference = difference as i32 >> (32 - self.width);
                (difference << 1 ^ difference >> 31) as u32 & mask(self.width)
            }
        }
    }

    /// Undoes [`Bits::residual`].
    #[inline(always)]
    pub fn restored(self, how: Residual, residual: u32, base: u32) -> u32 {
        match how {
            Residual::Xor => residual ^ base,
            Residual::Difference => {
                let difference = residual >> 1 ^ 0u32.wrapping_sub(residual & 1);
                self.at_place(self.place(base).wrapping_add(difference) & mask(self.width))
            }
        }
    }
}

/// The most that is added to a length: the longest residual has 32 bits, and no symbol is over 254.
pub(crate) const MAX_LIFT: u32 = 222;

/// How much is added to the lengths of residuals to a weight of the base.
#[inline(always)]
pub(crate) fn lift(exponent: u8, from: u8) -> u32 {
    u32::from(exponent.saturating_sub(from)).min(MAX_LIFT)
}

pub(crate) fn length(residual: u32) -> u32 {
    32 - residual.leading_zeros()
}

/// Memory that decoding a block of a delta needs beside its output.
pub(crate) struct Sums {
    base: [u32; BLOCK],
    /// Lengths of residuals, then residuals.
    residuals: [u32; BLOCK],
    /// Where backends have the raw bits: see [`padded`].
    pub raw: Raw,
}

impl Sums {
    pub fn new() -> Box<Sums> {
        let empty = [0; BLOCK];
        Box::new(Sums { base: empty, residuals: empty, raw: [0; RAW_ROOM + WINDOW] })
    }
}

/// Copies the raw bits of a block to `room`, where [`WINDOW`] bytes can be read from any of them on.
///
/// # Errors
/// There are more than any block has.
#[inline(always)]
pub(crate) fn padded<'a>(room: &'a mut Raw, raw: &[u8]) -> Result<&'a Raw, BadRecord> {
    if raw.len() > RAW_ROOM {
        return Err(BadRecord);
    }
    room[..raw.len()].copy_from_slice(raw);
    room[raw.len()..raw.len() + WINDOW].fill(0);
    Ok(room)
}

/// Checks that raw bits which end before bit `end` fill `bytes` bytes, but for padding.
///
/// # Errors
/// They do not.
#[inline(always)]
pub(crate) fn check_end(end: usize, bytes: usize) -> Result<(), BadRecord> {
    if end > 8 * bytes || bytes - end.div_ceil(8) >= ALIGN { Err(BadRecord) } else { Ok(()) }
}

/// A block of a delta in plain Rust: adds the residuals in `record` to the base's elements.
pub(super) fn decode(
    tables: &Tables,
    record: &[u8],
    delta: &Delta,
    bits: Bits,
    elements: &mut [u8],
    (scratch, sums): (&mut Scratch, &mut Sums),
) -> Result<(), BadRecord> {
    let n = elements.len() / (bits.width as usize / 8);
    let (symbols, raw) = generic::symbols_first(tables, record, n, scratch)?;
    // What does not change within a block does not change within the loops either, where they are compiled for it.
    match (bits.width, delta.residual) {
        (16, Residual::Xor) => {
            add(symbols, raw, delta, Bits { width: 16, ..bits }, Residual::Xor, elements, sums)
        }
        (16, how) => add(symbols, raw, delta, Bits { width: 16, ..bits }, how, elements, sums),
        (_, Residual::Xor) => {
            add(symbols, raw, delta, Bits { width: 32, ..bits }, Residual::Xor, elements, sums)
        }
        (_, how) => add(symbols, raw, delta, Bits { width: 32, ..bits }, how, elements, sums),
    }
}

/// For each length of a residual the bits below its top one, and that: a look-up where shifts by a variable are slow. More
/// entries than lengths, so that none needs to be checked.
const PARTS: [(u32, u32); 64] = {
    let mut parts = [(0, 0); 64];
    let mut len = 1;
    while len <= 32 {
        let top = 1 << (len - 1);
        parts[len] = (top - 1, top);
        len += 1;
    }
    parts
};

/// Adds residuals to the weights of a base, in place.
#[inline(always)]
fn add(
    symbols: &[u8],
    raw: &[u8],
    delta: &Delta,
    bits: Bits,
    how: Residual,
    elements: &mut [u8],
    sums: &mut Sums,
) -> Result<(), BadRecord> {
    // Three passes, of which the first and the last are the same for all weights.
    let n = symbols.len();
    let (base, residuals) = (&mut sums.base[..n], &mut sums.residuals[..n]);
    bits.load_all(elements, base);
    let mut bad = false;
    for ((len, &symbol), &base) in residuals.iter_mut().zip(symbols).zip(base.iter()) {
        let lifted = lift(bits.exponent(base), delta.exponent);
        let (is_other, own) = (symbol != 0, u32::from(symbol).wrapping_sub(lifted));
        bad |= is_other & (own.wrapping_sub(1) >= bits.width);
        *len = if is_other { own } else { 0 };
    }
    if bad {
        return Err(BadRecord);
    }
    let room = padded(&mut sums.raw, raw)?;
    let mut at = 0usize;
    for residual in residuals.iter_mut() {
        let len = *residual;
        // At most 31 bits of each weight before: within the room.
        let Some(bytes) = room.get(at / 8..).and_then(|rest| rest.first_chunk()) else {
            return Err(BadRecord);
        };
        let word = u64::from_le_bytes(*bytes) >> (at % 8);
        let (below, top) = PARTS[len as usize % 64];
        *residual = word as u32 & below | top;
        at += len.saturating_sub(1) as usize;
    }
    check_end(at, raw.len())?;
    for (base, &residual) in base.iter_mut().zip(residuals.iter()) {
        *base = bits.restored(how, residual, *base);
    }
    bits.store_all(base, elements);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn residuals_are_undone() {
        for dtype in [Dtype::F32, Dtype::F16] {
            let bits = Bits::of(dtype);
            let top = mask(bits.width);
            let values = [0, 1, 2, top, top - 1, 1 << (bits.width - 1), top >> 1, 0x3c00, 0xbc01, 12345];
            for how in [Residual::Xor, Residual::Difference] {
                for (a, b) in values.iter().flat_map(|&a| values.map(|b| (a & top, b & top))) {
                    let residual = bits.residual(how, a, b);
                    assert!(residual <= top);
                    assert_eq!(bits.restored(how, residual, b), a, "{how:?} {a:#x} {b:#x}");
                }
            }
            // Neighbours across zero and an octave are short.
            let one = bits.residual(Residual::Difference, 1, 1 << (bits.width - 1));
            assert_eq!(length(one), 3);
            assert_eq!(length(bits.residual(Residual::Difference, 0x3c00, 0x3bff)), 2);
        }
    }
}
