// A layer of a transformer in windows on the CPU (SwinIR, 2108.10257), one instruction set at a
// time: y = x + proj(attention(qkv(LN(x)))), then y + fc2(GELU(fc1(LN(y)))), one window after the
// other. How, up to y: ../attention_branch/attention.h. The MLP follows while y is in cache.
//
// Costs, multiply-adds per token: 4 C^2 + 2 C hidden + 2 keys C, and an exponential for each pair
// of token and key of a head. Bytes: 2 C.
//
// What was measured: two cores of an AMD EPYC (Zen 5, AVX-512) in a shared virtual machine,
// float32, 184 x 320 x 60, hidden 120, window 8, 6 heads, shift 4, by the benchmarks: 15.4 ms, the
// reference 192 ms (11.9 times as long), torch.compile of the reference 143 ms. That is 280
// GFLOP/s; composed of window_attention and torch's products the layer took 59 ms. Predicted was 28
// ms, from the 150 GFLOP/s that torch's large products reach here: products out of cache turned out
// faster.
#include "../attention_branch/attention.h"
#include "window_layer.h"

namespace c2d::C2D_ISA {
namespace {

template <class T, int lanes>
int64_t scratch(const BranchSizes<T>& sizes, int64_t hidden) {
    return Scratch<T, lanes>(sizes, hidden, nullptr).elements;
}

template <class T, int lanes>
void run(const BranchSizes<T>& sizes, const BranchWeights<T>& weights, const MlpWeights<T>& mlp,
         const BranchWindow<T>& window, T* memory) {
    const Scratch<T, lanes> s(sizes, mlp.hidden, memory);
    const int64_t C = sizes.channels, length = s.length;
    run_window<T, lanes>(sizes, weights, window, s, [&](T* x) {
        normalise<T, lanes>(C, length, sizes.eps, x, s.norm);
        multiply<T, lanes>(mlp.hidden, C + 1, length, mlp.first, s.norm, false, s.hidden);
        activate<T, lanes>(mlp.hidden, length, s.hidden);
        multiply<T, lanes>(C, mlp.hidden + 1, length, mlp.second, s.hidden, true, x);
    });
}

constexpr int kFloats = kVectorBytes / sizeof(float), kDoubles = kVectorBytes / sizeof(double);

}  // namespace

extern const LayerKernels<float> layer_float32 = {kFloats, scratch<float, kFloats>,
                                                  run<float, kFloats>};
extern const LayerKernels<double> layer_float64 = {kDoubles, scratch<double, kDoubles>,
                                                   run<double, kDoubles>};

}  // namespace c2d::C2D_ISA
