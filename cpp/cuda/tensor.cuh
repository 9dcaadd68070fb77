// Products with tensor cores, of bfloat16 weights and operands: their products are exact, their sums are float32.
//
// A warp decodes a block of the blob as lean.cuh says. Each lane's weights meet the elements of X at the same places,
// whichever these are: which lane has which of the K that are summed up makes no difference to a sum, so nothing is
// moved for the sake of the tensor cores' layout. Sums have a fixed order, but for that in which a tensor core adds
// sixteen products.
#ifndef NZ_CUDA_TENSOR_CUH
#define NZ_CUDA_TENSOR_CUH

#include "lean.cuh"

namespace nz {

// sums[16 x 8] += a[16 x 16] * b[16 x 8]. Lane 4 g + t has of `a` rows g and g + 8 at 2 t and 2 t + 1, then the same at
// 8 more; of `b` column g at these four places; of the sums columns 2 t and 2 t + 1 of row g, then of row g + 8.
NZ_DEVICE void multiply_add(float sums[4], const u32 a[4], u32 b_low, u32 b_high) {
#ifdef NZ_SIMT
    nz_simt_multiply_add(sums, a, b_low, b_high);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
#endif
}

// ---------------------------------------------------------------------------------------------------------- one row

// One row of X. Four of a lane's weights are in a column of the right-hand side, of its own and of three neighbours;
// what X has in these places is in the row of the same number on the left. So sums are on a diagonal, and all beside it
// is of no use. The left has eight elements of a lane, the first and third two in row g and the others in row g + 8: it
// is multiplied with four weights of that diagonal, then of this.
struct DiagonalSums {
    const u8* x;  // where the pass's first eight weights of this lane are multiplied with X
    float upper[4], lower[4];

    template <u32 P, u32 S, u32 E>
    NZ_DEVICE void take(const u32 words[4]) {
        const Vector16 eight = *(const Vector16*)(x + (S * STRIDE + E * 8) * 2);
        multiply_add(upper, eight.word, words[0], words[2]);
        multiply_add(lower, eight.word, words[1], words[3]);
    }

    // Stores the sum over `LANES` of them, 8 or 32, and starts again.
    template <u32 LANES>
    NZ_DEVICE void flush(float* partial) {
        // Column g of rows g and g + 8 is lane 4 g + g / 2's.
        const float own = (lane_id() & 4) != 0 ? upper[1] + lower[3] : upper[0] + lower[2];
        float sum = (lane_id() & 3) == lane_id() >> 3 ? own : 0;
#pragma unroll
        for (u32 step = 1; step < LANES; step <<= 1) sum += __shfl_xor_sync(ALL_LANES, sum, step);
        if (lane_id() % LANES == 0) *partial = sum;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) upper[i] = lower[i] = 0;
    }
};

// What a warp has of a block where it has no more of X than a row.
typedef LeanLanes<4, 1, WINDOWS> RowLanes;

// A block and a row of X. `IS_ONE`: rows of W are whole blocks, and there is one sum; else one for each chunk, two
// groups, which is in one row.
template <bool IS_ONE>
struct RowPasses {
    const NzCudaProduct& job;
    u32 chunk;  // of these two groups
    float* partial;
    DiagonalSums sums;

    NZ_DEVICE RowPasses(const NzCudaProduct& product, u32 block)
        : job(product), chunk(block * BLOCK_CHUNKS + lane_id() / CHUNK_LANES),
          partial(product.partial + (IS_ONE ? block : chunk)), sums{} {
        find_x();
    }

    template <u32 BITS>
    NZ_DEVICE void add(const RowLanes& lean) {
        add_pass<0, BITS>(lean);
        add_pass<1, BITS>(lean);
        if (IS_ONE) sums.template flush<32>(partial);
    }

    // Of a damaged block.
    NZ_DEVICE void clear() {
        if (lane_id() < (IS_ONE ? 1 : BLOCK_CHUNKS)) partial[lane_id()] = 0;
    }

  private:
    static constexpr u32 BLOCK_CHUNKS = NZ_MAX_BLOCK_LENGTH / NZ_CUDA_WARP_SLOTS;
    static constexpr u32 PASS_CHUNKS = RowLanes::PASS_SLOTS / NZ_CUDA_WARP_SLOTS;
    static constexpr u32 CHUNK_LANES = 32 / PASS_CHUNKS;

    template <u32 P, u32 BITS>
    NZ_DEVICE void add_pass(const RowLanes& lean) {
        lean.give<P, BITS>(sums);
        if (IS_ONE) {
            sums.x += RowLanes::PASS_SLOTS * 2;
            return;
        }
        sums.template flush<CHUNK_LANES>(partial + P * PASS_CHUNKS);
        chunk += PASS_CHUNKS;
        find_x();
    }

