// A reader of the blob format, written from docs/format.md alone: one compressed tensor in, its bytes out.
//
//     nz::Result<std::vector<std::uint8_t>> weights = nz::decode({data, size});
//     if (!weights) std::fprintf(stderr, "%s\n", weights.error.message.c_str());
//
// This is the version to read, not the one to run in a hot loop: it follows the page step by step and
// keeps every function short. C++17, no dependencies. It throws nothing of its own; any input, however
// broken, gives an error and no access outside the span. Memory stays within a small multiple of the blob's
// size, because the tables of a header that claims more weights than its blob holds are refused.
#ifndef NZ_BLOB_HPP
#define NZ_BLOB_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "nz_header.hpp"
#include "nz_layout.h"
#include "nz_xxh3.hpp"

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

// The words of one block of `slots` weights with `m` stored mantissa bits; false when the planes do not fill
// the record.
inline bool decode_block(const Header& h, ByteSpan bytes, std::uint64_t slots, unsigned m,
                          std::vector<std::uint32_t>& words) {
    RecordReader record(bytes);
    const unsigned in_head = head_mantissa_bits(m);
    const Plane codes = record.take(slots, h.tiers[0].width);
    const std::vector<std::uint32_t> head = read_field(record, slots, in_head + 1);
    const std::vector<std::uint32_t> rest = read_field(record, slots, m - in_head);

    std::vector<std::uint8_t> symbols(static_cast<std::size_t>(slots), 0);
    std::vector<std::uint32_t> pending(static_cast<std::size_t>(slots));
    for (std::size_t i = 0; i < pending.size(); ++i) pending[i] = static_cast<std::uint32_t>(i);
    apply_tier(codes, h.tiers[0], pending, symbols);
    read_tail(record, h, pending, symbols);
    words.resize(static_cast<std::size_t>(slots));
    for (std::size_t i = 0; i < words.size(); ++i) words[i] = join_word(symbols[i], head[i], rest[i], m, in_head);
    return record.is_full();
}

// ------------------------------------------------------------------------------------------------ dtypes

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

// The bits, in the tensor's dtype, of the weight that a word on a grid with this unit stands for.
inline std::uint32_t grid_weight_bits(const Header& h, std::uint32_t word, std::uint16_t unit) {
    const std::uint32_t centre = (unit & NZ_UNIT_CENTRED) != 0 ? 1U << (22 - h.kept_mantissa_bits) : 0;
    const float scale = bits_to_float(std::uint32_t{unit & 0x7fffU} << 16);
    const double level = std::ldexp(static_cast<double>((word & 0x7fffffff) | centre), -NZ_WORD_MANTISSA_BITS);
    const std::uint32_t sign = word >> 31, bits = float_to_bits(static_cast<float>(level * double{scale}));
    switch (h.dtype) {
        case Dtype::float32: return sign << 31 | bits;
        case Dtype::float16: return sign << 15 | nearest_float16(bits);
        case Dtype::bfloat16: return sign << 15 | drop_bits(bits, 16);
    }
    return 0;
}

// The unit of the weight that is the row-major element `element` and lies in block `block`.
inline std::uint16_t unit_at(const Header& h, std::uint64_t block, std::uint64_t element) {
    switch (h.units_of) {
        case UnitsOf::tensor: return h.units[0];
        case UnitsOf::block: return h.units[block];
        case UnitsOf::row: return h.units[element / h.shape[1]];
    }
    return 0;
}

// The bits, in the tensor's dtype, of the weight that the coded `word` stands for, but on a grid.
inline std::uint32_t weight_bits(const Header& h, std::uint32_t word) {
    if (h.transform == Transform::normalised) word = expand_subnormal(word);
    switch (h.dtype) {
        case Dtype::float32: return word;
        case Dtype::float16: return word_to_float16(word);
        case Dtype::bfloat16: return word >> 16;
    }
    return 0;
}

// ---------------------------------------------------------------------------------------- whole tensors

inline void store_block(const Header& h, const Block& block, const std::vector<std::uint32_t>& words,
                        std::vector<std::uint8_t>& out) {
    const std::size_t size = dtype_size(h.dtype);
    for (std::size_t i = 0; i < words.size(); ++i) {
        const std::uint64_t element = block.region.element(block.first_slot + i);
        const std::uint32_t bits = h.transform == Transform::grid
                                       ? grid_weight_bits(h, words[i], unit_at(h, block.index, element))
                                       : weight_bits(h, words[i]);
        const std::size_t at = static_cast<std::size_t>(element) * size;
        for (std::size_t byte = 0; byte < size; ++byte) out[at + byte] = static_cast<std::uint8_t>(bits >> (8 * byte));
    }
}

inline Error decode_blocks(ByteSpan blob, const Header& h, std::vector<std::uint8_t>& out) {
    std::vector<std::uint32_t> words;
    return for_each_block(h, [&](const Block& block) {
        const std::uint64_t start = h.record_offsets[block.index], end = h.record_offsets[block.index + 1];
        const ByteSpan record{blob.data + h.payload_offset + start, static_cast<std::size_t>(end - start)};
        if (!decode_block(h, record, block.slots, h.mantissa_bits[block.index], words)) {
            return corrupt("the planes of block " + std::to_string(block.index) + " do not fill its record");
        }
        store_block(h, block, words, out);
        return no_error();
    });
}

// The tensor of `blob`: its bytes in its dtype, row-major, little-endian. The checksums of header and payload are
// compared.
inline Result<std::vector<std::uint8_t>> decode(ByteSpan blob) {
    Result<std::vector<std::uint8_t>> result;
    Result<Header> header = parse_header(blob);
    if (!header) return {{}, std::move(header.error)};
    const Header& h = header.value;
    if (Error e = check_payload(blob, h); e.failed()) return {{}, std::move(e)};
    result.value.resize(static_cast<std::size_t>(h.elements) * dtype_size(h.dtype));
    if (Error e = decode_blocks(blob, h, result.value); e.failed()) return {{}, std::move(e)};
    return result;
}

}  // namespace nz

#endif  // NZ_BLOB_HPP
