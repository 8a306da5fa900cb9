// HiT-SR's dual feature extraction on the CPU, host side: tiles, threads and scratch memory. The
// arithmetic and its costs are in kernel.cpp.
//
// A task is a tile. Each number is computed the same way whatever tile it is in, so that
// results do not depend on the number of threads.
#include "dual_features.h"

#include <torch/csrc/stable/library.h>

#include <optional>

#include "../common/checks.h"
#include "../common/isa.h"
#include "../common/row_tiles.h"

namespace c2d {
namespace {

template <class T>
const DualKernels<T>& kernels();
template <>
const DualKernels<float>& kernels<float>() {
    return C2D_FOR_ISA(dual_features_float32);
}
template <>
const DualKernels<double>& kernels<double>() {
    return C2D_FOR_ISA(dual_features_float64);
}

template <class T>
void run(const DualSizes<T>& sizes, const DualWeights<T>& weights, const Tensor& x,
         const Tensor& out) {
    const auto& kernel = kernels<T>();
    run_tiles<T>(kernel, sizes, weights, kSide / 2, x, out);
}

template <class T>
void run(const Tensor& x, const Tensor& local, const Tensor& linear, const Tensor& conv,
         const Tensor& conv_bias, const Tensor& expand, const std::optional<Tensor>& by_row,
         const std::optional<Tensor>& by_column, const Tensor& out) {
    const DualWeights<T> weights = {
        local.const_data_ptr<T>(),
        linear.const_data_ptr<T>(),
        conv.const_data_ptr<T>(),
        conv_bias.const_data_ptr<T>(),
        expand.const_data_ptr<T>(),
        by_row ? by_row->const_data_ptr<T>() : nullptr,
        by_column ? by_column->const_data_ptr<T>() : nullptr,
    };
    run<T>({x.size(1), x.size(2), x.size(3), local.size(0)}, weights, dense_channels(x), out);
}

// expand(f(conv3x3(f(local(x))))) * linear(x), f = LeakyReLU(0.2); x (B, H, W, C). The rows of
// local (hidden, C + 1), linear (C, C + 1) and expand (C, hidden + 1) are output channels, the last
// column is the bias; conv (9 hidden, hidden) tap by tap, conv_bias (1, hidden). by_row (hidden +
// C, H) and by_column (hidden + C, W) are added to local's and, below, linear's channels.
Tensor dual_features(const Tensor& x, const Tensor& local, const Tensor& linear, const Tensor& conv,
                     const Tensor& conv_bias, const Tensor& expand, std::optional<Tensor> by_row,
                     std::optional<Tensor> by_column) {
    check_floating_cpu(x, "x", 4);
    check_floating_cpu(local, "local", 2);
    const int64_t C = x.size(3), hidden = local.size(0);
    check_matrix(local, "local", x, hidden, C + 1);
    check_matrix(linear, "linear", x, C, C + 1);
    check_matrix(conv, "conv", x, kSide * kSide * hidden, hidden);
    check_matrix(conv_bias, "conv_bias", x, 1, hidden);
    check_matrix(expand, "expand", x, C, hidden + 1);
    STD_TORCH_CHECK(by_row.has_value() == by_column.has_value(),
                    "by_row and by_column come together.");
    if (by_row) {
        check_matrix(*by_row, "by_row", x, hidden + C, x.size(1));
        check_matrix(*by_column, "by_column", x, hidden + C, x.size(2));
    }
    const Tensor out = torch::stable::new_empty(x, x.sizes());
    if (out.numel() == 0) {
        return out;
    }
    if (x.scalar_type() == ScalarType::Double) {
        run<double>(x, local, linear, conv, conv_bias, expand, by_row, by_column, out);
    } else {
        run<float>(x, local, linear, conv, conv_bias, expand, by_row, by_column, out);
    }
    return out;
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "dual_features(Tensor x, Tensor local, Tensor linear, Tensor conv, Tensor conv_bias, "
        "Tensor expand, Tensor? by_row, Tensor? by_column) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("dual_features", TORCH_BOX(&c2d::dual_features));
}
