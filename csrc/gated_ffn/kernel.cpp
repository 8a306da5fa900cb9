// The gated feed-forward of DAT (2308.03364) and MambaIRv2 (2411.15269) on the CPU, one instruction
// set at a time, with the norm and the skip around it: [a, b] = GELU(fc1(LN(x))),
// y = x + fc2(a * depthwise(LN(b))), the convolution 3x3 or 5x5.
//
// Idea. A tile is walked row by row. Of the hidden features, the widest map there is, only the rows
// that the convolution sees exist, in rings that stay in the second level of cache: 3 or 5 of the
// normed gate and 2 or 3 of what it gates. How features lie and why: ../common/tokens.h. In that
// layout a tap of the depthwise convolution is a scalar times the row's tokens, read shifted by
// that many tokens.
//
// Costs, multiply-adds per pixel: 3 C gated + side^2 gated, and the hidden features again for one
// or two pixels around a tile. Bytes: 2 C.
#include "gated_ffn.h"

#include "../common/tokens.h"

namespace c2d::C2D_ISA {
namespace {

// Scratch memory of a call, cut up. Rows have `inner` tokens, the tile's, or `outer`, with what
// the convolution sees at both ends; those of the rings a vector more, to be read.
template <class T, int lanes, int64_t side>
struct Scratch {
    int64_t inner, outer, row;
    T *x, *norm;      // [C + 1][outer]
    T* hidden;        // [2 gated][outer]
    T *gate, *gated;  // rings [side][gated][row], [side / 2 + 1][gated][row]
    T* mixed;         // [gated + 1][inner]
    int64_t elements;

    Scratch(const GatedFfnSizes<T>& sizes, int64_t columns, T* memory)
        : inner(rounded_up(columns, lanes)),
          outer(rounded_up(columns + side - 1, lanes)),
          row(outer + lanes) {
        const int64_t C = sizes.channels, h = sizes.gated;
        Cut<T> cut(memory);
        cut(x, (C + 1) * outer);
        cut(norm, (C + 1) * outer);
        cut(hidden, 2 * h * outer);
        cut(gate, side * h * row);
        cut(gated, (side / 2 + 1) * h * row);
        cut(mixed, (h + 1) * inner);
        elements = cut.elements();
    }
};

template <class T, int lanes, int64_t side>
struct Walk {
    using V = Vector<T, lanes>;
    static constexpr int64_t reach = side / 2, taps = side * side;
    const GatedFfnSizes<T>& sizes;
    const GatedFfnWeights<T>& weights;
    const RowTile<T>& tile;
    const Scratch<T, lanes, side> s;
    const int64_t C = sizes.channels, h = sizes.gated;
    // The columns of the picture that a row of hidden features shows: the first, and how many.
    const int64_t start = tile.left - reach, end = tile.left + tile.columns + reach;
    const int64_t first = start < 0 ? 0 : start;
    const int64_t count = (end < sizes.width ? end : sizes.width) - first;

    T* gate_row(int64_t y) const { return s.gate + (y - tile.top + reach) % side * h * s.row; }
    T* gated_row(int64_t y) const {
        return s.gated + (y - tile.top + reach) % (reach + 1) * h * s.row;
    }

    // Row y of the hidden features, the gate normed, and zero where there is no picture.
    void hidden_row(int64_t y) const {
        T* const gate = gate_row(y);
        if (y < 0 || y >= sizes.height) {
            return clear(h * s.row, gate);
        }
        const int64_t length = rounded_up(count, lanes);
        load_row<T, lanes>(tile, C, y, first, count, length, s.x);
        normalise<T, lanes>(C, length, sizes.eps, s.x, s.norm);
        ones<T, lanes>(length, s.norm + C * length);
        multiply<T, lanes>(2 * h, C + 1, length, weights.first, s.norm, false, s.hidden);
        for (int64_t i = 0; i < 2 * h * length; i += lanes) {
            store<T, lanes>(s.hidden + i, gelu_of(load<T, lanes>(s.hidden + i)));
        }
        T *const gated = gated_row(y), *const rest = s.hidden + h * length;
        const int64_t at = first - start;
        for (int64_t n = 0; n < length; n += lanes) {
            const Moments<T, lanes> moments(h, length, sizes.eps, rest + n);
            for (int64_t c = 0; c < h; ++c) {
                const V norm =
                    (load<T, lanes>(rest + c * length + n) - moments.mean) * moments.scale;
                store<T, lanes>(gate + c * s.row + at + n,
                                norm * weights.norm[c] + weights.norm[h + c]);
                store<T, lanes>(gated + c * s.row + at + n,
                                load<T, lanes>(s.hidden + c * length + n));
            }
        }
        for (int64_t c = 0; c < h; ++c) {
            clear(at, gate + c * s.row);
            clear(s.row - at - count, gate + c * s.row + at + count);
        }
    }

