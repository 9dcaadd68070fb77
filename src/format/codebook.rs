//! The codebooks in a header.

/// Values of a codebook: for each sign as many as there can be symbols.
pub const CODEBOOK_ENTRIES: usize = 64;
/// The most codebooks of a tensor.
pub(super) const MAX_GROUPS: u8 = 16;

/// The codebooks of a tensor, and which unit has which.
#[derive(Clone, Debug, PartialEq)]
pub struct Codebook {
    /// For each group the values, as parts of a unit, those of sign 0 first; all are those of float16 numbers. What no
    /// symbol stands for is zero.
    pub tables: Vec<[f32; CODEBOOK_ENTRIES]>,
    /// The group of each unit; none if there is one group only.
    pub groups: Vec<u8>,
}

/// No value is NaN.
impl Eq for Codebook {}
