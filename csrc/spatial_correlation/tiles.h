// What the kernels of spatial correlation are made of: products and dot products in register tiles,
// and tokens transposed, so that they lie along the lanes of vectors.
//
// Included only by files that are compiled once per instruction set; see simd.h.
#pragma once

#include "../common/simd.h"
#include "spatial_correlation.h"

namespace c2d::C2D_ISA {
namespace {

template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

// A register tile of rows x vectors sums and its operands fit the registers.
constexpr int kRows = 6;
constexpr int kVectors = kVectorBytes == 64 ? 4 : 2;

inline int64_t rounded_up(int64_t count, int64_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// sum over i < outer, j < inner of
//   a[row * a_row + i * a_outer + j * a_inner] * b[i * b_outer + j * b_inner + column]
template <class T>
struct Sum {
    int64_t outer, inner;
    const T* a;
    int64_t a_row, a_outer, a_inner;
    const T* b;
    int64_t b_outer, b_inner;
};

template <class T, int lanes, int rows, int vectors>
inline __attribute__((always_inline)) void add(Vector<T, lanes> (&sum)[rows][vectors],
                                               const Sum<T>& s, int64_t row, int64_t column) {
    for (int64_t i = 0; i < s.outer; ++i) {
        const T* a = s.a + row * s.a_row + i * s.a_outer;
        const T* b = s.b + column + i * s.b_outer;
        for (int64_t j = 0; j < s.inner; ++j) {
            Vector<T, lanes> factor[vectors];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) {
                factor[v] = load<T, lanes>(b + v * lanes);
            }
#pragma GCC unroll 6
            for (int r = 0; r < rows; ++r) {
                const T scalar = a[r * s.a_row];
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v) {
                    sum[r][v] += scalar * factor[v];
                }
            }
            a += s.a_inner;
            b += s.b_inner;
        }
    }
}

// out[row][column] = first + second, or added to what is there.
template <class T>
struct Product {
    Sum<T> first, second;
    T* out;
    int64_t out_row;
    bool added;

    template <int rows, int vectors>
    inline __attribute__((always_inline)) void tile(int64_t row, int64_t column) const {
        constexpr int lanes = kLanes<T>;
        Vector<T, lanes> sum[rows][vectors] = {};
        add<T, lanes, rows, vectors>(sum, first, row, column);
        add<T, lanes, rows, vectors>(sum, second, row, column);
        T* to = out + row * out_row + column;
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) {
                T* at = to + r * out_row + v * lanes;
                store<T, lanes>(at, added ? load<T, lanes>(at) + sum[r][v] : sum[r][v]);
            }
        }
    }
};

// Tiles of `size` <= rows rows down from `row`, as many as fit; returns the row after them.
template <int vectors, int rows, class Task>
inline int64_t tiles_of_size(const Task& task, int64_t size, int64_t row, int64_t end,
                             int64_t column) {
    if constexpr (rows > 1) {
        if (size < rows) {
            return tiles_of_size<vectors, rows - 1>(task, size, row, end, column);
        }
    }
    for (; row + rows <= end; row += rows) {
        task.template tile<rows, vectors>(row, column);
    }
    return row;
}

// Covers rows x columns, columns a multiple of the vector, with tiles of about equal rows.
template <int lanes, int vectors, class Task>
inline void tiles(const Task& task, int64_t rows, int64_t column, int64_t columns) {
    const int64_t pieces = (rows + kRows - 1) / kRows, size = (rows + pieces - 1) / pieces;
    for (; column + vectors * lanes <= columns; column += vectors * lanes) {
        const int64_t row = tiles_of_size<vectors, kRows>(task, size, 0, rows, column);
        if (row < rows) {
            tiles_of_size<vectors, kRows>(task, rows - row, row, rows, column);
        }
    }
    if constexpr (vectors > 1) {
        if (column < columns) {
            tiles<lanes, vectors / 2>(task, rows, column, columns);
        }
    }
}

// out[r][c] (+)= scale * sum over n < count of a[r * row + n] * b[c * row + n], n along the lanes.
template <class T>
struct Dots {
    const T *a, *b;
    int64_t row, count, size;
    T scale;
    T* out;
    bool added;

