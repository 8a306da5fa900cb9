// The MLP of a layer on tokens in cache, and back. Like simd.h, compiled once per instruction set,
// with internal linkage.
#pragma once

#include "token_gradients.h"

namespace c2d::C2D_ISA {
namespace {

// Its weights, its rows of tokens, tokens as rows, and sums of the weights' gradients.
template <class T>
struct MlpRows {
    int64_t channels, hidden;
    const T *first, *second;      // (hidden, channels + 1), (channels, hidden + 1)
    T* entry;                     // [channels + 1], what fc1 takes, with its row of ones
    T *active, *slope, *wide;     // [hidden + 1], [hidden], [hidden]
    T* rows;                      // [tokens][wide_width]
    int64_t wide_width, width;    // channels + 1 and channels, filled up
    T *first_sums, *second_sums;  // [hidden][wide_width], [hidden + 1][width]
};

// h = GELU(fc1(entry)) and the slopes of the GELU.
template <class T, int lanes>
inline void mlp_forward(const MlpRows<T>& mlp, int64_t length) {
    multiply<T, lanes>(mlp.hidden, mlp.channels + 1, length, mlp.first, mlp.entry, false,
                       mlp.active);
    for (int64_t i = 0; i < mlp.hidden * length; i += lanes) {
        const GeluAndSlope<Vector<T, lanes>> gelu(load<T, lanes>(mlp.active + i));
        store<T, lanes>(mlp.active + i, gelu.value);
        store<T, lanes>(mlp.slope + i, gelu.slope);
    }
    ones<T, lanes>(length, mlp.active + mlp.hidden * length);
}

// From `grad`, the gradient of fc2's result, those of the weights and, to `to`, that of the entry,
// added to `start` unless it is null.
template <class T, int lanes>
inline void mlp_backward(const MlpRows<T>& mlp, int64_t count, int64_t length, const T* grad,
                         const T* start, T* to) {
    const int64_t C = mlp.channels, hidden = mlp.hidden;
    token_rows<T, lanes>(count, C, grad, length, mlp.width, mlp.rows);
    add_products<T, lanes>(hidden + 1, count, mlp.active, length, mlp.rows, mlp.width,
                           mlp.second_sums);
    product<T, lanes>({C, mlp.second, 1, hidden + 1, grad, length, nullptr, mlp.wide, length},
                      hidden, length);
    for (int64_t i = 0; i < hidden * length; i += lanes) {
        store<T, lanes>(mlp.wide + i, load<T, lanes>(mlp.wide + i) * load<T, lanes>(mlp.slope + i));
    }
    token_rows<T, lanes>(count, C + 1, mlp.entry, length, mlp.wide_width, mlp.rows);
    add_products<T, lanes>(hidden, count, mlp.wide, length, mlp.rows, mlp.wide_width,
                           mlp.first_sums);
    product<T, lanes>({hidden, mlp.first, 1, C + 1, mlp.wide, length, start, to, length}, C,
                      length);
}

}  // namespace
}  // namespace c2d::C2D_ISA
