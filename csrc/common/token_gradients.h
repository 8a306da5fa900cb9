// Gradients of layers on tokens that lie transposed, [channel][token], see tokens.h. Like simd.h,
// compiled once per instruction set, with internal linkage.
#pragma once

#include "tokens.h"

namespace c2d::C2D_ISA {
namespace {

// Sum over channels of term(channel), in four parts: one would wait for itself.
template <class V, class Term>
inline __attribute__((always_inline)) V sum_over(int64_t channels, Term term) {
    V sums[4] = {};
    int64_t c = 0;
    for (; c + 4 <= channels; c += 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            sums[i] += term(c + i);
        }
    }
    for (; c < channels; ++c) {
        sums[0] += term(c);
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The gradient of x from `grad`, that of LN(x) with the affine weight, or without if it is null.
// It may take the place of x or of grad. Unless `sums` is null, adds the gradients of the affine
// weight and bias to it, lane by lane, [2 channels][lanes], of the tokens that count: 1 in
// `counted`, else 0; all, if that is null.
template <class T, int lanes>
inline void normalise_back(int64_t channels, int64_t length, T eps, const T* x, const T* weight,
                           const T* grad, T* to, const T* counted = nullptr, T* sums = nullptr) {
    using V = Vector<T, lanes>;
    const T share = T(1) / T(channels);
    for (int64_t n = 0; n < length; n += lanes) {
        const Moments<T, lanes> moments(channels, length, eps, x + n);
        const auto normed = [&](int64_t c) {
            return (load<T, lanes>(x + c * length + n) - moments.mean) * moments.scale;
        };
        const auto change = [&](int64_t c) {
            const V plain = load<T, lanes>(grad + c * length + n);
            return weight == nullptr ? plain : plain * weight[c];
        };
        const V mean = share * sum_over<V>(channels, change);
        const V along =
            share * sum_over<V>(channels, [&](int64_t c) { return change(c) * normed(c); });
        for (int64_t c = 0; c < channels; ++c) {
            const V norm = normed(c), moved = moments.scale * (change(c) - mean - norm * along);
            if (sums != nullptr) {
                V own = load<T, lanes>(grad + c * length + n);
                own = counted == nullptr ? own : own * load<T, lanes>(counted + n);
                T *const of_weight = sums + c * lanes, *const of_bias =
                                                           of_weight + channels * lanes;
                store<T, lanes>(of_weight, load<T, lanes>(of_weight) + own * norm);
                store<T, lanes>(of_bias, load<T, lanes>(of_bias) + own);
            }
            store<T, lanes>(to + c * length + n, moved);
        }
    }
}

// sums (rows, width) += a (rows, tokens) times b (tokens, width): the gradient of a Linear's
// weights from the gradient of its result, transposed, and its input, one token per row; or vice
// versa, and transposed itself.
template <class T, int lanes>
inline void add_products(int64_t rows, int64_t tokens, const T* a, int64_t a_row, const T* b,
                         int64_t width, T* sums) {
    long_product<T, lanes>({tokens, a, a_row, 1, b, width, sums, sums, width}, rows, width);
}

// Tokens as rows of `width` numbers; what is behind the channels stays.
template <class T, int lanes>
inline void token_rows(int64_t tokens, int64_t channels, const T* from, int64_t length,
                       int64_t width, T* to) {
    int64_t token[kMostTokens];
    for (int64_t n = 0; n < tokens; ++n) {
        token[n] = n * width;
    }
    turn_out<T, lanes>(tokens, channels, from, length, token, to);
}

// to[i] += the sum of vector i over its lanes.
template <class T, int lanes>
inline void add_lanes(int64_t vectors, const T* from, T* to) {
    for (int64_t i = 0; i < vectors; ++i) {
        const Vector<T, lanes> vector = load<T, lanes>(from + i * lanes);
        to[i] += sums_over_lanes<T, lanes, 1>(&vector)[0];
    }
}

// (rows, columns) to += (rows, width) from.
template <class T>
inline void add_columns(int64_t rows, int64_t columns, const T* from, int64_t width, T* to) {
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
            to[i * columns + j] += from[i * width + j];
        }
    }
}

}  // namespace
}  // namespace c2d::C2D_ISA
