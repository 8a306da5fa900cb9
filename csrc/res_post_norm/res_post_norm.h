// What one instruction set offers for the part of a res-post-norm layer that sees one token at a
// time: all the arithmetic of some tokens. cpu.cpp defines it once per instruction set; the host
// side in res_post_norm.cpp walks the map and knows where tokens lie.
#pragma once

#include <stdint.h>

namespace c2d {

constexpr int64_t kTokens = 64;    // that are handled at a time
constexpr int64_t kMostParts = 4;  // inputs of the projection

// Weights as kernels read them: matrices have rows of output channels and the bias for a last
// column; a norm is its weight and its bias, C each.
template <class T>
struct PostNormWeights {
    const T *proj, *norm1;    // (C, inputs + 1), (2, C)
    const T *first, *second;  // (hidden, C + 1), (C, hidden + 1)
    const T* norm2;           // (2, C)
};

template <class T>
struct PostNormSizes {
    int64_t channels, hidden;
    int64_t parts, part_channels[kMostParts], inputs;  // inputs: of all parts together
    T eps;
};

// Where tokens begin in the map, the parts and the result.
template <class T>
struct PostNormTokens {
    int64_t count;  // at most kTokens
    const T* x;
    const T* parts[kMostParts];
    T* out;
    const int64_t *x_token, *part_token[kMostParts], *out_token;
};

template <class T>
struct PostNormKernels {
    // Elements of scratch memory, aligned to a vector, that a call needs.
    int64_t (*scratch)(const PostNormSizes<T>& sizes);
    void (*run)(const PostNormSizes<T>& sizes, const PostNormWeights<T>& weights,
                const PostNormTokens<T>& tokens, T* scratch);
};

#define C2D_DECLARE_POST_NORM(isa)                          \
    namespace isa {                                         \
    extern const PostNormKernels<float> post_norm_float32;  \
    extern const PostNormKernels<double> post_norm_float64; \
    }

C2D_DECLARE_POST_NORM(baseline)
#if defined(__x86_64__)
C2D_DECLARE_POST_NORM(avx2)
C2D_DECLARE_POST_NORM(avx512)
#endif

#undef C2D_DECLARE_POST_NORM

}  // namespace c2d
