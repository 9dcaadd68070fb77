// Decoding a whole block of 4096 bfloat16 weights that has two tiers of 2-bit codes: a warp on its own, 128 weights a
// lane, straight from global memory. Only what is behind tier 0 comes to shared memory.
//
// A pass is four groups of 256 slots. As in even.cuh, eight lanes have a group, a lane eight neighbours in each of its
// four strides of 64; or it is eight groups, and four lanes have each. What is told by four neighbours' codes, which
// symbols are theirs and how many are escapes, is looked up at once: 256 words in shared memory, a permute's selector
// with the escapes above it.
//
// Symbols are bytes with the lowest bit on top: so a bfloat16's upper byte is theirs but for the top bit, and its lower
// byte has their top bit.
#ifndef NZ_CUDA_LEAN_CUH
#define NZ_CUDA_LEAN_CUH

#include "even.cuh"

namespace nz {

constexpr u32 PASSES = 4;
constexpr u32 PASS_SLOTS = NZ_MAX_BLOCK_LENGTH / PASSES;
// How symbols behind tier 0 are in shared memory. Bytes: those of four neighbours' escapes are looked for in two words,
// and shifted to their place. Windows: each symbol has a word, of which it is the first byte and the three symbols
// behind it are the others; so what four neighbours want is one load, for four times the room.
enum Tails : u32 { BYTES = 1, WINDOWS = 4 };
// Bytes in front of the windows.
constexpr u32 WINDOWS_START = 16;
// Codes of tier 1 that a warp decodes at once: sixteen lanes have a group, a lane four neighbours in each stride.
constexpr u32 TAIL_SLOTS = 2 * GROUP_SLOTS;
constexpr u32 TAIL_LANES = 16;
// And those that it decodes at once with a byte of the plane a lane.
constexpr u32 LAST_SLOTS = 4 * 32;

// The lowest bit of each byte on top of the others.
NZ_DEVICE u32 turned(u32 bytes) { return select_bits(127 * ONES, bytes >> 1, bytes << 7); }

// Places in shared memory are numbers here, so that where a thread block's starts is summed up with the rest.
NZ_DEVICE u32 place_of(const u8* shared) {
#ifdef NZ_SIMT
    return nz_simt_place_of(shared);
#else
    return (u32)__cvta_generic_to_shared(shared);
#endif
}
NZ_DEVICE u8* shared_at(u32 place) {
#ifdef NZ_SIMT
    return nz_simt_shared_at(place);
#else
    return (u8*)__cvta_shared_to_generic(place);
#endif
}

// What `table` says of the four codes that a word has of stride `S`. Those of an even stride, in the lowest bits, want
// factors four times as great as those of an odd one; which are bytes, unlike four times 64.
template <u32 S>
NZ_DEVICE u32 looked_up(u32 table, u32 codes) {
    const u32 pair = S < 2 ? codes : codes >> 4;
    const u32 place = S % 2 == 0 ? __dp4a(pair & 3 * ONES, 4 * NZ_CUDA_SELECTOR_FACTORS, table)
                                 : __dp4a(pair & 12 * ONES, NZ_CUDA_SELECTOR_FACTORS, table);
    return *(const u32*)shared_at(place);
}

// The escapes that words of the table have, or sums of two, one for each stride: a byte each. Sums of four words have a
// carry from below there, and none in the next byte, which has eight times as many.
template <u32 WORDS = 1>
NZ_DEVICE u32 escapes_of(u32 stride_0, u32 stride_1, u32 stride_2, u32 stride_3) {
    constexpr u32 BYTE = WORDS <= 2 ? 0x62 : 0x73;
    const u32 low = __byte_perm(stride_0, stride_1, BYTE), high = __byte_perm(stride_2, stride_3, BYTE);
    return __byte_perm(low, high, 0x5410) >> (WORDS <= 2 ? 0 : 3);
}

// `value` and, unless this is among the first `STEP` of `LANES` lanes, that of the lane `STEP` before.
template <u32 LANES, u32 STEP>
NZ_DEVICE u32 with_lane_before(u32 value) {
#ifdef NZ_SIMT
    const u32 other = __shfl_up_sync(ALL_LANES, value, STEP);
    return lane_id() % LANES >= STEP ? value + other : value;
#else
    // The shuffle itself says whether there is such a lane.
    asm volatile(
        "{ .reg .u32 other; .reg .pred is_there;\n"
        "shfl.sync.up.b32 other|is_there, %0, %1, %2, 0xffffffff;\n"
        "@is_there add.u32 %0, %0, other; }"
        : "+r"(value) : "n"(STEP), "n"((32 - LANES) << 8));
    return value;
#endif
}

// The escapes of a group in front of each stride's part of this lane, a byte each, where `LANES` have the group, each
// `APART` behind the last; `group` becomes those of the group.
template <u32 LANES, u32 APART = 1>
NZ_DEVICE u32 escapes_before(u32 counts, u32& group) {
    constexpr u32 SPAN = LANES * APART;
    u32 sums = with_lane_before<SPAN, APART>(counts);
    sums = with_lane_before<SPAN, 2 * APART>(sums);
    if constexpr (LANES >= 8) sums = with_lane_before<SPAN, 4 * APART>(sums);
    if constexpr (LANES == 16) sums = with_lane_before<SPAN, 8 * APART>(sums);
    const u32 all = __shfl_sync(ALL_LANES, sums, lane_id() | (SPAN - APART));  // 64 at most, a byte
    group = __dp4a(all, ONES, 0U);
    return all * (ONES << 8) + sums - counts;
}

// Puts a symbol where it belongs: in its own window, and in those of the three before.
NZ_DEVICE void put_in_windows(u8* window, u8 symbol) {
#pragma unroll
    for (int i = 0; i < 4; ++i) window[-3 * i] = symbol;
}

// Puts a word's first three symbols in the windows before that of the first.
NZ_DEVICE void put_in_windows_before(u8* window, u32 symbols) {
    window[-9] = window[-3] = (u8)symbols;
    *(u16*)(window - 6) = (u16)symbols;
    *(u16*)(window - 2) = (u16)(symbols >> 8);
}

// Windows of four symbols, behind which there are `next`.
NZ_DEVICE Vector16 windows_of(u32 symbols, u32 next) {
    return {{symbols, __funnelshift_r(symbols, next, 8), __funnelshift_r(symbols, next, 16),
             __funnelshift_r(symbols, next, 24)}};
}

// Where a warp's block is: in global memory, of which its words are read once, and in shared memory.
struct LeanPlace {
    const u8* record;  // in global memory
    u32 table;         // what codes are looked up in
    u32 tail;          // symbols behind tier 0
    u32 literals;      // as they are stored
    u32 tail_room;     // bytes of each
};

// The table's words that four codes of each stride have.
struct Entries {
    u32 stride[4];

