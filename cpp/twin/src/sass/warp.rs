//! A warp's registers, and what instructions do with them.

use super::machine::{ALWAYS, Machine, Step, each};
use super::op::{Op, Relation, Rounding, Shuffle};
use super::parse::{Operand, Sign, Special, TRUE, UNIFORM_ZERO, ZERO};

/// What registers hold that were not written.
const POISON: u32 = 0xdead_beef;

pub struct Warp {
    number: u32,
    registers: Vec<[u32; 32]>,
    uniform: [u32; 64],
    predicates: [u32; 8],
    uniform_predicates: [bool; 8],
}

fn apply(value: u32, sign: Sign) -> u32 {
    let value = if sign.inverse { !value } else { value };
    if sign.minus { value.wrapping_neg() } else { value }
}

fn apply_real(value: u32, sign: Sign) -> u32 {
    let value = if sign.absolute { value & 0x7fff_ffff } else { value };
    if sign.minus { value ^ 0x8000_0000 } else { value }
}

impl Warp {
    pub fn new(number: u32) -> Self {
        let mut warp = Warp {
            number,
            registers: vec![[POISON; 32]; 256],
            uniform: [POISON; 64],
            predicates: [0; 8],
            uniform_predicates: [false; 8],
        };
        warp.registers[usize::from(ZERO)] = [0; 32];
        warp.uniform[usize::from(UNIFORM_ZERO)] = 0;
        warp.predicates[usize::from(TRUE)] = u32::MAX;
        warp.uniform_predicates[usize::from(TRUE)] = true;
        warp
    }

    /// The lanes for which a predicate is true.
    pub fn predicate(&self, operand: Operand) -> u32 {
        let Operand::Predicate { n, of_warp, not } = operand else { return 0 };
        let lanes = match of_warp {
            true if self.uniform_predicates[usize::from(n)] => u32::MAX,
            true => 0,
            false => self.predicates[usize::from(n)],
        };
        if not { !lanes } else { lanes }
    }

    fn is(&self, operand: Operand, lane: usize) -> bool {
        self.predicate(operand) >> lane & 1 == 1
    }

    fn set_predicate(&mut self, operand: Option<&Operand>, lane: usize, value: bool) {
        match operand {
            Some(&Operand::Predicate { n, of_warp: true, .. }) if n != TRUE => {
                self.uniform_predicates[usize::from(n)] = value;
            }
            Some(&Operand::Predicate { n, of_warp: false, .. }) if n != TRUE => {
                let lanes = &mut self.predicates[usize::from(n)];
                *lanes = *lanes & !(1 << lane) | u32::from(value) << lane;
            }
            _ => (),
        }
    }

    /// An operand without its sign, which is told too.
    fn plain(&self, machine: &Machine, operand: Operand, lane: usize) -> Result<(u32, Sign), String> {
        Ok(match operand {
            Operand::Register(n, sign) => (self.registers[usize::from(n)][lane], sign),
            Operand::Uniform(n, sign) => (self.uniform[usize::from(n)], sign),
            Operand::Number(value) => (value, Sign::default()),
            Operand::Constant { sign, .. } => {
                (machine.constant(self.constant_at(operand, lane), 4)? as u32, sign)
            }
            Operand::Special(special) => (self.special(machine, special, lane), Sign::default()),
            Operand::Predicates => {
                let bits = (0..7).map(|n| (self.predicates[n] >> lane & 1) << n);
                (bits.sum(), Sign::default())
            }
            _ => return Err(format!("{operand:?} has no value")),
        })
    }

    /// Where in the bank a constant is.
    fn constant_at(&self, operand: Operand, lane: usize) -> u32 {
        let Operand::Constant { register, uniform, offset, .. } = operand else { return u32::MAX };
        let base = self.registers[usize::from(register)][lane];
        base.wrapping_add(self.uniform[usize::from(uniform)]).wrapping_add(offset)
    }

    fn special(&self, machine: &Machine, special: Special, lane: usize) -> u32 {
        match special {
            Special::Zero | Special::InCluster => 0,
            Special::Thread => self.number * 32 + lane as u32,
            Special::Lane => lane as u32,
            Special::BlockX => machine.block.0,
            Special::BlockY => machine.block.1,
        }
    }

    /// An operand as an integer.
    pub fn integer(&self, machine: &Machine, operand: Operand, lane: usize) -> Result<u32, String> {
        let (value, sign) = self.plain(machine, operand, lane)?;
        Ok(apply(value, sign))
    }

    fn real(&self, machine: &Machine, operand: Operand, lane: usize) -> Result<f32, String> {
        let (value, sign) = self.plain(machine, operand, lane)?;
        Ok(f32::from_bits(apply_real(value, sign)))
    }

    /// An operand of a sum with more than 32 bits: what is subtracted is added inverted, and 1.
    fn addend(&self, machine: &Machine, operand: Operand, lane: usize) -> Result<u64, String> {
        let (value, sign) = self.plain(machine, operand, lane)?;
        Ok(match sign {
            Sign { minus: true, .. } => u64::from(!value) + 1,
            Sign { inverse: true, .. } => u64::from(!value),
            _ => u64::from(value),
        })
    }

