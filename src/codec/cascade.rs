//! The tiered escape cascade: a prefix code whose codes all have a fixed place.
//!
//! Tier 0 spends a few bits on every weight and names the commonest symbols; what it cannot name escapes to
//! tier 1, and so on; what no tier names is written out. With exponents of trained weights two bits name three
//! quarters of them, and the whole comes within .03 to .12 bits a weight of Shannon's bound.

use crate::format::{MAX_TIERS, Tier};

const WIDTHS: [u8; 4] = [1, 2, 3, 4];
/// The only width that the CUDA kernels have a short way for.
const GPU_WIDTHS: [u8; 1] = [2];
/// The most tiers of [`Profile::Gpu`], as many as the short way is for.
const GPU_TIERS: usize = 2;
/// Each tier must save so many 1/1024 bit a weight, because a shorter cascade decodes faster; not in small tensors, of
/// which so many weights are not counted. Rounded weights have given up bits already: they are to be fast.
const TIER_COST: u64 = 8;
const TIER_FREE: u64 = 1 << 16;
const ROUNDED_TIER_COST: u64 = 20;
const ROUNDED_TIER_FREE: u64 = 1 << 14;
/// A little less where only a sample is known: chance shall not take a tier away that saves just enough.
const SAMPLE_DISCOUNT: u64 = 2;
const UNIT: u64 = 1024;

/// What the tiers of a blob are chosen for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// The smallest blob: up to 8 tiers.
    #[default]
    Compact,
    /// The fastest to decode without AVX-512: one tier of 4 bits, so that nearly all weights have a code of a fixed
    /// width. About 1.1 bits a weight larger on trained weights.
    Fast,
    /// The fastest to decode on a GPU: up to two tiers, of 2 bits each. About .3 bits a weight larger on trained weights.
    Gpu,
}

/// How often each symbol occurs.
pub type Histogram = [u64; 256];

/// What is known of the weights whose symbols were counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// They are rounded.
    pub rounded: bool,
    /// The counts are those of a sample, scaled up.
    pub sampled: bool,
}

/// The tiers that `profile` has for symbols with these counts. Deterministic.
pub fn choose_tiers(counts: &Histogram, profile: Profile, known: Known) -> Vec<Tier> {
    let (cost, free) =
        if known.rounded { (ROUNDED_TIER_COST, ROUNDED_TIER_FREE) } else { (TIER_COST, TIER_FREE) };
    let counted = counts.iter().sum::<u64>().saturating_sub(free);
    let tier_cost = (cost - if known.sampled { SAMPLE_DISCOUNT } else { 0 }) * counted;
    let mut order: Vec<u8> = (0..=255).collect();
    order.sort_by_key(|&s| (std::cmp::Reverse(counts[usize::from(s)]), s));
    match profile {
        Profile::Compact => smallest(counts, &order, &WIDTHS, MAX_TIERS, tier_cost),
        Profile::Gpu => smallest(counts, &order, &GPU_WIDTHS, GPU_TIERS, tier_cost),
        Profile::Fast => vec![Tier { width: 4, symbols: order[..15].to_vec() }],
    }
}

/// The tiers of these widths, at most so many, that give the smallest coding, where each costs `tier_cost` of [`UNIT`]
/// bits in all; `order` has the commonest symbols first.
fn smallest(counts: &Histogram, order: &[u8], widths: &[u8], most: usize, tier_cost: u64) -> Vec<Tier> {
    let mut left = vec![0u64; 257];
    for i in (0..256).rev() {
        left[i] = left[i + 1] + counts[usize::from(order[i])];
    }
    // best[d][i]: least cost of coding what is left after the first `i` symbols, with at most `d` more tiers.
    let literals = |i: usize| 8 * UNIT * left[i];
    // Behind the last symbol that occurs nothing costs anything.
    let occurring = left.iter().take_while(|&&n| n > 0).count();
    let mut best: Vec<Vec<(u64, u8)>> = vec![(0..=256).map(|i| (literals(i), 0)).collect()];
    for d in 1..=most {
        let row = (0..=256usize)
            .map(|i| {
                if i >= occurring {
                    return (0, 0);
                }
                let with_tier = widths.iter().filter_map(|&w| {
                    let next = i + (1 << w) - 1;
                    let rest = best[d - 1].get(next)?.0;
                    let listed = UNIT * (8 * ((1 << w) - 1) + 2);
                    Some((UNIT * u64::from(w) * left[i] + tier_cost + listed + rest, w))
                });
                with_tier.chain([(literals(i), 0)]).min().unwrap_or((literals(i), 0))
            })
            .collect();
        best.push(row);
    }
    let (mut tiers, mut at) = (Vec::new(), 0);
    for d in (1..=most).rev() {
        // The format wants a first tier even where literals alone would be cheaper.
        let width = match best[d][at].1 {
            0 if tiers.is_empty() => widths[0],
            0 => break,
            w => w,
        };
        let next = at + (1 << width) - 1;
        tiers.push(Tier { width, symbols: order[at..next].to_vec() });
        at = next;
    }
    tiers
}

