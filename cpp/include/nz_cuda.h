/* What a CUDA kernel is told: the structs that Rust fills (src/cuda/job.rs and others) and the kernels in cpp/cuda take by value.
 *
 * Plain C99 for 64-bit machines. All memory that a pointer names is the device's. Every field was checked by the host
 * against the blob's header; only the payload behind `blob` may hold anything, and may change at any time.
 */
#ifndef NZ_CUDA_H
#define NZ_CUDA_H

#include "nz_layout.h"

/* A warp decodes so many slots of a block, a lane NZ_CUDA_LANE_SLOTS of them, in rows of 4 slots a lane. */
#define NZ_CUDA_WARP_SLOTS 512
#define NZ_CUDA_LANE_SLOTS 16
#define NZ_CUDA_MAX_WARPS 8
/* Threads of a block that decode the short way: where all blocks go that way, no others are launched. */
#define NZ_CUDA_EVEN_THREADS 128

/* Threads of a block of nz_tensor_row, nz_tensor_tiles_1 and nz_decode_lean_*, each warp of which decodes a block of the blob. */
#define NZ_CUDA_LEAN_THREADS 128
/* The same of nz_tensor_rows_*: a warp for each of 16 rows of W. Bytes of shared memory for what they have decoded, behind the
 * tails; literals take the same place before. */
#define NZ_CUDA_TENSOR_THREADS 512
#define NZ_CUDA_TENSOR_TILE 17408
/* The same of nz_tensor_tiles_8 and on, a warp for each of 16 blocks: what a pass of all has. Behind it X takes 512
 * bytes, and as much again for each row that the kernel takes; literals take the place of both before. */
#define NZ_CUDA_TENSOR_SQUARE 33792
/* Bytes of the table that four codes are looked up in: a word for each byte of codes. */
#define NZ_CUDA_SELECTORS_SIZE 1696
/* Where in it the word of four codes is: the sum of codes times these, a byte each, the first code's in the lowest. */
#define NZ_CUDA_SELECTOR_FACTORS 0x3c341c01U

/* Bytes of shared memory behind record and tails: escapes by tier and warp, and a verdict; then which units the block has. */
#define NZ_CUDA_COUNTS_SIZE 144
#define NZ_CUDA_PLACE_SIZE 16
/* Bytes behind a staged record, or a tail, that may be read as part of a word. */
#define NZ_CUDA_PADDING 16

/* Bits of the status word. */
#define NZ_CUDA_DAMAGED_RECORD 1U
#define NZ_CUDA_INDEX_OUT_OF_RANGE 2U
#define NZ_CUDA_SOURCE_CHANGED 4U /* a block does not have the size that it was measured with */

/* How decoded weights are laid out. */
#define NZ_CUDA_STORED 0U    /* slots in stored order, from `first_slot` on */
#define NZ_CUDA_ROW_MAJOR 1U /* column tiles that follow each other, as one matrix in ONNX order */
#define NZ_CUDA_GATHER 2U    /* the rows that `indices` name */

/* Element types: of activations the first three. */
#define NZ_CUDA_FLOAT32 0U
#define NZ_CUDA_FLOAT16 1U
#define NZ_CUDA_BFLOAT16 2U
#define NZ_CUDA_UINT8 3U
#define NZ_CUDA_INT8 4U

/* Which weights share a unit. */
#define NZ_CUDA_UNIT_OF_TENSOR 0U
#define NZ_CUDA_UNIT_OF_BLOCK 1U
#define NZ_CUDA_UNIT_OF_ROW 2U

/* With layers: there are more raw bits than known ones, and words get the middle of what they may be. */
#define NZ_CUDA_CUT 128U
#define NZ_CUDA_MAX_LAYERS 3

/* Values of a codebook. */
#define NZ_CUDA_BOOK 64U

/* One block of a blob. */
typedef struct NzCudaBlock {
    unsigned long long first_slot; /* in stored order */
    unsigned int offset;           /* of the record from the payload's start, in units of 4 bytes */
    unsigned short record;         /* size of the record, in units of 4 bytes */
    unsigned char known; /* raw bits of a weight that are known with all layers that are read; and NZ_CUDA_CUT */
    unsigned char m;     /* mantissa bits in the record */
} NzCudaBlock;

