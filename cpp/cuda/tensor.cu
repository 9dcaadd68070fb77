// The kernels that multiply with tensor cores: for compute capability 8.0 and later.
#include "tensor_tiles.cuh"

extern "C" __global__ void __launch_bounds__(NZ_CUDA_LEAN_THREADS, 5)
    nz_tensor_row(const __grid_constant__ NzCudaProduct job) {
    NZ_DYNAMIC_SHARED(memory);
    nz::multiply_row(job, memory);
}

extern "C" __global__ void __launch_bounds__(NZ_CUDA_LEAN_THREADS, 4)
    nz_tensor_tiles_1(const __grid_constant__ NzCudaProduct job) {
    NZ_DYNAMIC_SHARED(memory);
    nz::multiply_tile_row(job, memory);
}

#define NZ_TENSOR_KERNEL(name, function)                                    \
    extern "C" __global__ void __launch_bounds__(NZ_CUDA_TENSOR_THREADS, 1) \
        name(const __grid_constant__ NzCudaProduct job) {                   \
        NZ_DYNAMIC_SHARED(memory);                                          \
        function(job, memory);                                              \
    }

NZ_TENSOR_KERNEL(nz_tensor_rows_8, nz::multiply_many<1>)
NZ_TENSOR_KERNEL(nz_tensor_rows_16, nz::multiply_many<2>)
NZ_TENSOR_KERNEL(nz_tensor_rows_32, nz::multiply_many<4>)
NZ_TENSOR_KERNEL(nz_tensor_rows_64, nz::multiply_many<8>)
NZ_TENSOR_KERNEL(nz_tensor_tiles_8, nz::multiply_tile_rows<1>)
NZ_TENSOR_KERNEL(nz_tensor_tiles_16, nz::multiply_tile_rows<2>)
NZ_TENSOR_KERNEL(nz_tensor_tiles_32, nz::multiply_tile_rows<4>)
