//! Levels of a grid to bfloat16, where the processor rounds to that by itself.
//!
//! Its instruction takes subnormals for zeros. There are none: a unit is 2^-100 at least, and levels that are not zero
//! are 2^-16 of one at least.

use std::arch::x86_64::*;

use super::elements::{opaque, order_of_words, put};
use super::first::First;
use super::whole::Block;
use crate::arch::grid::STRIP;
use crate::arch::{BadRecord, Grid, Record, Tables};
use crate::format::Dtype;

/// Whether [`write_grid`] is for a block on this grid, and this processor for it.
pub(super) fn is_for(record: &Record<'_>, levels: &Grid<'_>) -> bool {
    let last = levels.place((record.len / STRIP).saturating_sub(1));
    // Bits below the 16 of symbol and head have no place.
    let fits = |place| levels.at(place).centre & 0x7fff == 0;
    has_instruction()
        && levels.dtype == Dtype::Bf16
        && !levels.has_tables()
        && record.m <= 7
        && (0..=last).all(fits)
}

#[cfg(not(test))]
fn has_instruction() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

/// The same, unless a test wants what other processors do.
#[cfg(test)]
fn has_instruction() -> bool {
    is_x86_feature_detected!("avx512bf16") && !tests::WITHOUT.get()
}

/// Writes the elements of a block. (Unsafe to call without the feature: [`is_for`] says whether it is there.)
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq,avx512bf16"
)]
pub(super) fn write_grid<
    const HEAD: u8,
    const HIGH: u8,
    const LOW: u8,
    const STREAM: bool,
    const KIND: u8,
>(
    tables: &Tables,
    record: &Record<'_>,
    levels: &Grid<'_>,
    first: First<'_>,
    out: &mut [u16],
) -> Result<(), BadRecord> {
    struct Here;
    let block = Block::<HEAD, HIGH, LOW, KIND>::new(tables, record, first)?;
    let order = opaque(&order_of_words());
    let mut first = block.first();
    let (groups, _) = out.as_chunks_mut::<256>();
    for (g, out) in groups.iter_mut().enumerate() {
        let group = block.group::<Here>(&mut first, g);
        let (vectors, _) = out.as_chunks_mut::<32>();
        let step = |quarter| levels.step(g * 4 + quarter);
        let quarters = [
            elements(group.bytes::<0>(), group.signs::<0>(), step(0).centre, step(0).scale, order),
            elements(group.bytes::<1>(), group.signs::<1>(), step(1).centre, step(1).scale, order),
            elements(group.bytes::<2>(), group.signs::<2>(), step(2).centre, step(2).scale, order),
            elements(group.bytes::<3>(), group.signs::<3>(), step(3).centre, step(3).scale, order),
        ];
        for (to, &from) in vectors.iter_mut().zip(quarters.as_flattened()) {
            put::<STREAM>(to.as_mut_ptr().cast(), from);
        }
    }
    Ok(())
}

/// The elements of 64 weights: their magnitudes are 16 bits of symbol and head, put below the 2^23 of a float.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq,avx512bf16"
)]
fn elements(
    [symbols, heads, _]: [__m512i; 3],
    signs: u64,
    centre: u32,
    scale: f32,
    order: __m512i,
) -> [__m512i; 2] {
    // Those 16 bits are the upper ones of a word's magnitude. 8 bits times 16: exact, and so is all that follows.
    let scale = scale * 32768.0;
    let (scale, offset) = (_mm512_set1_ps(scale), _mm512_set1_ps(-((1 << 23) as f32) * scale));
    let (magnitude, centre) = (_mm512_set1_epi8(!1), _mm512_set1_epi8((centre >> 15) as i8));
    let heads = _mm512_ternarylogic_epi64::<0xea>(heads, magnitude, centre); // heads & magnitude | centre
    let (heads, symbols) = (_mm512_permutexvar_epi32(order, heads), _mm512_permutexvar_epi32(order, symbols));
    let (low, high) = (_mm512_unpacklo_epi8(heads, symbols), _mm512_unpackhi_epi8(heads, symbols));
    let float = _mm512_set1_epi16(0x4b00);
    let a = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_unpacklo_epi16(low, float)), scale, offset);
    let b = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_unpackhi_epi16(low, float)), scale, offset);
    let c = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_unpacklo_epi16(high, float)), scale, offset);
    let d = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_unpackhi_epi16(high, float)), scale, offset);
    let sign = _mm512_set1_epi16(i16::MIN);
    let signed = |elements, signs| _mm512_mask_add_epi16(elements, signs, elements, sign);
    [signed(rounded(a, b), signs as u32), signed(rounded(c, d), (signs >> 32) as u32)]
}

/// The nearest bfloat16 to 32 floats.
#[inline]
#[target_feature(
    enable = "avx2,fma,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vpopcntdq,avx512bf16"
)]
fn rounded(first: __m512, last: __m512) -> __m512i {
    // SAFETY: both are vectors of 512 bits, of which all values are valid.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(last, first)) }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use crate::arch::Backend;
    use crate::codec::{Decoder, EncodeOptions, GridStep, encode, reference};
    use crate::format::{Dtype, TensorSpec};

    thread_local! {
        pub(super) static WITHOUT: Cell<bool> = const { Cell::new(false) };
    }

    /// Levels of all numbers of raw bits, with units of one tensor, of rows and of blocks, centred and with zeros.
    #[test]
    fn with_and_without_the_instruction_elements_are_those_of_the_reference() {
        let Some(backend) = Backend::available().into_iter().find(|backend| backend.name == "avx512") else {
            eprintln!("SKIPPED: no AVX-512 here");
            return;
        };
        for raw_bits in 0..=12 {
            for zeros in [false, true] {
                for spec in [
                    TensorSpec::row_major(Dtype::Bf16, &[16, 1024]),
                    TensorSpec::column_tiles(Dtype::Bf16, 128, 256, 128),
                ] {
                    let blob = encode(&weights(&spec, zeros), &spec, &options(raw_bits)).expect("encodes");
                    let expected = reference::decode(&blob).expect("whole");
                    for without in [true, false] {
                        WITHOUT.set(without);
                        let decoder = Decoder::with_backend(&blob, backend).expect("whole");
                        let found = decoder.decode_bytes(&blob).expect("whole");
                        WITHOUT.set(false);
                        assert!(found == expected, "{raw_bits} {zeros} {spec:?} {without}");
                    }
                }
            }
        }
    }

    fn options(raw_bits: u8) -> EncodeOptions {
        EncodeOptions { grid: Some(GridStep { cell: 1, raw_bits }), block_len: 1024, ..Default::default() }
    }

    /// Weights of many sizes, one in nine of them zero if there are `zeros`.
    fn weights(spec: &TensorSpec, zeros: bool) -> Vec<u8> {
        let mut state = 1u32;
        let weight = |i: u64| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let uniform = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
            let weight = uniform * uniform * uniform * (1.0 + (i / 1000) as f32);
            half::bf16::from_f32(if zeros && i.is_multiple_of(9) { 0.0 } else { weight }).to_le_bytes()
        };
        (0..spec.elements().expect("small")).flat_map(weight).collect()
    }
}
