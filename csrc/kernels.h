// The functions behind torch.ops.c2d_native, as registration.cpp registers them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

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

// Where free coordinates (B, queries, 2) fall on the map of features (positions.py), for `levels`
// digits: low, high, t and digits of y, then of x, in the type of features.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
coordinate_query_positions(const Tensor& coords, const Tensor& features, int64_t levels);

// The gradient of the image, (B, height, width, 3), from that of bilinear samples of it at such
// positions, (B, queries, 3).
Tensor coordinate_query_image_backward(const Tensor& grad, const Tensor& y_low,
                                       const Tensor& y_high, const Tensor& y_t, const Tensor& x_low,
                                       const Tensor& x_high, const Tensor& x_t, int64_t height,
                                       int64_t width);

// The decoder in segments, cut behind each attention's k^T v, over free positions; `state` is the
// end of the segment before, (B, queries, C), for the first one anything. Forwards it leaves its
// own end in `out` and returns the sums of k^T v; the last one leaves the RGB, a bilinear sample of
// the image added. Backwards, from the gradients of these: those of features or the state, of
// `weights` as far as this segment uses them, and of its fold, (B, C^2 + C).
Tensor coordinate_query_segment(const Tensor& features, const Tensor& weights, const Tensor& folds,
                                const Tensor& y_low, const Tensor& y_high, const Tensor& y_t,
                                const Tensor& y_digits, const Tensor& x_low, const Tensor& x_high,
                                const Tensor& x_t, const Tensor& x_digits, const Tensor& rel_cell,
                                int64_t levels, int64_t heads, int64_t attentions, int64_t segment,
                                const Tensor& state, const Tensor& image, Tensor out);
std::tuple<Tensor, Tensor, Tensor> coordinate_query_segment_backward(
    const Tensor& grad, const Tensor& moment_grad, const Tensor& features, const Tensor& weights,
    const Tensor& folds, const Tensor& y_low, const Tensor& y_high, const Tensor& y_t,
    const Tensor& y_digits, const Tensor& x_low, const Tensor& x_high, const Tensor& x_t,
    const Tensor& x_digits, const Tensor& rel_cell, int64_t levels, int64_t heads,
    int64_t attentions, int64_t segment, const Tensor& state);

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

// x + attention(LN(x)), then, with first and second, that + MLP(LN(that)), in windows as above; x
// (B, H, W, C). The rows of qkv (3C, C + 1), proj (C, C + 1), first (hidden, C + 1) and second (C,
// hidden + 1) are output channels, the last column is the bias; norms and the scale of q are folded
// into them. With qkv (3C / 2, C + 1) keys are stacked as SRFormer's are. For x in bfloat16, see
// window_layer/window_layer.h.
Tensor window_layer(const Tensor& x, const Tensor& qkv, const Tensor& proj,
                    std::optional<Tensor> first, std::optional<Tensor> second,
                    const Tensor& bias_table, int64_t window_size, int64_t num_heads, int64_t shift,
                    double eps);

// y = x + LN(proj([parts])), then y + LN(fc2(GELU(fc1(y)))); x (B, H, W, C), parts (B, H, W, any).
// The weights are proj (C, inputs + 1), norm1 (2, C), first (hidden, C + 1), second (C, hidden + 1)
// and norm2 (2, C): rows are output channels, the last column is the bias. With the first two alone
// the result is y.
Tensor res_post_norm(const Tensor& x, std::vector<Tensor> parts, std::vector<Tensor> weights,
                     double eps);

// dx, the gradients of the parts, and those of the weights; proj's and second's are turned round.
std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> res_post_norm_backward(
    const Tensor& grad, const Tensor& x, std::vector<Tensor> parts, std::vector<Tensor> weights,
    double eps);

// y = x + fc2(h + GELU(depthwise 5x5 of h)), h = GELU(fc1(x)), with a norm before fc1 (folded into
// it) or after fc2; x (B, H, W, C). The rows of first (hidden, C + 1), conv (hidden, 26) and second
// (C, hidden + 1) are output channels, the last column is the bias; norm is (2, C).
Tensor conv_ffn(const Tensor& x, const Tensor& first, const Tensor& conv, const Tensor& second,
                const Tensor& norm, bool norm_first, double eps);

// (dx, dfirst, dconv, dsecond, dnorm) of conv_ffn; dsecond is turned round, (hidden + 1, C).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_ffn_backward(
    const Tensor& grad, const Tensor& x, const Tensor& first, const Tensor& conv,
    const Tensor& second, const Tensor& norm, bool norm_first, double eps);

// expand(f(conv3x3(f(local(x))))) * linear(x), f = LeakyReLU(0.2); x (B, H, W, C). The rows of
// local (hidden, C + 1), linear (C, C + 1) and expand (C, hidden + 1) are output channels, the last
// column is the bias; conv (9 hidden, hidden) tap by tap, conv_bias (1, hidden). by_row (hidden +
// C, H) and by_column (hidden + C, W) are added to local's and, below, linear's channels.
Tensor dual_features(const Tensor& x, const Tensor& local, const Tensor& linear, const Tensor& conv,
                     const Tensor& conv_bias, const Tensor& expand, std::optional<Tensor> by_row,
                     std::optional<Tensor> by_column);

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