    // Where in its row of W the chunk lies: the quotient may be one too small.
    NZ_DEVICE void find_x() {
        u32 in_row = chunk - __umulhi(chunk, job.row_reciprocal) * job.row_chunks;
        if (in_row >= job.row_chunks) in_row -= job.row_chunks;
        const u32 in_chunk = lane_id() / 4 % 2 * GROUP_SLOTS + lane_id() % 4 * 16;
        sums.x = (const u8*)job.x + (u64)(in_row * NZ_CUDA_WARP_SLOTS + in_chunk) * 2;
    }
};

template <bool IS_ONE>
NZ_DEVICE void multiply_opened(const NzCudaProduct& job, const RowLanes& lean, bool is_whole, u32 block) {
    RowPasses<IS_ONE> passes(job, block);
    if (!is_whole) {
        if (lane_id() == 0) atomicOr(job.status, NZ_CUDA_DAMAGED_RECORD);
        passes.clear();
        return;
    }
    switch (lean.kind()) {
        case 8: passes.template add<8>(lean); break;
        case 5: passes.template add<5>(lean); break;
        default: passes.template add<0>(lean);
    }
}

// Multiplies a row with this warp's block.
NZ_DEVICE void multiply_row(const NzCudaProduct& job, u8* memory) {
    const u32 blocks = (u32)(job.weight.elements / NZ_MAX_BLOCK_LENGTH);
    const u32 wanted = blockIdx.x * (NZ_CUDA_LEAN_THREADS / 32) + warp_id(), block = smaller(wanted, blocks - 1);
    RowLanes lean;
    const bool is_whole = open_lean(job.weight, block, NZ_CUDA_LEAN_THREADS / 32, memory, lean);
    if (wanted >= blocks) return;
    if (job.block_chunks == 1) {
        multiply_opened<true>(job, lean, is_whole, block);
    } else {
        multiply_opened<false>(job, lean, is_whole, block);
    }
}

// --------------------------------------------------------------------------------------------------------- many rows

// Rows of W that a thread block has, each decoded by a warp of its own; and what all warps have of each at a time, the
// first or last two strides of a pass.
constexpr u32 TILE_ROWS = NZ_CUDA_TENSOR_THREADS / 32;
constexpr u32 TILE_COLUMNS = PASS_SLOTS / 2;
// Bytes from one row to the next: 64 more than it has, so that two rows of 64 bytes each are in different banks.
constexpr u32 TILE_PITCH = TILE_COLUMNS * 2 + 64;
static_assert(TILE_ROWS * TILE_PITCH == NZ_CUDA_TENSOR_TILE, "the tile's place in shared memory");
// Columns of the tile that a warp multiplies.
constexpr u32 PART_COLUMNS = TILE_COLUMNS / TILE_ROWS;

// Puts weights where all warps see them.
struct TileRow {
    u8* row;

    template <u32 P, u32 S>
    NZ_DEVICE void take(const u32 words[4]) {
        const u32 column = lane_id() / GROUP_LANES * 2 * STRIDE + S % 2 * STRIDE + first_in_stride();
        *(Vector16*)(row + column * 2) = {{words[0], words[1], words[2], words[3]}};
    }
};

// Up to 8 * `EIGHTS` rows of X and sixteen of W, those of their weights that a block of the blob has: the tile's
// columns are summed up by all warps, each its own, and added up at the end.
template <u32 EIGHTS>
struct TileProduct {
    const NzCudaProduct& job;
    const Lean& lean;
    const bool is_there;  // this warp's block, and undamaged
    u8* const tile;
    const u32 item;       // of W's rows, or of its blocks where a block has several rows: this thread block's first
    const u32 split;      // of the K that blocks cut a row into
    const u8* x;          // what this lane has of X's first rows
    float sums[EIGHTS][4];

    NZ_DEVICE TileProduct(const NzCudaProduct& product, const Lean& opened, bool is_whole, u8* shared, u32 first_item,
                          u32 of_row)
        : job(product), lean(opened), is_there(is_whole), tile(shared), item(first_item), split(of_row), sums{} {
        // The tile's column of this lane's first element, which is one of eight.
        const u32 column = warp_id() * PART_COLUMNS + lane_id() % 4 * 8;
        const u32 slot = column / (2 * STRIDE) * GROUP_SLOTS + column % (2 * STRIDE);
        x = (const u8*)job.x + ((u64)split * NZ_MAX_BLOCK_LENGTH + slot) * 2;
    }

    NZ_DEVICE void add() {
        add_pass<0>();
        add_pass<1>();
        add_pass<2>();
        add_pass<3>();
    }

  private:
    NZ_DEVICE u32 log_row_passes() const { return __popc(job.row_passes - 1); }

