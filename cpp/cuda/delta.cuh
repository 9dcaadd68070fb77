// Deltas: the blob of a base, and what tells weights from those of the base.
//
// A thread block decodes a unit: first the base's blocks that have weights of it, to words in shared memory; then a warp adds
// the residuals of one of the delta's blocks, all on its own, as their raw bits have lengths that add up; then all threads
// take words as they take those of any block.
#ifndef NZ_CUDA_DELTA_CUH
#define NZ_CUDA_DELTA_CUH

#include "octets.cuh"

namespace nz {

// Where words of a base's block go that are in a unit.
struct WordStore {
    u32* words;  // of the unit
    u32 first;   // of the block's slot 0 among them, a multiple of 8; a great number in front of them
    u32 n;       // slots of the unit

    NZ_DEVICE void take(u32 slot, const Quad& first_four, const Quad& next_four, const Step& step) {
        put(first + slot, first_four, step);
        put(first + slot + 4, next_four, step);
    }

  private:
    // Fours may reach behind the unit, where there is room to a multiple of 8.
    NZ_DEVICE void put(u32 at, const Quad& quad, const Step& step) {
        u32 four[4];
        words_of(quad, step, four);
        if (at < n) *(Vector16*)(words + at) = {{four[0], four[1], four[2], four[3]}};
    }
};

// Where words of a whole block go that is decoded the short way.
struct StrideWordStore {
    u32* words;  // of this lane's first eight weights

    static constexpr bool HAS_REST = true;

    NZ_DEVICE explicit StrideWordStore(u32* first) : words(first + first_even_slot()) {}

    template <u32 S>
    NZ_DEVICE void take_eight(const Quad& first, const Quad& second, bool has_rest) {
        u32 four[4];
        split_words_of(first, has_rest, four);
        *(Vector16*)(words + S * STRIDE) = {{four[0], four[1], four[2], four[3]}};
        split_words_of(second, has_rest, four);
        *(Vector16*)(words + S * STRIDE + 4) = {{four[0], four[1], four[2], four[3]}};
    }
};

// A tensor's elements as plain numbers.
struct Plain {
    u32 element;
    u32 width;      // bits
    u32 mantissa;   // bits of it
    u32 exponents;  // the greatest exponent
    u32 sign;       // its bit
    u32 mask;       // all bits

    NZ_DEVICE explicit Plain(u32 type) : element(type), width(16), mantissa(NZ_MANTISSA_BITS_BFLOAT16), exponents(255) {
        if (type == NZ_CUDA_FLOAT32) {
            width = 32;
            mantissa = NZ_MANTISSA_BITS_FLOAT32;
        }
        if (type == NZ_CUDA_FLOAT16) {
            mantissa = NZ_MANTISSA_BITS_FLOAT16;
            exponents = 31;
        }
        sign = 1U << (width - 1);
        mask = sign * 2 - 1;
    }

    // Eight words to their elements' bits, and back.
    NZ_DEVICE void to_bits(u32 words[8]) const {
        if (element == NZ_CUDA_FLOAT32) return;
#pragma unroll
        for (u32 i = 0; i < 8; ++i) words[i] = element == NZ_CUDA_FLOAT16 ? float16_of(words[i]) : words[i] >> 16;
    }
    NZ_DEVICE void to_words(u32 bits[8]) const {
        if (element == NZ_CUDA_FLOAT32) return;
#pragma unroll
        for (u32 i = 0; i < 8; ++i) bits[i] = element == NZ_CUDA_FLOAT16 ? word_of_half(bits[i]) : bits[i] << 16;
    }

