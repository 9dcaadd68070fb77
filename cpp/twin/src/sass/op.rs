//! What instructions do, by their names.

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Nothing,
    Move,
    Add { extended: bool },
    AddTwo,
    MultiplyAdd { extended: bool },
    MultiplyHigh,
    MultiplyWide,
    ShiftAdd,
    ShiftAddHigh { extended: bool },
    Logic,
    PredicateLogic,
    ShiftLeft,
    ShiftLeftHigh,
    ShiftRight { arithmetic: bool },
    ShiftRightLow { wraps: bool },
    Permute,
    Select,
    Compare { relation: Relation, signed: bool, or: bool, extended: bool },
    CompareReal { relation: Relation, or_unordered: bool },
    Least { signed: bool },
    LeastHalves,
    AddLeast { signed: bool },
    DotBytes,
    Count,
    FindLeading,
    Predicates,
    SetPredicates,
    AddReal,
    MultiplyReal { to_zero: bool },
    MultiplyAddReal,
    HalfZero,
    Reciprocal,
    RealOf { bits: u32, rounding: Rounding },
    IntegerOf { bits: u32 },
    ReadSpecial,
    Zeros,
    Constant { bytes: u32 },
    LoadGlobal { bytes: u32 },
    StoreGlobal { bytes: u32 },
    LoadShared { bytes: u32 },
    StoreShared { bytes: u32 },
    AtomicShared { or: bool, increment: bool },
    ReduceGlobal { bytes: u32, or: bool },
    Shuffle(Shuffle),
    MultiplyMatrices,
    LoadMatrices { transposed: bool },
    Ballot,
    VoteAll,
    ReduceWarp { or: bool },
    OfFirstLane,
    Branch,
    BranchDivergent,
    OpenBarrier,
    CloseBarrier,
    Break,
    Call,
    Return,
    Exit,
    BlockBarrier,
    WarpBarrier,
    Collective,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    Nearest,
    Up,
    ToZero,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    Up,
    Butterfly,
    Index,
}

/// Bytes that a load or store moves for each lane, by the last part of its name.
fn bytes_of(modifiers: &[&str]) -> u32 {
    match modifiers.last() {
        Some(&"U8") => 1,
        Some(&"U16") => 2,
        Some(&"64") => 8,
        Some(&"128") => 16,
        _ => 4,
    }
}

fn relation_of(name: &str) -> Option<Relation> {
    Some(match name {
        "EQ" => Relation::Equal,
        "NE" => Relation::Unequal,
        "LT" => Relation::Less,
        "LE" => Relation::LessOrEqual,
        "GT" => Relation::Greater,
        "GE" => Relation::GreaterOrEqual,
        _ => return None,
    })
}

