// Decoding a whole block of 4096 weights that has one or two tiers of 2-bit codes and is neither normalised nor on a grid:
// sixteen weights a thread, few instructions each.
//
// A group of 64 bytes holds 256 codes, four strides of 64 slots. Half a warp has a group, a lane one word of it: the codes
// of four neighbours in each stride. Two strides at a time, in half bytes, the codes become selectors: of the three symbols
// of the tier, or of the four bytes of the tail that start with the first escape of the four neighbours.
#ifndef NZ_CUDA_EVEN_CUH
#define NZ_CUDA_EVEN_CUH

#include "block.cuh"

namespace nz {

constexpr u32 GROUP_SLOTS = 256;
constexpr u32 STRIDE = 64;

// Ones where the codes of a word are escapes.
NZ_DEVICE u32 escapes_of_pairs(u32 codes) { return codes & codes >> 1 & 0x55555555U; }

// The same value, in a register of each lane: permutes do not take one of the warp's, and would copy it each time.
NZ_DEVICE u32 of_lanes(u32 value) { return __shfl_sync(ALL_LANES, value, 0); }

// Four neighbours' codes in each of four strides, as selectors.
struct Sixteen {
    u32 even, odd;  // of strides 0 and 2, and of 1 and 3, in turn
    u32 before;     // by stride, a byte each: the escapes of the group in front of the four
    u32 group;      // escapes of the group

    NZ_DEVICE explicit Sixteen(u32 codes) {
        const u32 escaped = escapes_of_pairs(codes);
        const u32 even_escaped = escaped & HALF_ONES, odd_escaped = escaped >> 2 & HALF_ONES;
        // In each half byte the escapes of the same stride up to here.
        const u32 even_up = even_escaped * ONES, odd_up = odd_escaped * ONES;
        // An escape is 3, and becomes 4 for the first of the four, 5 for the second.
        even = (codes & 0x33333333U) + (even_up & even_escaped * 7);
        odd = (codes >> 2 & 0x33333333U) + (odd_up & odd_escaped * 7);
        const u32 last = __byte_perm(even_up, odd_up, 0x7373);
        const u32 counts = __byte_perm(last, last >> 4, 0x7610) & 0x0f0f0f0fU;
        u32 sums = counts;
#pragma unroll
        for (u32 step = 1; step < 16; step <<= 1) {
            const u32 other = __shfl_up_sync(ALL_LANES, sums, step);
            if ((lane_id() & 15) >= step) sums += other;
        }
        const u32 all = __shfl_sync(ALL_LANES, sums, lane_id() | 15);  // 64 at most, a byte
        const u32 strides = all * (ONES << 8);                         // those of the strides before
        before = strides + sums - counts;
        group = (strides >> 24) + (all >> 24);
    }

