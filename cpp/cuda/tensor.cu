// The kernels that multiply with tensor cores: for compute capability 8.0 and later.
#include "tensor.cuh"

extern "C" __global__ void __launch_bounds__(NZ_CUDA_LEAN_THREADS, 5)
    nz_tensor_row(const __grid_constant__ NzCudaProduct job) {
    NZ_DYNAMIC_SHARED(memory);
    nz::multiply_row(job, memory);
}

#define NZ_TENSOR_KERNEL(name, eights)                                                 \
    extern "C" __global__ void __launch_bounds__(NZ_CUDA_TENSOR_THREADS, 1)             \
        name(const __grid_constant__ NzCudaProduct job) {                              \
        NZ_DYNAMIC_SHARED(memory);                                                     \
        nz::multiply_many<eights>(job, memory);                                        \
    }

NZ_TENSOR_KERNEL(nz_tensor_rows_8, 1)
NZ_TENSOR_KERNEL(nz_tensor_rows_16, 2)
NZ_TENSOR_KERNEL(nz_tensor_rows_32, 4)
NZ_TENSOR_KERNEL(nz_tensor_rows_64, 8)
