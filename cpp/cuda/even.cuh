// Decoding a whole block of 4096 weights that has one or two tiers of 2-bit codes and is neither normalised nor on a grid:
// thirty-two weights a thread, few instructions each. Of the thread block 128 threads take part; more only wait.
//
// A group of 64 bytes holds 256 codes, four strides of 64 slots. Eight lanes have a group, a lane two words of it: the codes
// of eight neighbours in each stride. Two strides at a time, in half bytes, the codes of a word become selectors: of the three
// symbols of the tier, or of the four bytes of the tail that start with the first escape of the four neighbours.
#ifndef NZ_CUDA_EVEN_CUH
#define NZ_CUDA_EVEN_CUH

#include "block.cuh"

namespace nz {

constexpr u32 GROUP_SLOTS = 256;
constexpr u32 STRIDE = 64;
constexpr u32 GROUP_LANES = 8;
// A warp has so many slots, a block so many warps.
constexpr u32 EVEN_WARP_SLOTS = 1024;
constexpr u32 EVEN_WARPS = NZ_MAX_BLOCK_LENGTH / EVEN_WARP_SLOTS;

// The group that this lane is one of, and the first of its eight neighbours in each stride.
NZ_DEVICE u32 group_id() { return threadIdx.x / GROUP_LANES; }
NZ_DEVICE u32 lane_in_group() { return threadIdx.x % GROUP_LANES; }
NZ_DEVICE u32 first_in_stride() { return lane_in_group() * 8; }
// Its first slot.
NZ_DEVICE u32 first_even_slot() { return group_id() * GROUP_SLOTS + first_in_stride(); }

// Ones where the codes of a word are escapes.
NZ_DEVICE u32 escapes_of_pairs(u32 codes) { return codes & codes >> 1 & 0x55555555U; }

// The same value, in a register of each lane: permutes do not take one of the warp's, and would copy it each time.
NZ_DEVICE u32 of_lanes(u32 value) { return __shfl_sync(ALL_LANES, value, 0); }

// Four neighbours' codes in each of four strides, as selectors.
struct Sixteen {
    u32 even, odd;  // of strides 0 and 2, and of 1 and 3, in turn
    u32 counts;     // by stride, a byte each: escapes

    NZ_DEVICE Sixteen() {}

    NZ_DEVICE explicit Sixteen(u32 codes) {
        const u32 escaped = escapes_of_pairs(codes);
        const u32 even_escaped = escaped & HALF_ONES, odd_escaped = escaped >> 2 & HALF_ONES;
        // In each half byte the escapes of the same stride up to here.
        const u32 even_up = even_escaped * ONES, odd_up = odd_escaped * ONES;
        // An escape is 3, and becomes 4 for the first of the four, 5 for the second.
        even = (codes & 0x33333333U) + (even_up & even_escaped * 7);
        odd = (codes >> 2 & 0x33333333U) + (odd_up & odd_escaped * 7);
        const u32 last = __byte_perm(even_up, odd_up, 0x7373);
        counts = __byte_perm(last, last >> 4, 0x7610) & 0x0f0f0f0fU;
    }

    // The symbols of stride `S`, of whose escapes `tail` has the first four's.
    template <u32 S>
    NZ_DEVICE u32 symbols(u32 table, u32 tail) const {
        const u32 selectors = S % 2 == 0 ? even : odd;
        return __byte_perm(select_bytes(table, tail, selectors), select_bytes(table, tail, selectors >> 16),
                           S < 2 ? 0x6420 : 0x7531);
    }
};

// Eight neighbours' codes in each of four strides.
struct ThirtyTwo {
    Sixteen first, next;
    u32 before;  // by stride, a byte each: the escapes of the group in front of the eight
    u32 group;   // escapes of the group

    NZ_DEVICE ThirtyTwo() {}

    NZ_DEVICE ThirtyTwo(u32 first_codes, u32 next_codes) : first(first_codes), next(next_codes) {
        const u32 counts = first.counts + next.counts;
        u32 sums = counts;
#pragma unroll
        for (u32 step = 1; step < GROUP_LANES; step <<= 1) {
            const u32 other = __shfl_up_sync(ALL_LANES, sums, step);
            if (lane_in_group() >= step) sums += other;
        }
        const u32 all = __shfl_sync(ALL_LANES, sums, lane_id() | (GROUP_LANES - 1));  // 64 at most, a byte
        const u32 strides = all * (ONES << 8);                                        // those of the strides before
        before = strides + sums - counts;
        group = (strides >> 24) + (all >> 24);
    }

