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
// What was measured: an AMD EPYC core with AVX-512 in a shared virtual machine that had other work
// to do, one thread, least of 10-25 runs in processor time, kernel and reference in turn. The same
// call varied by half and more from minute to minute: read the ratios to one digit.
//   ratio to the reference in ATen      AVX-512                  AVX2
//   (forward; forward and backward)
//     4 x 64 x 64 x 30, window 64       2.4; 2.0                 2.0; 1.7
//     4 x 64 x 64 x 24, window 32       1.6; 1.9                 1.4; 1.6
//     180 x 320 x 30, window 64         4.0; 3.6                 3.5; 3.0
//     180 x 320 x 16, window 32         3.5; 2.7                 3.2; 2.7
//   The baseline (SSE2) was 0.7-0.9 on the first two and 1.5-1.9 on the others, with an ATen that
//   went on using AVX-512 (and with strips of 64 tokens, below). Alone in cache, 4 x 64 x 64 x 30
//   runs at 98 (forward) and 95 (backward) GFLOP/s.
//
// What was tried (old time / new time; a prediction was written first where one is given):
//   8 x 2 tile with remainders 4, 2, 1 instead of 12 x 2 with 6, 3, 1. Predicted 1.4 at window 32,
//     which 12 does not divide, and 1.1 at C = 16. Measured 1.0 and 1.1-1.2: kept, less code.
//   Prefetch of the next window row in the gram. Predicted 1.4-1.7 at 180 x 320; measured 0.8-0.9:
//     dropped.
//   Strips of 64 tokens instead of 512, no prediction. Measured 0.9-2.6 on maps 64 high and 192-448
//     wide called over and over, but 0.95 at 4 x 64 x 64 and 0.6-1.1 at 180 x 320: dropped. Why the
//     wide low maps gain is not understood.
//   512-token strips walked in 64-token chunks. Predicted that same gain; measured 0.6-1.4 without
//     a trend: dropped.
// Known and left: at C = 24 a third of the second AVX-512 vector is wasted, and AVX2 can be faster.
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
