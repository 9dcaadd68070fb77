//! The cascade: 64 codes a table look-up, escapes filled in by a byte expand.

use std::arch::x86_64::*;

use super::lane::{bits_of, in_register, lanes, load, load_at, masked, store_at, take};
use crate::arch::generic::bitmaps;
use crate::arch::{BadRecord, MAX_RUN, PADDED, Scratch, Tables, TierTable};
use crate::format::{MAX_TIERS, plane_bytes};

/// Symbols of a block, and room for a vector behind them.
pub(super) type Symbols = [u8; PADDED];

/// Calls `sink` with each stretch of at most 64 codes of a plane of `width` (1 to 4) bits: the place of its
/// first code, how many there are, and a vector with the codes in the low bits of its bytes, other bits above.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn for_codes(width: u8, plane: &[u8], n: usize, mut sink: impl FnMut(usize, usize, __m512i)) {
    if width == 1 {
        for (i, bits) in plane.chunks(8).enumerate() {
            sink(i * 64, (n - i * 64).min(64), _mm512_maskz_set1_epi8(bits_of(bits), 1));
        }
        return;
    }
    if width == 3 {
        let [low, middle, high] = bitmaps(plane);
        for (i, ((low, middle), high)) in low.chunks(8).zip(middle.chunks(8)).zip(high.chunks(8)).enumerate()
        {
            let bit = |bits: &[u8], value| _mm512_maskz_set1_epi8(bits_of(bits), value);
            let codes = _mm512_or_si512(_mm512_or_si512(bit(low, 1), bit(middle, 2)), bit(high, 4));
            sink(i * 64, (n - i * 64).min(64), codes);
        }
        return;
    }
    let group = 512 / usize::from(width);
    for (g, bytes) in plane.chunks(64).enumerate() {
        let packed = load(bytes);
        let (start, stride) = (g * group, bytes.len());
        let end = n.min(start + group);
        let mut at = start;
        let mut shift = 0;
        while at < end {
            let codes = _mm512_srl_epi16(packed, _mm_cvtsi32_si128(shift));
            sink(at, stride.min(end - at), codes);
            at += stride;
            shift += i32::from(width);
        }
    }
}

/// Codes of the plane that are all ones, at most `n`.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn count_escapes(width: u8, plane: &[u8], n: usize) -> usize {
    let count = match (width, plane.len()) {
        (3, _) => {
            let [low, middle, high] = bitmaps(plane);
            let mut count = 0;
            for ((l, m), h) in low.chunks(8).zip(middle.chunks(8)).zip(high.chunks(8)) {
                count += (bits_of(l) & bits_of(m) & bits_of(h)).count_ones() as usize;
            }
            count
        }
        (_, ..=64) => count_few(width, plane),
        (1, _) => count_ones(plane, |x| x),
        (2, _) => count_ones(plane, |x| pairs(x)),
        _ => count_ones(plane, |x| quads(x)),
    };
    // Only a damaged plane can have more than `n`.
    count.min(n)
}

/// The same for a plane of up to 64 bytes and codes of 1, 2 or 4 bits, without a branch on how long it is.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn count_few(width: u8, plane: &[u8]) -> usize {
    let codes = masked(plane);
    let marks = match width {
        1 => codes,
        2 => pairs(codes),
        _ => quads(codes),
    };
    _mm512_reduce_add_epi64(_mm512_popcnt_epi64(marks)) as usize
}

/// A bit for each 2 bits that are all ones.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn pairs(x: __m512i) -> __m512i {
    let pairs = _mm512_and_si512(x, _mm512_srli_epi16::<1>(x));
    _mm512_and_si512(pairs, _mm512_set1_epi8(0x55))
}

/// A bit for each 4 bits that are all ones.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn quads(x: __m512i) -> __m512i {
    let pairs = _mm512_and_si512(x, _mm512_srli_epi16::<1>(x));
    let quads = _mm512_and_si512(pairs, _mm512_srli_epi16::<2>(pairs));
    _mm512_and_si512(quads, _mm512_set1_epi8(0x11))
}

