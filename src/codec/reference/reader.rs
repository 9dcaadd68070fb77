//! Numbers and bytes, one after the other.

use super::check;

/// Bytes that are read from front to back.
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len()).ok_or("truncated")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    pub(super) fn uint(&mut self, size: usize) -> Result<u64, String> {
        Ok(self.take(size)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    pub(super) fn size(&mut self, size: usize) -> Result<usize, String> {
        usize::try_from(self.uint(size)?).map_err(|_| "number too large for this machine".to_string())
    }

    /// A number in 7 bits a byte.
    pub(super) fn leb128(&mut self) -> Result<usize, String> {
        let (mut value, mut shift) = (0u128, 0);
        loop {
            let byte = self.take(1)?[0];
            value |= u128::from(byte & 127) << shift;
            check(byte != 0 || shift == 0, "a dimension is written longer than need be")?;
            check(shift <= 63, "a dimension is too large")?;
            shift += 7;
            if byte < 128 {
                return usize::try_from(value).map_err(|_| "a dimension is too large".to_string());
            }
        }
    }
}