    template <int rows, int columns>
    inline __attribute__((always_inline)) void tile(int64_t r0, int64_t c0) const {
        constexpr int lanes = kLanes<T>;
        Vector<T, lanes> sum[rows][columns] = {};
        for (int64_t n = 0; n < count; n += lanes) {
            Vector<T, lanes> factor[columns];
#pragma GCC unroll 4
            for (int c = 0; c < columns; ++c) {
                factor[c] = load<T, lanes>(b + (c0 + c) * row + n);
            }
#pragma GCC unroll 2
            for (int r = 0; r < rows; ++r) {
                const Vector<T, lanes> vector = load<T, lanes>(a + (r0 + r) * row + n);
#pragma GCC unroll 4
                for (int c = 0; c < columns; ++c) {
                    sum[r][c] += vector * factor[c];
                }
            }
        }
#pragma GCC unroll 2
        for (int r = 0; r < rows; ++r) {
            const Vector<T, lanes> sums = sums_over_lanes<T, lanes, columns>(sum[r]);
            T* to = out + (r0 + r) * size + c0;
#pragma GCC unroll 4
            for (int c = 0; c < columns; ++c) {
                to[c] = (added ? to[c] : T(0)) + scale * sums[c];
            }
        }
    }

    void all() const {
        constexpr int columns = kLanes<T> < 4 ? kLanes<T> : 4;
        int64_t c = 0;
        for (; c + columns <= size; c += columns) {
            column_of_tiles<columns>(c);
        }
        for (; c < size; ++c) {
            column_of_tiles<1>(c);
        }
    }

    template <int columns>
    inline void column_of_tiles(int64_t c) const {
        int64_t r = 0;
        for (; r + 2 <= size; r += 2) {
            tile<2, columns>(r, c);
        }
        if (r < size) {
            tile<1, columns>(r, c);
        }
    }
};

// to[c * row + n] = token n's channel c; zeros for tokens from count to the end of a vector. Where
// channels are no multiple of the vector, the last vector of a token overlaps the one before.
template <class T, int lanes = kLanes<T>>
void gather_tokens(Tokens<const T> from, int64_t count, int64_t channels, T* to, int64_t row) {
    if constexpr (lanes > 1) {
        if (channels < lanes) {
            return gather_tokens<T, lanes / 2>(from, count, channels, to, row);
        }
    }
    const int64_t end = rounded_up(count, kLanes<T>);
    for (int64_t n = 0; n < end; n += lanes) {
        for (int64_t c = 0; c < channels; c += lanes) {
            const int64_t column = least(c, channels - lanes);
            Vector<T, lanes> block[lanes] = {};
            if (n + lanes <= count) {
#pragma GCC unroll 16
                for (int i = 0; i < lanes; ++i) {
                    block[i] = load<T, lanes>(from.data + from.at[n + i] + column);
                }
            } else {
                for (int i = 0; i < lanes && n + i < count; ++i) {
                    block[i] = load<T, lanes>(from.data + from.at[n + i] + column);
                }
            }
            transpose<T, lanes>(block);
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) {
                store<T, lanes>(to + (column + i) * row + n, block[i]);
            }
        }
    }
}

// Vice versa: token n's channel c = from[c * row + n].
template <class T, int lanes = kLanes<T>>
void scatter_tokens(const T* from, int64_t row, int64_t count, int64_t channels, Tokens<T> to) {
    if constexpr (lanes > 1) {
        if (channels < lanes) {
            return scatter_tokens<T, lanes / 2>(from, row, count, channels, to);
        }
    }
    for (int64_t n = 0; n < count; n += lanes) {
        for (int64_t c = 0; c < channels; c += lanes) {
            const int64_t column = least(c, channels - lanes);
            Vector<T, lanes> block[lanes];
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) {
                block[i] = load<T, lanes>(from + (column + i) * row + n);
            }
            transpose<T, lanes>(block);
            if (n + lanes <= count) {
#pragma GCC unroll 16
                for (int i = 0; i < lanes; ++i) {
                    store<T, lanes>(to.data + to.at[n + i] + column, block[i]);
                }
            } else {
                for (int i = 0; i < lanes && n + i < count; ++i) {
                    store<T, lanes>(to.data + to.at[n + i] + column, block[i]);
                }
            }
        }
    }
}

}  // namespace
}  // namespace c2d::C2D_ISA
