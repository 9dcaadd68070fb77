// Deltas: what tells a tensor from its base. Beside nz_blob.hpp, which tells more.
#ifndef NZ_DELTA_HPP
#define NZ_DELTA_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "nz_blob.hpp"

namespace nz {

// Bits one after the other, from the low end of each byte up.
class BitReader {
  public:
    explicit BitReader(ByteSpan bytes) : bytes_(bytes) {}

    // The next bit; 0 and an overrun that is remembered when there is none.
    std::uint32_t take() {
        const std::uint64_t at = next_++;
        return at / 8 < bytes_.size ? bytes_.data[at / 8] >> (at % 8) & 1U : 0;
    }

    // Whether the bits so far fill the bytes, but for up to 3 of padding.
    bool is_full() const {
        const std::uint64_t used = divide_up(next_, 8);
        return used <= bytes_.size && bytes_.size - used < NZ_RECORD_ALIGN;
    }

  private:
    ByteSpan bytes_;
    std::uint64_t next_ = 0;
};

// The weight that lies `residual` from `base`, of `width` bits, where all bit patterns are in the order of their values.
inline std::uint32_t moved(std::uint32_t base, std::uint32_t residual, unsigned width) {
    const std::uint32_t sign = 1U << (width - 1), all = sign | (sign - 1);
    const std::uint32_t place = (base & sign) == 0 ? base + sign : all - base;
    // Even residuals go up, odd ones down.
    const std::uint32_t steps = residual / 2 + residual % 2;
    const std::uint32_t to = (residual % 2 == 0 ? place + steps : place - steps) & all;
    return (to & sign) == 0 ? all - to : to - sign;
}

// The bits of a weight, from its symbol, its base's bits and the raw bits that come next. False: such a symbol comes from
// no writer.
inline bool restore_weight(const Header& h, unsigned symbol, BitReader& raw, std::uint32_t& bits) {
    if (symbol == 0) return true;
    const unsigned width = static_cast<unsigned>(8 * dtype_size(h.dtype));
    const std::uint32_t sign = 1U << (width - 1);
    const std::uint32_t exponent = (bits & (sign - 1)) >> dtype_mantissa_bits(h.dtype);
    const std::uint32_t lift =
        std::min<std::uint32_t>(exponent > h.delta.exponent ? exponent - h.delta.exponent : 0, NZ_DELTA_MAX_LIFT);
    if (symbol <= lift || symbol - lift > width) return false;
    const unsigned length = symbol - lift;
    std::uint32_t residual = 1U << (length - 1);
    for (unsigned place = 0; place + 1 < length; ++place) residual |= raw.take() << place;
    bits = h.delta.is_difference ? moved(bits, residual, width) : bits ^ residual;
    return true;
}

inline std::uint32_t load_element(const Header& h, std::uint64_t element, const std::vector<std::uint8_t>& elements) {
    const std::uint8_t* at = elements.data() + static_cast<std::size_t>(element) * dtype_size(h.dtype);
    return dtype_size(h.dtype) == 4 ? load_u32(at) : load_u16(at);
}

// Turns the base's elements of a block into the delta's.
inline Error restore_block(const Header& h, const Block& block, ByteSpan bytes, std::vector<std::uint8_t>& elements) {
    if (bytes.size == 0) return no_error();
    RecordReader record(bytes);
    const Plane codes = record.take(block.slots, h.tiers[0].width);
    const std::vector<std::uint8_t> symbols = read_symbols(record, h, codes);
    if (record.overrun()) return unfilled(block);
    BitReader raw(record.left());
    for (std::size_t i = 0; i < symbols.size(); ++i) {
        const std::uint64_t element = block.region.element(block.first_slot + i);
        std::uint32_t bits = load_element(h, element, elements);
        if (!restore_weight(h, symbols[i], raw, bits)) return corrupt("a residual with an impossible length");
        store_element(h, element, bits, elements);
    }
    return raw.is_full() ? no_error() : unfilled(block);
}

inline Error check_base_header(const Header& h, ByteSpan base) {
    Result<Header> own = parse_header(base);
    if (!own) return std::move(own.error);
    const Header& b = own.value;
    if (ByteSpan{base.data, static_cast<std::size_t>(b.header_size)}.hash() != h.delta.base_hash) {
        return corrupt("the delta is to another base");
    }
    if (b.dtype == h.dtype && b.shape == h.shape && b.layout == h.layout && b.tile_width == h.tile_width) {
        return no_error();
    }
    return corrupt("dtype, shape or layout of the base are others");
}

// The elements of the base: `base` itself, or what it decodes to.
inline Result<std::vector<std::uint8_t>> base_elements(const Header& h, ByteSpan base) {
    if (h.delta.base_is_blob) {
        if (Error e = check_base_header(h, base); e.failed()) return {{}, std::move(e)};
        return decode(base);
    }
    if (base.hash() != h.delta.base_hash) return {{}, corrupt("the delta is to another base")};
    if (base.size != static_cast<std::size_t>(h.elements) * dtype_size(h.dtype)) {
        return {{}, mismatch("bytes of the base", h.elements * dtype_size(h.dtype), base.size)};
    }
    return {std::vector<std::uint8_t>(base.data, base.data + base.size), no_error()};
}

// The tensor of the delta `blob`, given its base: row-major elements, or a blob. As `decode`.
inline Result<std::vector<std::uint8_t>> decode_delta(ByteSpan blob, ByteSpan base) {
    Result<Header> header = parse_header(blob);
    if (!header) return {{}, std::move(header.error)};
    const Header& h = header.value;
    if (h.transform != Transform::delta) return {{}, unsupported("not a delta")};
    if (Error e = check_payload(blob, h); e.failed()) return {{}, std::move(e)};
    Result<std::vector<std::uint8_t>> result = base_elements(h, base);
    if (!result) return result;
    Error e = for_each_block(
        h, [&](const Block& block) { return restore_block(h, block, record_of(blob, h, block), result.value); });
    if (e.failed()) return {{}, std::move(e)};
    return result;
}

}  // namespace nz

#endif  // NZ_DELTA_HPP
