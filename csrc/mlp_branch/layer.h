// An MLP with the norm before it and the skip around it, in each precision:
// y = x + fc2(GELU(fc1(LN(x)))). Like simd.h, compiled once per instruction set, with internal
// linkage.
//
// Idea. 64 tokens go through all of it while they and the weights stay in the first two levels of
// cache; main memory sees x once and the result once. How features lie and why:
// ../common/tokens.h.
//
// Costs, multiply-adds per token: 2 C hidden. Bytes: 2 C.
//
// What was measured: one thread of an AMD EPYC (family 25, model 17) in a shared virtual machine,
// float32, in turns with torch's LayerNorm, addmm, GELU and add, medians of processor time, in ms;
// hidden is twice C. No prediction was written first.
//                        torch, AVX2  kernel         torch, AVX-512  kernel
//   128 x 128 x 60           19.4       8.9 (2.19)       16.5        7.5 (2.18)
//    64 x  64 x 180          14.7      12.0 (1.22)       15.0       11.3 (1.33)
//   128 x 128 x 180          80.9      48.4 (1.67)       85.3       46.9 (1.82)
//    64 x  64 x 240          23.6      20.5 (1.15)       22.9       18.8 (1.22)
// The kernel runs at 53, 89, 88 and 92 GFLOP/s with AVX2, of about 118 that a core can do.
#pragma once

#include "../common/precision.h"
#include "mlp_branch.h"

namespace c2d::C2D_ISA {
namespace {

// Scratch memory of a call, cut up: rows of kTokens tokens.
template <class P>
struct Scratch {
    typename P::Number *x, *norm, *hidden;
    typename P::Operand* spare;
    int64_t elements;

    Scratch(const MlpSizes<typename P::Number>& sizes, typename P::Number* memory) {
        const int64_t C = sizes.channels, wide = sizes.hidden;
        Cut<typename P::Number> cut(memory);
        cut(x, C * kTokens);
        cut(norm, (C + 1) * kTokens);
        cut(hidden, (wide + 1) * kTokens);
        cut(spare, P::spare(wide > C ? wide : C) * kTokens);
        elements = cut.elements();
    }
};

template <class P, class T = typename P::Number>
void run(const MlpSizes<T>& sizes, const MlpWeights<T, typename P::Weight>& weights, int64_t count,
         const TokensOf<const typename P::Map>& x, const TokensOf<typename P::Map>& out,
         T* scratch) {
    const Scratch<P> s(sizes, scratch);
    const int64_t C = sizes.channels, hidden = sizes.hidden;
    // Of a few tokens at the end of a map no more vectors than they fill.
    const int64_t length = rounded_up(count, P::lanes);
    P::load_rows(count, C, x.map, x.token, length, s.spare, s.x);
    P::linear(hidden, C, length, weights.first,
              P::normalised(C, length, sizes.eps, s.x, s.norm, s.spare), false, s.hidden);
    P::linear(C, hidden, length, weights.second, P::activated(hidden, length, s.hidden, s.spare),
              true, s.x);
    P::store_rows(count, C, s.x, length, s.spare, out.token, out.map);
}

template <class P>
int64_t scratch(const MlpSizes<typename P::Number>& sizes) {
    return Scratch<P>(sizes, nullptr).elements;
}

}  // namespace
}  // namespace c2d::C2D_ISA
