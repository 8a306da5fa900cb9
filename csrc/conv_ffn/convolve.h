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

// GELU of `length` tokens of a row of the ring.
template <class T, int lanes, class Gelu>
inline void activate_row(int64_t hidden, int64_t length, int64_t ring_row, T* row, Gelu gelu) {
    for (int64_t c = 0; c < hidden; ++c, row += ring_row) {
        for (int64_t n = 0; n < length; n += lanes) {
            store<T, lanes>(row + n, gelu(load<T, lanes>(row + n)));
        }
    }
}

// Zeros in a row of the ring from token `begin` to `end`.
template <class T>
inline void clear_tokens(int64_t hidden, int64_t begin, int64_t end, int64_t ring_row, T* row) {
    for (int64_t c = 0; begin < end && c < hidden; ++c, row += ring_row) {
        for (int64_t n = begin; n < end; ++n) {
            row[n] = 0;
        }
    }
}

// Rows of the convolution that are made together, so that a number read serves several of them.
constexpr int kRowsAtOnce = kVectorBytes == 64 ? 4 : 2;
// Vectors of them: sums and what is added fit the registers.
template <int rows>
constexpr int kVectorsAtOnce = kVectorBytes == 64 || rows == 1 ? 4 : 3;

// done(row, n, start(row, n) + taps) for `rows` rows and `vectors` vectors of tokens of a channel:
// a row's taps begin at from[row..row + 4] + n. Each weight is fetched once for all of the vectors,
// each vector once for all of the rows, and a number's terms are added in the same order whatever
// comes with it.
template <class T, int lanes, int rows, int vectors, class Start, class Done>
inline __attribute__((always_inline)) void taps(const T* const* from, int64_t n, const T* weight,
                                                Start start, Done done) {
    Vector<T, lanes> sum[rows][vectors];
#pragma GCC unroll 4
    for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            sum[row][v] = start(row, n + v * lanes);
        }
    }
#pragma GCC unroll 8
    for (int y = 0; y < rows + kKernel - 1; ++y) {
        asm("" : "+r"(weight));  // else weights are kept for the next row, in registers of sums
#pragma GCC unroll 5
        for (int dx = 0; dx < kKernel; ++dx) {
            Vector<T, lanes> here[vectors];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) {
                here[v] = load<T, lanes>(from[y] + n + dx + v * lanes);
                if constexpr (rows > 1) {
                    keep_in_register(here[v]);
                }
            }
#pragma GCC unroll 4
            for (int row = 0; row < rows; ++row) {
                if (row <= y && y < row + kKernel) {
                    const T factor = weight[(y - row) * kKernel + dx];
#pragma GCC unroll 4
                    for (int v = 0; v < vectors; ++v) {
                        sum[row][v] += factor * here[v];
                    }
                }
            }
        }
    }
#pragma GCC unroll 4
    for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            done(row, n + v * lanes, sum[row][v]);
        }
    }
}

// The same from token n to `length`, less than `most` + 1 vectors.
template <class T, int lanes, int rows, int most, class Start, class Done>
inline __attribute__((always_inline)) void last_taps(const T* const* from, int64_t n,
                                                     int64_t length, const T* weight, Start start,
                                                     Done done) {
    if constexpr (most > 0) {
        if (n + most * lanes == length) {
            taps<T, lanes, rows, most>(from, n, weight, start, done);
        } else {
            last_taps<T, lanes, rows, most - 1>(from, n, length, weight, start, done);
        }
    }
}

// The same for `length` tokens, from rows of the ring that begin at from[0..rows + 3] + at.
template <class T, int lanes, int rows, class Start, class Done>
inline __attribute__((always_inline)) void convolve_rows(int64_t length, const T* const* from,
                                                         int64_t at, const T* weight, Start start,
                                                         Done done) {
    const T* here[rows + kKernel - 1];
    for (int y = 0; y < rows + kKernel - 1; ++y) {
        here[y] = from[y] + at;
    }
    constexpr int most = kVectorsAtOnce<rows>;
    int64_t n = 0;
    for (; n + most * lanes <= length; n += most * lanes) {
        taps<T, lanes, rows, most>(here, n, weight, start, done);
    }
    last_taps<T, lanes, rows, most - 1>(here, n, length, weight, start, done);
}

// wide = h + GELU(depthwise convolution of h) for `rows` rows, from those around them. A row of it
// may take the place of the first row that it is made from: what is read again lies further on.
// Calls beside(c) for every channel.
template <class T, int lanes, int rows, class Gelu, class Beside>
inline void convolve(int64_t hidden, int64_t length, int64_t ring_row, const T* const* from,
                     const T* weight, T* const* wide, Gelu gelu, Beside beside) {
    using V = Vector<T, lanes>;
    for (int64_t c = 0; c < hidden; ++c, weight += kTaps + 1) {
        const int64_t at = c * ring_row;
        beside(c);
        convolve_rows<T, lanes, rows>(
            length, from, at, weight, [&](int, int64_t) { return V{} + weight[kTaps]; },
            [&](int row, int64_t n, V sum) {
                const V centre = load<T, lanes>(from[row + kReach] + at + n + kReach);
                store<T, lanes>(wide[row] + at + n, centre + gelu(sum));
            });
    }
}

}  // namespace
}  // namespace c2d::C2D_ISA
