// Runs CUDA kernels on the CPU, for tests: include this in front of an unmodified .cu file.
//
// Each CUDA thread is a fibre. It runs until it comes to a barrier or a warp collective; that is completed when all the
// threads that it needs have come to the same one, and is an error when they cannot. Thread blocks run one after the
// other. What a GPU leaves open is chosen by a seed: which warp goes next, and its lanes in which order. Shared memory
// starts as poison. Any number of launches may run at the same time on different threads of the process.
//
// Tensor cores: what a warp multiplies is added one product after the other, by K, each sum rounded to float32. A GPU
// adds in another way.
//
// Not shown: asynchronous copies, the memory model between barriers, anything about speed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fibre.hpp"

#define NZ_SIMT 1
#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define NZ_DYNAMIC_SHARED(name) unsigned char* const name = simt::Engine::current->shared()

namespace simt {

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};

struct Config {
    Dim grid;
    unsigned threads = 32;      // a thread block
    std::size_t shared = 0;     // bytes a thread block
    std::uint64_t seed = 0;     // 0: warps and lanes in order
};

enum class Op {
    run,
    shuffle,
    shuffle_up,
    shuffle_xor,
    ballot,
    warp_barrier,
    multiply_add,
    load_matrices,
    barrier,
    named_barrier,
    exited
};

inline const char* name(Op op) {
    static const char* const names[] = {"no collective", "__shfl_sync",  "__shfl_up_sync", "__shfl_xor_sync",
                                        "__ballot_sync", "__syncwarp",   "mma.sync",       "ldmatrix",
                                        "__syncthreads", "barrier.sync", "exit"};
    return names[static_cast<int>(op)];
}

// A lane's part of a product of 16 x 16 and 16 x 8 bfloat16 numbers, and of the sums that it is added to.
struct MultiplyAdd {
    float* sums;
    std::uint32_t a[4], b[2];
};

// A lane's part of a load of four 8 x 8 matrices of 16-bit elements: a row, and the words that it gets.
struct LoadMatrices {
    const unsigned char* row;
    std::uint32_t* words;
    bool is_transposed;
};

// A CUDA thread, and what it waits for.
struct Thread {
    Fibre fibre;
    Dim index;
    Op op = Op::run;
    std::uint32_t mask = 0, value = 0, argument = 0, result = 0;
    const MultiplyAdd* operands = nullptr;
    const LoadMatrices* matrices = nullptr;
};

class Engine {
  public:
    inline static thread_local Engine* current = nullptr;

    Engine(const Config& config, void (*kernel)(const void*), const void* arguments)
        : config_(config), kernel_(kernel), arguments_(arguments), random_(config.seed), threads_(config.threads) {}

    // Runs the grid. The error, or nothing.
    std::string run() {
        Engine* const outer = current;
        current = this;
        for (block.y = 0; block.y < config_.grid.y && error_.empty(); ++block.y) {
            for (block.x = 0; block.x < config_.grid.x && error_.empty(); ++block.x) run_block();
        }
        current = outer;
        return error_;
    }

    std::uint32_t collective(Op op, std::uint32_t mask, std::uint32_t value = 0, std::uint32_t argument = 0) {
        Thread& self = *running_;
        self.op = op;
        self.mask = mask;
        self.value = value;
        self.argument = argument;
        self.fibre.pause();
        return self.result;
    }

    void multiply_add(const MultiplyAdd& operands) {
        running_->operands = &operands;
        collective(Op::multiply_add, 0xffffffffU);
    }

    void load_matrices(const LoadMatrices& matrices) {
        running_->matrices = &matrices;
        collective(Op::load_matrices, 0xffffffffU);
    }

    unsigned char* shared() { return shared_.get(); }
    const Dim& thread_index() const { return running_->index; }
    Dim threads() const { return {config_.threads, 1, 1}; }
    const Dim& grid() const { return config_.grid; }
    Dim block{0, 0, 0};

  private:
    static constexpr unsigned warp_size = 32;