    template <u32 P>
    NZ_DEVICE void add_pass() {
        add_half<P, 0>();
        add_half<P, 1>();
        // The last of the row of W, or of its part that the block has.
        if (((P + 1) & (job.row_passes - 1)) == 0) store(P >> log_row_passes());
    }

    template <u32 P, u32 HALF>
    NZ_DEVICE void add_half() {
        TileRow row = {tile + warp_id() * TILE_PITCH};
        if (!is_there) {
            const u32 zeros[4] = {};
            row.template take<P, 2 * HALF>(zeros);
            row.template take<P, 2 * HALF + 1>(zeros);
        } else if (lean.kind() == 8) {
            lean.template give_half<P, 8, HALF>(row);
        } else if (lean.kind() == 5) {
            lean.template give_half<P, 5, HALF>(row);
        } else {
            lean.template give_half<P, 0, HALF>(row);
        }
        __syncthreads();
        // Row g of the tile, and row g + 8.
        const u8* const at = tile + lane_id() / 4 * TILE_PITCH + (warp_id() * PART_COLUMNS + lane_id() % 4 * 8) * 2;
        const Vector16 upper = *(const Vector16*)at, lower = *(const Vector16*)(at + 8 * TILE_PITCH);
        const u32 first[4] = {upper.word[0], lower.word[0], upper.word[1], lower.word[1]};
        const u32 next[4] = {upper.word[2], lower.word[2], upper.word[3], lower.word[3]};
        const u32 pass = (P & (job.row_passes - 1)) * PASS_SLOTS + HALF * 2 * STRIDE;
#pragma unroll
        for (u32 i = 0; i < EIGHTS; ++i) {
            // Rows that there are not are those of the last one, and not stored.
            const u32 row_of_x = smaller(i * 8 + lane_id() / 4, job.m - 1);
            const Vector16 eight = *(const Vector16*)(x + (row_of_x * (u32)job.k + pass) * 2);
            multiply_add(sums[i], first, eight.word[0], eight.word[1]);
            multiply_add(sums[i], next, eight.word[2], eight.word[3]);
        }
        __syncthreads();  // the next half takes the tile's place
    }

    // Adds up the sums of all warps, warp after warp, and stores them: those of row `in_block` of each block.
    NZ_DEVICE void store(u32 in_block) {
        constexpr u32 AT_ONCE = EIGHTS == 1 ? 1 : 2, OF_WARP = AT_ONCE * TILE_ROWS * 8;
        float* const all = (float*)tile;
#pragma unroll
        for (u32 i = 0; i < EIGHTS; i += AT_ONCE) {
#pragma unroll
            for (u32 j = 0; j < AT_ONCE; ++j) {
#pragma unroll
                for (u32 l = 0; l < 4; ++l) {
                    // By row of X, then of W.
                    const u32 of_x = j * 8 + lane_id() % 4 * 2 + l % 2, of_w = lane_id() / 4 + l / 2 * 8;
                    all[warp_id() * OF_WARP + of_x * TILE_ROWS + of_w] = sums[i + j][l];
                    sums[i + j][l] = 0;
                }
            }
            __syncthreads();
            const u32 of_x = i * 8 + threadIdx.x / TILE_ROWS, of_w = item + threadIdx.x % TILE_ROWS;
            if (threadIdx.x < OF_WARP && of_x < job.m && of_w < job.items) {
                float sum = all[threadIdx.x];
#pragma unroll
                for (u32 warp = 1; warp < TILE_ROWS; ++warp) sum += all[warp * OF_WARP + threadIdx.x];
                const u32 rows = PASSES >> log_row_passes();  // of a block
                job.partial[((u64)split * job.m + of_x) * job.n + (u64)of_w * rows + in_block] = sum;
            }
            __syncthreads();
        }
    }
};

template <u32 EIGHTS>
NZ_DEVICE void multiply_many(const NzCudaProduct& job, u8* memory) {
    // Blocks that a row of W has, or 1: then a block has `rows` rows.
    const u32 split = blockIdx.x % job.splits, first = blockIdx.x / job.splits * TILE_ROWS;
    const u32 item = smaller(first + warp_id(), job.items - 1);
    Lean lean;
    const bool is_whole = open_lean(job.weight, item * job.splits + split, TILE_ROWS, memory, lean);
    if (!is_whole && lane_id() == 0) atomicOr(job.status, NZ_CUDA_DAMAGED_RECORD);
    __syncthreads();  // the tile takes the literals' place
    u8* const tile = memory + NZ_CUDA_SELECTORS_SIZE + TILE_ROWS * job.weight.tail_room;
    TileProduct<EIGHTS>(job, lean, is_whole && first + warp_id() < job.items, tile, first, split).add();
}

}  // namespace nz

#endif  // NZ_CUDA_TENSOR_CUH