    NZ_DEVICE Entries() {}
    NZ_DEVICE Entries(u32 table, u32 codes)
        : stride{looked_up<0>(table, codes), looked_up<1>(table, codes), looked_up<2>(table, codes),
                 looked_up<3>(table, codes)} {}
};

// The first symbols of stride `S` that the next lane has, of those that lanes have of this stride and the next; of the
// last lane's of a group, those of the first in the next stride, or behind the last stride of the next group.
template <u32 LANES, u32 S>
NZ_DEVICE u32 of_next_lane(u32 symbols, u32 next_stride) {
    const u32 next = lane_id() + 1, lane = S < 3 ? (lane_id() & ~(LANES - 1)) | (next % LANES) : next % 32;
    return __shfl_sync(ALL_LANES, lane_id() % LANES == 0 ? next_stride : symbols, lane);
}

// Decodes two groups of tier 1, of which `IS_WHOLE` says that they are there in full, from slot `first` on.
// `rank` is where in shared memory the first escape of them is, and then that behind the last.
template <bool IS_WHOLE, Tails TAILS>
NZ_DEVICE void decode_tail_groups(const LeanPlace& place, u32 symbols, const u8* plane, u32 first, u32 n, u32& rank) {
    const u32 slot = first + lane_id() / TAIL_LANES * GROUP_SLOTS, byte = lane_id() % TAIL_LANES * 4;
    const u32 stride = IS_WHOLE ? STRIDE : slot >= n ? 0 : smaller(STRIDE, (n - slot + 3) / 4);
    u32 codes = 0;
    if (IS_WHOLE) {
        codes = *(const u32*)(plane + first / 4 + lane_id() * 4);
    } else if (byte < stride) {
        codes = first_bytes(*(const u32*)(plane + first / 4 + lane_id() * 4), stride - byte);
    }
    const Entries entries(place.table, codes);
    u32 group;
    const u32 before = escapes_before<TAIL_LANES>(
        escapes_of(entries.stride[0], entries.stride[1], entries.stride[2], entries.stride[3]), group);
    const u32 other = __shfl_xor_sync(ALL_LANES, group, TAIL_LANES);
    const u32 start = rank + (lane_id() & TAIL_LANES ? other : 0);
    rank += group + other;
    u32 decoded[4];
#pragma unroll
    for (u32 s = 0; s < 4; ++s) {
        const u32 four = word_at(shared_at(0), __dp4a(before, 1U << 8 * s, start));
        decoded[s] = select_bytes(symbols, four, entries.stride[s]);
    }
    u8* const to = shared_at(place.tail + TAILS * (slot + byte));
    if (TAILS == WINDOWS && IS_WHOLE) {
        const u32 next[4] = {of_next_lane<TAIL_LANES, 0>(decoded[0], decoded[1]),
                             of_next_lane<TAIL_LANES, 1>(decoded[1], decoded[2]),
                             of_next_lane<TAIL_LANES, 2>(decoded[2], decoded[3]),
                             of_next_lane<TAIL_LANES, 3>(decoded[3], decoded[0])};
#pragma unroll
        for (u32 s = 0; s < 4; ++s) *(Vector16*)(to + s * STRIDE * TAILS) = windows_of(decoded[s], next[s]);
        if (lane_id() == 0) put_in_windows_before(to, decoded[0]);
    } else if (TAILS == BYTES && stride == STRIDE) {
#pragma unroll
        for (u32 s = 0; s < 4; ++s) *(u32*)(to + s * STRIDE) = decoded[s];
    } else if (byte < stride) {
        // Of the last group those that there are, and up to three in the padding.
        const u32 here = stride - byte;
#pragma unroll
        for (u32 s = 0; s < 4; ++s) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const u8 symbol = (u8)(decoded[s] >> 8 * i);
                if (i >= here) continue;
                if (TAILS == WINDOWS) {
                    put_in_windows(to + TAILS * (s * stride + i), symbol);
                } else {
                    to[s * stride + i] = symbol;
                }
            }
        }
    }
}

