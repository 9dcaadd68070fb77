//! The rooms for instruction sets: each encodes and decodes block records, all to the same bytes and words.
//!
//! One backend is chosen when the first blob is opened: the best that this machine can run, or the one that
//! the environment variable `NZ_SIMD` names.

#[cfg(target_arch = "aarch64")]
mod aarch64;
pub(crate) mod delta;
pub mod dense;
mod exponents;
mod generic;
mod grid;
mod layers;
mod pack;
mod words;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::sync::OnceLock;

use crate::format::{Delta, Dtype, GRID_BITS, MAX_BLOCK, Tier, Unit};
use delta::{Bits, Sums};
pub use exponents::ExponentCounts;
pub use grid::{Extent, Grid, STRIP, Step, Values};
pub(crate) use grid::{FRACTION_ONES, LevelCounts, count_levels};
#[cfg(target_arch = "x86_64")]
use layers::Joined;
pub use layers::{Refinement, split_record};
use words::WordLoops;
pub use words::{JointCounts, Kinds, Unions};

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
    /// The symbol of each code; zero for the escape.
    symbols: [u8; 16],
    /// The symbol of each code whatever the bits above it; the escape's entry is `mark`. Then, of codes of 2 bits, the same
    /// for those that have one and two other codes below them.
    #[cfg(target_arch = "x86_64")]
    lookups: [[u8; 64]; 3],
    /// A byte that is no symbol of the tier.
    #[cfg(target_arch = "x86_64")]
    mark: u8,
    /// Whether only the mark has its top bit set: so it is where exponents are those of weights below 2.
    #[cfg(target_arch = "x86_64")]
    top_marks: bool,
    /// If the tier has 1 bit, how many that are so in turn it is the last of, at most [`MAX_RUN`]; tier 0 apart.
    #[cfg(target_arch = "x86_64")]
    run: usize,
}

/// Tiers of 1 bit that are decoded at one go.
#[cfg(target_arch = "x86_64")]
const MAX_RUN: usize = 4;

impl Tables {
    /// The tables of a cascade.
    pub fn new(tiers: &[Tier]) -> Self {
        Tables { tiers: (0..tiers.len()).map(|last| TierTable::new(&tiers[..=last])).collect() }
    }
}

impl TierTable {
    /// The table of the last of `tiers`.
    fn new(tiers: &[Tier]) -> Self {
        let tier = &tiers[tiers.len() - 1];
        let mut symbols = [0; 16];
        symbols[..tier.symbols.len()].copy_from_slice(&tier.symbols);
        #[cfg(target_arch = "x86_64")]
        let mark = (0..=255u8).rev().find(|b| !tier.symbols.contains(b)).unwrap_or(0);
        TierTable {
            width: tier.width,
            symbols,
            #[cfg(target_arch = "x86_64")]
            lookups: [0, 1, 2].map(|below| {
                std::array::from_fn(|i| {
                    let code = i >> (2 * below) & ((1 << tier.width) - 1);
                    tier.symbols.get(code).copied().unwrap_or(mark)
                })
            }),
            #[cfg(target_arch = "x86_64")]
            mark,
            #[cfg(target_arch = "x86_64")]
            top_marks: mark >= 0x80 && tier.symbols.iter().all(|&symbol| symbol < 0x80),
            #[cfg(target_arch = "x86_64")]
            run: tiers.iter().skip(1).rev().take_while(|tier| tier.width == 1).take(MAX_RUN).count(),
        }
    }
}

/// A block of bytes with room for a vector that starts at its end.
const PADDED: usize = BLOCK + 64;

/// Blocks whose symbols are decoded side by side, at most: each has to wait for itself again and again.
#[cfg(target_arch = "x86_64")]
const SIDE_BY_SIDE: usize = 4;

/// Memory that decoding a block needs beside its output.
///
/// Aligned as vectors are, and each buffer with it: a store across two lines of a cache takes twice as long.
#[repr(C, align(64))]
pub struct Scratch {
    codes: [u8; BLOCK],
    symbols: [u8; PADDED],
    below: [u8; PADDED],
    /// The same for each of some blocks that are decoded side by side.
    #[cfg(target_arch = "x86_64")]
    rooms: [[[u8; PADDED]; 2]; SIDE_BY_SIDE],
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
            #[cfg(target_arch = "x86_64")]
            rooms: [[[0; PADDED]; 2]; SIDE_BY_SIDE],
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

/// A block's record, and what a backend must know to read it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record<'a> {
    /// The record's bytes.
    pub bytes: &'a [u8],
    /// Mantissa bits a weight in the record, at most 23.
    pub m: u8,
    /// Weights in the block.
    pub len: usize,
    /// The grid that its words are levels of, if they are: at most 15 raw bits then.
    pub grid: Option<Grid<'a>>,
    /// The raw bits that words have beside those of the record, if lower ones lie in layers.
    pub layers: Option<Refinement<'a>>,
    /// Bytes that are likely to be read soon after these, but for the next record's: the backend may fetch them
    /// meanwhile.
    pub ahead: &'a [u8],
}

