// What one instruction set offers for HiT-SR's dual feature extraction: all the arithmetic of one
// tile of a map. kernel.cpp defines it once per instruction set; the host side in host.cpp
// cuts the map.
#pragma once

#include "../common/row_tile.h"

namespace c2d {

constexpr int64_t kSide = 3;  // of the convolution

// Weights as kernels read them: rows of output channels, the bias in the last column.
template <class T>
struct DualWeights {
    const T* local;      // (hidden, C + 1)
    const T* linear;     // (C, C + 1)
    const T* conv;       // (kSide^2, hidden, hidden), tap by tap
    const T* conv_bias;  // (hidden)
    const T* expand;     // (C, hidden + 1)
    // What an encoding of the place adds to local and, below it, linear: (hidden + C, H) and
    // (hidden + C, W); null without one.
    const T *by_row, *by_column;
};

template <class T>
struct DualSizes {
    int64_t height, width, channels, hidden;
};

template <class T>
struct DualKernels {
    int64_t lanes;  // elements of a vector
    // Elements of scratch memory, aligned to a vector, that tiles of so many columns need.
    int64_t (*scratch)(const DualSizes<T>& sizes, int64_t columns);
    void (*run)(const DualSizes<T>& sizes, const DualWeights<T>& weights, const RowTile<T>& tile,
                T* scratch);
};

#define C2D_DECLARE_DUAL(isa)                               \
    namespace isa {                                         \
    extern const DualKernels<float> dual_features_float32;  \
    extern const DualKernels<double> dual_features_float64; \
    }

C2D_DECLARE_DUAL(baseline)
#if defined(__x86_64__)
C2D_DECLARE_DUAL(avx2)
C2D_DECLARE_DUAL(avx512)
#endif

#undef C2D_DECLARE_DUAL

}  // namespace c2d