// The same of the last codes, LAST_SLOTS at most: a lane has a code of each stride.
template <Tails TAILS>
NZ_DEVICE void decode_last_codes(const LeanPlace& place, u32 symbols, const u8* plane, u32 first, u32 n, u32& rank) {
    const u32 stride = (n - first + 3) / 4;
    const bool is_there = lane_id() < stride;
    const u32 codes = is_there ? plane[first / 4 + lane_id()] : 0, lanes_before = (1U << lane_id()) - 1;
    u8* to = shared_at(place.tail + TAILS * (first + lane_id()));
#pragma unroll
    for (u32 s = 0; s < 4; ++s) {
        const bool is_escape = (~codes & 3U << 2 * s) == 0;
        const u32 escapes = __ballot_sync(ALL_LANES, is_escape);
        u32 symbol = select_bytes(symbols, 0, codes >> 2 * s & 3);
        if (is_escape) symbol = *shared_at(rank + __popc(escapes & lanes_before));
        // The last stride may have up to three that there are not, which are in the padding.
        if (is_there && TAILS == WINDOWS) put_in_windows(to, (u8)symbol);
        if (is_there && TAILS == BYTES) *to = (u8)symbol;
        rank += __popc(escapes);
        to += TAILS * stride;
    }
}

// Eight neighbours' symbols of stride `S`: those of `symbols`, or of the escapes in front of which `before` and `rank`
// tell.
template <u32 S>
NZ_DEVICE Octet eight_symbols(u32 symbols, u32 before, u32 rank, const Entries& first, const Entries& next) {
    const Octet below = bytes_at(shared_at(0), __dp4a(before, 1U << 8 * S, rank));
    // The next four's start behind the first four's: up to four bytes on, so clamped, not wrapped.
    const u32 next_below = __funnelshift_rc(below.first, below.second, first.stride[S] >> 24);
    return {select_bytes(symbols, below.first, first.stride[S]), select_bytes(symbols, next_below, next.stride[S])};
}