/// Where decoded weights should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// To the caches: they are read soon.
    Cached,
    /// Past the caches, where the memory is aligned for that: there are more of them than caches hold. Whoever asks
    /// for it calls [`fence`] before another thread reads them.
    Streamed,
}

#[cfg(target_arch = "x86_64")]
impl Store {
    /// Whether elements that start where `out` does go past the caches.
    fn streams<T>(self, out: &[T]) -> bool {
        self == Store::Streamed && out.as_ptr().addr().is_multiple_of(64)
    }
}

/// Makes streamed weights visible to other threads.
pub fn fence() {
    #[cfg(target_arch = "x86_64")]
    x86_64::fence();
}

/// A format of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// IEEE binary16.
    F16,
    /// The upper half of binary32.
    Bf16,
}

impl Half {
    /// The format of elements of this dtype, if they have 16 bits.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 | Dtype::U8 | Dtype::I8 => None,
            Dtype::F16 => Some(Half::F16),
            Dtype::Bf16 => Some(Half::Bf16),
        }
    }
}

/// Bytes that any record fits in: eight tiers of 4 bits and their literals, 24 raw bits, three bytes to align it.
pub const RECORD_ROOM: usize = 8 * BLOCK / 2 + BLOCK + 3 * BLOCK + 64;

type EncodeRecord = fn(&Tables, &[u32], &mut Scratch, &mut [u8], &[u8]) -> (u8, usize);
type EncodeHalves = fn(&Tables, Half, &[u8], &mut Scratch, &mut [u8], &[u8]) -> Option<(u8, usize)>;
type DecodeRecords = fn(&Tables, &[Record<'_>], &mut Scratch, &mut [u32], Store) -> Result<(), BadRecord>;
type DecodeHalves =
    fn(&Tables, &[Record<'_>], &mut Scratch, Half, &mut [u16], Store) -> Result<(), BadRecord>;
type DecodeDelta =
    fn(&Tables, &[u8], &Delta, Bits, &mut [u8], (&mut Scratch, &mut Sums)) -> Result<(), BadRecord>;
type Multiply = fn(&Tables, &[Record<'_>], &mut Scratch, &[f32], &mut [f32]) -> Result<(), BadRecord>;

/// What a backend can do at one go where others decode to words first.
#[derive(Clone, Copy, Debug)]
struct Fused {
    /// Blocks of a multiple of so many weights.
    unit: usize,
    /// Whether they may be on grids.
    grids: bool,
    halves: DecodeHalves,
    products: Option<Products>,
}

/// Products with weights that are never written to memory.
#[derive(Clone, Copy, Debug)]
struct Products {
    rows: Multiply,
    columns: Multiply,
}

/// An implementation of the block decoder and encoder.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// The name that `NZ_SIMD` takes and `nz-onnx env` prints.
    pub name: &'static str,
    decode: DecodeRecords,
    encode: EncodeRecord,
    encode_halves: Option<EncodeHalves>,
    words: WordLoops,
    fused: Option<Fused>,
    delta: DecodeDelta,
}

impl Backend {
    /// All backends of this build that this machine can run, the slowest and clearest first.
    pub fn available() -> Vec<Backend> {
        let mut all = vec![Backend {
            name: "scalar",
            decode: generic::decode,
            encode: pack::encode,
            encode_halves: None,
            words: words::GENERIC,
            fused: None,
            delta: delta::decode,
        }];
        #[cfg(target_arch = "x86_64")]
        all.extend(x86_64::available());
        #[cfg(target_arch = "aarch64")]
        all.extend(aarch64::available());
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

    /// Decodes records to words, one after the other: `words` has room for those of all, and no more. Where a record is
    /// on a grid, to the words of its values.
    ///
    /// Reads nothing outside the records and writes nothing outside `words`, whatever the records hold.
    ///
    /// # Errors
    /// The planes of a record do not fill it; `words` then holds anything.
    ///
    /// # Panics
    /// `words` has another length, a block is longer than [`BLOCK`], or an `m` is over 23, or
    /// over 15 on a grid, or that has too few steps.
    pub fn decode(
        self,
        tables: &Tables,
        records: &[Record<'_>],
        scratch: &mut Scratch,
        words: &mut [u32],
        store: Store,
    ) -> Result<(), BadRecord> {
        check(records, words.len());
        (self.decode)(tables, records, scratch, words, store)
    }

    /// Adds the residuals in `record`, the block of a delta, to the base's `elements`, which are all that it covers.
    ///
    /// Reads nothing outside the record and writes nothing outside `elements`, whatever the record holds.
    ///
    /// # Errors
    /// What a record should be made of does not fill it; `elements` then holds anything.
    ///
    /// # Panics
    /// There are more than [`BLOCK`] elements, or a part of one.
    pub(crate) fn decode_delta(
        self,
        tables: &Tables,
        record: &[u8],
        delta: &Delta,
        bits: Bits,
        elements: &mut [u8],
        (scratch, sums): (&mut Scratch, &mut Sums),
    ) -> Result<(), BadRecord> {
        let size = bits.width as usize / 8;
        assert!(elements.len() <= BLOCK * size && elements.len().is_multiple_of(size));
        (self.delta)(tables, record, delta, bits, elements, (scratch, sums))
    }

    /// Decodes records of a 16-bit dtype to elements of it, or returns `None`: this backend must decode such blocks
    /// to words first.
    ///
    /// # Errors
    /// As [`Backend::decode`], and if an `m` is more than `format` has.
    ///
    /// # Panics
    /// As [`Backend::decode`].
    pub fn decode_halves(
        self,
        tables: &Tables,
        records: &[Record<'_>],
        scratch: &mut Scratch,
        format: Half,
        out: &mut [u16],
        store: Store,
    ) -> Option<Result<(), BadRecord>> {
        check(records, out.len());
        let fused = self.fused_for(records).filter(|_| records.iter().all(|r| r.layers.is_none()))?;
        Some((fused.halves)(tables, records, scratch, format, out, store))
    }

    /// `y += x W`, where `records` hold `W`, `[x.len(), y.len()]`, row by row, each of them whole rows. Every
    /// element of `y` is summed up in the order of rows, one rounding a step. `None`: this backend must decode
    /// such records first.
    ///
    /// # Errors
    /// As [`Backend::decode`]; `y` then holds anything.
    ///
    /// # Panics
    /// The lengths do not go together.
    pub fn multiply_rows(
        self,
        tables: &Tables,
        records: &[Record<'_>],
        scratch: &mut Scratch,
        x: &[f32],
        y: &mut [f32],
    ) -> Option<Result<(), BadRecord>> {
        check(records, x.len() * y.len());
        let products = self.fused_for(records)?.products?;
        let (width, full) = (y.len(), records.first()?.len);
        let whole = records.iter().rev().skip(1).all(|r| r.len == full) && full.is_multiple_of(width);
        if ![64, 128, 256].contains(&width) || !whole || records.last()?.len > full {
            return None;
        }
        Some((products.rows)(tables, records, scratch, x, y))
    }

    /// `y += W x`, where `records` hold `W`, `[y.len(), x.len()]`, row by row. `None`: this backend must decode such
    /// records first.
    ///
    /// # Errors
    /// As [`Backend::decode`]; `y` then holds anything.
    ///
    /// # Panics
    /// The lengths do not go together.
    pub fn multiply_columns(
        self,
        tables: &Tables,
        records: &[Record<'_>],
        scratch: &mut Scratch,
        x: &[f32],
        y: &mut [f32],
    ) -> Option<Result<(), BadRecord>> {
        check(records, x.len() * y.len());
        let products = self.fused_for(records).filter(|_| x.len().is_multiple_of(64))?.products?;
        Some((products.columns)(tables, records, scratch, x, y))
    }

    fn fused_for(self, records: &[Record<'_>]) -> Option<Fused> {
        let fits = |fused: &Fused, r: &Record<'_>| {
            r.len.is_multiple_of(fused.unit) && (fused.grids || r.grid.is_none())
        };
        self.fused.filter(|fused| records.iter().all(|r| fits(fused, r)))
    }

    /// Writes the record of `words`, without the zeros that align the next one, to the front of `out`. Returns its
    /// `m` and its length; bytes of `out` behind the record may change. `ahead` is likely to be read soon after: the
    /// backend may fetch it meanwhile.
    ///
    /// # Panics
    /// `words` is longer than [`BLOCK`], or `out` shorter than [`RECORD_ROOM`].
    pub fn encode(
        self,
        tables: &Tables,
        words: &[u32],
        scratch: &mut Scratch,
        out: &mut [u8],
        ahead: &[u8],
    ) -> (u8, usize) {
        assert!(words.len() <= BLOCK && out.len() >= RECORD_ROOM);
        (self.encode)(tables, words, scratch, out, ahead)
    }

    /// As [`Backend::encode`], of the words that [`Backend::load`] would make of `halves`, little-endian elements of
    /// `format`. `None`: this backend needs the words, or does for these, as one is subnormal.
    ///
    /// # Panics
    /// There are more than [`BLOCK`] elements, or `out` is shorter than [`RECORD_ROOM`].
    pub fn encode_halves(
        self,
        tables: &Tables,
        format: Half,
        halves: &[u8],
        scratch: &mut Scratch,
        out: &mut [u8],
        ahead: &[u8],
    ) -> Option<(u8, usize)> {
        assert!(halves.len() <= 2 * BLOCK && out.len() >= RECORD_ROOM);
        self.encode_halves?(tables, format, halves, scratch, out, ahead)
    }

    /// As [`crate::codec::word::load`].
    ///
    /// # Panics
    /// `src` holds fewer elements than `out`.
    pub fn load(self, dtype: Dtype, src: &[u8], out: &mut [u32]) {
        assert!(src.len() >= out.len() * dtype.size());
        (self.words.load)(dtype, src, out);
    }

    /// As [`crate::codec::word::store`].
    ///
    /// # Panics
    /// `out` has no room for the words.
    pub fn store(self, dtype: Dtype, words: &[u32], out: &mut [u8]) {
        assert!(out.len() >= words.len() * dtype.size());
        (self.words.store)(dtype, words, out);
    }

    /// [`crate::codec::word::round`] for each word; whether all stayed as they were.
    pub fn round(self, words: &mut [u32], k: u8, dtype: Dtype) -> bool {
        (self.words.round)(words, k, dtype)
    }

    /// [`crate::codec::word::normalise`] for each word.
    pub fn normalise(self, words: &mut [u32]) {
        (self.words.normalise)(words);
    }

    /// [`crate::codec::word::denormalise`] for each word.
    pub fn denormalise(self, words: &mut [u32]) {
        (self.words.denormalise)(words);
    }

    /// Which of the kinds that decide about subnormals are among the words.
    pub fn kinds(self, words: &[u32]) -> Kinds {
        (self.words.kinds)(words)
    }

    /// The extent of a block of weights.
    pub fn extent(self, words: &[u32]) -> Extent {
        (self.words.extent)(words)
    }

    /// Turns the words of finite weights into those of the nearest levels with `k` raw bits. Where the unit is too small
    /// for a weight, its level is the largest.
    ///
    /// # Panics
    /// `k` is over 22.
    pub fn levels(self, words: &mut [u32], unit: Unit, k: u8) {
        assert!(k <= 22);
        (self.words.levels)(words, unit, k);
    }

    /// Adds the words to `counts`.
    ///
    /// # Panics
    /// `words` is longer than [`BLOCK`].
    pub fn count(self, words: &[u32], counts: &mut JointCounts) -> Unions {
        assert!(words.len() <= BLOCK);
        (self.words.count)(words, counts)
    }

    /// Adds the words to `counts`, by exponent alone.
    ///
    /// # Panics
    /// `words` is longer than [`BLOCK`].
    pub fn count_exponents(self, words: &[u32], counts: &mut ExponentCounts) -> Unions {
        assert!(words.len() <= BLOCK);
        (self.words.count_exponents)(words, counts)
    }

    /// The same of the words that [`Backend::load`] would make of `halves`, little-endian elements of `format`. Before
    /// elements of another dtype come, [`ExponentCounts::drain`] does.
    ///
    /// # Panics
    /// There are more than [`BLOCK`] elements, or a part of one.
    pub fn count_half_exponents(self, format: Half, halves: &[u8], counts: &mut ExponentCounts) -> Unions {
        assert!(halves.len() <= 2 * BLOCK && halves.len().is_multiple_of(2));
        (self.words.count_half_exponents)(format, halves, counts)
    }
}

/// Writes the tiers of `symbols` and their literals to the front of `out`; returns how many bytes they take.
///
/// # Panics
/// There are more than [`BLOCK`] symbols, or `out` is shorter than [`RECORD_ROOM`].
pub fn encode_symbols(tables: &Tables, symbols: &[u8], scratch: &mut Scratch, out: &mut [u8]) -> usize {
    assert!(symbols.len() <= BLOCK && out.len() >= RECORD_ROOM);
    scratch.symbols[..symbols.len()].copy_from_slice(symbols);
    pack::symbols_first(tables, symbols.len(), scratch, out)
}

/// Panics unless the records hold `len` weights and are such as can be decoded.
fn check(records: &[Record<'_>], len: usize) {
    assert!(records.iter().all(|r| r.len > 0 && r.len <= BLOCK && r.m <= 23));
    let fits = |r: &Record<'_>, grid: Grid<'_>| r.m <= GRID_BITS && grid.covers(r.len);
    assert!(records.iter().all(|r| r.grid.is_none_or(|grid| fits(r, grid))));
    assert_eq!(records.iter().map(|r| r.len).sum::<usize>(), len);
}
