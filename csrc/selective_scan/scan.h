// The arithmetic of the selective scan (Mamba, 2312.00752), one copy for every processor:
// kernel.cpp instantiates it with vectors of channels, the CUDA kernels with one float per thread.
// So what the CPU tests check is what the GPU computes.
//
//   h_t = a_t h_(t-1) + (delta_t u_t) B_t,   a_t = exp(delta_t A) = 2^(delta_t A log2 e)
//   y_t = sum_n C_t h_t + D u_t,             times silu(z_t)
//
// A does not depend on t: over a run of steps the decay is 2^(A log2 e * sum of delta), and what
// one run of steps hands to the next is the pair (sum of delta, h at its end). There is no division
// by a running product, which overflows.
//
// A value V is a float, a double or a vector of them. The file that includes this one provides,
// before it: C2D_SCAN_FUNCTION (inline, on host or device), C2D_SCAN_NAMESPACE, and for its V in
// that namespace exp2_of(x), maximum(a, b), select(condition, a, b), Scalar<V> (the type of one
// value) and broadcast<V>(scalar).
#pragma once

namespace C2D_SCAN_NAMESPACE {

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;
constexpr double kSoftplusThreshold = 20;  // mamba_ssm's and torch's: above it softplus(x) = x

// log(1 + w) for w in [0, 1], by 2 atanh(w / (2 + w)): a series in s^2 <= 1/9, exact for small w.
template <class V>
C2D_SCAN_FUNCTION V log1p_of_fraction(V w) {
    constexpr int terms = sizeof(Scalar<V>) == 8 ? 17 : 7;
    const V s = w / (broadcast<V>(2) + w);
    const V square = s * s;
    V sum = broadcast<V>(Scalar<V>(1.0 / (2 * terms + 1)));
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 17
#endif
    for (int k = terms - 1; k >= 0; --k) {
        sum = sum * square + broadcast<V>(Scalar<V>(1.0 / (2 * k + 1)));
    }
    return (s + s) * sum;
}

// softplus(x) = log(1 + e^x), and x itself above the threshold; `slope` becomes its derivative.
// Both come from e^-|x|: a caller that does not want the slope pays nothing for it.
template <class V>
C2D_SCAN_FUNCTION V softplus(V x, V& slope) {
    const V zero = broadcast<V>(0), one = broadcast<V>(1);
    const V threshold = broadcast<V>(Scalar<V>(kSoftplusThreshold));
    const V magnitude = maximum(x, -x);
    const V w = exp2_of(magnitude * broadcast<V>(Scalar<V>(-kLog2E)));
    slope = select(x > threshold, one, select(x > zero, one, w) / (one + w));
    return select(x > threshold, x, maximum(x, zero) + log1p_of_fraction(w));
}

template <class V>
C2D_SCAN_FUNCTION V softplus(V x) {
    V slope;
    return softplus(x, slope);
}

template <class V>
C2D_SCAN_FUNCTION V sigmoid(V x) {
    const V one = broadcast<V>(1);
    return one / (one + exp2_of(x * broadcast<V>(Scalar<V>(-kLog2E))));
}

// silu(z) = z sigmoid(z), from s = sigmoid(z); and its derivative.
template <class V>
C2D_SCAN_FUNCTION V silu(V z, V s) {
    return z * s;
}
template <class V>
C2D_SCAN_FUNCTION V silu_slope(V z, V s) {
    return s + z * s * (broadcast<V>(1) - s);
}

// a_t; A_log2 is A log2 e.
template <class V>
C2D_SCAN_FUNCTION V decay(V delta, V A_log2) {
    return exp2_of(delta * A_log2);
}

// h_t of one state.
template <class V>
C2D_SCAN_FUNCTION V advance(V h, V a, V delta_u, V B) {
    return a * h + delta_u * B;
}

// One step backwards in one state: what the loss gains by h_t, spread over all that made h_t.
//
// `carry` is a_(t+1) dL/dh_(t+1) on entry and a_t dL/dh_t on return. h_before is h_(t-1), h is h_t.
// Sums over states go to `through_B` (sum of g B: times delta it is u's gradient, times u delta's)
// and to `through_decay` (sum of g a h_before A_log2: times ln 2 it is the rest of delta's). dA is
// summed over time. dB and dC are this step's.
template <class V>
C2D_SCAN_FUNCTION void retreat(V& carry, V a, V h_before, V h, V dy, V delta, V delta_u, V A_log2,
                               V B, V C, V& through_B, V& through_decay, V& dA, V& dB, V& dC) {
    const V g = C * dy + carry;
    carry = a * g;
    const V decayed = carry * h_before;
    through_B = through_B + g * B;
    through_decay = through_decay + decayed * A_log2;
    dA = dA + decayed * delta;
    dB = g * delta_u;
    dC = dy * h;
}

// The adjoint alone, where only a run's end matters.
template <class V>
C2D_SCAN_FUNCTION V retreat_carry(V carry, V a, V dy, V C) {
    return a * (C * dy + carry);
}

}  // namespace C2D_SCAN_NAMESPACE
