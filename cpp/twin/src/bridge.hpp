// What Rust sees of the C++ reader. Implemented in bridge.cpp, declared to Rust in lib.rs.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "rust/cxx.h"

namespace nz::twin {

struct HeaderOutcome;
struct DecodeOutcome;

HeaderOutcome parse_header(rust::Slice<const std::uint8_t> blob);
DecodeOutcome decode(rust::Slice<const std::uint8_t> blob);
std::uint64_t xxh3_64(rust::Slice<const std::uint8_t> bytes);

}  // namespace nz::twin
