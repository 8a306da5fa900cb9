// What one instruction set offers for a gated feed-forward: all the arithmetic of one tile of a
// map. kernel.cpp defines it once per instruction set; the host side in host.cpp cuts the map.
#pragma once

#include "../common/row_tile.h"

namespace c2d {

// Weights as kernels read them: rows of output channels, the bias in the last column. The norm that
// comes first is folded into `first`; `gated` channels go on and as many gate them.
template <class T>
struct GatedFfnWeights {
    const T* first;   // (2 gated, C + 1)
    const T* norm;    // (2, gated), weight and bias, of the gate
    const T* conv;    // (gated, side^2 + 1)
    const T* second;  // (C, gated + 1)
};

template <class T>
struct GatedFfnSizes {
    int64_t height, width, channels, gated;
    int64_t side;  // of the depthwise convolution: 3 or 5
    T eps;
};

template <class T>
struct GatedFfnKernels {
    int64_t lanes;  // elements of a vector
    // Elements of scratch memory, aligned to a vector, that tiles of so many columns need.
    int64_t (*scratch)(const GatedFfnSizes<T>& sizes, int64_t columns);
    void (*run)(const GatedFfnSizes<T>& sizes, const GatedFfnWeights<T>& weights,
                const RowTile<T>& tile, T* scratch);
};

#define C2D_DECLARE_GATED_FFN(isa)                          \
    namespace isa {                                         \
    extern const GatedFfnKernels<float> gated_ffn_float32;  \
    extern const GatedFfnKernels<double> gated_ffn_float64; \
    }

C2D_DECLARE_GATED_FFN(baseline)
#if defined(__x86_64__)
C2D_DECLARE_GATED_FFN(avx2)
C2D_DECLARE_GATED_FFN(avx512)
#endif

#undef C2D_DECLARE_GATED_FFN

}  // namespace c2d
