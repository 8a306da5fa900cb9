// What one instruction set offers for spatial correlation. kernel.cpp defines it once per
// instruction set; the host side in host.cpp walks windows, lays out the bias and
// makes no sum over channels, cells or tokens.
#pragma once

#include "../common/strip.h"

namespace c2d {

// What all windows of a call have in common. "Transposed" matrices are [channel][cell], a row
// filled up with zeros to `padded` numbers, a multiple of the vector.
struct SpatialSizes {
    int64_t heads, head_dim;
    int64_t height, width;            // tokens of a window along an axis
    int64_t cell_height, cell_width;  // tokens of a cell along an axis
    int64_t base_height, base_width;  // cells of a window along an axis
    int64_t cells, padded;            // cells of a window

    int64_t channels() const { return heads * head_dim; }
};

// Token n of a window is data[at[n] + channel].
template <class T>
struct Tokens {
    T* data;
    const int64_t* at;
};

// The bias with tokens side by side: that of head h, token (y, x) and cell (Y, X) is
// data[h * head + y * row + x + Y * down + X * right]. Either rows follow each other (row is the
// window's width), or a row is a multiple of the kernels' block.
template <class T>
struct TokenBias {
    const T* data;
    int64_t head, row, down, right;
};

// The same with cells side by side: data[(y % cell_height) * row + x * column +
// (base_height - 1 - y / cell_height) * base_width + cell] for one head.
template <class T>
struct CellBias {
    T* data;
    int64_t row, column;
};

template <class T>
struct SpatialKernels {
    int64_t lanes;  // elements of a vector
    int64_t block;  // tokens that are handled together
    // Elements of scratch memory that apply and backward_tokens need.
    int64_t (*scratch)(const SpatialSizes& sizes);

    // One row of cells: p[X][channel] = bias + sum over the cell's tokens of weight * v.
    void (*reduce)(const SpatialSizes& sizes, Strip<const T> v, const T* weight, T bias, T* p);

    // One window: transposed = p^T, gram[head] = p^T p / head_dim.
    void (*gram)(const SpatialSizes& sizes, const T* p, T* transposed, T* gram);

    // Tokens [first, first + count) of a window: out = q gram + bias p.
    void (*apply)(const SpatialSizes& sizes, int64_t first, int64_t count, Tokens<const T> q,
                  const T* gram, const T* transposed, const TokenBias<T>& bias, Tokens<T> out,
                  T* scratch);

    // The same tokens: dq = grad gram, dgram[head] = q^T grad / head_dim.
    void (*backward_tokens)(const SpatialSizes& sizes, int64_t first, int64_t count,
                            Tokens<const T> q, Tokens<const T> grad, const T* gram, Tokens<T> dq,
                            T* dgram, T* scratch);

    // One head of one window: d_transposed = (bias^T grad)^T, dbias += grad p^T.
    void (*backward_bias)(const SpatialSizes& sizes, Strip<const T> grad, const T* transposed,
                          CellBias<const T> bias, T* d_transposed, CellBias<T> dbias);

    // One window: d_transposed += (p (dgram + dgram^T))^T, dp = d_transposed^T.
    void (*backward_gram)(const SpatialSizes& sizes, const T* transposed, const T* dgram,
                          T* d_transposed, T* dp);

    // One row of cells: dv = weight dp; dweight[t] = sum over cells and channels of v dp.
    void (*backward_reduce)(const SpatialSizes& sizes, Strip<const T> v, const T* weight,
                            const T* dp, Strip<T> dv, T* dweight);
};

#define C2D_DECLARE_SPATIAL(isa)                         \
    namespace isa {                                      \
    extern const SpatialKernels<float> spatial_float32;  \
    extern const SpatialKernels<double> spatial_float64; \
    }

C2D_DECLARE_SPATIAL(baseline)
#if defined(__x86_64__)
C2D_DECLARE_SPATIAL(avx2)
C2D_DECLARE_SPATIAL(avx512)
#endif

#undef C2D_DECLARE_SPATIAL

}  // namespace c2d
