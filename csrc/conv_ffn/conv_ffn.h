// What one instruction set offers for SRFormer's feed-forward: all the arithmetic of one tile of a
// map. kernel.cpp defines it once per instruction set; the host side in host.cpp cuts the map.
#pragma once

#include "../common/bfloat16.h"
#include "../common/row_tile.h"

namespace c2d {

constexpr int64_t kKernel = 5;  // side of the depthwise convolution

// Weights as kernels read them: rows of output channels, the bias in the last column. A norm that
// comes first is folded into `first`.
template <class T, class Weight = T>
struct ConvFfnWeights {
    const Weight* first;   // (hidden, C + 1)
    const T* conv;         // (hidden, 26)
    const Weight* second;  // (C, hidden + 1)
    const T* norm;         // (2, C), weight and bias, of a norm that comes last
};

template <class T>
struct ConvFfnSizes {
    int64_t height, width, channels, hidden;
    bool norm_first;
    T eps;
};

// Arithmetic in T; weights of the products and maps may have other types.
template <class T, class Weight = T, class Map = T>
struct ConvFfnKernels {
    int64_t lanes;  // elements of a vector
    // Elements of scratch memory, aligned to a vector, that tiles of so many columns need.
    int64_t (*scratch)(const ConvFfnSizes<T>& sizes, int64_t columns);
    void (*run)(const ConvFfnSizes<T>& sizes, const ConvFfnWeights<T, Weight>& weights,
                const RowTile<Map>& tile, T* scratch);
};

#define C2D_DECLARE_CONV_FFN(isa)                         \
    namespace isa {                                       \
    extern const ConvFfnKernels<float> conv_ffn_float32;  \
    extern const ConvFfnKernels<double> conv_ffn_float64; \
    }

C2D_DECLARE_CONV_FFN(baseline)
#if defined(__x86_64__)
C2D_DECLARE_CONV_FFN(avx2)
C2D_DECLARE_CONV_FFN(avx512)
#endif

#undef C2D_DECLARE_CONV_FFN

// Products of bfloat16: their weights have the bias in two columns, see ../common/pairs.h.
namespace avx512bf16 {
extern const ConvFfnKernels<float, Pair, Bfloat16> conv_ffn_bfloat16;
}

}  // namespace c2d
