// Types and small tools of all kernels. No includes but our own: nvcc, NVRTC and (through cpp/simt/simt.hpp) any C++17
// compiler take these files as they are.
#ifndef NZ_CUDA_TYPES_CUH
#define NZ_CUDA_TYPES_CUH

#include "nz_cuda.h"

#ifndef NZ_SIMT
#define NZ_DYNAMIC_SHARED(name)                     \
    extern __shared__ nz::Vector16 name##_vectors[]; \
    unsigned char* const name = (unsigned char*)name##_vectors
#endif
#define NZ_DEVICE __device__ __forceinline__

namespace nz {

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// What one load or store moves at once.
struct alignas(16) Vector16 {
    u32 word[4];
};
struct alignas(8) Vector8 {
    u32 word[2];
};

static_assert(sizeof(void*) == 8 && sizeof(u64) == 8 && sizeof(u32) == 4, "the structs of nz_cuda.h are for 64 bits");

constexpr u32 ALL_LANES = 0xffffffffU;
// 1 in each byte, and in each half byte.
constexpr u32 ONES = 0x01010101U;
constexpr u32 HALF_ONES = 0x11111111U;

NZ_DEVICE u32 smaller(u32 a, u32 b) { return a < b ? a : b; }
NZ_DEVICE u32 lane_id() { return threadIdx.x & 31; }
NZ_DEVICE u32 warp_id() { return threadIdx.x >> 5; }

// The sum of `value` over the lanes up to this one. Fields packed in a word are summed up side by side.
NZ_DEVICE u32 inclusive_scan(u32 value) {
#pragma unroll
    for (u32 step = 1; step < 32; step <<= 1) {
        const u32 other = __shfl_up_sync(ALL_LANES, value, step);
        if (lane_id() >= step) value += other;
    }
    return value;
}

// The sum of `value` over all lanes.
NZ_DEVICE u32 warp_sum(u32 value) {
#pragma unroll
    for (u32 step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

// The bits that any lane's `value` has.
NZ_DEVICE u32 warp_union(u32 value) {
#pragma unroll
    for (u32 step = 16; step > 0; step >>= 1) value |= __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

// What row_of takes besides: ceil(2^32 / columns).
NZ_DEVICE u32 reciprocal_of(u32 columns) { return ALL_LANES / columns + 1; }

// `at / columns`, where `at` is at most 4096 more than `columns`, a tile's, which are below 2^16.
NZ_DEVICE u32 row_of(u32 at, u32 columns, u32 reciprocal) {
    // Exact: `at` is below 2^16 where the reciprocal is used.
    return columns > 32768 ? at >= columns : columns == 1 ? at : __umulhi(at, reciprocal);
}

// Bytes of `low` and `high`, by number: 0 to 3 and 4 to 7, one in each half byte of `selector`.
NZ_DEVICE u32 select_bytes(u32 low, u32 high, u32 selector) {
#ifdef NZ_SIMT
    return __byte_perm(low, high, selector);
#else
    // __byte_perm would mask the selector first.
    u32 bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(selector));
    return bytes;
#endif
}

// `a` where `mask` has ones, `b` elsewhere.
NZ_DEVICE u32 select_bits(u32 mask, u32 a, u32 b) {
#ifdef NZ_SIMT
    return ((a ^ b) & mask) ^ b;
#else
    // One instruction; nvcc makes two of it where the mask is a constant.
    u32 bits;
    asm("lop3.b32 %0, %1, %2, %3, 0xe4;" : "=r"(bits) : "r"(a), "r"(b), "r"(mask));
    return bits;
#endif
}

}  // namespace nz

#endif  // NZ_CUDA_TYPES_CUH
