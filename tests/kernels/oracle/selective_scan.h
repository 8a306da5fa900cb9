// Selective scan: h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, y_t = (C_t h_t + D u_t) silu(z_t)
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>

#include "arrays.h"

namespace oracle {

// B or C as (D, N), (B, N, L) or (B, G, N, L), read at one batch, channel, state and time.
inline double projection(const Array& a, int64_t channels, int64_t b, int64_t d, int64_t n,
                         int64_t t) {
    if (a.ndim() == 2) return a.at(d, n);
    if (a.ndim() == 3) return a.at(b, n, t);
    return a.at(b, d / (channels / a.shape(1)), n, t);
}

inline std::pair<Array, Array> selective_scan(const Array& u, const Array& delta, const Array& A,
                                              const Array& B, const Array& C,
                                              const std::optional<Array>& D,
                                              const std::optional<Array>& z,
                                              const std::optional<Array>& delta_bias,
                                              bool delta_softplus) {
    require(u.ndim() == 3 && delta.ndim() == 3 && A.ndim() == 2, "u, delta (B, D, L) and A (D, N)");
    const int64_t batch = u.shape(0), channels = u.shape(1), length = u.shape(2);
    const int64_t states = A.shape(1);
    Array y = zeros({batch, channels, length}), last = zeros({batch, channels, states});
    for (int64_t b = 0; b < batch; ++b) {
        for (int64_t d = 0; d < channels; ++d) {
            Vector h(states, 0.0);
            for (int64_t t = 0; t < length; ++t) {
                double step = delta.at(b, d, t) + (delta_bias ? delta_bias->at(d) : 0.0);
                // Mamba's softplus: the identity above 20, where log(1 + e^x) differs by 2e-9.
                if (delta_softplus && step <= 20) step = std::log1p(std::exp(step));
                double sum = 0;
                for (int64_t n = 0; n < states; ++n) {
                    h[n] = std::exp(step * A.at(d, n)) * h[n] +
                           step * projection(B, channels, b, d, n, t) * u.at(b, d, t);
                    sum += projection(C, channels, b, d, n, t) * h[n];
                }
                if (D) sum += D->at(d) * u.at(b, d, t);
                if (z) sum *= z->at(b, d, t) / (1 + std::exp(-z->at(b, d, t)));
                y.mutable_at(b, d, t) = sum;
            }
            for (int64_t n = 0; n < states; ++n) last.mutable_at(b, d, n) = h[n];
        }
    }
    return {y, last};
}

}  // namespace oracle
