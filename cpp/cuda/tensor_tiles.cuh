// Products with tensor cores of weights in column tiles, [K, N]: a lane's eight neighbours are of eight sums.
#ifndef NZ_CUDA_TENSOR_TILES_CUH
#define NZ_CUDA_TENSOR_TILES_CUH

#include "tensor.cuh"

namespace nz {

// What a thread block has of a tile: blocks of the blob that follow each other.
struct TilePart {
    u64 first_column;
    u32 columns;      // of the tile: 64, 128 or 256
    u32 first, end;   // blocks, counted from the tile's first
    u32 tile_block;   // the tile's first block

    NZ_DEVICE explicit TilePart(const NzCudaProduct& job) : first_column((u64)blockIdx.y * job.tile_width) {
        const u64 left = job.n - first_column;
        columns = left < job.tile_width ? (u32)left : job.tile_width;
        const u32 blocks = (u32)(job.k * columns / NZ_MAX_BLOCK_LENGTH);
        first = blockIdx.x * job.split_blocks;
        end = smaller(first + job.split_blocks, blocks);
        tile_block = blockIdx.y * job.weight.blocks_per_tile;
    }
};

// ---------------------------------------------------------------------------------------------------------- one row

// One row of X. The lanes of a group are apart, so that four that follow each other have the same columns of four
// groups, which are rows of K: over these a tensor core sums up. Each two neighbours that a word has are summed up as
// well; so X is put on the right in one of eight columns for each word, first or second, and stride, first or second,
// with zeros where the neighbour is. Then sums of sixteen columns of W, all of which are wanted, take four registers.
//
// `IS_WIDE`: the tile has 256 columns. `IS_CAREFUL`: weights may be infinite or no numbers. Times zero these would
// spoil other sums: others take their place, and what they come to is noted.
template <bool IS_WIDE, bool IS_CAREFUL>
struct ColumnSums {
    const u8* x;         // where this lane's group is multiplied with X, in this pass
    u32 columns;         // of the tile
    u32 b[4];            // X on the right of words 0 and 1, and of 2 and 3, of an even stride; and of an odd one
    u32 upwards;         // bits of X's element to its place in a word
    float sums[2][4];
    u32 rises, falls;    // by stride and neighbour: a product is infinite and positive, or negative; both: no number
    float factor;        // what X has

    NZ_DEVICE explicit ColumnSums(u32 of_tile)
        : columns(of_tile), upwards(lane_id() / 4 % 2 * 16), sums{}, rises(0), falls(0) {}

    // The tile's block `block` is next.
    NZ_DEVICE void start(const NzCudaProduct& job, u32 block) {
        const u32 group_rows = rows_of(GROUP_SLOTS);
        x = (const u8*)job.x + ((u64)block * (NZ_MAX_BLOCK_LENGTH / GROUP_SLOTS) + lane_id() % 4) * group_rows * 2;
    }

    template <u32 P, u32 S>
    NZ_DEVICE void take(const u32 words[4]) {
        // A group of the widest tile is a row.
        if (!IS_WIDE || S == 0) place(*(const u16*)(x + rows_of(S * STRIDE) * 2));
        if (S == 3) x += rows_of(PASS_SLOTS) * 2;
        u32 a[4] = {words[0], words[1], words[2], words[3]};
        if (IS_CAREFUL) note(words, S * 8, a);
        multiply_add(sums[S / 2], a, b[S % 2 * 2], b[S % 2 * 2 + 1]);
    }

    // Whether one of the warp's sums is infinite or no number.
    NZ_DEVICE bool has_overflown() const {
        float zero = 0;
#pragma unroll
        for (u32 i = 0; i < 8; ++i) zero = __fmaf_rn(sums[i / 4][i % 4], 0.0f, zero);
        return __ballot_sync(ALL_LANES, zero != 0) != 0;
    }

    // Gives the sums of the warp.
    NZ_DEVICE void give(float to[2][4]) {
        if (IS_CAREFUL) add_noted();
#pragma unroll
        for (u32 i = 0; i < 8; ++i) to[i / 4][i % 4] = sums[i / 4][i % 4];
    }

  private:
    static constexpr u32 INFINITE = 0x7f800000U;

    // Rows of W that so many slots are.
    NZ_DEVICE u32 rows_of(u32 slots) const {
        if (IS_WIDE || columns == NZ_CUDA_MAX_TILE) return slots / NZ_CUDA_MAX_TILE;
        return columns == 2 * STRIDE ? slots / (2 * STRIDE) : slots / STRIDE;
    }

    // An element of X: column c of the right-hand side is of neighbour c % 2.
    NZ_DEVICE void place(u32 element) {
        const u32 word = element << upwards;
        if (IS_CAREFUL) factor = __uint_as_float(element << 16);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) b[i] = lane_id() / 8 == i ? word : 0;
    }

