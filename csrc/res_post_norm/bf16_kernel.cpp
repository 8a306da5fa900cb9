// The part of a res-post-norm layer that sees one token at a time, with products of bfloat16
// (AVX-512 BF16): the walk of kernel.cpp for maps of bfloat16. How that is done: ../common/pairs.h.
//
// What was measured, in turns with float32 in one process, on the machine and the sizes of
// kernel.cpp, two threads, medians of 100: 4.9 ms, float32 7.9 ms (1.61 times as long). Predicted
// were 5.5 ms beside 8.9 ms.
#include "../common/pairs.h"
#include "res_post_norm.h"

namespace c2d::C2D_ISA {
namespace {

// Scratch memory of a call, cut up: rows of kTokens tokens.
struct Scratch {
    int64_t elements;
    float *x, *mixed, *wide;
    Pair* pairs;

    Scratch(const PostNormSizes<float>& sizes, float* memory) {
        const int64_t C = sizes.channels;
        const int64_t widest = sizes.inputs > sizes.hidden ? sizes.inputs : sizes.hidden;
        x = memory;
        mixed = x + C * kTokens;
        wide = mixed + C * kTokens;
        pairs = (Pair*)(wide + widest * kTokens);
        elements = (2 * C + widest + weight_pairs(widest > C ? widest : C)) * kTokens;
    }
};

// y, in the place of x, += LN(fc2(GELU(fc1(y)))).
void add_mlp(const PostNormSizes<float>& sizes, const PostNormWeights<float, Pair>& weights,
             int64_t length, const Scratch& s) {
    const int64_t C = sizes.channels;
    pair_with_ones(C, length, s.x, s.pairs, unchanged);
    multiply_pairs(sizes.hidden, weight_pairs(C), length, weights.first, s.pairs, false, s.wide);
    pair_with_ones(sizes.hidden, length, s.wide, s.pairs, [](int64_t) { return short_gelu; });
    multiply_pairs(C, weight_pairs(sizes.hidden), length, weights.second, s.pairs, false, s.mixed);
    add_normalised<float, kLanes>(C, length, sizes.eps, s.mixed, weights.norm2, weights.norm2 + C,
                                  s.x);
}

void run(const PostNormSizes<float>& sizes, const PostNormWeights<float, Pair>& weights,
         const PostNormTokens<Bfloat16>& tokens, float* scratch) {
    const Scratch s(sizes, scratch);
    const int64_t C = sizes.channels, count = tokens.count, inputs = sizes.inputs;
    const int64_t length = rounded_up(count, kLanes);
    turn_map_in(count, C, tokens.x, tokens.x_token, length, s.pairs, s.x);
    float* input = s.wide;
    for (int64_t p = 0; p < sizes.parts; ++p) {
        turn_map_in(count, sizes.part_channels[p], tokens.parts[p], tokens.part_token[p], length,
                    s.pairs, input);
        input += sizes.part_channels[p] * length;
    }
    pair_with_ones(inputs, length, s.wide, s.pairs, unchanged);
    multiply_pairs(C, weight_pairs(inputs), length, weights.proj, s.pairs, false, s.mixed);
    add_normalised<float, kLanes>(C, length, sizes.eps, s.mixed, weights.norm1, weights.norm1 + C,
                                  s.x);
    if (weights.norm2 != nullptr) {
        add_mlp(sizes, weights, length, s);
    }
    turn_map_out(count, C, s.x, length, s.pairs, tokens.out_token, tokens.out);
}

int64_t scratch(const PostNormSizes<float>& sizes) { return Scratch(sizes, nullptr).elements; }

}  // namespace

extern const PostNormKernels<float, Pair, Bfloat16> post_norm_bfloat16 = {scratch, run};

}  // namespace c2d::C2D_ISA
