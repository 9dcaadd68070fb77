// The kernels of deltas.
#include "decode.cuh"
#include "delta.cuh"
#include "gemv.cuh"

namespace nz {

// Stores weights as elements of a type that is told at run time.
struct AnyStore : Places {
    void* out;
    u32 element;

    NZ_DEVICE void take_words(u32 slot, const u32 words[8]) const {
        switch (element) {
            case NZ_CUDA_FLOAT32: as<Float32>().take_words(slot, words); break;
            case NZ_CUDA_FLOAT16: as<Float16>().take_words(slot, words); break;
            default: as<Bfloat16>().take_words(slot, words);
        }
    }

    NZ_DEVICE void clear(u64 at) const {
        if (element == NZ_CUDA_FLOAT32) {
            ((u32*)out)[at] = 0;
        } else {
            ((u16*)out)[at] = 0;
        }
    }

  private:
    template <class Element>
    NZ_DEVICE Store<Element> as() const {
        Store<Element> store = {};
        (Places&)store = *this;
        store.out = (typename Element::Bits*)out;
        return store;
    }
};

NZ_DEVICE void decode_delta(const NzCudaDeltaDecode& job, u8* memory) {
    Overlay source(job.decode.weight, job.delta, memory);
    AnyStore store = {};
    store.out = job.decode.out;
    store.element = job.element;
    decode_blocks(job.decode, source, store);
}

template <u32 ROWS>
NZ_DEVICE void multiply_delta_rows(const NzCudaDeltaProduct& job, u8* memory) {
    Overlay source(job.product.weight, job.delta, memory);
    multiply_rows<ROWS>(job.product, source, memory);
}

template <u32 ROWS>
NZ_DEVICE void multiply_delta_tiles(const NzCudaDeltaProduct& job, u8* memory) {
    Overlay source(job.product.weight, job.delta, memory);
    multiply_tiles<ROWS>(job.product, source);
}

}  // namespace nz

extern "C" __global__ void __launch_bounds__(256, 2) nz_delta_decode(const __grid_constant__ NzCudaDeltaDecode job) {
    NZ_DYNAMIC_SHARED(memory);
    nz::decode_delta(job, memory);
}

#define NZ_DELTA_PRODUCT_KERNEL(name, blocks, function)                                                              \
    extern "C" __global__ void __launch_bounds__(256, blocks) name(const __grid_constant__ NzCudaDeltaProduct job) { \
        NZ_DYNAMIC_SHARED(memory);                                                                                   \
        function(job, memory);                                                                                       \
    }

NZ_DELTA_PRODUCT_KERNEL(nz_delta_rows_1, 3, nz::multiply_delta_rows<1>)
NZ_DELTA_PRODUCT_KERNEL(nz_delta_rows_8, 3, nz::multiply_delta_rows<NZ_CUDA_MAX_ROWS>)
NZ_DELTA_PRODUCT_KERNEL(nz_delta_tiles_1, 2, nz::multiply_delta_tiles<1>)
NZ_DELTA_PRODUCT_KERNEL(nz_delta_tiles_4, 2, nz::multiply_delta_tiles<NZ_CUDA_TILE_ROWS>)