    // The weight that has this residual to `base`.
    NZ_DEVICE u32 restored(u32 residual, u32 base, bool is_difference) const {
        if (!is_difference) return base ^ residual;
        // The place of a value in the order of all: from the largest negative one up.
        const u32 place = base ^ (base & sign ? mask : sign), difference = residual >> 1 ^ (0U - (residual & 1));
        const u32 moved = (place + difference) & mask;
        return moved ^ (moved & sign ? sign : mask);
    }
};

// Eight codes of a tier of `n` from `slot` on, in half bytes; 0 behind its end.
NZ_DEVICE u32 octet_codes(const u8* record, u32 plane, u32 width, u32 n, u32 slot) {
    if (slot >= n) return 0;
    if (width % 2 == 1) return bitmap_codes(record, plane, width, n, slot);
    const u32 codes = half_bytes(below_end(group_quad(record, plane, width, n, slot), n, slot));
    if (slot + 4 >= n) return codes;
    return codes | half_bytes(below_end(group_quad(record, plane, width, n, slot + 4), n, slot + 4)) << 16;
}

// A block of a delta, which one warp decodes. All of its lanes call these together.
struct DeltaBlock {
    const NzCudaWeight& weight;
    const NzCudaDelta& delta;
    const u8* record;  // shared memory
    u8* tails;         // the warp's own: symbols of odd tiers, then of even ones
    u32 codes;         // of tier `lane_id()`: how many there are

    NZ_DEVICE u32 codes_of(u32 tier) const { return __shfl_sync(ALL_LANES, codes, tier); }

    NZ_DEVICE u32 escapes_of(u32 tier, u32 at, u32 n) const {
        const u32 width = weight.tier_widths[tier];
        u32 escaped = 0;
#pragma unroll 1
        for (u32 slot = lane_id() * 8; slot < n; slot += ROW_SLOTS) {
            escaped += __popc(escapes(octet_codes(record, at, width, n, slot), width));
        }
        return warp_sum(escaped);
    }

    // Counts the codes of each tier, of which the first has `n`, in planes from `at` on. Moves `at` behind the planes. Returns
    // how many tiers have codes; 0: the planes, or `literals` behind them, pass `end`.
    NZ_DEVICE u32 count(u32& at, u32 end, u32 n, u32& literals) {
        u32 tier = 0;
        codes = 0;
        while (tier < weight.tiers && n > 0) {
            if (lane_id() == tier) codes = n;
            const u32 size = plane_size(weight.tier_widths[tier], n);
            if (size > end - at || (tier > 0 && n + NZ_CUDA_PADDING > weight.tail_room)) return 0;
            n = escapes_of(tier, at, n);
            at += size;
            ++tier;
        }
        literals = n;
        return n > end - at ? 0 : tier;
    }

    // The symbols of eight codes of `tier`, which has `n` in a plane at `at`: those from `slot` on. Symbols of the row's first
    // escape on are in `below` at `rank`, which moves behind those of the row.
    NZ_DEVICE Octet symbols(u32 tier, u32 at, u32 n, u32 slot, const u8* below, u32& rank) const {
        const u32 width = weight.tier_widths[tier], eight = octet_codes(record, at, width, n, slot);
        const u32 escaped = __popc(escapes(eight, width)), inclusive = inclusive_scan(escaped);
        Octet octet = {0, 0};
        if (slot < n) octet = symbols_of(eight, width, weight.symbols[tier], below, rank + inclusive - escaped);
        rank += __shfl_sync(ALL_LANES, inclusive, 31);
        return octet;
    }

