// Products of few rows with a weight that is read only in its compressed form.
//
// Every sum has a fixed order: within a lane by slot, over lanes by a butterfly, over warps, blocks and parts by
// number. So results depend on shapes and block length, and on nothing else.
#ifndef NZ_CUDA_GEMV_CUH
#define NZ_CUDA_GEMV_CUH

#include "octets.cuh"

namespace nz {

// Element `at` of activations of `type`.
NZ_DEVICE float load(const void* from, u32 type, u64 at) {
    if (type == NZ_CUDA_FLOAT32) return ((const float*)from)[at];
    const u32 bits = ((const u16*)from)[at];
    return type == NZ_CUDA_FLOAT16 ? float_of_half(bits) : __uint_as_float(bits << 16);
}

NZ_DEVICE float load_x(const NzCudaProduct& job, u64 at) { return load(job.x, job.x_type, at); }

// Four neighbours of X from `at` on, a multiple of 4.
NZ_DEVICE void load_x_quad(const NzCudaProduct& job, u64 at, float x[4]) {
    if (job.x_type == NZ_CUDA_FLOAT32) {
        const Vector16 quad = *(const Vector16*)((const float*)job.x + at);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) x[i] = __uint_as_float(quad.word[i]);
    } else {
        const Vector8 quad = *(const Vector8*)((const u16*)job.x + at);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const u32 bits = quad.word[i / 2] >> i % 2 * 16 & 0xffff;
            x[i] = job.x_type == NZ_CUDA_FLOAT16 ? float_of_half(bits) : __uint_as_float(bits << 16);
        }
    }
}

