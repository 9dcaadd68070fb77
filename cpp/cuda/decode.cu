// Decoding to memory: whole tensors, ranges of slots (so also tiles of columns, and rows), and gathered rows.
#include "words.cuh"

namespace nz {

// Where the weights of a block go.
template <class Element>
struct Store {
    typename Element::Bits* out;
    u32 normalised;
    u32 from, to;  // the slots of the block that are wanted
    // The element in `out` of the block's slot 0, which may itself not be wanted.
    long long first;
    // Of a block in column tiles that goes to row-major memory: `first` is where the tile's part of the row starts that
    // slot 0 lies in, at `column`. `tile_columns` is 0 in stored order.
    u32 column, tile_columns;
    u32 reciprocal;            // ceil(2^32 / tile_columns)
    u64 columns;
    bool aligned;  // elements of eight slots are neighbours, at a multiple of 8

    NZ_DEVICE u64 element_of(u32 slot) const {
        if (tile_columns == 0) return (u64)(first + (long long)slot);
        const u32 at = column + slot;
        // Exact: `at` is below 2^16 where the reciprocal is used, and tiles have less than 2^16 columns.
        const u32 row = tile_columns > 32768 ? at >= tile_columns : tile_columns == 1 ? at : __umulhi(at, reciprocal);
        return (u64)first + row * columns + (at - row * tile_columns);
    }

    NZ_DEVICE void take(u32 slot, const Quad& first_four, const Quad& next_four) {
        const typename Element::Elements elements(first_four, next_four, normalised);
        if (aligned && slot >= from && slot + 8 <= to) {
            elements.store(out + element_of(slot));
            return;
        }
#pragma unroll 1
        for (u32 i = 0; i < 8; ++i) {
            if (slot + i >= from && slot + i < to) out[element_of(slot + i)] = elements.at(i);
        }
    }
};

// The block that a thread block is to decode next.
struct Task {
    NzCudaBlock info;
    u32 n;
    bool wanted;
};

template <class Element>
NZ_DEVICE Task range_task(const NzCudaDecode& job, Store<Element>& store) {
    const u32 index = job.first_block + blockIdx.x;
    const NzCudaBlock info = job.weight.blocks[index];
    const u32 n = (u32)(job.weight.blocks[index + 1].first_slot - info.first_slot);
    store.first = (long long)(info.first_slot - job.first_slot);
    const long long end = (long long)job.slots - store.first;
    store.from = store.first < 0 ? (u32)-store.first : 0;
    store.to = end < (long long)n ? (u32)end : n;
    store.aligned = store.first % 8 == 0;
    return {info, n, true};
}

template <class Element>
NZ_DEVICE Task tile_task(const NzCudaDecode& job, Store<Element>& store) {
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
    store.reciprocal = ALL_LANES / columns + 1;
    store.columns = job.columns;
    store.aligned = columns % 8 == 0 && job.columns % 8 == 0;
    return {job.weight.blocks[job.first_block + blockIdx.y * job.weight.blocks_per_tile + blockIdx.x], n, true};
}

// The row of `indices[i]`, of which a negative one counts from the end; `rows` if there is no such row.
NZ_DEVICE u64 gathered_row(const NzCudaDecode& job, u64 i) {
    const long long index =
        job.index_size == 8 ? ((const long long*)job.indices)[i] : (long long)((const int*)job.indices)[i];
    const u64 row = index < 0 ? (u64)index + job.rows : (u64)index;
    return row < job.rows ? row : job.rows;
}

template <class Element>
NZ_DEVICE Task gather_task(const NzCudaDecode& job, u64 i, Store<Element>& store) {
    const u64 row = gathered_row(job, i);
    if (row == job.rows) {
        if (blockIdx.x == 0) {
            if (threadIdx.x == 0) atomicOr(job.status, NZ_CUDA_INDEX_OUT_OF_RANGE);
            for (u64 at = threadIdx.x; at < job.row_len; at += blockDim.x) store.out[i * job.row_len + at] = 0;
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
    store.aligned = store.first % 8 == 0;
    return {job.weight.blocks[index], n, true};
}

template <class Element>
NZ_DEVICE void decode(const NzCudaDecode& job, u8* memory) {
    const Shared shared(memory, job.weight);
    Store<Element> store = {};
    store.out = (typename Element::Bits*)job.out;
    store.normalised = job.weight.normalised;
    // All but a gather have one block.
    const u64 end = job.order == NZ_CUDA_GATHER ? job.index_count : blockIdx.y + 1;
    for (u64 i = blockIdx.y; i < end; i += gridDim.y) {
        const Task task = job.order == NZ_CUDA_STORED      ? range_task(job, store)
                          : job.order == NZ_CUDA_ROW_MAJOR ? tile_task(job, store)
                                                           : gather_task(job, i, store);
        if (!task.wanted) continue;
        Block block;
        if (open_block(job.weight, task.info, task.n, shared, block)) {
            for_each_octet(job.weight, block, shared, store);
        } else {
            // Damaged: zeros.
            if (threadIdx.x == 0) atomicOr(job.status, NZ_CUDA_DAMAGED_RECORD);
            for (u32 slot = store.from + threadIdx.x; slot < store.to; slot += blockDim.x) {
                store.out[store.element_of(slot)] = 0;
            }
        }
        __syncthreads();  // the next block takes the same shared memory
    }
}

}  // namespace nz

#define NZ_DECODE_KERNEL(name, Element)                                                            \
    extern "C" __global__ void __launch_bounds__(256, 4) name(const __grid_constant__ NzCudaDecode job) { \
        NZ_DYNAMIC_SHARED(memory);                                                                 \
        nz::decode<nz::Element>(job, memory);                                                      \
    }

NZ_DECODE_KERNEL(nz_decode_float32, Float32)
NZ_DECODE_KERNEL(nz_decode_float16, Float16)
NZ_DECODE_KERNEL(nz_decode_bfloat16, Bfloat16)
