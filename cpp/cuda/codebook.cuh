// Weights that are values of a codebook.
#ifndef NZ_CUDA_CODEBOOK_CUH
#define NZ_CUDA_CODEBOOK_CUH

#include "words.cuh"

namespace nz {

// Four words in parts.
NZ_DEVICE Quad quad_of(const u32 words[4]) {
    // Exponent and, with the sign turned to its end, head.
    const u32 upper01 = __byte_perm(words[0], words[1], 0x7632), upper23 = __byte_perm(words[2], words[3], 0x7632);
    const u32 turned01 = select_bits(0x00010001U, upper01 >> 15, upper01 << 1);
    const u32 turned23 = select_bits(0x00010001U, upper23 >> 15, upper23 << 1);
    const u32 lower01 = __byte_perm(words[0], words[1], 0x5140), lower23 = __byte_perm(words[2], words[3], 0x5140);
    return {__byte_perm(turned01, turned23, 0x7531), __byte_perm(turned01, turned23, 0x6420),
            __byte_perm(lower01, lower23, 0x7632), __byte_perm(lower01, lower23, 0x5410)};
}

// The values that four weights of codebook `book` stand for: of their symbols, in the half of their signs.
NZ_DEVICE Quad values_of_book(const Quad& quad, const float* book, const Step& step) {
    const u32 places = (quad.symbols & 31 * ONES) | (quad.head & ONES) << 5;
    u32 words[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        words[i] = word_of_value(book[places >> 8 * i & (NZ_CUDA_BOOK - 1)] * step.scale, step.element);
    }
    return quad_of(words);
}

}  // namespace nz

#endif  // NZ_CUDA_CODEBOOK_CUH