    // Row y of the result.
    void out_row(int64_t y) const {
        const int64_t length = s.inner;
        const T* const gated = gated_row(y) + reach;
        const T* rows[side];
        for (int64_t dy = 0; dy < side; ++dy) {
            rows[dy] = gate_row(y - reach + dy);
        }
        for (int64_t c = 0; c < h; ++c) {
            const T* const weight = weights.conv + c * (taps + 1);
            for (int64_t n = 0; n < length; n += lanes) {
                V sum = V{} + weight[taps];
#pragma GCC unroll 5
                for (int64_t dy = 0; dy < side; ++dy) {
#pragma GCC unroll 5
                    for (int64_t dx = 0; dx < side; ++dx) {
                        sum +=
                            weight[dy * side + dx] * load<T, lanes>(rows[dy] + c * s.row + n + dx);
                    }
                }
                store<T, lanes>(s.mixed + c * length + n,
                                sum * load<T, lanes>(gated + c * s.row + n));
            }
        }
        ones<T, lanes>(length, s.mixed + h * length);
        load_row<T, lanes>(tile, C, y, tile.left, tile.columns, length, s.x);
        multiply<T, lanes>(C, h + 1, length, weights.second, s.mixed, true, s.x);
        store_row<T, lanes>(tile, C, y, s.x, length);
    }

    static void clear(int64_t numbers, T* from) {
        for (int64_t i = 0; i < numbers; ++i) {
            from[i] = 0;
        }
    }
};

template <class T, int lanes, int64_t side>
void run_with(const GatedFfnSizes<T>& sizes, const GatedFfnWeights<T>& weights,
              const RowTile<T>& tile, T* scratch) {
    const Walk<T, lanes, side> walk{sizes, weights, tile, {sizes, tile.columns, scratch}};
    constexpr int64_t reach = side / 2;
    // Numbers that are never written are read for tokens behind the tile's: they must be finite.
    walk.clear((reach + 1) * sizes.gated * walk.s.row, walk.s.gated);
    const int64_t bottom = tile.top + tile.rows;
    for (int64_t y = tile.top - reach; y < bottom + reach; ++y) {
        walk.hidden_row(y);
        if (y >= tile.top + reach) {
            walk.out_row(y - reach);
        }
    }
}

template <class T, int lanes>
void run(const GatedFfnSizes<T>& sizes, const GatedFfnWeights<T>& weights, const RowTile<T>& tile,
         T* scratch) {
    (sizes.side == 3 ? run_with<T, lanes, 3> : run_with<T, lanes, 5>)(sizes, weights, tile,
                                                                      scratch);
}

template <class T, int lanes>
int64_t scratch(const GatedFfnSizes<T>& sizes, int64_t columns) {
    return sizes.side == 3 ? Scratch<T, lanes, 3>(sizes, columns, nullptr).elements
                           : Scratch<T, lanes, 5>(sizes, columns, nullptr).elements;
}

constexpr int kFloats = kVectorBytes / sizeof(float), kDoubles = kVectorBytes / sizeof(double);

}  // namespace

extern const GatedFfnKernels<float> gated_ffn_float32 = {kFloats, scratch<float, kFloats>,
                                                         run<float, kFloats>};
extern const GatedFfnKernels<double> gated_ffn_float64 = {kDoubles, scratch<double, kDoubles>,
                                                          run<double, kDoubles>};

}  // namespace c2d::C2D_ISA
