// What one instruction set offers for Swin V2's layer: all the arithmetic of one window. kernel.cpp
// defines it once per instruction set; the host side in host.cpp walks windows as the attention
// branch's does.
#pragma once

#include "../attention_branch/attention_branch.h"
#include "../mlp_branch/mlp_branch.h"

namespace c2d {

// What the layer has beside the weights of the attention branch and the MLP, none of which has a
// norm folded in.
template <class T>
struct CosineWeights {
    const T* scale;          // (heads), of cosines
    const T *norm1, *norm2;  // (2, C), weight and bias
};

template <class T>
struct CosineLayerKernels {
    int64_t lanes;  // elements of a vector
    // Elements of scratch memory, aligned to a vector, that a call needs.
    int64_t (*scratch)(const BranchSizes<T>& sizes, int64_t hidden);
    void (*run)(const BranchSizes<T>& sizes, const BranchWeights<T>& weights,
                const CosineWeights<T>& cosine, const MlpWeights<T>& mlp,
                const BranchWindow<T>& window, T* scratch);
};

#define C2D_DECLARE_COSINE_LAYER(isa)                             \
    namespace isa {                                               \
    extern const CosineLayerKernels<float> cosine_layer_float32;  \
    extern const CosineLayerKernels<double> cosine_layer_float64; \
    }

C2D_DECLARE_COSINE_LAYER(baseline)
#if defined(__x86_64__)
C2D_DECLARE_COSINE_LAYER(avx2)
C2D_DECLARE_COSINE_LAYER(avx512)
#endif

#undef C2D_DECLARE_COSINE_LAYER

}  // namespace c2d