// The escapes of the group in front of each stride's part of this lane, a byte each; `group` becomes those of the
// group.
template <u32 APART = 1>
NZ_DEVICE u32 escapes_before(const Entries& first, const Entries& next, u32& group) {
    const u32* const low = first.stride;
    const u32* const high = next.stride;
    return escapes_before<GROUP_LANES, APART>(
        escapes_of(low[0] + high[0], low[1] + high[1], low[2] + high[2], low[3] + high[3]), group);
}

// Puts a lane's eight symbols of stride `S` in their windows, `to`.
template <u32 S>
NZ_DEVICE void put_eight_in_windows(u8* to, const Octet& eight, u32 next_stride) {
    Vector16* const windows = (Vector16*)(to + S * STRIDE * WINDOWS);
    windows[0] = windows_of(eight.first, eight.second);
    windows[1] = windows_of(eight.second, of_next_lane<GROUP_LANES, S>(eight.first, next_stride));
}

// The same as decode_tail_groups of four whole groups: a pass, as of tier 0.
template <Tails TAILS>
NZ_DEVICE void decode_tail_pass(const LeanPlace& place, u32 symbols, const u8* plane, u32 slot, u32& rank) {
    const u32* const codes = (const u32*)(plane + slot / 4 + lane_id() * 8);
    const Entries first(place.table, codes[0]), next(place.table, codes[1]);
    u32 group, all;
    const u32 before = escapes_before(first, next, group);
    const u32 start = rank + group_before(group, all);
    rank += all;
    u8* const to =
        shared_at(place.tail + TAILS * (slot + lane_id() / GROUP_LANES * GROUP_SLOTS + first_in_stride()));
    // Two strides at a time: the block's codes have most registers.
    const Octet zero = eight_symbols<0>(symbols, before, start, first, next);
    const Octet one = eight_symbols<1>(symbols, before, start, first, next);
    if (TAILS == WINDOWS) put_eight_in_windows<0>(to, zero, one.first);
    const Octet two = eight_symbols<2>(symbols, before, start, first, next);
    if (TAILS == WINDOWS) put_eight_in_windows<1>(to, one, two.first);
    const Octet three = eight_symbols<3>(symbols, before, start, first, next);
    if (TAILS == WINDOWS) {
        put_eight_in_windows<2>(to, two, three.first);
        put_eight_in_windows<3>(to, three, zero.first);
        if (lane_id() == 0 && slot > 0) put_in_windows_before(to, zero.first);
        return;
    }
    *(Vector8*)to = {{zero.first, zero.second}};
    *(Vector8*)(to + STRIDE) = {{one.first, one.second}};
    *(Vector8*)(to + 2 * STRIDE) = {{two.first, two.second}};
    *(Vector8*)(to + 3 * STRIDE) = {{three.first, three.second}};
}

