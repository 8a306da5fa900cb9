// What a hidden row of SRFormer's feed-forward goes through beside the products: GELU and the
// depthwise convolution, in T. Like simd.h, compiled once per instruction set, with internal
// linkage.
#pragma once

#include "../common/tokens.h"
#include "conv_ffn.h"

namespace c2d::C2D_ISA {
namespace {

constexpr int64_t kReach = kKernel / 2;
constexpr int64_t kTaps = kKernel * kKernel;

// GELU of `count` tokens of a row of the ring; what a product left behind them is cleared.
template <class T, int lanes, class Gelu>
inline void activate_row(int64_t hidden, int64_t count, int64_t length, int64_t ring_row, T* row,
                         Gelu gelu) {
    for (int64_t c = 0; c < hidden; ++c, row += ring_row) {
        for (int64_t n = 0; n < length; n += lanes) {
            store<T, lanes>(row + n, gelu(load<T, lanes>(row + n)));
        }
        for (int64_t n = count; n < length; ++n) {
            row[n] = 0;
        }
    }
}

// done(n, start(n) + taps) for `vectors` vectors of tokens of a channel, whose rows of the ring
// begin at rows[0..4] + n. Several at a time: each weight is then fetched once for all of them.
template <class T, int lanes, int vectors, class Start, class Done>
inline __attribute__((always_inline)) void taps(const T* const (&rows)[kKernel], int64_t n,
                                                const T* weight, Start start, Done done) {
    Vector<T, lanes> sum[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
        sum[v] = start(n + v * lanes);
    }
#pragma GCC unroll 5
    for (int64_t dy = 0; dy < kKernel; ++dy) {
#pragma GCC unroll 5
        for (int64_t dx = 0; dx < kKernel; ++dx) {
            const T factor = weight[dy * kKernel + dx];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) {
                sum[v] += factor * load<T, lanes>(rows[dy] + n + dx + v * lanes);
            }
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
        done(n + v * lanes, sum[v]);
    }
}

// The same for `length` tokens, from rows of the ring that begin at from[0..4] + at.
template <class T, int lanes, class Start, class Done>
inline __attribute__((always_inline)) void convolve_row(int64_t length, const T* const* from,
                                                        int64_t at, const T* weight, Start start,
                                                        Done done) {
    const T* const rows[kKernel] = {from[0] + at, from[1] + at, from[2] + at, from[3] + at,
                                    from[4] + at};
    int64_t n = 0;
    for (; n + 4 * lanes <= length; n += 4 * lanes) {
        taps<T, lanes, 4>(rows, n, weight, start, done);
    }
    for (; n < length; n += lanes) {
        taps<T, lanes, 1>(rows, n, weight, start, done);
    }
}

// wide = h + GELU(depthwise convolution of h), from the five rows around it.
template <class T, int lanes, class Gelu>
inline void convolve(int64_t hidden, int64_t length, int64_t ring_row, const T* const* rows,
                     const T* weight, T* wide, Gelu gelu) {
    using V = Vector<T, lanes>;
    for (int64_t c = 0; c < hidden; ++c, weight += kTaps + 1) {
        const T* const centre = rows[kReach] + c * ring_row + kReach;
        T* const to = wide + c * length;
        convolve_row<T, lanes>(
            length, rows, c * ring_row, weight, [&](int64_t) { return V{} + weight[kTaps]; },
            [&](int64_t n, V sum) {
                store<T, lanes>(to + n, load<T, lanes>(centre + n) + gelu(sum));
            });
    }
}

}  // namespace
}  // namespace c2d::C2D_ISA