    // Adds the residuals in the record, from `at` to `end`, to `n` words, at a multiple of 8 of them. False: symbols and raw
    // bits do not fill the record, or a symbol stands for no length.
    NZ_DEVICE bool add(u32 at, u32 end, u32 n, u32* words) {
        if (at == end) return true;  // all of them are 0
        const u32 first = at;
        u32 literals, tier = count(at, end, n, literals);
        if (tier == 0) return false;
        const u8* below = record;
        u32 below_at = at, plane = at;
        while (--tier > 0) {
            const u32 size = codes_of(tier);
            plane -= plane_size(weight.tier_widths[tier], size);
            u8* const to = tails + (tier % 2 == 1 ? 0 : weight.tail_room);
            u32 rank = below_at;
#pragma unroll 1
            for (u32 slot = lane_id() * 8; slot - lane_id() * 8 < size; slot += ROW_SLOTS) {
                const Octet octet = symbols(tier, plane, size, slot, below, rank);
                if (slot < size) *(Vector8*)(to + slot) = {{octet.first, octet.second}};
            }
            __syncwarp();
            below = to;
            below_at = 0;
        }
        const u32 limit = end * 8;
        u32 bit = (at + literals) * 8, rank = below_at;
#pragma unroll 1
        for (u32 slot = lane_id() * 8; slot - lane_id() * 8 < n; slot += ROW_SLOTS) {
            Octet octet = symbols(0, first, n, slot, below, rank);
            if (n - slot < 8 && slot < n) {
                octet.first = below_end(octet.first, n, slot);
                octet.second = slot + 4 < n ? below_end(octet.second, n, slot + 4) : 0;
            }
            if (!add_row(octet, slot < n, words + slot, bit, limit)) return false;
        }
        __syncwarp();  // the next block takes the same tails
        return limit / 8 - (bit + 7) / 8 <= 3;
    }

  private:
    static NZ_DEVICE u32 symbol_of(const Octet& octet, u32 i) {
        return (i < 4 ? octet.first : octet.second) >> i % 4 * 8 & 255;
    }

    // The length of a residual that is not 0, to a weight of the base.
    NZ_DEVICE u32 length_of(u32 symbol, u32 base, const Plain& plain) const {
        const u32 exponent = base >> plain.mantissa & plain.exponents;
        return symbol - (exponent > delta.exponent ? smaller(exponent - delta.exponent, NZ_CUDA_MAX_LIFT) : 0);
    }

    // Adds the residuals of eight symbols to words, if `there` are such; raw bits of the row start at `bit`, which moves behind
    // them.
    NZ_DEVICE bool add_row(const Octet& octet, bool there, u32* words, u32& bit, u32 limit) const {
        const Plain plain(weight.element);
        u32 bits[8] = {};
        if (there) {
            const Vector16 four = *(const Vector16*)words, next = *(const Vector16*)(words + 4);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                bits[i] = four.word[i];
                bits[i + 4] = next.word[i];
            }
        }
        plain.to_bits(bits);
        u32 raw = 0;
        bool is_bad = false;
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            const u32 symbol = symbol_of(octet, i), below_top = length_of(symbol, bits[i], plain) - 1;
            is_bad |= symbol != 0 && below_top >= plain.width;
            raw += symbol == 0 ? 0 : below_top;
        }
        if (__ballot_sync(ALL_LANES, is_bad) != 0) return false;
        const u32 inclusive = inclusive_scan(raw), all = __shfl_sync(ALL_LANES, inclusive, 31);
        if (all > limit - bit) return false;
        u32 from = bit + inclusive - raw;
        bit += all;
        if (!there) return true;
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            const u32 symbol = symbol_of(octet, i);
            if (symbol == 0) continue;
            const u32 below_top = length_of(symbol, bits[i], plain) - 1, top = 1U << below_top;
            const u32* const word = (const u32*)record + from / 32;
            const u32 residual = top | (__funnelshift_r(word[0], word[1], from % 32) & (top - 1));
            bits[i] = plain.restored(residual, bits[i], delta.is_difference != 0);
            from += below_top;
        }
        plain.to_words(bits);
        *(Vector16*)words = {{bits[0], bits[1], bits[2], bits[3]}};
        *(Vector16*)(words + 4) = {{bits[4], bits[5], bits[6], bits[7]}};
        return true;
    }
};

// What gives the weights of a delta, unit after unit.
struct Overlay {
    static constexpr bool HAS_SHORT = false;

    const NzCudaWeight& weight;  // the delta's; its blocks are units
    const NzCudaDelta& delta;
    u32* words;
    u32 n;  // slots of the unit

    NZ_DEVICE Overlay(const NzCudaWeight& units, const NzCudaDelta& to_base, u8* memory)
        : weight(units), delta(to_base), words((u32*)memory), n(0) {}

