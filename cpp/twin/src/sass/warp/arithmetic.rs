//! Results of instructions from the values that they take.

use super::super::op::{Relation, Rounding};

/// Each bit is the table's at the place that the three bits name.
pub(super) fn logic(a: u32, b: u32, c: u32, table: u32) -> u32 {
    (0..8).filter(|i| table >> i & 1 == 1).fold(0, |result, i| {
        let of = |value: u32, bit: u32| if i >> bit & 1 == 1 { value } else { !value };
        result | (of(a, 2) & of(b, 1) & of(c, 0))
    })
}

/// Bytes of `a` and `b` by number; from 8 on, eight times the sign of the byte numbered 8 less.
pub(super) fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |result, i| {
        let which = selector >> (4 * i) & 15;
        let byte = (bytes >> (8 * (which & 7))) as u8;
        let byte = if which < 8 { byte } else { (byte as i8 >> 7) as u8 };
        result | u32::from(byte) << (8 * i)
    })
}

/// The float32 that is nearest to `value` among those that are no greater in magnitude.
pub(super) fn towards_zero(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest).abs() > value.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest }
}

pub(super) fn real_of(value: u64, rounding: Rounding) -> f32 {
    let nearest = value as f32;
    let back = nearest as u128;
    match rounding {
        Rounding::Up if back < value.into() => f32::from_bits(nearest.to_bits() + 1),
        Rounding::ToZero if back > value.into() => f32::from_bits(nearest.to_bits() - 1),
        _ => nearest,
    }
}

impl Relation {
    pub(super) fn holds(self, order: std::cmp::Ordering) -> bool {
        match self {
            Relation::Equal => order.is_eq(),
            Relation::Unequal => order.is_ne(),
            Relation::Less => order.is_lt(),
            Relation::LessOrEqual => order.is_le(),
            Relation::Greater => order.is_gt(),
            Relation::GreaterOrEqual => order.is_ge(),
        }
    }
}
