// SRFormer's feed-forward with products of bfloat16 (AVX-512 BF16): the walk of kernel.cpp for maps
// of bfloat16. How that is done: ../common/pairs.h. The hidden rows and the depthwise convolution,
// whose factors are no pairs, stay float32.
//
// What was measured, in turns with float32 in one process: on two cores of an AMD EPYC (Zen 5), 184
// x 320 x 60, hidden 120, two threads, medians of 100: 6.6 ms, float32 9.7 ms (1.48 times as long).
// Predicted were 7.3 ms beside 10.5 ms. That was before ring.h, with which it takes 33.5 ms instead
// of 40.8 on the machine and the sizes that kernel.cpp names now (1.22 times as fast).
#include "../common/pairs.h"
#include "conv_ffn.h"
#include "ring.h"

namespace c2d::C2D_ISA {
namespace {

struct ShortGelu {
    Floats operator()(Floats x) const { return short_gelu(x); }
};

// Scratch memory of a call, cut up.
struct Scratch {
    RingSizes<float, kLanes> rows;
    float *x, *ring, *mixed;
    Pair* pairs;
    int64_t elements;

    Scratch(const ConvFfnSizes<float>& sizes, int64_t columns, float* memory)
        : rows(sizes.hidden, columns) {
        const int64_t C = sizes.channels, hidden = sizes.hidden;
        Cut<float> cut(memory);
        cut(x, C * rows.outer);
        cut(ring, rows.elements());
        cut(mixed, C * rows.inner);
        cut(pairs, weight_pairs(hidden > C ? hidden : C) * rows.row);
        elements = cut.elements();
    }
};

struct Walk {
    const ConvFfnSizes<float>& sizes;
    const ConvFfnWeights<float, Pair>& weights;
    const RowTile<Bfloat16>& tile;
    const Scratch s;
    const int64_t C = sizes.channels, hidden = sizes.hidden;
    const Ring<float, kLanes, Bfloat16> ring{sizes, tile, s.rows, s.ring};

    // Row y of the hidden features.
    void hidden_row(int64_t y, float* to) const {
        const int64_t length = rounded_up(ring.count, kLanes), pairs = weight_pairs(C);
        load_map_row(tile, C, y, ring.first, ring.count, length, s.pairs, s.x);
        if (sizes.norm_first) {
            normalise_pairs(C, length, sizes.eps, s.x, s.pairs);
        } else {
            pair_with_ones(C, length, s.x, s.pairs, unchanged);
        }
        product<float, kLanes, Pair>(
            {pairs, weights.first, pairs, 1, s.pairs, length, nullptr, to, s.rows.row}, hidden,
            length);
        activate_row<float, kLanes>(hidden, length, s.rows.row, to, ShortGelu());
    }

    // Row y of the result.
    void out_row(int64_t y) const {
        const int64_t length = s.rows.inner, row = s.rows.row, pairs = weight_pairs(hidden);
        float* const out = sizes.norm_first ? s.x : s.mixed;
        load_map_row(tile, C, y, tile.left, tile.columns, length, s.pairs, s.x);
        pair_with_ones(hidden, row, ring.wide(y), s.pairs, unchanged);
        product<float, kLanes, Pair>({pairs, weights.second, pairs, 1, s.pairs, row,
                                      sizes.norm_first ? out : nullptr, out, length},
                                     C, length);
        if (!sizes.norm_first) {
            add_normalised<float, kLanes>(C, length, sizes.eps, s.mixed, weights.norm,
                                          weights.norm + C, s.x);
        }
        store_map_row(tile, C, y, s.x, length, s.pairs);
    }
};

void run(const ConvFfnSizes<float>& sizes, const ConvFfnWeights<float, Pair>& weights,
         const RowTile<Bfloat16>& tile, float* scratch) {
    const Walk walk{sizes, weights, tile, {sizes, tile.columns, scratch}};
    walk.ring.walk(
        weights.conv, ShortGelu(), [&](int64_t y, float* to) { walk.hidden_row(y, to); },
        [&](int64_t y) { walk.out_row(y); });
}

int64_t scratch(const ConvFfnSizes<float>& sizes, int64_t columns) {
    return Scratch(sizes, columns, nullptr).elements;
}

}  // namespace

extern const ConvFfnKernels<float, Pair, Bfloat16> conv_ffn_bfloat16 = {kLanes, scratch, run};

}  // namespace c2d::C2D_ISA
