//! What a lane does on its own.

use super::super::machine::{ALWAYS, Machine, Step};
use super::super::op::Op;
use super::super::parse::{Operand, TRUE, ZERO};
use super::arithmetic::{logic, permute, real_of, towards_zero};
use super::{Warp, destination};

impl Warp {
    /// What a single lane does, or the warp's own unit.
    pub(super) unsafe fn lane(&mut self, step: &Step, m: &mut Machine, lane: usize) -> Result<(), String> {
        let from = &step.from;
        let carried =
            |warp: &Warp| -> u64 { step.from_predicates.iter().map(|&p| u64::from(warp.is(p, lane))).sum() };
        let value = match step.op {
            Op::Move | Op::ReadSpecial => self.integer(m, from[0], lane)?,
            Op::Zeros => {
                self.put(destination(step)?, 1, lane, 0);
                0
            }
            Op::Add { extended } => {
                let mut sum = if extended { carried(self) } else { 0 };
                for &operand in &from[..3] {
                    sum += self.addend(m, operand, lane)?;
                }
                self.set_predicate(step.to_predicates.first(), lane, sum >> 32 > 0);
                self.set_predicate(step.to_predicates.get(1), lane, sum >> 32 > 1);
                sum as u32
            }
            Op::AddTwo => self.integer(m, from[0], lane)?.wrapping_add(self.integer(m, from[1], lane)?),
            Op::MultiplyAdd { extended } => {
                let carry = if extended { carried(self) as u32 } else { 0 };
                let product = self.integer(m, from[0], lane)?.wrapping_mul(self.integer(m, from[1], lane)?);
                if step.to_predicates.iter().any(|&p| p != ALWAYS) {
                    return Err("the carry of a product".to_owned());
                }
                product.wrapping_add(self.integer(m, from[2], lane)?).wrapping_add(carry)
            }
            Op::MultiplyHigh | Op::MultiplyWide => {
                let product =
                    u64::from(self.integer(m, from[0], lane)?) * u64::from(self.integer(m, from[1], lane)?);
                let (sum, carry) = product.overflowing_add(self.wide(from[2], lane)?);
                self.set_predicate(step.to_predicates.first(), lane, carry);
                if step.op == Op::MultiplyHigh {
                    (sum >> 32) as u32
                } else {
                    self.put(destination(step)?, 1, lane, (sum >> 32) as u32);
                    sum as u32
                }
            }
            Op::ShiftAdd => {
                let shifted = self.integer(m, from[0], lane)? << (self.integer(m, from[2], lane)? & 31);
                let sum = u64::from(shifted) + self.addend(m, from[1], lane)?;
                self.set_predicate(step.to_predicates.first(), lane, sum >> 32 > 0);
                sum as u32
            }
            Op::ShiftAddHigh { extended } => {
                let (low, high) = (self.integer(m, from[0], lane)?, self.integer(m, from[2], lane)?);
                let both = u64::from(high) << 32 | u64::from(low);
                let shifted = (both << (self.integer(m, from[3], lane)? & 31)) >> 32;
                let carry = if extended { carried(self) } else { 0 };
                let sum = shifted + self.addend(m, from[1], lane)? + carry;
                self.set_predicate(step.to_predicates.first(), lane, sum >> 32 > 0);
                sum as u32
            }
            Op::Logic => {
                let [a, b, c, table] = self.four(m, from, lane)?;
                let result = logic(a, b, c, table);
                let with = step.from_predicates.first().is_some_and(|&p| self.is(p, lane));
                self.set_predicate(step.to_predicates.first(), lane, result != 0 || with);
                result
            }
            Op::PredicateLogic => {
                let inputs = [0, 1, 2].map(|i| self.is(step.from_predicates[i], lane));
                let index = inputs.iter().fold(0, |index, &input| index << 1 | u32::from(input));
                for (i, predicate) in step.to_predicates.iter().enumerate() {
                    let table = self.integer(m, from[i], lane)?;
                    self.set_predicate(Some(predicate), lane, table >> index & 1 == 1);
                }
                return Ok(());
            }
            Op::ShiftLeft => {
                self.integer(m, from[0], lane)?.checked_shl(self.integer(m, from[1], lane)?).unwrap_or(0)
            }
            Op::ShiftLeftHigh => {
                let [low, by, high] = self.three(m, from, lane)?;
                let both = u64::from(high) << 32 | u64::from(low);
                (both.checked_shl(by).unwrap_or(0) >> 32) as u32
            }
            Op::ShiftRight { arithmetic } => {
                let (by, high) = (self.integer(m, from[1], lane)?, self.integer(m, from[2], lane)?);
                if arithmetic {
                    (high as i32 >> by.min(31)) as u32
                } else {
                    high.checked_shr(by).unwrap_or(0)
                }
            }
            Op::ShiftRightLow { wraps } => {
                let [low, by, high] = self.three(m, from, lane)?;
                let both = u64::from(high) << 32 | u64::from(low);
                both.checked_shr(if wraps { by & 31 } else { by }).unwrap_or(0) as u32
            }
            Op::Permute => {
                let [a, selector, b] = self.three(m, from, lane)?;
                permute(a, b, selector)
            }
            Op::Select => {
                // Signs of real numbers were not met.
                let i = usize::from(!self.is(step.from_predicates[0], lane));
                self.integer(m, from[i], lane)?
            }
            Op::Compare { relation, signed, or, extended } => {
                let (a, b) = (self.integer(m, from[0], lane)?, self.integer(m, from[1], lane)?);
                let order = if signed { (a as i32).cmp(&(b as i32)) } else { a.cmp(&b) };
                let lower = step.from_predicates.get(1).is_some_and(|&p| self.is(p, lane));
                let holds = if extended && order.is_eq() { lower } else { relation.holds(order) };
                let with = step.from_predicates.first().is_none_or(|&p| self.is(p, lane));
                for (predicate, holds) in step.to_predicates.iter().zip([holds, !holds]) {
                    self.set_predicate(Some(predicate), lane, if or { holds || with } else { holds && with });
                }
                return Ok(());
            }
            Op::CompareReal { relation, or_unordered } => {
                let (a, b) = (self.real(m, from[0], lane)?, self.real(m, from[1], lane)?);
                let holds = a.partial_cmp(&b).map_or(or_unordered, |order| relation.holds(order));
                let with = step.from_predicates.first().is_none_or(|&p| self.is(p, lane));
                for (predicate, holds) in step.to_predicates.iter().zip([holds, !holds]) {
                    self.set_predicate(Some(predicate), lane, holds && with);
                }
                return Ok(());
            }
            Op::Least { signed } => {
                let (a, b) = (self.integer(m, from[0], lane)?, self.integer(m, from[1], lane)?);
                self.least(step, a, b, signed, lane)
            }
            Op::LeastHalves => {
                let (a, b) = (self.integer(m, from[0], lane)?, self.integer(m, from[1], lane)?);
                let [high, low] =
                    [16, 0].map(|by| self.least(step, a >> by & 0xffff, b >> by & 0xffff, false, lane));
                high << 16 | low
            }
            Op::AddLeast { signed } => {
                let [a, b, c] = self.three(m, from, lane)?;
                self.least(step, a.wrapping_add(b), c, signed, lane)
            }
            Op::DotBytes => {
                let [a, b, c] = self.three(m, from, lane)?;
                let products = a
                    .to_le_bytes()
                    .into_iter()
                    .zip(b.to_le_bytes())
                    .map(|(a, b)| u32::from(a) * u32::from(b));
                products.fold(c, u32::wrapping_add)
            }
            Op::Count => self.integer(m, from[0], lane)?.count_ones(),
            Op::FindLeading => self.integer(m, from[0], lane)?.checked_ilog2().unwrap_or(u32::MAX),
            Op::Predicates => {
                let [predicates, base, mask] = self.three(m, from, lane)?;
                predicates & mask | base & !mask
            }
            Op::SetPredicates => {
                let (bits, mask) = (self.integer(m, from[0], lane)?, self.integer(m, from[1], lane)?);
                for n in (0..TRUE).filter(|n| mask >> n & 1 == 1) {
                    let predicate = Operand::Predicate { n, of_warp: false, not: false };
                    self.set_predicate(Some(&predicate), lane, bits >> n & 1 == 1);
                }
                return Ok(());
            }
            Op::AddReal => (self.real(m, from[0], lane)? + self.real(m, from[1], lane)?).to_bits(),
            Op::MultiplyReal { to_zero } => {
                let (a, b) = (self.real(m, from[0], lane)?, self.real(m, from[1], lane)?);
                if to_zero { towards_zero(f64::from(a) * f64::from(b)) } else { a * b }.to_bits()
            }
            Op::MultiplyAddReal => {
                let [a, b, c] = [0, 1, 2].map(|i| self.real(m, from[i], lane));
                a?.mul_add(b?, c?).to_bits()
            }
            Op::HalfZero => 0,
            Op::Reciprocal => (1.0 / self.real(m, from[0], lane)?).to_bits(),
            Op::RealOf { bits, rounding } => {
                let value = if bits == 64 {
                    self.wide(from[0], lane)?
                } else {
                    self.integer(m, from[0], lane)?.into()
                };
                let value = if bits == 16 { value & 0xffff } else { value };
                real_of(value, rounding).to_bits()
            }
            Op::IntegerOf { bits } => {
                let value = self.real(m, from[0], lane)?;
                if bits == 64 {
                    self.put(destination(step)?, 1, lane, (value as u64 >> 32) as u32);
                    value as u64 as u32
                } else {
                    value as u32
                }
            }
            Op::Constant { bytes } => {
                let value = m.constant(self.constant_at(from[0], lane), bytes)?;
                if bytes == 8 {
                    self.put(destination(step)?, 1, lane, (value >> 32) as u32);
                }
                value as u32
            }
            Op::LoadShared { bytes } => {
                let at = self.address(from[0], lane)? as u32;
                let mut loaded = [0; 16];
                loaded[..bytes as usize].copy_from_slice(m.shared(at, bytes)?);
                return self.loaded(step, lane, &loaded[..bytes as usize]);
            }
            Op::LoadGlobal { bytes } => {
                let at = m.global(self.address(from[0], lane)?, bytes, false)?;
                // SAFETY: the caller vouches for the kernel's memory.
                let loaded = unsafe { std::slice::from_raw_parts(at, bytes as usize) };
                return self.loaded(step, lane, loaded);
            }
            Op::StoreShared { bytes } => {
                let (at, stored) = (self.address(from[0], lane)? as u32, self.stored(step, lane, bytes)?);
                m.shared(at, bytes)?.copy_from_slice(&stored[..bytes as usize]);
                return Ok(());
            }
            Op::StoreGlobal { bytes } => {
                let at = m.global(self.address(from[0], lane)?, bytes, true)?;
                let stored = self.stored(step, lane, bytes)?;
                // SAFETY: the caller vouches for the kernel's memory.
                unsafe { std::ptr::copy_nonoverlapping(stored.as_ptr(), at, bytes as usize) };
                return Ok(());
            }
            Op::AtomicShared { or, increment } => {
                let at = self.address(from[0], lane)? as u32;
                let operand = if increment { 1 } else { self.integer(m, from[1], lane)? };
                let place = m.shared(at, 4)?;
                let before = u32::from_le_bytes([place[0], place[1], place[2], place[3]]);
                let after = if or { before | operand } else { before.wrapping_add(operand) };
                place.copy_from_slice(&after.to_le_bytes());
                before
            }
            Op::ReduceGlobal { bytes, or } => {
                let at = m.global(self.address(from[0], lane)?, bytes, true)?;
                if or {
                    let operand = self.integer(m, from[1], lane)?;
                    // SAFETY: the caller vouches for the kernel's memory.
                    unsafe { *at.cast::<u32>() |= operand };
                } else {
                    let operand = self.wide(from[1], lane)?;
                    // SAFETY: the same.
                    unsafe { *at.cast::<u64>() = at.cast::<u64>().read().wrapping_add(operand) };
                }
                return Ok(());
            }
            _ => return Err("it is not known here".to_owned()),
        };
        self.put(destination(step)?, 0, lane, value);
        Ok(())
    }

