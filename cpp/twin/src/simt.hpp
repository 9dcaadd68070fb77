// What Rust sees of the kernels on the CPU. Implemented in simt.cpp, declared to Rust in simt.rs.
#pragma once

#include <cstdint>

#include "rust/cxx.h"

namespace nz::twin {

struct Grid;

rust::String launch(rust::Str kernel, const Grid& grid, rust::Slice<const std::uint8_t> argument);
rust::Vec<std::uint64_t> layout();

}  // namespace nz::twin
