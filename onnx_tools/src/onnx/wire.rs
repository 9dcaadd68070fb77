//! A scanner for the protobuf wire format that never loads what it can step over.
//!
//! A message is a range of a file. [`Scanner::field`] steps from field to field and checks each length
//! against the message that holds it, so that whatever a file claims, no range leaves its parent.

use std::ops::Range;

use super::error::{Error, Result};
use super::source::Source;

/// Bytes read ahead while headers are scanned.
const WINDOW: usize = 64 << 10;

/// Deepest nesting of messages that is followed, protobuf's own limit.
pub const MAX_DEPTH: usize = 100;

/// One field of a message: its number, where it lies, and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The number before the wire type in its tag.
    pub number: u32,
    /// Tag, length and value.
    pub whole: Range<u64>,
    /// The value.
    pub value: Value,
}

/// A field's value by wire type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1, where its eight bytes lie.
    Fixed64(Range<u64>),
    /// Wire type 2, where its bytes lie: a string, a message, or packed numbers.
    Bytes(Range<u64>),
    /// Wire type 5, where its four bytes lie.
    Fixed32(Range<u64>),
}

impl Field {
    /// The value's range if it is a string, a message or packed numbers.
    pub fn bytes(&self) -> Option<&Range<u64>> {
        match &self.value {
            Value::Bytes(range) => Some(range),
            _ => None,
        }
    }
}

/// Reads fields through a small window on a [`Source`].
#[derive(Debug)]
pub struct Scanner<'a> {
    source: &'a Source,
    window: Vec<u8>,
    start: u64,
}

impl<'a> Scanner<'a> {
    /// A scanner of `source`.
    pub fn new(source: &'a Source) -> Self {
        Scanner { source, window: Vec::new(), start: 0 }
    }

    /// The file scanned.
    pub fn source(&self) -> &'a Source {
        self.source
    }

    /// The field at `*at` in a message that ends at `end`, or `None` there. Moves `*at` behind the field.
    pub fn field(&mut self, at: &mut u64, end: u64) -> Result<Option<Field>> {
        if *at >= end {
            return Ok(None);
        }
        let start = *at;
        let tag = self.varint(at, end)?;
        let number = match u32::try_from(tag >> 3) {
            Ok(n) if n != 0 && tag <= u64::from(u32::MAX) => n,
            _ => return Err(self.bad(start, format!("{tag:#x} is not a field tag"))),
        };
        let value = match tag & 7 {
            0 => Value::Varint(self.varint(at, end)?),
            1 => Value::Fixed64(self.take(start, at, 8, end)?),
            2 => {
                let len = self.varint(at, end)?;
                Value::Bytes(self.take(start, at, len, end)?)
            }
            5 => Value::Fixed32(self.take(start, at, 4, end)?),
            other => return Err(self.bad(start, format!("field {number} has wire type {other}"))),
        };
        Ok(Some(Field { number, whole: start..*at, value }))
    }

    /// The varint at `*at`, which must end before `end`. Moves `*at` behind it.
    pub fn varint(&mut self, at: &mut u64, end: u64) -> Result<u64> {
        let start = *at;
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            if *at >= end {
                return Err(self.bad(start, "the message ends inside a number".to_string()));
            }
            let byte = self.byte(*at)?;
            *at += 1;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err(self.bad(start, "a number is longer than 64 bits".to_string()))
    }

    /// An error that names the offset.
    pub fn bad(&self, offset: u64, what: String) -> Error {
        Error::corrupt(
            self.source.path(),
            format!("not a valid ONNX model: at offset {offset}, {what} (a truncated or damaged file?)"),
        )
    }

    /// Appends the bytes of `range` to `out`, from the window where they are in it.
    pub fn append(&mut self, range: &Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        if len <= WINDOW / 4 {
            if len > 0 && !(self.covers(range.start) && self.covers(range.end - 1)) {
                self.load(range.start)?;
            }
            let from = (range.start.saturating_sub(self.start)) as usize;
            match self.window.get(from..from + len) {
                Some(bytes) => out.extend_from_slice(bytes),
                None => return Err(self.bad(range.start, "the file ends".to_string())),
            }
            return Ok(());
        }
        out.extend_from_slice(&self.source.read(range)?);
        Ok(())
    }

    fn take(&self, field: u64, at: &mut u64, len: u64, end: u64) -> Result<Range<u64>> {
        if len > end - *at {
            let have = end - *at;
            return Err(self.bad(field, format!("a field of {len} bytes in a message with {have} left")));
        }
        let range = *at..*at + len;
        *at += len;
        Ok(range)
    }

    fn byte(&mut self, at: u64) -> Result<u8> {
        if !self.covers(at) {
            self.load(at)?;
        }
        Ok(self.window[(at - self.start) as usize])
    }

    fn covers(&self, at: u64) -> bool {
        at >= self.start && at - self.start < self.window.len() as u64
    }

    /// Moves the window to `at`, which is then covered.
    fn load(&mut self, at: u64) -> Result<()> {
        let left = self.source.len().saturating_sub(at);
        let len = usize::try_from(left).unwrap_or(WINDOW).min(WINDOW);
        if len == 0 {
            return Err(self.bad(at, "the file ends".to_string()));
        }
        self.window.resize(len, 0);
        self.start = at;
        let read = self.source.read_exact_at(&mut self.window, at);
        if read.is_err() {
            self.window.clear();
        }
        read
    }
}

/// Appends `value` as a varint.
pub fn put_varint(out: &mut Vec<u8>, value: u64) {
    prost::encoding::encode_varint(value, out);
}

/// Tag and length of a length-delimited field of `len` bytes.
pub fn header(number: u32, len: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(12);
    put_varint(&mut out, u64::from(number) << 3 | 2);
    put_varint(&mut out, len);
    out
}
