// From the parts of a weight to its word, and from words to elements.
#ifndef NZ_CUDA_WORDS_CUH
#define NZ_CUDA_WORDS_CUH

#include "block.cuh"

namespace nz {

// `bytes` has exponent, head and the rest of the mantissa, from the top down.
NZ_DEVICE u32 word_of(u32 bytes) {
    return (bytes >> 1 & 0x7fff0000U) | (bytes & 0xffffU) | (bytes << 15 & 0x80000000U);
}

// Undoes the normalising of subnormals.
NZ_DEVICE u32 denormalise(u32 word) {
    const u32 top = (word >> NZ_WORD_MANTISSA_BITS & 255) - NZ_SUBNORMAL_EXPONENT;
    if (top >= NZ_SUBNORMAL_EXPONENTS) return word;
    return (word & 0x80000000U) | ((word & 0x7fffffU) | 0x800000U) >> (NZ_WORD_MANTISSA_BITS - top);
}

// The float16 bits of a word that a float16 has.
NZ_DEVICE u32 float16_of(u32 word) {
    const u32 sign = word >> 16 & 0x8000U, exponent = word >> 23 & 255, mantissa = word & 0x7fffffU;
    if (exponent < 103) return sign;
    if (exponent < 113) return sign | (mantissa | 0x800000U) >> (126 - exponent);
    return sign | (exponent < 143 ? exponent - 112 : 31) << 10 | mantissa >> 13;
}

// The four words of a quad, as the tensor's float32 values.
NZ_DEVICE void words_of(const Quad& quad, u32 normalised, u32 words[4]) {
    const u32 upper01 = __byte_perm(quad.head, quad.symbols, 0x5140);
    const u32 upper23 = __byte_perm(quad.head, quad.symbols, 0x7362);
    const u32 lower01 = __byte_perm(quad.low, quad.high, 0x5140);
    const u32 lower23 = __byte_perm(quad.low, quad.high, 0x7362);
    words[0] = word_of(__byte_perm(lower01, upper01, 0x5410));
    words[1] = word_of(__byte_perm(lower01, upper01, 0x7632));
    words[2] = word_of(__byte_perm(lower23, upper23, 0x5410));
    words[3] = word_of(__byte_perm(lower23, upper23, 0x7632));
    if (normalised) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) words[i] = denormalise(words[i]);
    }
}

// Element types: how eight of them come out of quads, and how they are stored.
struct Float32 {
    typedef u32 Bits;
    struct Elements {
        Vector16 first, second;

        NZ_DEVICE Elements(const Quad& a, const Quad& b, u32 normalised) {
            words_of(a, normalised, first.word);
            words_of(b, normalised, second.word);
        }
        NZ_DEVICE void store(Bits* out) const {
            ((Vector16*)out)[0] = first;
            ((Vector16*)out)[1] = second;
        }
        NZ_DEVICE Bits at(u32 i) const {
            return i & 4 ? one_of(second, i) : one_of(first, i);
        }

      private:
        static NZ_DEVICE u32 one_of(const Vector16& four, u32 i) {
            const u32 low = i & 1 ? four.word[1] : four.word[0], high = i & 1 ? four.word[3] : four.word[2];
            return i & 2 ? high : low;
        }
    };
};

// Eight elements of 16 bits.
struct Halves {
    Vector16 all;

    NZ_DEVICE void store(u16* out) const { *(Vector16*)out = all; }
    NZ_DEVICE u16 at(u32 i) const {
        const u32 low = i & 2 ? all.word[1] : all.word[0], high = i & 2 ? all.word[3] : all.word[2];
        return (u16)((i & 4 ? high : low) >> i % 2 * 16);
    }
};

struct Float16 {
    typedef u16 Bits;
    struct Elements : Halves {
        NZ_DEVICE Elements(const Quad& a, const Quad& b, u32 normalised) {
            u32 words[8];
            words_of(a, normalised, words);
            words_of(b, normalised, words + 4);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                all.word[i] = float16_of(words[2 * i]) | float16_of(words[2 * i + 1]) << 16;
            }
        }
    };
};

struct Bfloat16 {
    typedef u16 Bits;
    struct Elements : Halves {
        NZ_DEVICE Elements(const Quad& a, const Quad& b, u32 normalised) {
            if (normalised) {
                u32 words[8];
                words_of(a, 1, words);
                words_of(b, 1, words + 4);
#pragma unroll
                for (u32 i = 0; i < 4; ++i) all.word[i] = __byte_perm(words[2 * i], words[2 * i + 1], 0x7632);
                return;
            }
            all.word[0] = turned(__byte_perm(a.head, a.symbols, 0x5140));
            all.word[1] = turned(__byte_perm(a.head, a.symbols, 0x7362));
            all.word[2] = turned(__byte_perm(b.head, b.symbols, 0x5140));
            all.word[3] = turned(__byte_perm(b.head, b.symbols, 0x7362));
        }
        // Two weights at once: exponent and head, turned right by one bit.
        static NZ_DEVICE u32 turned(u32 pair) { return select_bits(0x80008000U, pair << 15, pair >> 1); }
    };
};

}  // namespace nz

#endif  // NZ_CUDA_WORDS_CUH
