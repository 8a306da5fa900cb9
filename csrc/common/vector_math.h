// Powers of two and the error function for vectors of any width: what the CPU kernels need of a
// mathematics library.
//
// 2^x = 2^n 2^r with n the nearest integer and |r| <= 1/2. The polynomial for 2^r begins with
// exactly 1, so that powers near 1 are not biased: a recursion may multiply thousands of them.
// Rounding adds about one unit in the last place. Too small a result is 0, too large a one
// infinite, and a NaN stays one. Like simd.h, compiled once per instruction set, with internal
// linkage.
#pragma once

#include "normal_share.h"
#include "simd.h"

#if defined(__x86_64__)
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

// 2^x, and 0 where x is under `least`; a NaN stays one. What is not wanted is not computed either:
// a denormal power would cost a processor a hundred times as much.
template <class V>
inline __attribute__((always_inline)) V exp2_from(Element<V> least, V x) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    if constexpr (sizeof(V) == 64 && sizeof(Element<V>) == 4) {
        constexpr __mmask16 all = 0xffff;
        const __mmask16 some = _mm512_cmp_ps_mask(__m512(x), _mm512_set1_ps(least), _CMP_NLT_UQ);
        const __m512 r = _mm512_maskz_reduce_ps(all, __m512(x), 0);
        const __m512 n = _mm512_maskz_roundscale_ps(all, __m512(x), 0);
        return V(_mm512_maskz_scalef_ps(some, __m512(exponential_series(V(r))), n));
    } else if constexpr (sizeof(V) == 64) {
        constexpr __mmask8 all = 0xff;
        const __mmask8 some = _mm512_cmp_pd_mask(__m512d(x), _mm512_set1_pd(least), _CMP_NLT_UQ);
        const __m512d r = _mm512_maskz_reduce_pd(all, __m512d(x), 0);
        const __m512d n = _mm512_maskz_roundscale_pd(all, __m512d(x), 0);
        return V(_mm512_maskz_scalef_pd(some, __m512d(exponential_series(V(r))), n));
    }
#endif
    const auto none = x < least;
    const V power = exp2_of(none ? V{} : x);
    return none ? V{} : power;
}

template <class V>
inline __attribute__((always_inline)) V sqrt_of(V x) {
    constexpr bool is_float = sizeof(Element<V>) == 4;
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64 && is_float) {
        return V(_mm512_maskz_sqrt_ps(0xffff, __m512(x)));
    } else if constexpr (sizeof(V) == 64) {
        return V(_mm512_maskz_sqrt_pd(0xff, __m512d(x)));
    }
#endif
#if defined(__AVX2__)
    if constexpr (sizeof(V) == 32 && is_float) {
        return V(_mm256_sqrt_ps(__m256(x)));
    } else if constexpr (sizeof(V) == 32) {
        return V(_mm256_sqrt_pd(__m256d(x)));
    }
#endif
#if defined(__x86_64__)
    if constexpr (sizeof(V) == 16 && is_float) {
        return V(_mm_sqrt_ps(__m128(x)));
    } else if constexpr (sizeof(V) == 16) {
        return V(_mm_sqrt_pd(__m128d(x)));
    }
#endif
    for (unsigned i = 0; i < sizeof(V) / sizeof(Element<V>); ++i) {
        x[i] = is_float ? __builtin_sqrtf(x[i]) : __builtin_sqrt(x[i]);
    }
    return x;
}

// erf(x): float by x P(x^2) / Q(x^2), fitted to a relative error of 1.9e-8 up to |x| = 3.92; double
// by the C library, one number at a time. At 3.923 the float's is exactly 1 with and without fused
// multiply-adds; at 3.92 it was 1 + 2^-23 without, and GELU(-1000) not 0.
template <class V>
inline __attribute__((always_inline)) V erf_of(V x) {
    if constexpr (sizeof(Element<V>) == 8) {
        for (unsigned i = 0; i < sizeof(V) / sizeof(double); ++i) {
            x[i] = __builtin_erf(x[i]);
        }
        return x;
    } else {
        constexpr float kP[6] = {1.1283791461f,    0.19040729555f,    0.052748837549f,
                                 0.0037656538914f, 0.00028488379080f, 2.0500839067e-06f};
        constexpr float kQ[6] = {1.0f,
                                 0.50207681283f,
                                 0.11410945876f,
                                 0.014969290238f,
                                 0.0011625449128f,
                                 3.8091735968e-05f};
        x = x > 3.923f ? filled<V>(3.923f) : x;
        x = x < -3.923f ? filled<V>(-3.923f) : x;
        const V t = x * x;
        V p = filled<V>(kP[5]), q = filled<V>(kQ[5]);
#pragma GCC unroll 5
        for (int k = 4; k >= 0; --k) {
            p = p * t + kP[k];
            q = q * t + kQ[k];
        }
        return x * p / q;
    }
}

// The share of a normal distribution below x.
template <class V>
inline __attribute__((always_inline)) V share_of(V x) {
    using T = Element<V>;
#if defined(C2D_NORMAL_TABLE)
    if constexpr (sizeof(V) == 64 && sizeof(T) == 4) {
        return normal_share(x);
    }
#endif
    return T(0.5) * (T(1) + erf_of(x * T(0.70710678118654752440)));
}

// GELU, the exact one.
template <class V>
inline __attribute__((always_inline)) V gelu_of(V x) {
    return x * share_of(x);
}

// GELU(x) and its slope. A density of less than 2^-64 (2^-512 in double) is 0: times the gradient
// it is multiplied with it would be a denormal number, which costs a processor a hundred times as
// much.
template <class V>
struct GeluAndSlope {
    V value, slope;

    inline __attribute__((always_inline)) explicit GeluAndSlope(V x) {
        using T = Element<V>;
        constexpr T kExponent = T(-0.72134752044448170368), kDensity = T(0.39894228040143267794);
        constexpr T kLeast = sizeof(T) == 4 ? T(-64) : T(-512);
        const V share = share_of(x);
        const V exponent = x * x * kExponent;
        value = x * share;
        slope = share + x * (kDensity * exp2_from(kLeast, exponent));
    }
};

}  // namespace
}  // namespace c2d::C2D_ISA
