// Layers on tokens in cache, as in tokens.h, with products of bfloat16: AVX-512 BF16.
//
// vdpbf16ps adds a0 b0 + a1 b1 to a float32 lane, in the time of one multiply-add of float32. What
// a product reads is therefore rounded to bfloat16 and lies in pairs along its steps,
// [channel / 2][token][2]: the next pair of weights is one scalar of 32 bits, and product.h needs
// nothing but another step. Sums, norms, softmax and residuals stay float32.
//
// A bias is the weight of two more channels of ones, as bfloat16 and what that left over: together
// they have 16 bits, and where the number of channels is even the second costs nothing.
#pragma once

#if !defined(__AVX512BF16__)
#error "pairs.h belongs to files compiled for AVX-512 BF16 alone"
#endif

#include "bfloat16.h"
#include "tokens.h"

namespace c2d::C2D_ISA {
namespace {

constexpr int kLanes = 16;
typedef Vector<float, kLanes> Floats;
typedef Vector<Pair, kLanes> Pairs;
typedef Vector<uint16_t, kLanes> Halves;

template <>
struct Step<Pair> {
    static inline __attribute__((always_inline)) Floats add(Floats sum, Pair a, Pairs b) {
        return Floats(
            _mm512_dpbf16_ps(__m512(sum), __m512bh(_mm512_set1_epi32(int(a))), __m512bh(b)));
    }
};

inline __attribute__((always_inline)) Halves halves_of(Floats x) {
    return Halves(_mm512_cvtneps_pbh(__m512(x)));
}

// Lane by lane the pair of two numbers.
inline __attribute__((always_inline)) Pairs paired(Floats first, Floats second) {
    const __m512i both = __m512i(_mm512_cvtne2ps_pbh(__m512(second), __m512(first)));
    const Vector<uint16_t, 2 * kLanes> order = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return Pairs(_mm512_maskz_permutexvar_epi16(~__mmask32(0), __m512i(order), both));
}

// change() of one vector of tokens of some rows, rounded and in pairs; `fill` is the partner of an
// odd row that is left.
template <class Change>
inline void pair_rows(int64_t rows, int64_t length, const float* from, float fill, Pair* to,
                      Change change) {
    for (; rows >= 2; rows -= 2, from += 2 * length, to += length) {
        store<Pair, kLanes>(to, paired(change(load<float, kLanes>(from)),
                                       change(load<float, kLanes>(from + length))));
    }
    if (rows == 1) {
        store<Pair, kLanes>(to, paired(change(load<float, kLanes>(from)), Floats{} + fill));
    }
}

// pair_rows for every vector of tokens; change_at(n) gives the change of the vector at token n.
template <class ChangeAt>
inline void pair_all(int64_t rows, int64_t length, const float* from, float fill, Pair* to,
                     ChangeAt change_at) {
    for (int64_t n = 0; n < length; n += kLanes) {
        pair_rows(rows, length, from + n, fill, to + n, change_at(n));
    }
}

// What a product with a bias reads of some rows: their pairs and, behind them, two channels of
// ones.
template <class ChangeAt>
inline void pair_with_ones(int64_t rows, int64_t length, const float* from, Pair* to,
                           ChangeAt change_at) {
    pair_all(rows, length, from, 1.0f, to, change_at);
    const Pair one = 0x3f80, last = rows % 2 == 0 ? one << 16 | one : one;
    for (int64_t n = 0; n < length; n += kLanes) {
        store<Pair, kLanes>(to + (rows + 1) / 2 * length + n, Pairs{} + last);
    }
}

// Numbers as they are, for pair_all and pair_with_ones.
constexpr auto unchanged = [](int64_t) { return [](Floats v) { return v; }; };

// Tokens of a map transposed, as turn_in does it, two channels at a time where C is even; `pairs`
// is scratch memory for that.
inline void turn_map_in(int64_t tokens, int64_t channels, const Bfloat16* from,
                        const int64_t* token, int64_t length, Pair* pairs, float* to) {
    if (channels % 2 == 0) {
        turn_in<Pair, kLanes>(tokens, channels / 2, from, token, length, pairs);
        for (int64_t c = 0; c < channels; c += 2, pairs += length, to += 2 * length) {
            for (int64_t n = 0; n < length; n += kLanes) {
                const Pairs both = load<Pair, kLanes>(pairs + n);
                store<float, kLanes>(to + n, Floats(both << 16));
                store<float, kLanes>(to + length + n, Floats(both >> 16 << 16));
            }
        }
        return;
    }
    for (int64_t n = 0; n < length; ++n) {
        for (int64_t c = 0; c < channels; ++c) {
            const Pair bits = n < tokens ? Pair(from[token[n] + c].bits) << 16 : 0;
            to[c * length + n] = Floats(Pairs{} + bits)[0];
        }
    }
}

// The other way.
inline void turn_map_out(int64_t tokens, int64_t channels, const float* from, int64_t length,
                         Pair* pairs, const int64_t* token, Bfloat16* to) {
    if (channels % 2 == 0) {
        pair_all(channels, length, from, 0.0f, pairs, unchanged);
        turn_out<Pair, kLanes>(tokens, channels / 2, pairs, length, token, to);
        return;
    }
    for (int64_t n = 0; n < tokens; ++n) {
        for (int64_t c = 0; c < channels; ++c) {
            to[token[n] + c].bits = halves_of(Floats{} + from[c * length + n])[0];
        }
    }
}

// load_row and store_row of tokens.h for maps of bfloat16.
inline void load_map_row(const RowTile<Bfloat16>& tile, int64_t channels, int64_t y, int64_t first,
                         int64_t count, int64_t length, Pair* pairs, float* to) {
    int64_t token[kMostTokens];
    for (int64_t n = 0; n < count; ++n) {
        token[n] = y * tile.x_row + (first + n) * tile.x_column;
    }
    turn_map_in(count, channels, tile.x, token, length, pairs, to);
}

inline void store_map_row(const RowTile<Bfloat16>& tile, int64_t channels, int64_t y,
                          const float* from, int64_t length, Pair* pairs) {
    int64_t token[kMostTokens];
    for (int64_t n = 0; n < tile.columns; ++n) {
        token[n] = y * tile.out_row + (tile.left + n) * tile.out_column;
    }
    turn_map_out(tile.columns, channels, from, length, pairs, token, tile.out);
}

// LN(x) without an affine part.
inline void normalise_pairs(int64_t channels, int64_t length, float eps, const float* x, Pair* to) {
    pair_with_ones(channels, length, x, to, [=](int64_t n) {
        const Moments<float, kLanes> moments(channels, length, eps, x + n);
        return [=](Floats v) { return (v - moments.mean) * moments.scale; };
    });
}

// GELU(x) = x (1/2 + x P(x^2)), fitted to an error of 1.9e-4, below the rounding of what matters
// beside it. At 4, where x stays for P, x P is 1/2 to 1.2e-7, so that it ends as x or 0.
inline __attribute__((always_inline)) Floats short_gelu(Floats x) {
    constexpr float kP[7] = {0.3978702663f,     -0.06455441183f,  0.00876369073f,
                             -0.0008121874087f, 4.776387924e-05f, -1.588826735e-06f,
                             2.258820025e-08f};
    Floats near = x > 4.0f ? filled<Floats>(4.0f) : x;
    near = near < -4.0f ? filled<Floats>(-4.0f) : near;
    const Floats t = near * near;
    Floats p = filled<Floats>(kP[6]);
#pragma GCC unroll 6
    for (int k = 5; k >= 0; --k) {
        p = p * t + kP[k];
    }
    return x * (near * p + 0.5f);
}

// 2^x = 2^floor(x) 2^r, the second by a cubic through 1 at r = 0: relative error 8.6e-5. scalef
// rounds its exponent down by itself. Under 2^-64 it is 0: denormal results, of the mask for one,
// take a hundred times as long.
inline __attribute__((always_inline)) Floats short_exp2(Floats x) {
    constexpr __mmask16 all = 0xffff;
    const Floats r = Floats(_mm512_maskz_reduce_ps(all, __m512(x), _MM_FROUND_TO_NEG_INF));
    Floats p = r * 0.07706705f + 0.22764498f;
    p = p * r + 0.69511679f;
    p = p * r + 1.0f;
    // "Not less", so that a NaN stays one.
    const __mmask16 some = _mm512_cmp_ps_mask(__m512(x), _mm512_set1_ps(-64.0f), _CMP_NLT_UQ);
    return Floats(_mm512_maskz_scalef_ps(some, __m512(p), __m512(x)));
}

// out = weight (rows, pairs) times b (pairs, length), added to what is there if `add`.
inline void multiply_pairs(int64_t rows, int64_t pairs, int64_t length, const Pair* weight,
                           const Pair* b, bool add, float* out) {
    product<float, kLanes, Pair>(
        {pairs, weight, pairs, 1, b, length, add ? out : nullptr, out, length}, rows, length);
}

}  // namespace
}  // namespace c2d::C2D_ISA