    // The symbols of stride `S`; `first` is where in `below` the group's first escape is.
    template <u32 S>
    NZ_DEVICE u32 symbols(u32 table, const u8* below, u32 first) const {
        const u32 selectors = S % 2 == 0 ? even : odd;
        const u32 tail = word_at(below, __dp4a(before, 1U << 8 * S, first));
        return __byte_perm(select_bytes(table, tail, selectors), select_bytes(table, tail, selectors >> 16),
                           S < 2 ? 0x6420 : 0x7531);
    }
};

// The group of this half of a warp, and the first of the four neighbours in its stride.
NZ_DEVICE u32 group_id() { return threadIdx.x >> 4; }
NZ_DEVICE u32 first_in_stride() { return (lane_id() & 15) * 4; }

// The escapes of the groups before this lane's in its warp; `both` becomes those of the warp.
NZ_DEVICE u32 group_before(u32 group, u32& both) {
    const u32 other = __shfl_xor_sync(ALL_LANES, group, 16);
    both = group + other;
    return lane_id() < 16 ? 0 : other;
}

// Bytes of this half warp's group, of `n` codes in all.
NZ_DEVICE u32 stride_of(u32 n) {
    const u32 slot = group_id() * GROUP_SLOTS;
    return slot >= n ? 0 : smaller(STRIDE, (n - slot + 3) / 4);
}

// This lane's four bytes of a group of `stride` bytes in a plane at `at`: 0 those behind its end.
NZ_DEVICE u32 codes_of_group(const u8* record, u32 at, u32 stride) {
    const u32 first = first_in_stride();
    if (first >= stride) return 0;
    const u32 four = word_at(record, at + group_id() * STRIDE + first);
    return stride - first >= 4 ? four : four & ((1U << (stride - first) * 8) - 1);
}

// The escapes that `counts` has of all warps, from bit 16 on, and of those before this one.
NZ_DEVICE u32 totals_of(const u16* counts) {
    const u32 warp = lane_id() & (NZ_CUDA_MAX_WARPS - 1), count = counts[warp];
    u32 sums = count << 16 | (warp < warp_id() ? count : 0);
#pragma unroll
    for (u32 step = 1; step < NZ_CUDA_MAX_WARPS; step <<= 1) sums += __shfl_xor_sync(ALL_LANES, sums, step);
    return sums;
}

// Decodes tier 1, of `n` codes, into shared.tails; its plane is at `at`, and literals are behind it. The threads of the
// first `warps` warps take part. False, to all of them: that does not fill the record up to `end`.
NZ_DEVICE bool decode_even_tail(const NzCudaWeight& weight, const Shared& shared, u32 at, u32 end, u32 n, u32 warps) {
    const u32 literals = at + plane_size(2, n);
    if (literals > end || n + NZ_CUDA_PADDING > weight.tail_room) return false;
    const u32 stride = stride_of(n);
    const Sixteen sixteen(codes_of_group(shared.record, at, stride));
    u32 both, rank = literals + group_before(sixteen.group, both);
    u16* const counts = shared.counts + NZ_CUDA_MAX_WARPS;
    if (lane_id() == 0) counts[warp_id()] = (u16)both;
    sync_warps(warps);
    const u32 totals = totals_of(counts), escaped = totals >> 16;
    if (escaped > end - literals || end - literals - escaped > 3) return false;
    rank += totals & 0xffff;
    const u32 table = of_lanes(weight.symbols[1][0]), slot = group_id() * GROUP_SLOTS;
    const u8* const record = shared.record;
    const u32 four[4] = {sixteen.symbols<0>(table, record, rank), sixteen.symbols<1>(table, record, rank),
                         sixteen.symbols<2>(table, record, rank), sixteen.symbols<3>(table, record, rank)};
    u8* const symbols = shared.tails + slot + first_in_stride();
    if (stride == STRIDE && slot + GROUP_SLOTS <= n) {
#pragma unroll
        for (u32 s = 0; s < 4; ++s) *(u32*)(symbols + s * STRIDE) = four[s];
        return true;
    }
    // The last group, whose strides are shorter: those of a lane's four bytes that it has, and slots that there are.
    const u32 left = n - slot - first_in_stride(), here = stride - first_in_stride();
    if (first_in_stride() >= stride) return true;
#pragma unroll
    for (u32 s = 0; s < 4; ++s) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if (i < here && s * stride + i < left) symbols[s * stride + i] = (u8)(four[s] >> 8 * i);
        }
    }
    return true;
}

// Four neighbours of a field of `bits` bits, 0 to 8, whose planes of 4096 values start at `at`: in each of four strides.
NZ_DEVICE void field_strides(const u8* record, u32& at, u32 bits, u32 values[4]) {
    const u32 slot = group_id() * GROUP_SLOTS + first_in_stride();
    if (bits == 8) {
#pragma unroll
        for (u32 s = 0; s < 4; ++s) values[s] = *(const u32*)(record + at + slot + s * STRIDE);
        at += NZ_MAX_BLOCK_LENGTH;
        return;
    }
#pragma unroll
    for (u32 s = 0; s < 4; ++s) values[s] = 0;
    if (bits & 4) {
        const u32* const group = (const u32*)(record + at + group_id() * 2 * STRIDE + first_in_stride());
#pragma unroll
        for (u32 s = 0; s < 4; ++s) values[s] = group[s / 2 * (STRIDE / 4)] >> s % 2 * 4 & 15 * ONES;
        at += NZ_MAX_BLOCK_LENGTH / 2;
    }
    if (bits & 2) {
        const u32 word = *(const u32*)(record + at + group_id() * STRIDE + first_in_stride());
#pragma unroll
        for (u32 s = 0; s < 4; ++s) values[s] = values[s] << 2 | (word >> s * 2 & 3 * ONES);
        at += NZ_MAX_BLOCK_LENGTH / 4;
    }
    if (bits & 1) {
#pragma unroll
        for (u32 s = 0; s < 4; ++s) {
            values[s] = values[s] << 1 | spread(record[at + slot / 8 + s * (STRIDE / 8)] >> (slot & 4));
        }
        at += NZ_MAX_BLOCK_LENGTH / 8;
    }
}

