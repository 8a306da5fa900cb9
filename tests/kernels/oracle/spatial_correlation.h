// Spatial correlation (HiT-SR's S-SC): out = (q p^T / head_dim + P) p, with the N x b^2 map formed
#pragma once

#include <algorithm>
#include <cstdint>

#include "arrays.h"

namespace oracle {

inline Array spatial_correlation(const Array& q, const Array& v, const Array& weight,
                                 const Array& weight_bias, const Array& bias_table,
                                 int64_t window_height, int64_t window_width, int64_t base_window,
                                 int64_t heads) {
    require(q.ndim() == 4 && v.ndim() == 4 && q.shape(3) % heads == 0, "q is (B, H, W, heads d)");
    const int64_t height = q.shape(1), width = q.shape(2), channels = q.shape(3);
    const int64_t head_dim = channels / heads;
    const int64_t cells_y = std::min(window_height, base_window), ratio_y = window_height / cells_y;
    const int64_t cells_x = std::min(window_width, base_window), ratio_x = window_width / cells_x;
    const int64_t cell_tokens = ratio_y * ratio_x, cells = cells_y * cells_x;
    require(height % window_height == 0 && width % window_width == 0, "whole windows only");
    require(ratio_y * cells_y == window_height && ratio_x * cells_x == window_width, "whole cells");
    require(weight.size() == cell_tokens && weight_bias.size() == 1,
            "weight is (1, R*R), bias (1,)");
    require(bias_table.ndim() == 2 && bias_table.shape(1) == heads &&
                bias_table.shape(0) == (2 * window_height - 1) * (2 * window_width - 1),
            "bias_table is ((2wh-1)(2ww-1), heads)");
    const auto qs = q.unchecked<4>(), vs = v.unchecked<4>();
    const auto table = bias_table.unchecked<2>();
    const double* w = weight.data();
    Array result = zeros({q.shape(0), height, width, channels});
    auto out = result.mutable_unchecked<4>();
    for (int64_t b = 0; b < q.shape(0); ++b)
        for (int64_t top = 0; top < height; top += window_height)
            for (int64_t left = 0; left < width; left += window_width) {
                // p: the Linear over a cell's tokens in row-major order, for each channel alike.
                Vector p(cells * channels);
                for (int64_t cell = 0; cell < cells; ++cell)
                    for (int64_t c = 0; c < channels; ++c) {
                        double sum = weight_bias.at(0);
                        for (int64_t token = 0; token < cell_tokens; ++token)
                            sum +=
                                w[token] * vs(b, top + cell / cells_x * ratio_y + token / ratio_x,
                                              left + cell % cells_x * ratio_x + token % ratio_x, c);
                        p[cell * channels + c] = sum;
                    }
                for (int64_t y = 0; y < window_height; ++y)
                    for (int64_t x = 0; x < window_width; ++x)
                        for (int64_t h = 0; h < heads; ++h)
                            for (int64_t cell = 0; cell < cells; ++cell) {
                                double score = 0;
                                for (int64_t c = h * head_dim; c < (h + 1) * head_dim; ++c)
                                    score += qs(b, top + y, left + x, c) * p[cell * channels + c];
                                score /= static_cast<double>(head_dim);
                                // P: the relative position bias of the query and each token of the
                                // key cell, averaged.
                                double bias = 0;
                                for (int64_t token = 0; token < cell_tokens; ++token) {
                                    const int64_t Y = cell / cells_x * ratio_y + token / ratio_x;
                                    const int64_t X = cell % cells_x * ratio_x + token % ratio_x;
                                    bias +=
                                        table((y - Y + window_height - 1) * (2 * window_width - 1) +
                                                  x - X + window_width - 1,
                                              h);
                                }
                                score += bias / static_cast<double>(cell_tokens);
                                for (int64_t c = h * head_dim; c < (h + 1) * head_dim; ++c)
                                    out(b, top + y, left + x, c) += score * p[cell * channels + c];
                            }
            }
    return result;
}

}  // namespace oracle
