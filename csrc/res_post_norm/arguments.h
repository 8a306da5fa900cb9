// What the host sides of a res-post-norm layer share: its parts, sizes and weights.
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

// Hidden channels of the MLP, if `weights` has one: it has proj, norm1 and, with an MLP, first,
// second and norm2.
inline int64_t hidden_channels(const std::vector<Tensor>& weights) {
    STD_TORCH_CHECK(weights.size() == 2 || weights.size() == 5,
                    "weights must be 2 tensors or, with an MLP, 5.");
    if (weights.size() == 2) {
        return 0;
    }
    check_floating_cpu(weights[2], "first", 2, true);
    STD_TORCH_CHECK(weights[2].size(0) > 0, "first must have at least one row.");
    return weights[2].size(0);
}

template <class T, class Weight = T>
PostNormWeights<T, Weight> post_norm_weights(const std::vector<Tensor>& weights) {
    PostNormWeights<T, Weight> kernel_weights = {};
    kernel_weights.proj = numbers<Weight>(weights[0]);
    kernel_weights.norm1 = numbers<T>(weights[1]);
    if (weights.size() == 5) {
        kernel_weights.first = numbers<Weight>(weights[2]);
        kernel_weights.second = numbers<Weight>(weights[3]);
        kernel_weights.norm2 = numbers<T>(weights[4]);
    }
    return kernel_weights;
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

}  // namespace c2d
