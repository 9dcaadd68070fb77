// From the parts of a weight to its word, and from words to elements.
#ifndef NZ_CUDA_WORDS_CUH
#define NZ_CUDA_WORDS_CUH

#include "even.cuh"

namespace nz {

// The word of a float16: the float32 of the same value.
NZ_DEVICE u32 word_of_half(u32 bits) {
    const float scaled = __uint_as_float((bits & 0x7fffU) << 13) * __uint_as_float(239U << 23);  // times 2^112
    const u32 magnitude = (bits & 0x7c00U) == 0x7c00U ? 0x7f800000U | (bits & 0x3ffU) << 13 : __float_as_uint(scaled);
    return magnitude | (bits & 0x8000U) << 16;
}

// float16 to float32, by value.
NZ_DEVICE float float_of_half(u32 bits) { return __uint_as_float(word_of_half(bits)); }

// float32 to float16, half to even.
NZ_DEVICE u32 half_of_float(float value) {
    const u32 bits = __float_as_uint(value), sign = bits >> 16 & 0x8000U, magnitude = bits & 0x7fffffffU;
    if (magnitude > 0x7f800000U) return sign | 0x7e00U;
    if (magnitude >= 0x47800000U) return sign | 0x7c00U;  // 65536 and more
    if (magnitude < 0x38800000U) {
        // A subnormal: adding 1/2 leaves its units, 2^-24, at the end of the mantissa.
        return sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000U);
    }
    const u32 rebased = magnitude - 0x38000000U;
    return sign | (rebased + 0xfffU + (rebased >> 13 & 1)) >> 13;
}

// float32 to bfloat16, half to even.
NZ_DEVICE u32 bfloat_of_float(float value) {
    const u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffffU) > 0x7f800000U) return bits >> 16 | 0x40U;
    return (bits + 0x7fffU + (bits >> 16 & 1)) >> 16;
}

// The word of the element that is nearest to `value`.
NZ_DEVICE u32 word_of_value(float value, u32 element) {
    if (element == NZ_CUDA_FLOAT16) return word_of_half(half_of_float(value));
    if (element == NZ_CUDA_BFLOAT16) return bfloat_of_float(value) << 16;
    return __float_as_uint(value);
}

// What the level of a grid stands for, as a word.
NZ_DEVICE u32 value_of_level(u32 word, const Step& step) {
    const float value = (float)((word & 0x7fffffffU) | step.detail) * step.scale;
    return word_of_value(value, step.element) | (word & 0x80000000U);
}

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
NZ_DEVICE void words_of(const Quad& quad, const Step& step, u32 words[4]) {
    const u32 upper01 = __byte_perm(quad.head, quad.symbols, 0x5140);
    const u32 upper23 = __byte_perm(quad.head, quad.symbols, 0x7362);
    const u32 lower01 = __byte_perm(quad.low, quad.high, 0x5140);
    const u32 lower23 = __byte_perm(quad.low, quad.high, 0x7362);
    words[0] = word_of(__byte_perm(lower01, upper01, 0x5410));
    words[1] = word_of(__byte_perm(lower01, upper01, 0x7632));
    words[2] = word_of(__byte_perm(lower23, upper23, 0x5410));
    words[3] = word_of(__byte_perm(lower23, upper23, 0x7632));
    if (step.transform == NZ_TRANSFORM_NORMALISED) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) words[i] = denormalise(words[i]);
    }
    if (step.transform == NZ_TRANSFORM_GRID) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) words[i] = value_of_level(words[i], step);
    }
}

// Of four weights the upper halves of their words: in each byte what all have there.
struct Upper {
    u32 high, low;

    NZ_DEVICE explicit Upper(const Quad& quad)
        : high(select_bits(127 * ONES, quad.symbols >> 1, quad.head << 7)),
          low(select_bits(127 * ONES, quad.head >> 1, quad.symbols << 7)) {}

    NZ_DEVICE u32 first_two() const { return __byte_perm(low, high, 0x5140); }
    NZ_DEVICE u32 last_two() const { return __byte_perm(low, high, 0x7362); }
};

// The four words of a quad that are neither normalised nor on a grid.
NZ_DEVICE void split_words_of(const Quad& quad, bool has_rest, u32 words[4]) {
    if (has_rest) {
        words_of(quad, Step{NZ_TRANSFORM_FLOAT_SPLIT, 0, 0, 0}, words);
        return;
    }
    const Upper upper(quad);
    const u32 upper01 = upper.first_two(), upper23 = upper.last_two();
    words[0] = upper01 << 16;
    words[1] = upper01 & 0xffff0000U;
    words[2] = upper23 << 16;
    words[3] = upper23 & 0xffff0000U;
}