// Gives the weights of a block of 4096 to `sink`, stride after stride, of which a lane has four of each; and whether any has
// mantissa bits behind its head. All
// threads take part, and none still uses what is in shared memory. False, to all of them: the planes do not fill the record,
// and nothing was given.
template <class Sink>
NZ_DEVICE bool decode_even(const NzCudaWeight& weight, const NzCudaBlock& info, const Shared& shared, Sink& sink) {
    const u32 start = stage_record(weight, info, shared.record), end = start + info.record * 4U;
    // Of tier 1, those of warps that take no part in it.
    if (threadIdx.x < NZ_CUDA_MAX_WARPS) shared.counts[NZ_CUDA_MAX_WARPS + threadIdx.x] = 0;
    if (threadIdx.x == 0) *shared.damaged = 0;
    __syncthreads();

    const u8* const record = shared.record;
    const Sixteen sixteen(((const u32*)(record + start))[threadIdx.x]);
    u32 both, rank = group_before(sixteen.group, both);
    if (lane_id() == 0) shared.counts[warp_id()] = (u16)both;
    __syncthreads();

    const u32 raw = start + NZ_MAX_BLOCK_LENGTH / 4, tail = raw + NZ_MAX_BLOCK_LENGTH / 8 * (info.m + 1U);
    const u32 totals = totals_of(shared.counts), escaped = totals >> 16;
    rank += totals & 0xffff;
    const u8* below = shared.tails;
    // Header::parse has seen to it that `tail` is in the record.
    if (weight.tiers == 1 || escaped == 0) {
        if (escaped > end - tail || end - tail - escaped > 3) return false;
        below = record + tail;  // literals
    } else {
        const u32 warps = (escaped + NZ_CUDA_WARP_SLOTS - 1) / NZ_CUDA_WARP_SLOTS;
        const bool is_whole = warp_id() >= warps || decode_even_tail(weight, shared, tail, end, escaped, warps);
        if (threadIdx.x == 0 && !is_whole) *shared.damaged = 1;  // warp 0 always takes part
        __syncthreads();
        if (*shared.damaged != 0) return false;
    }

    const u32 in_head = smaller(info.m, NZ_HEAD_MANTISSA_BITS), in_rest = info.m - in_head;
    u32 at = raw;
    u32 head[4];
    field_strides(record, at, in_head + 1, head);
    if (in_head < NZ_HEAD_MANTISSA_BITS) {
#pragma unroll
        for (u32 s = 0; s < 4; ++s) head[s] = aligned_head(head[s], in_head);
    }
    const u32 table = of_lanes(weight.symbols[0][0]), from = (u32)(below - record) + rank;
    if (Sink::HAS_REST && in_rest > 0) {
        u32 high[4], low[4];
        const u32 in_high = smaller(in_rest, 8), in_low = in_rest - in_high;
        field_strides(record, at, in_high, high);
        field_strides(record, at, in_low, low);
#pragma unroll
        for (u32 s = 0; s < 4; ++s) {
            high[s] <<= 8 - in_high;
            low[s] <<= 8 - in_low;
        }
        sink.template take_four<0>(Quad{sixteen.symbols<0>(table, record, from), head[0], high[0], low[0]}, true);
        sink.template take_four<1>(Quad{sixteen.symbols<1>(table, record, from), head[1], high[1], low[1]}, true);
        sink.template take_four<2>(Quad{sixteen.symbols<2>(table, record, from), head[2], high[2], low[2]}, true);
        sink.template take_four<3>(Quad{sixteen.symbols<3>(table, record, from), head[3], high[3], low[3]}, true);
        return true;
    }
    sink.template take_four<0>(Quad{sixteen.symbols<0>(table, record, from), head[0], 0, 0}, false);
    sink.template take_four<1>(Quad{sixteen.symbols<1>(table, record, from), head[1], 0, 0}, false);
    sink.template take_four<2>(Quad{sixteen.symbols<2>(table, record, from), head[2], 0, 0}, false);
    sink.template take_four<3>(Quad{sixteen.symbols<3>(table, record, from), head[3], 0, 0}, false);
    return true;
}

}  // namespace nz

#endif  // NZ_CUDA_EVEN_CUH
