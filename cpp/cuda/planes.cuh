// Records in shared memory, and the planes in them: four values at a time, one a byte.
#ifndef NZ_CUDA_PLANES_CUH
#define NZ_CUDA_PLANES_CUH

#include "types.cuh"

namespace nz {

// The four bytes from `at` on, wherever that is. Reads up to 8 bytes from the word that `at` lies in.
NZ_DEVICE u32 word_at(const u8* shared, u32 at) {
    const u32* word = (const u32*)(shared + (at & ~3U));
    return __funnelshift_r(word[0], word[1], at * 8);  // it takes the amount's last five bits
}

// Copies `size` bytes from byte `at` of the blob on, both multiples of 4, to shared memory in loads of 16 bytes that all
// lanes of a warp line up. Returns where they start there: loads are aligned, records are not. No byte outside the blob
// is read: in front of all that is copied lies the header, and what would reach behind the blob is read in words.
// `is_inside`: at least 32 bytes of it are behind.
NZ_DEVICE u32 stage(const NzCudaWeight& weight, const u8* first, u32 size, bool is_inside, u8* shared) {
    const u32 shift = (u32)((u64)first & 15);
    const u8* const from = first - shift;
    const u32 vectors = (shift + size + 15) / 16;
    if (is_inside) {
#pragma unroll 2
        for (u32 i = threadIdx.x; i < vectors; i += blockDim.x) ((Vector16*)shared)[i] = ((const Vector16*)from)[i];
        return shift;
    }
    const u8* const blob_end = weight.blob + weight.blob_len;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < vectors; i += blockDim.x) {
        const u8* const source = from + i * 16;
        Vector16 vector = {{0, 0, 0, 0}};
        if (blob_end - source >= 16) {
            vector = *(const Vector16*)source;
        } else {
#pragma unroll
            for (u32 k = 0; k < 4; ++k) {
                if (blob_end - source >= (long long)(4 * k + 4)) vector.word[k] = ((const u32*)source)[k];
            }
        }
        *(Vector16*)(shared + i * 16) = vector;
    }
    return shift;
}

// Copies the record of `block`.
NZ_DEVICE u32 stage_record(const NzCudaWeight& weight, const NzCudaBlock& block, u8* shared) {
    // In units of 4 bytes, of which there may be 2^32.
    const u32 behind = (u32)((weight.blob_len - weight.payload) / 4) - (block.offset + block.record);
    return stage(weight, weight.blob + weight.payload + (u64)block.offset * 4, block.record * 4U, behind >= 8, shared);
}

// Bytes of a plane of `n` values of `width` bits: 1, 2, 3, 4 or 8.
NZ_DEVICE u32 plane_size(u32 width, u32 n) { return width == 3 ? (n + 7) / 8 * 3 : (n * width + 7) / 8; }

// Bytes of a field of `bits` bits a value, cut into planes.
NZ_DEVICE u32 field_size(u32 bits, u32 n) {
    if (n % 8 == 0) return n / 8 * bits;
    u32 size = bits / 8 * n;
#pragma unroll 1
    for (u32 width = 4; width > 0; width >>= 1) size += bits & width ? plane_size(width, n) : 0;
    return size;
}

// Four bits spread to the lowest bits of four bytes.
NZ_DEVICE u32 spread(u32 bits) { return (bits & 15) * 0x00204081U & ONES; }

// Four values from `slot` on, a multiple of 4, out of groups of 64 bytes; `width` is 2 or 4. Only those below `n`
// count.
NZ_DEVICE u32 group_quad(const u8* shared, u32 plane, u32 width, u32 n, u32 slot) {
    const u32 log_group = width == 4 ? 7 : 8;
    const u32 mask = width == 4 ? 15 * ONES : 3 * ONES;
    const u32 group = slot >> log_group, in_group = slot & ((1U << log_group) - 1);
    const u32 left = n - (group << log_group), start = plane + group * NZ_PLANE_GROUP_SIZE;
    if (left >> log_group != 0) {  // a whole group: steps of 64 slots
        return word_at(shared, start + (in_group & 63)) >> (in_group >> 6) * width & mask;
    }
    const u32 stride = (left * width + 7) / 8;
    if (stride % 4 == 0) {
        const u32 step = (in_group >= stride) + (in_group >= 2 * stride) + (in_group >= 3 * stride);
        return word_at(shared, start + in_group - step * stride) >> step * width & mask;
    }
    u32 values = 0;
#pragma unroll 1
    for (u32 i = 0; i < 4; ++i) {
        const u32 j = in_group + i;
        if (j < left) {
            const u32 step = (j >= stride) + (j >= 2 * stride) + (j >= 3 * stride);
            values |= (shared[start + j - step * stride] >> step * width & mask & 255) << 8 * i;
        }
    }
    return values;
}

