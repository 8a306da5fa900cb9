// Window attention: softmax(scale q k^T + bias + mask) v in each window of the rolled map
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "arrays.h"

namespace oracle {

inline Vector softmax(const Vector& scores) {
    const double largest = *std::max_element(scores.begin(), scores.end());
    Vector weights(scores.size());
    double total = 0;
    for (size_t i = 0; i < scores.size(); ++i) total += weights[i] = std::exp(scores[i] - largest);
    for (double& weight : weights) weight /= total;
    return weights;
}

// The map moved up and left by `shift`, around the edges: torch.roll(map, (-shift, -shift)).
inline Array roll(const Array& map, int64_t shift) {
    const int64_t height = map.shape(1), width = map.shape(2);
    Array rolled = zeros({map.shape(0), height, width, map.shape(3)});
    auto from = map.unchecked<4>();
    auto to = rolled.mutable_unchecked<4>();
    for (int64_t b = 0; b < map.shape(0); ++b)
        for (int64_t y = 0; y < height; ++y)
            for (int64_t x = 0; x < width; ++x)
                for (int64_t c = 0; c < map.shape(3); ++c)
                    to(b, y, x, c) = from(b, ((y + shift) % height + height) % height,
                                          ((x + shift) % width + width) % width, c);
    return rolled;
}

// Region of every position of the rolled map: three bands an axis, cut at n - window and n - shift.
inline std::vector<int> regions(int64_t height, int64_t width, int64_t window, int64_t shift) {
    const auto band = [&](int64_t p, int64_t n) {
        return p < n - window ? 0 : p < n - shift ? 1 : 2;
    };
    std::vector<int> ids(height * width);
    for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x)
            ids[y * width + x] = 3 * band(y, height) + band(x, width);
    return ids;
}

constexpr double masked = -100;  // Swin adds this to the score; it does not remove the key

inline Array window_attention(const Array& qkv, const Array& bias_table, int64_t window,
                              int64_t heads, int64_t shift, std::optional<double> scale) {
    require(qkv.ndim() == 4 && qkv.shape(3) % (3 * heads) == 0, "qkv is (B, H, W, 3 heads d)");
    require(qkv.shape(1) % window == 0 && qkv.shape(2) % window == 0, "whole windows only");
    require(bias_table.ndim() == 2 && bias_table.shape(0) == (2 * window - 1) * (2 * window - 1) &&
                bias_table.shape(1) == heads,
            "bias_table is ((2w-1)^2, heads)");
    const int64_t height = qkv.shape(1), width = qkv.shape(2), channels = qkv.shape(3) / 3;
    const int64_t head_dim = channels / heads, tokens = window * window;
    const double factor = scale.value_or(1 / std::sqrt(static_cast<double>(head_dim)));
    const Array rolled = roll(qkv, shift);
    const std::vector<int> region = regions(height, width, window, shift);
    const auto in = rolled.unchecked<4>();
    const auto table = bias_table.unchecked<2>();
    Array result = zeros({qkv.shape(0), height, width, channels});
    auto out = result.mutable_unchecked<4>();
    for (int64_t b = 0; b < qkv.shape(0); ++b)
        for (int64_t top = 0; top < height; top += window)
            for (int64_t left = 0; left < width; left += window)
                for (int64_t h = 0; h < heads; ++h)
                    for (int64_t query = 0; query < tokens; ++query) {
                        const int64_t y = query / window, x = query % window;
                        Vector scores(tokens);
                        for (int64_t key = 0; key < tokens; ++key) {
                            const int64_t Y = key / window, X = key % window;
                            double product = 0;
                            for (int64_t c = h * head_dim; c < (h + 1) * head_dim; ++c)
                                product += in(b, top + y, left + x, c) *
                                           in(b, top + Y, left + X, channels + c);
                            scores[key] = factor * product;
                            scores[key] += table(
                                (y - Y + window - 1) * (2 * window - 1) + x - X + window - 1, h);
                            if (shift > 0 && region[(top + y) * width + left + x] !=
                                                 region[(top + Y) * width + left + X])
                                scores[key] += masked;
                        }
                        const Vector weights = softmax(scores);
                        for (int64_t key = 0; key < tokens; ++key)
                            for (int64_t c = h * head_dim; c < (h + 1) * head_dim; ++c)
                                out(b, top + y, left + x, c) +=
                                    weights[key] * in(b, top + key / window, left + key % window,
                                                      2 * channels + c);
                    }
    return roll(result, -shift);
}

