// What one instruction set offers for the backward of an MLP with the norm before it and the skip
// around it. backward_kernel.cpp defines it once per instruction set; the host side in
// backward_host.cpp walks the map and adds up what groups of tokens give to the weights.
#pragma once

#include "mlp_branch.h"

namespace c2d {

// Gradients of the weights as the forward takes them, but that `second` is transposed:
// (hidden, C + 1) and (hidden + 1, C).
template <class T>
struct MlpGradients {
    T *first, *second;
};

// `start` forgets the sums for the weights' gradients, which are in scratch memory; `run` adds what
// at most kTokens tokens give, and `finish` writes them.
template <class T>
struct MlpBackward {
    int64_t (*scratch)(const MlpSizes<T>& sizes);
    void (*start)(const MlpSizes<T>& sizes, T* scratch);
    void (*run)(const MlpSizes<T>& sizes, const MlpWeights<T>& weights, int64_t count,
                const TokensOf<const T>& x, const TokensOf<const T>& grad,
                const TokensOf<T>& x_grad, T* scratch);
    void (*finish)(const MlpSizes<T>& sizes, T* scratch, const MlpGradients<T>& gradients);
};

#define C2D_DECLARE_MLP_BACKWARD(isa)                      \
    namespace isa {                                        \
    extern const MlpBackward<float> mlp_backward_float32;  \
    extern const MlpBackward<double> mlp_backward_float64; \
    }

C2D_DECLARE_MLP_BACKWARD(baseline)
#if defined(__x86_64__)
C2D_DECLARE_MLP_BACKWARD(avx2)
C2D_DECLARE_MLP_BACKWARD(avx512)
#endif

#undef C2D_DECLARE_MLP_BACKWARD

}  // namespace c2d
