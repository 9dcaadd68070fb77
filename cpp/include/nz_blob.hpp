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
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "nz_bytes.hpp"
#include "nz_header.hpp"
#include "nz_layout.h"
#include "nz_parse.hpp"
#include "nz_record.hpp"
#include "nz_values.hpp"

namespace nz {

// As many layers as there are.
constexpr std::size_t all_layers = std::numeric_limits<std::size_t>::max();

// -------------------------------------------------------------------------------------------- layers

// The first `depth` layers of a blob, block after block.
class LayerReader {
  public:
    LayerReader(ByteSpan blob, const Header& h, std::size_t depth) : blob_(blob), header_(h) {
        for (std::size_t i = 0; i < std::min(depth, h.layers.size()); ++i) at_.push_back(h.layers[i].offset);
    }

    // Raw bits that are known of a weight with `m` of them.
    unsigned known(unsigned m) const {
        if (at_.size() == header_.layers.size()) return m;
        return std::min(m, at_.empty() ? header_.record_bits : header_.layers[at_.size() - 1].bits);
    }

    // Adds what the layers have for the next block, of `m` raw bits, to its words. (How much that is follows from the
    // header, and that it is there was checked.)
    void refine(unsigned m, std::vector<std::uint32_t>& words) {
        unsigned from = header_.record_bits;
        for (std::size_t i = 0; i < at_.size(); ++i) {
            const unsigned to = header_.layers[i].bits;
            const std::uint64_t size = layer_block_size(words.size(), std::min(from, m), std::min(to, m));
            RecordReader bytes({blob_.data + at_[i], static_cast<std::size_t>(size)});
            for (const BitRange& piece : byte_pieces(std::min(from, m), std::min(to, m))) {
                if (piece.bits() > 0) add(read_field(bytes, words.size(), piece.bits()), piece.end, words);
            }
            at_[i] += size;
            from = to;
        }
        if (header_.transform != Transform::grid && known(m) < m) centre(known(m), words);
    }

  private:
    ByteSpan blob_;
    const Header& header_;
    std::vector<std::uint64_t> at_;  // in each layer, where the next block's bits start

    static void add(const std::vector<std::uint32_t>& bits, unsigned end, std::vector<std::uint32_t>& words) {
        for (std::size_t i = 0; i < words.size(); ++i) words[i] |= bits[i] << (NZ_WORD_MANTISSA_BITS - end);
    }

    // The middle of what words may be of which `known` raw bits are known. Levels have theirs from their unit.
    void centre(unsigned known, std::vector<std::uint32_t>& words) const {
        const std::uint32_t least = header_.dtype == Dtype::float16 ? NZ_FLOAT16_LEAST_NORMAL_EXPONENT : 1;
        for (std::uint32_t& word : words) {
            if ((word >> NZ_WORD_MANTISSA_BITS & 0xff) >= least) word |= 1U << (22 - known);
        }
    }
};

// ---------------------------------------------------------------------------------------- whole tensors

// Writes the lowest bytes of `bits` as element `element` of `out`.
inline void store_element(const Header& h, std::uint64_t element, std::uint32_t bits, std::vector<std::uint8_t>& out) {
    const std::size_t size = dtype_size(h.dtype), at = static_cast<std::size_t>(element) * size;
    for (std::size_t byte = 0; byte < size; ++byte) out[at + byte] = static_cast<std::uint8_t>(bits >> (8 * byte));
}

// The words of a block, of which so many raw bits are `known` on a grid.
inline void store_block(const Header& h, const Block& block, const std::vector<std::uint32_t>& words, unsigned known,
                        std::vector<std::uint8_t>& out) {
    for (std::size_t i = 0; i < words.size(); ++i) {
        const std::uint64_t element = block.region.element(block.first_slot + i);
        std::uint32_t bits = 0;
        if (has_units(h)) {
            const std::size_t unit = unit_index(h, block.index, element);
            bits = h.transform == Transform::grid ? grid_weight_bits(h, words[i], h.units[unit], known)
                                                  : codebook_weight_bits(h, words[i], unit);
        } else {
            bits = weight_bits(h, words[i]);
        }
        store_element(h, element, bits, out);
    }
}

inline ByteSpan record_of(ByteSpan blob, const Header& h, const Block& block) {
    const std::uint64_t start = h.record_offsets[block.index], end = h.record_offsets[block.index + 1];
    return {blob.data + h.payload_offset + start, static_cast<std::size_t>(end - start)};
}

inline Error unfilled(const Block& block) {
    return corrupt("the planes of block " + std::to_string(block.index) + " do not fill its record");
}

inline Error decode_blocks(ByteSpan blob, const Header& h, std::size_t depth, std::vector<std::uint8_t>& out) {
    std::vector<std::uint32_t> words;
    LayerReader layers(blob, h, depth);
    return for_each_block(h, [&](const Block& block) {
        const unsigned m = h.mantissa_bits[block.index];
        if (!decode_block(h, record_of(blob, h, block), block.slots, bits_in_record(h, m), words)) return unfilled(block);
        layers.refine(m, words);
        store_block(h, block, words, layers.known(h.kept_mantissa_bits), out);
        return no_error();
    });
}

// The tensor of `blob`: its bytes in its dtype, row-major, little-endian. Of its layers the first `depth` are read; with
// fewer than all, weights are the middle of what they may be. The checksums of all that is read are compared. A
// delta needs its base: `decode_delta`, in nz_delta.hpp.
inline Result<std::vector<std::uint8_t>> decode(ByteSpan blob, std::size_t depth = all_layers) {
    Result<std::vector<std::uint8_t>> result;
    Result<Header> header = parse_header(blob);
    if (!header) return {{}, std::move(header.error)};
    const Header& h = header.value;
    if (h.transform == Transform::delta) return {{}, unsupported("a delta, which needs its base")};
    if (Error e = check_payload(blob, h); e.failed()) return {{}, std::move(e)};
    if (Error e = check_layers(blob, h, depth); e.failed()) return {{}, std::move(e)};
    result.value.resize(static_cast<std::size_t>(h.elements) * dtype_size(h.dtype));
    if (Error e = decode_blocks(blob, h, depth, result.value); e.failed()) return {{}, std::move(e)};
    return result;
}

}  // namespace nz

#endif  // NZ_BLOB_HPP
