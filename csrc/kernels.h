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

// (y, last state, kept states) of the scan in scan.h; u, delta, z (batch, D, L), A (D, N), B and C
// (D, N), (batch, N, L) or (batch, G, N, L), D and delta_bias (D,), all of one type: float32 or
// float64. Kept are, if asked for, the states before every 16th step, (batch, ceil(L / 16), N, D),
// which spare the backward a sweep; else an empty tensor.
std::tuple<Tensor, Tensor, Tensor> selective_scan(const Tensor& u, const Tensor& delta,
                                                  const Tensor& A, const Tensor& B, const Tensor& C,
                                                  std::optional<Tensor> D, std::optional<Tensor> z,
                                                  std::optional<Tensor> delta_bias,
                                                  bool delta_softplus, bool keep_states);

// (du, ddelta, dA, dB, dC, dD, dz, ddelta_bias) of selective_scan; empty for what was not given.
// kept_states may be empty, or hold anything but 0 in the first place: then they are found again.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> selective_scan_backward(
    const Tensor& grad_y, const Tensor& grad_last_state, const Tensor& kept_states, const Tensor& u,
    const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C, std::optional<Tensor> D,
    std::optional<Tensor> z, std::optional<Tensor> delta_bias, bool delta_softplus);

// The coordinate query's decoder (positions.py, reference.py) over a grid or free positions: RGB
// (B, queries, 3) with every attention folded into `folds`, or, for the attention after those
// folded so far, the sums of k^T v over all queries, (B, heads, d, d) in float64. `weights` hold
// the folded decoder in the order of native.py.
Tensor coordinate_query(const Tensor& features, const Tensor& image, const Tensor& weights,
                        const Tensor& folds, const Tensor& y_low, const Tensor& y_high,
                        const Tensor& y_t, const Tensor& y_digits, const Tensor& x_low,
                        const Tensor& x_high, const Tensor& x_t, const Tensor& x_digits,
                        const Tensor& rel_cell, int64_t levels, int64_t heads, int64_t attentions);
Tensor coordinate_query_moments(const Tensor& features, const Tensor& weights, const Tensor& folds,
                                const Tensor& y_low, const Tensor& y_high, const Tensor& y_t,
                                const Tensor& y_digits, const Tensor& x_low, const Tensor& x_high,
                                const Tensor& x_t, const Tensor& x_digits, const Tensor& rel_cell,
                                int64_t levels, int64_t heads, int64_t attentions);

#if defined(C2D_WITH_CUDA)
// The scan on CUDA tensors: u, delta, z and what varies of B and C in float32, bfloat16 or float16;
// A, D, delta_bias and what is constant in float32, dense. keep_states has to be false.
std::tuple<Tensor, Tensor, Tensor> selective_scan_cuda(const Tensor& u, const Tensor& delta,
                                                       const Tensor& A, const Tensor& B,
                                                       const Tensor& C, std::optional<Tensor> D,
                                                       std::optional<Tensor> z,
                                                       std::optional<Tensor> delta_bias,
                                                       bool delta_softplus, bool keep_states);

// Its gradients; those of A, B, C, D and delta_bias in float32.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
selective_scan_backward_cuda(const Tensor& grad_y, const Tensor& grad_last_state,
                             const Tensor& kept_states, const Tensor& u, const Tensor& delta,
                             const Tensor& A, const Tensor& B, const Tensor& C,
                             std::optional<Tensor> D, std::optional<Tensor> z,
                             std::optional<Tensor> delta_bias, bool delta_softplus);
#endif
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

// (q p^T / d + P) p in each window, p being v reduced to base_height x base_width cells by weight
// (1, tokens of a cell) and weight_bias (1,), P the bias table ((2h-1)(2w-1), heads) averaged over
// cells. q, v (B, H, W, C), the map a multiple of the window; all of one type, float32 or float64.
Tensor spatial_correlation(const Tensor& q, const Tensor& v, const Tensor& weight,
                           const Tensor& weight_bias, const Tensor& bias_table,
                           int64_t window_height, int64_t window_width, int64_t base_height,
                           int64_t base_width, int64_t num_heads);

// (dq, dv, dweight, dweight_bias, dbias_table) of spatial_correlation.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> spatial_correlation_backward(
    const Tensor& grad, const Tensor& q, const Tensor& v, const Tensor& weight,
    const Tensor& weight_bias, const Tensor& bias_table, int64_t window_height,
    int64_t window_width, int64_t base_height, int64_t base_width, int64_t num_heads);

}  // namespace c2d
