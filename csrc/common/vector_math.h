// Powers of two for vectors of any width: what the CPU kernels need of a mathematics library.
//
// 2^x = 2^n 2^r with n the nearest integer and |r| <= 1/2. The polynomial for 2^r begins with
// exactly 1, so that powers near 1 are not biased: a recursion may multiply thousands of them.
// Rounding adds about one unit in the last place. Too small a result is 0, too large a one
// infinite, and a NaN stays one. Like simd.h, compiled once per instruction set, with internal
// linkage.
#pragma once

#include "simd.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#endif

namespace c2d::C2D_ISA {
namespace {

template <class V>
struct ElementOf {
    typedef __typeof__(V{}[0] + 0) type;
};
template <class V>
using Element = typename ElementOf<V>::type;

template <class V>
inline __attribute__((always_inline)) V filled(Element<V> value) {
    return value - V{};
}

// 2^r on |r| <= 1/2. Float: the polynomial through (0, 1) with the least largest relative error
// (2.0e-9); double: the series ln(2)^k / k!.
template <class V>
inline __attribute__((always_inline)) V exponential_series(V r) {
    using T = Element<V>;
    constexpr float kFloat[7] = {
        1.0f,           0.6931472028f,   0.2402264791f, 0.05550332485f, 0.009618437414f,
        0.00133988689f, 0.0001535333028f};
    constexpr double kDouble[14] = {
        1,
        0.69314718055994530942,
        0.24022650695910071233,
        0.055504108664821579953,
        0.0096181291076284771620,
        0.0013333558146428443424,
        0.00015403530393381609954,
        1.5252733804059840281e-05,
        1.3215486790144309488e-06,
        1.0178086009239699728e-07,
        7.0549116208011233299e-09,
        4.4455382718708114976e-10,
        2.5678435993488205142e-11,
        1.3691488853904128881e-12,
    };
    V p{};
    if constexpr (sizeof(T) == 8) {
#pragma GCC unroll 14
        for (int k = 13; k >= 0; --k) {
            p = p * r + kDouble[k];
        }
    } else {
#pragma GCC unroll 7
        for (int k = 6; k >= 0; --k) {
            p = p * r + kFloat[k];
        }
    }
    return p;
}

// 2^x. Any width; the bits of the power of two are put together as integers.
template <class V>
inline __attribute__((always_inline)) V exp2_of(V x) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    // The forms with a mask, all ones: in the others gcc 12 warns of its own undefined operand.
    if constexpr (sizeof(V) == 64 && sizeof(Element<V>) == 4) {
        constexpr __mmask16 all = 0xffff;
        const __m512 r = _mm512_maskz_reduce_ps(all, __m512(x), 0);
        const __m512 n = _mm512_maskz_roundscale_ps(all, __m512(x), 0);
        return V(_mm512_maskz_scalef_ps(all, __m512(exponential_series(V(r))), n));
    } else if constexpr (sizeof(V) == 64) {
        constexpr __mmask8 all = 0xff;
        const __m512d r = _mm512_maskz_reduce_pd(all, __m512d(x), 0);
        const __m512d n = _mm512_maskz_roundscale_pd(all, __m512d(x), 0);
        return V(_mm512_maskz_scalef_pd(all, __m512d(exponential_series(V(r))), n));
    }
#endif
    using T = Element<V>;
    constexpr bool is_double = sizeof(T) == 8;
    typedef __typeof__(V{} < V{}) Integers;  // signed integers of the element's size
    constexpr int mantissa = is_double ? 52 : 23;
    constexpr int bias = is_double ? 1023 : 127;
    // 1.5 * 2^mantissa: adding it leaves the nearest integer in the low bits
    const T magic = is_double ? T(6755399441055744.0) : T(12582912.0f);
    x = x < T(-bias) ? filled<V>(T(-bias)) : x;
    x = x > T(bias + 1) ? filled<V>(T(bias + 1)) : x;
    const V shifted = x + magic;
    const V n = shifted - magic;
    Integers bits = (Integers)shifted - (Integers)filled<V>(magic);
    bits = (bits + bias) << mantissa;
    return exponential_series(x - n) * (V)bits;
}

}  // namespace
}  // namespace c2d::C2D_ISA