impl Op {
    /// The operation of a name, cut at its dots.
    pub fn named(name: &[String]) -> Option<Self> {
        let parts: Vec<&str> = name.iter().map(String::as_str).collect();
        let (&base, modifiers) = parts.split_first()?;
        // What the warp's own unit does is the same.
        let base = match base {
            "USEL" | "ULEA" | "UIMAD" | "UIADD3" | "UISETP" | "ULOP3" | "UPLOP3" | "USHF" | "UFLO"
            | "UMOV" | "UPOPC" => &base[1..],
            _ => base,
        };
        Some(match (base, modifiers) {
            ("NOP" | "YIELD" | "ENDCOLLECTIVE", _) => Op::Nothing,
            // A hint that memory will be read.
            ("CCTL", ["E", "PF2"]) => Op::Nothing,
            ("HMMA", ["16816", "F32", "BF16"]) => Op::MultiplyMatrices,
            ("LDSM", ["16", "M88", "4"]) => Op::LoadMatrices { transposed: false },
            ("LDSM", ["16", "MT88", "4"]) => Op::LoadMatrices { transposed: true },
            ("MOV", []) => Op::Move,
            ("IADD3", []) => Op::Add { extended: false },
            ("IADD3", ["X"]) => Op::Add { extended: true },
            ("VIADD", []) => Op::AddTwo,
            ("IMAD", [] | ["U32" | "MOV" | "IADD"] | ["MOV" | "SHL", "U32"]) => {
                Op::MultiplyAdd { extended: false }
            }
            ("IMAD", ["X"]) => Op::MultiplyAdd { extended: true },
            ("IMAD", ["HI", "U32"]) => Op::MultiplyHigh,
            ("IMAD", ["WIDE", "U32"]) => Op::MultiplyWide,
            ("LEA", []) => Op::ShiftAdd,
            ("LEA", ["HI"]) => Op::ShiftAddHigh { extended: false },
            ("LEA", ["HI", "X"]) => Op::ShiftAddHigh { extended: true },
            ("LOP3", ["LUT"]) => Op::Logic,
            ("PLOP3", ["LUT"]) => Op::PredicateLogic,
            ("SHF", ["L", "U32"]) => Op::ShiftLeft,
            ("SHF", ["L", "U64" | "U32", "HI"]) => Op::ShiftLeftHigh,
            ("SHF", ["R", "U32", "HI"]) => Op::ShiftRight { arithmetic: false },
            ("SHF", ["R", "S32", "HI"]) => Op::ShiftRight { arithmetic: true },
            ("SHF", ["R", "W", "U32"]) => Op::ShiftRightLow { wraps: true },
            ("SHF", ["R", "U64" | "U32"]) => Op::ShiftRightLow { wraps: false },
            ("PRMT", []) => Op::Permute,
            ("SEL" | "FSEL", []) => Op::Select,
            ("ISETP", [relation, rest @ ..]) => Op::Compare {
                relation: relation_of(relation)?,
                signed: !rest.contains(&"U32"),
                or: rest.contains(&"OR"),
                extended: rest.contains(&"EX"),
            },
            ("FSETP", ["NEU", "AND"]) => Op::CompareReal { relation: Relation::Unequal, or_unordered: true },
            ("FSETP", ["GT", "AND"]) => Op::CompareReal { relation: Relation::Greater, or_unordered: false },
            ("FSETP", ["GEU", "AND"]) => {
                Op::CompareReal { relation: Relation::GreaterOrEqual, or_unordered: true }
            }
            ("VIMNMX", []) => Op::Least { signed: true },
            ("VIMNMX", ["U32"]) => Op::Least { signed: false },
            ("VIMNMX", ["U16x2"]) => Op::LeastHalves,
            ("VIADDMNMX", []) => Op::AddLeast { signed: true },
            ("VIADDMNMX", ["U32"]) => Op::AddLeast { signed: false },
            ("IDP", ["4A", "U8", "U8"]) => Op::DotBytes,
            ("POPC", []) => Op::Count,
            ("FLO", ["U32"]) => Op::FindLeading,
            ("P2R", []) => Op::Predicates,
            ("R2P", []) => Op::SetPredicates,
            ("FADD", []) => Op::AddReal,
            ("FMUL", []) => Op::MultiplyReal { to_zero: false },
            ("FMUL", ["RZ"]) => Op::MultiplyReal { to_zero: true },
            ("FFMA", []) => Op::MultiplyAddReal,
            ("HFMA2", ["MMA"]) => Op::HalfZero,
            ("MUFU", ["RCP"]) => Op::Reciprocal,
            ("I2F", ["U32", "RP"]) => Op::RealOf { bits: 32, rounding: Rounding::Up },
            ("I2F", ["U64", "RP"]) => Op::RealOf { bits: 64, rounding: Rounding::Up },
            ("I2F", ["U16"]) => Op::RealOf { bits: 16, rounding: Rounding::Nearest },
            ("I2FP", ["F32", "U32"]) => Op::RealOf { bits: 32, rounding: Rounding::Nearest },
            ("I2FP", ["F32", "U32", "RZ"]) => Op::RealOf { bits: 32, rounding: Rounding::ToZero },
            ("F2I", ["FTZ", "U32", "TRUNC", "NTZ"] | ["U32", "TRUNC", "NTZ"]) => Op::IntegerOf { bits: 32 },
            ("F2I", ["U64", "TRUNC"]) => Op::IntegerOf { bits: 64 },
            ("S2R" | "S2UR", []) => Op::ReadSpecial,
            ("CS2R", []) => Op::Zeros,
            ("LDC" | "ULDC", rest) => Op::Constant { bytes: bytes_of(rest) },
            ("LDG", ["E", rest @ ..]) => Op::LoadGlobal { bytes: bytes_of(rest) },
            ("STG", ["E", rest @ ..]) => Op::StoreGlobal { bytes: bytes_of(rest) },
            ("LDS", rest) => Op::LoadShared { bytes: bytes_of(rest) },
            ("STS", rest) => Op::StoreShared { bytes: bytes_of(rest) },
            ("ATOMS", ["OR"]) => Op::AtomicShared { or: true, increment: false },
            ("ATOMS", ["ADD"]) => Op::AtomicShared { or: false, increment: false },
            ("ATOMS", ["POPC", "INC", "32"]) => Op::AtomicShared { or: false, increment: true },
            ("REDG", ["E", "OR", "STRONG", "GPU"]) => Op::ReduceGlobal { bytes: 4, or: true },
            ("REDG", ["E", "ADD", "64", "STRONG", "GPU"]) => Op::ReduceGlobal { bytes: 8, or: false },
            ("SHFL", ["UP"]) => Op::Shuffle(Shuffle::Up),
            ("SHFL", ["BFLY"]) => Op::Shuffle(Shuffle::Butterfly),
            ("SHFL", ["IDX"]) => Op::Shuffle(Shuffle::Index),
            ("VOTE" | "VOTEU", ["ANY"]) => Op::Ballot,
            ("VOTEU", ["ALL"]) => Op::VoteAll,
            ("REDUX", ["OR"]) => Op::ReduceWarp { or: true },
            ("REDUX", ["SUM"]) => Op::ReduceWarp { or: false },
            ("R2UR", []) => Op::OfFirstLane,
            ("BRA", [] | ["U"]) => Op::Branch,
            ("BRA", ["DIV"]) => Op::BranchDivergent,
            ("BSSY", []) => Op::OpenBarrier,
            ("BSYNC", []) => Op::CloseBarrier,
            ("BREAK", []) => Op::Break,
            ("CALL", ["REL", "NOINC"]) => Op::Call,
            ("RET", ["REL", "NODEC"]) => Op::Return,
            ("EXIT", []) => Op::Exit,
            ("BAR", ["SYNC", "DEFER_BLOCKING"]) => Op::BlockBarrier,
            ("WARPSYNC", ["ALL"]) => Op::WarpBarrier,
            ("WARPSYNC", ["COLLECTIVE", ..]) => Op::Collective,
            _ => return None,
        })
    }
}

