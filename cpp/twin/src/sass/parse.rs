//! nvdisasm's text of machine code, as instructions.

use std::collections::HashMap;

/// RZ, which reads as 0.
pub const ZERO: u8 = 255;
/// URZ.
pub const UNIFORM_ZERO: u8 = 63;
/// PT and UPT, which are true.
pub const TRUE: u8 = 7;
/// Bytes of an instruction.
pub const SIZE: usize = 16;

/// What stands in front of an operand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sign {
    /// `-`
    pub minus: bool,
    /// `~`
    pub inverse: bool,
    /// `|...|`
    pub absolute: bool,
}

/// What an instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A lane's register.
    Register(u8, Sign),
    /// A warp's register.
    Uniform(u8, Sign),
    /// An immediate: an integer, or the bits of a number.
    Number(u32),
    /// A word of the constant bank 0: from the values of a lane's and a warp's register so many bytes on.
    Constant { register: u8, uniform: u8, offset: u32, sign: Sign },
    /// A predicate of a lane, or of the warp; and whether it is negated.
    Predicate { n: u8, of_warp: bool, not: bool },
    /// All predicates of a lane, as bits.
    Predicates,
    /// Memory: at a lane's register (two, if `wide`) plus a warp's, so many bytes on.
    Address { register: u8, wide: bool, uniform: u8, offset: i32 },
    /// The number of an instruction.
    Target(usize),
    /// A convergence barrier.
    Barrier(u8),
    /// A special register.
    Special(Special),
}

/// Special registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    Zero,
    Thread,
    Lane,
    BlockX,
    BlockY,
    /// The thread block's number in its cluster, which is 0.
    InCluster,
}

/// An instruction.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// What has to be true for a lane to take part.
    pub guard: Operand,
    /// Its name, then what follows behind dots.
    pub name: Vec<String>,
    pub operands: Vec<Operand>,
    /// As nvdisasm has written it.
    pub text: String,
}

/// The machine code of a kernel.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    pub instructions: Vec<Instruction>,
}

/// All kernels in what `nvdisasm -c` gives.
///
/// # Errors
/// A line that is not understood.
pub fn parse(text: &str) -> Result<HashMap<String, Kernel>, String> {
    let mut sections: Vec<(String, Vec<&str>, HashMap<&str, usize>)> = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix(".section\t.text.") {
            let name = rest.split([',', ' ']).next().unwrap_or(rest);
            sections.push((name.to_owned(), Vec::new(), HashMap::new()));
        }
        let Some((_, lines, labels)) = sections.last_mut() else { continue };
        if let Some(label) = line.strip_suffix(':') {
            labels.insert(label, lines.len());
        } else if let Some((_, instruction)) = line.strip_prefix("/*").and_then(|rest| rest.split_once("*/"))
        {
            lines.push(instruction.trim());
        }
    }
    let mut kernels = HashMap::new();
    for (name, lines, labels) in sections {
        let read =
            |line: &&str| instruction(line, &labels).ok_or_else(|| format!("{name}: what is '{line}'?"));
        let instructions = lines.iter().map(read).collect::<Result<_, _>>()?;
        kernels.insert(name.clone(), Kernel { instructions });
    }
    Ok(kernels)
}

fn instruction(line: &str, labels: &HashMap<&str, usize>) -> Option<Instruction> {
    let text = line.strip_suffix(';')?.trim();
    let (guard, rest) = match text.strip_prefix('@') {
        Some(rest) => rest.split_once(' ')?,
        None => ("PT", text),
    };
    let (name, operands) = rest.trim().split_once(' ').unwrap_or((rest.trim(), ""));
    let name: Vec<String> = name.split('.').map(str::to_owned).collect();
    let number: fn(&str) -> Option<u32> = match name[0].as_str() {
        "FADD" | "FMUL" | "FFMA" | "FSEL" | "FSETP" => real,
        "HFMA2" => half,
        _ => integer,
    };
    let operands = operands.split(',').map(str::trim).filter(|operand| !operand.is_empty());
    // The label of a return, behind its register, says whose it is.
    let operands = operands.map(|operand| operand.split_once(" `").map_or(operand, |(register, _)| register));
    let operands: Option<Vec<Operand>> = operands.map(|o| operand(o, number, labels)).collect();
    Some(Instruction { guard: predicate(guard)?, name, operands: operands?, text: text.to_owned() })
}

