// Channel correlation on the CPU, one instruction set at a time: HiT-SR's channel self-correlation
// (2407.05878), out = v (q^T v / n)^T in each window of n tokens.
//
// Idea. Everything is one register tile: rows x vectors accumulators to which each step adds the
// outer product of a few scalars and a few vectors. Gram matrices (C x C, from n tokens) step over
// tokens, products with such a matrix step over channels. Nothing is copied, transposed or padded:
// tokens are read where they lie (q and v are usually two slices of one map), and where C is no
// multiple of the vector the last vector of a row overlaps the one before.
//
// Costs, per token of C channels of b bytes:
//            multiply-adds                       bytes (read q, v, [grad], v again; write)
//   forward  2 C^2  (v^T q; v M^T)               4 C b, + C b where a store first reads its line
//   backward 5 C^2  (q^T v, grad^T v; 3 products) 8 C b, + 2 C b
// At C = 30 in float32 the forward does 7.5 FLOP per byte: arithmetic in cache, near the balance of
// arithmetic and memory on large maps.
//
// What was tried. AMD Zen 4 core in a shared virtual machine with other work on it, one thread,
// best of many in processor time, variants run in turn; "ratio" is old time / new time.
//   step                                         predicted                  measured ratio
//   against the reference in ATen, AVX-512       2-3                        2.0-2.3 (4 x 64 x 64 x 30)
//                                                                           3.5-3.8 (180 x 320 x 30)
//     forward and backward together                                         2.1-2.2; 3.3-3.4
//     AVX2                                                                  2.2-2.3; 2.8-3.9
//     baseline (SSE2)                            1                          1.1-1.2; 1.3-1.5
//   tile 12 x 2, remainder 6, 3, 1               (the first version)        1
//   tile 8 x 2, remainder 4, 2, 1                1.3 at window 32 (12 does  1.0 at C = 30,
//                                                not divide it)             1.1-1.2 at C = 16: kept
//   prefetch the next window row in the gram     1.4 at 180 x 320           0.8-0.9: dropped
//   strips of 64 tokens, not 512 (first cache)   1.1 on maps wider than     1.1-1.9 in a row of equal
//                                                the window                 calls, 0.9-1.1 alone, 0.95
//                                                                           for one window: kept, it
//                                                                           also shortens the sums
//   512-token strips walked in 64-token chunks   the same gain              1.0: dropped
//   in cache, 4 x 64 x 64 x 30: 98 GFLOP/s forward, 95 backward, of about 118 at 3.7 GHz.
// Known and left: C = 24 wastes a third of the second AVX-512 vector (a half-width vector for the
// tail would save a quarter of the steps on this core).
#include "../common/simd.h"
#include "channel_correlation.h"

namespace c2d::C2D_ISA {
namespace {

// tile[r][v] += sum_k a[k * a_step + r * a_row] * b[k * b_step + column[v] ...], the only
// arithmetic there is: `rows x vectors` accumulators stay in registers, each step loads `vectors`
// vectors and broadcasts `rows` scalars.
template <class T, int lanes, int rows, int vectors>
inline __attribute__((always_inline)) void accumulate(Vector<T, lanes> (&tile)[rows][vectors],
                                                      const T* a, int64_t a_row, int64_t a_step,
                                                      const T* b, int64_t b_step, int64_t last,
                                                      int64_t steps) {
    for (int64_t k = 0; k < steps; ++k) {
        Vector<T, lanes> columns[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            columns[v] = load<T, lanes>(b + (v + 1 < vectors ? v * lanes : last));
        }
#pragma GCC unroll 12
        for (int r = 0; r < rows; ++r) {
            const T scalar = a[r * a_row];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) {
                tile[r][v] += scalar * columns[v];
            }
        }
        a += a_step;
        b += b_step;
    }
}

template <class T, int lanes, int rows, int vectors>
inline __attribute__((always_inline)) void write(const Vector<T, lanes> (&tile)[rows][vectors],
                                                 T* to, int64_t row_stride, int64_t last) {
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            store<T, lanes>(to + r * row_stride + (v + 1 < vectors ? v * lanes : last), tile[r][v]);
        }
    }
}

// One tile of the gram matrix, summed over all tokens of the strip.
template <class T, int lanes>
struct Gram {
    int64_t strip_rows, strip_columns, channels;
    Strip<const T> a, b;
    T* gram;

    template <int rows, int vectors>
    inline __attribute__((always_inline)) void tile(int64_t row, int64_t column,
                                                    int64_t last) const {
        Vector<T, lanes> sum[rows][vectors] = {};
        for (int64_t y = 0; y < strip_rows; ++y) {
            accumulate<T, lanes, rows, vectors>(sum, a.data + y * a.row_stride + row, 1,
                                                a.token_stride, b.data + y * b.row_stride + column,
                                                b.token_stride, last, strip_columns);
        }
        write<T, lanes, rows, vectors>(sum, gram + row * channels + column, channels, last);
    }
};

