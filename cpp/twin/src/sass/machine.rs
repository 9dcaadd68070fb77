//! A multiprocessor: warps whose lanes take branches apart and come together again, shared memory, barriers.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use super::op::{Kind, Op};
use super::parse::{Kernel, Operand, SIZE, TRUE};
use super::warp::Warp;
use super::{SECTOR, Work};
use crate::simt::Grid;

/// Where the arguments are in the constant bank.
const ARGUMENTS: usize = 0x210;
/// Where a block's shared memory starts: what is in front is the system's.
pub const SHARED_START: u32 = 0x400;
/// Where stacks would start; kernels have none.
const STACK: u32 = 0xfffd00;
/// Instructions of a thread block after which it is taken to hang.
const LIMIT: u64 = 1 << 30;

/// An instruction as it is run: what it writes apart from what it reads.
#[derive(Clone, Debug)]
pub struct Step {
    pub op: Op,
    pub kind: Kind,
    pub guard: Operand,
    /// Done once for the warp.
    pub is_uniform: bool,
    pub to: Option<Operand>,
    pub to_predicates: Vec<Operand>,
    pub from: Vec<Operand>,
    pub from_predicates: Vec<Operand>,
}

/// A kernel that can be run.
pub struct Code {
    pub steps: Vec<Step>,
    pub texts: Vec<String>,
}

impl Code {
    pub fn new(kernel: &Kernel) -> Result<Self, String> {
        let step =
            |instruction| step_of(instruction).ok_or_else(|| format!("what is '{}'?", instruction.text));
        let steps = kernel.instructions.iter().map(step).collect::<Result<_, _>>()?;
        Ok(Code { steps, texts: kernel.instructions.iter().map(|i| i.text.clone()).collect() })
    }
}

fn step_of(instruction: &super::parse::Instruction) -> Option<Step> {
    let name = &instruction.name;
    let op = Op::named(name)?;
    // Predicates that come first are written: these write no register, and read what follows them.
    let (has_register, leading) = match op {
        Op::Compare { .. } | Op::CompareReal { .. } | Op::PredicateLogic => (false, 2),
        Op::VoteAll => (false, 1),
        Op::StoreGlobal { .. } | Op::StoreShared { .. } | Op::ReduceGlobal { .. } => (false, 0),
        Op::Branch | Op::BranchDivergent | Op::OpenBarrier | Op::CloseBarrier | Op::Break => (false, 0),
        Op::Call | Op::Return | Op::BlockBarrier | Op::WarpBarrier | Op::Collective => (false, 0),
        Op::Nothing | Op::Exit => (false, 0),
        _ => (true, 1),
    };
    let is_predicate = |operand: &Operand| matches!(operand, Operand::Predicate { .. });
    let mut operands = instruction.operands.iter().copied().peekable();
    let mut to_predicates = Vec::new();
    while to_predicates.len() < leading {
        match operands.next_if(is_predicate) {
            Some(predicate) => to_predicates.push(predicate),
            None => break,
        }
    }
    let to = if has_register { Some(operands.next()?) } else { None };
    if has_register {
        let most = if op == Op::Ballot { 1 } else { 2 };
        while to_predicates.len() < most {
            match operands.next_if(is_predicate) {
                Some(predicate) => to_predicates.push(predicate),
                None => break,
            }
        }
    }
    let (from_predicates, from) = operands.partition(is_predicate);
    let is_uniform = (name[0].starts_with('U') || name[0] == "S2UR") && op != Op::Ballot;
    let kind = Kind::named(&name[0]);
    Some(Step { op, kind, guard: instruction.guard, is_uniform, to, to_predicates, from, from_predicates })
}

/// Lanes that are at the same instruction, and what they wait for.
#[derive(Clone, Copy, Debug)]
struct Group {
    at: usize,
    lanes: u32,
    waits: Waits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    No,
    /// At a convergence barrier, for these lanes.
    Converge(u8, u32),
    /// For these lanes of the warp.
    Warp(u32),
    /// At barrier 0 to 15 of the block, for so many threads; 0: for all that there are.
    Block(u32, u32),
}

/// What all warps of a launch see.
pub struct Machine {
    pub constants: Vec<u8>,
    pub shared: Vec<u8>,
    pub block: (u32, u32),
    read: Sectors,
    written: Sectors,
}

/// The numbers of sectors.
type Sectors = HashSet<u64, BuildHasherDefault<Spread>>;

/// A hash that is quick: numbers of sectors are no one's attack.
#[derive(Default)]
pub struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