// Decodes tier 1, of `n` codes in a plane at `at` of the record, which ends at `end`, and what is behind it. False, to
// all lanes: that does not fill the record.
template <Tails TAILS>
NZ_DEVICE bool decode_lean_tail(const LeanPlace& place, u32 symbols, u32 at, u32 end, u32 n) {
    const u32 literals = at + plane_size(2, n);
    if (literals > end || n + NZ_CUDA_PADDING > place.tail_room || end - literals > n + 3) return false;
    const u32 words = literals & ~3U;
#pragma unroll 1
    for (u32 i = words + lane_id() * 4; i < end; i += 128) {
        *(u32*)shared_at(place.literals + (i - words)) = turned(*(const u32*)(place.record + i));
    }
    __syncwarp();
    u32 rank = place.literals + (literals & 3), first = 0;
    const u32 start = rank;
    const u8* const plane = place.record + at;
#pragma unroll 1
    for (; first + PASS_SLOTS <= n; first += PASS_SLOTS) {
        decode_tail_pass<TAILS>(place, symbols, plane, first, rank);
        if (TAILS == WINDOWS) __syncwarp();  // the next codes' symbols are put in windows of these
    }
#pragma unroll 1
    for (; first + TAIL_SLOTS <= n; first += TAIL_SLOTS) {
        decode_tail_groups<true, TAILS>(place, symbols, plane, first, n, rank);
        if (TAILS == WINDOWS) __syncwarp();
    }
    if (n - first > LAST_SLOTS) {
        decode_tail_groups<false, TAILS>(place, symbols, plane, first, n, rank);
    } else if (first < n) {
        decode_last_codes<TAILS>(place, symbols, plane, first, n, rank);
    }
    const u32 count = rank - start;
    return count <= end - literals && end - literals - count <= 3;
}

// Signs and mantissas of four weights: signs on top of each byte, mantissas below the top. Other bits may be anything.
struct Heads {
    u32 signs, mantissas;
};

// A block whose codes have been read. `LANES` have a group, 8 or 4; they are `APART`: 1, or as many as there are groups
// in a pass, g of them, and then lane g i + j is lane i of group j.
template <u32 LANES, u32 APART, Tails TAILS>
struct LeanLanes {
    static_assert(LANES == 4 || LANES == 8, "a lane has 16 or 8 neighbours");
    static_assert(APART == 1 || APART == 32 / LANES, "groups of a pass are that far apart, or their lanes");

    // Words of tier 0 that a lane has of a group, of four neighbours each; passes, and slots of one.
    static constexpr u32 WORDS = STRIDE / 4 / LANES;
    static constexpr u32 PASSES = 8 / WORDS;
    static constexpr u32 PASS_SLOTS = NZ_MAX_BLOCK_LENGTH / PASSES;

    Entries entries[PASSES][WORDS];
    u32 before[PASSES];  // by stride, a byte each: escapes of the group in front of the lane's
    u32 rank[PASSES];    // where in shared memory the symbol of the group's first escape is
    u32 symbols;         // of tier 0
    const u8* heads;     // in global memory, the planes of signs and mantissas
    u32 m;
    u32 lane = read_lane();

    // The lane's group in a pass, and its place there.
    NZ_DEVICE u32 group() const { return APART == 1 ? lane_id() / LANES : lane % APART; }
    NZ_DEVICE u32 in_group() const { return APART == 1 ? lane_id() % LANES : lane / APART; }