NZ_DEVICE float warp_sum_float(float value) {
#pragma unroll
    for (u32 step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

// ------------------------------------------------------------------------------------------------------------- rows

// W is [N, K]: each warp sums up the parts of rows that lie in its chunk of a block.
template <u32 ROWS>
struct RowSums {
    const NzCudaProduct* job;
    float* partial;  // the chunk's
    u32 k;           // where in its row of W the block's slot 0 is
    u32 n;           // slots of the block
    u32 first;       // the segment that the chunk starts in; the block starts in segment 0
    u32 current;     // the segment that is summed up
    float sums[ROWS];

    // The segment, that is the row of W counted from the block's first, that `slot` is in.
    NZ_DEVICE u32 segment_of(u32 slot) const {
        const u32 at = k + slot, length = (u32)job->k;
        return at < length ? 0 : at / length;
    }

    NZ_DEVICE void flush() {
#pragma unroll
        for (u32 i = 0; i < ROWS; ++i) {
            const float sum = warp_sum_float(sums[i]);
            if (lane_id() == 0 && i < job->m) partial[(current - first) * job->m + i] = sum;
            sums[i] = 0;
        }
    }

    // All lanes of a warp come here with weights of the same ROW_SLOTS slots.
    NZ_DEVICE void take(u32 slot, const Quad& first_four, const Quad& next_four, const Step& step) {
        u32 words[8];
        words_of(first_four, step, words);
        words_of(next_four, step, words + 4);
        take_words(slot, words);
    }

    NZ_DEVICE void take_words(u32 slot, const u32 words[8]) {
        const u32 row_first = slot - lane_id() * 8;
        const u32 last = segment_of(smaller(row_first + ROW_SLOTS, n) - 1);
        for (u32 segment = segment_of(row_first); segment <= last; ++segment) {
            if (segment != current) {
                flush();
                current = segment;
            }
            // Where in the segment the first weight is; before its start that is a great number.
            const u32 length = (u32)job->k, at = k + slot - segment * length;
            if (slot + 8 <= n && at < length && length - at >= 8 && (at | length) % 4 == 0) {
                add_eight(words, at);
            } else {
                add_some(words, slot, at, length);
            }
        }
    }

  private:
    NZ_DEVICE void add_eight(const u32 words[8], u32 at) {
#pragma unroll
        for (u32 i = 0; i < ROWS; ++i) {
            if (i >= job->m) break;
#pragma unroll
            for (u32 j = 0; j < 8; j += 4) {
                float x[4];
                load_x_quad(*job, i * job->k + at + j, x);
#pragma unroll
                for (u32 l = 0; l < 4; ++l) sums[i] = __fmaf_rn(__uint_as_float(words[j + l]), x[l], sums[i]);
            }
        }
    }

    // Those of the eight that are in the segment.
    NZ_DEVICE void add_some(const u32 words[8], u32 slot, u32 at, u32 length) {
#pragma unroll 1
        for (u32 j = 0; j < 8; ++j) {
            const u32 column = at + j;
            if (slot + j >= n || column >= length) continue;
            u32 word = 0;
#pragma unroll
            for (u32 l = 0; l < 8; ++l) word = j == l ? words[l] : word;
#pragma unroll
            for (u32 i = 0; i < ROWS; ++i) {
                if (i >= job->m) break;
                sums[i] = __fmaf_rn(__uint_as_float(word), load_x(*job, i * job->k + column), sums[i]);
            }
        }
    }
};

// Eight neighbours of X, whose type is known to the compiler.
template <u32 TYPE>
NZ_DEVICE void load_typed_octet(const u8* from, float x[8]) {
    const Vector16 first = *(const Vector16*)from;
    if constexpr (TYPE == NZ_CUDA_FLOAT32) {
        const Vector16 next = *(const Vector16*)(from + 16);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            x[i] = __uint_as_float(first.word[i]);
            x[i + 4] = __uint_as_float(next.word[i]);
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            const u32 pair = first.word[i / 2];
            if (TYPE == NZ_CUDA_BFLOAT16) x[i] = __uint_as_float(i % 2 == 0 ? pair << 16 : pair & 0xffff0000U);
            if (TYPE == NZ_CUDA_FLOAT16) x[i] = float_of_half(pair >> i % 2 * 16 & 0xffff);
        }
    }
}

// The same as RowSums of a whole block that is decoded the short way, if all weights of a chunk are in one row. Half a warp
// has a chunk.
template <u32 ROWS, u32 TYPE>
struct StrideRowSums {
    static constexpr u32 SIZE = TYPE == NZ_CUDA_FLOAT32 ? 4 : 2;

    const u8* x;  // where this lane's first eight weights are multiplied with X
    u64 x_row;    // bytes
    u32 m;
    float sums[ROWS];

    static constexpr bool HAS_REST = true;

    template <u32 S>
    NZ_DEVICE void take_eight(const Quad& first, const Quad& second, bool has_rest) {
        u32 words[8];
        split_words_of(first, has_rest, words);
        split_words_of(second, has_rest, words + 4);
        const u8* from = x + S * STRIDE * SIZE;
#pragma unroll
        for (u32 i = 0; i < ROWS; ++i, from += x_row) {
            if (ROWS > 1 && i >= m) break;
            float eight[8];
            load_typed_octet<TYPE>(from, eight);
#pragma unroll
            for (u32 l = 0; l < 8; ++l) sums[i] = __fmaf_rn(__uint_as_float(words[l]), eight[l], sums[i]);
        }
    }
};

// Multiplies this thread block's block, which is whole, the short way.
template <u32 ROWS, u32 TYPE>
NZ_DEVICE void multiply_even_rows(const NzCudaProduct& job, u8* memory) {
    constexpr u32 CHUNK_LANES = 32 * NZ_CUDA_WARP_SLOTS / EVEN_WARP_SLOTS;
    StrideRowSums<ROWS, TYPE> strides = {};
    const u32 chunk = blockIdx.x * (NZ_MAX_BLOCK_LENGTH / NZ_CUDA_WARP_SLOTS) + threadIdx.x / CHUNK_LANES;
    // Which of the chunks of its row that is: the quotient may be one too small.
    u32 in_row = chunk - __umulhi(chunk, job.row_reciprocal) * job.row_chunks;
    if (in_row >= job.row_chunks) in_row -= job.row_chunks;
    const u32 column = in_row * NZ_CUDA_WARP_SLOTS + first_even_slot() % NZ_CUDA_WARP_SLOTS;
    strides.x = (const u8*)job.x + (u64)column * strides.SIZE;
    strides.x_row = job.k * strides.SIZE;
    strides.m = job.m;
    const NzCudaBlock info = job.weight.blocks[blockIdx.x];
    const bool is_whole = decode_even(job.weight, info, Shared(memory, job.weight), strides);
    if (threadIdx.x == 0 && !is_whole) atomicOr(job.status, NZ_CUDA_DAMAGED_RECORD);
    if (warp_id() >= EVEN_WARPS) return;
    float* const partial = job.partial + (u64)chunk * (job.chunk_segments * job.m);
#pragma unroll
    for (u32 i = 0; i < ROWS; ++i) {
        float sum = strides.sums[i];
#pragma unroll
        for (u32 step = CHUNK_LANES / 2; step > 0; step >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, step);
        if (threadIdx.x % CHUNK_LANES == 0 && (ROWS == 1 || i < job.m)) partial[i] = sum;
    }
}

template <u32 ROWS, class Source>
NZ_DEVICE void multiply_rows(const NzCudaProduct& job, Source& source, u8* memory) {
    if constexpr (Source::HAS_SHORT) {
        const bool is_whole = (blockIdx.x + 1ULL) * NZ_MAX_BLOCK_LENGTH <= job.weight.elements;
        if (job.weight.is_even && is_whole && job.row_chunks > 0) {
            switch (job.x_type) {
                case NZ_CUDA_FLOAT32: multiply_even_rows<ROWS, NZ_CUDA_FLOAT32>(job, memory); break;
                case NZ_CUDA_FLOAT16: multiply_even_rows<ROWS, NZ_CUDA_FLOAT16>(job, memory); break;
                default: multiply_even_rows<ROWS, NZ_CUDA_BFLOAT16>(job, memory);
            }
            return;
        }
    }
    const NzCudaBlock info = job.weight.blocks[blockIdx.x];
    const u32 n = (u32)(job.weight.blocks[blockIdx.x + 1].first_slot - info.first_slot);
    RowSums<ROWS> sums = {};
    sums.job = &job;
    sums.n = n;
    sums.k = info.first_slot >> 32 == 0 ? (u32)info.first_slot % (u32)job.k : (u32)(info.first_slot % job.k);
    const u32 chunk = blockIdx.x * job.block_chunks + warp_id(), chunk_first = warp_id() * NZ_CUDA_WARP_SLOTS;
    sums.partial = job.partial + (u64)chunk * job.chunk_segments * job.m;
    if (chunk_first < n) sums.first = sums.current = sums.segment_of(chunk_first);
    if (source.open(info, blockIdx.x, n)) {
        source.give(sums);
        if (chunk_first < n) sums.flush();
        return;
    }
    if (threadIdx.x == 0) atomicOr(job.status, NZ_CUDA_DAMAGED_RECORD);
    for (u32 i = lane_id(); i < job.chunk_segments * job.m && chunk_first < n; i += 32) sums.partial[i] = 0;
}

// ------------------------------------------------------------------------------------------------------------ tiles

// W is [K, N] in column tiles: a lane keeps the sums of the eight columns that its weights are in.
template <u32 ROWS>
struct TileSums {
    const NzCudaProduct* job;
    u32 first_row;    // of X
    u32 rows;         // of X, at most ROWS
    u64 k;            // row of W of the block's slot 0
    u32 n;            // slots of the block
    u32 log_columns;  // of the tile, or 0: the columns are no power of two, and weights go to `weights`
    float* weights;
    float sums[ROWS == 1 ? 32 : 8][ROWS];  // the short way needs 32

    NZ_DEVICE void take(u32 slot, const Quad& first_four, const Quad& next_four, const Step& step) {
        if (slot >= n) return;
        add<0>(slot, first_four, step);
        add<4>(slot, next_four, step);
    }

    NZ_DEVICE void take_words(u32 slot, const u32 words[8]) {
        if (slot >= n) return;
        add_words<0>(slot, words);
        add_words<4>(slot, words + 4);
    }

  private:
    template <u32 FIRST>
    NZ_DEVICE void add(u32 slot, const Quad& four, const Step& step) {
        u32 words[4];
        words_of(four, step, words);
        add_words<FIRST>(slot, words);
    }

    template <u32 FIRST>
    NZ_DEVICE void add_words(u32 slot, const u32 words[4]) {
        if (log_columns == 0) {
            *(Vector16*)(weights + slot + FIRST) = {{words[0], words[1], words[2], words[3]}};
            return;
        }
        const u64 row = k + (slot >> log_columns);
#pragma unroll
        for (u32 i = 0; i < ROWS; ++i) {
            if (i >= rows) break;
            const float x = load_x(*job, (first_row + i) * job->k + row);
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                sums[FIRST + j][i] = __fmaf_rn(__uint_as_float(words[j]), x, sums[FIRST + j][i]);
            }
        }
    }
};

