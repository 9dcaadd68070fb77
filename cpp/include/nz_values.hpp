// The weights that coded words stand for. Part of nz_blob.hpp, which tells more.
#ifndef NZ_VALUES_HPP
#define NZ_VALUES_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "nz_header.hpp"
#include "nz_layout.h"

namespace nz {

// A word that is no weight of the dtype comes from no writer: below, bits without a place are dropped.

// Undoes the normalising of subnormals: exponent 232 + p comes back as a subnormal whose top set bit is p.
inline std::uint32_t expand_subnormal(std::uint32_t word) {
    const std::uint32_t exponent = word >> 23 & 0xff, mantissa = word & 0x7fffff;
    if (exponent < NZ_SUBNORMAL_EXPONENT || exponent >= NZ_SUBNORMAL_EXPONENT + NZ_SUBNORMAL_EXPONENTS) return word;
    const std::uint32_t top = exponent - NZ_SUBNORMAL_EXPONENT;
    return (word & 0x80000000) | 1U << top | mantissa >> (NZ_WORD_MANTISSA_BITS - top);
}

// The float16 of the same value; what is too small becomes zero, and what is too great infinity.
inline std::uint32_t word_to_float16(std::uint32_t word) {
    constexpr std::uint32_t bias = 127 - 15, infinity = 0x7c00;
    const std::uint32_t sign = word >> 16 & 0x8000, exponent = word >> 23 & 0xff;
    const std::uint32_t mantissa = (word & 0x7fffff) >> (NZ_WORD_MANTISSA_BITS - NZ_MANTISSA_BITS_FLOAT16);
    if (exponent == 0xff) return sign | infinity | mantissa;
    if (exponent >= bias + 31) return sign | infinity;
    if (exponent > bias) return sign | (exponent - bias) << NZ_MANTISSA_BITS_FLOAT16 | mantissa;
    const std::uint32_t shift = bias + 1 - exponent;  // a subnormal: the leading one moves into the mantissa
    return shift > NZ_MANTISSA_BITS_FLOAT16 ? sign : sign | (0x400 | mantissa) >> shift;
}

inline float bits_to_float(std::uint32_t bits) {
    float value = 0;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline std::uint32_t float_to_bits(float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// `value` without its lowest `bits` bits, rounded to the nearest; of two, to the even one.
inline std::uint32_t drop_bits(std::uint32_t value, unsigned bits) {
    const std::uint32_t kept = value >> bits, dropped = value & ((1U << bits) - 1), half = 1U << (bits - 1);
    return kept + (dropped > half || (dropped == half && kept % 2 == 1) ? 1 : 0);
}

// The float16 nearest to the positive float32 of these bits.
inline std::uint32_t nearest_float16(std::uint32_t bits) {
    constexpr std::uint32_t bias = 127 - 15, infinity = 0x7c00;
    const std::uint32_t exponent = bits >> 23;
    if (exponent > bias) return std::min(drop_bits(bits, 13) - (bias << NZ_MANTISSA_BITS_FLOAT16), infinity);
    const std::uint32_t shift = 13 + bias + 1 - exponent;  // a subnormal: the leading one moves into the mantissa
    return shift > 24 ? 0 : drop_bits((bits & 0x7fffff) | 0x800000, shift);
}

// The bits, in the tensor's dtype, of the weight with this sign whose magnitude is nearest to the float32 of `bits`.
inline std::uint32_t nearest_bits(Dtype dtype, std::uint32_t sign, std::uint32_t bits) {
    switch (dtype) {
        case Dtype::float32: return sign << 31 | bits;
        case Dtype::float16: return sign << 15 | nearest_float16(bits);
        case Dtype::bfloat16: return sign << 15 | drop_bits(bits, 16);
        case Dtype::uint8:
        case Dtype::int8: break;  // never on a grid
    }
    return 0;
}

inline float unit_value(std::uint16_t unit) { return bits_to_float(std::uint32_t{unit & 0x7fffU} << 16); }

// The weight that a word on a grid stands for, of whose raw bits `known` are read: the middle of what it may be.
inline std::uint32_t grid_weight_bits(const Header& h, std::uint32_t word, std::uint16_t unit, unsigned known) {
    const bool is_centred = (unit & NZ_UNIT_CENTRED) != 0;
    const std::uint32_t centre = (1U << (22 - known)) - (is_centred ? 0 : 1U << (22 - h.kept_mantissa_bits));
    const double level = std::ldexp(static_cast<double>((word & 0x7fffffff) | centre), -NZ_WORD_MANTISSA_BITS);
    return nearest_bits(h.dtype, word >> 31, float_to_bits(static_cast<float>(level * double{unit_value(unit)})));
}

// The weight that a word stands for whose unit, number `unit`, names a codebook.
inline std::uint32_t codebook_weight_bits(const Header& h, std::uint32_t word, std::size_t unit) {
    const Codebooks& books = h.codebooks;
    const std::size_t group = books.group_of_unit.empty() ? 0 : books.group_of_unit[unit];
    // Symbols without a value come from no writer.
    const std::size_t symbol = word >> NZ_WORD_MANTISSA_BITS & 0xff, half = 2 * group + (word >> 31);
    const float value = symbol < books.symbols ? books.values[half * books.symbols + symbol] : 0;
    const std::uint32_t bits = float_to_bits(value * unit_value(h.units[unit]));
    return nearest_bits(h.dtype, bits >> 31, bits & 0x7fffffff);
}

// The uint8 or int8 that a word stands for.
inline std::uint32_t integer_bits(const Header& h, std::uint32_t word) {
    const std::uint32_t magnitude = (word & 0x7fffffff) >> (NZ_WORD_MANTISSA_BITS - h.kept_mantissa_bits) & 0x7f;
    const std::uint32_t bits = word >> 31 != 0 ? 0xff - magnitude : magnitude;
    return h.dtype == Dtype::uint8 ? bits ^ 0x80 : bits;
}

// Which unit the weight has that is the row-major element `element` and lies in block `block`.
inline std::size_t unit_index(const Header& h, std::uint64_t block, std::uint64_t element) {
    switch (h.units_of) {
        case UnitsOf::tensor: return 0;
        case UnitsOf::block: return static_cast<std::size_t>(block);
        case UnitsOf::row: return static_cast<std::size_t>(element / h.shape[1]);
    }
    return 0;
}

// The bits, in the tensor's dtype, of the weight that the coded `word` stands for, but on a grid and in codebooks.
inline std::uint32_t weight_bits(const Header& h, std::uint32_t word) {
    if (h.transform == Transform::normalised) word = expand_subnormal(word);
    switch (h.dtype) {
        case Dtype::float32: return word;
        case Dtype::float16: return word_to_float16(word);
        case Dtype::bfloat16: return word >> 16;
        case Dtype::uint8:
        case Dtype::int8: return integer_bits(h, word);
    }
    return 0;
}

}  // namespace nz

#endif  // NZ_VALUES_HPP
