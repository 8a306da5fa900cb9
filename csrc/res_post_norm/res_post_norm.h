// What one instruction set offers for the part of a res-post-norm layer that sees one token at a
// time: all the arithmetic of some tokens. layer.h defines it, kernel.cpp once per instruction set;
// the host side in host.cpp walks the map and knows where tokens lie.
#pragma once

#include <stdint.h>

#include "../common/bfloat16.h"
#include "../common/token_run.h"

namespace c2d {

constexpr int64_t kMostParts = 4;  // inputs of the projection

// Weights as kernels read them: matrices have rows of output channels and the bias for a last
// column; a norm is its weight and its bias, C each. Without an MLP the last three are null.
template <class T, class Weight = T>
struct PostNormWeights {
    const Weight* proj;            // (C, inputs + 1)
    const T* norm1;                // (2, C)
    const Weight *first, *second;  // (hidden, C + 1), (C, hidden + 1)
    const T* norm2;                // (2, C)
};

template <class T>
struct PostNormSizes {
    int64_t channels, hidden;
    int64_t parts, part_channels[kMostParts], inputs;  // inputs: of all parts together
    T eps;
};

// Where tokens begin in the map, the parts and the result.
template <class Map>
struct PostNormTokens {
    int64_t count;  // at most kTokens
    const Map* x;
    const Map* parts[kMostParts];
    Map* out;
    const int64_t *x_token, *part_token[kMostParts], *out_token;
};

// Arithmetic in T; weights and maps may have other types.
template <class T, class Weight = T, class Map = T>
struct PostNormKernels {
    // Elements of scratch memory, aligned to a vector, that a call needs.
    int64_t (*scratch)(const PostNormSizes<T>& sizes);
    void (*run)(const PostNormSizes<T>& sizes, const PostNormWeights<T, Weight>& weights,
                const PostNormTokens<Map>& tokens, T* scratch);
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

// Products of bfloat16: weights have the bias in two columns, see ../common/pairs.h.
namespace avx512bf16 {
extern const PostNormKernels<float, Pair, Bfloat16> post_norm_bfloat16;
}

}  // namespace c2d