    // This lane's words of tier 0.
    NZ_DEVICE void read_codes(const u8* record, u32 codes[8]) {
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            const u8* const of_pass = record + i / WORDS * (PASS_SLOTS / 4);
            codes[i] = *(const u32*)(of_pass + group() * STRIDE + in_group() * (WORDS * 4) + i % WORDS * 4);
        }
    }

    // Reads tier 0 and decodes what is behind it. All lanes of a warp come here. False, to all of them: the planes do
    // not fill the record.
    NZ_DEVICE bool open(const NzCudaWeight& weight, const NzCudaBlock& info, const LeanPlace& place,
                        const u32 codes[8]) {
        u32 groups[PASSES];
#pragma unroll
        for (u32 pass = 0; pass < PASSES; ++pass) {
            u32 counts[4];  // and what else words of the table have
#pragma unroll
            for (u32 i = 0; i < WORDS; ++i) {
                entries[pass][i] = Entries(place.table, codes[WORDS * pass + i]);
#pragma unroll
                for (u32 s = 0; s < 4; ++s) counts[s] = (i == 0 ? 0 : counts[s]) + entries[pass][i].stride[s];
            }
            before[pass] =
                escapes_before<LANES, APART>(escapes_of<WORDS>(counts[0], counts[1], counts[2], counts[3]), groups[pass]);
        }
        // Two passes in a word: a pass has 2048 escapes at most.
        u32 n = 0;
#pragma unroll
        for (u32 pass = 0; pass < PASSES; pass += 2) {
            u32 all;
            const u32 of_groups = before_group(groups[pass] | groups[pass + 1] << 16, all);
            rank[pass] = place.tail + TAILS * (n + (of_groups & 0xffff));
            n += all & 0xffff;
            rank[pass + 1] = place.tail + TAILS * (n + (of_groups >> 16));
            n += all >> 16;
        }

        // Behind the table, not from constants: permutes do not take registers of the warp, and would copy them each
        // time.
        const u32* const tables = weight.selectors + NZ_CUDA_SELECTORS_SIZE / 4;
        m = info.m;
        heads = place.record + NZ_MAX_BLOCK_LENGTH / 4;
        // Header::parse has seen to it that `at` is in the record.
        const u32 at = NZ_MAX_BLOCK_LENGTH / 4 + NZ_MAX_BLOCK_LENGTH / 8 * (info.m + 1U), end = info.record * 4U;
        const bool is_whole = n == 0 ? end - at <= 3 : decode_lean_tail<TAILS>(place, tables[1], at, end, n);
        __syncwarp();
        symbols = tables[0];  // not before: the tail wants all registers that there are
        return is_whole;
    }

    // Gives pass `P` to `sink`: eight neighbours of each stride, or twice eight, as four words of two bfloat16. `BITS`
    // is what kind() says.
    template <u32 P, u32 BITS, class Sink>
    NZ_DEVICE void give(Sink& sink) const {
        give_half<P, BITS, 0>(sink);
        give_half<P, BITS, 1>(sink);
    }

    // The first two strides of it, or the others.
    template <u32 P, u32 BITS, u32 HALF, class Sink>
    NZ_DEVICE void give_half(Sink& sink) const {
        give_stride<P, BITS, 2 * HALF>(sink);
        give_stride<P, BITS, 2 * HALF + 1>(sink);
    }

    // In place of what kind() says: any.
    static constexpr u32 ANY_BITS = 32;

    // Raw bits that there are quick ways for, or 0.
    NZ_DEVICE u32 kind() const { return m == 7 || m == 4 ? m + 1 : 0; }

  private:
    // The lane's number, read anew for each block: what follows from it takes no registers from one to the next.
    static NZ_DEVICE u32 read_lane() {
#ifdef NZ_SIMT
        return lane_id();
#else
        u32 lane;
        asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
        return lane;
#endif
    }

    // From a lane of one group to that of the next.
    static constexpr u32 FIRST_OTHER = APART == 1 ? LANES : 1;

    // The escapes of the groups before this lane's in its warp; `all` becomes those of the warp.
    static NZ_DEVICE u32 before_group(u32 group, u32& all) {
        u32 before = group_before<FIRST_OTHER>(group, all);
        if (LANES == 4) {
            const u32 others = __shfl_xor_sync(ALL_LANES, all, 4 * FIRST_OTHER);
            all += others;
            if (lane_id() & 4 * FIRST_OTHER) before += others;
        }
        return before;
    }

    template <u32 P, u32 BITS, u32 S, class Sink>
    NZ_DEVICE void give_stride(Sink& sink) const {
        u32 exponents[WORDS];
        symbols_of<P, S>(exponents);
        give_eight<P, BITS, S, 0>(sink, exponents);
        if constexpr (WORDS == 4) give_eight<P, BITS, S, 1>(sink, exponents + 2);
    }

    // The symbols of stride `S`.
    template <u32 P, u32 S>
    NZ_DEVICE void symbols_of(u32 found[WORDS]) const {
        if constexpr (TAILS == BYTES) {
            static_assert(WORDS == 2, "what is shifted to its place");
            const Octet eight = eight_symbols<S>(symbols, before[P], rank[P], entries[P][0], entries[P][1]);
            found[0] = eight.first;
            found[1] = eight.second;
            return;
        }
        u32 window = __dp4a(before[P], 4U << 8 * S, rank[P]);
#pragma unroll
        for (u32 i = 0; i < WORDS; ++i) {
            const u32 entry = entries[P][i].stride[S];
            found[i] = select_bytes(symbols, *(const u32*)shared_at(window), entry);
            window = __dp4a(entry, 4U << 16, window);  // four bytes on for each escape
        }
    }

    // The neighbours numbered 8 * `E` and on, of the lane's in a stride.
    template <u32 P, u32 BITS, u32 S, u32 E, class Sink>
    NZ_DEVICE void give_eight(Sink& sink, const u32 exponents[2]) const {
        Heads four[2];
        heads_of<P, BITS, S, E>(four);
        u32 words[4];
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            const u32 low = select_bits(127 * ONES, four[i].mantissas, exponents[i]);
            const u32 high = select_bits(127 * ONES, exponents[i], four[i].signs);
            words[2 * i] = __byte_perm(low, high, 0x5140);
            words[2 * i + 1] = __byte_perm(low, high, 0x7362);
        }
        if constexpr (WORDS == 4) {
            sink.template take<P, S, E>(words);
        } else {
            sink.template take<P, S>(words);
        }
    }

    // Where in a plane of `BITS` bits, 1, 2, 4 or 8, these eight weights of stride `S` are. What is the lane's
    // comes first, so that all else is a constant.
    template <u32 P, u32 BITS, u32 S, u32 E>
    NZ_DEVICE const u8* plane_at(const u8* plane) const {
        constexpr u32 STEP = BITS == 1 ? S * (STRIDE / 8) : S / (8 / BITS) * STRIDE;
        constexpr u32 EIGHT = BITS == 1 ? 1 : 8;  // bytes
        const u32 of_lane = group() * (GROUP_SLOTS / 8 * BITS) + in_group() * (WORDS / 2 * EIGHT);
        return plane + of_lane + (P * (PASS_SLOTS / 8 * BITS) + STEP + E * EIGHT);
    }

    template <u32 P, u32 BITS, u32 S, u32 E>
    NZ_DEVICE void heads_of(Heads four[2]) const {
        if (BITS == 5) {
            // A plane of four bits, the mantissa; and one of signs.
            const u32* const nibbles = (const u32*)plane_at<P, 4, S, E>(heads);
            const u32 signs = *plane_at<P, 1, S, E>(heads + NZ_MAX_BLOCK_LENGTH / 2);
#pragma unroll
            for (u32 i = 0; i < 2; ++i) {
                four[i].mantissas = (S % 2 == 0 ? nibbles[i] << 3 : nibbles[i] >> 1) & 120 * ONES;
                // The bit of each weight to the top of its byte.
                four[i].signs = (signs >> 4 * i & 15) * 0x10204080U;
            }
            return;
        }
        Octet both;
        if (BITS == 8 || (BITS == ANY_BITS && m == 7)) {
            const u32* const eight = (const u32*)plane_at<P, 8, S, E>(heads);
            both = {eight[0], eight[1]};
        } else {
            generic_plane<P, S, E>(both);
        }
        four[0] = {both.first << 7, both.first >> 1};
        four[1] = {both.second << 7, both.second >> 1};
    }

    // The heads of any number of bits, with mantissas moved to the top.
    template <u32 P, u32 S, u32 E>
    NZ_DEVICE void generic_plane(Octet& values) const {
        const u8* plane = heads;
        const u32 bits = m + 1;
        values = {0, 0};
        if (bits & 4) {
            const u32* const eight = (const u32*)plane_at<P, 4, S, E>(plane);
            values = {eight[0] >> S % 2 * 4 & 15 * ONES, eight[1] >> S % 2 * 4 & 15 * ONES};
            plane += NZ_MAX_BLOCK_LENGTH / 2;
        }
        if (bits & 2) {
            const u32* const eight = (const u32*)plane_at<P, 2, S, E>(plane);
            values = {values.first << 2 | (eight[0] >> S * 2 & 3 * ONES),
                      values.second << 2 | (eight[1] >> S * 2 & 3 * ONES)};
            plane += NZ_MAX_BLOCK_LENGTH / 4;
        }
        if (bits & 1) {
            const u32 eight = *plane_at<P, 1, S, E>(plane);
            values = {values.first << 1 | spread(eight), values.second << 1 | spread(eight >> 4)};
        }
        values = {aligned_head(values.first, m), aligned_head(values.second, m)};
    }
};

