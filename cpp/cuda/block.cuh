// Decoding one block of a blob with one thread block.
//
// A warp has 512 slots of each tier in two rows, a lane eight neighbours in each row. Eight codes are worked on at
// once, in half bytes of a word. The escapes of a tier are ranked by a product within the eight, a packed scan over the
// lanes, and the counts of the warps before. First
// all tiers are counted, from the first to the last, because each one's length is the escapes of the one before; then
// they are merged on the way back, into symbols that the tier before takes by rank.
#ifndef NZ_CUDA_BLOCK_CUH
#define NZ_CUDA_BLOCK_CUH

#include "layers.cuh"

namespace nz {

// How words become weights: of eight neighbours, all the same.
struct Step {
    u32 transform;
    float scale;  // on a grid, of the word's magnitude bits, as an integer; of a codebook's values
    u32 element;  // what values are rounded to
    u32 detail;   // on a grid, the bits that levels have below their own; the number of a codebook; raw bits of integers
};

// Whether weights are parts of a unit.
NZ_DEVICE bool has_units(const NzCudaWeight& weight) {
    return weight.transform == NZ_TRANSFORM_GRID || weight.transform == NZ_TRANSFORM_CODEBOOK;
}

// Which units a block's weights have, on a grid or with codebooks.
struct UnitPlace {
    u64 unit;     // of the block or, if each row has one, of the row that slot 0 is in
    u32 column;   // that of slot 0 in its tile
    u32 columns;  // of the tile, or 0: the block has one unit

    NZ_DEVICE static UnitPlace of(const NzCudaWeight& weight, u64 first_slot) {
        if (weight.units_of == NZ_CUDA_UNIT_OF_TENSOR) return {0, 0, 0};
        const u64 tile = first_slot / weight.tile_slots, in_tile = first_slot - tile * weight.tile_slots;
        if (weight.units_of == NZ_CUDA_UNIT_OF_BLOCK) {
            return {tile * weight.blocks_per_tile + in_tile / weight.block_len, 0, 0};
        }
        const u64 left = weight.columns - tile * weight.tile_width;
        const u32 columns = left < weight.tile_width ? (u32)left : weight.tile_width;
        const u64 row = in_tile / columns;
        return {row, (u32)(in_tile - row * columns), columns};
    }

    // The step of the eight slots from `slot` on, a multiple of 8 in the block.
    NZ_DEVICE Step step(const NzCudaWeight& weight, u32 slot) const {
        const u64 at = columns == 0 ? unit : unit + (column + slot) / columns;
        const u32 bits = weight.units[at];
        const float value = __uint_as_float((bits & ~NZ_UNIT_CENTRED) << 16);
        if (weight.transform == NZ_TRANSFORM_CODEBOOK) {
            return {weight.transform, value, weight.element, weight.groups[at]};
        }
        // The middle of what is not known; levels that are not centred are themselves the middle of what they stand for.
        const u32 centre = (NZ_MIDDLE >> weight.known_bits) - (bits & NZ_UNIT_CENTRED ? 0 : NZ_MIDDLE >> weight.raw_bits);
        return {weight.transform, value * __uint_as_float(104U << 23), weight.element, centre};  // 2^-23
    }
};
static_assert(sizeof(UnitPlace) == NZ_CUDA_PLACE_SIZE, "its place in shared memory");

// The shared memory of a thread block, as the host has sized it.
struct Shared {
    u8* record;
    u8* tails;   // symbols of odd tiers, then of even ones
    u16* counts;   // escapes by tier and warp
    u32* damaged;  // not 0: a tail was found damaged
    UnitPlace* place;
    u8* rest;    // what the kernel itself needs

