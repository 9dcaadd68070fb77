// The kernels that decode to memory.
#include "decode.cuh"

#define NZ_DECODE_KERNEL(name, Element)                                                            \
    extern "C" __global__ void __launch_bounds__(256, 4) name(const __grid_constant__ NzCudaDecode job) { \
        NZ_DYNAMIC_SHARED(memory);                                                                 \
        nz::decode<nz::Element>(job, memory);                                                      \
    }

NZ_DECODE_KERNEL(nz_decode_float32, Float32)
NZ_DECODE_KERNEL(nz_decode_float16, Float16)
NZ_DECODE_KERNEL(nz_decode_bfloat16, Bfloat16)
NZ_DECODE_KERNEL(nz_decode_integer, Integer)

#define NZ_LEAN_KERNEL(name, element)                                          \
    extern "C" __global__ void __launch_bounds__(NZ_CUDA_LEAN_THREADS, 5)       \
        name(const __grid_constant__ NzCudaDecode job) {                       \
        NZ_DYNAMIC_SHARED(memory);                                             \
        nz::decode_lean<nz::element>(job, memory);                             \
    }

NZ_LEAN_KERNEL(nz_decode_lean_float32, Float32)
NZ_LEAN_KERNEL(nz_decode_lean_bfloat16, Bfloat16)
