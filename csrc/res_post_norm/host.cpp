// The part of a res-post-norm layer that sees one token at a time, on the CPU, host side: tokens,
// threads and scratch memory. The arithmetic and its costs are in layer.h.
//
// A task is some pixels that follow each other in a map, row by row. Each number is computed in one
// task, the same way for any number of threads.
#include "res_post_norm.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "../common/aligned.h"
#include "../common/checks.h"
#include "../common/isa.h"
#include "../common/places.h"
#include "arguments.h"

namespace c2d {
namespace {

constexpr int64_t kSmallTask = int64_t{1} << 20;  // multiply-adds not worth another thread

template <class T, class Weight, class Map>
void run(const PostNormKernels<T, Weight, Map>& kernel, double eps, const Tensor& x,
         const std::vector<Tensor>& parts, const std::vector<Tensor>& tensors, const Tensor& out) {
    const PostNormSizes<T> sizes = post_norm_sizes<T>(x, parts, hidden_channels(tensors), eps);
    const PostNormWeights<T, Weight> weights = post_norm_weights<T, Weight>(tensors);
    const int64_t pixels = x.size(0) * x.size(1) * x.size(2);
    const int64_t work = kTokens * sizes.channels * (sizes.inputs + 2 * sizes.hidden);
    const int64_t tasks = (pixels + kTokens - 1) / kTokens;
    const int64_t grain = std::max<int64_t>(1, kSmallTask / work);
    torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
        Aligned<T> scratch(kernel.scratch(sizes));
        std::vector<const Tensor*> maps = {&x, &out};
        for (const Tensor& part : parts) {
            maps.push_back(&part);
        }
        Places places(maps);
        PostNormTokens<Map> tokens = {};
        tokens.x = numbers<Map>(x);
        tokens.out = static_cast<Map*>(out.mutable_data_ptr());
        tokens.x_token = places.of(0);
        tokens.out_token = places.of(1);
        for (int64_t p = 0; p < sizes.parts; ++p) {
            tokens.parts[p] = numbers<Map>(parts[p]);
            tokens.part_token[p] = places.of(2 + p);
        }
        for (int64_t task = begin; task < end; ++task) {
            const int64_t start = task * kTokens;
            tokens.count = std::min(kTokens, pixels - start);
            places.find(start, tokens.count);
            kernel.run(sizes, weights, tokens, scratch.data());
        }
    });
}

// y = x + LN(proj([parts])), then y + LN(fc2(GELU(fc1(y)))); x (B, H, W, C), parts (B, H, W, any).
// The weights are proj (C, inputs + 1), norm1 (2, C), first (hidden, C + 1), second (C, hidden + 1)
// and norm2 (2, C): rows are output channels, the last column is the bias. With the first two alone
// the result is y.
Tensor res_post_norm(const Tensor& x, std::vector<Tensor> parts, std::vector<Tensor> weights,
                     double eps) {
    check_floating_cpu(x, "x", 4, true);
    check_parts(parts, x);
    const int64_t C = x.size(3), hidden = hidden_channels(weights);
    int64_t inputs = 0;
    for (Tensor& part : parts) {
        inputs += part.size(3);
        part = dense_channels(part);
    }
    const bool bfloat16 = x.scalar_type() == ScalarType::BFloat16;
    const ScalarType wide = bfloat16 ? ScalarType::Float : x.scalar_type();
    check_weights(weights[0], "proj", x, C, inputs);
    check_matrix(weights[1], "norm1", wide, 2, C);
    if (weights.size() > 2) {
        check_weights(weights[2], "first", x, hidden, C);
        check_weights(weights[3], "second", x, C, hidden);
        check_matrix(weights[4], "norm2", wide, 2, C);
    }
    const Tensor out = torch::stable::new_empty(x, x.sizes());
    if (out.numel() == 0) {
        return out;
    }
    const auto run_by = [&](const auto& kernel) {
        run(kernel, eps, dense_channels(x), parts, weights, out);
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

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def("res_post_norm(Tensor x, Tensor[] parts, Tensor[] weights, float eps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("res_post_norm", TORCH_BOX(&c2d::res_post_norm));
}
