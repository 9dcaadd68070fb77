//! Planes: `n` values of 1, 2, 3, 4 or 8 bits, packed so that one shift unpacks a vector of them.

/// Bytes of a plane of `n` values of `width` bits.
pub fn plane_bytes(width: u8, n: usize) -> usize {
    let bits = |n: usize| n.div_ceil(8);
    if width == 3 { 3 * bits(n) } else { bits(n * width as usize) }
}

/// The widths of the planes that a field of `bits` bits is cut into, most significant first.
pub fn field_planes(bits: u8) -> impl Iterator<Item = u8> {
    let mut left = bits;
    std::iter::from_fn(move || {
        let width = [8, 4, 2, 1].into_iter().find(|&w| w <= left)?;
        left -= width;
        Some(width)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_cut_widest_first() {
        let cut = |bits| field_planes(bits).collect::<Vec<_>>();
        assert_eq!(cut(0), []);
        assert_eq!(cut(7), [4, 2, 1]);
        assert_eq!(cut(8), [8]);
        assert_eq!(cut(13), [8, 4, 1]);
        assert_eq!(cut(16), [8, 8]);
    }

    #[test]
    fn last_group_takes_what_it_needs() {
        assert_eq!(plane_bytes(2, 256), 64);
        assert_eq!(plane_bytes(2, 257), 65);
        assert_eq!(plane_bytes(1, 9), 2);
        assert_eq!(plane_bytes(4, 3), 2);
        assert_eq!(plane_bytes(3, 9), 6);
    }
}
