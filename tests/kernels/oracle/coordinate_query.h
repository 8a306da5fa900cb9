// Coordinate query: what is computed there.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "arrays.h"

namespace oracle {

inline double gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }

inline Vector gelu(Vector values) {
    for (double& value : values) value = gelu(value);
    return values;
}

struct Linear {
    Array weight, bias;  // (out, in), (out,)

    Vector operator()(const Vector& in) const {
        require(weight.ndim() == 2 && weight.shape(1) == static_cast<int64_t>(in.size()),
                "a Linear's weight does not fit its input");
        Vector out(weight.shape(0));
        for (size_t o = 0; o < out.size(); ++o) {
            out[o] = bias.at(o);
            for (size_t i = 0; i < in.size(); ++i) out[o] += weight.at(o, i) * in[i];
        }
        return out;
    }
};

struct LayerNorm {
    Array weight, bias;  // (n,), (n,)

    Vector operator()(Vector values) const {
        require(weight.size() == static_cast<int64_t>(values.size()), "a LayerNorm does not fit");
        const double n = static_cast<double>(values.size());
        const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
        double variance = 0;
        for (double value : values) variance += (value - mean) * (value - mean) / n;
        for (size_t i = 0; i < values.size(); ++i)
            values[i] = (values[i] - mean) / std::sqrt(variance + 1e-5) * weight.at(i) + bias.at(i);
        return values;
    }
};

struct Mlp {
    LayerNorm norm;
    Linear fc1, fc2;

    Vector operator()(const Vector& in) const { return fc2(gelu(fc1(norm(in)))); }
};

struct Attention {
    Linear qkv;
    LayerNorm k_norm, v_norm;
    Linear proj1, proj2;
};

// The weights in the order of coordinate_query_weight_shapes: every MLP, then every attention.
inline std::pair<std::vector<Mlp>, std::vector<Attention>> read_weights(
    const std::vector<Array>& weights, int64_t levels, int64_t attentions) {
    require(static_cast<int64_t>(weights.size()) == 6 * levels + 10 * attentions,
            "weights are 6 an MLP and 10 an attention");
    const Array* w = weights.data();
    std::vector<Mlp> mlps;
    for (int64_t l = 0; l < levels; ++l, w += 6)
        mlps.push_back({{w[0], w[1]}, {w[2], w[3]}, {w[4], w[5]}});
    std::vector<Attention> layers;
    for (int64_t i = 0; i < attentions; ++i, w += 10)
        layers.push_back({{w[0], w[1]}, {w[2], w[3]}, {w[4], w[5]}, {w[6], w[7]}, {w[8], w[9]}});
    return {std::move(mlps), std::move(layers)};
}

// features (B, H, W, C), image (B, H, W, 3), the queries' cells and offsets (B, Q, 2) and digits
// (B, Q, levels, 2), last axis (y, x), rel_cell (B, 2). Returns the values (B, Q, 3) and, for every
// attention, the sum over the queries of k^T v (attentions, B, heads, d, d). With `averages`, of
// the same shape, those are applied in place of the queries' own sum / Q.
inline std::pair<Array, Array> coordinate_query(const Array& features, const Array& image,
                                                const std::vector<Array>& weights, int64_t levels,
                                                int64_t heads, int64_t attentions,
                                                const Integers& cells, const Array& offsets,
                                                const Integers& digits, const Array& rel_cell,
                                                const std::optional<Array>& averages) {
    require(features.ndim() == 4 && image.ndim() == 4 && image.shape(3) == 3,
            "features are (B, H, W, C), image (B, H, W, 3)");
    const int64_t height = features.shape(1), width = features.shape(2),
                  channels = features.shape(3);
    const int64_t batch = cells.shape(0), queries = cells.shape(1), head_dim = channels / heads;
    const auto [mlps, layers] = read_weights(weights, levels, attentions);
    Array result = zeros({batch, queries, 3});
    Array sums = zeros({attentions, batch, heads, head_dim, head_dim});
    for (int64_t b = 0; b < batch; ++b) {
        std::vector<Vector> states(queries), rgb(queries, Vector(3, 0.0));
        for (int64_t n = 0; n < queries; ++n) {
            // The four neighbours, each by its bilinear weight, concatenated row by row.
            for (int64_t corner = 0; corner < 4; ++corner) {
                const int64_t dy = corner / 2, dx = corner % 2;
                const double ty = offsets.at(b, n, 0), tx = offsets.at(b, n, 1);
                const double weight = (dy ? ty : 1 - ty) * (dx ? tx : 1 - tx);
                const int64_t y = std::clamp<int64_t>(cells.at(b, n, 0) + dy, 0, height - 1);
                const int64_t x = std::clamp<int64_t>(cells.at(b, n, 1) + dx, 0, width - 1);
                for (int64_t c = 0; c < channels; ++c)
                    states[n].push_back(weight * features.at(b, y, x, c));
                for (int64_t c = 0; c < 3; ++c) rgb[n][c] += weight * image.at(b, y, x, c);
            }
            states[n].push_back(rel_cell.at(b, 0));
            states[n].push_back(rel_cell.at(b, 1));
        }
        for (int64_t l = 0; l < levels; ++l) {
            for (int64_t n = 0; n < queries; ++n) {
                states[n].push_back(static_cast<double>(digits.at(b, n, l, 0)));
                states[n].push_back(static_cast<double>(digits.at(b, n, l, 1)));
                states[n] = mlps[l](states[n]);
            }
            if (l >= attentions) continue;
            const Attention& layer = layers[l];
            std::vector<Vector> projected(queries);
            for (int64_t n = 0; n < queries; ++n) projected[n] = layer.qkv(states[n]);
            for (int64_t n = 0; n < queries; ++n)
                for (int64_t h = 0; h < heads; ++h) {
                    const auto k_first = projected[n].begin() + channels + h * head_dim;
                    const auto v_first = projected[n].begin() + 2 * channels + h * head_dim;
                    const Vector k = layer.k_norm(Vector(k_first, k_first + head_dim));
                    const Vector v = layer.v_norm(Vector(v_first, v_first + head_dim));
                    for (int64_t i = 0; i < head_dim; ++i)
                        for (int64_t j = 0; j < head_dim; ++j)
                            sums.mutable_at(l, b, h, i, j) += k[i] * v[j];
                }
            for (int64_t n = 0; n < queries; ++n) {
                Vector inner = states[n];  // becomes o + x with o = q M
                for (int64_t h = 0; h < heads; ++h)
                    for (int64_t i = 0; i < head_dim; ++i)
                        for (int64_t j = 0; j < head_dim; ++j)
                            inner[h * head_dim + j] +=
                                projected[n][h * head_dim + i] *
                                (averages ? averages->at(l, b, h, i, j)
                                          : sums.at(l, b, h, i, j) / static_cast<double>(queries));
                const Vector outer = layer.proj2(gelu(layer.proj1(inner)));
                for (int64_t c = 0; c < channels; ++c) states[n][c] += outer[c];
            }
        }
        for (int64_t n = 0; n < queries; ++n)
            for (int64_t c = 0; c < 3; ++c) result.mutable_at(b, n, c) = states[n][c] + rgb[n][c];
    }
    return {result, sums};
}

}  // namespace oracle