fn operand(text: &str, number: fn(&str) -> Option<u32>, labels: &HashMap<&str, usize>) -> Option<Operand> {
    let text = text.trim_end_matches(".reuse");
    if let Some(label) = text.strip_prefix("`(") {
        return Some(Operand::Target(*labels.get(label.strip_suffix(')')?)?));
    }
    if text.starts_with("desc[") || text.starts_with('[') {
        return address(&text[text.rfind('[')? + 1..text.len() - 1]);
    }
    if let Some(special) = special(text) {
        return Some(Operand::Special(special));
    }
    if text == "PR" {
        return Some(Operand::Predicates);
    }
    if let Some(n) = text.strip_prefix('B') {
        return Some(Operand::Barrier(n.parse().ok()?));
    }
    if let Some(predicate) = predicate(text) {
        return Some(predicate);
    }
    if let Some(number) = number(text) {
        return Some(Operand::Number(number));
    }
    let mut sign = Sign::default();
    let mut name = text;
    if let Some(rest) = name.strip_prefix('-') {
        (sign.minus, name) = (true, rest);
    }
    if let Some(rest) = name.strip_prefix('~') {
        (sign.inverse, name) = (true, rest);
    }
    if let Some(rest) = name.strip_prefix('|') {
        (sign.absolute, name) = (true, rest.trim_end_matches(".reuse").strip_suffix('|')?);
    }
    let name = name.trim_end_matches(".reuse");
    if let Some(rest) = name.strip_prefix("c[0x0][") {
        let inner = rest.strip_suffix(']')?;
        let Operand::Address { register, uniform, offset, .. } = address(inner)? else { return None };
        return Some(Operand::Constant { register, uniform, offset: offset as u32, sign });
    }
    if let Some(n) = uniform(name) {
        return Some(Operand::Uniform(n, sign));
    }
    Some(Operand::Register(register(name)?, sign))
}

fn register(name: &str) -> Option<u8> {
    if name == "RZ" { Some(ZERO) } else { name.strip_prefix('R')?.parse().ok() }
}

fn uniform(name: &str) -> Option<u8> {
    if name == "URZ" { Some(UNIFORM_ZERO) } else { name.strip_prefix("UR")?.parse().ok() }
}

fn predicate(text: &str) -> Option<Operand> {
    let (not, name) = match text.strip_prefix('!') {
        Some(name) => (true, name),
        None => (false, text),
    };
    let (of_warp, name) = match name.strip_prefix('U') {
        Some(name) => (true, name),
        None => (false, name),
    };
    let n = match name.strip_prefix('P')? {
        "T" => TRUE,
        n => n.parse().ok()?,
    };
    Some(Operand::Predicate { n, of_warp, not })
}

fn special(text: &str) -> Option<Special> {
    Some(match text {
        "SRZ" => Special::Zero,
        "SR_TID.X" => Special::Thread,
        "SR_LANEID" => Special::Lane,
        "SR_CTAID.X" => Special::BlockX,
        "SR_CTAID.Y" => Special::BlockY,
        "SR_CgaCtaId" => Special::InCluster,
        _ => return None,
    })
}

fn address(text: &str) -> Option<Operand> {
    let (mut at, mut is_wide, mut of_warp, mut offset) = (ZERO, false, UNIFORM_ZERO, 0);
    for part in text.split('+') {
        if let Some(n) = uniform(part) {
            of_warp = n;
        } else if let Some(n) = register(part.trim_end_matches(".64")) {
            (at, is_wide) = (n, part.ends_with(".64"));
        } else {
            offset = integer(part)? as i32;
        }
    }
    Some(Operand::Address { register: at, wide: is_wide, uniform: of_warp, offset })
}

/// An integer in hexadecimal, negative ones too.
fn integer(text: &str) -> Option<u32> {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let value = u32::from_str_radix(digits.strip_prefix("0x")?, 16).ok()?;
    Some(if is_negative { value.wrapping_neg() } else { value })
}

/// A float32.
fn real(text: &str) -> Option<u32> {
    match text {
        "+INF" => Some(f32::INFINITY.to_bits()),
        "-INF" => Some(f32::NEG_INFINITY.to_bits()),
        "+QNAN" => Some(f32::NAN.to_bits()),
        _ => text.parse::<f32>().ok().map(f32::to_bits),
    }
}

/// A float16 that is 0: no other was met.
fn half(text: &str) -> Option<u32> {
    matches!(text, "0" | "-RZ" | "RZ").then_some(0)
}
