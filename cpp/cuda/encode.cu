// Encoding: what a tensor's words are like, how large its records will be, and the records.
#include "words.cuh"

namespace nz {

constexpr u32 MAGNITUDE = 0x7fffffffU;
constexpr u32 MANTISSA = 0x7fffffU;
constexpr u32 SPECIAL_EXPONENT = 255;

NZ_DEVICE u32 exponent_of(u32 word) { return word >> NZ_WORD_MANTISSA_BITS & 255; }
NZ_DEVICE bool is_subnormal(u32 word) { return (word & MAGNITUDE) - 1 < MANTISSA; }

// The place of the top set bit; 0 if none is.
NZ_DEVICE u32 top_bit(u32 bits) { return 31 - (u32)__clz((int)(bits | 1)); }

// Mantissa bits needed so that no bit of `mantissa` is dropped.
NZ_DEVICE u32 needed_bits(u32 mantissa) {
    return mantissa == 0 ? 0 : NZ_WORD_MANTISSA_BITS - top_bit(mantissa & (0 - mantissa));
}

// The mantissa of a subnormal, normalised.
NZ_DEVICE u32 normalised_mantissa(u32 magnitude) {
    return magnitude << (NZ_WORD_MANTISSA_BITS - top_bit(magnitude)) & MANTISSA;
}

// Rounds to `kept` bits behind the leading one, half to even; a finite word stays finite.
NZ_DEVICE u32 rounded(u32 word, u32 kept, u32 element) {
    const u32 magnitude = word & MAGNITUDE, exponent = magnitude >> NZ_WORD_MANTISSA_BITS;
    const u32 leading = exponent == 0 ? top_bit(magnitude) : NZ_WORD_MANTISSA_BITS;
    if (leading <= kept || exponent == SPECIAL_EXPONENT) return word;
    const u32 shift = leading - kept, keep = MAGNITUDE << shift & MAGNITUDE;
    const u32 up = (magnitude + (1U << (shift - 1)) - 1 + (magnitude >> shift & 1)) & keep;
    const u32 largest = element == NZ_CUDA_FLOAT16 ? 142 : 254;
    return (word & ~MAGNITUDE) | (up >> NZ_WORD_MANTISSA_BITS > largest ? magnitude & keep : up);
}

NZ_DEVICE u32 normalised(u32 word) {
    if (!is_subnormal(word)) return word;
    const u32 magnitude = word & MAGNITUDE;
    return (word & ~MAGNITUDE) | (NZ_SUBNORMAL_EXPONENT + top_bit(magnitude)) << NZ_WORD_MANTISSA_BITS |
           normalised_mantissa(magnitude);
}

NZ_DEVICE u32 source_word(const NzCudaEncode& job, u64 element) {
    if (job.element == NZ_CUDA_FLOAT32) return ((const u32*)job.source)[element];
    const u32 bits = ((const u16*)job.source)[element];
    return job.element == NZ_CUDA_FLOAT16 ? word_of_half(bits) : bits << 16;
}

// Where the weights of a block are in the tensor.
struct Source {
    u64 first;    // the element of slot 0; in column tiles, of the tile's part of the row that slot 0 is in
    u32 n;        // slots
    u32 column;   // in column tiles: that of slot 0 in the tile
    u32 columns;  // in column tiles: the tile's
    u32 reciprocal;

    NZ_DEVICE Source(const NzCudaEncode& job, u32 block) {
        const u32 tile = block / job.blocks_per_tile;
        const u64 first_column = tile * job.tile_columns, behind = job.columns - first_column;
        const u64 width = behind < job.tile_columns ? behind : job.tile_columns;
        const u64 slot = (u64)(block - tile * job.blocks_per_tile) * job.block_len, left = job.rows * width - slot;
        n = left < job.block_len ? (u32)left : job.block_len;
        first = slot;
        column = 0;
        columns = 1;
        reciprocal = 0;
        if (job.is_tiled) {
            const u64 row = slot / width;
            columns = (u32)width;
            column = (u32)(slot - row * width);
            first = row * job.columns + first_column;
            reciprocal = reciprocal_of(columns);
        }
    }