/// Ones in a plane, in each vector of it after `mark`.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn count_ones(plane: &[u8], mark: impl Fn(__m512i) -> __m512i) -> usize {
    let (vectors, last) = plane.as_chunks::<64>();
    let mut sum = _mm512_setzero_si512();
    for bytes in vectors {
        sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(mark(load(bytes))));
    }
    if !last.is_empty() {
        sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(mark(load(last))));
    }
    _mm512_reduce_add_epi64(sum) as usize
}

/// A block whose symbols are wanted.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    /// The plane of tier 0.
    pub first: &'a [u8],
    /// What follows the raw planes.
    pub tail: &'a [u8],
    /// Weights in the block.
    pub n: usize,
}

/// A tier's plane: where it starts in the tail, and how many codes it has.
#[derive(Clone, Copy)]
struct Plane {
    at: u32,
    n: u32,
}

impl Plane {
    fn of(self, tail: &[u8], width: u8) -> &[u8] {
        &tail[self.at as usize..self.at as usize + plane_bytes(width, self.n as usize)]
    }
}

/// Where a job has arrived on its way up. (Small: it is cleared for each block.)
#[derive(Clone, Copy)]
struct State {
    /// The symbols of the tier below, if they are at most 64.
    few: __m512i,
    /// Of all tiers but the first, and of the literals.
    planes: [Plane; MAX_TIERS + 1],
    /// Whether they are; else they are in a room.
    are_few: bool,
    /// Which of the two.
    room: usize,
}

/// Decodes all tiers but the first of `N` blocks side by side, and returns the symbols of what escapes from that.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn escapes<'a, const N: usize>(
    tables: &Tables,
    jobs: &[Job<'_>; N],
    rooms: &'a mut [[Symbols; 2]; N],
) -> Result<[&'a Symbols; N], BadRecord> {
    let state = State {
        few: _mm512_setzero_si512(),
        planes: [Plane { at: 0, n: 0 }; MAX_TIERS + 1],
        are_few: false,
        room: 0,
    };
    let mut states = [state; N];
    // How many codes a tier has follows from the escapes of the one before, so go down first ...
    for (state, job) in states.iter_mut().zip(jobs) {
        state.planes[1].n = count_escapes(tables.tiers[0].width, job.first, job.n) as u32;
    }
    for (t, tier) in tables.tiers.iter().enumerate().skip(1) {
        for (state, job) in states.iter_mut().zip(jobs) {
            let (at, n) = (state.planes[t].at as usize, state.planes[t].n as usize);
            let end = at + plane_bytes(tier.width, n);
            let plane = job.tail.get(at..end).ok_or(BadRecord)?;
            let n = match plane.len() {
                ..=64 if tier.width != 3 => count_few(tier.width, plane).min(n),
                _ => count_escapes(tier.width, plane, n),
            };
            // Planes of a block: their ends fit.
            state.planes[t + 1] = Plane { at: end as u32, n: n as u32 };
        }
    }
    // ... and merge on the way up. Up to 64 symbols stay in a register: what was just stored cannot be loaded at
    // another place for a while.
    for ((state, job), [room, _]) in states.iter_mut().zip(jobs).zip(&mut *rooms) {
        let Plane { at, n } = state.planes[tables.tiers.len()];
        let (at, n) = (at as usize, n as usize);
        let literals = job.tail.get(at..at + n).ok_or(BadRecord)?;
        if job.tail.len() - (at + n) >= 4 {
            return Err(BadRecord);
        }
        state.are_few = n <= 64;
        if state.are_few {
            state.few = load(literals);
        } else {
            room[..n].copy_from_slice(literals);
        }
    }
    let mut end = tables.tiers.len();
    while end > 1 {
        let run = tables.tiers[end - 1].run.clamp(1, end - 1);
        let first = end - run;
        let tiers = &tables.tiers[first..end];
        for ((state, job), rooms) in states.iter_mut().zip(jobs).zip(&mut *rooms) {
            let planes = &state.planes[first..end];
            if state.are_few && planes[0].n <= 64 {
                for (tier, plane) in tiers.iter().zip(planes).rev() {
                    state.few = expand_few(tier, plane.of(job.tail, tier.width), plane.n as usize, state.few);
                }
                continue;
            }
            let [a, b] = rooms;
            let (many, out) = if state.room == 0 { (&*a, b) } else { (&*b, a) };
            if state.are_few {
                expand_run(tiers, job.tail, planes, Merge::<true> { few: state.few, many, next: 0, out });
            } else {
                let few = _mm512_setzero_si512();
                expand_run(tiers, job.tail, planes, Merge::<false> { few, many, next: 0, out });
            }
            (state.are_few, state.room) = (false, 1 - state.room);
        }
        end = first;
    }
    for (state, rooms) in states.iter().zip(&mut *rooms) {
        if state.are_few {
            store_at(&mut rooms[state.room], 0, state.few);
        }
    }
    let rooms: &'a [[Symbols; 2]; N] = rooms;
    let mut escapes = [&rooms[0][0]; N];
    for ((escapes, state), rooms) in escapes.iter_mut().zip(&states).zip(rooms) {
        *escapes = &rooms[state.room];
    }
    Ok(escapes)
}

