// The attention branch of a transformer in windows on the CPU (SwinIR, 2108.10257), also with
// SRFormer's stacked keys: y = x + proj(attention(qkv(LN(x)))), one window after the other, and
// what follows in a layer while y is in cache. Like simd.h, compiled once per instruction set, with
// internal linkage.
//
// Idea. Nothing but x and the result touches main memory: all that a window of 64 tokens makes on
// its way (qkv, scores, hidden features) stays in the first two levels of cache, and so do the
// weights. Features lie transposed, [channel][token]: every product then has weights for scalars
// and tokens along the lanes, channels are never filled up to a vector, norms and softmax need no
// sum across lanes, and q, k and v are used where the product left them. Tokens are transposed on
// their way in and out, a square of vectors at a time. A bias is the weight of one more channel
// that is always 1; a residual is what the product starts from.
//
// Four tokens that share a key lie in four panels, so that their channels of k and v are stacked by
// where they are written, and one panel of the relative bias serves all four.
//
// Costs, multiply-adds per token: 4 C^2 + 2 keys C, and an exponential for each pair of token and
// key of a head; 2.5 C^2 for the first term with stacked keys. Bytes: 2 C.
//
// What was measured: one thread of a Xeon (family 6, model 207), 192 x 320 x 60, SRFormer's branch
// (window 16, 6 heads, shift 8): 30.4 ms, composed of operators 51.4 ms (1.7 times as long);
// predicted were 25 ms. Then the largest score in four chains, 4% (7% predicted), and powers that a
// mask leaves out instead of two choices, 3% (3% predicted). With an MLP: ../window_layer.
#pragma once

#include "../common/tokens.h"
#include "../window_attention/softmax.h"
#include "attention_branch.h"

namespace c2d::C2D_ISA {
namespace {

// Scratch memory of a call, cut up: rows of `length` tokens, those of a panel. `hidden` rows are
// an MLP's, which come when k, v and q are used up.
template <class T, int lanes>
struct Scratch {
    int64_t length, elements;
    T *x, *norm, *k, *v, *q, *hidden, *scores;  // x and q of all panels, one behind the other

    Scratch(const BranchSizes<T>& sizes, int64_t hidden_rows, T* memory)
        : length(sizes.block * sizes.blocks) {
        const int64_t map = sizes.channels * length, mlp = (hidden_rows + 1) * length;
        const int64_t kvq = (2 + sizes.cells) * map;
        Cut<T> cut(memory);
        cut(x, sizes.cells * map);
        cut(norm, map + length);
        cut(k, map);
        cut(v, map);
        cut(q, (kvq > mlp ? kvq : mlp) - 2 * map);
        cut(scores, sizes.keys * sizes.block);
        hidden = k;
        elements = cut.elements();
    }
};

// Reads a panel and writes its x, its q and its share of the channels of k and v.
template <class T, int lanes>
inline void project(const BranchSizes<T>& sizes, const BranchWeights<T>& weights,
                    const BranchWindow<T>& window, const Scratch<T, lanes>& s, int64_t panel) {
    const int64_t C = sizes.channels, length = s.length, share = C / sizes.cells;
    T* const x = s.x + panel * C * length;
    turn_in<T, lanes>(length, C, window.x, window.x_token + panel * length, length, x);
    normalise<T, lanes>(C, length, sizes.eps, x, s.norm);
    ones<T, lanes>(length, s.norm + C * length);
    const T* const key_weights = weights.qkv + C * (C + 1);
    const int64_t at = panel * share * length;
    multiply<T, lanes>(C, C + 1, length, weights.qkv, s.norm, false, s.q + panel * C * length);
    multiply<T, lanes>(share, C + 1, length, key_weights, s.norm, false, s.k + at);
    multiply<T, lanes>(share, C + 1, length, key_weights + share * (C + 1), s.norm, false,
                       s.v + at);
}

// Attention of a panel, all heads; its result takes the place of the norm in s.norm, above the row
// of ones.
template <class T, int lanes>
inline void attend(const BranchSizes<T>& sizes, const BranchWeights<T>& weights,
                   const BranchWindow<T>& window, const Scratch<T, lanes>& s, int64_t panel) {
    const int64_t C = sizes.channels, step = sizes.block, keys = sizes.keys;
    const int64_t head_dim = C / sizes.heads, length = s.length;
    const T* const region = window.region == nullptr ? nullptr : window.region + panel * length;
    const T* bias = weights.bias;
    Inverse<T, lanes> inverse;
    for (int64_t head = 0; head < sizes.heads; ++head) {
        const int64_t at = head * head_dim * length;
        const T* const q = s.q + panel * C * length + at;
        const T* const k = s.k + at;
        const T* const v = s.v + at;
        T* const out = s.norm + at;
        for (int64_t first = 0; first < length; first += step, bias += keys * step) {
            product<T, lanes>({head_dim, k, 1, length, q + first, length, bias, s.scores, step},
                              keys, step);
            softmax<T, lanes>(s.scores, keys, step, region == nullptr ? nullptr : region + first,
                              window.region, inverse);
            long_product<T, lanes>(
                {keys, v, length, 1, s.scores, step, nullptr, out + first, length}, head_dim, step);
            for (int64_t column = 0; column < step; column += lanes) {
                const Vector<T, lanes> factor = load<T, lanes>(inverse.of + column);
                for (int64_t d = 0; d < head_dim; ++d) {
                    T* const to = out + d * length + first + column;
                    store<T, lanes>(to, factor * load<T, lanes>(to));
                }
            }
        }
    }
}

// A window, each panel of which goes through behind(x), x its features, on its way out.
template <class T, int lanes, class Behind>
inline void run_window(const BranchSizes<T>& sizes, const BranchWeights<T>& weights,
                       const BranchWindow<T>& window, const Scratch<T, lanes>& s, Behind behind) {
    const int64_t C = sizes.channels, length = s.length;
    for (int64_t panel = 0; panel < sizes.cells; ++panel) {
        project<T, lanes>(sizes, weights, window, s, panel);
    }
    for (int64_t panel = 0; panel < sizes.cells; ++panel) {
        T* const x = s.x + panel * C * length;
        attend<T, lanes>(sizes, weights, window, s, panel);
        multiply<T, lanes>(C, C + 1, length, weights.proj, s.norm, true, x);
        behind(x);
        turn_out<T, lanes>(length, C, x, length, window.out_token + panel * length, window.out);
    }
}

}  // namespace
}  // namespace c2d::C2D_ISA