    NZ_DEVICE Shared(u8* start, const NzCudaWeight& weight) {
        record = start;
        tails = record + weight.record_room;
        counts = (u16*)(tails + 2 * weight.tail_room);
        damaged = (u32*)(counts + NZ_MAX_TIERS * NZ_CUDA_MAX_WARPS);
        place = (UnitPlace*)((u8*)counts + NZ_CUDA_COUNTS_SIZE);
        rest = (u8*)place + NZ_CUDA_PLACE_SIZE;
    }
};

// Four values below 16, one a byte, to half bytes.
NZ_DEVICE u32 half_bytes(u32 bytes) { return __byte_perm(bytes | bytes >> 4, 0, 0x4420); }

// Eight bits to half bytes.
NZ_DEVICE u32 spread_eight(u32 bits) {
    bits = (bits | bits << 12) & 0x000f000fU;
    bits = (bits | bits << 6) & 0x03030303U;
    return (bits | bits << 3) & HALF_ONES;
}

// Eight codes to half bytes.
NZ_DEVICE u32 half_bytes(const Octet& codes) {
    return __byte_perm(codes.first | codes.first >> 4, codes.second | codes.second >> 4, 0x6420);
}

// The escapes among eight codes in half bytes: 1 in theirs.
NZ_DEVICE u32 escapes(u32 codes, u32 width) {
    u32 escaped = codes & HALF_ONES;
    if (width >= 2) escaped &= codes >> 1;
    if (width >= 3) escaped &= codes >> 2;
    if (width == 4) escaped &= codes >> 3;
    return escaped;
}

// Eight codes of bitmaps from `slot` on, a multiple of 8 below `n`, in half bytes; 0 behind the end.
NZ_DEVICE u32 bitmap_codes(const u8* record, u32 plane, u32 width, u32 n, u32 slot) {
    const u32 at = plane + slot / 8, stride = (n + 7) / 8;
    u32 codes = spread_eight(record[at]);
    if (width == 3) codes |= spread_eight(record[at + stride]) << 1 | spread_eight(record[at + 2 * stride]) << 2;
    return n - slot >= 8 ? codes : codes & ((1U << (n - slot) * 4) - 1);
}

// A lane's codes of a tier, in half bytes. Loops over rows stay loops, which keeps the kernels small.
struct Codes {
    u32 rows[2];
    u32 counts;  // escapes of row 0, and of row 1 from bit 16 on

    NZ_DEVICE Codes() : rows{0, 0}, counts(0) {}

    NZ_DEVICE Codes(const u8* record, u32 plane, u32 width, u32 n) : Codes() {
        if (width % 2 == 1) {
#pragma unroll
            for (u32 row = 0; row < 2; ++row) {
                const u32 slot = first_octet() + row * ROW_SLOTS;
                rows[row] = slot < n ? bitmap_codes(record, plane, width, n, slot) : 0;
            }
        } else if (n >= (warp_id() + 1) * NZ_CUDA_WARP_SLOTS) {
            rows[0] = group_codes(record, plane, width, 0);
            rows[1] = group_codes(record, plane, width, 1);
        } else {
#pragma unroll 1
            for (u32 i = 0; i < 4; ++i) {
                const u32 slot = first_octet() + i / 2 * ROW_SLOTS + i % 2 * 4;
                if (slot >= n) continue;
                const u32 codes = below_end(group_quad(record, plane, width, n, slot), n, slot);
                (i < 2 ? rows[0] : rows[1]) |= half_bytes(codes) << i % 2 * 16;
            }
        }
        counts = __popc(escapes(rows[0], width)) | __popc(escapes(rows[1], width)) << 16;
    }

    NZ_DEVICE u32 of_row(u32 row) const { return row == 0 ? rows[0] : rows[1]; }
    NZ_DEVICE u32 warp_total() const { return warp_sum((counts & 0xffff) + (counts >> 16)); }

