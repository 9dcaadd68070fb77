// Decoding to memory: whole tensors, ranges of slots (so also tiles of columns, and rows), and gathered rows.
#ifndef NZ_CUDA_DECODE_CUH
#define NZ_CUDA_DECODE_CUH

#include "lean.cuh"
#include "octets.cuh"

namespace nz {

// Where the weights of a block go: elements of an output, counted from its start.
struct Places {
    u32 from, to;  // the slots of the block that are wanted
    // The element of the block's slot 0, which may itself not be wanted.
    long long first;
    // Of a block in column tiles that goes to row-major memory: `first` is where the tile's part of the row starts that
    // slot 0 lies in, at `column`. `tile_columns` is 0 in stored order.
    u32 column, tile_columns;
    u32 reciprocal;  // of tile_columns
    u64 columns;
    bool aligned;  // elements of four slots are neighbours, at a multiple of 4

    NZ_DEVICE u64 element_of(u32 slot) const {
        if (tile_columns == 0) return (u64)(first + (long long)slot);
        const u32 at = column + slot;
        const u32 row = row_of(at, tile_columns, reciprocal);
        return (u64)first + row * columns + (at - row * tile_columns);
    }
};

// Stores the weights of a block.
template <class Element>
struct Store : Places {
    typename Element::Bits* out;

    NZ_DEVICE void take(u32 slot, const Quad& first_four, const Quad& next_four, const Step& step) {
        const typename Element::Four four(first_four, step), next(next_four, step);
        put(slot, four);
        put(slot + 4, next);
    }

    NZ_DEVICE void take_words(u32 slot, const u32 words[8]) {
        put(slot, typename Element::Four(words));
        put(slot + 4, typename Element::Four(words + 4));
    }

    NZ_DEVICE void clear(u64 element) { out[element] = 0; }

  private:
    NZ_DEVICE void put(u32 slot, const typename Element::Four& four) {
        if (aligned && slot >= from && slot + 4 <= to) {
            four.store(out + element_of(slot));
            return;
        }
#pragma unroll 1
        for (u32 i = 0; i < 4; ++i) {
            if (slot + i >= from && slot + i < to) out[element_of(slot + i)] = four.at(i);
        }
    }
};

// Where the strides of a whole block go.
template <class Element>
struct StrideStore {
    typename Element::Bits* out;  // where this lane's first eight weights go
    u64 next, after_next;         // from there to stride 1, and to stride 2

    static constexpr bool HAS_REST = Element::HAS_REST;

    // `first` is where slot 0 goes. In rows of `columns`, if that is not 0: of a tile of 64, 128 or 256, `tile_columns`.
    NZ_DEVICE StrideStore(typename Element::Bits* first, u32 tile_columns, u64 columns)
        : out(first), next(STRIDE), after_next(2 * STRIDE) {
        const u32 slot = first_even_slot();
        if (tile_columns == 0) {
            out += slot;
            return;
        }
        out += slot / GROUP_SLOTS * (GROUP_SLOTS / tile_columns) * columns + first_in_stride();
        if (tile_columns <= 2 * STRIDE) after_next = 2 * STRIDE / tile_columns * columns;
        if (tile_columns == STRIDE) next = columns;
    }

    template <u32 S>
    NZ_DEVICE void take_eight(const Quad& first, const Quad& second, bool) {
        const Step split = {NZ_TRANSFORM_FLOAT_SPLIT, 0, 0, 0};
        const typename Element::Four four(first, split);
        four.store_eight(typename Element::Four(second, split), at<S>());
    }

    NZ_DEVICE void clear() {
        const Quad zeros = {};
        take_eight<0>(zeros, zeros, false);
        take_eight<1>(zeros, zeros, false);
        take_eight<2>(zeros, zeros, false);
        take_eight<3>(zeros, zeros, false);
    }