    static void enter() {
        Engine& engine = *current;
        engine.running_->fibre.entered();
        engine.kernel_(engine.arguments_);
        engine.running_->op = Op::exited;
        engine.running_->fibre.leave();
    }

    // xorshift64*, below `n`.
    unsigned below(unsigned n) {
        random_ ^= random_ >> 12;
        random_ ^= random_ << 25;
        random_ ^= random_ >> 27;
        return static_cast<unsigned>((random_ * 0x2545f4914f6cdd1dULL >> 32) % n);
    }

    void run_block() {
        // An allocation of just its size for each block: a sanitizer sees what goes beyond it.
        shared_.reset(static_cast<unsigned char*>(std::aligned_alloc(16, (config_.shared + 15) / 16 * 16)));
        std::memset(shared_.get(), 0xcd, config_.shared);
        for (unsigned i = 0; i < config_.threads; ++i) {
            threads_[i].index = {i, 0, 0};
            threads_[i].op = Op::run;
            threads_[i].fibre.prepare(enter);
        }
        const unsigned warps = (config_.threads + warp_size - 1) / warp_size;
        std::vector<unsigned> ready;
        while (error_.empty()) {
            ready.clear();
            for (unsigned warp = 0; warp < warps; ++warp) {
                if (can_run(warp)) ready.push_back(warp);
            }
            if (!ready.empty()) {
                const unsigned warp = ready[config_.seed == 0 ? 0 : below(static_cast<unsigned>(ready.size()))];
                run_warp(warp);
                complete_collectives(warp);
            } else if (!pass_barrier()) {
                break;
            }
        }
    }

    unsigned warp_end(unsigned warp) const { return std::min((warp + 1) * warp_size, config_.threads); }

    bool can_run(unsigned warp) const {
        for (unsigned i = warp * warp_size; i < warp_end(warp); ++i) {
            if (threads_[i].op == Op::run) return true;
        }
        return false;
    }

    void run_warp(unsigned warp) {
        unsigned order[warp_size];
        const unsigned first = warp * warp_size, count = warp_end(warp) - first;
        for (unsigned i = 0; i < count; ++i) order[i] = first + i;
        if (config_.seed != 0) {
            for (unsigned i = count; i > 1; --i) std::swap(order[i - 1], order[below(i)]);
        }
        for (unsigned i = 0; i < count; ++i) {
            if (threads_[order[i]].op != Op::run) continue;
            running_ = &threads_[order[i]];
            running_->fibre.resume();
        }
    }

    // Gives their results to the lanes whose collective has all its lanes.
    void complete_collectives(unsigned warp) {
        const unsigned first = warp * warp_size, end = warp_end(warp);
        for (unsigned i = first; i < end && error_.empty(); ++i) {
            const Thread& lane = threads_[i];
            if (lane.op != Op::shuffle && lane.op != Op::shuffle_up && lane.op != Op::shuffle_xor &&
                lane.op != Op::ballot && lane.op != Op::warp_barrier && lane.op != Op::multiply_add &&
                lane.op != Op::load_matrices) {
                continue;
            }
            if ((lane.mask >> (i - first) & 1) == 0) return fail(i, "is not in its own mask");
            if (all_arrived(first, end, lane)) complete(first, lane.op, lane.mask);
        }
    }

    bool all_arrived(unsigned first, unsigned end, const Thread& lane) {
        for (unsigned l = 0; l < warp_size; ++l) {
            if ((lane.mask >> l & 1) == 0) continue;
            const unsigned i = first + l;
            if (i >= end || threads_[i].op == Op::exited) {
                fail(lane.index.x, "waits for lane " + std::to_string(l) + ", which has exited or never was");
                return false;
            }
            if (threads_[i].op != lane.op || threads_[i].mask != lane.mask) return false;
        }
        return true;
    }