// The same of whole blocks that are decoded the short way, in tiles of 64, 128 or 256 columns, for one row of X: a lane keeps
// the sums of eight columns of each stride.
struct StrideTileSums {
    TileSums<1>& tile;
    u64 k;            // row of W of this lane's group
    u32 log_columns;  // of the tile

    static constexpr bool HAS_REST = true;

    template <u32 S>
    NZ_DEVICE void take_eight(const Quad& first, const Quad& second, bool has_rest) {
        u32 words[8];
        split_words_of(first, has_rest, words);
        split_words_of(second, has_rest, words + 4);
        const float x = load_x(*tile.job, tile.first_row * tile.job->k + k + (S * STRIDE >> log_columns));
#pragma unroll
        for (u32 i = 0; i < 8; ++i) sum(S, i) = __fmaf_rn(__uint_as_float(words[i]), x, sum(S, i));
    }

    // Adds the sums of all warps to `partial`; `room` is for 256 sums of each warp.
    NZ_DEVICE void add_to(float* partial, float* room) {
        const u32 columns = 1U << log_columns;
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            // Strides that have the same columns; then all groups of the warp.
            if (columns <= 2 * STRIDE) {
                sum(0, i) += sum(2, i);
                sum(1, i) += sum(3, i);
            }
            if (columns == STRIDE) sum(0, i) += sum(1, i);
#pragma unroll
            for (u32 s = 0; s < 4; ++s) {
                const float pair = sum(s, i) + __shfl_xor_sync(ALL_LANES, sum(s, i), GROUP_LANES);
                const float all = pair + __shfl_xor_sync(ALL_LANES, pair, 2 * GROUP_LANES);
                if (lane_id() < GROUP_LANES && warp_id() < EVEN_WARPS && s * STRIDE < columns) {
                    room[warp_id() * NZ_CUDA_MAX_TILE + s * STRIDE + first_in_stride() + i] = all;
                }
            }
        }
        __syncthreads();
        for (u32 column = threadIdx.x; column < columns; column += blockDim.x) {
            float sum = partial[column];
            for (u32 warp = 0; warp < EVEN_WARPS; ++warp) sum += room[warp * NZ_CUDA_MAX_TILE + column];
            partial[column] = sum;
        }
    }

  private:
    NZ_DEVICE float& sum(u32 stride, u32 i) { return tile.sums[stride * 8 + i][0]; }
};

