// Runs a CUDA kernel on the CPU (cpp/simt), in a program of its own: for sanitizers and for changed sources.
//
//     c++ -std=c++17 -fno-strict-aliasing -I cpp/include -I cpp/simt -I cpp/cuda cpp/tools/run_kernel.cpp -o run_kernel
//     ./run_kernel CASE OUT
//
// CASE is a launch: the kernel's name in 32 bytes, then 64-bit little-endian numbers: blocks in x and y, threads, bytes
// of shared memory, seed, size of the argument; the argument; the number of buffers; for each the place of its address
// in the argument, its distance from a multiple of 16, its size, and its bytes. OUT gets the buffers' bytes as they are
// afterwards, one after the other.
//
// Exit status: 0 done, 1 a file cannot be read or written, 2 usage, 3 the kernel failed (its reason on stderr).

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "kernels.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace {

constexpr int exit_ok = 0, exit_io = 1, exit_usage = 2, exit_failed = 3;

// An allocation of just its size: a sanitizer sees any access beside it.
class Buffer {
  public:
    Buffer(std::size_t shift, std::size_t size) : size_(size), start_(shift) {
        void* memory = nullptr;
        if (posix_memalign(&memory, 16, shift + size) != 0) std::abort();
        memory_.reset(static_cast<char*>(memory));
#if defined(__SANITIZE_ADDRESS__)
        __asan_poison_memory_region(memory, shift);
#endif
    }

    char* data() { return memory_.get() + start_; }
    std::size_t size() const { return size_; }

  private:
    struct Free {
        void operator()(char* memory) const { std::free(memory); }
    };

    std::unique_ptr<char, Free> memory_;
    std::size_t size_, start_;
};

std::uint64_t read_number(std::ifstream& in) {
    std::uint64_t number = 0;
    in.read(reinterpret_cast<char*>(&number), sizeof number);
    return number;
}

int run(const char* case_path, const char* out_path) {
    std::ifstream in(case_path, std::ios::binary);
    char name[33] = {};
    in.read(name, 32);
    simt::Config config;
    config.grid.x = static_cast<unsigned>(read_number(in));
    config.grid.y = static_cast<unsigned>(read_number(in));
    config.threads = static_cast<unsigned>(read_number(in));
    config.shared = read_number(in);
    config.seed = read_number(in);
    std::vector<char> argument(in.good() ? read_number(in) : 0);
    in.read(argument.data(), static_cast<std::streamsize>(argument.size()));
    std::vector<Buffer> buffers;
    for (std::uint64_t count = read_number(in); count > 0 && in.good(); --count) {
        const std::uint64_t place = read_number(in), shift = read_number(in), size = read_number(in);
        if (!in.good() || place + sizeof(char*) > argument.size()) return exit_io;
        buffers.emplace_back(shift, size);
        in.read(buffers.back().data(), static_cast<std::streamsize>(size));
        char* const address = buffers.back().data();
        std::memcpy(&argument[place], &address, sizeof address);
    }
    if (!in.good()) return exit_io;

    const std::string error = simt::launch(name, config, argument.data(), argument.size());
    if (!error.empty()) {
        std::fprintf(stderr, "%s\n", error.c_str());
        return exit_failed;
    }
    std::ofstream out(out_path, std::ios::binary | std::ios::trunc);
    for (Buffer& buffer : buffers) out.write(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    out.close();
    return out.fail() ? exit_io : exit_ok;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc == 3) return run(argv[1], argv[2]);
    std::fprintf(stderr, "usage: run_kernel CASE OUT\n");
    return exit_usage;
}
