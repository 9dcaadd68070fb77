#include "nz-cpp-twin/src/simt.hpp"

#include <cstddef>

#include "kernels.hpp"
#include "nz-cpp-twin/src/simt.rs.h"

namespace nz::twin {

rust::String launch(rust::Str kernel, const Grid& grid, rust::Slice<const std::uint8_t> argument) {
    simt::Config config;
    config.grid = {grid.x, grid.y, 1};
    config.threads = grid.threads;
    config.shared = grid.shared;
    config.seed = grid.seed;
    return simt::launch({kernel.data(), kernel.size()}, config, argument.data(), argument.size());
}

// Sizes and offsets of the structs in nz_cuda.h, in the order in which tests list them.
rust::Vec<std::uint64_t> layout() {
    rust::Vec<std::uint64_t> numbers;
    for (const std::size_t number : {
             sizeof(NzCudaBlock), offsetof(NzCudaBlock, first_slot), offsetof(NzCudaBlock, offset),
             offsetof(NzCudaBlock, record), offsetof(NzCudaBlock, known),
             offsetof(NzCudaBlock, m),
             sizeof(NzCudaWeight), offsetof(NzCudaWeight, blob), offsetof(NzCudaWeight, blocks),
             offsetof(NzCudaWeight, blob_len), offsetof(NzCudaWeight, payload), offsetof(NzCudaWeight, elements),
             offsetof(NzCudaWeight, block_len), offsetof(NzCudaWeight, blocks_per_tile),
             offsetof(NzCudaWeight, tiers), offsetof(NzCudaWeight, transform), offsetof(NzCudaWeight, record_room),
             offsetof(NzCudaWeight, tail_room), offsetof(NzCudaWeight, tier_widths), offsetof(NzCudaWeight, is_even),
             offsetof(NzCudaWeight, symbols),
             offsetof(NzCudaWeight, units), offsetof(NzCudaWeight, units_of), offsetof(NzCudaWeight, raw_bits),
             offsetof(NzCudaWeight, element), offsetof(NzCudaWeight, tile_width), offsetof(NzCudaWeight, columns),
             offsetof(NzCudaWeight, tile_slots), offsetof(NzCudaWeight, books), offsetof(NzCudaWeight, groups),
             offsetof(NzCudaWeight, layer_offsets), offsetof(NzCudaWeight, layer_starts),
             offsetof(NzCudaWeight, layer_bits), offsetof(NzCudaWeight, layers), offsetof(NzCudaWeight, layer_at),
             offsetof(NzCudaWeight, joined_at), offsetof(NzCudaWeight, known_bits),
             offsetof(NzCudaWeight, selectors),
             sizeof(NzCudaDecode), offsetof(NzCudaDecode, weight), offsetof(NzCudaDecode, out),
             offsetof(NzCudaDecode, status), offsetof(NzCudaDecode, order), offsetof(NzCudaDecode, first_block),
             offsetof(NzCudaDecode, first_slot), offsetof(NzCudaDecode, slots), offsetof(NzCudaDecode, columns),
             offsetof(NzCudaDecode, tile_width), offsetof(NzCudaDecode, tiles), offsetof(NzCudaDecode, indices),
             offsetof(NzCudaDecode, index_count), offsetof(NzCudaDecode, rows), offsetof(NzCudaDecode, row_len),
             offsetof(NzCudaDecode, index_size), offsetof(NzCudaDecode, lean_blocks),
             sizeof(NzCudaProduct), offsetof(NzCudaProduct, weight), offsetof(NzCudaProduct, x),
             offsetof(NzCudaProduct, y), offsetof(NzCudaProduct, partial), offsetof(NzCudaProduct, status),
             offsetof(NzCudaProduct, k), offsetof(NzCudaProduct, n), offsetof(NzCudaProduct, m),
             offsetof(NzCudaProduct, x_type), offsetof(NzCudaProduct, is_rows),
             offsetof(NzCudaProduct, chunk_segments), offsetof(NzCudaProduct, block_chunks),
             offsetof(NzCudaProduct, row_chunks), offsetof(NzCudaProduct, row_reciprocal),
             offsetof(NzCudaProduct, tile_width), offsetof(NzCudaProduct, splits),
             offsetof(NzCudaProduct, split_blocks), offsetof(NzCudaProduct, c), offsetof(NzCudaProduct, c_row_stride),
             offsetof(NzCudaProduct, c_column_stride), offsetof(NzCudaProduct, alpha), offsetof(NzCudaProduct, beta),
             offsetof(NzCudaProduct, items), offsetof(NzCudaProduct, row_passes),
             sizeof(NzCudaDelta), offsetof(NzCudaDelta, base), offsetof(NzCudaDelta, sizes),
             offsetof(NzCudaDelta, block_len), offsetof(NzCudaDelta, blocks_per_tile), offsetof(NzCudaDelta, exponent),
             offsetof(NzCudaDelta, is_difference), offsetof(NzCudaDelta, room),
             sizeof(NzCudaDeltaDecode), offsetof(NzCudaDeltaDecode, decode), offsetof(NzCudaDeltaDecode, delta),
             offsetof(NzCudaDeltaDecode, element),
             sizeof(NzCudaDeltaProduct), offsetof(NzCudaDeltaProduct, product), offsetof(NzCudaDeltaProduct, delta),
             sizeof(NzCudaEncode), offsetof(NzCudaEncode, source), offsetof(NzCudaEncode, elements),
             offsetof(NzCudaEncode, rows), offsetof(NzCudaEncode, columns), offsetof(NzCudaEncode, tile_columns),
             offsetof(NzCudaEncode, element), offsetof(NzCudaEncode, block_len),
             offsetof(NzCudaEncode, blocks_per_tile), offsetof(NzCudaEncode, is_tiled), offsetof(NzCudaEncode, parts),
             offsetof(NzCudaEncode, sampled_of), offsetof(NzCudaEncode, counts), offsetof(NzCudaEncode, transform),
             offsetof(NzCudaEncode, kept), offsetof(NzCudaEncode, no_subnormals), offsetof(NzCudaEncode, tiers),
             offsetof(NzCudaEncode, tier_widths), offsetof(NzCudaEncode, places), offsetof(NzCudaEncode, measured),
             offsetof(NzCudaEncode, blocks), offsetof(NzCudaEncode, payload), offsetof(NzCudaEncode, status),
             offsetof(NzCudaEncode, record_room), std::size_t{NZ_CUDA_SURVEY_COUNTS}, std::size_t{NZ_CUDA_SURVEY_SIZE},
         }) {
        numbers.push_back(number);
    }
    return numbers;
}

}  // namespace nz::twin