    // Leaves in `a` what is finite of eight weights. Of others the products are noted, from bit `first` on: in their place
    // are ones, which add what is finite to their sums, or what they would if X is infinite.
    NZ_DEVICE void note(const u32 words[4], u32 first, u32 a[4]) {
        u32 any = 0;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            // On top of each half whether its exponent is the greatest.
            const u32 on_top = ((words[i] & 0x7f807f80U) + 0x00800080U) & 0x80008000U;
            a[i] = select_bits((on_top >> 15) * 0xffffU, (words[i] & 0x80008000U) | 0x3f803f80U, words[i]);
            any |= on_top;
        }
        if (any == 0) return;
        u32 next[4] = {words[0], words[1], words[2], words[3]};
#pragma unroll 1
        for (u32 bit = first; bit < first + 8; bit += 2) {
            note(next[0] << 16, bit);
            note(next[0] & 0xffff0000U, bit + 1);
#pragma unroll
            for (u32 i = 0; i < 3; ++i) next[i] = next[i + 1];
        }
    }

    NZ_DEVICE void note(u32 weight, u32 bit) {
        if ((weight & INFINITE) != INFINITE) return;
        const float product = __uint_as_float(weight) * factor;
        if (!(product < 0)) rises |= 1U << bit;
        if (!(product > 0)) falls |= 1U << bit;
    }

    NZ_DEVICE void add_noted() {
#pragma unroll
        for (u32 step = 1; step < 4; step <<= 1) {
            rises |= __shfl_xor_sync(ALL_LANES, rises, step);
            falls |= __shfl_xor_sync(ALL_LANES, falls, step);
        }
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            const u32 bit = (i / 4 * 2 + lane_id() % 4 / 2) * 8 + lane_id() % 2 * 4 + i % 4;
            float& sum = sums[i / 4][i % 4];
            if (rises >> bit & 1) sum += __uint_as_float(INFINITE);
            if (falls >> bit & 1) sum += -__uint_as_float(INFINITE);
        }
    }
};

// Lanes as ColumnSums wants them.
typedef LeanLanes<8, 4, BYTES> LeanColumns;

template <u32 BITS, class Sums>
NZ_DEVICE void take_block(const LeanColumns& lean, Sums& sums) {
    lean.give<0, BITS>(sums);
    lean.give<1, BITS>(sums);
    lean.give<2, BITS>(sums);
    lean.give<3, BITS>(sums);
}

// Adds up this warp's blocks of the part: each fourth.
template <bool IS_WIDE, bool IS_CAREFUL>
NZ_DEVICE void add_blocks(const NzCudaProduct& job, const TilePart& part, u8* memory,
                          ColumnSums<IS_WIDE, IS_CAREFUL>& sums) {
    constexpr u32 WARPS = NZ_CUDA_LEAN_THREADS / 32;
#pragma unroll 1
    for (u32 block = part.first + warp_id(); block < part.end; block += WARPS) {
        LeanColumns lean;
        if (open_staged(job.weight, part.tile_block + block, WARPS, memory, lean)) {
            sums.start(job, block);
            if constexpr (!IS_WIDE) {
                take_block<LeanColumns::ANY_BITS>(lean, sums);
            } else if (lean.kind() == 8) {
                take_block<8>(lean, sums);
            } else if (lean.kind() == 5) {
                take_block<5>(lean, sums);
            } else {
                take_block<0>(lean, sums);
            }
        } else if (lane_id() == 0) {
            atomicOr(job.status, NZ_CUDA_DAMAGED_RECORD);
        }
        __syncwarp();  // the next block takes the tail's place
    }
}

// Adds up this warp's blocks. False: the sums are not finite, and have to be added up with care.
template <bool IS_WIDE, bool IS_CAREFUL>
NZ_DEVICE bool add_up(const NzCudaProduct& job, const TilePart& part, u8* memory, float to[2][4]) {
    ColumnSums<IS_WIDE, IS_CAREFUL> sums(part.columns);
    add_blocks(job, part, memory, sums);
    if (!IS_CAREFUL && sums.has_overflown()) return false;
    sums.give(to);
    return true;
}

// Puts the sums of the warp where they belong among 256.
NZ_DEVICE void store_sums(const float sums[2][4], float* all) {
    // The first of the four slots of a group whose sums are this lane's, of its first two strides.
    const u32 first = lane_id() % 4 / 2 * STRIDE + lane_id() / 4 * 8 + lane_id() % 2 * 4;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        Vector16 four;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) four.word[i] = __float_as_uint(sums[half][i]);
        *(Vector16*)(all + half * 2 * STRIDE + first) = four;
    }
}

