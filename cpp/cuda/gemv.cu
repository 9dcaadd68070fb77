// The kernels that multiply.
#include "gemv.cuh"

namespace nz {

template <u32 ROWS>
NZ_DEVICE void multiply_rows(const NzCudaProduct& job, u8* memory) {
    Blob source(job.weight, memory);
    multiply_rows<ROWS>(job, source, memory);
}

template <u32 ROWS>
NZ_DEVICE void multiply_tiles(const NzCudaProduct& job, u8* memory) {
    Blob source(job.weight, memory);
    multiply_tiles<ROWS>(job, source);
}

}  // namespace nz

#define NZ_PRODUCT_KERNEL(name, blocks, function)                                                               \
    extern "C" __global__ void __launch_bounds__(256, blocks) name(const __grid_constant__ NzCudaProduct job) { \
        NZ_DYNAMIC_SHARED(memory);                                                                              \
        function(job, memory);                                                                                  \
    }

NZ_PRODUCT_KERNEL(nz_gemv_rows_1, 3, nz::multiply_rows<1>)
NZ_PRODUCT_KERNEL(nz_gemv_rows_8, 3, nz::multiply_rows<NZ_CUDA_MAX_ROWS>)
NZ_PRODUCT_KERNEL(nz_gemv_tiles_1, 2, nz::multiply_tiles<1>)
NZ_PRODUCT_KERNEL(nz_gemv_tiles_4, 2, nz::multiply_tiles<NZ_CUDA_TILE_ROWS>)

extern "C" __global__ void __launch_bounds__(256) nz_gemv_sum(const __grid_constant__ NzCudaProduct job) {
    nz::sum_parts(job);
}
