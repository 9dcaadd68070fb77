// Lower raw bits that lie in layers, apart from the records.
#ifndef NZ_CUDA_LAYERS_CUH
#define NZ_CUDA_LAYERS_CUH

#include "planes.cuh"

namespace nz {

// Below the known bits of a mantissa, of which there are `k`, NZ_MIDDLE >> k is half of the last one.
constexpr u32 NZ_MIDDLE = 1U << (NZ_WORD_MANTISSA_BITS - 1);

// Bytes in front of a layer's planes in shared memory; the first word of them says where the planes start.
constexpr u32 LAYER_HEAD = 16;

// Copies what each layer has of block `index` to shared memory, behind the record.
NZ_DEVICE void stage_layers(const NzCudaWeight& weight, u64 index, u8* record) {
#pragma unroll 1
    for (u32 i = 0; i < weight.layers; ++i) {
        const u32* const offsets = weight.layer_offsets + index * weight.layers + i;
        const u32 at = offsets[0], size = (offsets[weight.layers] - at) * 4;
        u8* const layer = record + weight.layer_at[i];
        const u8* const first = weight.blob + weight.layer_starts[i] + (u64)at * 4;
        const bool is_inside = weight.blob + weight.blob_len - first >= (long long)size + 32;
        const u32 shift = stage(weight, first, size, is_inside, layer + LAYER_HEAD);
        if (threadIdx.x == 0) *(u32*)layer = LAYER_HEAD + shift;
    }
}

// Puts `bits`, one in the lowest bit of each byte or more, into the mantissas of four weights: the last of them comes after
// `before` others from the top.
NZ_DEVICE void add_bits(Quad& four, u32 bits, u32 before) {
    if (before < 7) {
        four.head |= bits << (7 - before);
    } else if (before < 15) {
        four.high |= bits << (14 - before);
    } else {
        four.low |= bits << (22 - before);
    }
}

// Eight bytes, those below `n`, to byte `slot` of the plane at `plane`.
NZ_DEVICE void put_octet(u8* shared, u32 plane, u32 n, u32 slot, u32 first, u32 second) {
    u8* const to = shared + plane + slot;
    if (plane % 8 == 0 && n - slot >= 8) {
        *(Vector8*)to = {{first, second}};
        return;
    }
#pragma unroll 1
    for (u32 i = 0; i < smaller(8, n - slot); ++i) to[i] = (u8)((i < 4 ? first : second) >> i % 4 * 8);
}

// Puts mantissas together, of a block of `n` weights with `m` bits in its record, in planes from `raw` on, and `known` with
// the layers: to planes of 8 bits. Returns how many bits these have.
NZ_DEVICE u32 join_layers(const NzCudaWeight& weight, u8* record, u32 raw, u32 m, u32 known, u32 n) {
#pragma unroll 1
    for (u32 row = 0; row < 2; ++row) {
        const u32 slot = first_octet() + row * ROW_SLOTS;
        if (slot >= n) break;
        Quad first = {}, second = {};
        read_mantissas(record, raw, m, n, slot, first, second);
        u32 from = m;
#pragma unroll 1
        for (u32 i = 0; i < weight.layers; ++i) {
            const u8* const layer = record + weight.layer_at[i];
            u32 plane = *(const u32*)layer;
            const u32 to = smaller(weight.layer_bits[i], known);
            // Bits that are in one byte of a quad at a time.
#pragma unroll 1
            while (from < to) {
                const u32 end = smaller(to, from < 7 ? 7 : from < 15 ? 15 : 23);
                const Octet bits = field_octet(layer, plane, end - from, n, slot);
                add_bits(first, bits.first, end - 1);
                add_bits(second, bits.second, end - 1);
                from = end;
            }
        }
        const u32 at = weight.joined_at;
        put_octet(record, at, n, slot, first.head, second.head);
        if (known > 7) put_octet(record, at + n, n, slot, first.high, second.high);
        if (known > 15) put_octet(record, at + 2 * n, n, slot, first.low, second.low);
    }
    return known > 15 ? 23 : known > 7 ? 15 : 7;
}

// Ones in the bytes that are no less than `least`, 1 to 255.
NZ_DEVICE u32 at_least(u32 bytes, u32 least) {
    const u32 sums = (bytes & 127 * ONES) + ((256 - least) & 127) * ONES;
    return (least <= 128 ? bytes | sums : bytes & sums) >> 7 & ONES;
}

// Moves words of which only `known` mantissa bits are known to the middle of what they may be.
NZ_DEVICE void add_middle(const NzCudaWeight& weight, u32 known, Quad& four) {
    u32 moved = at_least(four.symbols, weight.element == NZ_CUDA_FLOAT16 ? 113 : 1);
    if (weight.transform == NZ_TRANSFORM_NORMALISED && weight.element == NZ_CUDA_BFLOAT16) {
        // Not a subnormal that has no bit for it.
        moved &= ~at_least(four.symbols, NZ_SUBNORMAL_EXPONENT) | at_least(four.symbols, NZ_SUBNORMAL_EXPONENT + 17 + known);
    }
    add_bits(four, moved, known);
}

}  // namespace nz

#endif  // NZ_CUDA_LAYERS_CUH
