// What the header of a blob says, and what follows from it: where weights lie, and how large planes are.
//
// C++17, no dependencies, throws nothing of its own. Part of nz_blob.hpp, which tells more; nz_parse.hpp reads it.
#ifndef NZ_HEADER_HPP
#define NZ_HEADER_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "nz_bytes.hpp"
#include "nz_layout.h"

namespace nz {

// ----------------------------------------------------------------------------------------------- header

enum class Dtype : std::uint8_t {
    float32 = NZ_DTYPE_FLOAT32,
    float16 = NZ_DTYPE_FLOAT16,
    bfloat16 = NZ_DTYPE_BFLOAT16,
    uint8 = NZ_DTYPE_UINT8,
    int8 = NZ_DTYPE_INT8,
};

enum class Transform : std::uint8_t {
    float_split = NZ_TRANSFORM_FLOAT_SPLIT,
    normalised = NZ_TRANSFORM_NORMALISED,
    grid = NZ_TRANSFORM_GRID,
    delta = NZ_TRANSFORM_DELTA,
    integer = NZ_TRANSFORM_INTEGER,
    codebook = NZ_TRANSFORM_CODEBOOK,
};

// Which weights on a grid or of codebooks share a unit.
enum class UnitsOf : std::uint8_t { tensor, block, row };

enum class Layout : std::uint8_t { row_major = NZ_LAYOUT_ROW_MAJOR, column_tiles = NZ_LAYOUT_COLUMN_TILES };

// One step of the cascade: codes of `width` bits, 2^width - 1 symbols, and the escape as the last code.
struct Tier {
    unsigned width = 0;
    std::vector<std::uint8_t> symbols;

    unsigned escape() const { return (1U << width) - 1; }
};

// The values of codebooks: `symbols` of each sign, those of sign 0 first, for one group after the other.
struct Codebooks {
    unsigned symbols = 0;
    std::vector<float> values;
    std::vector<std::uint8_t> group_of_unit;  // empty if there is one group
};

// What tells a delta's base, and how residuals are to be taken.
struct Delta {
    bool is_difference = false;  // else XOR
    bool base_is_blob = false;   // else plain elements
    unsigned exponent = 0;       // `E`
    std::uint64_t base_hash = 0;
};

// Lower raw bits of all weights, apart from the records.
struct Layer {
    unsigned bits = 0;  // raw bits that weights have with it
    std::uint64_t hash = 0;
    std::uint64_t offset = 0;  // in the blob
    std::uint64_t size = 0;
};

// Everything the header says, checked. Sizes and offsets are in bytes.
struct Header {
    unsigned major = 0;
    unsigned minor = 0;
    std::uint64_t header_size = 0;  // with its checksum, without the padding behind it
    std::uint64_t payload_offset = 0;
    std::uint64_t payload_size = 0;
    std::uint64_t payload_hash = 0;
    Dtype dtype = Dtype::float32;
    Transform transform = Transform::float_split;
    Layout layout = Layout::row_major;
    unsigned kept_mantissa_bits = 0;
    bool lossless = false;             // decoding gives the source back bit for bit
    std::uint64_t block_length = 0;    // weights
    std::uint64_t tile_width = 0;      // columns; 0 when row-major
    std::vector<std::uint64_t> shape;  // outermost dimension first
    std::uint64_t elements = 0;        // the product of the shape
    std::vector<Tier> tiers;
    std::vector<std::uint64_t> record_offsets;  // in the payload; one more than there are blocks
    std::vector<std::uint8_t> mantissa_bits;    // stored bits "m" of each block
    UnitsOf units_of = UnitsOf::tensor;
    std::vector<std::uint16_t> units;           // with grid or codebooks: one, or one for each block or row
    Codebooks codebooks;
    Delta delta;
    unsigned record_bits = 0;  // the most raw bits of a weight in a record, if there are layers
    std::vector<Layer> layers;
};

inline bool is_integer(Dtype dtype) { return dtype == Dtype::uint8 || dtype == Dtype::int8; }

inline std::size_t dtype_size(Dtype dtype) { return dtype == Dtype::float32 ? 4 : is_integer(dtype) ? 1 : 2; }

inline unsigned dtype_mantissa_bits(Dtype dtype) {
    switch (dtype) {
        case Dtype::float32: return NZ_MANTISSA_BITS_FLOAT32;
        case Dtype::float16: return NZ_MANTISSA_BITS_FLOAT16;
        case Dtype::bfloat16: return NZ_MANTISSA_BITS_BFLOAT16;
        case Dtype::uint8:
        case Dtype::int8: return 0;
    }
    return 0;
}

// Whether weights have units: they are on a grid, or values of codebooks.
inline bool has_units(const Header& h) {
    return h.transform == Transform::grid || h.transform == Transform::codebook;
}

// Of the `m` raw bits of a block's weights, those in its record.
inline unsigned bits_in_record(const Header& h, unsigned m) {
    return h.layers.empty() ? m : std::min(m, h.record_bits);
}

// Of `m` stored mantissa bits, those in the head; the others are in the rest.
inline unsigned head_mantissa_bits(unsigned m) { return m < NZ_HEAD_MANTISSA_BITS ? m : NZ_HEAD_MANTISSA_BITS; }

// ------------------------------------------------------------------------------------- slots and blocks

// A run of slots that no block crosses: one tile of columns, or the whole tensor when row-major.
struct Region {
    std::uint64_t first_column = 0;
    std::uint64_t columns = 0;
    std::uint64_t rows = 0;
    std::uint64_t row_stride = 0;  // elements

