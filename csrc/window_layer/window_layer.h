// What one instruction set offers for a layer of a transformer in windows, or for its attention
// alone: all the arithmetic of one window. kernel.cpp defines it once per instruction set; the host
// side in host.cpp folds weights, walks windows and knows where their tokens lie.
#pragma once

#include <stdint.h>

#include "../common/bfloat16.h"

namespace c2d {

// A layer's weights as kernels read them, rows of output channels. Norms are folded into the
// products behind them and the scale of q into its rows; a column after the last holds the biases.
template <class T, class Weight = T>
struct LayerWeights {
    const Weight* qkv;     // (C + 2 C / cells, C + 1)
    const Weight* proj;    // (C, C + 1)
    const Weight* first;   // (hidden, C + 1)
    const Weight* second;  // (C, hidden + 1)
    const T* bias;         // relative bias, [heads][blocks][keys][block]
};

// What all windows of a call have in common. A key is stacked from `cells` tokens, 1 or SRFormer's
// 4, so that a window has `cells` panels of tokens: panel p holds the p-th token of every key, in
// the order of the keys. Panels are handled in blocks of `block` tokens, one or two vectors, and
// filled up to `blocks` of them with repetitions of their last token.
template <class T>
struct LayerSizes {
    int64_t keys, cells, channels;
    int64_t hidden;  // 0: no MLP; it is 0 where cells is not 1
    int64_t heads, block, blocks;
    T eps;
};

// Tokens of a window, panel by panel: where each begins in the two maps, and, where windows are
// masked, its region. A key's region is that of its first token.
template <class T, class Map = T>
struct LayerWindow {
    const Map* x;
    Map* out;
    const int64_t *x_token, *out_token;
    const T* region;  // null: nothing is masked
};

// Arithmetic in T; weights and the map may have other types.
template <class T, class Weight = T, class Map = T>
struct LayerKernels {
    int64_t lanes;  // elements of a vector
    // Elements of scratch memory, aligned to a vector, that a call needs.
    int64_t (*scratch)(const LayerSizes<T>& sizes);
    void (*run)(const LayerSizes<T>& sizes, const LayerWeights<T, Weight>& weights,
                const LayerWindow<T, Map>& window, T* scratch);
};

#define C2D_DECLARE_LAYER(isa)                       \
    namespace isa {                                  \
    extern const LayerKernels<float> layer_float32;  \
    extern const LayerKernels<double> layer_float64; \
    }

C2D_DECLARE_LAYER(baseline)
#if defined(__x86_64__)
C2D_DECLARE_LAYER(avx2)
C2D_DECLARE_LAYER(avx512)
#endif

#undef C2D_DECLARE_LAYER

// Products of bfloat16: weights have the bias in two columns, see ../common/pairs.h; the scale of q
// and the relative bias hold a factor log2(e).
namespace avx512bf16 {
extern const LayerKernels<float, Pair, Bfloat16> layer_bfloat16;
}

}  // namespace c2d