// Adds the weights of a block, in shared memory, to the sums of one column a thread.
template <u32 ROWS>
NZ_DEVICE void add_columns(const NzCudaProduct& job, const TileSums<ROWS>& tile, u64 first_slot, u32 columns,
                           float sums[ROWS]) {
    if (threadIdx.x >= columns) return;
    const u64 row = first_slot / columns;
    const u32 column = (u32)(first_slot - row * columns);
    // The first slot of this column in the block.
    const bool in_row = threadIdx.x >= column;
    u64 k = in_row ? row : row + 1;
    for (u32 slot = threadIdx.x + (in_row ? 0 : columns) - column; slot < tile.n; slot += columns, ++k) {
#pragma unroll
        for (u32 i = 0; i < ROWS; ++i) {
            if (i >= tile.rows) break;
            sums[i] = __fmaf_rn(tile.weights[slot], load_x(job, (tile.first_row + i) * job.k + k), sums[i]);
        }
    }
}

// Adds up the sums of all warps, and stores them.
template <u32 ROWS>
NZ_DEVICE void store_columns(const NzCudaProduct& job, const TileSums<ROWS>& tile, float* sums, u32 columns,
                             float* partial) {
    const u32 lane_column = lane_id() * 8 % columns, warps = blockDim.x / 32;
#pragma unroll
    for (u32 i = 0; i < ROWS; ++i) {
        if (i >= tile.rows) break;
#pragma unroll
        for (u32 j = 0; j < 8; ++j) {
            float sum = tile.sums[j][i];
            // In a tile of 128 columns the lanes from 16 on have the same ones as those before, of 64 those from 8 on.
            if (columns <= 128) sum += __shfl_xor_sync(ALL_LANES, sum, 16);
            if (columns == 64) sum += __shfl_xor_sync(ALL_LANES, sum, 8);
            sums[warp_id() * NZ_CUDA_MAX_TILE + lane_column + j] = sum;
        }
        __syncthreads();
        for (u32 column = threadIdx.x; column < columns; column += blockDim.x) {
            float sum = sums[column];
            for (u32 warp = 1; warp < warps; ++warp) sum += sums[warp * NZ_CUDA_MAX_TILE + column];
            partial[i * job.n + column] = sum;
        }
        __syncthreads();
    }
}

