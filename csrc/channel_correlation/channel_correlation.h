// What one instruction set offers for channel correlation: two small matrix kernels over a strip,
// that is some rows of one window. kernel.cpp defines them once per instruction set; the host side
// in host.cpp walks windows and strips and never touches an element.
#pragma once

#include "../common/strip.h"

namespace c2d {

template <class T>
struct CorrelationKernels {
    // gram[i, j] = sum over the strip's rows x columns tokens of a[token, i] * b[token, j].
    void (*gram)(int64_t rows, int64_t columns, int64_t channels, Strip<const T> a,
                 Strip<const T> b, T* gram);

    // out[token, j] = sum_i a[token, i] * m[i, j]  (+ sum_i a2[token, i] * m2[i, j] if m2 is
    // given).
    void (*apply)(int64_t rows, int64_t columns, int64_t channels, Strip<const T> a, const T* m,
                  Strip<const T> a2, const T* m2, Strip<T> out);
};

#define C2D_DECLARE_CORRELATION(isa)                             \
    namespace isa {                                              \
    extern const CorrelationKernels<float> correlation_float32;  \
    extern const CorrelationKernels<double> correlation_float64; \
    }

C2D_DECLARE_CORRELATION(baseline)
#if defined(__x86_64__)
C2D_DECLARE_CORRELATION(avx2)
C2D_DECLARE_CORRELATION(avx512)
#endif

#undef C2D_DECLARE_CORRELATION

}  // namespace c2d
