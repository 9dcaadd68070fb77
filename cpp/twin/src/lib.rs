//! The C++ reader of the blob format (`cpp/include/nz_blob.hpp`), callable from Rust.
//!
//! It shares no code with the codec in the crate `nz-onnx`; it was written from `docs/format.md` alone.
//! Where both read a blob the same way, the page says enough. [`simt`] runs the CUDA kernels (`cpp/cuda`) on the CPU.
//! Only tests use this crate.

pub mod sass;
pub mod simt;

/// What C++ hands over; [`decode`] and [`parse_header`] turn it into Rust's own types.
#[cxx::bridge(namespace = "nz::twin")]
mod ffi {
    /// `nz::Error`; status 0 is none.
    struct Failure {
        status: u8,
        message: String,
    }

    /// `nz::Tier`.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct TierFields {
        /// Bits of a code: 1 to 4.
        width: u8,
        /// Exponents that the codes `0 .. 2^width - 1` stand for.
        symbols: Vec<u8>,
    }

    /// `nz::Header`. Sizes and offsets are in bytes.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct HeaderFields {
        /// Major version of the format.
        major: u8,
        /// Minor version of the format.
        minor: u8,
        /// ONNX `TensorProto.DataType`.
        dtype: u8,
        /// Transform: 1 float split, 2 with normalised subnormals, 3 grid, 4 delta, 5 integer, 6 codebook.
        transform: u8,
        /// Mantissa bits kept of each weight.
        mantissa_bits: u8,
        /// Whether decoding gives the source back bit for bit.
        lossless: bool,
        /// Weights a block.
        block_length: u64,
        /// Columns a tile; 0 when row-major.
        tile_width: u64,
        /// Outermost dimension first.
        shape: Vec<u64>,
        /// The cascade.
        tiers: Vec<TierFields>,
        /// Starts of the block records in the payload, and its end.
        record_offsets: Vec<u64>,
        /// Stored mantissa bits of each block.
        widths: Vec<u8>,
        /// Units on a grid or of codebooks: one, or one for each block or row.
        units: Vec<u16>,
        /// Whose those are: 0 of all weights, 1 of blocks, 2 of rows.
        units_of: u8,
        /// Where the payload starts.
        payload_offset: u64,
        /// Size of the payload.
        payload_size: u64,
        /// XXH3-64 of the payload.
        payload_hash: u64,
    }

    struct HeaderOutcome {
        failure: Failure,
        fields: HeaderFields,
    }

    struct DecodeOutcome {
        failure: Failure,
        bytes: UniquePtr<CxxVector<u8>>,
    }

    unsafe extern "C++" {
        include!("nz-cpp-twin/src/bridge.hpp");

        fn parse_header(blob: &[u8]) -> HeaderOutcome;
        fn decode(blob: &[u8], depth: usize) -> DecodeOutcome;
        fn decode_delta(blob: &[u8], base: &[u8]) -> DecodeOutcome;
        fn xxh3_64(bytes: &[u8]) -> u64;
    }
}

pub use ffi::{HeaderFields as Header, TierFields as Tier};

/// Why the C++ reader refused a blob. The texts are its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The buffer ends before the blob does.
    #[error("{0}")]
    Truncated(String),
    /// The bytes are not what the format allows, or a checksum differs.
    #[error("{0}")]
    Corrupt(String),
    /// The blob is made by a later version, or names something this version lacks.
    #[error("{0}")]
    Unsupported(String),
}

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

fn check(failure: ffi::Failure) -> Result<()> {
    // The numbers are those of `nz::Status`.
    match failure.status {
        0 => Ok(()),
        1 => Err(Error::Truncated(failure.message)),
        3 => Err(Error::Unsupported(failure.message)),
        _ => Err(Error::Corrupt(failure.message)),
    }
}

/// Reads and checks the header of `blob` with `nz::parse_header`.
pub fn parse_header(blob: &[u8]) -> Result<Header> {
    let outcome = ffi::parse_header(blob);
    check(outcome.failure)?;
    Ok(outcome.fields)
}

/// Decodes `blob` with `nz::decode`: row-major bytes in the tensor's dtype, both checksums compared.
pub fn decode(blob: &[u8]) -> Result<Vec<u8>> {
    decode_to(blob, usize::MAX)
}

/// The same with the first `depth` layers only.
pub fn decode_to(blob: &[u8], depth: usize) -> Result<Vec<u8>> {
    bytes(ffi::decode(blob, depth))
}

/// Decodes a delta with `nz::decode_delta`, given the elements or the blob that it is to.
pub fn decode_delta(blob: &[u8], base: &[u8]) -> Result<Vec<u8>> {
    bytes(ffi::decode_delta(blob, base))
}

fn bytes(outcome: ffi::DecodeOutcome) -> Result<Vec<u8>> {
    check(outcome.failure)?;
    Ok(outcome.bytes.as_slice().to_vec())
}

/// XXH3-64 with seed 0 of `bytes`, by `nz::xxh3_64`.
pub fn xxh3_64(bytes: &[u8]) -> u64 {
    ffi::xxh3_64(bytes)
}
