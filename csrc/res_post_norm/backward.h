// What one instruction set offers for the backward of the part of a res-post-norm layer that sees
// one token at a time. backward_kernel.cpp defines it once per instruction set; the host side in
// backward_host.cpp walks the map and adds up what groups of tokens give to the weights.
#pragma once

#include "res_post_norm.h"

namespace c2d {

// Some tokens: of the input, the parts and the gradient of the result, and of the gradients of the
// input and the parts, which are written.
template <class T>
struct PostNormBackwardTokens {
    int64_t count;  // at most kTokens
    TokensOf<const T> x, grad, parts[kMostParts];
    TokensOf<T> x_grad, part_grads[kMostParts];
};

// Gradients of the weights as the forward takes them, but that `proj` and `second` are transposed:
// (inputs + 1, C), (2, C), (hidden, C + 1), (hidden + 1, C), (2, C). Without an MLP the last three
// are null.
template <class T>
struct PostNormGradients {
    T *proj, *norm1, *first, *second, *norm2;
};

// `start` forgets the sums for the weights' gradients, which are in scratch memory; `run` adds what
// some tokens give, and `finish` writes them.
template <class T>
struct PostNormBackward {
    int64_t (*scratch)(const PostNormSizes<T>& sizes);
    void (*start)(const PostNormSizes<T>& sizes, T* scratch);
    void (*run)(const PostNormSizes<T>& sizes, const PostNormWeights<T>& weights,
                const PostNormBackwardTokens<T>& tokens, T* scratch);
    void (*finish)(const PostNormSizes<T>& sizes, T* scratch,
                   const PostNormGradients<T>& gradients);
};

#define C2D_DECLARE_POST_NORM_BACKWARD(isa)                           \
    namespace isa {                                                   \
    extern const PostNormBackward<float> post_norm_backward_float32;  \
    extern const PostNormBackward<double> post_norm_backward_float64; \
    }

C2D_DECLARE_POST_NORM_BACKWARD(baseline)
#if defined(__x86_64__)
C2D_DECLARE_POST_NORM_BACKWARD(avx2)
C2D_DECLARE_POST_NORM_BACKWARD(avx512)
#endif

#undef C2D_DECLARE_POST_NORM_BACKWARD

}  // namespace c2d