// SRFormer's cells: a map (B, H, W, c) becomes (B, H/2, W/2, 4c), token (2i+a, 2j+b) filling the
// channels (2a+b)c .. (2a+b+1)c - 1 of cell (i, j). Windows are even, so cells never straddle two.
inline Array stack_cells(const Array& map, int64_t first_channel, int64_t channels) {
    Array result = zeros({map.shape(0), map.shape(1) / 2, map.shape(2) / 2, 4 * channels});
    const auto from = map.unchecked<4>();
    auto to = result.mutable_unchecked<4>();
    for (int64_t b = 0; b < map.shape(0); ++b)
        for (int64_t y = 0; y < map.shape(1); ++y)
            for (int64_t x = 0; x < map.shape(2); ++x)
                for (int64_t c = 0; c < channels; ++c)
                    to(b, y / 2, x / 2, (2 * (y % 2) + x % 2) * channels + c) =
                        from(b, y, x, first_channel + c);
    return result;
}

inline Array permuted_window_attention(const Array& q, const Array& kv, const Array& bias_table,
                                       int64_t window, int64_t heads, int64_t shift,
                                       std::optional<double> scale) {
    require(q.ndim() == 4 && kv.ndim() == 4 && q.shape(3) % heads == 0, "q is (B, H, W, heads d)");
    require(kv.shape(3) * 2 == q.shape(3) && q.shape(3) % 4 == 0, "kv has half the channels of q");
    require(
        q.shape(1) % window == 0 && q.shape(2) % window == 0 && window % 2 == 0 && shift % 2 == 0,
        "whole windows, and an even window and shift");
    require(bias_table.ndim() == 2 && bias_table.shape(0) == (window - 1) * (window - 1) &&
                bias_table.shape(1) == heads,
            "bias_table is ((2(w/2)-1)^2, heads)");
    const int64_t height = q.shape(1), width = q.shape(2), channels = q.shape(3);
    const int64_t head_dim = channels / heads, half = window / 2;
    const double factor = scale.value_or(1 / std::sqrt(static_cast<double>(head_dim)));
    const Array rolled_q = roll(q, shift), rolled_kv = roll(kv, shift);
    const Array keys = stack_cells(rolled_kv, 0, channels / 4);
    const Array values = stack_cells(rolled_kv, channels / 4, channels / 4);
    const std::vector<int> region = regions(height, width, window, shift);
    const auto qs = rolled_q.unchecked<4>();
    const auto ks = keys.unchecked<4>(), vs = values.unchecked<4>();
    const auto table = bias_table.unchecked<2>();
    Array result = zeros({q.shape(0), height, width, channels});
    auto out = result.mutable_unchecked<4>();
    for (int64_t b = 0; b < q.shape(0); ++b)
        for (int64_t y = 0; y < height; ++y)
            for (int64_t x = 0; x < width; ++x)
                for (int64_t h = 0; h < heads; ++h) {
                    const int64_t top = y / window * half, left = x / window * half;  // in cells
                    Vector scores(half * half);
                    for (int64_t key = 0; key < half * half; ++key) {
                        const int64_t Y = key / half, X = key % half;
                        double product = 0;
                        for (int64_t c = h * head_dim; c < (h + 1) * head_dim; ++c)
                            product += qs(b, y, x, c) * ks(b, top + Y, left + X, c);
                        const int64_t dy = y % window / 2 - Y, dx = x % window / 2 - X;
                        scores[key] = factor * product;
                        scores[key] += table((dy + half - 1) * (2 * half - 1) + dx + half - 1, h);
                        if (shift > 0 &&
                            region[y * width + x] != region[2 * (top + Y) * width + 2 * (left + X)])
                            scores[key] += masked;
                    }
                    const Vector weights = softmax(scores);
                    for (int64_t key = 0; key < half * half; ++key)
                        for (int64_t c = h * head_dim; c < (h + 1) * head_dim; ++c)
                            out(b, y, x, c) +=
                                weights[key] * vs(b, top + key / half, left + key % half, c);
                }
    return roll(result, -shift);
}

}  // namespace oracle
