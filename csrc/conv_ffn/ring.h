// The walk through a tile that the forward kernels of SRFormer's feed-forward share: the ring of
// rows of hidden features, the convolution over it, and what is fetched ahead from memory. Like
// simd.h, compiled once per instruction set, with internal linkage.
//
// Some rows of the result are made together. Those of h + GELU(depthwise(h)) take the place of the
// rows of h that are not needed any more.
#pragma once

#include "convolve.h"

namespace c2d::C2D_ISA {
namespace {

constexpr int64_t kRing = kKernel - 1 + kRowsAtOnce;  // rows

// Elements of a row, filled up to an odd number of cache lines: rows at a power of two would all
// lie in a few sets of the first level of cache, and a product that reads 121 of them would find
// none.
template <class T>
inline int64_t spread(int64_t elements) {
    constexpr int64_t line = 64 / sizeof(T);
    return ((elements + line - 1) / line | 1) * line;
}

// Tokens of a row: `inner` are the tile's, `outer` have two pixels more at both ends; in the ring
// there is a vector more to read in. A row of ones lies behind the features.
template <class T, int lanes>
struct RingSizes {
    int64_t inner, outer, row, slot;

    RingSizes(int64_t hidden, int64_t columns)
        : inner(rounded_up(columns, lanes)),
          outer(rounded_up(columns + 2 * kReach, lanes)),
          row(spread<T>(outer + lanes)),
          slot((hidden + 1) * row) {}
    int64_t elements() const { return kRing * slot; }
};

template <class T, int lanes, class Map>
struct Ring {
    const ConvFfnSizes<T>& sizes;
    const RowTile<Map>& tile;
    const RingSizes<T, lanes> s;
    T* const data;
    // The columns of the picture that a row of hidden features shows: the first, and how many.
    const int64_t start = tile.left - kReach, end = tile.left + tile.columns + kReach;
    const int64_t first = start < 0 ? 0 : start;
    const int64_t count = (end < sizes.width ? end : sizes.width) - first;

    T* place(int64_t y) const { return data + (y - tile.top + kReach) % kRing * s.slot; }

    // Row y of h + GELU(depthwise(h)), once it is made.
    const T* wide(int64_t y) const { return place(y - kReach); }

    // Numbers that are never written are read for tokens behind the tile's: they must not be
    // denormal.
    void begin() const {
        for (int64_t i = 0; i < s.elements(); i += lanes) {
            store<T, lanes>(data + i, Vector<T, lanes>{});
        }
        for (int64_t i = 0; i < kRing; ++i) {
            ones<T, lanes>(s.row, data + i * s.slot + sizes.hidden * s.row);
        }
    }

    // Row y of the hidden features by hidden_row(y, to), zero where there is no picture. Where the
    // picture begins inside the row, it is written that much further on; what is computed past the
    // picture's end is cleared again.
    template <class HiddenRow>
    void make(int64_t y, HiddenRow hidden_row) const {
        T* const to = place(y);
        if (y < 0 || y >= sizes.height) {
            return clear_tokens(sizes.hidden, 0, s.row, s.row, to);
        }
        hidden_row(y, to + (first - start));
        clear_tokens(sizes.hidden, 0, first - start, s.row, to);
        clear_tokens(sizes.hidden, first + count - start, end - start, s.row, to);
    }

    // The channels of a pixel, from memory.
    template <bool to_write>
    void fetch(const Map* from) const {
        for (int64_t c = 0; c < sizes.channels; c += 64 / int64_t(sizeof(Map))) {
            __builtin_prefetch(from + c, to_write, 2);
            asm volatile("");  // else gcc takes the loop for one without effect
        }
    }

    // Part `part` of `hidden` of what comes next from memory: the rows of x that follow those in
    // the ring, and those of the result from y on. In one go they would hold up everything else.
    template <int rows>
    void fetch_part(int64_t y, int64_t part) const {
        const int64_t last = (part + 1) * tile.columns / sizes.hidden;
        for (int64_t n = part * tile.columns / sizes.hidden; n < last; ++n) {
            for (int64_t row = y; row < y + rows; ++row) {
                const int64_t ahead = row + rows + kReach, column = tile.left + n;
                fetch<true>(tile.out + row * tile.out_row + column * tile.out_column);
                if (ahead < sizes.height) {
                    fetch<false>(tile.x + ahead * tile.x_row + column * tile.x_column);
                }
            }
        }
    }

    // h + GELU(depthwise(h)) for rows from y on, each in the place of the first row that it sees.
    template <int rows, class Gelu>
    void convolve_from(int64_t y, const T* weight, Gelu gelu) const {
        const T* from[rows + kKernel - 1];
        T* to[rows];
        for (int i = 0; i < rows + kKernel - 1; ++i) {
            from[i] = place(y - kReach + i);
        }
        for (int i = 0; i < rows; ++i) {
            to[i] = place(y - kReach + i);
        }
        convolve<T, lanes, rows>(sizes.hidden, s.inner, s.row, from, weight, to, gelu,
                                 [&](int64_t c) { fetch_part<rows>(y, c); });
    }

    // out_row(y) for all rows of the tile, after what it needs.
    template <class Gelu, class HiddenRow, class OutRow>
    void walk(const T* weight, Gelu gelu, HiddenRow hidden_row, OutRow out_row) const {
        begin();
        const int64_t bottom = tile.top + tile.rows;
        int64_t made = tile.top - kReach;
        for (int64_t y = tile.top; y < bottom;) {
            const bool several = y + kRowsAtOnce <= bottom;
            const int64_t next = y + (several ? kRowsAtOnce : 1);
            for (; made < next + kReach; ++made) {
                make(made, hidden_row);
            }
            if (several) {
                convolve_from<kRowsAtOnce>(y, weight, gelu);
            } else {
                convolve_from<1>(y, weight, gelu);
            }
            for (; y < next; ++y) {
                out_row(y);
            }
        }
    }
};

}  // namespace
}  // namespace c2d::C2D_ISA