// One tile of the product of a row of tokens and a channels x channels matrix.
template <class T, int lanes>
struct Product {
    int64_t channels;
    const T *a, *m, *a2, *m2;
    int64_t a_token, a2_token;
    T* out;
    int64_t out_token;

    template <int rows, int vectors>
    inline __attribute__((always_inline)) void tile(int64_t row, int64_t column,
                                                    int64_t last) const {
        Vector<T, lanes> sum[rows][vectors] = {};
        accumulate<T, lanes, rows, vectors>(sum, a + row * a_token, a_token, 1, m + column,
                                            channels, last, channels);
        if (m2 != nullptr) {
            accumulate<T, lanes, rows, vectors>(sum, a2 + row * a2_token, a2_token, 1, m2 + column,
                                                channels, last, channels);
        }
        write<T, lanes, rows, vectors>(sum, out + row * out_token + column, out_token, last);
    }
};

template <int rows, int vectors, class Task>
inline void tiles_of_rows(const Task& task, int64_t row, int64_t end, int64_t column,
                          int64_t last) {
    for (; row + rows <= end; row += rows) {
        task.template tile<rows, vectors>(row, column, last);
    }
    if constexpr (rows > 1) {
        if (row < end) {
            constexpr int fewer = rows > 8 ? 8 : rows > 4 ? 4 : rows / 2;
            tiles_of_rows<fewer, vectors>(task, row, end, column, last);
        }
    }
}

// Covers a rows x channels result with register tiles. Where the channels are no multiple of the
// vector, the last vector of a row is moved left to end with the row: it recomputes a few
// columns (with the same result) and no load or store needs a mask.
template <class T, int lanes, class Task>
inline void tiles(const Task& task, int64_t rows, int64_t channels) {
    constexpr int64_t step = lanes * kTileVectors;
    int64_t column = 0;
    for (; column + step < channels; column += step) {
        tiles_of_rows<kTileRows, kTileVectors>(task, 0, rows, column, step - lanes);
    }
    const int64_t last = channels - lanes - column;
    if (last > 0) {
        tiles_of_rows<kTileRows, kTileVectors>(task, 0, rows, column, last);
    } else {
        tiles_of_rows<kTileRows, 1>(task, 0, rows, column, last);
    }
}

template <class T, int lanes>
void gram_with(int64_t rows, int64_t columns, int64_t channels, Strip<const T> a, Strip<const T> b,
               T* gram) {
    tiles<T, lanes>(Gram<T, lanes>{rows, columns, channels, a, b, gram}, channels, channels);
}

template <class T, int lanes>
void apply_with(int64_t rows, int64_t columns, int64_t channels, Strip<const T> a, const T* m,
                Strip<const T> a2, const T* m2, Strip<T> out) {
    for (int64_t y = 0; y < rows; ++y) {
        const T* second = m2 == nullptr ? nullptr : a2.data + y * a2.row_stride;
        tiles<T, lanes>(
            Product<T, lanes>{channels, a.data + y * a.row_stride, m, second, m2, a.token_stride,
                              a2.token_stride, out.data + y * out.row_stride, out.token_stride},
            columns, channels);
    }
}

// The widest vector that fits in a row of channels.
template <class T, int lanes>
void gram(int64_t rows, int64_t columns, int64_t channels, Strip<const T> a, Strip<const T> b,
          T* result) {
    if constexpr (lanes > 1) {
        if (channels < lanes) {
            return gram<T, lanes / 2>(rows, columns, channels, a, b, result);
        }
    }
    gram_with<T, lanes>(rows, columns, channels, a, b, result);
}

template <class T, int lanes>
void apply(int64_t rows, int64_t columns, int64_t channels, Strip<const T> a, const T* m,
           Strip<const T> a2, const T* m2, Strip<T> out) {
    if constexpr (lanes > 1) {
        if (channels < lanes) {
            return apply<T, lanes / 2>(rows, columns, channels, a, m, a2, m2, out);
        }
    }
    apply_with<T, lanes>(rows, columns, channels, a, m, a2, m2, out);
}

}  // namespace

extern const CorrelationKernels<float> correlation_float32 = {
    gram<float, kVectorBytes / sizeof(float)>, apply<float, kVectorBytes / sizeof(float)>};
extern const CorrelationKernels<double> correlation_float64 = {
    gram<double, kVectorBytes / sizeof(double)>, apply<double, kVectorBytes / sizeof(double)>};

}  // namespace c2d::C2D_ISA
