// Decodes blobs from the command line with nz_blob.hpp; needs nothing but a C++17 compiler:
//
//     c++ -std=c++17 -O2 -I cpp/include cpp/tools/decode_file.cpp -o decode_file
//     ./decode_file BLOB OUT              writes the tensor's bytes to OUT
//     ./decode_file --check BLOB...       one line a blob: ok|truncated|corrupt|unsupported, path, message
//     ./decode_file --base BASE ...       the same for deltas to the elements or the blob in BASE
//
// Exit status: 0 done (with --check: whatever the blobs are), 1 a file cannot be read or written, 2 usage,
// 4 the blob is refused.

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

#include "nz_delta.hpp"

namespace {

constexpr int exit_ok = 0, exit_io = 1, exit_usage = 2, exit_refused = 4;

// A file's bytes in an allocation of just their size, so that a sanitizer sees any access behind them.
struct File {
    std::unique_ptr<std::uint8_t[]> bytes;
    std::size_t size = 0;

    nz::ByteSpan span() const { return {bytes.get(), size}; }
};

bool read_file(const char* path, File& file) {
    std::ifstream in(path, std::ios::binary | std::ios::ate);
    if (!in) return false;
    const std::streamoff size = in.tellg();
    if (size < 0) return false;
    file.size = static_cast<std::size_t>(size);
    file.bytes = std::make_unique<std::uint8_t[]>(file.size);
    in.seekg(0);
    in.read(reinterpret_cast<char*>(file.bytes.get()), size);
    return in.good();
}

bool write_file(const char* path, const std::vector<std::uint8_t>& bytes) {
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    out.close();
    return !out.fail();
}

const char* name(nz::Status status) {
    switch (status) {
        case nz::Status::ok: return "ok";
        case nz::Status::truncated: return "truncated";
        case nz::Status::corrupt: return "corrupt";
        case nz::Status::unsupported: return "unsupported";
    }
    return "unknown";
}

nz::Result<std::vector<std::uint8_t>> decode(const File& blob, const File* base) {
    return base == nullptr ? nz::decode(blob.span()) : nz::decode_delta(blob.span(), base->span());
}

int decode_to(const char* blob_path, const char* out_path, const File* base) {
    File file;
    if (!read_file(blob_path, file)) {
        std::fprintf(stderr, "%s: cannot be read\n", blob_path);
        return exit_io;
    }
    const auto tensor = decode(file, base);
    if (!tensor) {
        std::fprintf(stderr, "%s: %s\n", blob_path, tensor.error.message.c_str());
        return exit_refused;
    }
    if (!write_file(out_path, tensor.value)) {
        std::fprintf(stderr, "%s: cannot be written\n", out_path);
        return exit_io;
    }
    return exit_ok;
}

int check(int count, char** paths, const File* base) {
    for (int i = 0; i < count; ++i) {
        File file;
        if (!read_file(paths[i], file)) {
            std::fprintf(stderr, "%s: cannot be read\n", paths[i]);
            return exit_io;
        }
        const auto tensor = decode(file, base);
        std::printf("%s\t%s\t%s\n", name(tensor.error.status), paths[i], tensor.error.message.c_str());
    }
    return exit_ok;
}

}  // namespace

int main(int argc, char** argv) {
    File base;
    const bool has_base = argc >= 3 && std::strcmp(argv[1], "--base") == 0;
    if (has_base) {
        if (!read_file(argv[2], base)) {
            std::fprintf(stderr, "%s: cannot be read\n", argv[2]);
            return exit_io;
        }
        argc -= 2;
        argv += 2;
    }
    const File* const to = has_base ? &base : nullptr;
    if (argc >= 2 && std::strcmp(argv[1], "--check") == 0) return check(argc - 2, argv + 2, to);
    if (argc == 3) return decode_to(argv[1], argv[2], to);
    std::fprintf(stderr, "usage: decode_file [--base BASE] BLOB OUT\n       decode_file [--base BASE] --check BLOB...\n");
    return exit_usage;
}