typedef LeanLanes<8, 1, BYTES> Lean;

// Has the memory of a record on its way before it is asked for.
NZ_DEVICE void prefetch(const u8* record, u32 size) {
#ifndef NZ_SIMT
    // Lines of 128 bytes, behind the codes, which are read at once: most that a record may have.
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        const u32 at = NZ_MAX_BLOCK_LENGTH / 4 + (i * 32 + lane_id()) * 128;
        if (at < size) asm volatile("prefetch.global.L2 [%0];" : : "l"(record + at));
    }
#else
    (void)record, (void)size;
#endif
}

// Where a warp's block is. In shared memory the table comes first, then the tails of `warps` warps, then their
// literals.
template <Tails TAILS>
NZ_DEVICE LeanPlace lean_place(const NzCudaWeight& weight, const NzCudaBlock& info, u32 warps, u8* memory) {
    const u32 room = weight.tail_room, table = place_of(memory), tails = table + NZ_CUDA_SELECTORS_SIZE;
    // (Of windows, n + NZ_CUDA_PADDING take less than four times the room.)
    const u32 tail = tails + warp_id() * (TAILS * room) + (TAILS == WINDOWS ? WINDOWS_START : 0);
    const u32 literals = tails + warps * (TAILS * room) + warp_id() * room;
    return {weight.blob + weight.payload + (u64)info.offset * 4, table, tail, literals, room};
}