    // The symbols of stride `S`; `from` is where in `below` the group's first escape is.
    template <u32 S>
    NZ_DEVICE Octet symbols(u32 table, const u8* below, u32 from) const {
        const Octet tail = bytes_at(below, __dp4a(before, 1U << 8 * S, from));
        // The next four's start behind the first four's: up to four bytes on, so clamped, not wrapped.
        const u32 next_tail = __funnelshift_rc(tail.first, tail.second, __dp4a(first.counts, 8U << 8 * S, 0U));
        return {first.symbols<S>(table, tail.first), next.symbols<S>(table, next_tail)};
    }
};

// The escapes of the groups before this lane's in its warp; `all` becomes those of the warp. From a lane of one group to
// that of the next are `STEP` lanes.
template <u32 STEP = GROUP_LANES>
NZ_DEVICE u32 group_before(u32 group, u32& all) {
    const u32 neighbour = __shfl_xor_sync(ALL_LANES, group, STEP), pair = group + neighbour;
    const u32 others = __shfl_xor_sync(ALL_LANES, pair, 2 * STEP);
    all = pair + others;
    return (lane_id() & STEP ? neighbour : 0) + (lane_id() & 2 * STEP ? others : 0);
}

// Bytes of this lane's group, of `n` codes in all.
NZ_DEVICE u32 stride_of(u32 n) {
    const u32 slot = group_id() * GROUP_SLOTS;
    return slot >= n ? 0 : smaller(STRIDE, (n - slot + 3) / 4);
}

// The first `n` bytes of four.
NZ_DEVICE u32 first_bytes(u32 four, u32 n) { return n >= 4 ? four : four & ((1U << n * 8) - 1); }

// This lane's eight bytes of a group of `stride` bytes in a plane at `at`: 0 those behind its end.
NZ_DEVICE Octet codes_of_group(const u8* record, u32 at, u32 stride) {
    const u32 first = first_in_stride();
    if (first >= stride) return {0, 0};
    const Octet eight = bytes_at(record, at + group_id() * STRIDE + first);
    const u32 left = stride - first;
    return {first_bytes(eight.first, left), first_bytes(eight.second, left < 4 ? 0 : left - 4)};
}

// The escapes that `counts` has of all four warps, and of those before this one.
struct Totals {
    u32 all, before;

    NZ_DEVICE explicit Totals(const u16* counts) {
        const Vector8 pairs = *(const Vector8*)counts;
        const u32 sums = pairs.word[0] + pairs.word[1];
        all = (sums & 0xffff) + (sums >> 16);
        const u32 warp = warp_id();
        const u32 low = warp >= 2 ? pairs.word[0] : warp == 1 ? pairs.word[0] & 0xffff : 0;
        const u32 part = low + (warp == 3 ? pairs.word[1] & 0xffff : 0);
        before = (part & 0xffff) + (part >> 16);
    }
};

// Decodes tier 1, of `n` codes, into shared.tails; its plane is at `at`, and literals are behind it. The threads of the
// first `warps` warps take part. False, to all of them: that does not fill the record up to `end`.
NZ_DEVICE bool decode_even_tail(const NzCudaWeight& weight, const Shared& shared, u32 at, u32 end, u32 n, u32 warps) {
    const u32 literals = at + plane_size(2, n);
    if (literals > end || n + NZ_CUDA_PADDING > weight.tail_room) return false;
    const u32 stride = stride_of(n);
    const Octet codes = codes_of_group(shared.record, at, stride);
    const ThirtyTwo eights(codes.first, codes.second);
    u32 all, rank = literals + group_before(eights.group, all);
    u16* const counts = shared.counts + NZ_CUDA_MAX_WARPS;
    if (lane_id() == 0) counts[warp_id()] = (u16)all;
    sync_warps(warps);
    const Totals totals(counts);
    if (totals.all > end - literals || end - literals - totals.all > 3) return false;
    rank += totals.before;
    const u32 table = of_lanes(weight.symbols[1][0]), slot = group_id() * GROUP_SLOTS;
    const u8* const record = shared.record;
    const Octet eight[4] = {eights.symbols<0>(table, record, rank), eights.symbols<1>(table, record, rank),
                            eights.symbols<2>(table, record, rank), eights.symbols<3>(table, record, rank)};
    u8* const symbols = shared.tails + slot + first_in_stride();
    if (slot + GROUP_SLOTS <= n) {
#pragma unroll
        for (u32 s = 0; s < 4; ++s) *(Vector8*)(symbols + s * STRIDE) = {{eight[s].first, eight[s].second}};
        return true;
    }
    // The last group, whose strides are shorter: those of a lane's eight bytes that it has. The last stride may have up to
    // three slots that there are not, which are in the padding.
    if (first_in_stride() >= stride) return true;
    const u32 here = stride - first_in_stride();
#pragma unroll
    for (u32 s = 0; s < 4; ++s) {
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            const u32 four = i < 4 ? eight[s].first : eight[s].second;
            if (i < here) symbols[s * stride + i] = (u8)(four >> i % 4 * 8);
        }
    }
    return true;
}