  private:
    template <u32 S>
    NZ_DEVICE typename Element::Bits* at() const {
        return out + (S % 2 == 0 ? 0 : next) + (S < 2 ? 0 : after_next);
    }
};

// The block that a thread block is to decode next.
struct Task {
    NzCudaBlock info;
    u32 index;  // of the block
    u32 n;
    bool wanted;
};

NZ_DEVICE Task range_task(const NzCudaDecode& job, Places& store) {
    const u32 index = job.first_block + blockIdx.x;
    const NzCudaBlock info = job.weight.blocks[index];
    const u32 n = (u32)(job.weight.blocks[index + 1].first_slot - info.first_slot);
    store.first = (long long)(info.first_slot - job.first_slot);
    const long long end = (long long)job.slots - store.first;
    store.from = store.first < 0 ? (u32)-store.first : 0;
    store.to = end < (long long)n ? (u32)end : n;
    store.aligned = store.first % 4 == 0;
    return {info, index, n, true};
}

NZ_DEVICE Task tile_task(const NzCudaDecode& job, Places& store) {
    const u64 first_column = (u64)blockIdx.y * job.tile_width, left = job.columns - first_column;
    const u32 columns = left < job.tile_width ? (u32)left : job.tile_width;
    const u32 in_tile = (u32)(job.rows * columns), slot = blockIdx.x * job.weight.block_len;
    if (slot >= in_tile) return {};  // the last tile has fewer blocks
    const u32 n = smaller(job.weight.block_len, in_tile - slot);
    store.from = 0;
    store.to = n;
    store.column = slot % columns;
    store.first = (long long)(slot / columns * job.columns + first_column);
    store.tile_columns = columns;
    store.reciprocal = reciprocal_of(columns);
    store.columns = job.columns;
    store.aligned = columns % 4 == 0 && job.columns % 4 == 0;
    const u32 index = job.first_block + blockIdx.y * job.weight.blocks_per_tile + blockIdx.x;
    return {job.weight.blocks[index], index, n, true};
}

// The row of `indices[i]`, of which a negative one counts from the end; `rows` if there is no such row.
NZ_DEVICE u64 gathered_row(const NzCudaDecode& job, u64 i) {
    const long long index =
        job.index_size == 8 ? ((const long long*)job.indices)[i] : (long long)((const int*)job.indices)[i];
    const u64 row = index < 0 ? (u64)index + job.rows : (u64)index;
    return row < job.rows ? row : job.rows;
}

template <class Store>
NZ_DEVICE Task gather_task(const NzCudaDecode& job, u64 i, Store& store) {
    const u64 row = gathered_row(job, i);
    if (row == job.rows) {
        if (blockIdx.x == 0) {
            if (threadIdx.x == 0) atomicOr(job.status, NZ_CUDA_INDEX_OUT_OF_RANGE);
            for (u64 at = threadIdx.x; at < job.row_len; at += blockDim.x) store.clear(i * job.row_len + at);
        }
        return {};
    }
    const u64 start = row * job.row_len, end = start + job.row_len;
    const u32 index = (u32)(start / job.weight.block_len) + blockIdx.x;
    const u64 first_slot = (u64)index * job.weight.block_len;
    if (first_slot >= end) return {};
    const u64 left = job.weight.elements - first_slot;
    const u32 n = left < job.weight.block_len ? (u32)left : job.weight.block_len;
    store.first = (long long)(i * job.row_len) + (long long)(first_slot - start);
    store.from = first_slot < start ? (u32)(start - first_slot) : 0;
    store.to = end - first_slot < n ? (u32)(end - first_slot) : n;
    store.aligned = store.first % 4 == 0;
    return {job.weight.blocks[index], index, n, true};
}

// The block that a thread block of a weight with a short way is to decode that way: its place in the table, and where its
// slot 0 goes. None: it is not whole, not wanted as a whole, or not to go where strides of eight can.
struct EvenTask {
    u32 block;
    long long first;  // negative: none
    u32 tile_columns;
};

// `x` is its place in the launch, or in its tile.
NZ_DEVICE EvenTask even_task(const NzCudaDecode& job, u32 x) {
    constexpr u32 N = NZ_MAX_BLOCK_LENGTH;
    if (job.order == NZ_CUDA_STORED) {
        const u32 block = job.first_block + x;
        const u64 start = job.weight.blocks[block].first_slot, end = job.weight.blocks[block + 1].first_slot;
        const bool is_wanted = start >= job.first_slot && end - start == N && end - job.first_slot <= job.slots;
        const u64 first = start - job.first_slot;
        return {block, is_wanted && first % 8 == 0 ? (long long)first : -1, 0};
    }
    if (job.order != NZ_CUDA_ROW_MAJOR) return {0, -1, 0};
    const u64 first_column = (u64)blockIdx.y * job.tile_width, left = job.columns - first_column;
    const u32 columns = left < job.tile_width ? (u32)left : job.tile_width;
    const u32 log_columns = columns == 64 ? 6 : columns == 128 ? 7 : columns == 256 ? 8 : 0;
    const u32 block = job.first_block + blockIdx.y * job.weight.blocks_per_tile + x;
    const bool is_whole = ((u64)x + 1) * N <= job.rows << log_columns;
    if (log_columns == 0 || !is_whole || job.columns % 8 != 0) return {block, -1, 0};
    return {block, (long long)((x * N >> log_columns) * job.columns + first_column), columns};
}

// Decodes this thread block's block the short way, if it can. Says whether it could.
template <class Element>
NZ_DEVICE bool decode_short(const NzCudaDecode& job, u8* memory) {
    const EvenTask task = even_task(job, blockIdx.x);
    if (task.first < 0) return false;
    StrideStore<Element> strides((typename Element::Bits*)job.out + task.first, task.tile_columns, job.columns);
    if (!decode_even(job.weight, job.weight.blocks[task.block], Shared(memory, job.weight), strides)) {
        // Damaged: zeros.
        if (threadIdx.x == 0) atomicOr(job.status, NZ_CUDA_DAMAGED_RECORD);
        if (warp_id() < EVEN_WARPS) strides.clear();
    }
    return true;
}

// Decodes this thread block's blocks, which `source` gives, to `store`.
template <class Source, class Store>
NZ_DEVICE void decode_blocks(const NzCudaDecode& job, Source& source, Store& store) {
    // All but a gather have one block.
    const u64 end = job.order == NZ_CUDA_GATHER ? job.index_count : blockIdx.y + 1;
    for (u64 i = blockIdx.y; i < end; i += gridDim.y) {
        const Task task = job.order == NZ_CUDA_STORED      ? range_task(job, store)
                          : job.order == NZ_CUDA_ROW_MAJOR ? tile_task(job, store)
                                                           : gather_task(job, i, store);
        if (!task.wanted) continue;
        if (source.open(task.info, task.index, task.n)) {
            source.give(store);
        } else {
            // Damaged: zeros.
            if (threadIdx.x == 0) atomicOr(job.status, NZ_CUDA_DAMAGED_RECORD);
            for (u32 slot = store.from + threadIdx.x; slot < store.to; slot += blockDim.x) {
                store.clear(store.element_of(slot));
            }
        }
        __syncthreads();  // the next block takes the same shared memory
    }
}

// Where the passes of a block go that a warp decodes on its own.
template <class Element>
struct LeanStore {
    typename Element::Bits* out;   // where this lane's first eight weights go
    u64 next, after_next, passes;  // from there to stride 1, to stride 2, and to the next pass

