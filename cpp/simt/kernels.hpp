// The CUDA kernels of cpp/cuda, by name, compiled for the CPU.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>

#include "simt.hpp"

#include "decode.cu"
#include "delta.cu"
#include "encode.cu"
#include "gemv.cu"
#include "tensor.cu"

namespace simt {

struct Kernel {
    const char* name;
    std::size_t argument_size;
    void (*run)(const void*);
};

// A kernel with one argument, which it takes by value.
template <class Argument, void (*kernel)(Argument)>
void call(const void* argument) {
    std::remove_const_t<Argument> copy;
    std::memcpy(&copy, argument, sizeof copy);
    kernel(copy);
}

inline const Kernel kernels[] = {
    {"nz_decode_float32", sizeof(NzCudaDecode), call<const NzCudaDecode, nz_decode_float32>},
    {"nz_decode_float16", sizeof(NzCudaDecode), call<const NzCudaDecode, nz_decode_float16>},
    {"nz_decode_bfloat16", sizeof(NzCudaDecode), call<const NzCudaDecode, nz_decode_bfloat16>},
    {"nz_decode_lean_float32", sizeof(NzCudaDecode), call<const NzCudaDecode, nz_decode_lean_float32>},
    {"nz_decode_lean_bfloat16", sizeof(NzCudaDecode), call<const NzCudaDecode, nz_decode_lean_bfloat16>},
    {"nz_decode_integer", sizeof(NzCudaDecode), call<const NzCudaDecode, nz_decode_integer>},
    {"nz_delta_decode", sizeof(NzCudaDeltaDecode), call<const NzCudaDeltaDecode, nz_delta_decode>},
    {"nz_delta_rows_1", sizeof(NzCudaDeltaProduct), call<const NzCudaDeltaProduct, nz_delta_rows_1>},
    {"nz_delta_rows_8", sizeof(NzCudaDeltaProduct), call<const NzCudaDeltaProduct, nz_delta_rows_8>},
    {"nz_delta_tiles_1", sizeof(NzCudaDeltaProduct), call<const NzCudaDeltaProduct, nz_delta_tiles_1>},
    {"nz_delta_tiles_4", sizeof(NzCudaDeltaProduct), call<const NzCudaDeltaProduct, nz_delta_tiles_4>},
    {"nz_survey", sizeof(NzCudaEncode), call<const NzCudaEncode, nz_survey>},
    {"nz_measure", sizeof(NzCudaEncode), call<const NzCudaEncode, nz_measure>},
    {"nz_write", sizeof(NzCudaEncode), call<const NzCudaEncode, nz_write>},
    {"nz_gemv_rows_1", sizeof(NzCudaProduct), call<const NzCudaProduct, nz_gemv_rows_1>},
    {"nz_gemv_rows_8", sizeof(NzCudaProduct), call<const NzCudaProduct, nz_gemv_rows_8>},
    {"nz_gemv_tiles_1", sizeof(NzCudaProduct), call<const NzCudaProduct, nz_gemv_tiles_1>},
    {"nz_gemv_tiles_4", sizeof(NzCudaProduct), call<const NzCudaProduct, nz_gemv_tiles_4>},
    {"nz_gemv_sum", sizeof(NzCudaProduct), call<const NzCudaProduct, nz_gemv_sum>},
    {"nz_tensor_row", sizeof(NzCudaProduct), call<const NzCudaProduct, nz_tensor_row>},
    {"nz_tensor_rows_8", sizeof(NzCudaProduct), call<const NzCudaProduct, nz_tensor_rows_8>},
    {"nz_tensor_rows_16", sizeof(NzCudaProduct), call<const NzCudaProduct, nz_tensor_rows_16>},
    {"nz_tensor_rows_32", sizeof(NzCudaProduct), call<const NzCudaProduct, nz_tensor_rows_32>},
    {"nz_tensor_rows_64", sizeof(NzCudaProduct), call<const NzCudaProduct, nz_tensor_rows_64>},
    {"nz_tensor_tiles_1", sizeof(NzCudaProduct), call<const NzCudaProduct, nz_tensor_tiles_1>},
    {"nz_tensor_tiles_8", sizeof(NzCudaProduct), call<const NzCudaProduct, nz_tensor_tiles_8>},
    {"nz_tensor_tiles_16", sizeof(NzCudaProduct), call<const NzCudaProduct, nz_tensor_tiles_16>},
    {"nz_tensor_tiles_32", sizeof(NzCudaProduct), call<const NzCudaProduct, nz_tensor_tiles_32>},
};

// Runs the kernel `name`. What went wrong, or nothing.
inline std::string launch(std::string_view name, const Config& config, const void* argument, std::size_t size) {
    const auto has_name = [&](const Kernel& kernel) { return name == kernel.name; };
    const auto kernel = std::find_if(std::begin(kernels), std::end(kernels), has_name);
    if (kernel == std::end(kernels)) return "there is no kernel " + std::string(name);
    if (kernel->argument_size != size) {
        return "the argument has " + std::to_string(size) + " bytes, not " + std::to_string(kernel->argument_size);
    }
    return Engine(config, kernel->run, argument).run();
}

}  // namespace simt
