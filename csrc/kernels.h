// The functions behind torch.ops.c2d_native, as registration.cpp registers them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>

namespace c2d {

using torch::stable::Tensor;

// out = v (q^T v / n)^T in each window of n tokens; q, v (B, H, W, C), float32 or float64.
Tensor channel_correlation(const Tensor& q, const Tensor& v, int64_t window_height,
                           int64_t window_width);

// (dq, dv) of channel_correlation.
std::tuple<Tensor, Tensor> channel_correlation_backward(const Tensor& grad, const Tensor& q,
                                                        const Tensor& v, int64_t window_height,
                                                        int64_t window_width);

}  // namespace c2d
