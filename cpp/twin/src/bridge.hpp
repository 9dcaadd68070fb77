// What Rust sees of the C++ reader. Implemented in bridge.cpp, declared to Rust in lib.rs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "rust/cxx.h"

namespace nz::twin {

struct HeaderOutcome;
struct DecodeOutcome;

HeaderOutcome parse_header(rust::Slice<const std::uint8_t> blob);
DecodeOutcome decode(rust::Slice<const std::uint8_t> blob, std::size_t depth);
DecodeOutcome decode_delta(rust::Slice<const std::uint8_t> blob, rust::Slice<const std::uint8_t> base);
std::uint64_t xxh3_64(rust::Slice<const std::uint8_t> bytes);

}  // namespace nz::twin
