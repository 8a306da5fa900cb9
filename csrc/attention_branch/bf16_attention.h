// The attention branch with products of bfloat16 (AVX-512 BF16): the walk of attention.h, whose
// header says how a window is handled, for maps of bfloat16.
//
// Idea. All products read bfloat16 in pairs, twice the multiply-adds per instruction; what they
// read is rounded where it is made, by the norm, the softmax and the GELU (../common/pairs.h). q
// and k are pairs of channels. v needs none made: the product with it runs along the keys, and a
// row of v in bfloat16 is pairs of keys as it lies. The residual stays float32 within a layer; the
// map is read and written as bfloat16. Powers of two take the place of exponentials, their factor
// log2(e) folded into q and the relative bias; they and the GELU are as short as bfloat16 allows.
#pragma once

#include "../common/pairs.h"
#include "../window_attention/softmax.h"
#include "attention_branch.h"

namespace c2d::C2D_ISA {
namespace {

constexpr float kMasked = float(kMask) * float(kLog2E);  // as powers of two

// Scratch memory of a call, cut up: rows of `length` tokens, those of a panel, of `half` pairs for
// v. x and q are of all panels, one behind the other. `hidden` rows are an MLP's.
struct Scratch {
    int64_t length, half, head_pairs, elements;
    float *x, *wide, *keys, *values, *scores, *inverse;
    Pair *input, *q, *k, *v, *powers, *hidden;

