// Matrix products out of one register tile, for operands that lie in cache: what windows of tokens
// and small layers need. Like simd.h, compiled once per instruction set, with internal linkage.
//
// A step of the tile loads one or two vectors of b and multiplies them by a scalar of each of its
// rows of a. The scalars may lie at any stride, so that a needs no packing and may be transposed.
#pragma once

#include "cut.h"
#include "simd.h"

namespace c2d::C2D_ISA {
namespace {

// Rows of a register tile of one or two vectors: it and its operands fit the registers.
template <int vectors>
constexpr int kRows = kVectorBytes == 64 || vectors == 1 ? 12 : 6;

// A step of a sum of products of In's, lane by lane. pairs.h has one of pairs of bfloat16.
template <class In>
struct Step {
    template <class V>
    static inline __attribute__((always_inline)) V add(V sum, In a, V b) {
        return sum + a * b;
    }
};

// out[r][c] = start[r][c] + sum_k a[r * a_row + k * a_step] * b[k][c], with zero for no start.
template <class T, class In = T>
struct Product {
    int64_t steps;
    const In* a;
    int64_t a_row, a_step;
    const In* b;
    int64_t b_row;
    const T* start;
    T* out;
    int64_t out_row;  // of start too
};

template <class T, int lanes, int rows, int vectors, class In>
inline __attribute__((always_inline)) void tile(const Product<T, In>& p, int64_t row,
                                                int64_t column) {
    Vector<T, lanes> sum[rows][vectors] = {};
    const In* a = p.a + row * p.a_row;
    const In* b = p.b + column;
    for (int64_t k = 0; k < p.steps; ++k) {
        Vector<In, lanes> factor[vectors];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
            factor[v] = load<In, lanes>(b + v * lanes);
        }
#pragma GCC unroll 12
        for (int r = 0; r < rows; ++r) {
            const In scalar = a[r * p.a_row];
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) {
                sum[r][v] = Step<In>::add(sum[r][v], scalar, factor[v]);
            }
        }
        a += p.a_step;
        b += p.b_row;
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
            const int64_t at = (row + r) * p.out_row + column + v * lanes;
            if (p.start != nullptr) {
                sum[r][v] += load<T, lanes>(p.start + at);
            }
            store<T, lanes>(p.out + at, sum[r][v]);
        }
    }
}

// Tiles of `size` rows down from `row`, as many as fit; returns the row after them.
template <class T, int lanes, int vectors, int rows, class In>
inline int64_t tiles(const Product<T, In>& p, int size, int64_t row, int64_t end, int64_t column) {
    if constexpr (rows > 1) {
        if (size < rows) {
            return tiles<T, lanes, vectors, rows - 1>(p, size, row, end, column);
        }
    }
    for (; row + rows <= end; row += rows) {
        tile<T, lanes, rows, vectors>(p, row, column);
    }
    return row;
}

template <class T, int lanes, int vectors, class In>
inline void rows_of_tiles(const Product<T, In>& p, int64_t rows, int64_t column) {
    constexpr int most = kRows<vectors>;
    const int64_t count = (rows + most - 1) / most;
    int64_t row =
        tiles<T, lanes, vectors, most>(p, int((rows + count - 1) / count), 0, rows, column);
    if (row < rows) {
        tiles<T, lanes, vectors, most>(p, int(rows - row), row, rows, column);
    }
}

// All of a product whose columns are a multiple of the vector.
template <class T, int lanes, class In = T>
void product(const Product<T, In>& p, int64_t rows, int64_t columns) {
    int64_t column = 0;
    for (; column + 2 * lanes <= columns; column += 2 * lanes) {
        rows_of_tiles<T, lanes, 2>(p, rows, column);
    }
    if (column < columns) {
        rows_of_tiles<T, lanes, 1>(p, rows, column);
    }
}

// A product of many steps, summed in parts: the rounding errors of one long sum would grow with it.
template <class T, int lanes>
void long_product(Product<T> p, int64_t rows, int64_t columns) {
    constexpr int64_t part = 32;
    for (int64_t left = p.steps; left > 0; left -= part) {
        p.steps = left < part ? left : part;
        product<T, lanes>(p, rows, columns);
        p.start = p.out;
        p.a += part * p.a_step;
        p.b += part * p.b_row;
    }
}

}  // namespace
}  // namespace c2d::C2D_ISA