// Element types: how four of them come out of a quad, and how they are stored.
struct Float32 {
    typedef u32 Bits;
    // Eight neighbours, of four words of two bfloat16.
    static NZ_DEVICE void store_pairs(const u32 words[4], Bits* out) {
#pragma unroll
        for (u32 i = 0; i < 4; i += 2) {
            *(Vector16*)(out + 2 * i) = {{words[i] << 16, words[i] & 0xffff0000U, words[i + 1] << 16,
                                          words[i + 1] & 0xffff0000U}};
        }
    }
    static constexpr bool HAS_REST = true;   // mantissa bits behind the head
    static constexpr bool HAS_SHORT = true;  // whole blocks of two tiers of 2-bit codes
    struct Four {
        Vector16 all;

        NZ_DEVICE Four(const Quad& quad, const Step& step) { words_of(quad, step, all.word); }
        NZ_DEVICE explicit Four(const u32 words[4]) : all{{words[0], words[1], words[2], words[3]}} {}
        NZ_DEVICE void store(Bits* out) const { *(Vector16*)out = all; }
        NZ_DEVICE void store_eight(const Four& next, Bits* out) const {
            store(out);
            next.store(out + 4);
        }
        NZ_DEVICE Bits at(u32 i) const {
            const u32 low = i & 1 ? all.word[1] : all.word[0], high = i & 1 ? all.word[3] : all.word[2];
            return i & 2 ? high : low;
        }
    };
};

// Four elements of 16 bits.
struct Halves {
    Vector8 all;

    NZ_DEVICE void store(u16* out) const { *(Vector8*)out = all; }
    // With the four behind them, where 16 bytes are aligned.
    NZ_DEVICE void store_eight(const Halves& next, u16* out) const {
        *(Vector16*)out = {{all.word[0], all.word[1], next.all.word[0], next.all.word[1]}};
    }
    NZ_DEVICE u16 at(u32 i) const { return (u16)((i & 2 ? all.word[1] : all.word[0]) >> i % 2 * 16); }
};

struct Float16 {
    typedef u16 Bits;
    static constexpr bool HAS_REST = true;
    static constexpr bool HAS_SHORT = true;
    struct Four : Halves {
        NZ_DEVICE Four(const Quad& quad, const Step& step) {
            u32 words[4];
            words_of(quad, step, words);
            join(words);
        }
        NZ_DEVICE explicit Four(const u32 words[4]) { join(words); }

      private:
        NZ_DEVICE void join(const u32 words[4]) {
            all.word[0] = float16_of(words[0]) | float16_of(words[1]) << 16;
            all.word[1] = float16_of(words[2]) | float16_of(words[3]) << 16;
        }
    };
};

struct Bfloat16 {
    typedef u16 Bits;
    static NZ_DEVICE void store_pairs(const u32 words[4], Bits* out) {
        *(Vector16*)out = {{words[0], words[1], words[2], words[3]}};
    }
    static constexpr bool HAS_REST = false;
    static constexpr bool HAS_SHORT = true;
    struct Four : Halves {
        NZ_DEVICE Four(const Quad& quad, const Step& step) {
            if (step.transform != NZ_TRANSFORM_FLOAT_SPLIT) {
                u32 words[4];
                words_of(quad, step, words);
                join(words);
                return;
            }
            const Upper upper(quad);
            all.word[0] = upper.first_two();
            all.word[1] = upper.last_two();
        }
        NZ_DEVICE explicit Four(const u32 words[4]) { join(words); }

      private:
        NZ_DEVICE void join(const u32 words[4]) {
            all.word[0] = __byte_perm(words[0], words[1], 0x7632);
            all.word[1] = __byte_perm(words[2], words[3], 0x7632);
        }
    };
};

// 8-bit integers: the symbol has the upper bits of a magnitude, the head those below.
struct Integer {
    typedef u8 Bits;
    static constexpr bool HAS_SHORT = false;
    struct Four {
        u32 all;

        NZ_DEVICE Four(const Quad& quad, const Step& step) {
            const u32 raw = ((1U << step.detail) - 1) * ONES;
            const u32 magnitudes = (quad.symbols << step.detail & ~raw & 127 * ONES) |
                                   (quad.head >> (8 - step.detail) & raw);
            const u32 flip = step.element == NZ_CUDA_UINT8 ? 128 * ONES : 0;
            all = magnitudes ^ (quad.head & ONES) * 255 ^ flip;
        }
        NZ_DEVICE void store(Bits* out) const { *(u32*)out = all; }
        NZ_DEVICE Bits at(u32 i) const { return (u8)(all >> 8 * i); }
    };
};

}  // namespace nz

#endif  // NZ_CUDA_WORDS_CUH
