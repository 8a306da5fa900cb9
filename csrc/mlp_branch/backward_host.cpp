// The backward of an MLP with the norm before it and the skip around it, on the CPU, host side:
// tokens, threads, scratch memory and sums. The arithmetic and its costs are in
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

namespace c2d {
namespace {

template <class T>
const MlpBackward<T>& kernels();
template <>
const MlpBackward<float>& kernels<float>() {
    return C2D_FOR_ISA(mlp_backward_float32);
}
template <>
const MlpBackward<double>& kernels<double>() {
    return C2D_FOR_ISA(mlp_backward_float64);
}

template <class T>
void backward(double eps, const Tensor& grad, const Tensor& x, const Tensor& first,
              const Tensor& second, const Tensor& x_grad, const std::vector<Tensor>& weight_grads) {
    const MlpBackward<T>& kernel = kernels<T>();
    const MlpSizes<T> sizes = {x.size(3), first.size(0), T(eps)};
    const MlpWeights<T> weights = {sizes.hidden, numbers<T>(first), numbers<T>(second)};
    const int64_t pixels = x.numel() / sizes.channels;
    const TokenGroups groups(pixels);
    GradientSums<T> sums(groups.count, weight_grads);
    torch::stable::parallel_for(0, groups.count, 1, [&](int64_t begin, int64_t end) {
        Aligned<T> scratch(kernel.scratch(sizes));
        Places places({&x, &grad, &x_grad});
        const TokensOf<const T> from = {numbers<T>(x), places.of(0)};
        const TokensOf<const T> grads = {numbers<T>(grad), places.of(1)};
        const TokensOf<T> to = {static_cast<T*>(x_grad.mutable_data_ptr()), places.of(2)};
        for (int64_t g = begin; g < end; ++g) {
            kernel.start(sizes, scratch.data());
            groups.each_run(g, [&](int64_t start, int64_t count) {
                places.find(start, count);
                kernel.run(sizes, weights, count, from, grads, to, scratch.data());
            });
            kernel.finish(sizes, scratch.data(), {sums.of(g, 0), sums.of(g, 1)});
        }
    });
    sums.finish();
}

// (dx, dfirst, dsecond) of mlp_branch; dsecond is transposed, (hidden + 1, C).
std::tuple<Tensor, Tensor, Tensor> mlp_branch_backward(const Tensor& grad, const Tensor& x,
                                                       const Tensor& first, const Tensor& second,
                                                       double eps) {
    check_floating_cpu(x, "x", 4);
    check_floating_cpu(grad, "grad", 4);
    check_same(grad, "grad", x, "x");
    check_floating_cpu(first, "first", 2);
    const int64_t C = x.size(3), hidden = first.size(0);
    check_matrix(first, "first", x, hidden, C + 1);
    check_matrix(second, "second", x, C, hidden + 1);
    const Tensor x_grad = torch::stable::new_empty(x, x.sizes());
    const std::vector<Tensor> weight_grads = {torch::stable::new_empty(x, {hidden, C + 1}),
                                              torch::stable::new_empty(x, {hidden + 1, C})};
    if (x.numel() == 0) {
        for (const Tensor& weight_grad : weight_grads) {
            torch::stable::fill_(weight_grad, 0);
        }
    } else if (x.scalar_type() == ScalarType::Double) {
        backward<double>(eps, dense_channels(grad), dense_channels(x), first, second, x_grad,
                         weight_grads);
    } else {
        backward<float>(eps, dense_channels(grad), dense_channels(x), first, second, x_grad,
                        weight_grads);
    }
    return {x_grad, weight_grads[0], weight_grads[1]};
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "mlp_branch_backward(Tensor grad, Tensor x, Tensor first, Tensor second, float eps) -> "
        "(Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("mlp_branch_backward", TORCH_BOX(&c2d::mlp_branch_backward));
}
