// XXH3-64 with seed 0 and the default secret: the checksum of the blob format.
//
// A scalar rendering of the published algorithm (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md,
// by Yann Collet). C++17, no dependencies, any byte order, any alignment.
#ifndef NZ_XXH3_HPP
#define NZ_XXH3_HPP

#include <cstddef>
#include <cstdint>

namespace nz {
namespace xxh3 {

inline constexpr std::uint64_t prime32_1 = 0x9E3779B1U;
inline constexpr std::uint64_t prime32_2 = 0x85EBCA77U;
inline constexpr std::uint64_t prime32_3 = 0xC2B2AE3DU;
inline constexpr std::uint64_t prime64_1 = 0x9E3779B185EBCA87U;
inline constexpr std::uint64_t prime64_2 = 0xC2B2AE3D27D4EB4FU;
inline constexpr std::uint64_t prime64_3 = 0x165667B19E3779F9U;
inline constexpr std::uint64_t prime64_4 = 0x85EBCA77C2B2AE63U;
inline constexpr std::uint64_t prime64_5 = 0x27D4EB2F165667C5U;
inline constexpr std::uint64_t prime_mx1 = 0x165667919E3779F9U;
inline constexpr std::uint64_t prime_mx2 = 0x9FB21C651E98DF25U;

inline constexpr std::size_t secret_size = 192;
inline constexpr std::size_t stripe_size = 64;
inline constexpr std::size_t stripes_per_block = (secret_size - stripe_size) / 8;
inline constexpr std::size_t block_size = stripes_per_block * stripe_size;

inline constexpr std::uint8_t secret[secret_size] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

inline std::uint64_t read32(const std::uint8_t* p) {
    return std::uint64_t{p[0]} | std::uint64_t{p[1]} << 8 | std::uint64_t{p[2]} << 16 | std::uint64_t{p[3]} << 24;
}

inline std::uint64_t read64(const std::uint8_t* p) { return read32(p) | read32(p + 4) << 32; }

inline std::uint64_t rotate_left(std::uint64_t x, unsigned n) { return x << n | x >> (64 - n); }

inline std::uint64_t swap_bytes(std::uint64_t x) {
    std::uint64_t swapped = 0;
    for (int i = 0; i < 8; ++i, x >>= 8) swapped = swapped << 8 | (x & 0xff);
    return swapped;
}

// The two halves of the 128-bit product, xored.
inline std::uint64_t multiply_fold(std::uint64_t a, std::uint64_t b) {
    const std::uint64_t a_low = a & 0xffffffff, a_high = a >> 32;
    const std::uint64_t b_low = b & 0xffffffff, b_high = b >> 32;
    const std::uint64_t low = a_low * b_low;
    const std::uint64_t cross_1 = a_high * b_low + (low >> 32);
    const std::uint64_t cross_2 = a_low * b_high + (cross_1 & 0xffffffff);
    const std::uint64_t upper = a_high * b_high + (cross_1 >> 32) + (cross_2 >> 32);
    const std::uint64_t lower = cross_2 << 32 | (low & 0xffffffff);
    return upper ^ lower;
}

inline std::uint64_t avalanche(std::uint64_t h) {
    h = (h ^ h >> 37) * prime_mx1;
    return h ^ h >> 32;
}

inline std::uint64_t avalanche_xxh64(std::uint64_t h) {
    h = (h ^ h >> 33) * prime64_2;
    h = (h ^ h >> 29) * prime64_3;
    return h ^ h >> 32;
}

inline std::uint64_t mix16(const std::uint8_t* p, const std::uint8_t* key) {
    return multiply_fold(read64(p) ^ read64(key), read64(p + 8) ^ read64(key + 8));
}

inline std::uint64_t hash_1_to_3(const std::uint8_t* p, std::size_t n) {
    const std::uint64_t combined =
        std::uint64_t{p[0]} << 16 | std::uint64_t{p[n / 2]} << 24 | std::uint64_t{p[n - 1]} | std::uint64_t{n} << 8;
    return avalanche_xxh64(combined ^ read32(secret) ^ read32(secret + 4));
}

inline std::uint64_t hash_4_to_8(const std::uint8_t* p, std::size_t n) {
    std::uint64_t h = (read32(p + n - 4) + (read32(p) << 32)) ^ read64(secret + 8) ^ read64(secret + 16);
    h = (h ^ rotate_left(h, 49) ^ rotate_left(h, 24)) * prime_mx2;
    h = (h ^ ((h >> 35) + n)) * prime_mx2;
    return h ^ h >> 28;
}

inline std::uint64_t hash_9_to_16(const std::uint8_t* p, std::size_t n) {
    const std::uint64_t low = read64(p) ^ read64(secret + 24) ^ read64(secret + 32);
    const std::uint64_t high = read64(p + n - 8) ^ read64(secret + 40) ^ read64(secret + 48);
    return avalanche(n + swap_bytes(low) + high + multiply_fold(low, high));
}

inline std::uint64_t hash_0_to_16(const std::uint8_t* p, std::size_t n) {
    if (n > 8) return hash_9_to_16(p, n);
    if (n > 3) return hash_4_to_8(p, n);
    if (n > 0) return hash_1_to_3(p, n);
    return avalanche_xxh64(read64(secret + 56) ^ read64(secret + 64));
}

// Pairs of 16 bytes from both ends towards the middle.
inline std::uint64_t hash_17_to_128(const std::uint8_t* p, std::size_t n) {
    std::uint64_t h = n * prime64_1;
    for (std::size_t i = 0; i <= (n - 1) / 32; ++i) {
        h += mix16(p + 16 * i, secret + 32 * i);
        h += mix16(p + n - 16 * (i + 1), secret + 32 * i + 16);
    }
    return avalanche(h);
}

inline std::uint64_t hash_129_to_240(const std::uint8_t* p, std::size_t n) {
    std::uint64_t h = n * prime64_1;
    for (std::size_t i = 0; i < 8; ++i) h += mix16(p + 16 * i, secret + 16 * i);
    h = avalanche(h);
    for (std::size_t i = 8; i < n / 16; ++i) h += mix16(p + 16 * i, secret + 16 * (i - 8) + 3);
    h += mix16(p + n - 16, secret + 119);
    return avalanche(h);
}

inline void accumulate(std::uint64_t* lanes, const std::uint8_t* stripe, const std::uint8_t* key) {
    for (std::size_t i = 0; i < 8; ++i) {
        const std::uint64_t value = read64(stripe + 8 * i);
        const std::uint64_t keyed = value ^ read64(key + 8 * i);
        lanes[i ^ 1] += value;
        lanes[i] += (keyed & 0xffffffff) * (keyed >> 32);
    }
}

inline void accumulate_block(std::uint64_t* lanes, const std::uint8_t* p, std::size_t stripes) {
    for (std::size_t i = 0; i < stripes; ++i) accumulate(lanes, p + stripe_size * i, secret + 8 * i);
}

inline void scramble(std::uint64_t* lanes) {
    const std::uint8_t* key = secret + secret_size - stripe_size;
    for (std::size_t i = 0; i < 8; ++i) {
        lanes[i] = (lanes[i] ^ lanes[i] >> 47 ^ read64(key + 8 * i)) * prime32_1;
    }
}

inline std::uint64_t merge(const std::uint64_t* lanes, std::uint64_t h) {
    const std::uint8_t* key = secret + 11;
    for (std::size_t i = 0; i < 8; i += 2) {
        h += multiply_fold(lanes[i] ^ read64(key + 8 * i), lanes[i + 1] ^ read64(key + 8 * i + 8));
    }
    return avalanche(h);
}

inline std::uint64_t hash_long(const std::uint8_t* p, std::size_t n) {
    std::uint64_t lanes[8] = {prime32_3, prime64_1, prime64_2, prime64_3, prime64_4, prime32_2, prime64_5, prime32_1};
    const std::size_t blocks = (n - 1) / block_size;
    for (std::size_t i = 0; i < blocks; ++i) {
        accumulate_block(lanes, p + block_size * i, stripes_per_block);
        scramble(lanes);
    }
    const std::size_t done = block_size * blocks;
    accumulate_block(lanes, p + done, (n - 1 - done) / stripe_size);
    accumulate(lanes, p + n - stripe_size, secret + secret_size - stripe_size - 7);
    return merge(lanes, n * prime64_1);
}

}  // namespace xxh3

// XXH3-64 (seed 0) of `size` bytes. `data` may be null when `size` is 0.
inline std::uint64_t xxh3_64(const std::uint8_t* data, std::size_t size) {
    if (size <= 16) return xxh3::hash_0_to_16(data, size);
    if (size <= 128) return xxh3::hash_17_to_128(data, size);
    if (size <= 240) return xxh3::hash_129_to_240(data, size);
    return xxh3::hash_long(data, size);
}

}  // namespace nz

#endif  // NZ_XXH3_HPP