// Eight neighbours of a field of `bits` bits, 0 to 8, whose planes of 4096 values start at `at`: in each of four strides.
NZ_DEVICE void field_strides(const u8* record, u32& at, u32 bits, Octet values[4]) {
    const u32 slot = first_even_slot();
    if (bits == 8) {
#pragma unroll
        for (u32 s = 0; s < 4; ++s) {
            const u32* const eight = (const u32*)(record + at + slot + s * STRIDE);
            values[s] = {eight[0], eight[1]};
        }
        at += NZ_MAX_BLOCK_LENGTH;
        return;
    }
#pragma unroll
    for (u32 s = 0; s < 4; ++s) values[s] = {0, 0};
    if (bits & 4) {
        const u32* const group = (const u32*)(record + at + group_id() * 2 * STRIDE + first_in_stride());
#pragma unroll
        for (u32 s = 0; s < 4; ++s) {
            const u32* const eight = group + s / 2 * (STRIDE / 4);
            values[s] = {eight[0] >> s % 2 * 4 & 15 * ONES, eight[1] >> s % 2 * 4 & 15 * ONES};
        }
        at += NZ_MAX_BLOCK_LENGTH / 2;
    }
    if (bits & 2) {
        const u32* const eight = (const u32*)(record + at + group_id() * STRIDE + first_in_stride());
#pragma unroll
        for (u32 s = 0; s < 4; ++s) {
            values[s].first = values[s].first << 2 | (eight[0] >> s * 2 & 3 * ONES);
            values[s].second = values[s].second << 2 | (eight[1] >> s * 2 & 3 * ONES);
        }
        at += NZ_MAX_BLOCK_LENGTH / 4;
    }
    if (bits & 1) {
#pragma unroll
        for (u32 s = 0; s < 4; ++s) {
            const u32 eight = record[at + slot / 8 + s * (STRIDE / 8)];
            values[s].first = values[s].first << 1 | spread(eight);
            values[s].second = values[s].second << 1 | spread(eight >> 4);
        }
        at += NZ_MAX_BLOCK_LENGTH / 8;
    }
}

// What take_eight of a sink is given: the weights of stride `S`, with and without mantissa bits behind the head.
template <u32 S, class Sink>
NZ_DEVICE void give_stride(Sink& sink, const Octet& symbols, const Octet head[4], const Octet high[4],
                           const Octet low[4]) {
    sink.template take_eight<S>(Quad{symbols.first, head[S].first, high[S].first, low[S].first},
                                Quad{symbols.second, head[S].second, high[S].second, low[S].second}, true);
}

template <u32 S, class Sink>
NZ_DEVICE void give_stride(Sink& sink, const Octet& symbols, const Octet head[4]) {
    sink.template take_eight<S>(Quad{symbols.first, head[S].first, 0, 0}, Quad{symbols.second, head[S].second, 0, 0},
                                false);
}

