// Layers on some tens of tokens in cache, whose features lie transposed, [channel][token]: every
// product has weights for scalars and tokens along the lanes, channels are never filled up to a
// vector, and norms need no sum across lanes. A bias is the weight of one more channel, a row of
// ones. Like simd.h, compiled once per instruction set, with internal linkage.
#pragma once

#include "product.h"
#include "row_tile.h"
#include "vector_math.h"

namespace c2d::C2D_ISA {
namespace {

// Squares of lanes x lanes numbers, from rows of channels to rows of tokens or back; what is left
// over at the last tokens, or if there are fewer channels than lanes, number by number. A T may be
// more than one number of the map, see pairs.h.
template <class T, int lanes, class Map>
inline void turn_in(int64_t tokens, int64_t channels, const Map* from, const int64_t* token,
                    int64_t length, T* to) {
    int64_t n = 0;
    for (; channels >= lanes && n + lanes <= tokens; n += lanes) {
        for (int64_t c = 0; c < channels; c += lanes) {
            const int64_t at = c + lanes <= channels ? c : channels - lanes;
            Vector<T, lanes> square[lanes];
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) {
                square[i] = load<T, lanes>((const T*)(from + token[n + i]) + at);
            }
            transpose<T, lanes>(square);
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) {
                store<T, lanes>(to + (at + i) * length + n, square[i]);
            }
        }
    }
    for (; n < length; ++n) {
        for (int64_t c = 0; c < channels; ++c) {
            to[c * length + n] = n < tokens ? load<T, 1>((const T*)(from + token[n]) + c)[0] : T(0);
        }
    }
}

template <class T, int lanes, class Map>
inline void turn_out(int64_t tokens, int64_t channels, const T* from, int64_t length,
                     const int64_t* token, Map* to) {
    int64_t n = 0;
    for (; channels >= lanes && n + lanes <= tokens; n += lanes) {
        for (int64_t c = 0; c < channels; c += lanes) {
            const int64_t at = c + lanes <= channels ? c : channels - lanes;
            Vector<T, lanes> square[lanes];
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) {
                square[i] = load<T, lanes>(from + (at + i) * length + n);
            }
            transpose<T, lanes>(square);
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) {
                store<T, lanes>((T*)(to + token[n + i]) + at, square[i]);
            }
        }
    }
    for (; n < tokens; ++n) {
        for (int64_t c = 0; c < channels; ++c) {
            store<T, 1>((T*)(to + token[n]) + c, Vector<T, 1>{from[c * length + n]});
        }
    }
}

// Tokens of row y of a tile's image from column `first` on, transposed.
template <class T, int lanes>
inline void load_row(const RowTile<T>& tile, int64_t channels, int64_t y, int64_t first,
                     int64_t count, int64_t length, T* to) {
    int64_t token[kMostTokens];
    for (int64_t n = 0; n < count; ++n) {
        token[n] = y * tile.x_row + (first + n) * tile.x_column;
    }
    turn_in<T, lanes>(count, channels, tile.x, token, length, to);
}

// Row y of the tile's result.
template <class T, int lanes>
inline void store_row(const RowTile<T>& tile, int64_t channels, int64_t y, const T* from,
                      int64_t length) {
    int64_t token[kMostTokens];
    for (int64_t n = 0; n < tile.columns; ++n) {
        token[n] = y * tile.out_row + (tile.left + n) * tile.out_column;
    }
    turn_out<T, lanes>(tile.columns, channels, from, length, token, tile.out);
}

template <class T, int lanes>
inline void ones(int64_t length, T* row) {
    for (int64_t n = 0; n < length; n += lanes) {
        store<T, lanes>(row + n, Vector<T, lanes>{} + T(1));
    }
}

// Sum over channels of term(x) for a vector of tokens, in four parts: one would wait for itself.
template <class T, int lanes, class Term>
inline Vector<T, lanes> channel_sum(int64_t channels, int64_t length, const T* x, Term term) {
    Vector<T, lanes> sums[4] = {};
    int64_t c = 0;
    for (; c + 4 <= channels; c += 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            sums[i] += term(load<T, lanes>(x + (c + i) * length));
        }
    }
    for (; c < channels; ++c) {
        sums[0] += term(load<T, lanes>(x + c * length));
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The mean of each token in a vector of them and one over its standard deviation.
template <class T, int lanes>
struct Moments {
    Vector<T, lanes> mean{}, scale{};

    Moments(int64_t channels, int64_t length, T eps, const T* x) {
        using V = Vector<T, lanes>;
        const T share = T(1) / T(channels);
        mean = share * channel_sum<T, lanes>(channels, length, x, [](V v) { return v; });
        const V variance = channel_sum<T, lanes>(channels, length, x,
                                                 [this](V v) { return (v - mean) * (v - mean); });
        scale = T(1) / sqrt_of(variance * share + eps);
    }
};

// norm = LN(x), without an affine part.
template <class T, int lanes>
inline void normalise(int64_t channels, int64_t length, T eps, const T* x, T* norm) {
    for (int64_t n = 0; n < length; n += lanes) {
        const Moments<T, lanes> moments(channels, length, eps, x + n);
        for (int64_t c = 0; c < channels; ++c) {
            const int64_t at = c * length + n;
            store<T, lanes>(norm + at, (load<T, lanes>(x + at) - moments.mean) * moments.scale);
        }
    }
}

// sum += LN(x) with the affine part.
template <class T, int lanes>
inline void add_normalised(int64_t channels, int64_t length, T eps, const T* x, const T* weight,
                           const T* bias, T* sum) {
    for (int64_t n = 0; n < length; n += lanes) {
        const Moments<T, lanes> moments(channels, length, eps, x + n);
        for (int64_t c = 0; c < channels; ++c) {
            const int64_t at = c * length + n;
            const Vector<T, lanes> norm = (load<T, lanes>(x + at) - moments.mean) * moments.scale;
            store<T, lanes>(sum + at, load<T, lanes>(sum + at) + (norm * weight[c] + bias[c]));
        }
    }
}

// out = weight (rows, steps) times b (steps, length), added to what is there if `add`.
template <class T, int lanes>
inline void multiply(int64_t rows, int64_t steps, int64_t length, const T* weight, const T* b,
                     bool add, T* out) {
    product<T, lanes>({steps, weight, steps, 1, b, length, add ? out : nullptr, out, length}, rows,
                      length);
}

// GELU of some rows, and the row of ones behind them.
template <class T, int lanes>
inline void activate(int64_t rows, int64_t length, T* x) {
    for (int64_t i = 0; i < rows * length; i += lanes) {
        store<T, lanes>(x + i, gelu_of(load<T, lanes>(x + i)));
    }
    ones<T, lanes>(length, x + rows * length);
}

}  // namespace
}  // namespace c2d::C2D_ISA