/* A weight on the device. */
typedef struct NzCudaWeight {
    const unsigned char *blob;   /* aligned to 4 bytes */
    const NzCudaBlock *blocks;   /* aligned to 16 bytes, one more than there are: the last starts behind all slots */
    unsigned long long blob_len; /* bytes, a multiple of 4 */
    unsigned long long payload;  /* bytes from `blob` to the payload, a multiple of 4 */
    unsigned long long elements;
    unsigned int block_len;
    unsigned int blocks_per_tile; /* of a whole tile; all blocks when row-major */
    unsigned int tiers;
    unsigned int transform;   /* NZ_TRANSFORM_*; of a delta it is not looked at */
    unsigned int record_room; /* bytes of shared memory for a record, a multiple of 16 */
    unsigned int tail_room;   /* bytes of shared memory for the symbols of a tier behind the first, a multiple of 16 */
    unsigned char tier_widths[NZ_MAX_TIERS];
    unsigned int is_even; /* 1: one or two tiers of 2-bit codes, transform 1, blocks of NZ_MAX_BLOCK_LENGTH weights */
    unsigned int unused;
    unsigned int symbols[NZ_MAX_TIERS][4]; /* 16 bytes a tier: the symbol of each code */
    /* On a grid and with codebooks, else 0; but raw_bits of integers too, and element of all: */
    const unsigned short *units; /* of the tensor, of each block or of each row */
    unsigned int units_of;       /* NZ_CUDA_UNIT_* */
    unsigned int raw_bits;       /* k */
    unsigned int element;        /* NZ_CUDA_FLOAT32 ...: the tensor's own */
    unsigned int tile_width;     /* columns of a whole tile, if each row has a unit */
    unsigned long long columns;  /* the same of the tensor */
    unsigned long long tile_slots; /* slots of a whole tile; all when row-major */
    /* With codebooks, else 0: */
    const float *books;          /* NZ_CUDA_BOOK values each, those of sign 0 first; 0 where there is none */
    const unsigned char *groups; /* the codebook of each unit */
    /* With layers: */
    const unsigned int *layer_offsets; /* of each block in each layer that is read, then of its end: units of 4 bytes */
    unsigned long long layer_starts[NZ_CUDA_MAX_LAYERS]; /* bytes from `blob`, multiples of 4096 */
    unsigned char layer_bits[NZ_CUDA_MAX_LAYERS + 1];    /* raw bits that weights have with each */
    unsigned int layers;     /* that are read */
    unsigned int layer_at[NZ_CUDA_MAX_LAYERS]; /* where each is in the shared memory for a record, a multiple of 16 */
    unsigned int joined_at;  /* where in it mantissas go that are put together, a multiple of 16 */
    unsigned int known_bits; /* on a grid: raw bits that are known; k, if there are no layers */
    unsigned int padding;
    /* With two tiers of 2-bit codes, transform 1, blocks of NZ_MAX_BLOCK_LENGTH bfloat16 weights, all of them whole:
     * NZ_CUDA_SELECTORS_SIZE bytes, aligned to 16, else null. The word of four codes (NZ_CUDA_SELECTOR_FACTORS) has a half byte for each: the code or, of an
     * escape, 4 and the escapes before it; above them a byte with the escapes, and one with eight times as many. Behind
     * it the symbols of both tiers, 4 bytes each, the lowest bit of each on top. */
    const unsigned int *selectors;
} NzCudaWeight;

/* Arguments of nz_decode_float32, nz_decode_float16, nz_decode_bfloat16, nz_decode_integer and nz_decode_lean_*. */
typedef struct NzCudaDecode {
    NzCudaWeight weight;
    void *out;            /* aligned to 16 bytes */
    unsigned int *status; /* bits NZ_CUDA_* are set in it, none is cleared */
    unsigned int order;   /* NZ_CUDA_STORED ... */
    /* Stored order: slots first_slot .. first_slot + slots; thread block x decodes block first_block + x. Row-major: the
     * first block of the first tile. */
    unsigned int first_block;
    unsigned long long first_slot;
    unsigned long long slots;
    /* Row-major from column tiles: thread block (x, y) decodes block x of tile y of them. Fewer than 2^32 slots a tile. */
    unsigned long long columns; /* of those tiles */
    unsigned int tile_width; /* columns of a whole tile */
    unsigned int tiles;
    /* Gather: thread block (x, y) decodes block x of rows y, y + gridDim.y, ... of the output. */
    const void *indices;
    unsigned long long index_count;
    unsigned long long rows;
    unsigned long long row_len; /* weights */
    unsigned int index_size;    /* bytes: 4 or 8 */
    /* nz_decode_lean_*: blocks of each tile, or all that are wanted in stored order. A thread block has
     * NZ_CUDA_LEAN_THREADS / 32. */
    unsigned int lean_blocks;
} NzCudaDecode;

