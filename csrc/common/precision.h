// The precisions of a layer on tokens in cache, as policies: the verbs that differ between
// arithmetic in T throughout (Exact) and float32 whose products read bfloat16 in pairs (Paired,
// pairs.h). A layer is written once, in these verbs and those of tokens.h, which both share: load
// rows, multiply, activate; add_normalised; store. Like simd.h, compiled once per instruction set,
// with internal linkage.
//
// `spare` is scratch memory of spare(rows) rows for the widest operand of a product.
#pragma once

#include "tokens.h"
#if defined(__AVX512BF16__)
#include "pairs.h"
#endif

namespace c2d::C2D_ISA {
namespace {

// A product reads the features themselves and a row of ones behind them; nothing is spare.
template <class T>
struct Exact {
    using Number = T;   // of the arithmetic
    using Weight = T;   // of a product's weights
    using Map = T;      // of the maps in memory
    using Operand = T;  // of what a product reads
    static constexpr int lanes = kVectorBytes / sizeof(T);

    static int64_t spare(int64_t) { return 0; }

    static void load_rows(int64_t tokens, int64_t channels, const T* from, const int64_t* token,
                          int64_t length, T*, T* to) {
        turn_in<T, lanes>(tokens, channels, from, token, length, to);
    }

    static void store_rows(int64_t tokens, int64_t channels, const T* from, int64_t length, T*,
                           const int64_t* token, T* to) {
        turn_out<T, lanes>(tokens, channels, from, length, token, to);
    }

    // What a product with a bias reads of some rows, which have room for one more.
    static const T* operand(int64_t rows, int64_t length, T* x, T*) {
        ones<T, lanes>(length, x + rows * length);
        return x;
    }

    // The same of their LayerNorm without an affine part, in `norm`, which has room for one more.
    static const T* normalised(int64_t rows, int64_t length, T eps, const T* x, T* norm, T*) {
        normalise<T, lanes>(rows, length, eps, x, norm);
        ones<T, lanes>(length, norm + rows * length);
        return norm;
    }

    // The same of their GELU, which may take their place.
    static const T* activated(int64_t rows, int64_t length, T* x, T*) {
        activate<T, lanes>(rows, length, x);
        return x;
    }

    // out = a Linear of such an operand, added to what is there if `add`.
    static void linear(int64_t outputs, int64_t inputs, int64_t length, const T* weight, const T* x,
                       bool add, T* out) {
        multiply<T, lanes>(outputs, inputs + 1, length, weight, x, add, out);
    }
};

#if defined(__AVX512BF16__)
// A product reads a copy in `spare`, rounded and in pairs of rows.
struct Paired {
    using Number = float;
    using Weight = Pair;
    using Map = Bfloat16;
    using Operand = Pair;
    static constexpr int lanes = kLanes;

    static int64_t spare(int64_t rows) { return weight_pairs(rows); }

    static void load_rows(int64_t tokens, int64_t channels, const Bfloat16* from,
                          const int64_t* token, int64_t length, Pair* spare, float* to) {
        turn_map_in(tokens, channels, from, token, length, spare, to);
    }

    static void store_rows(int64_t tokens, int64_t channels, const float* from, int64_t length,
                           Pair* spare, const int64_t* token, Bfloat16* to) {
        turn_map_out(tokens, channels, from, length, spare, token, to);
    }

    static const Pair* operand(int64_t rows, int64_t length, float* x, Pair* spare) {
        pair_with_ones(rows, length, x, spare, unchanged);
        return spare;
    }

    static const Pair* normalised(int64_t rows, int64_t length, float eps, const float* x, float*,
                                  Pair* spare) {
        normalise_pairs(rows, length, eps, x, spare);
        return spare;
    }

    static const Pair* activated(int64_t rows, int64_t length, float* x, Pair* spare) {
        pair_with_ones(rows, length, x, spare, [](int64_t) { return short_gelu; });
        return spare;
    }

    static void linear(int64_t outputs, int64_t inputs, int64_t length, const Pair* weight,
                       const Pair* x, bool add, float* out) {
        multiply_pairs(outputs, weight_pairs(inputs), length, weight, x, add, out);
    }
};
#endif

}  // namespace
}  // namespace c2d::C2D_ISA