  private:
    // Of whole groups of 64 bytes: 8 lanes have the same 64 slots of a group, in the same bits of its bytes.
    static NZ_DEVICE u32 group_codes(const u8* record, u32 plane, u32 width, u32 row) {
        const u32 step = lane_id() >> 3, at = plane + (warp_id() * 2 + row) * 32 * width + (lane_id() & 7) * 8;
        // A row is one group of 2 bits, or two of 4 bits.
        const u32 group = width == 2 ? 0 : step / 2 * NZ_PLANE_GROUP_SIZE;
        const u32 shift = width == 2 ? step * 2 : step % 2 * 4, mask = width == 2 ? 3 * ONES : 15 * ONES;
        const Octet codes = bytes_at(record, at + group);
        return half_bytes(Octet{codes.first >> shift & mask, codes.second >> shift & mask});
    }
};

// The escapes of a tier in all warps: `counts` are eight of 16 bits, none above 512.
NZ_DEVICE u32 total_of(const u16* counts) {
    const Vector16 pairs = *(const Vector16*)counts;
    const u32 sums = pairs.word[0] + pairs.word[1] + pairs.word[2] + pairs.word[3];
    return (sums & 0xffff) + (sums >> 16);
}

// The escapes of a tier in the warps before this one.
NZ_DEVICE u32 total_before(const u16* counts) {
    const Vector16 pairs = *(const Vector16*)counts;
    u32 sums = 0;
#pragma unroll
    for (u32 i = 0; i < NZ_CUDA_MAX_WARPS / 2; ++i) {
        if (warp_id() > 2 * i) sums += warp_id() > 2 * i + 1 ? pairs.word[i] : pairs.word[i] & 0xffff;
    }
    return (sums & 0xffff) + (sums >> 16);
}

// The symbols of eight codes. Those of the escapes among them follow each other in `below` from `rank` on.
NZ_DEVICE Octet symbols_of(u32 codes, u32 width, const u32 table[4], const u8* below, u32 rank) {
    const u32 escaped = escapes(codes, width);
    const u32 before = escaped * (HALF_ONES << 4);  // in each half byte the escapes before it
    const Octet tail = bytes_at(below, rank);
    const u32 selector = width == 4 ? codes & 0x77777777U : codes;
    Octet symbols = {select_bytes(table[0], table[1], selector), select_bytes(table[0], table[1], selector >> 16)};
    if (width == 4) {
        const u32 upper = codes >> 3 & HALF_ONES;
        symbols.first = select_bits(select_bytes(0xff00, 0, upper), select_bytes(table[2], table[3], selector),
                                    symbols.first);
        symbols.second = select_bits(select_bytes(0xff00, 0, upper >> 16),
                                     select_bytes(table[2], table[3], selector >> 16), symbols.second);
    }
    return {select_bits(select_bytes(0xff00, 0, escaped), select_bytes(tail.first, tail.second, before), symbols.first),
            select_bits(select_bytes(0xff00, 0, escaped >> 16), select_bytes(tail.first, tail.second, before >> 16),
                        symbols.second)};
}

// Where the escapes of this lane's rows are in the tail, given the rank of the warp's first.
struct Ranks {
    u32 before;  // escapes of the same row in the lanes before; row 1 from bit 16 on
    u32 rows;    // escapes of each row in all lanes
    u32 start;

    NZ_DEVICE Ranks(u32 counts, u32 rank) {
        const u32 inclusive = inclusive_scan(counts);
        before = inclusive - counts;
        rows = __shfl_sync(ALL_LANES, inclusive, 31);
        start = rank;
    }