/* Rows of X that nz_gemv_* take, at most; those that a thread block of nz_gemv_tiles_4 takes. */
#define NZ_CUDA_MAX_ROWS 8
#define NZ_CUDA_TILE_ROWS 4
/* Thread blocks that the tiles of a product are split into, about. */
#define NZ_CUDA_TILE_BLOCKS 1024
/* The widest tile that nz_gemv_tiles_* take. */
#define NZ_CUDA_MAX_TILE 256
/* Bytes of shared memory that nz_gemv_tiles_* have for sums of warps, or for the weights of a block. */
#define NZ_CUDA_SUMS_SIZE 8192
#define NZ_CUDA_WEIGHTS_SIZE 16384

/* Arguments of nz_gemv_*, and nz_tensor_*: the product of X and W, or of X and W^T where W is
 * stored as [N, K]. */
typedef struct NzCudaProduct {
    NzCudaWeight weight;
    const void *x;   /* [m, k], row by row, aligned to 16 bytes */
    void *y;         /* [m, n] */
    float *partial;  /* sums of parts */
    unsigned int *status;
    unsigned long long k;
    unsigned long long n;
    unsigned int m;       /* 1 to NZ_CUDA_MAX_ROWS; of nz_tensor_rows_N and nz_tensor_tiles_N to N */
    unsigned int x_type;  /* NZ_CUDA_FLOAT32 ...: of X and Y */
    unsigned int is_rows; /* 1: W is row-major, [N, K]; 0: in column tiles, [K, N] */
    /* Rows: a chunk is what a warp decodes. partial is [chunk][segment][m], the sums over the part of each row of W in
     * the chunk. Segments of a chunk are counted from the row that it starts in. */
    unsigned int chunk_segments;
    unsigned int block_chunks; /* chunks a block */
    /* Where rows of W are a whole number of chunks: that number, and floor((2^32 - 1) / row_chunks); else 0. */
    unsigned int row_chunks;
    unsigned int row_reciprocal;
    /* Tiles: partial is [split][m][n]. Thread block (x, y) sums over blocks x * split_blocks ... of tile
     * y % tiles, for the rows y / tiles * NZ_CUDA_TILE_ROWS ... of X; of nz_tensor_tiles_* for all rows. */
    unsigned int tile_width;
    unsigned int splits;
    unsigned int split_blocks;
    /* Y = alpha * (the product) + beta * C, where C is at c[row * c_row_stride + column * c_column_stride], of Y's type. */
    const void *c; /* null: there is none */
    unsigned long long c_row_stride;
    unsigned long long c_column_stride;
    float alpha;
    float beta;
    /* nz_tensor_rows_*: partial is [split][m][n], as of tiles. Rows of W have `splits` blocks each, or a block has several
     * rows; thread block x has of 16 rows, or blocks, those numbered x / splits * 16 ..., block x % splits of each row. */
    unsigned int items;      /* rows, or blocks where a block has several rows */
    unsigned int row_passes; /* of 1024 slots: those of a row that a block has, 1, 2 or 4 */
} NzCudaProduct;

/* The most that a base's exponent adds to the length of a residual. */
#define NZ_CUDA_MAX_LIFT 222U
/* Bytes of shared memory between the words of a unit and the room that its base and its records take in turn: a verdict. */
#define NZ_CUDA_VERDICT_SIZE 16

/* A delta to a blob. The weight that goes with it is the delta, but its blocks are units: one or more of the delta's own
 * blocks that follow each other, with the size of all their records, of at most NZ_MAX_BLOCK_LENGTH weights. */
typedef struct NzCudaDelta {
    NzCudaWeight base;
    const unsigned short* sizes;  /* of the records of all its blocks, in units of 4 bytes */
    unsigned int block_len;       /* of its own blocks: a unit has a whole number of these */
    unsigned int blocks_per_tile; /* the same */
    unsigned int exponent;        /* E */
    unsigned int is_difference;   /* 1: residuals are differences; 0: bits that differ */
    unsigned int room;            /* bytes of shared memory that base and records take, a multiple of 16 */
    unsigned int padding;
} NzCudaDelta;