    // Weights that products put here are the words; sums, in the end, take their place.
    NZ_DEVICE u8* rest() const { return (u8*)words; }

    // Decodes unit `info`, number `index`, of `slots` slots. All threads take part, and none still uses what is in shared
    // memory. False, to all of them: a record of delta or base is damaged.
    NZ_DEVICE bool open(const NzCudaBlock& info, u64 index, u32 slots) {
        n = slots;
        const u32 tile = (u32)index / weight.blocks_per_tile;
        const u32 in_tile = (u32)index - tile * weight.blocks_per_tile;
        if (!open_base(info.first_slot, tile, in_tile)) return false;
        const u32 start = stage_record(weight, weight.blocks[index], room());
        if (threadIdx.x == 0) *damaged() = 0;
        __syncthreads();
        const u64 first = (u64)tile * delta.blocks_per_tile + (u64)in_tile * (weight.block_len / delta.block_len);
        const u32 warps = blockDim.x / 32;
        DeltaBlock block = {weight, delta, room(), room() + weight.record_room + warp_id() * 2 * weight.tail_room, 0};
        u32 at = start;
#pragma unroll 1
        for (u32 i = 0; i * delta.block_len < n; ++i) {
            const u32 slot = i * delta.block_len, end = at + delta.sizes[first + i] * 4U;
            if (i % warps == warp_id()) {
                const bool is_whole = block.add(at, end, smaller(delta.block_len, n - slot), words + slot);
                if (lane_id() == 0 && !is_whole) *damaged() = 1;
            }
            at = end;
        }
        __syncthreads();
        return *damaged() == 0;
    }

    template <class Sink>
    NZ_DEVICE void give(Sink& sink) const {
#pragma unroll 1
        for (u32 row = 0; row < 2; ++row) {
            if (warp_id() * NZ_CUDA_WARP_SLOTS + row * ROW_SLOTS >= n) break;
            const u32 slot = first_octet() + row * ROW_SLOTS;
            u32 eight[8] = {};
            if (slot < n) {
                const Vector16 four = *(const Vector16*)(words + slot), next = *(const Vector16*)(words + slot + 4);
#pragma unroll
                for (u32 i = 0; i < 4; ++i) {
                    eight[i] = four.word[i];
                    eight[i + 4] = next.word[i];
                }
            }
            sink.take_words(slot, eight);
        }
    }

  private:
    NZ_DEVICE u32* damaged() const { return words + weight.block_len; }
    NZ_DEVICE u8* room() const { return (u8*)damaged() + NZ_CUDA_VERDICT_SIZE; }

    // Decodes the base's blocks that have weights of unit `in_tile` of tile `tile`, which starts at `first_slot`.
    NZ_DEVICE bool open_base(u64 first_slot, u32 tile, u32 in_tile) {
        const NzCudaWeight& base = delta.base;
        const Shared shared(room(), base);
        u32 index = tile * base.blocks_per_tile + (u32)((u64)in_tile * weight.block_len / base.block_len);
#pragma unroll 1
        for (;; ++index) {
            const NzCudaBlock info = base.blocks[index];
            if (info.first_slot >= first_slot + n) break;  // as the last entry, which no block goes with
            const u32 slots = (u32)(base.blocks[index + 1].first_slot - info.first_slot);
            // A unit of so many is that block: both start at multiples of them in the tile.
            if (base.is_even && slots == NZ_MAX_BLOCK_LENGTH && n == slots) {
                StrideWordStore strides(words);
                if (!decode_even(base, info, shared, strides)) return false;
            } else {
                Block block;
                if (!open_block(base, info, index, slots, shared, block)) return false;
                WordStore store = {words, (u32)(info.first_slot - first_slot), n};
                for_each_octet(base, block, shared, store);
            }
            __syncthreads();  // the next block takes the same shared memory
        }
        return true;
    }
};

}  // namespace nz

#endif  // NZ_CUDA_DELTA_CUH