// Gives the weights of a block of 4096 to `sink`, stride after stride, of which a lane has eight of each; and whether any has
// mantissa bits behind its head. All threads take part, and none still uses what is in shared memory. False, to all of them:
// the planes do not fill the record, and nothing was given.
template <class Sink>
NZ_DEVICE bool decode_even(const NzCudaWeight& weight, const NzCudaBlock& info, const Shared& shared, Sink& sink) {
    const u32 start = stage_record(weight, info, shared.record), end = start + info.record * 4U;
    // Of tier 1, those of warps that take no part in it.
    if (threadIdx.x < EVEN_WARPS) shared.counts[NZ_CUDA_MAX_WARPS + threadIdx.x] = 0;
    if (threadIdx.x == 0) *shared.damaged = 0;
    __syncthreads();

    const u8* const record = shared.record;
    ThirtyTwo eights;
    u32 rank = 0;
    if (warp_id() < EVEN_WARPS) {
        const u32* const codes = (const u32*)(record + start) + threadIdx.x * 2;
        eights = ThirtyTwo(codes[0], codes[1]);
        u32 all;
        rank = group_before(eights.group, all);
        if (lane_id() == 0) shared.counts[warp_id()] = (u16)all;
    }
    __syncthreads();

    const u32 raw = start + NZ_MAX_BLOCK_LENGTH / 4, tail = raw + NZ_MAX_BLOCK_LENGTH / 8 * (info.m + 1U);
    const Totals totals(shared.counts);
    rank += totals.before;
    const u8* below = shared.tails;
    // Header::parse has seen to it that `tail` is in the record.
    if (weight.tiers == 1 || totals.all == 0) {
        if (totals.all > end - tail || end - tail - totals.all > 3) return false;
        below = record + tail;  // literals
    } else {
        const u32 warps = (totals.all + EVEN_WARP_SLOTS - 1) / EVEN_WARP_SLOTS;
        const bool is_whole = warp_id() >= warps || decode_even_tail(weight, shared, tail, end, totals.all, warps);
        if (threadIdx.x == 0 && !is_whole) *shared.damaged = 1;  // warp 0 always takes part
        __syncthreads();
        if (*shared.damaged != 0) return false;
    }
    if (warp_id() >= EVEN_WARPS) return true;

    const u32 in_head = smaller(info.m, NZ_HEAD_MANTISSA_BITS), in_rest = info.m - in_head;
    u32 at = raw;
    Octet head[4];
    field_strides(record, at, in_head + 1, head);
    if (in_head < NZ_HEAD_MANTISSA_BITS) {
#pragma unroll
        for (u32 s = 0; s < 4; ++s) {
            head[s] = {aligned_head(head[s].first, in_head), aligned_head(head[s].second, in_head)};
        }
    }
    const u32 table = of_lanes(weight.symbols[0][0]), from = (u32)(below - record) + rank;
    if (Sink::HAS_REST && in_rest > 0) {
        const u32 in_high = smaller(in_rest, 8), in_low = in_rest - in_high;
        Octet high[4], low[4];
        field_strides(record, at, in_high, high);
        field_strides(record, at, in_low, low);
#pragma unroll
        for (u32 s = 0; s < 4; ++s) {
            high[s] = {high[s].first << (8 - in_high), high[s].second << (8 - in_high)};
            low[s] = {low[s].first << (8 - in_low), low[s].second << (8 - in_low)};
        }
        give_stride<0>(sink, eights.symbols<0>(table, record, from), head, high, low);
        give_stride<1>(sink, eights.symbols<1>(table, record, from), head, high, low);
        give_stride<2>(sink, eights.symbols<2>(table, record, from), head, high, low);
        give_stride<3>(sink, eights.symbols<3>(table, record, from), head, high, low);
        return true;
    }
    give_stride<0>(sink, eights.symbols<0>(table, record, from), head);
    give_stride<1>(sink, eights.symbols<1>(table, record, from), head);
    give_stride<2>(sink, eights.symbols<2>(table, record, from), head);
    give_stride<3>(sink, eights.symbols<3>(table, record, from), head);
    return true;
}

}  // namespace nz

#endif  // NZ_CUDA_EVEN_CUH