/* Arguments of nz_delta_decode. */
typedef struct NzCudaDeltaDecode {
    NzCudaDecode decode; /* of units */
    NzCudaDelta delta;
    unsigned int element; /* NZ_CUDA_FLOAT32 ...: of the output */
    unsigned int padding;
} NzCudaDeltaDecode;

/* Arguments of nz_delta_rows_* and nz_delta_tiles_*. */
typedef struct NzCudaDeltaProduct {
    NzCudaProduct product; /* of units */
    NzCudaDelta delta;
} NzCudaDeltaProduct;

/* What nz_survey counts, 64-bit numbers one after the other: words by exponent, or the place of a subnormal's top bit,
 * and by leading ones of the mantissa; then weights by the mantissa bits that their blocks need, of words that rounding
 * changes and of others: with subnormals normalised, and with plain ones. */
#define NZ_CUDA_ONES 24
#define NZ_CUDA_JOINT_ROWS 279
#define NZ_CUDA_WIDTH_COUNTS 576
#define NZ_CUDA_SURVEY_COUNTS (NZ_CUDA_JOINT_ROWS * NZ_CUDA_ONES + 2 * NZ_CUDA_WIDTH_COUNTS)
/* Bytes of shared memory of nz_survey: 32-bit counts, and bits that any word of a kind has, twice. */
#define NZ_CUDA_SURVEY_SIZE (4 * NZ_CUDA_SURVEY_COUNTS + 32)
/* Weights that a sample is taken out of at one go. */
#define NZ_CUDA_STRETCH 4096U

/* A block as nz_measure gives it: the record's size in units of 4 bytes, from bit 16 on the stored mantissa bits, and: */
#define NZ_CUDA_MEASURED_ROUNDED 0x01000000U /* rounding has changed a weight */
#define NZ_CUDA_MEASURED_MISFIT 0x02000000U  /* the coding is not for this block */

/* Bytes of shared memory behind the places of symbols: counts. */
#define NZ_CUDA_MEASURE_SIZE 32
#define NZ_CUDA_WRITE_SIZE 32
/* Bytes behind a block's codes that are 0, and behind its symbols that are not used. */
#define NZ_CUDA_CODES_PADDING 48

/* Arguments of nz_survey, nz_measure and nz_write. */
typedef struct NzCudaEncode {
    const void *source; /* row-major elements, aligned to their size */
    unsigned long long elements;
    /* In column tiles the tensor's shape, and columns of a whole tile; row-major 1 and, twice, all elements. */
    unsigned long long rows;
    unsigned long long columns;
    unsigned long long tile_columns;
    unsigned int element; /* NZ_CUDA_FLOAT32 ... */
    unsigned int block_len;
    unsigned int blocks_per_tile; /* of a whole tile */
    unsigned int is_tiled;        /* 1: in column tiles */
    /* Survey: of all blocks, or (sampled_of is not 0) of one in sampled_of weights of each stretch. */
    unsigned int parts; /* blocks, or stretches */
    unsigned int sampled_of;
    unsigned long long *counts; /* NZ_CUDA_SURVEY_COUNTS, added to */
    /* Measure and write: thread block x encodes block x. */
    unsigned int transform;     /* NZ_TRANSFORM_FLOAT_SPLIT or NZ_TRANSFORM_NORMALISED */
    unsigned int kept;          /* mantissa bits that weights are rounded to; 23: none is */
    unsigned int no_subnormals; /* 1: a subnormal is a misfit */
    unsigned int tiers;
    unsigned char tier_widths[NZ_MAX_TIERS];
    unsigned char places[256]; /* of each symbol: its tier times 16, and its code; of a literal, 16 times `tiers` */
    unsigned int *measured;    /* a word for each block */
    const NzCudaBlock *blocks; /* first_slot is not used */
    unsigned char *payload;    /* aligned to 4 bytes */
    unsigned int *status;
    unsigned int record_room; /* bytes of shared memory for a record, a multiple of 16 */
    unsigned int unused;
} NzCudaEncode;

#endif /* NZ_CUDA_H */