/// Bits that `tiers` spend on symbols with these counts, without rounding to whole bytes.
pub fn coded_bits(tiers: &[Tier], counts: &Histogram) -> u64 {
    let mut left: u64 = counts.iter().sum();
    let mut bits = 0;
    for tier in tiers {
        bits += left * u64::from(tier.width);
        left -= tier.symbols.iter().map(|&s| counts[usize::from(s)]).sum::<u64>();
    }
    bits + 8 * left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(list: &[(u8, u64)]) -> Histogram {
        let mut out = [0; 256];
        list.iter().for_each(|&(s, n)| out[usize::from(s)] = n);
        out
    }

    #[test]
    fn cascade_is_near_shannon_on_a_typical_exponent_distribution() {
        // Exponents of a Gaussian: each step down is half as likely, above the mode they fall off fast.
        let h = counts(&[
            (124, 320),
            (123, 5000),
            (122, 8900),
            (121, 7600),
            (120, 4400),
            (119, 2300),
            (118, 1150),
            (117, 580),
            (116, 290),
            (115, 145),
            (114, 72),
            (113, 70),
        ]);
        let n: u64 = h.iter().sum();
        let entropy: f64 =
            h.iter().filter(|&&c| c > 0).map(|&c| c as f64 * (n as f64 / c as f64).log2()).sum();
        let tiers = choose_tiers(&h, Profile::Compact, Known::default());
        let over = (coded_bits(&tiers, &h) as f64 - entropy) / n as f64;
        assert!(over < 0.09, "{over} bits over the bound with {tiers:?}");
    }

    #[test]
    fn fast_profile_names_the_commonest_symbols_in_one_tier() {
        let h = std::array::from_fn(|symbol| (symbol as u64 * 37) % 256);
        let tiers = choose_tiers(&h, Profile::Fast, Known::default());
        assert_eq!((tiers.len(), tiers[0].width, tiers[0].symbols.len()), (1, 4, 15));
        let least_named = tiers[0].symbols.iter().map(|&s| h[usize::from(s)]).min();
        let others = (0..=255u8).filter(|s| !tiers[0].symbols.contains(s));
        assert!(others.map(|s| h[usize::from(s)]).max() < least_named);
    }

    #[test]
    fn gpu_profile_has_two_bits_throughout() {
        let gaussian =
            counts(&[(123, 5000), (122, 8900), (121, 7600), (120, 4400), (119, 2300), (118, 1150)]);
        for h in [gaussian, counts(&[(7, 1000)]), [10; 256], [0; 256]] {
            let tiers = choose_tiers(&h, Profile::Gpu, Known::default());
            assert!((1..=GPU_TIERS).contains(&tiers.len()) && tiers.iter().all(|tier| tier.width == 2));
            let compact = choose_tiers(&h, Profile::Compact, Known::default());
            assert!(coded_bits(&compact, &h) <= coded_bits(&tiers, &h) || compact.len() < tiers.len());
        }
        let least =
            |profile| coded_bits(&choose_tiers(&gaussian, profile, Known::default()), &gaussian) as f64;
        assert!(least(Profile::Gpu) <= 1.15 * least(Profile::Compact), "at most a seventh more");
    }

    #[test]
    fn flat_alphabets_and_constants_have_tiers() {
        assert_eq!(choose_tiers(&counts(&[(7, 1000)]), Profile::Compact, Known::default())[0].width, 1);
        let flat = choose_tiers(&[10; 256], Profile::Compact, Known::default());
        assert!(!flat.is_empty() && flat.len() <= MAX_TIERS);
    }
}
