// Bytes, and what to say when they are wrong. Part of nz_blob.hpp, which tells more.
#ifndef NZ_BYTES_HPP
#define NZ_BYTES_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "nz_xxh3.hpp"

namespace nz {

// ---------------------------------------------------------------------------------------------- results

enum class Status : std::uint8_t {
    ok = 0,
    truncated = 1,    // the buffer ends before the blob does
    corrupt = 2,      // the bytes are not what the format allows, or a checksum differs
    unsupported = 3,  // valid, but made by a later version
};

struct Error {
    Status status = Status::ok;
    std::string message;

    bool failed() const { return status != Status::ok; }
};

// A value, or the reason why there is none.
template <class T>
struct Result {
    T value{};
    Error error;

    explicit operator bool() const { return !error.failed(); }
};

inline Error no_error() { return {}; }
inline Error corrupt(std::string message) { return {Status::corrupt, "corrupt blob: " + std::move(message)}; }
inline Error unsupported(std::string message) {
    return {Status::unsupported, "unsupported blob: " + std::move(message)};
}
inline Error truncated(std::uint64_t needed, std::uint64_t found) {
    return {Status::truncated,
            "truncated blob: at least " + std::to_string(needed) + " bytes expected, " + std::to_string(found) +
                " found"};
}
inline Error mismatch(const char* what, std::uint64_t expected, std::uint64_t found) {
    return corrupt(std::string(what) + ": " + std::to_string(expected) + " expected, " + std::to_string(found) +
                   " found");
}

// ------------------------------------------------------------------------------------------------ bytes

// Borrowed bytes. `data` may be null when `size` is 0.
struct ByteSpan {
    const std::uint8_t* data = nullptr;
    std::size_t size = 0;

    std::uint64_t hash() const { return xxh3_64(data, size); }
};

inline std::uint32_t load_u16(const std::uint8_t* p) { return std::uint32_t{p[0]} | std::uint32_t{p[1]} << 8; }
inline std::uint32_t load_u32(const std::uint8_t* p) { return load_u16(p) | load_u16(p + 2) << 16; }
inline std::uint64_t load_u64(const std::uint8_t* p) {
    return std::uint64_t{load_u32(p)} | std::uint64_t{load_u32(p + 4)} << 32;
}

inline std::uint64_t divide_up(std::uint64_t a, std::uint64_t b) { return a / b + (a % b != 0); }

// `value` rounded up to a multiple of `step`; the caller keeps `value` below 2^64 - step.
inline std::uint64_t round_up(std::uint64_t value, std::uint64_t step) { return divide_up(value, step) * step; }

}  // namespace nz

#endif  // NZ_BYTES_HPP
