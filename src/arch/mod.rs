//! The rooms for instruction sets: each encodes and decodes block records, all to the same bytes and words.
//!
//! One backend is chosen when the first blob is opened: the best that this machine can run, or the one that
//! the environment variable `NZ_SIMD` names.

mod generic;
mod pack;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::sync::OnceLock;

use crate::format::{MAX_BLOCK, Tier};

/// Weights in the largest block.
pub const BLOCK: usize = MAX_BLOCK as usize;

/// What a backend needs to know of a blob to decode its records.
#[derive(Clone, Debug)]
pub struct Tables {
    tiers: Vec<TierTable>,
}

#[derive(Clone, Debug)]
struct TierTable {
    width: u8,
    /// The symbol of each code; the escape's entry is not used.
    symbols: [u8; 16],
}

impl Tables {
    /// The tables of a cascade.
    pub fn new(tiers: &[Tier]) -> Self {
        let table = |tier: &Tier| {
            let mut symbols = [0; 16];
            symbols[..tier.symbols.len()].copy_from_slice(&tier.symbols);
            TierTable { width: tier.width, symbols }
        };
        Tables { tiers: tiers.iter().map(table).collect() }
    }
}

/// A block of bytes with room for a vector that starts at its end.
const PADDED: usize = BLOCK + 64;

/// Memory that decoding a block needs beside its output.
pub struct Scratch {
    codes: [u8; BLOCK],
    symbols: [u8; PADDED],
    below: [u8; PADDED],
    head: [u8; PADDED],
    high: [u8; PADDED],
    low: [u8; PADDED],
    rest: [u16; BLOCK],
}

impl Scratch {
    /// Scratch for one thread.
    pub fn new() -> Box<Self> {
        Box::new(Scratch {
            codes: [0; BLOCK],
            symbols: [0; PADDED],
            below: [0; PADDED],
            head: [0; PADDED],
            high: [0; PADDED],
            low: [0; PADDED],
            rest: [0; BLOCK],
        })
    }
}

/// Asks for bytes that will be read soon.
pub fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    x86_64::prefetch(bytes);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// The planes of a record do not fill it: its bytes are not what an encoder wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadRecord;

type EncodeRecord = fn(&Tables, &[u32], &mut Scratch, &mut Vec<u8>) -> u8;
type DecodeRecord = fn(&Tables, &[u8], u8, &mut Scratch, &mut [u32]) -> Result<(), BadRecord>;

/// An implementation of the block decoder and encoder.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// The name that `NZ_SIMD` takes and `nz-onnx env` prints.
    pub name: &'static str,
    decode: DecodeRecord,
    encode: EncodeRecord,
}

impl Backend {
    /// All backends of this build that this machine can run, the slowest and clearest first.
    pub fn available() -> Vec<Backend> {
        let mut all = vec![Backend { name: "scalar", decode: generic::decode, encode: pack::encode }];
        #[cfg(target_arch = "x86_64")]
        all.extend(x86_64::available());
        all
    }

    /// The backend that this process uses.
    pub fn active() -> Backend {
        static ACTIVE: OnceLock<Backend> = OnceLock::new();
        *ACTIVE.get_or_init(|| {
            let all = Backend::available();
            let wanted = std::env::var("NZ_SIMD").ok();
            let named = all.iter().find(|b| wanted.as_deref() == Some(b.name));
            *named.or(all.last()).unwrap_or(&all[0])
        })
    }

    /// Decodes a record of `words.len()` weights with `m` stored mantissa bits each.
    ///
    /// Reads nothing outside `record` and writes nothing outside `words`, whatever the record holds.
    ///
    /// # Errors
    /// The planes do not fill the record; `words` then holds anything.
    ///
    /// # Panics
    /// `words` is longer than [`BLOCK`], or `m` is over 23.
    pub fn decode(
        self,
        tables: &Tables,
        record: &[u8],
        m: u8,
        scratch: &mut Scratch,
        words: &mut [u32],
    ) -> Result<(), BadRecord> {
        assert!(words.len() <= BLOCK && m <= 23);
        (self.decode)(tables, record, m, scratch, words)
    }

    /// Appends the record of `words`, without the zeros that align the next one, to `out`, and returns its `m`.
    ///
    /// # Panics
    /// `words` is longer than [`BLOCK`].
    pub fn encode(self, tables: &Tables, words: &[u32], scratch: &mut Scratch, out: &mut Vec<u8>) -> u8 {
        assert!(words.len() <= BLOCK);
        (self.encode)(tables, words, scratch, out)
    }
}
