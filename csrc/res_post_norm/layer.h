// The part of a res-post-norm layer that sees one token at a time (HiT-SR, 2407.05878), in each
// precision: y = x + LN(proj([parts])), then y + LN(fc2(GELU(fc1(y)))), or y alone. Like simd.h,
// compiled once per instruction set, with internal linkage.
//
// Idea. 64 tokens go through all of it while they and the weights stay in the first two levels of
// cache; main memory sees x and the parts once and the result once. How features lie and why:
// ../common/tokens.h.
//
// Costs, multiply-adds per token: C inputs + 2 C hidden. Bytes: 2 C + inputs.
//
// What was measured: two cores of an AMD EPYC (Zen 5, AVX-512) in a shared virtual machine,
// float32, 184 x 320 x 60, 60 inputs, hidden 120, by the benchmarks: 8.9 ms, the reference 23 ms
// (2.7 times as long), torch.compile of it 20 ms. No prediction was written first.
// Without an MLP, two parts of 30, one thread of a Xeon (family 6, model 207), float32,
// 180 x 320 x 60, in turns in one process, medians of processor time: 10.6 ms, torch's cat, addmm,
// LayerNorm and add 16.2 ms (1.5 times as long); 2.4 was predicted. On maps that stay in cache it
// is 6.5 ms, of which products are a third and transposing features there and back half.
#pragma once

#include "../common/precision.h"
#include "res_post_norm.h"

namespace c2d::C2D_ISA {
namespace {

// Scratch memory of a call, cut up: rows of kTokens tokens.
template <class P>
struct Scratch {
    typename P::Number *x, *mixed, *wide;
    typename P::Operand* spare;
    int64_t elements;

    Scratch(const PostNormSizes<typename P::Number>& sizes, typename P::Number* memory) {
        const int64_t C = sizes.channels;
        const int64_t widest = sizes.inputs > sizes.hidden ? sizes.inputs : sizes.hidden;
        Cut<typename P::Number> cut(memory);
        cut(x, (C + 1) * kTokens);
        cut(mixed, C * kTokens);
        cut(wide, (widest + 1) * kTokens);
        cut(spare, P::spare(widest > C ? widest : C) * kTokens);
        elements = cut.elements();
    }
};

// x += LN(linear(input)) with the norm's affine part.
template <class P, class T = typename P::Number>
inline void add_branch(const PostNormSizes<T>& sizes, int64_t inputs, int64_t length,
                       const typename P::Weight* weight, const typename P::Operand* input,
                       const T* norm, const Scratch<P>& s) {
    const int64_t C = sizes.channels;
    P::linear(C, inputs, length, weight, input, false, s.mixed);
    add_normalised<T, P::lanes>(C, length, sizes.eps, s.mixed, norm, norm + C, s.x);
}

template <class P, class T = typename P::Number>
void run(const PostNormSizes<T>& sizes, const PostNormWeights<T, typename P::Weight>& weights,
         const PostNormTokens<typename P::Map>& tokens, T* scratch) {
    const Scratch<P> s(sizes, scratch);
    const int64_t C = sizes.channels, count = tokens.count;
    // Of a few tokens at the end of a map no more vectors than they fill.
    const int64_t length = rounded_up(count, P::lanes);
    T* input = s.wide;
    for (int64_t p = 0; p < sizes.parts; ++p) {
        P::load_rows(count, sizes.part_channels[p], tokens.parts[p], tokens.part_token[p], length,
                     s.spare, input);
        input += sizes.part_channels[p] * length;
    }
    P::load_rows(count, C, tokens.x, tokens.x_token, length, s.spare, s.x);
    add_branch<P>(sizes, sizes.inputs, length, weights.proj,
                  P::operand(sizes.inputs, length, s.wide, s.spare), weights.norm1, s);
    if (weights.norm2 != nullptr) {
        P::linear(sizes.hidden, C, length, weights.first, P::operand(C, length, s.x, s.spare),
                  false, s.wide);
        add_branch<P>(sizes, sizes.hidden, length, weights.second,
                      P::activated(sizes.hidden, length, s.wide, s.spare), weights.norm2, s);
    }
    P::store_rows(count, C, s.x, length, s.spare, tokens.out_token, tokens.out);
}

template <class P>
int64_t scratch(const PostNormSizes<typename P::Number>& sizes) {
    return Scratch<P>(sizes, nullptr).elements;
}

}  // namespace
}  // namespace c2d::C2D_ISA