/// Decodes all tiers of a block, and returns its symbols.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn symbols<'a>(
    tables: &Tables,
    job: Job<'_>,
    rooms: &mut [Symbols; 2],
    out: &'a mut Symbols,
) -> Result<&'a [u8], BadRecord> {
    let [escapes] = escapes(tables, &[job], std::array::from_mut(rooms))?;
    Ok(&named(&tables.tiers[0], job.first, job.n, escapes, out)[..job.n])
}

/// The symbols of the `n` codes of tier 0, those of its escapes given.
#[inline(never)]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn named<'a>(
    tier: &TierTable,
    codes: &[u8],
    n: usize,
    escapes: &Symbols,
    out: &'a mut Symbols,
) -> &'a Symbols {
    let few = _mm512_setzero_si512();
    expand_tier(tier, codes, n, Merge::<false> { few, many: escapes, next: 0, out });
    out
}

/// Decodes all tiers of a block at the start of `record`, and returns its symbols and what follows them.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
pub(super) fn symbols_first<'a>(
    tables: &Tables,
    record: &'a [u8],
    n: usize,
    scratch: &'a mut Scratch,
) -> Result<(&'a [u8], &'a [u8]), BadRecord> {
    let mut tail = record;
    let first = take(&mut tail, tables.tiers[0].width, n)?;
    // Where the tiers end, by the escapes of each.
    let (mut rest, mut plane, mut codes) = (tail, first, n);
    for (t, tier) in tables.tiers.iter().enumerate() {
        let width = tables.tiers.get(t + 1).map_or(8, |next| next.width);
        codes = count_escapes(tier.width, plane, codes);
        plane = take(&mut rest, width, codes)?;
    }
    let tail = &tail[..tail.len() - rest.len()];
    let Scratch { symbols: out, rooms: [rooms, ..], .. } = scratch;
    Ok((symbols(tables, Job { first, tail, n }, rooms, out)?, rest))
}

/// The symbols of a tier's `n` codes, at most 64, those of its escapes taken from `below` in turn.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn expand_few(tier: &TierTable, plane: &[u8], n: usize, below: __m512i) -> __m512i {
    let (table, mark) = (load(&tier.lookups[0]), _mm512_set1_epi8(tier.mark as i8));
    let codes = match tier.width {
        1 => _mm512_maskz_set1_epi8(bits_of(plane), 1),
        3 => {
            let [low, middle, high] = bitmaps(plane);
            let (low, middle, high) = (bits_of(low), bits_of(middle), bits_of(high));
            let codes = _mm512_maskz_set1_epi8(low, 1);
            let codes = _mm512_mask_add_epi8(codes, middle, codes, _mm512_set1_epi8(2));
            _mm512_mask_add_epi8(codes, high, codes, _mm512_set1_epi8(4))
        }
        width => {
            let (packed, stride) = (load(plane), plane.len());
            let mut codes = packed;
            for j in 1..8 / usize::from(width) {
                let shifted = _mm512_srl_epi16(packed, _mm_cvtsi32_si128((j * usize::from(width)) as i32));
                let from = _mm512_sub_epi8(iota(), _mm512_set1_epi8((j * stride) as i8));
                codes = _mm512_mask_permutexvar_epi8(codes, !lanes(j * stride), from, shifted);
            }
            codes
        }
    };
    let named = _mm512_permutexvar_epi8(codes, table);
    let escaped = _mm512_cmpeq_epi8_mask(named, mark) & lanes(n);
    _mm512_mask_expand_epi8(named, escaped, below)
}