template <u32 ROWS, class Source>
NZ_DEVICE void multiply_tiles(const NzCudaProduct& job, Source& source) {
    const u32 tiles = (u32)((job.n + job.tile_width - 1) / job.tile_width), index = blockIdx.y % tiles;
    const u64 first_column = (u64)index * job.tile_width, left = job.n - first_column;
    const u32 columns = left < job.tile_width ? (u32)left : job.tile_width;
    const u64 in_tile = job.k * columns;
    const bool is_regular = (columns == 64 || columns == 128 || columns == 256) && job.weight.block_len % columns == 0;
    TileSums<ROWS> tile = {};
    tile.job = &job;
    tile.first_row = blockIdx.y / tiles * ROWS;
    tile.rows = smaller(ROWS, job.m - tile.first_row);
    const u32 log_columns = columns == 64 ? 6 : columns == 128 ? 7 : 8;
    tile.weights = (float*)source.rest();
    float column_sums[ROWS] = {};
    // Then blocks that are not whole put their weights in shared memory.
    const bool is_even = Source::HAS_SHORT && ROWS == 1 && is_regular && job.weight.is_even;
    for (u32 i = 0; i < job.split_blocks; ++i) {
        const u32 in_split = blockIdx.x * job.split_blocks + i;
        const u64 slot = (u64)in_split * job.weight.block_len;
        if (slot >= in_tile) break;
        const u32 n = in_tile - slot < job.weight.block_len ? (u32)(in_tile - slot) : job.weight.block_len;
        const u32 number = index * job.weight.blocks_per_tile + in_split;
        const NzCudaBlock info = job.weight.blocks[number];
        tile.n = n;
        if constexpr (Source::HAS_SHORT && ROWS == 1) {
            if (is_even && n == NZ_MAX_BLOCK_LENGTH) {
                StrideTileSums strides = {tile, (slot + group_id() * GROUP_SLOTS) >> log_columns, log_columns};
                const bool is_whole = decode_even(job.weight, info, source.shared, strides);
                if (threadIdx.x == 0 && !is_whole) atomicOr(job.status, NZ_CUDA_DAMAGED_RECORD);
                __syncthreads();  // the next block takes the same shared memory
                continue;
            }
        }
        if (is_regular) tile.k = slot >> log_columns;
        tile.log_columns = is_regular && !is_even ? log_columns : 0;
        if (source.open(info, number, n)) {
            source.give(tile);
            if (tile.log_columns == 0) {
                __syncthreads();
                add_columns<ROWS>(job, tile, slot, columns, column_sums);
            }
        } else if (threadIdx.x == 0) {
            atomicOr(job.status, NZ_CUDA_DAMAGED_RECORD);
        }
        __syncthreads();  // the next block takes the same shared memory
    }
    float* const partial = job.partial + ((u64)blockIdx.x * job.m + tile.first_row) * job.n + first_column;
    if (is_regular && !is_even) {
        store_columns<ROWS>(job, tile, (float*)source.rest(), columns, partial);
    } else {
        // With fewer threads than columns all blocks go the short way.
        for (u32 column = threadIdx.x; column < columns; column += blockDim.x) {
#pragma unroll
            for (u32 i = 0; i < ROWS; ++i) {
                if (i < tile.rows) partial[i * job.n + column] = column == threadIdx.x ? column_sums[i] : 0;
            }
        }
    }
    if constexpr (Source::HAS_SHORT && ROWS == 1) {
        if (is_even) StrideTileSums{tile, 0, log_columns}.add_to(partial, (float*)source.rest());
    }
}

