//! A byte sequence made of ranges of the input file and of new bytes.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use crate::onnx::{Error, Model, Result, WeightId};

/// A piece of a [`Rope`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A range of the model's file.
    Source(Range<u64>),
    /// New bytes.
    Owned(Vec<u8>),
    /// The bytes of a weight that is stored inside the model; apart so that their place can be found.
    Inline {
        /// The weight.
        weight: WeightId,
        /// Its blob, or its elements where it is kept.
        bytes: Vec<u8>,
    },
}

impl Piece {
    /// Bytes in it.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        match self {
            Piece::Source(range) => range.end - range.start,
            Piece::Owned(bytes) | Piece::Inline { bytes, .. } => bytes.len() as u64,
        }
    }
}

/// A sequence of [`Piece`]s.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rope {
    pieces: Vec<Piece>,
}

impl Rope {
    /// An empty rope.
    pub fn new() -> Self {
        Rope::default()
    }

    /// Bytes in all.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.pieces.iter().map(Piece::len).sum()
    }

    /// The pieces in order; neighbours of one kind are joined.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Appends a range of the model's file.
    pub fn source(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        match self.pieces.last_mut() {
            Some(Piece::Source(last)) if last.end == range.start => last.end = range.end,
            _ => self.pieces.push(Piece::Source(range)),
        }
    }

    /// Appends new bytes.
    pub fn owned(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match self.pieces.last_mut() {
            Some(Piece::Owned(last)) => last.extend_from_slice(bytes),
            _ => self.pieces.push(Piece::Owned(bytes.to_vec())),
        }
    }

    /// Appends the bytes of a weight.
    pub fn inline(&mut self, weight: WeightId, bytes: &[u8]) {
        self.pieces.push(Piece::Inline { weight, bytes: bytes.to_vec() });
    }

    /// Appends another rope.
    pub fn append(&mut self, other: Rope) {
        for piece in other.pieces {
            match piece {
                Piece::Source(range) => self.source(range),
                Piece::Owned(bytes) => self.owned(&bytes),
                inline => self.pieces.push(inline),
            }
        }
    }

    /// Appends `content` as field `number` of a message.
    pub fn field(&mut self, number: u32, content: Rope) {
        self.owned(&crate::onnx::wire::header(number, content.len()));
        self.append(content);
    }

    /// Hands all bytes to `sink`, a chunk at a time; `model` is the file that ranges refer to.
    pub fn stream(&self, model: &Model, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        for piece in &self.pieces {
            match piece {
                Piece::Source(range) => model.source().stream(range, &mut sink)?,
                Piece::Owned(bytes) | Piece::Inline { bytes, .. } => sink(bytes)?,
            }
        }
        Ok(())
    }

    /// Writes all bytes to `out`; `name` is what `out` is called in an error.
    pub fn write_to(&self, model: &Model, out: &mut dyn Write, name: &Path) -> Result<()> {
        self.stream(model, |chunk| out.write_all(chunk).map_err(|e| Error::io(name, "write", e)))
    }
}
