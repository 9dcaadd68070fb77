// The record of a block: planes of bits, and the cascade of symbols. Part of nz_blob.hpp, which tells more.
#ifndef NZ_RECORD_HPP
#define NZ_RECORD_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "nz_header.hpp"
#include "nz_layout.h"

namespace nz {

// ----------------------------------------------------------------------------------------------- planes

// `count` packed values of `width` bits: 1, 2, 3, 4 or 8.
struct Plane {
    const std::uint8_t* bytes = nullptr;
    std::uint64_t count = 0;
    unsigned width = 0;

    unsigned value(std::uint64_t i) const {
        if (width == 8) return bytes[i];
        if (width % 2 == 1) return bitmap_value(i);
        return grouped_value(i);
    }

  private:
    // Widths 1 and 3: a bitmap of the lowest bits first, one of the highest last.
    unsigned bitmap_value(std::uint64_t i) const {
        unsigned value = 0;
        for (unsigned bit = 0; bit < width; ++bit) {
            value |= (bytes[bit * plane_size(count, 1) + i / 8] >> (i % 8) & 1U) << bit;
        }
        return value;
    }

    unsigned grouped_value(std::uint64_t i) const {
        const std::uint64_t group_length = NZ_PLANE_GROUP_SIZE * 8 / width;
        const std::uint64_t group = i / group_length, in_group = i % group_length;
        const std::uint64_t length = std::min(group_length, count - group * group_length);
        const std::uint64_t stride = plane_size(length, width);
        const unsigned byte = bytes[group * NZ_PLANE_GROUP_SIZE + in_group % stride];
        return byte >> (width * (in_group / stride)) & ((1U << width) - 1);
    }
};

// ---------------------------------------------------------------------------------------- block decoding

// Hands out the planes of one block record in order. A plane that would end behind the record is replaced
// by an empty one, and `overrun` remembers it.
class RecordReader {
  public:
    explicit RecordReader(ByteSpan record) : record_(record) {}

    Plane take(std::uint64_t count, unsigned width) {
        const std::uint64_t size = plane_size(count, width);
        if (size > record_.size - used_) {
            overrun_ = true;
            return {};
        }
        const Plane plane{record_.data + used_, count, width};
        used_ += static_cast<std::size_t>(size);
        return plane;
    }

    // What no plane was taken from yet.
    ByteSpan left() const { return {record_.data + used_, record_.size - used_}; }

    // Whether a plane would have ended behind the record.
    bool overrun() const { return overrun_; }

    // Whether the planes so far fill the record, up to its padding.
    bool is_full() const { return !overrun_ && round_up(used_, NZ_RECORD_ALIGN) == record_.size; }

  private:
    ByteSpan record_;
    std::size_t used_ = 0;
    bool overrun_ = false;
};

// A field of `bits` bits a value, cut into planes from the most significant bit down.
inline std::vector<std::uint32_t> read_field(RecordReader& record, std::uint64_t count, unsigned bits) {
    std::vector<std::uint32_t> values(static_cast<std::size_t>(count), 0);
    for (; bits > 0; bits -= widest_plane(bits)) {
        const Plane plane = record.take(count, widest_plane(bits));
        for (std::uint64_t i = 0; i < plane.count; ++i) values[i] = values[i] << plane.width | plane.value(i);
    }
    return values;
}

// Gives a symbol to every slot of `pending` that this tier lists; the escapes stay pending, in order.
inline void apply_tier(const Plane& codes, const Tier& tier, std::vector<std::uint32_t>& pending,
                       std::vector<std::uint8_t>& symbols) {
    std::size_t escapes = 0;
    for (std::uint64_t i = 0; i < codes.count; ++i) {
        const unsigned code = codes.value(i);
        if (code == tier.escape()) pending[escapes++] = pending[i];
        else symbols[pending[i]] = tier.symbols[code];
    }
    pending.resize(escapes);
}

// The tail: the tiers behind the first, then the literals.
inline void read_tail(RecordReader& record, const Header& h, std::vector<std::uint32_t>& pending,
                      std::vector<std::uint8_t>& symbols) {
    for (std::size_t t = 1; t < h.tiers.size(); ++t) {
        apply_tier(record.take(pending.size(), h.tiers[t].width), h.tiers[t], pending, symbols);
    }
    const Plane literals = record.take(pending.size(), 8);
    for (std::uint64_t i = 0; i < literals.count; ++i) {
        symbols[pending[i]] = static_cast<std::uint8_t>(literals.value(i));
    }
}

// sign, exponent and the top `m` bits of the mantissa as a float32 word. Of the mantissa, `head` has the
// top `in_head` bits above the sign and `rest` the others.
inline std::uint32_t join_word(std::uint32_t exponent, std::uint32_t head, std::uint32_t rest, unsigned m,
                               unsigned in_head) {
    const std::uint32_t mantissa = (head >> 1) << (m - in_head) | rest;
    return (head & 1) << 31 | exponent << NZ_WORD_MANTISSA_BITS | mantissa << (NZ_WORD_MANTISSA_BITS - m);
}

// The symbols of all slots, whose codes of the first tier are `codes`.
inline std::vector<std::uint8_t> read_symbols(RecordReader& record, const Header& h, const Plane& codes) {
    std::vector<std::uint8_t> symbols(static_cast<std::size_t>(codes.count), 0);
    std::vector<std::uint32_t> pending(symbols.size());
    for (std::size_t i = 0; i < pending.size(); ++i) pending[i] = static_cast<std::uint32_t>(i);
    apply_tier(codes, h.tiers[0], pending, symbols);
    read_tail(record, h, pending, symbols);
    return symbols;
}

// The words of one block of `slots` weights with `m` mantissa bits in the record; false when the planes do not
// fill it.
inline bool decode_block(const Header& h, ByteSpan bytes, std::uint64_t slots, unsigned m,
                          std::vector<std::uint32_t>& words) {
    RecordReader record(bytes);
    const unsigned in_head = head_mantissa_bits(m);
    const Plane codes = record.take(slots, h.tiers[0].width);
    const std::vector<std::uint32_t> head = read_field(record, slots, in_head + 1);
    const std::vector<std::uint32_t> rest = read_field(record, slots, m - in_head);

    const std::vector<std::uint8_t> symbols = read_symbols(record, h, codes);
    words.resize(static_cast<std::size_t>(slots));
    for (std::size_t i = 0; i < words.size(); ++i) words[i] = join_word(symbols[i], head[i], rest[i], m, in_head);
    return record.is_full();
}

}  // namespace nz

#endif  // NZ_RECORD_HPP
