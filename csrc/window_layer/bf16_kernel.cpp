// A layer of a transformer in windows on the CPU with products of bfloat16 (AVX-512 BF16): the
// attention branch of ../attention_branch/bf16_attention.h and the MLP of kernel.cpp behind it.
//
// What was measured, in turns with float32 in one process, on the machine and the sizes of
// kernel.cpp, two threads, medians of 100: 8.5 ms, float32 13.5 ms (1.59 times as long). Predicted
// were 9 ms, from products in half of their time and shorter powers and GELU. SwinIR-L, 320 x 180
// to 1280 x 720: 253 ms, or 254 under autocast, float32 430 ms; bfloat16 computed in float32 took
// 404 and 420 ms.
//
// One thread, 920 windows in cache, 14.9 ms: qkv 2.7, proj 1.0, fc1 1.8 and fc2 1.8, all within 8%
// of two instructions a cycle; q k^T 1.7, twice what its products need, for it has 5 pairs of
// channels between reading the bias and writing the scores; softmax 1.4, attention times v 0.9,
// GELU 0.8, norms 0.4, pairs of q, k, v 0.4, reading the map 0.9 and writing it 0.4 (in cache 0.15
// and 0.18). Asking for the next window's tokens early gained 3%, in six parts between the heads,
// and nothing at once: left out.
#include "../attention_branch/bf16_attention.h"
#include "window_layer.h"

namespace c2d::C2D_ISA {
namespace {

int64_t scratch(const BranchSizes<float>& sizes, int64_t hidden) {
    return Scratch(sizes, hidden, nullptr).elements;
}

void run(const BranchSizes<float>& sizes, const BranchWeights<float, Pair>& weights,
         const MlpWeights<float, Pair>& mlp, const BranchWindow<float, Bfloat16>& window,
         float* memory) {
    const Scratch s(sizes, mlp.hidden, memory);
    const int64_t C = sizes.channels, hidden = mlp.hidden, length = s.length;
    run_window(sizes, weights, window, s, [&](float* x) {
        normalise_pairs(C, length, sizes.eps, x, s.input);
        multiply_pairs(hidden, weight_pairs(C), length, mlp.first, s.input, false, s.wide);
        pair_with_ones(hidden, length, s.wide, s.hidden, [](int64_t) { return short_gelu; });
        multiply_pairs(C, weight_pairs(hidden), length, mlp.second, s.hidden, true, x);
    });
}

}  // namespace

extern const LayerKernels<float, Pair, Bfloat16> layer_bfloat16 = {kLanes, scratch, run};

}  // namespace c2d::C2D_ISA
