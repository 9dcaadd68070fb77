//! A second writer of deltas, from `docs/format.md`, that takes any tiers, lengths of blocks and exponents.

use super::Rng;
use super::writer::{push_plane, runs, tier_codes};
use nz_onnx::codec::reference;
use nz_onnx::format::{
    Delta, Dtype, Header, Residual, Sections, TensorSpec, Tier, Transform, Units, payload_hash,
};

/// What a base is left like by training: many weights a little larger or smaller, some stretches as they were.
pub fn tuned(base: &[u8], dtype: Dtype, rng: &mut Rng) -> Vec<u8> {
    let mut out = base.to_vec();
    for (i, element) in out.chunks_exact_mut(dtype.size()).enumerate() {
        if i / 1500 % 3 != 1 {
            element[0] = element[0].wrapping_add(rng.below(7) as u8);
        }
    }
    out
}

/// The choices of a writer.
#[derive(Debug)]
pub struct DeltaPlan {
    pub block_len: u32,
    /// Width and symbols of each tier.
    pub tiers: Vec<(u8, Vec<u8>)>,
    pub residual: Residual,
    pub exponent: u8,
}

impl DeltaPlan {
    /// Any number of tiers, any widths, any symbols.
    pub fn random(rng: &mut Rng) -> Self {
        let mut symbols: Vec<u8> = (0..=255).collect();
        for i in (1..symbols.len()).rev() {
            symbols.swap(i, rng.below(i + 1));
        }
        // Short residuals first, so that most codes are no escapes.
        symbols.sort_by_key(|&s| s / 8);
        let mut left = symbols.into_iter();
        let tiers = (0..1 + rng.below(8)).map(|_| {
            let width = 1 + rng.below(4) as u8;
            (width, left.by_ref().take((1 << width) - 1).collect())
        });
        DeltaPlan {
            tiers: tiers.collect(),
            block_len: [1024, 64 * (1 + rng.below(64)) as u32][rng.below(2)],
            residual: [Residual::Xor, Residual::Difference][rng.below(2)],
            exponent: [0, 100, 118, 255][rng.below(4)],
        }
    }
}

/// The elements as numbers, in the order of slots, cut into runs that no block crosses.
fn numbers(elements: &[u8], spec: &TensorSpec) -> Vec<Vec<u32>> {
    let bits = |element: &[u8]| element.iter().rev().fold(0, |bits, &byte| (bits << 8) | u32::from(byte));
    runs(elements.chunks(spec.dtype.size()).map(bits).collect(), spec)
}

/// The symbol of a residual, and its raw bits: how many, and the residual itself.
fn coded(dtype: Dtype, plan: &DeltaPlan, weight: u32, base: u32) -> (u32, (u32, u32)) {
    let width = 8 * dtype.size() as u32;
    let (sign, mask) = (1u32 << (width - 1), ((1u64 << width) - 1) as u32);
    let place = |x: u32| if x & sign == 0 { x + sign } else { mask - x };
    let residual = match plan.residual {
        Residual::Xor => weight ^ base,
        Residual::Difference => {
            let d = i64::from(place(weight).wrapping_sub(place(base)) & mask);
            let d = if d >= 1 << (width - 1) { d - (1 << width) } else { d };
            (if d < 0 { -2 * d - 1 } else { 2 * d }) as u32
        }
    };
    if residual == 0 {
        return (0, (0, 0));
    }
    let length = residual.ilog2() + 1;
    let exponent = (base & !sign & mask) >> dtype.mantissa_bits();
    let lift = exponent.saturating_sub(plan.exponent.into()).min(222);
    (length + lift, (length - 1, residual))
}

/// The delta that tells `src` from the blob `base`, made as `plan` says.
pub fn write_delta(src: &[u8], base: &[u8], plan: &DeltaPlan) -> Vec<u8> {
    let header = Header::parse(base).expect("whole");
    let spec = &header.spec;
    let of_base = reference::decode(base).expect("whole");
    let (mut payload, mut sizes) = (vec![], vec![]);
    for (run, base) in numbers(src, spec).into_iter().zip(numbers(&of_base, spec)) {
        let len = plan.block_len as usize;
        for (block, base) in run.chunks(len).zip(base.chunks(len)) {
            let start = payload.len();
            if block != base {
                let pairs = block.iter().zip(base);
                let (mut symbols, raw): (Vec<u32>, Vec<(u32, u32)>) =
                    pairs.map(|(&weight, &base)| coded(spec.dtype, plan, weight, base)).unzip();
                for (width, listed) in &plan.tiers {
                    let (codes, escapes) = tier_codes(&symbols, *width, listed);
                    push_plane(&mut payload, &codes, u32::from(*width));
                    symbols = escapes;
                }
                push_plane(&mut payload, &symbols, 8);
                let bits: Vec<u32> =
                    raw.iter().flat_map(|&(len, bits)| (0..len).map(move |i| bits >> i & 1)).collect();
                push_plane(&mut payload, &bits, 1);
                payload.resize(payload.len().next_multiple_of(4), 0);
            }
            sizes.push(((payload.len() - start) / 4) as u16);
        }
    }
    let sections = Sections {
        spec: spec.clone(),
        transform: Transform::Delta,
        mantissa_bits: 0,
        lossless: true,
        block_len: plan.block_len,
        tiers: plan
            .tiers
            .iter()
            .map(|(width, symbols)| Tier { width: *width, symbols: symbols.clone() })
            .collect(),
        widths: vec![0; sizes.len()],
        units: vec![],
        units_of: Units::Tensor,
        delta: Some(Delta {
            residual: plan.residual,
            exponent: plan.exponent,
            base_hash: header.identity(base),
            of_blob: true,
        }),
        codebook: None,
        base_bits: 0,
        layers: vec![],
        sizes,
        payload_hash: payload_hash(&payload),
    };
    [sections.write(), payload].concat()
}
