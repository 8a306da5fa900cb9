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

template <class T, class Weight, class Map>
void run(const PostNormKernels<T, Weight, Map>& kernel, double eps, const Tensor& x,
         const std::vector<Tensor>& parts, const Tensor& proj, const Tensor& norm1,
         const Tensor& first, const Tensor& second, const Tensor& norm2, const Tensor& out) {
    PostNormSizes<T> sizes = {x.size(3), first.size(0), int64_t(parts.size()), {}, 0, T(eps)};
    for (int64_t p = 0; p < sizes.parts; ++p) {
        sizes.part_channels[p] = parts[p].size(3);
        sizes.inputs += parts[p].size(3);
    }
    const PostNormWeights<T, Weight> weights = {numbers<Weight>(proj), numbers<Weight>(first),
                                                numbers<Weight>(second), numbers<T>(norm1),
                                                numbers<T>(norm2)};
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
            PostNormTokens<Map> tokens = {};
            tokens.x = numbers<Map>(x);
            tokens.out = static_cast<Map*>(out.mutable_data_ptr());
            tokens.x_token = places.data();
            tokens.out_token = places.data() + kTokens;
            for (int64_t p = 0; p < sizes.parts; ++p) {
                tokens.parts[p] = numbers<Map>(parts[p]);
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
    check_floating_cpu(x, "x", 4, true);
    check_floating_cpu(first, "first", 2, true);
    STD_TORCH_CHECK(!parts.empty() && int64_t(parts.size()) <= kMostParts, "parts must be 1 to ",
                    kMostParts, ".");
    const int64_t C = x.size(3), hidden = first.size(0);
    int64_t inputs = 0;
    for (Tensor& part : parts) {
        check_floating_cpu(part, "a part", 4, true);
        STD_TORCH_CHECK(part.scalar_type() == x.scalar_type() && part.size(0) == x.size(0) &&
                            part.size(1) == x.size(1) && part.size(2) == x.size(2),
                        "a part must have the type of x and its pixels.");
        inputs += part.size(3);
        part = dense_channels(part);
    }
    const bool bfloat16 = x.scalar_type() == ScalarType::BFloat16;
    const ScalarType wide = bfloat16 ? ScalarType::Float : x.scalar_type();
    check_weights(proj, "proj", x, C, inputs);
    check_weights(first, "first", x, hidden, C);
    check_weights(second, "second", x, C, hidden);
    check_matrix(norm1, "norm1", wide, 2, C);
    check_matrix(norm2, "norm2", wide, 2, C);
    const Tensor out = torch::stable::new_empty(x, x.sizes());
    if (out.numel() == 0) {
        return out;
    }
    const auto run_by = [&](const auto& kernel) {
        run(kernel, eps, dense_channels(x), parts, proj, norm1, first, second, norm2, out);
    };
    if (bfloat16) {
        run_by(check_bfloat16(C2D_FOR_BF16(post_norm_bfloat16)));
    } else if (x.scalar_type() == ScalarType::Double) {
        run_by(C2D_FOR_ISA(post_norm_float64));
    } else {
        run_by(C2D_FOR_ISA(post_norm_float32));
    }
    return out;
}

}  // namespace c2d
