// What the host sides of a res-post-norm layer share: its parts, and where tokens lie that follow
// each other in maps, row by row.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "../common/checks.h"
#include "res_post_norm.h"

namespace c2d {

inline void check_parts(const std::vector<Tensor>& parts, const Tensor& x) {
    STD_TORCH_CHECK(!parts.empty() && int64_t(parts.size()) <= kMostParts, "parts must be 1 to ",
                    kMostParts, ".");
    for (const Tensor& part : parts) {
        check_floating_cpu(part, "a part", 4, true);
        STD_TORCH_CHECK(part.scalar_type() == x.scalar_type() && part.size(0) == x.size(0) &&
                            part.size(1) == x.size(1) && part.size(2) == x.size(2),
                        "a part must have the type of x and its pixels.");
    }
}

template <class T>
PostNormSizes<T> post_norm_sizes(const Tensor& x, const std::vector<Tensor>& parts, int64_t hidden,
                                 double eps) {
    PostNormSizes<T> sizes = {x.size(3), hidden, int64_t(parts.size()), {}, 0, T(eps)};
    for (int64_t p = 0; p < sizes.parts; ++p) {
        sizes.part_channels[p] = parts[p].size(3);
        sizes.inputs += parts[p].size(3);
    }
    return sizes;
}

// places[m * kTokens + n] = where token start + n of map m begins, for `count` tokens.
inline void find_places(const std::vector<const Tensor*>& maps, int64_t start, int64_t count,
                        int64_t* places) {
    const int64_t height = maps[0]->size(1), width = maps[0]->size(2);
    int64_t column = start % width, row = start / width % height;
    int64_t image = start / width / height;
    for (int64_t n = 0; n < count; ++n) {
        for (size_t m = 0; m < maps.size(); ++m) {
            places[m * kTokens + n] =
                image * maps[m]->stride(0) + row * maps[m]->stride(1) + column * maps[m]->stride(2);
        }
        if (++column == width) {
            column = 0;
            row = row + 1 == height ? 0 : row + 1;
            image += row == 0;
        }
    }
}

}  // namespace c2d