    NZ_DEVICE u32 word(const NzCudaEncode& job, u32 slot) const {
        if (!job.is_tiled) return source_word(job, first + slot);
        const u32 at = column + slot, row = row_of(at, columns, reciprocal);
        return source_word(job, first + row * job.columns + (at - row * columns));
    }
};

// The element of a slot of the whole tensor.
NZ_DEVICE u64 element_of_slot(const NzCudaEncode& job, u64 slot) {
    if (!job.is_tiled) return slot;
    const u64 tile = slot / (job.rows * job.tile_columns), first_column = tile * job.tile_columns;
    const u64 behind = job.columns - first_column, width = behind < job.tile_columns ? behind : job.tile_columns;
    const u64 in_tile = slot - job.rows * first_column, row = in_tile / width;
    return row * job.columns + first_column + (in_tile - row * width);
}

// Bits that any word of a kind has.
struct Unions {
    u32 normal, special, subnormal, normalised;
};

// Counts `word` in `joint`, and adds its bits to `unions`.
NZ_DEVICE void count_word(u32 word, u32* joint, Unions& unions) {
    const u32 exponent = exponent_of(word);
    u32 mantissa = word & MANTISSA, row = exponent;
    if (is_subnormal(word)) {
        unions.subnormal |= mantissa;
        row = 256 + top_bit(mantissa);
        mantissa = normalised_mantissa(mantissa);
        unions.normalised |= mantissa;
    } else if (exponent == SPECIAL_EXPONENT) {
        unions.special |= mantissa;
    } else {
        unions.normal |= mantissa;
    }
    u32 ones = (u32)__clz((int)~(mantissa << 9));
    // Half-way to the next power of two: rounded to no bits at all, an even exponent stays.
    if (row < 256 && (word & 0xffffffU) == 1U << 22) ones = 0;
    atomicAdd(&joint[row * NZ_CUDA_ONES + ones], 1U);
}

NZ_DEVICE void survey(const NzCudaEncode& job, u8* memory) {
    u32* const joint = (u32*)memory;
    u32* const widths = joint + NZ_CUDA_JOINT_ROWS * NZ_CUDA_ONES;
    u32* const plain = widths + NZ_CUDA_WIDTH_COUNTS;
    Unions* const unions = (Unions*)(plain + NZ_CUDA_WIDTH_COUNTS);
    for (u32 i = threadIdx.x; i < NZ_CUDA_SURVEY_SIZE / 4; i += blockDim.x) joint[i] = 0;
    __syncthreads();
    u32 turn = 0;
    for (u32 part = blockIdx.x; part < job.parts; part += gridDim.x, turn ^= 1) {
        Unions mine = {0, 0, 0, 0};
        u32 n;
        if (job.sampled_of == 0) {
            const Source block(job, part);
            n = block.n;
            for (u32 slot = threadIdx.x; slot < n; slot += blockDim.x) count_word(block.word(job, slot), joint, mine);
        } else {
            // As the host samples: somewhere else in each stretch.
            n = NZ_CUDA_STRETCH / job.sampled_of;
            const u32 place = (u32)((u64)part * 0x9e3779b97f4a7c15ULL >> 32);
            const u64 first = (u64)part * NZ_CUDA_STRETCH + place % job.sampled_of * n;
            for (u32 slot = threadIdx.x; slot < n; slot += blockDim.x) {
                count_word(source_word(job, element_of_slot(job, first + slot)), joint, mine);
            }
        }
        mine = {warp_union(mine.normal), warp_union(mine.special), warp_union(mine.subnormal),
                warp_union(mine.normalised)};
        Unions& all = unions[turn];
        if (lane_id() == 0) {
            atomicOr(&all.normal, mine.normal);
            atomicOr(&all.special, mine.special);
            atomicOr(&all.subnormal, mine.subnormal);
            atomicOr(&all.normalised, mine.normalised);
        }
        __syncthreads();
        // The others are at the next part, which has the other unions; nobody comes to the one behind it before this.
        if (threadIdx.x == 0) {
            widths[needed_bits(all.normal | all.normalised) * NZ_CUDA_ONES + needed_bits(all.special)] += n;
            plain[needed_bits(all.normal) * NZ_CUDA_ONES + needed_bits(all.special | all.subnormal)] += n;
            all = {0, 0, 0, 0};
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < NZ_CUDA_SURVEY_COUNTS; i += blockDim.x) {
        if (joint[i] != 0) atomicAdd(&job.counts[i], (u64)joint[i]);
    }
}

// The word that is coded for `word`; what there is to tell of it is set in `told`.
NZ_DEVICE u32 coded_word(const NzCudaEncode& job, u32 word, u32& told) {
    const bool normalises = job.transform == NZ_TRANSFORM_NORMALISED;
    if (normalises && exponent_of(word) - NZ_SUBNORMAL_EXPONENT < NZ_SUBNORMAL_EXPONENTS) {
        told |= NZ_CUDA_MEASURED_MISFIT;
    }
    if (job.no_subnormals && is_subnormal(word)) told |= NZ_CUDA_MEASURED_MISFIT;
    const u32 kept = rounded(word, job.kept, job.element);
    if (kept != word) told |= NZ_CUDA_MEASURED_ROUNDED;
    return normalises ? normalised(kept) : kept;
}

NZ_DEVICE void load_places(const NzCudaEncode& job, u8* places) {
    for (u32 i = threadIdx.x; i < 64; i += blockDim.x) ((u32*)places)[i] = ((const u32*)job.places)[i];
}

NZ_DEVICE void measure(const NzCudaEncode& job, u8* memory) {
    u8* const places = memory;
    // Symbols of tiers 1 and 3, 5 and 7, 2 and 4, 6 and 8, in 16 bits each; all mantissas' bits; what there is to tell.
    u32* const totals = (u32*)(memory + 256);
    load_places(job, places);
    if (threadIdx.x < NZ_CUDA_MEASURE_SIZE / 4) totals[threadIdx.x] = 0;
    __syncthreads();
    const Source block(job, blockIdx.x);
    u32 bits = 0, told = 0;
    u64 counts = 0;  // eight of 8 bits
#pragma unroll 4
    for (u32 slot = threadIdx.x; slot < block.n; slot += blockDim.x) {
        const u32 word = coded_word(job, block.word(job, slot), told), tier = places[exponent_of(word)] >> 4;
        bits |= word & MANTISSA;
        if (tier > 0) counts += 1ULL << 8 * (tier - 1);
    }
    const u64 odd = counts & 0x00ff00ff00ff00ffULL, even = counts >> 8 & 0x00ff00ff00ff00ffULL;
    const u32 sums[4] = {warp_sum((u32)odd), warp_sum((u32)(odd >> 32)), warp_sum((u32)even),
                         warp_sum((u32)(even >> 32))};
    bits = warp_union(bits);
    told = warp_union(told);
    if (lane_id() == 0) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) atomicAdd(&totals[i], sums[i]);
        atomicOr(&totals[4], bits);
        atomicOr(&totals[5], told);
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    const u32 m = needed_bits(totals[4]), in_head = smaller(m, NZ_HEAD_MANTISSA_BITS);
    u32 size = plane_size(job.tier_widths[0], block.n) + field_size(in_head + 1, block.n) +
               field_size(m - in_head, block.n);
    // From the literals up: each tier has a code for what is behind the one before it.
    u32 left = 0;
#pragma unroll 1
    for (u32 tier = job.tiers; tier > 0; --tier) {
        const u32 at = tier - 1;
        left += totals[at % 2 * 2 + at / 4] >> at / 2 % 2 * 16 & 0xffff;
        size += tier == job.tiers ? left : plane_size(job.tier_widths[tier], left);
    }
    job.measured[blockIdx.x] = (size + 3) / 4 | m << 16 | totals[5];
}

// A lane's slots of a block.
constexpr u32 SLOT_ROWS = NZ_CUDA_WARP_SLOTS / 32;

// The shared memory of a thread block that writes a record.
struct Desk {
    u8* record;
    u8* codes;     // the values of a plane; behind them zeros
    u8* escaped;   // symbols of the next tier
    u8* escaping;  // symbols of the one after
    u8* places;
    u32* counts;   // escapes of each warp

