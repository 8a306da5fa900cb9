// The backward of SRFormer's feed-forward on the CPU, host side: tiles, threads, scratch memory and
// sums. The arithmetic and its costs are in backward_kernel.cpp.
//
// A task is a group of tiles, which adds up the weights' gradients for itself; groups are added in
// their order. Tiles and groups depend on the shapes alone, so that results are bitwise the same
// for any number of threads.
#include "backward.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../common/gradient_sums.h"
#include "../common/isa.h"
#include "../common/row_tiles.h"

namespace c2d {
namespace {

constexpr int64_t kBackwardRows = 64;  // of a tile, about: eight more are computed twice
constexpr int64_t kGroups = 64;        // of tiles, at most

template <class T>
const ConvFfnBackward<T>& kernels();
template <>
const ConvFfnBackward<float>& kernels<float>() {
    return C2D_FOR_ISA(conv_ffn_backward_float32);
}
template <>
const ConvFfnBackward<double>& kernels<double>() {
    return C2D_FOR_ISA(conv_ffn_backward_float64);
}

template <class T, class Number>
Picture<T> picture(const Tensor& map, Number* data, int64_t image) {
    return {data + image * map.stride(0), map.stride(1), map.stride(2)};
}

// The gradients of x and, one after the other, of the weights.
template <class T>
void backward(const ConvFfnSizes<T>& sizes, const ConvFfnWeights<T>& weights, const Tensor& grad,
              const Tensor& x, const Tensor& x_grad, const std::vector<Tensor>& weight_grads) {
    const ConvFfnBackward<T>& kernel = kernels<T>();
    const int64_t columns = tile_columns(sizes.width, kKernel - 1, kernel.lanes);
    const int64_t rows = parts_of(sizes.height, parts_of(sizes.height, kBackwardRows));
    const int64_t down = parts_of(sizes.height, rows), across = parts_of(sizes.width, columns);
    const int64_t tiles = x.size(0) * down * across, group = parts_of(tiles, kGroups);
    const int64_t groups = parts_of(tiles, group);
    GradientSums<T> sums(groups, weight_grads);
    torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
        Aligned<T> scratch(kernel.scratch(sizes, columns));
        for (int64_t tile = begin * group; tile < std::min(end * group, tiles); ++tile) {
            const int64_t image = tile / across / down;
            const int64_t top = tile / across % down * rows, left = tile % across * columns;
            const int64_t g = tile / group;
            kernel.run(
                sizes, weights,
                {picture<const T>(x, numbers<T>(x), image),
                 picture<const T>(grad, numbers<T>(grad), image),
                 picture<T>(x_grad, static_cast<T*>(x_grad.mutable_data_ptr()), image), top, left,
                 std::min(rows, sizes.height - top), std::min(columns, sizes.width - left)},
                scratch.data(), {sums.of(g, 0), sums.of(g, 1), sums.of(g, 2), sums.of(g, 3)});
        }
    });
    sums.finish();
}

// (dx, dfirst, dconv, dsecond, dnorm) of conv_ffn; dsecond is transposed, (hidden + 1, C).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_ffn_backward(
    const Tensor& grad, const Tensor& x, const Tensor& first, const Tensor& conv,
    const Tensor& second, const Tensor& norm, bool norm_first, double eps) {
    check_floating_cpu(x, "x", 4);
    check_floating_cpu(grad, "grad", 4);
    check_same(grad, "grad", x, "x");
    check_floating_cpu(first, "first", 2);
    const int64_t C = x.size(3), hidden = first.size(0);
    check_matrix(first, "first", x, hidden, C + 1);
    check_matrix(conv, "conv", x, hidden, kKernel * kKernel + 1);
    check_matrix(second, "second", x, C, hidden + 1);
    check_matrix(norm, "norm", x, 2, C);
    const Tensor x_grad = torch::stable::new_empty(x, x.sizes());
    const std::vector<Tensor> weight_grads = {
        torch::stable::new_empty(x, {hidden, C + 1}),
        torch::stable::new_empty(x, {hidden, kKernel * kKernel + 1}),
        torch::stable::new_empty(x, {hidden + 1, C}), torch::stable::new_empty(x, {2, C})};
    const auto run_with = [&](auto number) {
        using T = decltype(number);
        const ConvFfnSizes<T> sizes = {x.size(1), x.size(2), C, hidden, norm_first, T(eps)};
        const ConvFfnWeights<T> weights = {numbers<T>(first), numbers<T>(conv), numbers<T>(second),
                                           numbers<T>(norm)};
        backward(sizes, weights, dense_channels(grad), dense_channels(x), x_grad, weight_grads);
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
    return {x_grad, weight_grads[0], weight_grads[1], weight_grads[2], weight_grads[3]};
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "conv_ffn_backward(Tensor grad, Tensor x, Tensor first, Tensor conv, Tensor second, "
        "Tensor norm, bool norm_first, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("conv_ffn_backward", TORCH_BOX(&c2d::conv_ffn_backward));
}
