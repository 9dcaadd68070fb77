// The header of a blob: every check that docs/format.md asks of a reader before the payload is touched.
//
// C++17, no dependencies, throws nothing of its own. Part of nz_blob.hpp, which tells more.
#ifndef NZ_HEADER_HPP
#define NZ_HEADER_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "nz_layout.h"
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

// ----------------------------------------------------------------------------------------------- header

enum class Dtype : std::uint8_t {
    float32 = NZ_DTYPE_FLOAT32,
    float16 = NZ_DTYPE_FLOAT16,
    bfloat16 = NZ_DTYPE_BFLOAT16,
};

enum class Transform : std::uint8_t {
    float_split = NZ_TRANSFORM_FLOAT_SPLIT,
    normalised = NZ_TRANSFORM_NORMALISED,
    grid = NZ_TRANSFORM_GRID,
};

// Which weights of a grid share a unit.
enum class UnitsOf : std::uint8_t { tensor, block, row };

enum class Layout : std::uint8_t { row_major = NZ_LAYOUT_ROW_MAJOR, column_tiles = NZ_LAYOUT_COLUMN_TILES };

// One step of the cascade: codes of `width` bits, 2^width - 1 symbols, and the escape as the last code.
struct Tier {
    unsigned width = 0;
    std::vector<std::uint8_t> symbols;

    unsigned escape() const { return (1U << width) - 1; }
};

// Everything the header says, checked. Sizes and offsets are in bytes.
struct Header {
    unsigned major = 0;
    unsigned minor = 0;
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
    std::vector<std::uint16_t> units;           // on a grid: one, or one for each block or row
};

inline std::size_t dtype_size(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

inline unsigned dtype_mantissa_bits(Dtype dtype) {
    switch (dtype) {
        case Dtype::float32: return NZ_MANTISSA_BITS_FLOAT32;
        case Dtype::float16: return NZ_MANTISSA_BITS_FLOAT16;
        case Dtype::bfloat16: return NZ_MANTISSA_BITS_BFLOAT16;
    }
    return 0;
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
        known_code("dtype", p[NZ_OFFSET_DTYPE], {NZ_DTYPE_FLOAT32, NZ_DTYPE_FLOAT16, NZ_DTYPE_BFLOAT16}),
        known_code("transform", p[NZ_OFFSET_TRANSFORM], {NZ_TRANSFORM_FLOAT_SPLIT, NZ_TRANSFORM_NORMALISED, NZ_TRANSFORM_GRID}),
        known_code("coder", p[NZ_OFFSET_CODER], {NZ_CODER_TIERED_CASCADE}),
        known_code("layout", p[NZ_OFFSET_LAYOUT], {NZ_LAYOUT_ROW_MAJOR, NZ_LAYOUT_COLUMN_TILES}),
    };
    for (const Error& e : errors) {
        if (e.failed()) return e;
    }
    return no_error();
}

inline Error check_limits(const std::uint8_t* p) {
    const unsigned rank = p[NZ_OFFSET_RANK], tiers = p[NZ_OFFSET_TIER_COUNT];
    if (rank > NZ_MAX_RANK) return corrupt("rank " + std::to_string(rank) + " is above 8");
    if (tiers < NZ_MIN_TIERS || tiers > NZ_MAX_TIERS) {
        return corrupt("number of tiers " + std::to_string(tiers) + " is not 1 to 8");
    }
    const bool on_grid = p[NZ_OFFSET_TRANSFORM] == NZ_TRANSFORM_GRID;
    const unsigned flags = p[NZ_OFFSET_FLAGS], known = on_grid ? NZ_FLAGS_KNOWN_GRID : NZ_FLAGS_KNOWN;
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
    h.block_length = load_u16(p + NZ_OFFSET_BLOCK_LENGTH);
    h.tile_width = load_u16(p + NZ_OFFSET_TILE_WIDTH);
}

// The most bits that a weight can keep.
inline unsigned most_kept_bits(const Header& h) {
    return h.transform == Transform::grid ? NZ_GRID_MAX_BITS : dtype_mantissa_bits(h.dtype);
}

inline Error check_kept_bits_and_block_length(const Header& h) {
    if (h.kept_mantissa_bits > most_kept_bits(h)) {
        return corrupt("mantissa bits kept " + std::to_string(h.kept_mantissa_bits) + " are more than the dtype has");
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

// How many units the header of a grid has.
inline std::uint64_t count_units(const Header& h, std::uint64_t blocks) {
    switch (h.units_of) {
        case UnitsOf::tensor: return h.transform == Transform::grid ? 1 : 0;
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
        h.units.push_back(unit);
    }
    return no_error();
}

// The record sizes, the mantissa bits, the units and the checksum, which ends the header.
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
    const bool on_grid = h.transform == Transform::grid;
    const unsigned most = on_grid ? h.kept_mantissa_bits : dtype_mantissa_bits(h.dtype);
    for (const unsigned m : h.mantissa_bits) {
        if (m > most) {
            return corrupt("a block with " + std::to_string(m) + " mantissa bits, more than the " +
                           (on_grid ? "grid has" : "dtype has"));
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
        const std::uint64_t least = fixed_record_size(h, block.slots, h.mantissa_bits[block.index]);
        if (size >= least) return no_error();
        return corrupt("the record of block " + std::to_string(block.index) + " is too short");
    });
}

// The payload follows the header, but for zeros, and ends with the buffer.
inline Error locate_payload(ByteSpan blob, std::uint64_t header_size, Header& h) {
    h.payload_offset = round_up(header_size, NZ_RECORD_ALIGN);
    const std::uint64_t end = h.payload_offset + h.payload_size;
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

// Compares the payload with its checksum. `h` is the header of `blob`.
inline Error check_payload(ByteSpan blob, const Header& h) {
    const ByteSpan payload{blob.data + h.payload_offset, static_cast<std::size_t>(h.payload_size)};
    return payload.hash() == h.payload_hash ? no_error() : corrupt("the payload checksum differs");
}

}  // namespace nz

#endif  // NZ_HEADER_HPP