    void complete(unsigned first, Op op, std::uint32_t mask) {
        if (op == Op::multiply_add) complete_product(first);
        if (op == Op::load_matrices) complete_matrices(first);
        std::uint32_t votes = 0;
        for (unsigned l = 0; l < warp_size; ++l) {
            if ((mask >> l & 1) != 0) votes |= std::uint32_t{threads_[first + l].value != 0} << l;
        }
        for (unsigned l = 0; l < warp_size; ++l) {
            if ((mask >> l & 1) == 0) continue;
            Thread& lane = threads_[first + l];
            unsigned source = l;
            if (op == Op::shuffle) source = lane.argument % warp_size;
            if (op == Op::shuffle_up && l >= lane.argument) source = l - lane.argument;
            if (op == Op::shuffle_xor) source = (l ^ lane.argument) % warp_size;
            // What a lane outside of the mask gives is undefined.
            lane.result = (mask >> source & 1) != 0 ? threads_[first + source].value : 0xdeadbeef;
            if (op == Op::ballot) lane.result = votes;
        }
        for (unsigned l = 0; l < warp_size; ++l) {
            if ((mask >> l & 1) != 0) threads_[first + l].op = Op::run;
        }
    }

    // Of a word of two bfloat16 numbers the one that is asked for.
    static float bfloat16(std::uint32_t two, unsigned which) {
        const std::uint32_t bits = which == 0 ? two << 16 : two & 0xffff0000U;
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }

    void complete_product(unsigned first) {
        // Where K is: in which of four lanes, in which of two words, in which half of it.
        const auto operands = [&](unsigned lane) -> const MultiplyAdd& { return *threads_[first + lane].operands; };
        for (unsigned row = 0; row < 16; ++row) {
            for (unsigned column = 0; column < 8; ++column) {
                float& sum = operands(row % 8 * 4 + column / 2).sums[row / 8 * 2 + column % 2];
                for (unsigned k = 0; k < 16; ++k) {
                    const unsigned lane = k % 8 / 2;
                    const float a = bfloat16(operands(row % 8 * 4 + lane).a[k / 8 * 2 + row / 8], k % 2);
                    const float b = bfloat16(operands(column * 4 + lane).b[k / 8], k % 2);
                    sum = std::fma(a, b, sum);
                }
            }
        }
    }

    void complete_matrices(unsigned first) {
        const auto row = [&](unsigned lane) { return threads_[first + lane].matrices->row; };
        for (unsigned l = 0; l < warp_size; ++l) {
            const LoadMatrices& lane = *threads_[first + l].matrices;
            for (unsigned matrix = 0; matrix < 4; ++matrix) {
                std::uint16_t two[2];
                for (unsigned i = 0; i < 2; ++i) {
                    const unsigned in_row = l % 4 * 2 + i, in_column = l / 4;
                    const unsigned char* const from = lane.is_transposed ? row(matrix * 8 + in_row) + in_column * 2
                                                                         : row(matrix * 8 + in_column) + in_row * 2;
                    std::memcpy(&two[i], from, 2);
                }
                lane.words[matrix] = two[0] | std::uint32_t{two[1]} << 16;
            }
        }
    }

    // No warp can run: threads are at barriers, or done. False when the block is done, or fails.
    bool pass_barrier() {
        for (const Thread& thread : threads_) {
            if (thread.op == Op::named_barrier && pass_named(thread.argument, thread.value)) return true;
        }
        unsigned waiting = 0, exited = 0;
        for (const Thread& thread : threads_) {
            waiting += thread.op == Op::barrier;
            exited += thread.op == Op::exited;
        }
        if (exited == config_.threads) return false;
        if (waiting == config_.threads) {
            for (Thread& thread : threads_) thread.op = Op::run;
            return true;
        }
        for (unsigned i = 0; i < config_.threads; ++i) {
            if (threads_[i].op == Op::exited) continue;
            fail(i, "waits for threads that wait elsewhere or have exited");
            break;
        }
        return false;
    }

    // Lets the threads at barrier `id` go on if there are `count`.
    bool pass_named(std::uint32_t id, std::uint32_t count) {
        const auto waits = [&](const Thread& thread) {
            return thread.op == Op::named_barrier && thread.argument == id && thread.value == count;
        };
        if (std::count_if(threads_.begin(), threads_.end(), waits) != static_cast<std::ptrdiff_t>(count)) return false;
        for (Thread& thread : threads_) {
            if (waits(thread)) thread.op = Op::run;
        }
        return true;
    }

