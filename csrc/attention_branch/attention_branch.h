// What one instruction set offers for the attention branch of a transformer in windows: all the
// arithmetic of one window. attention.h defines it, kernel.cpp once per instruction set; the host
// side in host.h walks windows and knows where their tokens lie. window_layer adds an MLP.
#pragma once

#include <stdint.h>

#include "../common/bfloat16.h"

namespace c2d {

// The branch's weights as kernels read them, rows of output channels. The norm is folded into qkv
// and the scale of q into its rows; a column after the last holds the biases.
template <class T, class Weight = T>
struct BranchWeights {
    const Weight* qkv;   // (C + 2 C / cells, C + 1)
    const Weight* proj;  // (C, C + 1)
    const T* bias;       // relative bias, [heads][blocks][keys][block]
};

// What all windows of a call have in common. A key is stacked from `cells` tokens, 1 or SRFormer's
// 4, so that a window has `cells` panels of tokens: panel p holds the p-th token of every key, in
// the order of the keys. Panels are handled in blocks of `block` tokens, one or two vectors, and
// filled up to `blocks` of them with repetitions of their last token.
template <class T>
struct BranchSizes {
    int64_t keys, cells, channels;
    int64_t heads, block, blocks;
    T eps;
};

// Tokens of a window, panel by panel: where each begins in the two maps, and, where windows are
// masked, its region. A key's region is that of its first token.
template <class T, class Map = T>
struct BranchWindow {
    const Map* x;
    Map* out;
    const int64_t *x_token, *out_token;
    const T* region;  // null: nothing is masked
};

// Arithmetic in T; weights and the map may have other types.
template <class T, class Weight = T, class Map = T>
struct BranchKernels {
    int64_t lanes;  // elements of a vector
    // Elements of scratch memory, aligned to a vector, that a call needs.
    int64_t (*scratch)(const BranchSizes<T>& sizes);
    void (*run)(const BranchSizes<T>& sizes, const BranchWeights<T, Weight>& weights,
                const BranchWindow<T, Map>& window, T* scratch);
};

#define C2D_DECLARE_BRANCH(isa)                        \
    namespace isa {                                    \
    extern const BranchKernels<float> branch_float32;  \
    extern const BranchKernels<double> branch_float64; \
    }

C2D_DECLARE_BRANCH(baseline)
#if defined(__x86_64__)
C2D_DECLARE_BRANCH(avx2)
C2D_DECLARE_BRANCH(avx512)
#endif

#undef C2D_DECLARE_BRANCH

// Products of bfloat16: weights have the bias in two columns, see ../common/pairs.h; the scale of q
// and the relative bias hold a factor log2(e).
namespace avx512bf16 {
extern const BranchKernels<float, Pair, Bfloat16> branch_bfloat16;
}

}  // namespace c2d
