// The part of a res-post-norm layer that sees one token at a time, on the CPU, host side: tokens,
// threads and scratch memory. The arithmetic and its costs are in cpu.cpp.
//
// A task is some pixels that follow each other in a map, row by row. Each number is computed in one
// task, the same way for any number of threads.
#include "res_post_norm.h"

#include <algorithm>
#include <vector>

#include "../common/aligned.h"
#include "../common/checks.h"
#include "../common/isa.h"
#include "../kernels.h"

namespace c2d {
namespace {

constexpr int64_t kSmallTask = int64_t{1} << 20;  // multiply-adds not worth another thread

template <class T>
const PostNormKernels<T>& kernels();
template <>
const PostNormKernels<float>& kernels<float>() {
    return C2D_FOR_ISA(post_norm_float32);
}
template <>
const PostNormKernels<double>& kernels<double>() {
    return C2D_FOR_ISA(post_norm_float64);
}

template <class T>
void run(double eps, const Tensor& x, const std::vector<Tensor>& parts, const Tensor& proj,
         const Tensor& norm1, const Tensor& first, const Tensor& second, const Tensor& norm2,
         const Tensor& out) {
    const auto& kernel = kernels<T>();
    PostNormSizes<T> sizes = {x.size(3), first.size(0), int64_t(parts.size()), {}, 0, T(eps)};
    for (int64_t p = 0; p < sizes.parts; ++p) {
        sizes.part_channels[p] = parts[p].size(3);
        sizes.inputs += parts[p].size(3);
    }
    const PostNormWeights<T> weights = {proj.const_data_ptr<T>(), norm1.const_data_ptr<T>(),
                                        first.const_data_ptr<T>(), second.const_data_ptr<T>(),
                                        norm2.const_data_ptr<T>()};
    const int64_t height = x.size(1), width = x.size(2), pixels = x.size(0) * height * width;
    const int64_t work = kTokens * sizes.channels * (sizes.inputs + 2 * sizes.hidden);
    torch::stable::parallel_for(
        0, (pixels + kTokens - 1) / kTokens, std::max<int64_t>(1, kSmallTask / work),
        [&](int64_t begin, int64_t end) {
            Aligned<T> scratch(kernel.scratch(sizes));
            std::vector<const Tensor*> maps = {&x, &out};
            for (const Tensor& part : parts) {
                maps.push_back(&part);
            }
            std::vector<int64_t> places(maps.size() * kTokens);
            PostNormTokens<T> tokens = {};
            tokens.x = x.const_data_ptr<T>();
            tokens.out = out.mutable_data_ptr<T>();
            tokens.x_token = places.data();
            tokens.out_token = places.data() + kTokens;
            for (int64_t p = 0; p < sizes.parts; ++p) {
                tokens.parts[p] = parts[p].const_data_ptr<T>();
                tokens.part_token[p] = places.data() + (2 + p) * kTokens;
            }
            for (int64_t task = begin; task < end; ++task) {
                const int64_t start = task * kTokens;
                tokens.count = std::min(kTokens, pixels - start);
                int64_t column = start % width, row = start / width % height;
                int64_t image = start / width / height;
                for (int64_t n = 0; n < tokens.count; ++n) {
                    for (size_t m = 0; m < maps.size(); ++m) {
                        places[m * kTokens + n] = image * maps[m]->stride(0) +
                                                  row * maps[m]->stride(1) +
                                                  column * maps[m]->stride(2);
                    }
                    if (++column == width) {
                        column = 0;
                        row = row + 1 == height ? 0 : row + 1;
                        image += row == 0;
                    }
                }
                kernel.run(sizes, weights, tokens, scratch.data());
            }
        });
}

}  // namespace

Tensor res_post_norm(const Tensor& x, std::vector<Tensor> parts, const Tensor& proj,
                     const Tensor& norm1, const Tensor& first, const Tensor& second,
                     const Tensor& norm2, double eps) {
    check_floating_cpu(x, "x", 4);
    check_floating_cpu(first, "first", 2);
    STD_TORCH_CHECK(!parts.empty() && int64_t(parts.size()) <= kMostParts, "parts must be 1 to ",
                    kMostParts, ".");
    const int64_t C = x.size(3), hidden = first.size(0);
    int64_t inputs = 0;
    for (Tensor& part : parts) {
        check_floating_cpu(part, "a part", 4);
        STD_TORCH_CHECK(part.scalar_type() == x.scalar_type() && part.size(0) == x.size(0) &&
                            part.size(1) == x.size(1) && part.size(2) == x.size(2),
                        "a part must have the type of x and its pixels.");
        inputs += part.size(3);
        part = dense_channels(part);
    }
    check_matrix(proj, "proj", x, C, inputs + 1);
    check_matrix(norm1, "norm1", x, 2, C);
    check_matrix(first, "first", x, hidden, C + 1);
    check_matrix(second, "second", x, C, hidden + 1);
    check_matrix(norm2, "norm2", x, 2, C);
    const Tensor out = torch::stable::new_empty(x, x.sizes());
    if (out.numel() == 0) {
        return out;
    }
    if (x.scalar_type() == ScalarType::Double) {
        run<double>(eps, dense_channels(x), parts, proj, norm1, first, second, norm2, out);
    } else {
        run<float>(eps, dense_channels(x), parts, proj, norm1, first, second, norm2, out);
    }
    return out;
}

}  // namespace c2d