// -------------------------------------------------------------------------------------------------------------- sum

// The sum of all parts of one element of Y.
NZ_DEVICE float sum_of_parts(const NzCudaProduct& job, u32 row, u64 column) {
    float sum = 0;
    if (!job.is_rows) {
        for (u32 split = 0; split < job.splits; ++split) {
            sum += job.partial[((u64)split * job.m + row) * job.n + column];
        }
        return sum;
    }
    // `column` is a row of W; all blocks but the last have as many slots.
    const u64 first = column * job.k, end = first + job.k, block_len = job.weight.block_len;
    for (u64 block = first / block_len; block * block_len < end; ++block) {
        for (u32 warp = 0; warp < job.block_chunks; ++warp) {
            const u64 start = block * block_len + warp * NZ_CUDA_WARP_SLOTS;
            const u64 next = warp + 1 == job.block_chunks ? (block + 1) * block_len : start + NZ_CUDA_WARP_SLOTS;
            if (next <= first || start >= end) continue;
            const u64 chunk = block * job.block_chunks + warp, segment = column - start / job.k;
            sum += job.partial[(chunk * job.chunk_segments + segment) * job.m + row];
        }
    }
    return sum;
}

NZ_DEVICE void sum_parts(const NzCudaProduct& job) {
    const u64 column = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= job.n) return;
    const u64 at = blockIdx.y * job.n + column;
    float sum = sum_of_parts(job, blockIdx.y, column) * job.alpha;
    if (job.c != nullptr) {
        sum = __fmaf_rn(job.beta, load(job.c, job.x_type, blockIdx.y * job.c_row_stride + column * job.c_column_stride), sum);
    }
    switch (job.x_type) {
        case NZ_CUDA_FLOAT32: ((float*)job.y)[at] = sum; break;
        case NZ_CUDA_FLOAT16: ((u16*)job.y)[at] = (u16)half_of_float(sum); break;
        default: ((u16*)job.y)[at] = (u16)bfloat_of_float(sum);
    }
}

}  // namespace nz

#endif  // NZ_CUDA_GEMV_CUH
