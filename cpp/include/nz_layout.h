/* The constants of the blob format, version 1.3: see docs/format.md.
 *
 * Plain C99, so that C, C++ and CUDA share them. All integers of a blob are little-endian, all offsets
 * and sizes here are in bytes unless a name says otherwise.
 */
#ifndef NZ_LAYOUT_H
#define NZ_LAYOUT_H

/* The first 4 bytes: "\x89NZB", and the same read as a little-endian 32-bit integer. */
#define NZ_MAGIC_SIZE 4
#define NZ_MAGIC_U32 0x425A4E89UL

#define NZ_VERSION_MAJOR 1
#define NZ_VERSION_MINOR 3

/* Where the fields of the header lie. */
#define NZ_OFFSET_MAGIC 0
#define NZ_OFFSET_MAJOR 4         /* u8 */
#define NZ_OFFSET_MINOR 5         /* u8 */
#define NZ_OFFSET_DTYPE 6         /* u8, NZ_DTYPE_* */
#define NZ_OFFSET_TRANSFORM 7     /* u8, NZ_TRANSFORM_* */
#define NZ_OFFSET_CODER 8         /* u8, NZ_CODER_* */
#define NZ_OFFSET_LAYOUT 9        /* u8, NZ_LAYOUT_* */
#define NZ_OFFSET_RANK 10         /* u8 */
#define NZ_OFFSET_TIER_COUNT 11   /* u8 */
#define NZ_OFFSET_KEPT_BITS 12    /* u8, mantissa bits */
#define NZ_OFFSET_FLAGS 13        /* u8, NZ_FLAG_* */
#define NZ_OFFSET_BLOCK_LENGTH 14 /* u16, weights */
#define NZ_OFFSET_TILE_WIDTH 16   /* u16, columns */
#define NZ_OFFSET_PAYLOAD_HASH 18 /* u64, XXH3-64 */
#define NZ_OFFSET_SHAPE 26        /* LEB128; tiers, record sizes, mantissa bits and checksum follow */

#define NZ_HEADER_FIXED_SIZE 26
#define NZ_CHECKSUM_SIZE 4 /* the low half of an XXH3-64 */

#define NZ_FLAG_LOSSLESS 1
#define NZ_FLAG_BITS_PER_BLOCK 2 /* each block has mantissa bits of its own */
#define NZ_FLAG_UNIT_PER_BLOCK 4 /* on a grid and with codebooks: each block has a unit of its own */
#define NZ_FLAG_UNIT_PER_ROW 8   /* the same in column tiles: each row has; not both */
#define NZ_FLAG_DIFFERENCE 16    /* in a delta: residuals are differences, and not XOR */
#define NZ_FLAG_BASE_IS_BLOB 32  /* in a delta: the base is a blob, and not plain elements */
#define NZ_FLAGS_KNOWN 3
#define NZ_FLAGS_KNOWN_GRID 15
#define NZ_FLAGS_KNOWN_CODEBOOK 13
#define NZ_FLAGS_KNOWN_DELTA 49

/* TensorProto.DataType of ONNX. */
#define NZ_DTYPE_FLOAT32 1
#define NZ_DTYPE_UINT8 2
#define NZ_DTYPE_INT8 3
#define NZ_DTYPE_FLOAT16 10
#define NZ_DTYPE_BFLOAT16 16

#define NZ_TRANSFORM_FLOAT_SPLIT 1
#define NZ_TRANSFORM_NORMALISED 2 /* float split with normalised subnormals */
#define NZ_TRANSFORM_GRID 3       /* levels of a uniform grid */
#define NZ_TRANSFORM_DELTA 4      /* what tells weights from those of a base */
#define NZ_TRANSFORM_INTEGER 5    /* 8-bit integers */
#define NZ_TRANSFORM_CODEBOOK 6   /* values of a codebook */
#define NZ_CODER_TIERED_CASCADE 1
#define NZ_CODER_LAYERED_CASCADE 2 /* the same, with lower raw bits in layers */
#define NZ_LAYOUT_ROW_MAJOR 0
#define NZ_LAYOUT_COLUMN_TILES 1

/* Limits. */
#define NZ_MAX_RANK 8
#define NZ_MAX_ELEMENTS ((1ULL << 58) - 1)
#define NZ_MIN_TIERS 1
#define NZ_MAX_TIERS 8
#define NZ_MIN_BLOCK_LENGTH 64
#define NZ_MAX_BLOCK_LENGTH 4096
#define NZ_BLOCK_LENGTH_STEP 64
#define NZ_TILE_WIDTH_STEP 64

/* Payload. */
#define NZ_RECORD_ALIGN 4      /* of the payload and of each record in it; the unit of record sizes */
#define NZ_PLANE_GROUP_SIZE 64 /* bytes of a group in planes of 2 and 4 bits */

/* The float32 word: sign, 8 bits of exponent, 23 bits of mantissa. */
#define NZ_WORD_MANTISSA_BITS 23
#define NZ_SUBNORMAL_EXPONENT 232 /* normalised: exponent 232 + p is a subnormal with top set bit p */
#define NZ_SUBNORMAL_EXPONENTS 23
#define NZ_FLOAT16_LEAST_NORMAL_EXPONENT 113 /* of the word of the least float16 that is not subnormal */
#define NZ_MANTISSA_BITS_FLOAT32 23
#define NZ_MANTISSA_BITS_FLOAT16 10
#define NZ_MANTISSA_BITS_BFLOAT16 7

/* A grid: level = (word & 0x7fffffff | centre) / 2^23, value = level * unit with the word's sign. */
#define NZ_GRID_MAX_BITS 15
#define NZ_UNIT_SIZE 2                 /* bytes */
#define NZ_UNIT_CENTRED 0x8000         /* centre is 2^(22 - k), else 0 */
#define NZ_UNIT_LEAST ((127 - 100) << 7) /* the upper half of the float32 2^-100 */
#define NZ_UNIT_END ((127 + 100) << 7)
#define NZ_UNIT_ROW_COLUMNS_STEP 64    /* rows have units only if columns are a multiple of it */

/* Codebooks. */
#define NZ_CODEBOOK_MAX_GROUPS 16
#define NZ_CODEBOOK_MAX_SYMBOLS 32 /* of each sign */

/* Integers: the most raw bits. */
#define NZ_INTEGER_MAX_BITS 7

/* A delta: the most that a base's exponent adds to a symbol. */
#define NZ_DELTA_MAX_LIFT 222

/* Layers. */
#define NZ_MAX_LAYERS 3
#define NZ_LAYER_ALIGN 4096 /* from the start of the blob */

/* The most mantissa bits that share the head plane with the sign. */
#define NZ_HEAD_MANTISSA_BITS 7

#endif /* NZ_LAYOUT_H */