    std::uint64_t slots() const { return columns * rows; }

    // The row-major element that the region's slot `slot` stores.
    std::uint64_t element(std::uint64_t slot) const {
        return slot / columns * row_stride + first_column + slot % columns;
    }
};

inline std::uint64_t region_count(const Header& h) {
    return h.layout == Layout::row_major ? 1 : divide_up(h.shape[1], h.tile_width);
}

inline Region region_at(const Header& h, std::uint64_t index) {
    if (h.layout == Layout::row_major) return {0, h.elements, 1, h.elements};
    const std::uint64_t first = index * h.tile_width;
    return {first, std::min(h.tile_width, h.shape[1] - first), h.shape[0], h.shape[1]};
}

inline std::uint64_t count_blocks(const Header& h) {
    const std::uint64_t regions = region_count(h);
    const std::uint64_t in_full_region = divide_up(region_at(h, 0).slots(), h.block_length);
    return (regions - 1) * in_full_region + divide_up(region_at(h, regions - 1).slots(), h.block_length);
}

struct Block {
    std::uint64_t index = 0;       // in the tensor
    std::uint64_t first_slot = 0;  // in the region
    std::uint64_t slots = 0;
    Region region;
};

// Calls `visit(block)` for every block in order until one fails.
template <class Visit>
Error for_each_block(const Header& h, Visit visit) {
    std::uint64_t index = 0;
    for (std::uint64_t r = 0; r < region_count(h); ++r) {
        const Region region = region_at(h, r);
        for (std::uint64_t slot = 0; slot < region.slots(); slot += h.block_length, ++index) {
            const std::uint64_t slots = std::min(h.block_length, region.slots() - slot);
            if (Error e = visit(Block{index, slot, slots, region}); e.failed()) return e;
        }
    }
    return no_error();
}

// ------------------------------------------------------------------------------------------------ plane sizes

// Bytes of `count` values of `width` bits. Widths 1 and 3 are bitmaps, one for each bit.
inline std::uint64_t plane_size(std::uint64_t count, unsigned width) {
    return width % 2 == 1 ? width * divide_up(count, 8) : divide_up(count * width, 8);
}

// The widest plane that fits into `bits` bits: 8, 4, 2 or 1.
inline unsigned widest_plane(unsigned bits) { return bits >= 8 ? 8 : bits >= 4 ? 4 : bits >= 2 ? 2 : 1; }

// Bytes of `count` values of `bits` bits, cut into planes.
inline std::uint64_t field_size(std::uint64_t count, unsigned bits) {
    std::uint64_t size = 0;
    for (; bits > 0; bits -= widest_plane(bits)) size += plane_size(count, widest_plane(bits));
    return size;
}

// Raw bits `first` to `end`, counted from the top, of which no word has others in the same byte.
struct BitRange {
    unsigned first = 0;
    unsigned end = 0;

    unsigned bits() const { return end > first ? end - first : 0; }
};

// The raw bits `from` to `to` of words, in pieces that lie in one byte each.
inline std::array<BitRange, 3> byte_pieces(unsigned from, unsigned to) {
    const auto piece = [&](unsigned first, unsigned end) { return BitRange{std::max(first, from), std::min(end, to)}; };
    return {piece(0, 7), piece(7, 15), piece(15, 23)};
}

// Bytes that a layer has for a block of `slots` weights: their raw bits `from` to `to`.
inline std::uint64_t layer_block_size(std::uint64_t slots, unsigned from, unsigned to) {
    std::uint64_t size = 0;
    for (const BitRange& piece : byte_pieces(from, to)) size += field_size(slots, piece.bits());
    return round_up(size, NZ_RECORD_ALIGN);
}

}  // namespace nz

#endif  // NZ_HEADER_HPP