    /// 64 bits: of two registers, of a constant, or an immediate.
    fn wide(&self, operand: Operand, lane: usize) -> Result<u64, String> {
        let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        Ok(match operand {
            Operand::Register(ZERO, _) | Operand::Uniform(UNIFORM_ZERO, _) => 0,
            Operand::Register(n, sign) if sign == Sign::default() => {
                pair(self.registers[usize::from(n)][lane], self.registers[usize::from(n) + 1][lane])
            }
            Operand::Uniform(n, sign) if sign == Sign::default() => {
                pair(self.uniform[usize::from(n)], self.uniform[usize::from(n) + 1])
            }
            Operand::Number(value) => value.into(),
            _ => return Err(format!("{operand:?} as 64 bits")),
        })
    }

    fn put(&mut self, to: Operand, offset: u8, lane: usize, value: u32) {
        match to {
            Operand::Register(ZERO, _) | Operand::Uniform(UNIFORM_ZERO, _) => (),
            Operand::Register(n, _) => self.registers[usize::from(n + offset)][lane] = value,
            Operand::Uniform(n, _) => self.uniform[usize::from(n + offset)] = value,
            _ => (),
        }
    }

    /// The address that a lane names.
    fn address(&self, operand: Operand, lane: usize) -> Result<u64, String> {
        let Operand::Address { register, wide, uniform, offset } = operand else {
            return Err(format!("{operand:?} is no address"));
        };
        let low = self.registers[usize::from(register)][lane];
        let uniform = self.uniform[usize::from(uniform)];
        if !wide {
            return Ok(low.wrapping_add(uniform).wrapping_add(offset as u32).into());
        }
        let high = self.registers[usize::from(register) + 1][lane];
        let base = u64::from(high) << 32 | u64::from(low);
        Ok(base.wrapping_add(uniform.into()).wrapping_add_signed(offset.into()))
    }

    /// Runs an instruction that is no branch for the lanes of `active`.
    ///
    /// # Safety
    /// Memory that it names is the kernel's to use.
    pub unsafe fn execute(&mut self, step: &Step, machine: &mut Machine, active: u32) -> Result<(), String> {
        if active == 0 {
            return Ok(());
        }
        match step.op {
            Op::Nothing => return Ok(()),
            Op::Shuffle(shuffle) => return self.shuffle(step, shuffle, machine, active),
            Op::MultiplyMatrices => return self.multiply_matrices(step, active),
            Op::LoadMatrices { transposed } => return self.load_matrices(step, transposed, machine, active),
            Op::Ballot | Op::VoteAll => {
                let votes = self.predicate(step.from_predicates[0]) & active;
                if let Some(to) = step.to {
                    each(active, |lane| self.put(to, 0, lane, votes));
                }
                let is_set = if step.op == Op::VoteAll { votes == active } else { votes != 0 };
                each(active, |lane| self.set_predicate(step.to_predicates.first(), lane, is_set));
                return Ok(());
            }
            Op::ReduceWarp { or } => {
                let mut all = 0u32;
                for lane in lanes_of(active) {
                    let value = self.integer(machine, step.from[0], lane)?;
                    all = if or { all | value } else { all.wrapping_add(value) };
                }
                self.put(destination(step)?, 0, 0, all);
                return Ok(());
            }
            Op::OfFirstLane => {
                let value = self.integer(machine, step.from[0], active.trailing_zeros() as usize)?;
                self.put(destination(step)?, 0, 0, value);
                return Ok(());
            }
            _ => (),
        }
        let lanes = if step.is_uniform { 1 } else { active };
        for lane in lanes_of(lanes) {
            // SAFETY: the caller's promise.
            unsafe { self.lane(step, machine, lane) }?;
        }
        Ok(())
    }

    fn shuffle(
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
    fn multiply_matrices(&mut self, step: &Step, active: u32) -> Result<(), String> {
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
    fn load_matrices(
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

    /// What a single lane does, or the warp's own unit.
    unsafe fn lane(&mut self, step: &Step, m: &mut Machine, lane: usize) -> Result<(), String> {
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

fn destination(step: &Step) -> Result<Operand, String> {
    step.to.ok_or_else(|| "nothing to write to".to_owned())
}

fn lanes_of(lanes: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| lanes >> lane & 1 == 1)
}

/// Each bit is the table's at the place that the three bits name.
fn logic(a: u32, b: u32, c: u32, table: u32) -> u32 {
    (0..8).filter(|i| table >> i & 1 == 1).fold(0, |result, i| {
        let of = |value: u32, bit: u32| if i >> bit & 1 == 1 { value } else { !value };
        result | (of(a, 2) & of(b, 1) & of(c, 0))
    })
}

/// Bytes of `a` and `b` by number; from 8 on, eight times the sign of the byte numbered 8 less.
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |result, i| {
        let which = selector >> (4 * i) & 15;
        let byte = (bytes >> (8 * (which & 7))) as u8;
        let byte = if which < 8 { byte } else { (byte as i8 >> 7) as u8 };
        result | u32::from(byte) << (8 * i)
    })
}

/// The float32 that is nearest to `value` among those that are no greater in magnitude.
fn towards_zero(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest).abs() > value.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest }
}

fn real_of(value: u64, rounding: Rounding) -> f32 {
    let nearest = value as f32;
    let back = nearest as u128;
    match rounding {
        Rounding::Up if back < value.into() => f32::from_bits(nearest.to_bits() + 1),
        Rounding::ToZero if back > value.into() => f32::from_bits(nearest.to_bits() - 1),
        _ => nearest,
    }
}

impl Relation {
    fn holds(self, order: std::cmp::Ordering) -> bool {
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