/// What a multiprocessor does an instruction with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Integers, logic, shifts, permutes, comparisons.
    Integer,
    /// Integer products, which the compiler also takes for sums, moves and shifts.
    Product,
    /// float32, and products of matrices.
    Real,
    /// Conversions, reciprocals, counts of bits.
    Slow,
    /// Loads, stores, shuffles, votes, barriers.
    Memory,
    /// Branches, and what goes with them.
    Control,
    /// Once for the whole warp.
    Uniform,
}

impl Kind {
    /// The kind of an instruction, by the first part of its name.
    pub fn named(base: &str) -> Self {
        match base {
            "FADD" | "FMUL" | "FFMA" | "HFMA2" | "HMMA" => Kind::Real,
            "IMAD" | "IDP" => Kind::Product,
            "MUFU" | "I2F" | "F2I" | "POPC" | "FLO" | "S2R" => Kind::Slow,
            "LDG" | "STG" | "LDS" | "LDSM" | "STS" | "LDC" | "ATOMS" | "REDG" | "SHFL" | "VOTE" | "REDUX"
            | "BAR" | "CCTL" => Kind::Memory,
            "BRA" | "BSSY" | "BSYNC" | "BREAK" | "CALL" | "RET" | "EXIT" | "WARPSYNC" | "ENDCOLLECTIVE"
            | "YIELD" | "NOP" => Kind::Control,
            "R2UR" | "S2UR" | "VOTEU" => Kind::Uniform,
            _ if base.starts_with('U') => Kind::Uniform,
            _ => Kind::Integer,
        }
    }
}