    NZ_DEVICE Desk(u8* memory, const NzCudaEncode& job) {
        const u32 room = job.block_len + NZ_CUDA_CODES_PADDING;
        record = memory;
        codes = record + job.record_room;
        escaped = codes + room;
        escaping = escaped + room;
        places = escaping + room;
        counts = (u32*)(places + 256);
    }
};

// Stores the lowest `count` bytes of `value`, at most 4, from `at` on.
NZ_DEVICE void put_bytes(u8* record, u32 at, u32 value, u32 count) {
    if (count >= 4 && at % 4 == 0) {
        *(u32*)(record + at) = value;
        return;
    }
#pragma unroll 1
    for (u32 i = 0; i < smaller(count, 4); ++i) record[at + i] = (u8)(value >> 8 * i);
}

// Packs the plane of `n` values of `width` bits in `codes`, behind which there are zeros, to `record` from `at` on.
NZ_DEVICE void pack_plane(const u8* codes, u32 width, u32 n, u8* record, u32 at) {
    if (width == 8) {
        for (u32 i = threadIdx.x * 4; i < n; i += blockDim.x * 4) put_bytes(record, at + i, *(const u32*)(codes + i), n - i);
    } else if (width % 2 == 1) {
        const u32 size = (n + 7) / 8;
#pragma unroll 1
        for (u32 bit = 0; bit < width; ++bit, at += size) {
            for (u32 i = threadIdx.x * 4; i < size; i += blockDim.x * 4) {
                u32 bits = 0;
#pragma unroll
                for (u32 k = 0; k < 8; ++k) {
                    // The product has the lowest bits of the four bytes side by side.
                    const u32 four = *(const u32*)(codes + i * 8 + k * 4) >> bit & ONES;
                    bits |= (four * 0x01020408U >> 24 & 15) << 4 * k;
                }
                put_bytes(record, at + i, bits, size - i);
            }
        }
    } else {
        const u32 log_group = width == 4 ? 7 : 8, last = n >> log_group << log_group;
        const u32 last_size = ((n - last) * width + 7) / 8;
        const u32 quads = (n >> log_group) * (NZ_PLANE_GROUP_SIZE / 4) + (last_size + 3) / 4;
        for (u32 i = threadIdx.x; i < quads; i += blockDim.x) {
            const u32 first = (i >> 4) << log_group, in_group = i % 16 * 4;
            const u32 size = first == last ? last_size : NZ_PLANE_GROUP_SIZE;
            u32 bits = 0;
#pragma unroll 4
            for (u32 k = 0; k < 8 / width; ++k) bits |= word_at(codes, first + in_group + k * size) << k * width;
            put_bytes(record, at + (i >> 4) * NZ_PLANE_GROUP_SIZE + in_group, bits, size - in_group);
        }
    }
}

// The code of `symbol` in `tier`, which is not behind the one that it is in.
NZ_DEVICE u32 code_of(const u8* places, u32 symbol, u32 tier, u32 width) {
    const u32 place = places[symbol];
    return place >> 4 == tier ? place & 15 : (1U << width) - 1;
}

// Puts zeros behind `n` codes.
NZ_DEVICE void end_codes(const Desk& desk, u32 n) {
    for (u32 i = threadIdx.x; i < NZ_CUDA_CODES_PADDING; i += blockDim.x) desk.codes[n + i] = 0;
}

// The escapes in the warps before this one, and in all.
struct Escapes {
    u32 before, all;