    fn three(&self, m: &Machine, from: &[Operand], lane: usize) -> Result<[u32; 3], String> {
        Ok([
            self.integer(m, from[0], lane)?,
            self.integer(m, from[1], lane)?,
            self.integer(m, from[2], lane)?,
        ])
    }

    fn four(&self, m: &Machine, from: &[Operand], lane: usize) -> Result<[u32; 4], String> {
        let [a, b, c] = self.three(m, from, lane)?;
        Ok([a, b, c, self.integer(m, from[3], lane)?])
    }

    /// The lesser of two, or the greater, as the predicate says.
    fn least(&self, step: &Step, a: u32, b: u32, signed: bool, lane: usize) -> u32 {
        let is_less = if signed { (a as i32) < b as i32 } else { a < b };
        if is_less == self.is(step.from_predicates[0], lane) { a } else { b }
    }

    fn loaded(&mut self, step: &Step, lane: usize, bytes: &[u8]) -> Result<(), String> {
        let to = destination(step)?;
        for (i, word) in bytes.chunks(4).enumerate() {
            let value = word.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
            self.put(to, i as u8, lane, value);
        }
        Ok(())
    }

    fn stored(&self, step: &Step, lane: usize, bytes: u32) -> Result<[u8; 16], String> {
        let mut stored = [0; 16];
        for i in 0..bytes.div_ceil(4) as u8 {
            let value = match step.from[1] {
                Operand::Register(ZERO, _) => 0,
                Operand::Register(n, _) => self.registers[usize::from(n + i)][lane],
                operand => return Err(format!("{operand:?} is stored")),
            };
            stored[usize::from(i) * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
        Ok(stored)
    }
}
