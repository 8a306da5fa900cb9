// The functions behind torch.ops.c2d_native, as registration.cpp registers them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
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

// softmax(scale q k^T + bias + mask) v in each window, with roll and mask by `shift`: Swin's
// without kv and q (B, H, W, 3C) = [q | k | v]; SRFormer's with q (B, H, W, C) and kv (B, H, W,
// C/2). All of one type, float32 or float64. Returns (B, H, W, C).
Tensor window_attention(const Tensor& q, std::optional<Tensor> kv, const Tensor& bias_table,
                        int64_t window_size, int64_t num_heads, int64_t shift, double scale);

// (dq, dkv, dbias_table) of window_attention; dkv is empty where kv was not given.
std::tuple<Tensor, Tensor, Tensor> window_attention_backward(const Tensor& grad, const Tensor& q,
                                                             std::optional<Tensor> kv,
                                                             const Tensor& bias_table,
                                                             int64_t window_size, int64_t num_heads,
                                                             int64_t shift, double scale);

}  // namespace c2d
