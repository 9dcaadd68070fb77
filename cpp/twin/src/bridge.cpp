#include "nz-cpp-twin/src/bridge.hpp"

#include <utility>

#include "nz-cpp-twin/src/lib.rs.h"
#include "nz_delta.hpp"

namespace nz::twin {
namespace {

ByteSpan span(rust::Slice<const std::uint8_t> bytes) { return {bytes.data(), bytes.size()}; }

// Strings cross the bridge as UTF-8, which plain ASCII messages are.
Failure failure(const Error& error) { return {static_cast<std::uint8_t>(error.status), error.message}; }

template <class T>
rust::Vec<T> copy(const std::vector<T>& values) {
    rust::Vec<T> copied;
    copied.reserve(values.size());
    for (const T& value : values) copied.push_back(value);
    return copied;
}

rust::Vec<TierFields> copy_tiers(const Header& header) {
    rust::Vec<TierFields> tiers;
    for (const Tier& tier : header.tiers) {
        tiers.push_back({static_cast<std::uint8_t>(tier.width), copy(tier.symbols)});
    }
    return tiers;
}

HeaderFields fields(const Header& h) {
    HeaderFields f{};
    f.major = static_cast<std::uint8_t>(h.major);
    f.minor = static_cast<std::uint8_t>(h.minor);
    f.dtype = static_cast<std::uint8_t>(h.dtype);
    f.transform = static_cast<std::uint8_t>(h.transform);
    f.mantissa_bits = static_cast<std::uint8_t>(h.kept_mantissa_bits);
    f.lossless = h.lossless;
    f.block_length = h.block_length;
    f.tile_width = h.tile_width;
    f.shape = copy(h.shape);
    f.tiers = copy_tiers(h);
    f.record_offsets = copy(h.record_offsets);
    f.widths = copy(h.mantissa_bits);
    f.units = copy(h.units);
    f.units_of = static_cast<std::uint8_t>(h.units_of);
    f.payload_offset = h.payload_offset;
    f.payload_size = h.payload_size;
    f.payload_hash = h.payload_hash;
    return f;
}

DecodeOutcome outcome(Result<std::vector<std::uint8_t>> result) {
    return {failure(result.error), std::make_unique<std::vector<std::uint8_t>>(std::move(result.value))};
}

}  // namespace

HeaderOutcome parse_header(rust::Slice<const std::uint8_t> blob) {
    const Result<Header> result = nz::parse_header(span(blob));
    return {failure(result.error), result ? fields(result.value) : HeaderFields{}};
}

DecodeOutcome decode(rust::Slice<const std::uint8_t> blob, std::size_t depth) {
    return outcome(nz::decode(span(blob), depth));
}

DecodeOutcome decode_delta(rust::Slice<const std::uint8_t> blob, rust::Slice<const std::uint8_t> base) {
    return outcome(nz::decode_delta(span(blob), span(base)));
}

std::uint64_t xxh3_64(rust::Slice<const std::uint8_t> bytes) { return nz::xxh3_64(bytes.data(), bytes.size()); }

}  // namespace nz::twin
