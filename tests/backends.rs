//! Records of every kind: each backend's decoder against the words that were encoded, and against the scalar one on
//! what no encoder writes.
#![allow(clippy::unwrap_used)]

mod common;

use common::Rng;
use nz_onnx::arch::{Backend, BadRecord, RECORD_ROOM, Record, Scratch, Store, Tables};
use nz_onnx::format::Tier;

const CASCADES: [&[u8]; 10] = [
    &[1],
    &[2],
    &[3],
    &[4],
    &[2, 1, 2, 2],
    &[3, 1, 4],
    &[4, 4],
    &[2, 1, 2, 1, 2, 3],
    &[1, 1, 1, 1, 1, 1, 1, 1],
    &[4, 4, 4, 4, 4, 4, 4, 4],
];

/// All shapes of the last group of planes, with whole groups before it and without.
const LENGTHS: [usize; 36] = [
    1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 127, 128, 129, 191, 192, 255, 256, 257, 320, 447,
    511, 512, 513, 768, 1000, 1024, 2047, 2048, 2500, 3071, 4095, 4096,
];

/// How exponents are spread over the symbols that tiers list in order.
#[derive(Clone, Copy)]
enum Spread {
    /// Each is half as likely as the one before.
    Halving,
    /// Only a few escape from the first tier.
    Rare,
    /// All 256 alike: nearly all escape.
    Flat,
}

fn tiers(widths: &[u8]) -> Vec<Tier> {
    let mut ranks = 0u8..;
    let mut tier = |&width: &u8| {
        let symbols = ranks.by_ref().take((1 << width) - 1).map(symbol).collect();
        Tier { width, symbols }
    };
    widths.iter().map(&mut tier).collect()
}

/// The symbol of a rank: not in order, so that symbols and codes are not the same.
fn symbol(rank: u8) -> u8 {
    rank.wrapping_mul(37).wrapping_add(123)
}

fn decode(
    backend: Backend,
    tables: &Tables,
    bytes: &[u8],
    m: u8,
    scratch: &mut Scratch,
    words: &mut [u32],
) -> Result<(), BadRecord> {
    let record = Record { bytes, m, len: words.len(), grid: None, layers: None, ahead: &[] };
    backend.decode(tables, &[record], scratch, words, Store::Cached)
}

/// Words with exactly `m` mantissa bits.
fn words(n: usize, m: u8, first_tier: u8, spread: Spread, rng: &mut Rng) -> Vec<u32> {
    let kept = !(0x7f_ffffu32 >> m);
    let mut words: Vec<u32> = (0..n)
        .map(|_| {
            let random = rng.next();
            let rank = match spread {
                Spread::Halving => (random >> 32 | 1 << 31).trailing_zeros() as u8,
                Spread::Rare if random >> 32 & 127 != 0 => ((random >> 40) % ((1 << first_tier) - 1)) as u8,
                Spread::Rare | Spread::Flat => (random >> 40) as u8,
            };
            (random as u32 & 0x807f_ffff | u32::from(symbol(rank)) << 23) & kept
        })
        .collect();
    if m > 0 {
        words[n / 2] |= 1 << (23 - m);
    }
    words
}

#[test]
fn every_backend_decodes_every_kind_of_record() {
    let mut rng = Rng(21);
    let backends = Backend::available();
    let (mut scratch, mut record) = (Scratch::new(), Vec::new());
    for widths in CASCADES {
        let tables = Tables::new(&tiers(widths));
        for n in LENGTHS {
            for m in 0..=23 {
                let spread = [Spread::Halving, Spread::Rare, Spread::Flat][(n + usize::from(m)) % 3];
                let words = words(n, m, widths[0], spread, &mut rng);
                record.resize(RECORD_ROOM, 0);
                let (found, len) = backends[0].encode(&tables, &words, &mut scratch, &mut record, &[]);
                assert_eq!(found, m);
                record.truncate(len);
                // As long as can be, and an allocation of its own, so that a memory checker sees its ends.
                for padding in [0, 3] {
                    record.resize(record.len() + padding, 0);
                    let record = record.clone().into_boxed_slice();
                    for backend in &backends {
                        let mut out = vec![0xdead_beef; n].into_boxed_slice();
                        decode(*backend, &tables, &record, m, &mut scratch, &mut out).unwrap();
                        assert!(*out == *words, "{}: tiers {widths:?}, n {n}, m {m}", backend.name);
                    }
                }
            }
        }
    }
}

#[test]
fn every_backend_refuses_what_the_scalar_one_refuses() {
    let mut rng = Rng(22);
    let backends = Backend::available();
    let mut scratch = Scratch::new();
    let mut outcomes = [0u32; 2];
    for widths in CASCADES {
        let tables = Tables::new(&tiers(widths));
        for (n, m) in [(1, 23), (64, 0), (100, 5), (512, 7), (777, 10), (1024, 3), (4096, 16)] {
            let mut record = vec![0; RECORD_ROOM];
            let words = words(n, m, widths[0], Spread::Halving, &mut rng);
            let (_, len) = backends[0].encode(&tables, &words, &mut scratch, &mut record, &[]);
            record.truncate(len);
            for round in 0..120 {
                let mut bad = record.clone();
                match round % 4 {
                    0 => bad.truncate(rng.next() as usize % (record.len() + 1)),
                    1 => bad.resize(record.len() + rng.next() as usize % 9, 0),
                    2 => {
                        let at = rng.next() as usize % record.len();
                        bad[at..].iter_mut().for_each(|b| *b = rng.next() as u8);
                    }
                    _ => bad.iter_mut().for_each(|b| *b |= (rng.next() & rng.next()) as u8),
                }
                let bad = bad.into_boxed_slice();
                let verdicts = backends.iter().map(|backend| {
                    let mut out = vec![0; n].into_boxed_slice();
                    decode(*backend, &tables, &bad, m, &mut scratch, &mut out).is_ok()
                });
                let verdicts: Vec<bool> = verdicts.collect();
                assert!(verdicts.iter().all(|&v| v == verdicts[0]), "tiers {widths:?}, n {n}, m {m}");
                outcomes[usize::from(verdicts[0])] += 1;
            }
        }
    }
    assert!(outcomes[0] > 1000 && outcomes[1] > 1000, "both must occur: {outcomes:?}");
}

#[test]
fn vector_backends_are_there_where_the_machine_has_them() {
    let names: Vec<&str> = Backend::available().iter().map(|b| b.name).collect();
    assert_eq!(names[0], "scalar");
    #[cfg(target_arch = "aarch64")]
    assert!(names.contains(&"neon"), "{names:?}");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2") {
        assert!(names.contains(&"avx2"), "{names:?}");
    }
}