    // The rank of this lane's first escape in `row`.
    NZ_DEVICE u32 of_row(u32 row) const {
        return row == 0 ? start + (before & 0xffff) : start + (rows & 0xffff) + (before >> 16);
    }
};

// Waits for all threads of the first `warps` warps. They come to it with the same number.
NZ_DEVICE void sync_warps(u32 warps) {
#ifdef NZ_SIMT
    nz_simt_barrier(1, warps * 32);
#else
    asm volatile("barrier.sync 1, %0;" : : "r"(warps * 32) : "memory");
#endif
}

// Stores the symbols of this lane's codes of `tier`, in a plane of `n` at `at`. Those of the first escape of the warp are in
// `below` at `rank`.
NZ_DEVICE void decode_codes(const NzCudaWeight& weight, u32 tier, const u8* record, u32 at, u32 n, const u8* below,
                            u32 rank, u8* symbols) {
    const u32 width = weight.tier_widths[tier];
    const Codes codes(record, at, width, n);
    const Ranks ranks(codes.counts, rank);
#pragma unroll 1
    for (u32 row = 0; row < 2; ++row) {
        const u32 slot = first_octet() + row * ROW_SLOTS;
        if (slot >= n) break;
        const Octet octet = symbols_of(codes.of_row(row), width, weight.symbols[tier], below, ranks.of_row(row));
        *(Vector8*)(symbols + slot) = {{octet.first, octet.second}};
    }
}

// Decodes the tiers behind the first into shared.tails: tier 1 has `count` codes, more than 0, in a plane at `at`. The
// threads of the first `warps` warps take part. False, to all of them: the planes do not fill the record up to `end`.
NZ_DEVICE bool decode_tail(const NzCudaWeight& weight, const Shared& shared, u32 at, u32 end, u32 count, u32 warps) {
    u32 tier = 1;
    do {
        const u32 size = plane_size(weight.tier_widths[tier], count);
        if (size > end - at || count + NZ_CUDA_PADDING > weight.tail_room) return false;
        u32 escaped = 0;
        if (warp_id() * NZ_CUDA_WARP_SLOTS < count) {
            escaped = Codes(shared.record, at, weight.tier_widths[tier], count).warp_total();
        }
        if (lane_id() == 0) shared.counts[tier * NZ_CUDA_MAX_WARPS + warp_id()] = (u16)escaped;
        sync_warps(warps);
        count = total_of(shared.counts + tier * NZ_CUDA_MAX_WARPS);
        at += size;
        ++tier;
    } while (tier < weight.tiers && count > 0);
    // Literals, if any.
    if (count > end - at || end - at - count > 3) return false;

    // The last tier that has codes is `tier - 1`, and `at` is behind its plane.
    const u8* below = shared.record;
    u32 below_at = at;
    while (--tier > 0) {
        count = total_of(shared.counts + (tier - 1) * NZ_CUDA_MAX_WARPS);
        at -= plane_size(weight.tier_widths[tier], count);
        u8* const symbols = shared.tails + (tier % 2 == 1 ? 0 : weight.tail_room);
        if (warp_id() * NZ_CUDA_WARP_SLOTS < count) {
            const u32 rank = below_at + total_before(shared.counts + tier * NZ_CUDA_MAX_WARPS);
            decode_codes(weight, tier, shared.record, at, count, below, rank, symbols);
        }
        if (tier > 1) sync_warps(warps);
        below = symbols;
        below_at = 0;
    }
    return true;
}

// Fetches the record of block `info`, number `index`, and what layers have of it; returns where it starts in shared memory. All threads take part, and none still uses
// what is there.
NZ_DEVICE u32 fetch_record(const NzCudaWeight& weight, const NzCudaBlock& info, u64 index, const Shared& shared) {
    // Counts of warps that there are not, too, and `damaged`.
    for (u32 i = threadIdx.x; i < NZ_CUDA_COUNTS_SIZE / 4; i += blockDim.x) ((u32*)shared.counts)[i] = 0;
    if (threadIdx.x == 0 && has_units(weight)) *shared.place = UnitPlace::of(weight, info.first_slot);
    const u32 at = stage_record(weight, info, shared.record);
    stage_layers(weight, index, shared.record);
    __syncthreads();
    return at;
}

// Where the symbols are that the escapes of tier 0 stand for.
struct Below {
    const u8* symbols;
    u32 at;  // of the first one
};

// Decodes what is behind tier 0, of which this warp has `escaped` escapes, and the raw bits: from `at` to `end`. False, to
// all threads: the planes do not fill the record.
NZ_DEVICE bool open_tail(const NzCudaWeight& weight, const Shared& shared, u32 escaped, u32 at, u32 end,
                         Below& below) {
    if (lane_id() == 0) shared.counts[warp_id()] = (u16)escaped;
    __syncthreads();
    const u32 count = total_of(shared.counts);
    if (weight.tiers == 1 || count == 0) {
        // Literals, if any.
        below = {shared.record, at};
        return count <= end - at && end - at - count <= 3;
    }
    below = {shared.tails, 0};
    const u32 warps = (count + NZ_CUDA_WARP_SLOTS - 1) / NZ_CUDA_WARP_SLOTS;
    const bool is_whole = warp_id() >= warps || decode_tail(weight, shared, at, end, count, warps);
    if (threadIdx.x == 0 && !is_whole) *shared.damaged = 1;  // warp 0 always takes part
    __syncthreads();
    return *shared.damaged == 0;
}

// A block that is ready to give its weights.
struct Block {
    const u8* record;
    Below below;
    u32 n;            // slots
    u32 m;            // mantissa bits in planes
    u32 known;        // as in NzCudaBlock
    u32 raw;          // where the head's first plane is
    Codes codes;      // of tier 0
};

// Fetches block `info`, number `index`, of `n` slots and decodes its tail. All threads take part, and none still uses what is in shared
// memory. False, to all of them: the planes do not fill the record.
NZ_DEVICE bool open_block(const NzCudaWeight& weight, const NzCudaBlock& info, u64 index, u32 n,
                          const Shared& shared, Block& block) {
    u32 at = fetch_record(weight, info, index, shared);
    const u32 end = at + info.record * 4U, width = weight.tier_widths[0];
    const u32 in_head = smaller(info.m, NZ_HEAD_MANTISSA_BITS);
    block.record = shared.record;
    block.n = n;
    block.m = info.m;
    block.known = info.known;
    block.raw = at + plane_size(width, n);
    block.codes = Codes(block.record, at, width, n);
    at = block.raw + field_size(in_head + 1, n) + field_size(info.m - in_head, n);
    if (at > end) return false;
    // Others read what is joined behind a barrier of open_tail.
    if ((info.known & ~NZ_CUDA_CUT) > info.m) {
        block.m = join_layers(weight, shared.record, block.raw, info.m, info.known & ~NZ_CUDA_CUT, n);
        block.raw = weight.joined_at;
    }
    return open_tail(weight, shared, block.codes.warp_total(), at, end, block.below);
}

}  // namespace nz

#endif  // NZ_CUDA_BLOCK_CUH
