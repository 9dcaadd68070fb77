//! Units: what the levels of a grid are fractions of.

/// The unit of a part of a grid, and whether levels there lie in the middle of their cells. 16 bits: the upper half of
/// the unit's float32, its sign bit for the latter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unit(u16);

/// Which weights of a tensor on a grid share a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Units {
    /// All.
    Tensor,
    /// Those of a block.
    Block,
    /// Those of a row of a matrix that is stored in column tiles, all of whose tiles are multiples of 64 columns wide.
    Row,
}

const CENTRED: u16 = 1 << 15;
/// 2^-100 and 2^100 as the upper halves of their float32: no product of a level and a unit leaves the normal range.
const LEAST: u16 = (127 - 100) << 7;
const END: u16 = (127 + 100) << 7;

impl Unit {
    /// The least there is.
    pub const LEAST: Unit = Unit(LEAST);

    /// The unit with these bits, if there is one.
    pub fn from_bits(bits: u16) -> Option<Unit> {
        (LEAST..END).contains(&(bits & !CENTRED)).then_some(Unit(bits))
    }

    /// The least unit that is not below `value`; `None` if there is none.
    pub fn at_least(value: f32, centred: bool) -> Option<Unit> {
        if value.is_nan() || value >= f32::from_bits(u32::from(END) << 16) {
            return None;
        }
        let up = (value.max(0.0).to_bits().wrapping_add(0xffff) >> 16) as u16;
        Unit::from_bits(up.max(LEAST) | if centred { CENTRED } else { 0 })
    }

    /// The 16 bits that the header has for it.
    pub fn bits(self) -> u16 {
        self.0
    }

    /// The unit itself.
    pub fn value(self) -> f32 {
        f32::from_bits(u32::from(self.0 & !CENTRED) << 16)
    }

    /// Whether each level stands for the middle of the cell that begins with it, and not for itself.
    pub fn is_centred(self) -> bool {
        self.0 & CENTRED != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_rounded_up_and_bounded() {
        for value in [1.0f32, 1.001, 0.3, 1e-30, 7e29] {
            for centred in [false, true] {
                let unit = Unit::at_least(value, centred).unwrap();
                assert!(unit.value() >= value && unit.value() <= value * (1.0 + 1.0 / 128.0), "{value}");
                assert_eq!(unit.is_centred(), centred);
                assert_eq!(Unit::from_bits(unit.bits()), Some(unit));
            }
        }
        let least = (-100f32).exp2();
        assert_eq!(Unit::at_least(0.0, false).unwrap().value(), least);
        assert_eq!(Unit::at_least(-1.0, false).unwrap().value(), least);
        for value in [f32::NAN, f32::INFINITY, 100f32.exp2(), f32::from_bits(100f32.exp2().to_bits() - 1)] {
            assert_eq!(Unit::at_least(value, false), None, "{value}");
        }
        for bits in [0, LEAST - 1, END, 0x7f80, 0xffff, CENTRED] {
            assert_eq!(Unit::from_bits(bits), None);
        }
    }
}
