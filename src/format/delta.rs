//! What the header of a delta says: how residuals were made, and of which base.

/// How a residual comes from a weight and its base's, both taken as the bits of their dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Residual {
    /// The bits in which they differ.
    Xor,
    /// How many values of the dtype lie between them, and in which direction.
    Difference,
}

/// What a delta's decoder must know beside its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta {
    /// How residuals were made.
    pub residual: Residual,
    /// A symbol is a residual's length in bits, plus as many as the base's biased exponent is above this.
    pub exponent: u8,
    /// XXH3-64 (seed 0) of the base's row-major elements; or, of a delta to a blob, that blob's [`Header::identity`].
    ///
    /// [`Header::identity`]: super::Header::identity
    pub base_hash: u64,
    /// Whether the base is a blob of the same dtype, shape and layout.
    pub of_blob: bool,
}