    Scratch(const BranchSizes<float>& sizes, int64_t hidden_rows, float* memory)
        : length(sizes.block * sizes.blocks),
          half(length / 2),
          head_pairs((sizes.channels / sizes.heads + 1) / 2) {
        const int64_t C = sizes.channels, wide_rows = C > hidden_rows ? C : hidden_rows;
        Cut<float> cut(memory);
        cut(x, sizes.cells * C * length);
        cut(wide, wide_rows * length);
        cut(keys, C * length);
        cut(values, C * length);
        cut(scores, sizes.keys * sizes.block);
        cut(inverse, sizes.block);
        cut(input, weight_pairs(C) * length);
        cut(q, sizes.cells * sizes.heads * head_pairs * length);
        cut(k, sizes.heads * head_pairs * length);
        cut(v, C * half);
        cut(powers, (sizes.keys + 1) / 2 * sizes.block);
        cut(hidden, weight_pairs(hidden_rows) * length);
        elements = cut.elements();
    }
};

// v in bfloat16 row by row; a key that is there no more, but in the last pair, is zero.
inline void round_values(const BranchSizes<float>& sizes, const float* from, const Scratch& s) {
    for (int64_t c = 0; c < sizes.channels; ++c) {
        Pair* const row = s.v + c * s.half;
        for (int64_t n = 0; n < s.length; n += kLanes) {
            const Halves halves = halves_of(load<float, kLanes>(from + c * s.length + n));
            __builtin_memcpy(row + n / 2, &halves, sizeof(halves));
        }
        if (sizes.keys % 2 != 0) {
            __builtin_memset((char*)row + 2 * sizes.keys, 0, 2);
        }
    }
}

// Each head's rows in pairs of channels.
inline void pair_heads(const BranchSizes<float>& sizes, const float* rows, const Scratch& s,
                       Pair* to) {
    const int64_t head_dim = sizes.channels / sizes.heads;
    for (int64_t head = 0; head < sizes.heads; ++head) {
        pair_all(head_dim, s.length, rows + head * head_dim * s.length, 0.0f,
                 to + head * s.head_pairs * s.length, unchanged);
    }
}

// Reads a panel and writes its x, its q and its share of the channels of keys and values.
inline void project(const BranchSizes<float>& sizes, const BranchWeights<float, Pair>& weights,
                    const BranchWindow<float, Bfloat16>& window, const Scratch& s, int64_t panel) {
    const int64_t C = sizes.channels, length = s.length, share = C / sizes.cells;
    const int64_t steps = weight_pairs(C), at = panel * share * length;
    float* const x = s.x + panel * C * length;
    turn_map_in(length, C, window.x, window.x_token + panel * length, length, s.input, x);
    normalise_pairs(C, length, sizes.eps, x, s.input);
    multiply_pairs(C, steps, length, weights.qkv, s.input, false, s.wide);
    pair_heads(sizes, s.wide, s, s.q + panel * sizes.heads * s.head_pairs * length);
    const Pair* const key_weights = weights.qkv + C * steps;
    multiply_pairs(share, steps, length, key_weights, s.input, false, s.keys + at);
    multiply_pairs(share, steps, length, key_weights + share * steps, s.input, false,
                   s.values + at);
}

// powers = 2^(score + mask - max over keys) of a vector of queries, in pairs of keys; returns one
// over their sum.
inline Floats softmax_pairs(float* scores, int64_t keys, int64_t step, const float* query_region,
                            const float* key_region, Pair* powers) {
    if (query_region != nullptr) {
        const Floats region = load<float, kLanes>(query_region), kept{}, masked = kept + kMasked;
        for (int64_t m = 0; m < keys; ++m) {
            const Floats other = kept + key_region[m];
            float* const at = scores + m * step;
            store<float, kLanes>(at, load<float, kLanes>(at) + (region != other ? masked : kept));
        }
    }
    const Floats most = largest<float, kLanes>(scores, keys, step);
    Floats sum{}, other_sum{};
    int64_t key = 0;
    for (; key + 2 <= keys; key += 2, powers += step) {
        const Floats a = short_exp2(load<float, kLanes>(scores + key * step) - most);
        const Floats b = short_exp2(load<float, kLanes>(scores + (key + 1) * step) - most);
        sum += a;
        other_sum += b;
        store<Pair, kLanes>(powers, paired(a, b));
    }
    if (key < keys) {
        const Floats a = short_exp2(load<float, kLanes>(scores + key * step) - most);
        sum += a;
        store<Pair, kLanes>(powers, paired(a, Floats{}));
    }
    return 1.0f / (sum + other_sum);
}

// Attention of a panel, all heads, from s.q, s.k and s.v to the first C rows of s.wide.
inline void attend(const BranchSizes<float>& sizes, const BranchWeights<float, Pair>& weights,
                   const BranchWindow<float, Bfloat16>& window, const Scratch& s, int64_t panel) {
    const int64_t step = sizes.block, keys = sizes.keys, length = s.length;
    const int64_t head_dim = sizes.channels / sizes.heads, key_pairs = (keys + 1) / 2;
    const float* const region = window.region == nullptr ? nullptr : window.region + panel * length;
    const float* bias = weights.bias;
    for (int64_t head = 0; head < sizes.heads; ++head) {
        const Pair* const q = s.q + (panel * sizes.heads + head) * s.head_pairs * length;
        const Pair* const k = s.k + head * s.head_pairs * length;
        const Pair* const v = s.v + head * head_dim * s.half;
        for (int64_t first = 0; first < length; first += step, bias += keys * step) {
            product<float, kLanes, Pair>(
                {s.head_pairs, k, 1, length, q + first, length, bias, s.scores, step}, keys, step);
            for (int64_t column = 0; column < step; column += kLanes) {
                const Floats inverse =
                    softmax_pairs(s.scores + column, keys, step,
                                  region == nullptr ? nullptr : region + first + column,
                                  window.region, s.powers + column);
                store<float, kLanes>(s.inverse + column, inverse);
            }
            float* const out = s.wide + head * head_dim * length + first;
            product<float, kLanes, Pair>(
                {key_pairs, v, s.half, 1, s.powers, step, nullptr, out, length}, head_dim, step);
            for (int64_t column = 0; column < step; column += kLanes) {
                const Floats factor = load<float, kLanes>(s.inverse + column);
                for (int64_t d = 0; d < head_dim; ++d) {
                    float* const at = out + d * length + column;
                    store<float, kLanes>(at, factor * load<float, kLanes>(at));
                }
            }
        }
    }
}

// A window, each panel of which goes through behind(x), x its features, on its way out.
template <class Behind>
inline void run_window(const BranchSizes<float>& sizes, const BranchWeights<float, Pair>& weights,
                       const BranchWindow<float, Bfloat16>& window, const Scratch& s,
                       Behind behind) {
    const int64_t C = sizes.channels, length = s.length;
    for (int64_t panel = 0; panel < sizes.cells; ++panel) {
        project(sizes, weights, window, s, panel);
    }
    pair_heads(sizes, s.keys, s, s.k);
    round_values(sizes, s.values, s);
    for (int64_t panel = 0; panel < sizes.cells; ++panel) {
        float* const x = s.x + panel * C * length;
        attend(sizes, weights, window, s, panel);
        pair_with_ones(C, length, s.wide, s.input, unchanged);
        multiply_pairs(C, weight_pairs(C), length, weights.proj, s.input, true, x);
        behind(x);
        turn_map_out(length, C, x, length, s.input, window.out_token + panel * length, window.out);
    }
}

}  // namespace
}  // namespace c2d::C2D_ISA