    NZ_DEVICE explicit Escapes(const u32* counts) : before(0), all(0) {
        const u32 warps = blockDim.x / 32;
#pragma unroll 1
        for (u32 i = 0; i < warps; ++i) {
            before += i < warp_id() ? counts[i] : 0;
            all += counts[i];
        }
    }

    // Where this lane's symbol goes if it `escapes`, as lanes with their bit in `voted` do.
    NZ_DEVICE void put(u8* symbols, bool escapes, u32 voted, u32 symbol) {
        if (escapes) symbols[before + (u32)__popc(voted & ((1U << lane_id()) - 1))] = (u8)symbol;
        before += (u32)__popc(voted);
    }
};

// The words of this thread, rows of a warp's slots.
struct Words {
    u32 rows[SLOT_ROWS];

    NZ_DEVICE Words(const NzCudaEncode& job, const Source& block) {
        u32 told = 0;
#pragma unroll
        for (u32 row = 0; row < SLOT_ROWS; ++row) {
            const u32 slot = slot_of(row);
            rows[row] = slot < block.n ? coded_word(job, block.word(job, slot), told) : 0;
        }
    }

    static NZ_DEVICE u32 slot_of(u32 row) { return warp_id() * NZ_CUDA_WARP_SLOTS + row * 32 + lane_id(); }
};

// Writes the planes of a field of `bits` bits of each mantissa and sign, from `at` on; returns where they end. All threads
// are done with the codes then. The mantissa's bits from `low` on, above the sign if there is one.
NZ_DEVICE u32 write_field(const Desk& desk, const Words& words, u32 n, u32 bits, u32 low, bool has_sign, u32 at) {
    u32 left = bits;
#pragma unroll 1
    while (left > 0) {
        const u32 width = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        left -= width;
#pragma unroll
        for (u32 row = 0; row < SLOT_ROWS; ++row) {
            const u32 slot = Words::slot_of(row), word = words.rows[row], mantissa = (word & MANTISSA) >> low;
            const u32 field = has_sign ? mantissa << 1 | word >> 31 : mantissa;
            if (slot < n) desk.codes[slot] = (u8)(field >> left & ((1U << width) - 1));
        }
        end_codes(desk, n);
        __syncthreads();
        pack_plane(desk.codes, width, n, desk.record, at);
        at += plane_size(width, n);
        __syncthreads();
    }
    return at;
}

// Writes the tiers behind the first and the literals of `count` escapes from `at` on. False, to all threads: they do not
// end where the record does.
NZ_DEVICE bool write_tail(const NzCudaEncode& job, Desk& desk, u32 count, u32 at, u32 end) {
    const u32 warps = blockDim.x / 32;
#pragma unroll 1
    for (u32 tier = 1; tier < job.tiers && count > 0; ++tier) {
        const u32 width = job.tier_widths[tier], size = plane_size(width, count);
        if (size > end - at) return false;
        // Each warp has as many rows as the others.
        const u32 span = (count + blockDim.x - 1) / (warps * 32) * 32, start = warp_id() * span;
        u32 escaped = 0;
#pragma unroll 1
        for (u32 row = 0; row < span; row += 32) {
            const u32 slot = start + row + lane_id();
            bool escapes = false;
            if (slot < count) {
                const u32 code = code_of(desk.places, desk.escaped[slot], tier, width);
                desk.codes[slot] = (u8)code;
                escapes = code == (1U << width) - 1;
            }
            escaped += (u32)__popc(__ballot_sync(ALL_LANES, escapes));
        }
        if (lane_id() == 0) desk.counts[warp_id()] = escaped;
        end_codes(desk, count);
        __syncthreads();
        Escapes escapes(desk.counts);
#pragma unroll 1
        for (u32 row = 0; row < span; row += 32) {
            const u32 slot = start + row + lane_id();
            const bool here = slot < count && desk.codes[slot] == (1U << width) - 1;
            escapes.put(desk.escaping, here, __ballot_sync(ALL_LANES, here), slot < count ? desk.escaped[slot] : 0);
        }
        pack_plane(desk.codes, width, count, desk.record, at);
        __syncthreads();
        u8* const free = desk.escaped;
        desk.escaped = desk.escaping;
        desk.escaping = free;
        at += size;
        count = escapes.all;
    }
    if (count > end - at || end - at - count > 3) return false;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) desk.record[at + i] = desk.escaped[i];
    return true;
}