    void fail(unsigned thread, const std::string& what) {
        error_ = "thread " + std::to_string(thread) + " of block (" + std::to_string(block.x) + ", " +
                 std::to_string(block.y) + "), at " + name(threads_[thread].op) + ", " + what;
    }

    struct Free {
        void operator()(unsigned char* memory) const { std::free(memory); }
    };

    Config config_;
    void (*kernel_)(const void*);
    const void* arguments_;
    std::uint64_t random_;
    std::vector<Thread> threads_;
    Thread* running_ = nullptr;
    std::unique_ptr<unsigned char, Free> shared_;
    std::string error_;
};

}  // namespace simt

// ------------------------------------------------------------------------------------- what the kernels use of CUDA

#define threadIdx (simt::Engine::current->thread_index())
#define blockIdx (simt::Engine::current->block)
#define blockDim (simt::Engine::current->threads())
#define gridDim (simt::Engine::current->grid())

inline void __syncthreads() { simt::Engine::current->collective(simt::Op::barrier, 0); }
inline void nz_simt_barrier(unsigned id, unsigned threads) {
    simt::Engine::current->collective(simt::Op::named_barrier, 0, threads, id);
}

// 32-bit values, integers or float.
template <class T>
T nz_simt_shuffle(simt::Op op, unsigned mask, T value, unsigned argument) {
    static_assert(sizeof(T) == 4, "a shuffle of 32 bits");
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits = simt::Engine::current->collective(op, mask, bits, argument);
    std::memcpy(&value, &bits, 4);
    return value;
}
template <class T>
T __shfl_sync(unsigned mask, T value, unsigned lane) {
    return nz_simt_shuffle(simt::Op::shuffle, mask, value, lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
    return nz_simt_shuffle(simt::Op::shuffle_up, mask, value, delta);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned lanes) {
    return nz_simt_shuffle(simt::Op::shuffle_xor, mask, value, lanes);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return simt::Engine::current->collective(simt::Op::ballot, mask, predicate != 0);
}

inline void __syncwarp(unsigned mask = 0xffffffffU) {
    simt::Engine::current->collective(simt::Op::warp_barrier, mask);
}

inline void nz_simt_multiply_add(float sums[4], const unsigned a[4], unsigned b_low, unsigned b_high) {
    const simt::MultiplyAdd operands = {sums, {a[0], a[1], a[2], a[3]}, {b_low, b_high}};
    simt::Engine::current->multiply_add(operands);
}

inline void nz_simt_load_matrices(unsigned words[4], const unsigned char* row, bool is_transposed) {
    // As on a GPU, whose rows are aligned.
    if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) std::abort();
    simt::Engine::current->load_matrices({row, words, is_transposed});
}

// Where in a block's shared memory that is, and what is there.
inline unsigned nz_simt_place_of(const unsigned char* shared) {
    return static_cast<unsigned>(shared - simt::Engine::current->shared());
}
inline unsigned char* nz_simt_shared_at(unsigned place) { return simt::Engine::current->shared() + place; }

inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
    for (unsigned i = 0; i < 32; i += 8) sum += (a >> i & 255) * (b >> i & 255);
    return sum;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(std::uint64_t{a} * b >> 32); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((std::uint64_t{high} << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((std::uint64_t{high} << 32 | low) >> (shift < 32 ? shift : 32));
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const std::uint64_t bytes = std::uint64_t{b} << 32 | a;
    unsigned result = 0;
    for (unsigned i = 0; i < 4; ++i) {
        result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    }
    return result;
}
inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
template <class T>
T atomicAdd(T* address, T value) {
    const T before = *address;
    *address = before + value;
    return before;
}
inline unsigned atomicOr(unsigned* address, unsigned bits) {
    const unsigned before = *address;
    *address |= bits;
    return before;
}