    // As StrideStore.
    NZ_DEVICE LeanStore(typename Element::Bits* first, u32 tile_columns, u64 columns)
        : out(first), next(STRIDE), after_next(2 * STRIDE), passes(PASS_SLOTS) {
        const u32 group = lane_id() / GROUP_LANES;
        if (tile_columns == 0) {
            out += group * GROUP_SLOTS + first_in_stride();
            return;
        }
        out += group * (GROUP_SLOTS / tile_columns) * columns + first_in_stride();
        passes = PASS_SLOTS / tile_columns * columns;
        if (tile_columns <= 2 * STRIDE) after_next = 2 * STRIDE / tile_columns * columns;
        if (tile_columns == STRIDE) next = columns;
    }

    template <u32 P, u32 S>
    NZ_DEVICE void take(const u32 words[4]) {
        Element::store_pairs(words, out + P * passes + (S % 2 == 0 ? 0 : next) + (S < 2 ? 0 : after_next));
    }

    template <u32 BITS>
    NZ_DEVICE void take_all(const Lean& lean) {
        lean.template give<0, BITS>(*this);
        lean.template give<1, BITS>(*this);
        lean.template give<2, BITS>(*this);
        lean.template give<3, BITS>(*this);
    }

    template <u32 P>
    NZ_DEVICE void clear() {
        const u32 zeros[4] = {};
        take<P, 0>(zeros);
        take<P, 1>(zeros);
        take<P, 2>(zeros);
        take<P, 3>(zeros);
    }
};

// Decodes a block with each warp: all blocks are as lean.cuh has them, and wanted whole.
template <class Element>
NZ_DEVICE void decode_lean(const NzCudaDecode& job, u8* memory) {
    constexpr u32 WARPS = NZ_CUDA_LEAN_THREADS / 32;
    const u32 wanted = blockIdx.x * WARPS + warp_id(), last = job.lean_blocks - 1;
    const EvenTask task = even_task(job, smaller(wanted, last));
    Lean lean;
    const bool is_whole = open_lean(job.weight, task.block, WARPS, memory, lean);
    if (wanted > last) return;
    LeanStore<Element> store((typename Element::Bits*)job.out + task.first, task.tile_columns, job.columns);
    if (!is_whole) {
        if (lane_id() == 0) atomicOr(job.status, NZ_CUDA_DAMAGED_RECORD);
        store.template clear<0>();
        store.template clear<1>();
        store.template clear<2>();
        store.template clear<3>();
        return;
    }
    switch (lean.kind()) {
        case 8: store.template take_all<8>(lean); break;
        case 5: store.template take_all<5>(lean); break;
        default: store.template take_all<0>(lean);
    }
}

template <class Element>
NZ_DEVICE void decode(const NzCudaDecode& job, u8* memory) {
    if constexpr (Element::HAS_SHORT) {
        if (job.weight.is_even && decode_short<Element>(job, memory)) return;
    }
    Blob source(job.weight, memory);
    Store<Element> store = {};
    store.out = (typename Element::Bits*)job.out;
    decode_blocks(job, source, store);
}

}  // namespace nz

#endif  // NZ_CUDA_DECODE_CUH
