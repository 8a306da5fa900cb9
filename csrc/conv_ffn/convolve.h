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

// wide = h + GELU(depthwise convolution of h), from the five rows around it.
template <class T, int lanes, class Gelu>
inline void convolve(int64_t hidden, int64_t length, int64_t ring_row, const T* const* rows,
                     const T* weight, T* wide, Gelu gelu) {
    using V = Vector<T, lanes>;
    for (int64_t c = 0; c < hidden; ++c, weight += kTaps + 1) {
        for (int64_t n = 0; n < length; n += lanes) {
            V sum = V{} + weight[kTaps];
#pragma GCC unroll 5
            for (int64_t dy = 0; dy < kKernel; ++dy) {
                const T* const from = rows[dy] + c * ring_row + n;
#pragma GCC unroll 5
                for (int64_t dx = 0; dx < kKernel; ++dx) {
                    sum += weight[dy * kKernel + dx] * load<T, lanes>(from + dx);
                }
            }
            const V centre = load<T, lanes>(rows[kReach] + c * ring_row + n + kReach);
            store<T, lanes>(wide + c * length + n, centre + gelu(sum));
        }
    }
}

}  // namespace
}  // namespace c2d::C2D_ISA
