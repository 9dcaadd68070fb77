//! What the lanes of a warp do together.

use super::super::machine::{Machine, Step, each};
use super::super::op::Shuffle;
use super::super::parse::{Operand, Sign, ZERO};
use super::{Warp, destination, lanes_of};

impl Warp {
    pub(super) fn shuffle(
        &mut self,
        step: &Step,
        shuffle: Shuffle,
        machine: &Machine,
        active: u32,
    ) -> Result<(), String> {
        let mut results = [(0, false); 32];
        for lane in lanes_of(active) {
            let by = self.integer(machine, step.from[1], lane)?;
            let bounds = self.integer(machine, step.from[2], lane)?;
            let (clamp, segment) = (bounds & 31, bounds >> 8 & 31);
            let (here, first) = (lane as u32, lane as u32 & segment);
            let last = first | (clamp & !segment);
            let (source, is_inside) = match shuffle {
                Shuffle::Up => (here.wrapping_sub(by & 31), here as i32 - (by & 31) as i32 >= last as i32),
                Shuffle::Butterfly => (here ^ (by & 31), here ^ (by & 31) <= last),
                Shuffle::Index => (first | (by & !segment & 31), first | (by & !segment & 31) <= last),
            };
            let source = if is_inside { source } else { here };
            if active >> source & 1 == 0 {
                return Err(format!("lane {lane} takes from lane {source}, which takes no part"));
            }
            results[lane] = (self.integer(machine, step.from[0], source as usize)?, is_inside);
        }
        let to = destination(step)?;
        for lane in lanes_of(active) {
            self.put(to, 0, lane, results[lane].0);
            self.set_predicate(step.to_predicates.first(), lane, results[lane].1);
        }
        Ok(())
    }

    /// Adds a product of 16 x 16 and 16 x 8 bfloat16 numbers to 16 x 8 float32 ones: one product after the other, by K. What a
    /// GPU rounds, and when, is not known.
    pub(super) fn multiply_matrices(&mut self, step: &Step, active: u32) -> Result<(), String> {
        if active != u32::MAX {
            return Err("lanes take no part in a product of matrices".to_owned());
        }
        let register = |operand: Option<&Operand>| match operand {
            Some(&Operand::Register(n, sign)) if sign == Sign::default() => Ok(n),
            other => Err(format!("{other:?} of a product of matrices")),
        };
        let (a, b, c) =
            (register(step.from.first())?, register(step.from.get(1))?, register(step.from.get(2))?);
        let to = destination(step)?;
        let word = |first: u8, i: usize, lane: usize| match first {
            ZERO => 0,
            _ => self.registers[usize::from(first) + i][lane],
        };
        let half = |word: u32, k: usize| {
            f32::from_bits(if k.is_multiple_of(2) { word << 16 } else { word & 0xffff_0000 })
        };
        let mut sums = [[0u32; 32]; 4];
        for row in 0..16 {
            for column in 0..8 {
                let (lane, i) = (row % 8 * 4 + column / 2, row / 8 * 2 + column % 2);
                let mut sum = f32::from_bits(word(c, i, lane));
                for k in 0..16 {
                    let left = word(a, k / 8 * 2 + row / 8, row % 8 * 4 + k % 8 / 2);
                    let right = word(b, k / 8, column * 4 + k % 8 / 2);
                    sum = half(left, k).mul_add(half(right, k), sum);
                }
                sums[i][lane] = sum.to_bits();
            }
        }
        for (i, lanes) in sums.iter().enumerate() {
            each(active, |lane| self.put(to, i as u8, lane, lanes[lane]));
        }
        Ok(())
    }

    /// Loads four 8 x 8 matrices of 16-bit elements, of whose rows each lane names one; each gets two elements of each matrix.
    pub(super) fn load_matrices(
        &mut self,
        step: &Step,
        transposed: bool,
        machine: &mut Machine,
        active: u32,
    ) -> Result<(), String> {
        if active != u32::MAX {
            return Err("lanes take no part in a load of matrices".to_owned());
        }
        let mut rows = [[0; 16]; 32];
        for (lane, row) in rows.iter_mut().enumerate() {
            let at = self.address(step.from[0], lane)? as u32;
            row.copy_from_slice(machine.shared(at, 16)?);
        }
        let to = destination(step)?;
        for lane in 0..32 {
            for matrix in 0..4 {
                let two = [0, 1].map(|i| {
                    let (row, column) = (lane / 4, lane % 4 * 2 + i);
                    let (row, column) = if transposed { (column, row) } else { (row, column) };
                    let row = &rows[matrix * 8 + row];
                    u32::from(u16::from_le_bytes([row[column * 2], row[column * 2 + 1]]))
                });
                self.put(to, matrix as u8, lane, two[0] | two[1] << 16);
            }
        }
        Ok(())
    }
}
