//! A warp's registers, and what instructions do with them.

mod arithmetic;
mod collective;
mod lane;

use super::machine::{Machine, Step, each};
use super::op::Op;
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
}

fn destination(step: &Step) -> Result<Operand, String> {
    step.to.ok_or_else(|| "nothing to write to".to_owned())
}

fn lanes_of(lanes: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| lanes >> lane & 1 == 1)
}
