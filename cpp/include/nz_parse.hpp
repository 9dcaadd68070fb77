// Reading the header of a blob: every check that docs/format.md asks of a reader before the payload is touched.
//
// C++17, no dependencies, throws nothing of its own. Part of nz_blob.hpp, which tells more.
#ifndef NZ_PARSE_HPP
#define NZ_PARSE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "nz_bytes.hpp"
#include "nz_header.hpp"
#include "nz_layout.h"

namespace nz {

// ---------------------------------------------------------------------------------------- header parsing

// Walks the bytes behind the fixed part of the header.
class TableReader {
  public:
    TableReader(ByteSpan blob, std::uint64_t start) : blob_(blob), at_(start) {}

    std::uint64_t at() const { return at_; }

    // The next `size` bytes, or null and an error when the blob ends before them. `size` is below 2^63.
    const std::uint8_t* take(std::uint64_t size, Error& error) {
        if (size > blob_.size - at_) {
            error = truncated(at_ + size, blob_.size);
            return nullptr;
        }
        const std::uint8_t* taken = blob_.data + at_;
        at_ += size;
        return taken;
    }

  private:
    ByteSpan blob_;
    std::uint64_t at_;  // never above the blob's size
};

inline Error check_magic_and_version(ByteSpan blob) {
    if (blob.size < NZ_HEADER_FIXED_SIZE) return truncated(NZ_HEADER_FIXED_SIZE, blob.size);
    if (load_u32(blob.data + NZ_OFFSET_MAGIC) != NZ_MAGIC_U32) return corrupt("the magic number is not that of a blob");
    const unsigned major = blob.data[NZ_OFFSET_MAJOR];
    if (major == NZ_VERSION_MAJOR) return no_error();
    return unsupported("major version " + std::to_string(major) + ", this reader knows 1");
}

inline Error known_code(const char* what, unsigned code, std::initializer_list<unsigned> known) {
    if (std::find(known.begin(), known.end(), code) != known.end()) return no_error();
    return unsupported("unknown " + std::string(what) + " " + std::to_string(code));
}

inline Error check_codes(const std::uint8_t* p) {
    const Error errors[] = {
        known_code("dtype", p[NZ_OFFSET_DTYPE],
                   {NZ_DTYPE_FLOAT32, NZ_DTYPE_FLOAT16, NZ_DTYPE_BFLOAT16, NZ_DTYPE_UINT8, NZ_DTYPE_INT8}),
        known_code("transform", p[NZ_OFFSET_TRANSFORM],
                   {NZ_TRANSFORM_FLOAT_SPLIT, NZ_TRANSFORM_NORMALISED, NZ_TRANSFORM_GRID, NZ_TRANSFORM_DELTA,
                    NZ_TRANSFORM_INTEGER, NZ_TRANSFORM_CODEBOOK}),
        known_code("coder", p[NZ_OFFSET_CODER], {NZ_CODER_TIERED_CASCADE, NZ_CODER_LAYERED_CASCADE}),
        known_code("layout", p[NZ_OFFSET_LAYOUT], {NZ_LAYOUT_ROW_MAJOR, NZ_LAYOUT_COLUMN_TILES}),
    };
    for (const Error& e : errors) {
        if (e.failed()) return e;
    }
    return no_error();
}

// The flags that there may be.
inline unsigned known_flags(unsigned transform) {
    switch (transform) {
        case NZ_TRANSFORM_GRID: return NZ_FLAGS_KNOWN_GRID;
        case NZ_TRANSFORM_CODEBOOK: return NZ_FLAGS_KNOWN_CODEBOOK;
        case NZ_TRANSFORM_DELTA: return NZ_FLAGS_KNOWN_DELTA;
        default: return NZ_FLAGS_KNOWN;
    }
}

inline Error check_limits(const std::uint8_t* p) {
    const unsigned rank = p[NZ_OFFSET_RANK], tiers = p[NZ_OFFSET_TIER_COUNT];
    if (rank > NZ_MAX_RANK) return corrupt("rank " + std::to_string(rank) + " is above 8");
    if (tiers < NZ_MIN_TIERS || tiers > NZ_MAX_TIERS) {
        return corrupt("number of tiers " + std::to_string(tiers) + " is not 1 to 8");
    }
    const unsigned flags = p[NZ_OFFSET_FLAGS], known = known_flags(p[NZ_OFFSET_TRANSFORM]);
    const unsigned units = flags & (NZ_FLAG_UNIT_PER_BLOCK | NZ_FLAG_UNIT_PER_ROW);
    if ((flags & ~known) != 0) return corrupt("unknown flags are set");
    if (units == (NZ_FLAG_UNIT_PER_BLOCK | NZ_FLAG_UNIT_PER_ROW)) return corrupt("units of blocks and of rows");
    return no_error();
}

inline void read_fixed_part(const std::uint8_t* p, Header& h) {
    h.major = p[NZ_OFFSET_MAJOR];
    h.minor = p[NZ_OFFSET_MINOR];
    h.payload_hash = load_u64(p + NZ_OFFSET_PAYLOAD_HASH);
    h.dtype = static_cast<Dtype>(p[NZ_OFFSET_DTYPE]);
    h.transform = static_cast<Transform>(p[NZ_OFFSET_TRANSFORM]);
    h.layout = static_cast<Layout>(p[NZ_OFFSET_LAYOUT]);
    h.kept_mantissa_bits = p[NZ_OFFSET_KEPT_BITS];
    h.lossless = (p[NZ_OFFSET_FLAGS] & NZ_FLAG_LOSSLESS) != 0;
    if ((p[NZ_OFFSET_FLAGS] & NZ_FLAG_UNIT_PER_BLOCK) != 0) h.units_of = UnitsOf::block;
    if ((p[NZ_OFFSET_FLAGS] & NZ_FLAG_UNIT_PER_ROW) != 0) h.units_of = UnitsOf::row;
    h.delta.is_difference = (p[NZ_OFFSET_FLAGS] & NZ_FLAG_DIFFERENCE) != 0;
    h.delta.base_is_blob = (p[NZ_OFFSET_FLAGS] & NZ_FLAG_BASE_IS_BLOB) != 0;
    h.block_length = load_u16(p + NZ_OFFSET_BLOCK_LENGTH);
    h.tile_width = load_u16(p + NZ_OFFSET_TILE_WIDTH);
}

// The most bits that a weight can keep.
inline unsigned most_kept_bits(const Header& h) {
    switch (h.transform) {
        case Transform::grid: return NZ_GRID_MAX_BITS;
        case Transform::integer: return NZ_INTEGER_MAX_BITS;
        case Transform::delta:
        case Transform::codebook: return 0;
        default: return dtype_mantissa_bits(h.dtype);
    }
}

// What a transform asks of the other fields.
inline Error check_transform(const Header& h, unsigned coder) {
    if (is_integer(h.dtype) != (h.transform == Transform::integer)) {
        return corrupt("dtype and transform do not go together");
    }
    const bool has_raw_bits = h.transform == Transform::float_split || h.transform == Transform::normalised ||
                              h.transform == Transform::grid;
    if (coder == NZ_CODER_LAYERED_CASCADE && !has_raw_bits) return corrupt("layers in a transform without any");
    if (h.transform != Transform::integer && h.transform != Transform::delta) return no_error();
    if (!h.lossless) return corrupt("integers or a delta that are not lossless");
    if (h.transform == Transform::delta && !h.delta.base_is_blob && h.layout != Layout::row_major) {
        return corrupt("a delta to plain elements that is not row-major");
    }
    return no_error();
}

inline Error check_kept_bits_and_block_length(const Header& h) {
    if (h.kept_mantissa_bits > most_kept_bits(h)) {
        return corrupt("mantissa bits kept " + std::to_string(h.kept_mantissa_bits) + " are more than there can be");
    }
    if (h.block_length < NZ_MIN_BLOCK_LENGTH || h.block_length > NZ_MAX_BLOCK_LENGTH ||
        h.block_length % NZ_BLOCK_LENGTH_STEP != 0) {
        return corrupt("block length " + std::to_string(h.block_length) + " is no multiple of 64 from 64 to 4096");
    }
    return no_error();
}

inline Error check_layout(const Header& h, unsigned rank) {
    if (h.layout == Layout::row_major) {
        return h.tile_width == 0 ? no_error() : mismatch("tile width of a row-major tensor", 0, h.tile_width);
    }
    if (rank != 2) return mismatch("rank of a tensor in column tiles", 2, rank);
    if (h.tile_width == 0 || h.tile_width % NZ_TILE_WIDTH_STEP != 0) {
        return corrupt("tile width " + std::to_string(h.tile_width) + " is no positive multiple of 64");
    }
    return no_error();
}

inline Error read_fixed(ByteSpan blob, Header& h) {
    if (Error e = check_magic_and_version(blob); e.failed()) return e;
    if (Error e = check_codes(blob.data); e.failed()) return e;
    if (Error e = check_limits(blob.data); e.failed()) return e;
    read_fixed_part(blob.data, h);
    if (Error e = check_transform(h, blob.data[NZ_OFFSET_CODER]); e.failed()) return e;
    if (Error e = check_kept_bits_and_block_length(h); e.failed()) return e;
    return check_layout(h, blob.data[NZ_OFFSET_RANK]);
}

// One LEB128 number; more than 58 bits are too many for a dimension.
inline Error read_dimension(TableReader& tables, std::uint64_t& value) {
    value = 0;
    for (unsigned shift = 0;; shift += 7) {
        Error e;
        const std::uint8_t* byte = tables.take(1, e);
        if (byte == nullptr) return e;
        value |= std::uint64_t{*byte & 0x7fU} << shift;
        if (*byte < 0x80) {
            const bool needless = *byte == 0 && shift > 0;
            return needless ? corrupt("a dimension is not as short as can be") : no_error();
        }
        if (shift + 7 >= 63) return corrupt("the shape has too many elements");
    }
}

inline Error read_shape(unsigned rank, TableReader& tables, Header& h) {
    h.elements = 1;
    for (unsigned i = 0; i < rank; ++i) {
        std::uint64_t dimension = 0;
        if (Error e = read_dimension(tables, dimension); e.failed()) return e;
        if (dimension == 0) return corrupt("a dimension is 0");
        if (h.elements > NZ_MAX_ELEMENTS / dimension) return corrupt("the shape has too many elements");
        h.elements *= dimension;
        h.shape.push_back(dimension);
    }
    if (h.elements > std::numeric_limits<std::size_t>::max() / dtype_size(h.dtype)) {
        return corrupt("the tensor does not fit into memory");
    }
    return no_error();
}

inline Error read_tiers(unsigned count, TableReader& tables, Header& h) {
    Error e;
    const std::uint8_t* widths = tables.take(divide_up(count, 4), e);
    if (widths == nullptr) return e;
    for (unsigned i = 0; i < count; ++i) {
        Tier tier;
        tier.width = 1 + (widths[i / 4] >> (2 * (i % 4)) & 3U);
        const std::uint8_t* symbols = tables.take(tier.escape(), e);
        if (symbols == nullptr) return e;
        tier.symbols.assign(symbols, symbols + tier.escape());
        h.tiers.push_back(std::move(tier));
    }
    if (count % 4 != 0 && widths[count / 4] >> (2 * (count % 4)) != 0) {
        return corrupt("unused bits of the tier widths are not zero");
    }
    return no_error();
}

// How many units the header has.
inline std::uint64_t count_units(const Header& h, std::uint64_t blocks) {
    switch (h.units_of) {
        case UnitsOf::tensor: return has_units(h) ? 1 : 0;
        case UnitsOf::block: return blocks;
        case UnitsOf::row: return h.shape[0];
    }
    return 0;
}

inline Error check_units_of(const Header& h) {
    if (h.units_of != UnitsOf::row) return no_error();
    if (h.layout == Layout::column_tiles && h.shape[1] % NZ_UNIT_ROW_COLUMNS_STEP == 0) return no_error();
    return corrupt("units of rows where rows cannot have any");
}

inline Error read_units(const std::uint8_t* bytes, std::uint64_t count, Header& h) {
    for (std::uint64_t i = 0; i < count; ++i) {
        const auto unit = static_cast<std::uint16_t>(load_u16(bytes + NZ_UNIT_SIZE * i));
        const unsigned value = unit & ~unsigned{NZ_UNIT_CENTRED};
        if (value < NZ_UNIT_LEAST || value >= NZ_UNIT_END) {
            return corrupt("unit " + std::to_string(unit) + " is not from 2^-100 to 2^100");
        }
        if (h.transform == Transform::codebook && unit != value) return corrupt("a codebook's unit is centred");
        h.units.push_back(unit);
    }
    return no_error();
}

// A float16 that is finite.
inline bool read_value(const std::uint8_t* bytes, float& value) {
    const unsigned bits = load_u16(bytes), exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
    if (exponent == 31) return false;
    const unsigned significand = exponent == 0 ? mantissa : mantissa | 0x400;
    value = std::ldexp(static_cast<float>(significand), static_cast<int>(std::max(exponent, 1U)) - 25);
    if (bits >> 15 != 0) value = -value;
    return true;
}

inline Error read_codebooks(TableReader& tables, std::uint64_t units, Codebooks& books) {
    Error e;
    const std::uint8_t* counts = tables.take(2, e);
    if (counts == nullptr) return e;
    const unsigned groups = counts[0];
    books.symbols = counts[1];
    if (groups < 1 || groups > NZ_CODEBOOK_MAX_GROUPS) {
        return corrupt("number of codebooks " + std::to_string(groups) + " is not 1 to 16");
    }
    if (books.symbols < 1 || books.symbols > NZ_CODEBOOK_MAX_SYMBOLS) {
        return corrupt("codebooks of " + std::to_string(books.symbols) + " symbols, not 1 to 32");
    }
    books.values.resize(std::size_t{2} * groups * books.symbols);
    for (float& value : books.values) {
        const std::uint8_t* bytes = tables.take(2, e);
        if (bytes == nullptr) return e;
        if (!read_value(bytes, value)) return corrupt("a value of a codebook is not finite");
    }
    if (groups == 1) return no_error();
    const std::uint8_t* of_units = tables.take(units, e);
    if (of_units == nullptr) return e;
    books.group_of_unit.assign(of_units, of_units + units);
    for (const unsigned group : books.group_of_unit) {
        if (group >= groups) return corrupt("group " + std::to_string(group) + " has no codebook");
    }
    return no_error();
}

inline Error read_delta(TableReader& tables, Delta& delta) {
    Error e;
    const std::uint8_t* bytes = tables.take(1 + 8, e);
    if (bytes == nullptr) return e;
    delta.exponent = bytes[0];
    delta.base_hash = load_u64(bytes + 1);
    return no_error();
}

inline Error read_layers(TableReader& tables, Header& h) {
    Error e;
    const std::uint8_t* counts = tables.take(2, e);
    if (counts == nullptr) return e;
    h.record_bits = counts[0];
    if (counts[1] < 1 || counts[1] > NZ_MAX_LAYERS) {
        return corrupt("number of layers " + std::to_string(counts[1]) + " is not 1 to 3");
    }
    unsigned before = h.record_bits;
    for (unsigned i = 0; i < counts[1]; ++i) {
        const std::uint8_t* bytes = tables.take(1 + 8, e);
        if (bytes == nullptr) return e;
        if (bytes[0] <= before) return corrupt("a layer with no more bits than the one before");
        before = bytes[0];
        h.layers.push_back({before, load_u64(bytes + 1), 0, 0});
    }
    return no_error();
}

// What only some transforms and coders have.
inline Error read_extensions(unsigned coder, std::uint64_t units, TableReader& tables, Header& h) {
    if (h.transform == Transform::codebook) return read_codebooks(tables, units, h.codebooks);
    if (h.transform == Transform::delta) return read_delta(tables, h.delta);
    return coder == NZ_CODER_LAYERED_CASCADE ? read_layers(tables, h) : no_error();
}

// The record sizes, the mantissa bits, the units, what extends them, and the checksum, which ends the header.
inline Error read_block_tables(ByteSpan blob, TableReader& tables, Header& h) {
    Error e;
    const std::uint64_t blocks = count_blocks(h);
    const bool bits_per_block = (blob.data[NZ_OFFSET_FLAGS] & NZ_FLAG_BITS_PER_BLOCK) != 0;
    const std::uint8_t* sizes = tables.take(2 * blocks, e);
    if (sizes == nullptr) return e;
    const std::uint8_t* bits = tables.take(bits_per_block ? blocks : 1, e);
    if (bits == nullptr) return e;
    if (Error wrong = check_units_of(h); wrong.failed()) return wrong;
    const std::uint64_t unit_count = count_units(h, blocks);
    const std::uint8_t* units = tables.take(NZ_UNIT_SIZE * unit_count, e);
    if (units == nullptr) return e;
    if (Error wrong = read_extensions(blob.data[NZ_OFFSET_CODER], unit_count, tables, h); wrong.failed()) return wrong;
    const ByteSpan checked{blob.data, static_cast<std::size_t>(tables.at())};
    const std::uint8_t* checksum = tables.take(NZ_CHECKSUM_SIZE, e);
    if (checksum == nullptr) return e;
    if (load_u32(checksum) != (checked.hash() & 0xffffffff)) return corrupt("the header checksum differs");

    h.record_offsets.push_back(0);
    for (std::uint64_t i = 0; i < blocks; ++i) {
        h.record_offsets.push_back(h.record_offsets.back() + std::uint64_t{load_u16(sizes + 2 * i)} * NZ_RECORD_ALIGN);
    }
    if (bits_per_block) h.mantissa_bits.assign(bits, bits + blocks);
    else h.mantissa_bits.assign(static_cast<std::size_t>(blocks), *bits);
    h.payload_size = h.record_offsets.back();
    return read_units(units, unit_count, h);
}

inline Error check_symbols(const Header& h) {
    std::vector<bool> listed(256, false);
    for (const Tier& tier : h.tiers) {
        for (const std::uint8_t symbol : tier.symbols) {
            if (listed[symbol]) return corrupt("symbol " + std::to_string(symbol) + " is listed twice");
            listed[symbol] = true;
        }
    }
    return no_error();
}

inline Error check_mantissa_bits(const Header& h) {
    const bool is_float = h.transform == Transform::float_split || h.transform == Transform::normalised;
    unsigned most = is_float ? dtype_mantissa_bits(h.dtype) : h.kept_mantissa_bits;
    if (!h.layers.empty()) {
        if (h.layers.back().bits > most_kept_bits(h)) return corrupt("a layer with more bits than there can be");
        most = std::min(most, h.layers.back().bits);
    }
    for (const unsigned m : h.mantissa_bits) {
        if (m > most) {
            return corrupt("a block with " + std::to_string(m) + " mantissa bits, more than the " +
                           (h.transform == Transform::grid ? "grid has" : "dtype has"));
        }
    }
    return no_error();
}

// Bytes of a record before its tail: codes of tier 0, head and rest.
inline std::uint64_t fixed_record_size(const Header& h, std::uint64_t slots, unsigned m) {
    const unsigned in_head = head_mantissa_bits(m);
    return plane_size(slots, h.tiers[0].width) + field_size(slots, in_head + 1) + field_size(slots, m - in_head);
}

inline Error check_records(const Header& h) {
    return for_each_block(h, [&h](const Block& block) {
        const std::uint64_t size = h.record_offsets[block.index + 1] - h.record_offsets[block.index];
        const unsigned m = bits_in_record(h, h.mantissa_bits[block.index]);
        const bool is_delta = h.transform == Transform::delta;
        const std::uint64_t least =
            is_delta ? plane_size(block.slots, h.tiers[0].width) : fixed_record_size(h, block.slots, m);
        // A delta has no record where weights are their base's.
        if (size >= least || (is_delta && size == 0)) return no_error();
        return corrupt("the record of block " + std::to_string(block.index) + " is too short");
    });
}

// Where layers lie: each at the next multiple of 4096 behind what is before it. Returns where the last one ends.
inline std::uint64_t locate_layers(std::uint64_t end, Header& h) {
    unsigned from = h.record_bits;
    for (Layer& layer : h.layers) {
        layer.offset = round_up(end, NZ_LAYER_ALIGN);
        for_each_block(h, [&](const Block& block) {
            const unsigned m = h.mantissa_bits[block.index];
            layer.size += layer_block_size(block.slots, std::min(from, m), std::min(layer.bits, m));
            return no_error();
        });
        from = layer.bits;
        end = layer.offset + layer.size;
    }
    return end;
}

// The payload follows the header, but for zeros; it, or the last layer, ends with the buffer.
inline Error locate_payload(ByteSpan blob, std::uint64_t header_size, Header& h) {
    h.header_size = header_size;
    h.payload_offset = round_up(header_size, NZ_RECORD_ALIGN);
    const std::uint64_t end = locate_layers(h.payload_offset + h.payload_size, h);
    if (end > blob.size) return truncated(end, blob.size);
    if (end < blob.size) return mismatch("size of the blob", end, blob.size);
    for (std::uint64_t i = header_size; i < h.payload_offset; ++i) {
        if (blob.data[i] != 0) return corrupt("the padding behind the header is not zero");
    }
    return no_error();
}

inline Error read_header(ByteSpan blob, Header& h) {
    if (Error e = read_fixed(blob, h); e.failed()) return e;
    TableReader tables(blob, NZ_OFFSET_SHAPE);
    if (Error e = read_shape(blob.data[NZ_OFFSET_RANK], tables, h); e.failed()) return e;
    if (Error e = read_tiers(blob.data[NZ_OFFSET_TIER_COUNT], tables, h); e.failed()) return e;
    if (Error e = read_block_tables(blob, tables, h); e.failed()) return e;
    if (Error e = check_symbols(h); e.failed()) return e;
    if (Error e = check_mantissa_bits(h); e.failed()) return e;
    if (Error e = check_records(h); e.failed()) return e;
    return locate_payload(blob, tables.at(), h);
}

// Reads and checks the header. The payload's checksum is left to `check_payload`.
inline Result<Header> parse_header(ByteSpan blob) {
    Result<Header> result;
    result.error = read_header(blob, result.value);
    return result;
}

// Compares a layer with its checksum, and the padding between it and `end`, where what is before it ends.
inline Error check_layer(ByteSpan blob, const Layer& layer, std::uint64_t end) {
    const ByteSpan bytes{blob.data + layer.offset, static_cast<std::size_t>(layer.size)};
    if (bytes.hash() != layer.hash) return corrupt("the checksum of a layer differs");
    for (std::uint64_t i = end; i < layer.offset; ++i) {
        if (blob.data[i] != 0) return corrupt("the padding before a layer is not zero");
    }
    return no_error();
}

// The same for the first `depth` layers.
inline Error check_layers(ByteSpan blob, const Header& h, std::size_t depth) {
    std::uint64_t end = h.payload_offset + h.payload_size;
    for (std::size_t i = 0; i < std::min(depth, h.layers.size()); ++i) {
        if (Error e = check_layer(blob, h.layers[i], end); e.failed()) return e;
        end = h.layers[i].offset + h.layers[i].size;
    }
    return no_error();
}

// Compares the payload with its checksum. `h` is the header of `blob`.
inline Error check_payload(ByteSpan blob, const Header& h) {
    const ByteSpan payload{blob.data + h.payload_offset, static_cast<std::size_t>(h.payload_size)};
    return payload.hash() == h.payload_hash ? no_error() : corrupt("the payload checksum differs");
}

}  // namespace nz

#endif  // NZ_PARSE_HPP