// Of four values from `slot` on, one a byte, those below `n`.
NZ_DEVICE u32 below_end(u32 values, u32 n, u32 slot) {
    return n - slot >= 4 ? values : values & ((1U << (n - slot) * 8) - 1);
}

// Four values from `slot` on, below `n` and a multiple of 4; `width` is 1, 2 or 4. What is not below `n` is 0.
NZ_DEVICE u32 quad_at(const u8* shared, u32 plane, u32 width, u32 n, u32 slot) {
    const u32 values = width == 1 ? spread(shared[plane + slot / 8] >> (slot & 4))
                                  : group_quad(shared, plane, width, n, slot);
    return below_end(values, n, slot);
}

// Eight values, one a byte.
struct Octet {
    u32 first, second;
};

// The eight bytes from `at` on, wherever that is. Reads 12 bytes from the word that `at` lies in.
NZ_DEVICE Octet bytes_at(const u8* shared, u32 at) {
    const u32* const word = (const u32*)(shared + (at & ~3U));
    const u32 shift = at * 8, middle = word[1];  // its last five bits count
    return {__funnelshift_r(word[0], middle, shift), __funnelshift_r(middle, word[2], shift)};
}

// Eight values from `slot` on, a multiple of 8 below `n`, of a field of `bits` bits, 0 to 8, whose first plane is at
// `plane`; moves `plane` behind the last one.
NZ_DEVICE Octet field_octet(const u8* shared, u32& plane, u32 bits, u32 n, u32 slot) {
    Octet values = {0, 0};
    if (bits == 8) {
        values = bytes_at(shared, plane + slot);
        plane += n;
        return values;
    }
#pragma unroll 1
    for (u32 width = 4; width > 0; width >>= 1) {
        if (bits & width) {
            values.first = values.first << width | quad_at(shared, plane, width, n, slot);
            if (slot + 4 < n) values.second = values.second << width | quad_at(shared, plane, width, n, slot + 4);
            plane += plane_size(width, n);
        }
    }
    return values;
}

// The slots of a warp's row; a lane has 8 of them.
constexpr u32 ROW_SLOTS = 256;

// The first slot of this lane in row 0; row 1 is ROW_SLOTS on.
NZ_DEVICE u32 first_octet() { return warp_id() * NZ_CUDA_WARP_SLOTS + lane_id() * 8; }

// Four weights in parts, one a byte.
struct Quad {
    u32 symbols;
    u32 head;  // mantissa bits from bit 7 down, the sign in bit 0
    u32 high;  // the mantissa's next 8 bits
    u32 low;   // its last 8 bits
};

// Moves the mantissa's bits, of which there are `bits`, to the top of each byte. The sign stays in bit 0.
NZ_DEVICE u32 aligned_head(u32 head, u32 bits) {
    return (head & ~ONES) << (NZ_HEAD_MANTISSA_BITS - bits) | (head & ONES);
}

// Signs and mantissas of eight weights from `slot` on, of a block of `n` with `m` mantissa bits in planes from `plane` on.
NZ_DEVICE void read_mantissas(const u8* record, u32 plane, u32 m, u32 n, u32 slot, Quad& first, Quad& second) {
    const u32 in_head = smaller(m, NZ_HEAD_MANTISSA_BITS), in_rest = m - in_head;
    const Octet head = field_octet(record, plane, in_head + 1, n, slot);
    first.head = aligned_head(head.first, in_head);
    second.head = aligned_head(head.second, in_head);
    first.high = first.low = second.high = second.low = 0;
    u32 left = in_rest;
#pragma unroll 1
    while (left > 0) {
        const u32 bits = smaller(left, 8);
        const Octet rest = field_octet(record, plane, bits, n, slot);
        // The first 8 bits are the high ones.
        if (left == in_rest) {
            first.high = rest.first << (8 - bits);
            second.high = rest.second << (8 - bits);
        } else {
            first.low = rest.first << (8 - bits);
            second.low = rest.second << (8 - bits);
        }
        left -= bits;
    }
}

}  // namespace nz

#endif  // NZ_CUDA_PLANES_CUH