/// 0, 1, 2 ... 63.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn iota() -> __m512i {
    const IOTA: [u8; 64] = {
        let mut out = [0; 64];
        let mut i = 0;
        while i < 64 {
            out[i] = i as u8;
            i += 1;
        }
        out
    };
    load(&IOTA)
}

/// Symbols from below, handed out in turn to the places of escapes. `FEW`: there are at most 64.
struct Merge<'a, const FEW: bool> {
    few: __m512i,
    many: &'a Symbols,
    next: usize,
    out: &'a mut Symbols,
}

impl<const FEW: bool> Merge<'_, FEW> {
    /// Writes 64 symbols from `at` on: `named`, or the next ones from below where `escaped` says so. What lies
    /// behind the last code of a stretch is overwritten by the next stretch.
    #[inline]
    #[target_feature(
        enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
    )]
    fn put(&mut self, at: usize, named: __m512i, escaped: u64) {
        let below = if FEW {
            _mm512_permutexvar_epi8(_mm512_add_epi8(iota(), _mm512_set1_epi8(self.next as i8)), self.few)
        } else {
            in_register(load_at(self.many, self.next))
        };
        let symbols = _mm512_mask_expand_epi8(named, escaped, below);
        self.next += escaped.count_ones() as usize;
        store_at(self.out, at, symbols);
    }
}

/// The 64 bits of `bytes` from bit `from` on. What is behind the bytes reads as zeros.
#[inline]
fn bits_at(bytes: &[u8], from: usize) -> u64 {
    let (at, shift) = (from / 8, from % 8);
    if at >= bytes.len().saturating_sub(8) {
        return last_bits_at(bytes, from);
    }
    // SAFETY: `at` and 8 bytes behind it are there.
    let [word, next] = unsafe {
        let at = bytes.as_ptr().add(at);
        [at.cast::<u64>().read_unaligned(), at.add(1).cast::<u64>().read_unaligned()]
    };
    // Words that overlap: a shift of 128 bits, which the ninth byte alone would come to, is slow on AMD's processors.
    word >> shift | next >> shift << 8
}

#[cold]
#[inline(never)]
fn last_bits_at(bytes: &[u8], from: usize) -> u64 {
    let mut word = [0; 16];
    for (byte, &from) in word.iter_mut().zip(&bytes[(from / 8).min(bytes.len())..]) {
        *byte = from;
    }
    (u128::from_le_bytes(word) >> (from % 8)) as u64
}

/// As [`expand_tier`], for tiers that follow each other. If there are several, all have 1 bit a code.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn expand_run<const FEW: bool>(tiers: &[TierTable], tail: &[u8], planes: &[Plane], merge: Merge<'_, FEW>) {
    match tiers {
        [tier] => expand_tier(tier, planes[0].of(tail, tier.width), planes[0].n as usize, merge),
        [_, _] => expand_chain::<2, FEW>(tiers, tail, planes, merge),
        [_, _, _] => expand_chain::<3, FEW>(tiers, tail, planes, merge),
        _ => expand_chain::<MAX_RUN, FEW>(tiers, tail, planes, merge),
    }
}