// Brings the table of codes to shared memory. Others read it behind a barrier.
NZ_DEVICE void stage_selectors(const NzCudaWeight& weight, u8* memory) {
    if (threadIdx.x < NZ_CUDA_SELECTORS_SIZE / 16) {
        ((Vector16*)memory)[threadIdx.x] = ((const Vector16*)weight.selectors)[threadIdx.x];
    }
}

// Opens this warp's block, number `index`, where the table is in shared memory. False: it is damaged.
template <u32 LANES, u32 APART, Tails TAILS>
NZ_DEVICE bool open_staged(const NzCudaWeight& weight, u32 index, u32 warps, u8* memory,
                           LeanLanes<LANES, APART, TAILS>& lean) {
    const NzCudaBlock info = weight.blocks[index];
    const LeanPlace place = lean_place<TAILS>(weight, info, warps, memory);
    prefetch(place.record, info.record * 4U);
    u32 codes[8];
    lean.read_codes(place.record, codes);
    return lean.open(weight, info, place, codes);
}

// Brings the table to shared memory and opens this warp's block, number `index`. All threads come here; those of a warp
// whose block there is not may take another one's. False: the block is damaged.
template <u32 LANES, u32 APART, Tails TAILS>
NZ_DEVICE bool open_lean(const NzCudaWeight& weight, u32 index, u32 warps, u8* memory,
                         LeanLanes<LANES, APART, TAILS>& lean) {
    const NzCudaBlock info = weight.blocks[index];
    const LeanPlace place = lean_place<TAILS>(weight, info, warps, memory);
    prefetch(place.record, info.record * 4U);
    u32 codes[8];
    lean.read_codes(place.record, codes);
    stage_selectors(weight, memory);
    __syncthreads();
    return lean.open(weight, info, place, codes);
}

}  // namespace nz

#endif  // NZ_CUDA_LEAN_CUH
