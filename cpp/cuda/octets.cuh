// From a block that is ready to its weights, eight neighbours at a time.
#ifndef NZ_CUDA_OCTETS_CUH
#define NZ_CUDA_OCTETS_CUH

#include "codebook.cuh"

namespace nz {

// Gives this lane's weights to `sink`, as (first slot, four weights, four more, their step), row after row. All lanes of a warp
// have the same rows; weights at or behind the block's end are of no value.
template <class Sink>
NZ_DEVICE void for_each_octet(const NzCudaWeight& weight, const Block& block, const Shared& shared, Sink& sink) {
    const Ranks ranks(block.codes.counts, block.below.at + total_before(shared.counts));
#pragma unroll 1
    for (u32 row = 0; row < 2; ++row) {
        if (warp_id() * NZ_CUDA_WARP_SLOTS + row * ROW_SLOTS >= block.n) break;
        const u32 slot = first_octet() + row * ROW_SLOTS;
        Quad first = {}, second = {};
        Step step = {0, 0, weight.element, weight.raw_bits};
        if (slot < block.n) {
            step.transform = weight.transform;
            if (has_units(weight)) step = shared.place->step(weight, slot);
            const Octet symbols = symbols_of(block.codes.of_row(row), weight.tier_widths[0], weight.symbols[0],
                                             block.below.symbols, ranks.of_row(row));
            first.symbols = symbols.first;
            second.symbols = symbols.second;
            read_mantissas(block.record, block.raw, block.m, block.n, slot, first, second);
            if (block.known & NZ_CUDA_CUT) {
                add_middle(weight, block.known & ~NZ_CUDA_CUT, first);
                add_middle(weight, block.known & ~NZ_CUDA_CUT, second);
            }
            if (weight.transform == NZ_TRANSFORM_CODEBOOK) {
                const float* const book = weight.books + step.detail * NZ_CUDA_BOOK;
                first = values_of_book(first, book, step);
                second = values_of_book(second, book, step);
                step.transform = NZ_TRANSFORM_FLOAT_SPLIT;
            }
        }
        sink.take(slot, first, second, step);
    }
}

// What gives the weights of a blob, block after block.
struct Blob {
    static constexpr bool HAS_SHORT = true;  // blobs may be such as decode_even takes

    const NzCudaWeight& weight;
    Shared shared;
    Block block;

    NZ_DEVICE Blob(const NzCudaWeight& blob, u8* memory) : weight(blob), shared(memory, blob) {}

    // What kernels may use of the shared memory beside.
    NZ_DEVICE u8* rest() const { return shared.rest; }

    // As open_block.
    NZ_DEVICE bool open(const NzCudaBlock& info, u64 index, u32 n) {
        return open_block(weight, info, index, n, shared, block);
    }

    template <class Sink>
    NZ_DEVICE void give(Sink& sink) const {
        for_each_octet(weight, block, shared, sink);
    }
};

}  // namespace nz

#endif  // NZ_CUDA_OCTETS_CUH