// Writes a record to shared memory. False, to all threads: it is not of the size that was measured.
NZ_DEVICE bool write_record(const NzCudaEncode& job, Desk& desk, const Source& block, const NzCudaBlock& info) {
    const u32 n = block.n, end = info.record * 4U, width = job.tier_widths[0];
    const u32 in_head = smaller(info.m, NZ_HEAD_MANTISSA_BITS), in_rest = info.m - in_head;
    const u32 codes_size = plane_size(width, n);
    if (end > job.record_room || codes_size + field_size(in_head + 1, n) + field_size(in_rest, n) > end) return false;
    const Words words(job, block);
    load_places(job, desk.places);
    __syncthreads();
    if (threadIdx.x == 0) *(u32*)(desk.record + end - 4) = 0;
    u32 escaped = 0, mine = 0;  // rows with an escape in this lane
#pragma unroll
    for (u32 row = 0; row < SLOT_ROWS; ++row) {
        const u32 slot = Words::slot_of(row);
        bool escapes = false;
        if (slot < n) {
            const u32 code = code_of(desk.places, exponent_of(words.rows[row]), 0, width);
            desk.codes[slot] = (u8)code;
            escapes = code == (1U << width) - 1;
        }
        escaped += (u32)__popc(__ballot_sync(ALL_LANES, escapes));
        mine |= (u32)escapes << row;
    }
    if (lane_id() == 0) desk.counts[warp_id()] = escaped;
    end_codes(desk, n);
    __syncthreads();
    Escapes escapes(desk.counts);
#pragma unroll
    for (u32 row = 0; row < SLOT_ROWS; ++row) {
        const bool here = mine >> row & 1;
        escapes.put(desk.escaped, here, __ballot_sync(ALL_LANES, here), exponent_of(words.rows[row]));
    }
    pack_plane(desk.codes, width, n, desk.record, 0);
    __syncthreads();
    u32 at = write_field(desk, words, n, in_head + 1, NZ_WORD_MANTISSA_BITS - in_head, true, codes_size);
    const u32 rest_low = NZ_WORD_MANTISSA_BITS - info.m;
    at = write_field(desk, words, n, in_rest, rest_low, false, at);
    return write_tail(job, desk, escapes.all, at, end);
}

NZ_DEVICE void write(const NzCudaEncode& job, u8* memory) {
    Desk desk(memory, job);
    const Source block(job, blockIdx.x);
    const NzCudaBlock info = job.blocks[blockIdx.x];
    if (!write_record(job, desk, block, info)) {
        if (threadIdx.x == 0) atomicOr(job.status, NZ_CUDA_SOURCE_CHANGED);
        return;
    }
    __syncthreads();
    u32* const out = (u32*)(job.payload + (u64)info.offset * 4);
    for (u32 i = threadIdx.x; i < info.record; i += blockDim.x) out[i] = ((const u32*)desk.record)[i];
}

}  // namespace nz

// `least`: thread blocks that a multiprocessor is to have room for.
#define NZ_ENCODE_KERNEL(name, function, least)                                                               \
    extern "C" __global__ void __launch_bounds__(256, least) name(const __grid_constant__ NzCudaEncode job) { \
        NZ_DYNAMIC_SHARED(memory);                                                                            \
        nz::function(job, memory);                                                                            \
    }

NZ_ENCODE_KERNEL(nz_survey, survey, 4)
NZ_ENCODE_KERNEL(nz_measure, measure, 4)
NZ_ENCODE_KERNEL(nz_write, write, 3)
