/* The constants of the blob format, version 1.0: see docs/format.md.
 *
 * Plain C99, so that C, C++ and CUDA share them. All integers of a blob are little-endian, all offsets
 * and sizes here are in bytes unless a name says otherwise.
 */
#ifndef NZ_LAYOUT_H
#define NZ_LAYOUT_H

/* The first 8 bytes: "\x89NZB\r\n\x1a\n", and the same read as a little-endian 64-bit integer. */
#define NZ_MAGIC_SIZE 8
#define NZ_MAGIC_U64 0x0A1A0A0D425A4E89ULL

#define NZ_VERSION_MAJOR 1
#define NZ_VERSION_MINOR 0

/* Where the fields of the header lie. */
#define NZ_OFFSET_MAGIC 0           /* 8 bytes */
#define NZ_OFFSET_MAJOR 8           /* u16 */
#define NZ_OFFSET_MINOR 10          /* u16 */
#define NZ_OFFSET_RESERVED_A 12     /* u32, 0 */
#define NZ_OFFSET_HEADER_SIZE 16    /* u64, header checksum included */
#define NZ_OFFSET_BLOB_SIZE 24      /* u64, padding included */
#define NZ_OFFSET_PAYLOAD_OFFSET 32 /* u64, header size rounded up to NZ_PAYLOAD_ALIGN */
#define NZ_OFFSET_PAYLOAD_SIZE 40   /* u64 */
#define NZ_OFFSET_PAYLOAD_HASH 48   /* u64, XXH3-64 */
#define NZ_OFFSET_DECODED_HASH 56   /* u64, XXH3-64 */
#define NZ_OFFSET_SOURCE_HASH 64    /* u64, XXH3-64 */
#define NZ_OFFSET_DTYPE 72          /* u8, NZ_DTYPE_* */
#define NZ_OFFSET_TRANSFORM 73      /* u8, NZ_TRANSFORM_* */
#define NZ_OFFSET_CODER 74          /* u8, NZ_CODER_* */
#define NZ_OFFSET_LAYOUT 75         /* u8, NZ_LAYOUT_* */
#define NZ_OFFSET_RANK 76           /* u8 */
#define NZ_OFFSET_TIER_COUNT 77     /* u8 */
#define NZ_OFFSET_KEPT_BITS 78      /* u8, mantissa bits */
#define NZ_OFFSET_RESERVED_B 79     /* u8, 0 */
#define NZ_OFFSET_BLOCK_LENGTH 80   /* u32, weights */
#define NZ_OFFSET_TILE_WIDTH 84     /* u32, columns */
#define NZ_OFFSET_BLOCK_COUNT 88    /* u64 */
#define NZ_OFFSET_SHAPE 96          /* u64 a dimension; tiers, directory, mantissa bits and checksum follow */

#define NZ_HEADER_FIXED_SIZE 96
#define NZ_CHECKSUM_SIZE 8

/* TensorProto.DataType of ONNX. */
#define NZ_DTYPE_FLOAT32 1
#define NZ_DTYPE_FLOAT16 10
#define NZ_DTYPE_BFLOAT16 16

#define NZ_TRANSFORM_FLOAT_SPLIT 1
#define NZ_TRANSFORM_NORMALISED 2 /* float split with normalised subnormals */
#define NZ_CODER_TIERED_CASCADE 1
#define NZ_LAYOUT_ROW_MAJOR 0
#define NZ_LAYOUT_COLUMN_TILES 1

/* Limits. */
#define NZ_MAX_RANK 8
#define NZ_MIN_TIERS 1
#define NZ_MAX_TIERS 8
#define NZ_MIN_BLOCK_LENGTH 64
#define NZ_MAX_BLOCK_LENGTH 4096
#define NZ_BLOCK_LENGTH_STEP 64
#define NZ_TILE_WIDTH_STEP 64

/* Payload. */
#define NZ_PAYLOAD_ALIGN 64
#define NZ_RECORD_ALIGN 4
#define NZ_BLOB_PADDING 64     /* zeros behind the payload */
#define NZ_PLANE_GROUP_SIZE 64 /* bytes of a group in planes of 2 and 4 bits */

/* The float32 word: sign, 8 bits of exponent, 23 bits of mantissa. */
#define NZ_WORD_MANTISSA_BITS 23
#define NZ_SUBNORMAL_EXPONENT 232 /* normalised: exponent 232 + p is a subnormal with top set bit p */
#define NZ_SUBNORMAL_EXPONENTS 23
#define NZ_MANTISSA_BITS_FLOAT32 23
#define NZ_MANTISSA_BITS_FLOAT16 10
#define NZ_MANTISSA_BITS_BFLOAT16 7

/* The most mantissa bits that share the head plane with the sign. */
#define NZ_HEAD_MANTISSA_BITS 7

#endif /* NZ_LAYOUT_H */
