// SRFormer's feed-forward with products of bfloat16 (AVX-512 BF16): the walk of cpu.cpp for maps of
// bfloat16. How that is done: ../common/pairs.h. The hidden rows and the depthwise convolution,
// whose factors are no pairs, stay float32.
//
// What was measured, in turns with float32 in one process, on the machine and the sizes of cpu.cpp,
// two threads, medians of 100: 6.6 ms, float32 9.7 ms (1.48 times as long). Predicted were 7.3 ms
// beside 10.5 ms.
#include "../common/pairs.h"
#include "conv_ffn.h"
#include "convolve.h"

namespace c2d::C2D_ISA {
namespace {

struct ShortGelu {
    Floats operator()(Floats x) const { return short_gelu(x); }
};

// Scratch memory of a call, cut up. Rows of `inner` tokens are the tile's; those of the ring have
// two pixels more at both ends, and a vector more to read in.
struct Scratch {
    int64_t inner, outer, ring_row;
    float *x, *ring, *wide, *mixed;
    Pair* pairs;
    int64_t elements = 0;

    Scratch(const ConvFfnSizes<float>& sizes, int64_t columns, float* memory)
        : inner(rounded_up(columns, kLanes)),
          outer(rounded_up(columns + 2 * kReach, kLanes)),
          ring_row(outer + kLanes) {
        const int64_t C = sizes.channels, hidden = sizes.hidden;
        float** const parts[] = {&x, &ring, &wide, &mixed};
        const int64_t counts[] = {C * outer, kKernel * hidden * ring_row, hidden * inner,
                                  C * inner};
        for (int i = 0; i < 4; ++i) {
            *parts[i] = memory == nullptr ? nullptr : memory + elements;
            elements += counts[i];
        }
        pairs = memory == nullptr ? nullptr : (Pair*)(memory + elements);
        elements += weight_pairs(hidden > C ? hidden : C) * outer;
    }
};

// Row y of the hidden features, zero where there is no picture.
inline void hidden_row(const ConvFfnSizes<float>& sizes, const ConvFfnWeights<float, Pair>& weights,
                       const RowTile<Bfloat16>& tile, const Scratch& s, int64_t y, float* to) {
    const int64_t C = sizes.channels, hidden = sizes.hidden;
    const int64_t start = tile.left - kReach, end = tile.left + tile.columns + kReach;
    const int64_t first = start < 0 ? 0 : start, last = end < sizes.width ? end : sizes.width;
    for (int64_t i = 0; i < hidden * s.ring_row; i += kLanes) {
        store<float, kLanes>(to + i, Floats{});
    }
    if (y < 0 || y >= sizes.height) {
        return;
    }
    const int64_t count = last - first, length = rounded_up(count, kLanes);
    load_map_row(tile, C, y, first, count, length, s.pairs, s.x);
    if (sizes.norm_first) {
        normalise_pairs(C, length, sizes.eps, s.x, s.pairs);
    } else {
        pair_with_ones(C, length, s.x, s.pairs, unchanged);
    }
    // Placed and cleared as in cpu.cpp.
    float* const out = to + (first - start);
    product<float, kLanes, Pair>({weight_pairs(C), weights.first, weight_pairs(C), 1, s.pairs,
                                  length, nullptr, out, s.ring_row},
                                 hidden, length);
    activate_row<float, kLanes>(hidden, count, length, s.ring_row, out, ShortGelu());
}

void run(const ConvFfnSizes<float>& sizes, const ConvFfnWeights<float, Pair>& weights,
         const RowTile<Bfloat16>& tile, float* scratch) {
    const Scratch s(sizes, tile.columns, scratch);
    const int64_t C = sizes.channels, hidden = sizes.hidden, length = s.inner;
    const int64_t end = tile.top + tile.rows + kReach;
    const float* rows[kKernel] = {};
    int64_t used = 0;
    for (int64_t y = tile.top - kReach; y < end; ++y, ++used) {
        float* const row = s.ring + used % kKernel * hidden * s.ring_row;
        hidden_row(sizes, weights, tile, s, y, row);
        for (int64_t i = 1; i < kKernel; ++i) {
            rows[i - 1] = rows[i];
        }
        rows[kKernel - 1] = row;
        const int64_t target = y - kReach;
        if (target < tile.top) {
            continue;
        }
        load_map_row(tile, C, target, tile.left, tile.columns, length, s.pairs, s.x);
        convolve<float, kLanes>(hidden, length, s.ring_row, rows, weights.conv, s.wide,
                                ShortGelu());
        pair_with_ones(hidden, length, s.wide, s.pairs, unchanged);
        multiply_pairs(C, weight_pairs(hidden), length, weights.second, s.pairs, sizes.norm_first,
                       sizes.norm_first ? s.x : s.mixed);
        if (!sizes.norm_first) {
            add_normalised<float, kLanes>(C, length, sizes.eps, s.mixed, weights.norm,
                                          weights.norm + C, s.x);
        }
        store_map_row(tile, C, target, s.x, length, s.pairs);
    }
}

int64_t scratch(const ConvFfnSizes<float>& sizes, int64_t columns) {
    return Scratch(sizes, columns, nullptr).elements;
}

}  // namespace

extern const ConvFfnKernels<float, Pair, Bfloat16> conv_ffn_bfloat16 = {kLanes, scratch, run};

}  // namespace c2d::C2D_ISA