/// As [`expand_run`], for `R` tiers of 1 bit: the escapes of each are put where they are among the codes of the first.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn expand_chain<const R: usize, const FEW: bool>(
    tiers: &[TierTable],
    tail: &[u8],
    planes: &[Plane],
    mut merge: Merge<'_, FEW>,
) {
    let (mut symbols, mut next) = ([_mm512_setzero_si512(); R], [0; R]);
    for (i, (tier, plane)) in tiers.iter().zip(planes).enumerate().take(R) {
        symbols[i] = _mm512_set1_epi8(tier.symbols[0] as i8);
        next[i] = plane.at as usize * 8;
    }
    let (n, start) = (planes[0].n as usize, planes[0].at as usize);
    for at in (0..n).step_by(64) {
        let mut escaped = bits_of(&tail[start + at / 8..]) & lanes(n - at);
        let mut named = symbols[0];
        for i in 1..R {
            named = _mm512_mask_mov_epi8(named, escaped, symbols[i]);
            let bits = bits_at(tail, next[i]);
            next[i] += escaped.count_ones() as usize;
            escaped = _pdep_u64(bits, escaped);
        }
        merge.put(at, named, escaped);
    }
}

/// Writes out the symbols of a tier's `n` codes, those of its escapes taken from below in turn.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn expand_tier<const FEW: bool>(tier: &TierTable, plane: &[u8], n: usize, mut merge: Merge<'_, FEW>) {
    match tier.width {
        1 => {
            let named = _mm512_set1_epi8(tier.symbols[0] as i8);
            let (words, last) = plane.as_chunks::<8>();
            for (i, word) in words.iter().enumerate() {
                merge.put(i * 64, named, u64::from_le_bytes(*word));
            }
            let at = words.len() * 64;
            merge.put(at, named, bits_of(last) & lanes(n.saturating_sub(at)));
        }
        2 if tier.top_marks => expand_packed::<2, FEW, true>(tier, plane, n, &mut merge),
        2 => expand_packed::<2, FEW, false>(tier, plane, n, &mut merge),
        4 => expand_packed::<4, FEW, false>(tier, plane, n, &mut merge),
        width => {
            let (table, mark) = (load(&tier.lookups[0]), _mm512_set1_epi8(tier.mark as i8));
            for_codes(width, plane, n, |at, len, codes| {
                let symbols = _mm512_permutexvar_epi8(codes, table);
                merge.put(at, symbols, _mm512_cmpeq_epi8_mask(symbols, mark) & lanes(len));
            });
        }
    }
}

/// As [`expand_tier`], for a tier of `W` (2 or 4) bits. `TOP`: [`TierTable::top_marks`].
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq"
)]
fn expand_packed<const W: u32, const FEW: bool, const TOP: bool>(
    tier: &TierTable,
    plane: &[u8],
    n: usize,
    merge: &mut Merge<'_, FEW>,
) {
    let (table, mark) = (load(&tier.lookups[0]), _mm512_set1_epi8(tier.mark as i8));
    let (groups, last) = plane.as_chunks::<64>();
    for (g, bytes) in groups.iter().enumerate() {
        let packed = load(bytes);
        for j in 0..8 / W {
            let codes = _mm512_srl_epi16(packed, _mm_cvtsi32_si128((j * W) as i32));
            let symbols = _mm512_permutexvar_epi8(codes, table);
            let at = (g * 8 / W as usize + j as usize) * 64;
            // Comparing would take the port that all else here takes.
            let escaped =
                if TOP { _mm512_movepi8_mask(symbols) } else { _mm512_cmpeq_epi8_mask(symbols, mark) };
            merge.put(at, symbols, escaped);
        }
    }
    let packed = load(last);
    let mut at = groups.len() * 512 / W as usize;
    let mut shift = 0;
    while at < n {
        let codes = _mm512_srl_epi16(packed, _mm_cvtsi32_si128(shift));
        let symbols = _mm512_permutexvar_epi8(codes, table);
        let len = last.len().min(n - at);
        merge.put(at, symbols, _mm512_cmpeq_epi8_mask(symbols, mark) & lanes(len));
        at += len;
        shift += W as i32;
    }
}