impl Machine {
    pub fn constant(&self, at: u32, bytes: u32) -> Result<u64, String> {
        let bank = self.constants.get(at as usize..(at + bytes) as usize);
        let bank = bank.ok_or_else(|| format!("there is no constant at {at:#x}"))?;
        Ok(bank.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// The address of a lane's `bytes` bytes of global memory, after a look at its alignment.
    pub fn global(&mut self, address: u64, bytes: u32, is_written: bool) -> Result<*mut u8, String> {
        if !address.is_multiple_of(bytes.into()) {
            return Err(format!("{bytes} bytes of memory at {address:#x}, which is not aligned"));
        }
        let sectors = if is_written { &mut self.written } else { &mut self.read };
        sectors.insert(address / SECTOR);
        Ok(address as *mut u8)
    }

    /// A lane's `bytes` bytes of shared memory.
    pub fn shared(&mut self, address: u32, bytes: u32) -> Result<&mut [u8], String> {
        let at = address.wrapping_sub(SHARED_START) as usize;
        if !address.is_multiple_of(bytes) {
            return Err(format!("{bytes} bytes of shared memory at {at}, which is not aligned"));
        }
        let size = self.shared.len();
        let place = at..at.saturating_add(bytes as usize);
        self.shared.get_mut(place).ok_or_else(|| format!("{bytes} bytes at {at} of {size} of shared memory"))
    }
}

struct Threads {
    warp: Warp,
    groups: Vec<Group>,
    /// By convergence barrier and lane: the lanes that come together.
    together: [[u32; 32]; 16],
}

/// Runs all thread blocks, one after the other.
///
/// # Safety
/// As [`super::Program::launch`].
pub unsafe fn run(code: &Code, grid: &Grid, argument: &[u8]) -> Result<Work, String> {
    let mut constants = vec![0; ARGUMENTS];
    for (i, number) in [grid.threads, 1, 1, grid.x, grid.y, 1].into_iter().enumerate() {
        constants[i * 4..][..4].copy_from_slice(&number.to_le_bytes());
    }
    constants[0x28..0x2c].copy_from_slice(&STACK.to_le_bytes());
    constants.extend_from_slice(argument);
    let mut machine = Machine {
        constants,
        shared: Vec::new(),
        block: (0, 0),
        read: Sectors::default(),
        written: Sectors::default(),
    };
    let mut counts = vec![0; code.steps.len()];
    for y in 0..grid.y {
        for x in 0..grid.x {
            machine.block = (x, y);
            machine.shared = vec![0xcd; grid.shared];
            // SAFETY: the caller's promise.
            unsafe { run_block(code, &mut machine, grid.threads, &mut counts) }
                .map_err(|error| format!("block ({x}, {y}): {error}"))?;
        }
    }
    let mut work = Work {
        read: machine.read.len() as u64 * SECTOR,
        written: machine.written.len() as u64 * SECTOR,
        ..Work::default()
    };
    for (step, &count) in code.steps.iter().zip(&counts) {
        *work.instructions.entry(step.kind).or_default() += count;
    }
    work.listing = code.texts.iter().cloned().zip(counts).collect();
    Ok(work)
}

unsafe fn run_block(
    code: &Code,
    machine: &mut Machine,
    threads: u32,
    counts: &mut [u64],
) -> Result<(), String> {
    let mut warps: Vec<Threads> = (0..threads.div_ceil(32))
        .map(|warp| {
            let lanes = (threads - warp * 32).min(32);
            let lanes = if lanes == 32 { u32::MAX } else { (1 << lanes) - 1 };
            Threads {
                warp: Warp::new(warp),
                groups: vec![Group { at: 0, lanes, waits: Waits::No }],
                together: [[0; 32]; 16],
            }
        })
        .collect();
    let mut left = LIMIT;
    loop {
        for threads in &mut warps {
            // SAFETY: the caller's promise.
            while unsafe { threads.advance(code, machine, counts) }? {
                left = left.checked_sub(1).ok_or("it does not end")?;
            }
        }
        if warps.iter().all(|threads| threads.groups.is_empty()) {
            return Ok(());
        }
        if !pass_barrier(&mut warps) {
            let stuck = warps.iter().flat_map(|threads| &threads.groups).next();
            return Err(format!("it hangs: {stuck:?}"));
        }
    }
}

/// Lets threads go on that wait at a barrier to which all have come.
fn pass_barrier(warps: &mut [Threads]) -> bool {
    let waiting: Vec<(u32, u32)> = warps
        .iter()
        .flat_map(|threads| &threads.groups)
        .filter_map(|group| match group.waits {
            Waits::Block(id, count) => Some((id, count)),
            _ => None,
        })
        .collect();
    for (id, count) in waiting {
        let groups = || warps.iter().flat_map(|threads| &threads.groups);
        let come: u32 = groups()
            .filter(|group| group.waits == Waits::Block(id, count))
            .map(|group| group.lanes.count_ones())
            .sum();
        let all: u32 = groups().map(|group| group.lanes.count_ones()).sum();
        if come == if count == 0 { all } else { count } {
            for group in warps.iter_mut().flat_map(|threads| &mut threads.groups) {
                if group.waits == Waits::Block(id, count) {
                    group.waits = Waits::No;
                }
            }
            return true;
        }
    }
    false
}

impl Threads {
    /// Runs an instruction of some lanes; false if none can go on.
    unsafe fn advance(
        &mut self,
        code: &Code,
        machine: &mut Machine,
        counts: &mut [u64],
    ) -> Result<bool, String> {
        let Some(i) = self.groups.iter().rposition(|group| group.waits == Waits::No) else {
            return Ok(self.converge());
        };
        let Group { at, lanes, .. } = self.groups[i];
        let step = code.steps.get(at).ok_or("it runs behind its end")?;
        counts[at] += 1;
        let told = |error: String| format!("instruction {at}, {}: {error}", code.texts[at]);
        let active = lanes & self.warp.predicate(step.guard);
        self.groups[i].at += 1;
        match step.op {
            Op::Branch => {
                let when = step.from_predicates.first().map_or(u32::MAX, |&p| self.warp.predicate(p));
                self.jump(i, active & when, target(step)?);
            }
            Op::BranchDivergent => {
                let all = self.warp.integer(machine, step.from[0], 0).map_err(told)?;
                if active != 0 && all != lanes {
                    self.groups[i].at = target(step)?;
                }
            }
            Op::Call => self.jump(i, active, target(step)?),
            Op::Return => {
                if active != 0 {
                    let lane = active.trailing_zeros() as usize;
                    self.groups[i].at =
                        self.warp.integer(machine, step.from[0], lane).map_err(told)? as usize / SIZE;
                }
            }
            Op::Exit => {
                self.groups[i].lanes &= !active;
                if self.groups[i].lanes == 0 {
                    self.groups.remove(i);
                }
            }
            Op::OpenBarrier => each(active, |lane| self.together[barrier(step)][lane] = active),
            Op::Break => {
                let n = barrier(step);
                self.together[n].iter_mut().for_each(|lanes| *lanes &= !active);
            }
            Op::CloseBarrier => {
                let n = barrier(step);
                self.groups[i].waits =
                    Waits::Converge(n as u8, self.together[n][lanes.trailing_zeros() as usize]);
            }
            Op::WarpBarrier => self.groups[i].waits = Waits::Warp(u32::MAX),
            Op::Collective => {
                let mask = match step.from[0] {
                    Operand::Target(_) => u32::MAX,
                    mask => {
                        self.warp.integer(machine, mask, lanes.trailing_zeros() as usize).map_err(told)?
                    }
                };
                self.groups[i].waits = Waits::Warp(mask);
            }
            Op::BlockBarrier => {
                let lane = lanes.trailing_zeros() as usize;
                let first = self.warp.integer(machine, step.from[0], lane).map_err(told)?;
                // In one register both are packed.
                let (id, count) = match (step.from[0], step.from.get(1)) {
                    (Operand::Register(..), _) => (first & 15, first >> 16),
                    (_, None) => (first, 0),
                    (_, Some(&count)) => (first, self.warp.integer(machine, count, lane).map_err(told)?),
                };
                self.groups[i].waits = Waits::Block(id, count);
            }
            // SAFETY: the caller's promise.
            _ => unsafe { self.warp.execute(step, machine, active) }.map_err(told)?,
        }
        Ok(true)
    }

    /// Lanes `taken` of a group go to `target`.
    fn jump(&mut self, group: usize, taken: u32, target: usize) {
        let all = self.groups[group].lanes;
        if taken == all {
            self.groups[group].at = target;
        } else if taken != 0 {
            self.groups[group].lanes = all & !taken;
            self.groups.push(Group { at: target, lanes: taken, waits: Waits::No });
        }
    }

    /// Joins groups that wait for each other and have all come; false if there are none.
    fn converge(&mut self) -> bool {
        let alive = self.groups.iter().fold(0, |lanes, group| lanes | group.lanes);
        for i in 0..self.groups.len() {
            let Group { at, waits, .. } = self.groups[i];
            let needed = match waits {
                Waits::Converge(_, lanes) | Waits::Warp(lanes) => lanes & alive,
                _ => continue,
            };
            let is_here = |group: &&Group| match (group.waits, waits) {
                (Waits::Converge(a, _), Waits::Converge(b, _)) => {
                    a == b && group.at == at && group.lanes & needed != 0
                }
                (Waits::Warp(a), Waits::Warp(b)) => a == b && group.at == at,
                _ => false,
            };
            let come = self.groups.iter().filter(is_here).fold(0, |lanes, group| lanes | group.lanes);
            if come & needed == needed {
                self.groups.retain(|group| !is_here(&group));
                self.groups.push(Group { at, lanes: come, waits: Waits::No });
                return true;
            }
        }
        false
    }
}

fn target(step: &Step) -> Result<usize, String> {
    let found = step.from.iter().find_map(|operand| match operand {
        Operand::Target(at) => Some(*at),
        _ => None,
    });
    found.ok_or_else(|| "a branch without a target".to_owned())
}

fn barrier(step: &Step) -> usize {
    match step.from[0] {
        Operand::Barrier(n) => n.into(),
        _ => 0,
    }
}

/// Calls `f` for each lane.
pub fn each(lanes: u32, mut f: impl FnMut(usize)) {
    let mut left = lanes;
    while left != 0 {
        f(left.trailing_zeros() as usize);
        left &= left - 1;
    }
}

/// The predicate that is always true.
pub const ALWAYS: Operand = Operand::Predicate { n: TRUE, of_warp: false, not: false };
