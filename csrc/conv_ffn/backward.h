// What one instruction set offers for the backward of SRFormer's feed-forward: all the arithmetic
// of one tile of a map. backward_kernel.cpp defines it once per instruction set; the host side in
// backward_host.cpp cuts the map and adds up what tiles give.
#pragma once

#include "conv_ffn.h"

namespace c2d {

// An image of a map: pixel (y, x) begins at data + y * row + x * column.
template <class T>
struct Picture {
    T* data;
    int64_t row, column;
};

// Rows x columns pixels of an image: of the input, the gradient of the result, and that of the
// input, which is written.
template <class T>
struct ConvFfnBackwardTile {
    Picture<const T> x, grad;
    Picture<T> x_grad;
    int64_t top, left, rows, columns;
};

// Gradients of the weights as the forward takes them, but for `second`, which is transposed. A
// tile adds its own.
template <class T>
struct ConvFfnGradients {
    T* first;   // (hidden, C + 1)
    T* conv;    // (hidden, 26)
    T* second;  // (hidden + 1, C)
    T* norm;    // (2, C), of a norm that comes last
};

template <class T>
struct ConvFfnBackward {
    int64_t lanes;
    int64_t (*scratch)(const ConvFfnSizes<T>& sizes, int64_t columns);
    void (*run)(const ConvFfnSizes<T>& sizes, const ConvFfnWeights<T>& weights,
                const ConvFfnBackwardTile<T>& tile, T* scratch,
                const ConvFfnGradients<T>& gradients);
};

#define C2D_DECLARE_CONV_FFN_BACKWARD(isa)                          \
    namespace isa {                                                 \
    extern const ConvFfnBackward<float> conv_ffn_backward_float32;  \
    extern const ConvFfnBackward<double> conv_ffn_backward_float64; \
    }

C2D_DECLARE_CONV_FFN_BACKWARD(baseline)
#if defined(__x86_64__)
C2D_DECLARE_CONV_FFN_BACKWARD(avx2)
C2D_DECLARE_CONV_FFN_BACKWARD(avx512)
#endif

#undef C2D_DECLARE_CONV_FFN_BACKWARD

}  // namespace c2d
