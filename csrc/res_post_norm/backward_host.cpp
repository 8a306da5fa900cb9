// The backward of the part of a res-post-norm layer that sees one token at a time, on the CPU, host
// side: tokens, threads, scratch memory and sums. The arithmetic and its costs are in
// backward_kernel.cpp.
//
// A task is a group of pixels that follow each other in a map, row by row, which adds up the
// weights' gradients for itself; groups are added in their order. Groups depend on the shapes
// alone, so that results are bitwise the same for any number of threads.
#include "backward.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../common/aligned.h"
#include "../common/checks.h"
#include "../common/gradient_sums.h"
#include "../common/isa.h"
#include "../common/places.h"
#include "arguments.h"

namespace c2d {
namespace {

template <class T>
const PostNormBackward<T>& kernels();
template <>
const PostNormBackward<float>& kernels<float>() {
    return C2D_FOR_ISA(post_norm_backward_float32);
}
template <>
const PostNormBackward<double>& kernels<double>() {
    return C2D_FOR_ISA(post_norm_backward_float64);
}

// x, the gradient of the result, then the parts; and the gradients of x and the parts.
struct Maps {
    std::vector<Tensor> read, written;
};

template <class T>
void backward(const PostNormSizes<T>& sizes, const PostNormWeights<T>& weights, const Maps& maps,
              const std::vector<Tensor>& weight_grads) {
    const PostNormBackward<T>& kernel = kernels<T>();
    const TokenGroups groups(maps.read[0].numel() / sizes.channels);
    GradientSums<T> sums(groups.count, weight_grads);
    torch::stable::parallel_for(0, groups.count, 1, [&](int64_t begin, int64_t end) {
        Aligned<T> scratch(kernel.scratch(sizes));
        std::vector<const Tensor*> all;
        for (const auto* some : {&maps.read, &maps.written}) {
            for (const Tensor& map : *some) {
                all.push_back(&map);
            }
        }
        Places places(all);
        PostNormBackwardTokens<T> tokens = {};
        int64_t index = 0;
        const auto next_read = [&] {
            const TokensOf<const T> of = {numbers<T>(*all[index]), places.of(index)};
            ++index;
            return of;
        };
        const auto next_written = [&] {
            const TokensOf<T> of = {static_cast<T*>(all[index]->mutable_data_ptr()),
                                    places.of(index)};
            ++index;
            return of;
        };
        tokens.x = next_read();
        tokens.grad = next_read();
        std::generate_n(tokens.parts, sizes.parts, next_read);
        tokens.x_grad = next_written();
        std::generate_n(tokens.part_grads, sizes.parts, next_written);
        for (int64_t g = begin; g < end; ++g) {
            kernel.start(sizes, scratch.data());
            groups.each_run(g, [&](int64_t start, int64_t count) {
                tokens.count = count;
                places.find(start, count);
                kernel.run(sizes, weights, tokens, scratch.data());
            });
            const auto of = [&](size_t i) {
                return i < weight_grads.size() ? sums.of(g, i) : nullptr;
            };
            kernel.finish(sizes, scratch.data(), {of(0), of(1), of(2), of(3), of(4)});
        }
    });
    sums.finish();
}

// dx, the gradients of the parts, and those of the weights; proj's and second's are transposed.
std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> res_post_norm_backward(
    const Tensor& grad, const Tensor& x, std::vector<Tensor> parts, std::vector<Tensor> weights,
    double eps) {
    check_floating_cpu(x, "x", 4);
    check_floating_cpu(grad, "grad", 4);
    check_same(grad, "grad", x, "x");
    check_parts(parts, x);
    const int64_t C = x.size(3), hidden = hidden_channels(weights);
    Maps maps = {{dense_channels(x), dense_channels(grad)},
                 {torch::stable::new_empty(x, x.sizes())}};
    int64_t inputs = 0;
    for (const Tensor& part : parts) {
        inputs += part.size(3);
        maps.read.push_back(dense_channels(part));
        maps.written.push_back(torch::stable::new_empty(part, part.sizes()));
    }
    check_matrix(weights[0], "proj", x, C, inputs + 1);
    check_matrix(weights[1], "norm1", x, 2, C);
    std::vector<Tensor> weight_grads = {torch::stable::new_empty(x, {inputs + 1, C}),
                                        torch::stable::new_empty(x, {2, C})};
    if (weights.size() > 2) {
        check_matrix(weights[2], "first", x, hidden, C + 1);
        check_matrix(weights[3], "second", x, C, hidden + 1);
        check_matrix(weights[4], "norm2", x, 2, C);
        weight_grads.push_back(torch::stable::new_empty(x, {hidden, C + 1}));
        weight_grads.push_back(torch::stable::new_empty(x, {hidden + 1, C}));
        weight_grads.push_back(torch::stable::new_empty(x, {2, C}));
    }
    const auto run_with = [&](auto number) {
        using T = decltype(number);
        const PostNormSizes<T> sizes = post_norm_sizes<T>(x, parts, hidden, eps);
        backward(sizes, post_norm_weights<T>(weights), maps, weight_grads);
    };
    if (x.numel() == 0) {
        for (const Tensor& weight_grad : weight_grads) {
            torch::stable::fill_(weight_grad, 0);
        }
    } else if (x.scalar_type() == ScalarType::Double) {
        run_with(double());
    } else {
        run_with(float());
    }
    const std::vector<Tensor> part_grads(maps.written.begin() + 1, maps.written.end());
    return {maps.written[0], part_grads, weight_grads};
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "res_post_norm_backward(Tensor grad, Tensor x, Tensor[] parts, Tensor[] weights, "
        "float eps) -> (Tensor, Tensor[], Tensor[])");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("res_post_norm_backward", TORCH_BOX(&c2d::res_post_norm_backward));
}