// Multiplies a row with part of a tile.
NZ_DEVICE void multiply_tile_row(const NzCudaProduct& job, u8* memory) {
    const TilePart part(job);
    stage_selectors(job.weight, memory);
    __syncthreads();
    float sums[2][4];
    const bool is_wide = part.columns == NZ_CUDA_MAX_TILE;
    const bool is_finite = is_wide ? add_up<true, false>(job, part, memory, sums)
                                   : add_up<false, false>(job, part, memory, sums);
    // (A part of its own: it is seldom wanted, and takes no registers meanwhile.)
    if (!is_finite) add_up<false, true>(job, TilePart(job), memory, sums);
    __syncthreads();  // sums take the place of the tails
    store_sums(sums, (float*)memory + warp_id() * GROUP_SLOTS);
    __syncthreads();
    // Each warp has 256 sums, several of each column where the tile has fewer.
    constexpr u32 ALL = NZ_CUDA_LEAN_THREADS / 32 * GROUP_SLOTS;
    const float* const all = (const float*)memory;
    for (u32 column = threadIdx.x; column < part.columns; column += NZ_CUDA_LEAN_THREADS) {
        float sum = all[column];
        for (u32 i = column + part.columns; i < ALL; i += part.columns) sum += all[i];
        job.partial[blockIdx.x * job.n + part.first_column + column] = sum;
    }
}

// --------------------------------------------------------------------------------------------------------- many rows

// Rows of 16 bytes that four 8 x 8 matrices of bfloat16 numbers have in shared memory: `row` is row l % 8 of matrix
// l / 8. Lane 4 g + t gets of each 2 t and 2 t + 1 of row g; transposed, those of column g.
template <bool IS_TRANSPOSED>
NZ_DEVICE void load_matrices(const u8* row, u32 words[4]) {
#ifdef NZ_SIMT
    nz_simt_load_matrices(words, row, IS_TRANSPOSED);
#else
    const u32 at = place_of(row);
    if (IS_TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(at) : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(at) : "memory");
    }
#endif
}

// Blocks that a thread block has at a time, one a warp, and the rows of K that a pass has of each: the square's rows.
constexpr u32 SQUARE_BLOCKS = NZ_CUDA_TENSOR_THREADS / 32;
constexpr u32 BLOCK_ROWS = NZ_MAX_BLOCK_LENGTH / NZ_CUDA_MAX_TILE;
constexpr u32 PASS_ROWS = BLOCK_ROWS / PASSES;
// Bytes from one row to the next: 16 more than it has, so that eight rows of a matrix are in different banks.
constexpr u32 SQUARE_PITCH = NZ_CUDA_MAX_TILE * 2 + 16;
static_assert(SQUARE_BLOCKS * PASS_ROWS * SQUARE_PITCH == NZ_CUDA_TENSOR_SQUARE, "the square's place in shared memory");
// Columns that a warp multiplies.
constexpr u32 WARP_COLUMNS = NZ_CUDA_MAX_TILE / SQUARE_BLOCKS;

// Which of a pass's 64 rows is where in a sum does not matter: steps of sixteen have four rows of each of four blocks,
// the first two of all four and then the others.
NZ_DEVICE u32 square_row(u32 block, u32 row) { return block / 4 * 16 + row / 2 * 8 + block % 4 * 2 + row % 2; }

// Puts weights where all warps see them.
struct SquareRows {
    u8* to;

    template <u32 P, u32 S>
    NZ_DEVICE void take(const u32 words[4]) {
        *(Vector16*)(to + S * STRIDE * 2) = {{words[0], words[1], words[2], words[3]}};
    }
};

// Up to 8 * `EIGHTS` rows of X, and a tile of 256 columns. Sixteen blocks at a time are decoded, a pass of all of them
// put in shared memory, and multiplied: each warp has sixteen columns, and sums up over all rows.
template <u32 EIGHTS>
struct SquareProduct {
    const NzCudaProduct& job;
    const TilePart part;
    u8* const memory;
    u8* const square;
    u8* const x;  // what X has for the sixteen blocks: 8 rows of K, one of X after the other
    float sums[EIGHTS][4];

    // Bytes of eight rows of K: 16 a row of X; and 16 more, so that the next are in other banks.
    static constexpr u32 X_PITCH = EIGHTS * 8 * 16 + 16;

    NZ_DEVICE SquareProduct(const NzCudaProduct& product, u8* shared)
        : job(product), part(product), memory(shared),
          square(shared + NZ_CUDA_SELECTORS_SIZE + SQUARE_BLOCKS * product.weight.tail_room),
          x(square + NZ_CUDA_TENSOR_SQUARE), sums{} {}

