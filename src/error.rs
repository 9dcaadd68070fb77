//! The few ways in which coding or decoding a tensor can fail.

/// What went wrong with a blob or with a request to make one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not what the format allows, or a checksum differs.
    #[error("corrupt blob: {0}")]
    Corrupt(String),
    /// The buffer ends before the blob does.
    #[error("truncated blob: {needed} bytes expected, {found} found")]
    Truncated {
        /// Bytes that the header calls for.
        needed: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// The blob is valid but made by a later version, or names something this version lacks.
    #[error("unsupported blob: {0}")]
    Unsupported(String),
    /// The base of a delta is damaged, or not the one that the delta was made to.
    #[error("{0}")]
    Base(String),
    /// The caller asked for something that cannot be.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
}

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Error::Corrupt(what.into())
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Error::InvalidArgument(what.into())
    }
}
