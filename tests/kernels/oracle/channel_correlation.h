// Channel correlation (HiT-SR's C-SC): out = v (q^T v / n)^T over the n tokens a window really has
#pragma once

#include <algorithm>
#include <cstdint>

#include "arrays.h"

namespace oracle {

inline Array channel_correlation(const Array& q, const Array& v, int64_t window_height,
                                 int64_t window_width) {
    require(q.ndim() == 4 && v.ndim() == 4 && q.shape(3) == v.shape(3), "q and v are (B, H, W, C)");
    const int64_t height = q.shape(1), width = q.shape(2), channels = q.shape(3);
    const auto qs = q.unchecked<4>(), vs = v.unchecked<4>();
    Array result = zeros({q.shape(0), height, width, channels});
    auto out = result.mutable_unchecked<4>();
    for (int64_t b = 0; b < q.shape(0); ++b)
        for (int64_t top = 0; top < height; top += window_height)
            for (int64_t left = 0; left < width; left += window_width) {
                const int64_t bottom = std::min(top + window_height, height);
                const int64_t right = std::min(left + window_width, width);
                const double tokens = static_cast<double>((bottom - top) * (right - left));
                Vector map(channels * channels, 0.0);
                for (int64_t i = 0; i < channels; ++i)
                    for (int64_t j = 0; j < channels; ++j) {
                        for (int64_t y = top; y < bottom; ++y)
                            for (int64_t x = left; x < right; ++x)
                                map[i * channels + j] += qs(b, y, x, i) * vs(b, y, x, j);
                        map[i * channels + j] /= tokens;
                    }
                for (int64_t y = top; y < bottom; ++y)
                    for (int64_t x = left; x < right; ++x)
                        for (int64_t i = 0; i < channels; ++i)
                            for (int64_t j = 0; j < channels; ++j)
                                out(b, y, x, i) += map[i * channels + j] * vs(b, y, x, j);
            }
    return result;
}

}  // namespace oracle