    NZ_DEVICE void add() {
        stage_selectors(job.weight, memory);
        __syncthreads();
#pragma unroll 1
        for (u32 first = part.first; first < part.end; first += SQUARE_BLOCKS) {
            const u32 block = first + warp_id();
            bool is_there = block < part.end;
            Lean lean;
            const u32 index = part.tile_block + smaller(block, part.end - 1);
            if (!open_staged(job.weight, index, SQUARE_BLOCKS, memory, lean)) {
                if (lane_id() == 0) atomicOr(job.status, NZ_CUDA_DAMAGED_RECORD);
                is_there = false;
            }
            __syncthreads();  // the square and X take the literals' place
            stage_x(first);
            add_pass<0>(lean, is_there);
            add_pass<1>(lean, is_there);
            add_pass<2>(lean, is_there);
            add_pass<3>(lean, is_there);
        }
        store();
    }

  private:
    // Brings X to shared memory, eight rows of K of the order that square_row gives side by side: a product's `b`.
    NZ_DEVICE void stage_x(u32 first) {
        constexpr u32 PIECES = SQUARE_BLOCKS * BLOCK_ROWS / 8;  // of 16 bytes
        for (u32 i = threadIdx.x; i < EIGHTS * 8 * PIECES; i += NZ_CUDA_TENSOR_THREADS) {
            const u32 row = i / PIECES, block = i % PIECES / 2, half = i % 2;
            Vector16 eight = {};
            if (row < job.m && first + block < part.end) {
                const u64 k = (u64)(first + block) * BLOCK_ROWS + half * 8;
                eight = *(const Vector16*)((const u16*)job.x + row * job.k + k);
            }
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                const u32 pass = half * 2 + j / 2, at = pass * SQUARE_BLOCKS * PASS_ROWS + square_row(block, j % 2 * 2);
                *(u32*)(x + at / 8 * X_PITCH + row * 16 + at % 8 * 2) = eight.word[j];
            }
        }
    }

    template <u32 P>
    NZ_DEVICE void add_pass(const Lean& lean, bool is_there) {
        SquareRows rows = {square + square_row(warp_id(), lean.group()) * SQUARE_PITCH + lean.in_group() * 16};
        if (!is_there) {
            const u32 zeros[4] = {};
            rows.template take<P, 0>(zeros);
            rows.template take<P, 1>(zeros);
            rows.template take<P, 2>(zeros);
            rows.template take<P, 3>(zeros);
        } else if (lean.kind() == 8) {
            lean.template give<P, 8>(rows);
        } else if (lean.kind() == 5) {
            lean.template give<P, 5>(rows);
        } else {
            lean.template give<P, 0>(rows);
        }
        __syncthreads();
        const u32 matrix = lane_id() / 8, row = lane_id() % 8, column = warp_id() * WARP_COLUMNS + matrix % 2 * 8;
        const u8* const w = square + (matrix / 2 * 8 + row) * SQUARE_PITCH + column * 2;
        const u8* const right = x + (P * SQUARE_BLOCKS * PASS_ROWS / 8 + matrix) * X_PITCH + row * 16;
#pragma unroll
        for (u32 step = 0; step < SQUARE_BLOCKS * PASS_ROWS / 16; step += 2) {
            u32 a[4], next[4];
            load_matrices<true>(w + step * 16 * SQUARE_PITCH, a);
            load_matrices<true>(w + (step + 1) * 16 * SQUARE_PITCH, next);
#pragma unroll
            for (u32 i = 0; i < EIGHTS; ++i) {
                u32 b[4];
                load_matrices<false>(right + step * 2 * X_PITCH + i * 8 * 16, b);
                multiply_add(sums[i], a, b[0], b[1]);
                multiply_add(sums[i], next, b[2], b[3]);
            }
        }
        __syncthreads();  // the next pass takes the square's place, then the next blocks' literals
    }

    NZ_DEVICE void store() {
        const u64 column = part.first_column + warp_id() * WARP_COLUMNS + lane_id() / 4;
#pragma unroll
        for (u32 i = 0; i < EIGHTS; ++i) {
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                const u32 row = i * 8 + lane_id() % 4 * 2 + j % 2;
                if (row < job.m) job.partial[((u64)blockIdx.x * job.m + row) * job.n + column + j / 2 * 8] = sums[i][j];
            }
        }
    }
};

template <u32 EIGHTS>
NZ_DEVICE void multiply_tile_rows(const NzCudaProduct& job, u8* memory) {
    SquareProduct<EIGHTS>(job, memory).add();
}

}  // namespace nz

#endif  // NZ_CUDA_TENSOR_TILES_CUH
