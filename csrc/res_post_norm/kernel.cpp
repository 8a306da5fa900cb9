// The part of a res-post-norm layer that sees one token at a time (HiT-SR, 2407.05878), one
// instruction set at a time: y = x + LN(proj([parts])), then y + LN(fc2(GELU(fc1(y)))), or y alone.
//
// Idea. 64 tokens go through all of it while they and the weights stay in the first two levels of
// cache; main memory sees x and the parts once and the result once. How features lie and why:
// ../common/tokens.h.
//
// Costs, multiply-adds a token: C inputs + 2 C hidden. Bytes: 2 C + inputs.
//
// What was measured: two cores of an AMD EPYC (Zen 5, AVX-512) in a shared virtual machine,
// float32, 184 x 320 x 60, 60 inputs, hidden 120, by the benchmarks: 8.9 ms, the reference 23 ms
// (2.7 times as long), torch.compile of it 20 ms. No prediction was written first.
// Without an MLP, two parts of 30, one thread of a Xeon (family 6, model 207), float32,
// 180 x 320 x 60, in turns in one process, medians of processor time: 10.6 ms, torch's cat, addmm,
// LayerNorm and add 16.2 ms (1.5 times as long); 2.4 was predicted. On maps that stay in cache it
// is 6.5 ms, of which products are a third and turning features round and back half.
#include "../common/tokens.h"
#include "res_post_norm.h"

namespace c2d::C2D_ISA {
namespace {

// Scratch memory of a call, cut up: rows of kTokens tokens.
template <class T>
struct Scratch {
    int64_t elements;
    T *x, *mixed, *wide;

    Scratch(const PostNormSizes<T>& sizes, T* memory) {
        const int64_t C = sizes.channels;
        const int64_t widest = sizes.inputs > sizes.hidden ? sizes.inputs : sizes.hidden;
        x = memory;
        mixed = x + (C + 1) * kTokens;
        wide = mixed + C * kTokens;
        elements = (2 * C + 1 + widest + 1) * kTokens;
    }
};

// y, in the place of x, += LN(fc2(GELU(fc1(y)))).
template <class T, int lanes>
void add_mlp(const PostNormSizes<T>& sizes, const PostNormWeights<T>& weights, int64_t length,
             const Scratch<T>& s) {
    const int64_t C = sizes.channels;
    ones<T, lanes>(length, s.x + C * length);
    multiply<T, lanes>(sizes.hidden, C + 1, length, weights.first, s.x, false, s.wide);
    activate<T, lanes>(sizes.hidden, length, s.wide);
    multiply<T, lanes>(C, sizes.hidden + 1, length, weights.second, s.wide, false, s.mixed);
    add_normalised<T, lanes>(C, length, sizes.eps, s.mixed, weights.norm2, weights.norm2 + C, s.x);
}

template <class T, int lanes>
void run(const PostNormSizes<T>& sizes, const PostNormWeights<T>& weights,
         const PostNormTokens<T>& tokens, T* scratch) {
    const Scratch<T> s(sizes, scratch);
    const int64_t C = sizes.channels, count = tokens.count;
    // Of a few tokens at the end of a map no more vectors than they fill.
    const int64_t length = rounded_up(count, lanes);
    T* input = s.wide;
    for (int64_t p = 0; p < sizes.parts; ++p) {
        turn_in<T, lanes>(count, sizes.part_channels[p], tokens.parts[p], tokens.part_token[p],
                          length, input);
        input += sizes.part_channels[p] * length;
    }
    ones<T, lanes>(length, input);
    turn_in<T, lanes>(count, C, tokens.x, tokens.x_token, length, s.x);
    multiply<T, lanes>(C, sizes.inputs + 1, length, weights.proj, s.wide, false, s.mixed);
    add_normalised<T, lanes>(C, length, sizes.eps, s.mixed, weights.norm1, weights.norm1 + C, s.x);
    if (weights.norm2 != nullptr) {
        add_mlp<T, lanes>(sizes, weights, length, s);
    }
    turn_out<T, lanes>(count, C, s.x, length, tokens.out_token, tokens.out);
}

template <class T>
int64_t scratch(const PostNormSizes<T>& sizes) {
    return Scratch<T>(sizes, nullptr).elements;
}

}  // namespace

extern const PostNormKernels<float> post_norm_float32 = {scratch<float>,
                                                         run<float, kVectorBytes / sizeof(float)>};
extern const PostNormKernels<double> post_norm_float64 = {
    scratch<double>, run<double, kVectorBytes / sizeof(double)>};

}  // namespace c2d::C2D_ISA
