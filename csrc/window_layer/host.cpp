// A layer of a transformer in windows on the CPU, host side: windows, threads and scratch memory.
// The arithmetic and its costs are in kernel.cpp.
//
// A task is a window: it is read where its tokens lie in the map, rolled or not, and its result is
// written to the same places of another map. Each number is computed in one task, the same way for
// any number of threads.
#include "window_layer.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../common/checks.h"
#include "../common/isa.h"
#include "../window_attention/windows.h"

namespace c2d {
namespace {

// to[i] = from[order[i]]
void gather(const std::vector<int64_t>& from, const std::vector<int64_t>& order,
            std::vector<int64_t>& to) {
    for (size_t i = 0; i < order.size(); ++i) {
        to[i] = from[order[i]];
    }
}

template <class T, class Weight, class Map>
void run(const LayerKernels<T, Weight, Map>& kernel, const WindowGrid& grid, double eps,
         const Tensor& x, const Tensor& qkv, const Tensor& proj, const std::optional<Tensor>& first,
         const std::optional<Tensor>& second, const Tensor& table, const Tensor& out) {
    const int64_t C = grid.channels, hidden = first ? first->size(0) : 0;
    const int64_t block = grid.keys > kernel.lanes ? 2 * kernel.lanes : kernel.lanes;
    const int64_t blocks = (grid.keys + block - 1) / block, length = block * blocks;
    const LayerSizes<T> sizes = {
        grid.keys, grid.cell * grid.cell, C, hidden, grid.heads, block, blocks, T(eps)};
    const std::vector<int64_t> order = grid.panels(length);

    // Tokens of one key have the same bias: that of its first serves them all.
    Aligned<T> bias(grid.heads * grid.keys * length);
    expand_bias(grid, std::vector<int64_t>(order.begin(), order.begin() + length), block, table,
                bias.data());
    const LayerWeights<T, Weight> weights = {
        numbers<Weight>(qkv), numbers<Weight>(proj), first ? numbers<Weight>(*first) : nullptr,
        second ? numbers<Weight>(*second) : nullptr, bias.data()};
    const Map* const from = numbers<Map>(x);
    Map* const to = static_cast<Map*>(out.mutable_data_ptr());

    const int64_t work = grid.queries * C * (4 * C + 2 * hidden + 2 * grid.keys);
    torch::stable::parallel_for(
        0, grid.windows, std::max<int64_t>(1, kSmallTask / work), [&](int64_t begin, int64_t end) {
            Aligned<T> scratch(kernel.scratch(sizes));
            std::vector<int64_t> token(grid.queries), x_token(order.size()),
                out_token(order.size());
            std::vector<T> region(order.size());
            for (int64_t index = begin; index < end; ++index) {
                grid.query_tokens(index, x, token);
                gather(token, order, x_token);
                grid.query_tokens(index, out, token);
                gather(token, order, out_token);
                const bool masked = grid.masked(index);
                for (size_t i = 0; masked && i < order.size(); ++i) {
                    region[i] =
                        T(grid.region(index, order[i] / grid.window, order[i] % grid.window));
                }
                kernel.run(
                    sizes, weights,
                    {from, to, x_token.data(), out_token.data(), masked ? region.data() : nullptr},
                    scratch.data());
            }
        });
}

// x + attention(LN(x)), then, with first and second, that + MLP(LN(that)), in windows; x
// (B, H, W, C). The rows of qkv (3C, C + 1), proj (C, C + 1), first (hidden, C + 1) and second (C,
// hidden + 1) are output channels, the last column is the bias; norms and the scale of q are folded
// into them. With qkv (3C / 2, C + 1) keys are stacked as SRFormer's are. For x in bfloat16, see
// window_layer/window_layer.h.
Tensor window_layer(const Tensor& x, const Tensor& qkv, const Tensor& proj,
                    std::optional<Tensor> first, std::optional<Tensor> second,
                    const Tensor& bias_table, int64_t window_size, int64_t num_heads, int64_t shift,
                    double eps) {
    const bool bfloat16 = x.scalar_type() == ScalarType::BFloat16;
    check_floating_cpu(x, "x", 4, true);
    check_floating_cpu(qkv, "qkv", 2, true);
    STD_TORCH_CHECK(window_size > 0 && num_heads > 0,
                    "window_size and num_heads must be positive.");
    STD_TORCH_CHECK(0 <= shift && shift < window_size, "shift must be from 0 to window_size - 1.");
    STD_TORCH_CHECK(x.size(1) % window_size == 0 && x.size(2) % window_size == 0,
                    "the map must be a multiple of window_size, ", window_size, ".");
    const int64_t C = x.size(3);
    STD_TORCH_CHECK(C > 0 && C % num_heads == 0, "num_heads must divide C.");
    const ScalarType wide = bfloat16 ? ScalarType::Float : x.scalar_type();
    const bool stacked = C % 4 == 0 && qkv.size(0) == C + C / 2;
    STD_TORCH_CHECK(!stacked || (window_size % 2 == 0 && shift % 2 == 0),
                    "window_size and shift must be even with stacked keys.");
    check_weights(qkv, "qkv", x, stacked ? C + C / 2 : 3 * C, C);
    check_weights(proj, "proj", x, C, C);
    STD_TORCH_CHECK(first.has_value() == second.has_value(), "first and second come together.");
    if (first) {
        STD_TORCH_CHECK(!stacked, "an MLP does not go with stacked keys.");
        check_floating_cpu(*first, "first", 2, true);
        check_weights(*first, "first", x, first->size(0), C);
        check_weights(*second, "second", x, C, first->size(0));
    }
    const WindowGrid grid(x, C, stacked ? 2 : 1, window_size, num_heads, shift);
    check_matrix(bias_table, "bias_table", wide, grid.side * grid.side, num_heads);
    const Tensor out = torch::stable::new_empty(x, x.sizes());
    if (out.numel() == 0) {
        return out;
    }
    const auto run_by = [&](const auto& kernel) {
        run(kernel, grid, eps, dense_channels(x), qkv, proj, first, second, bias_table, out);
    };
    if (bfloat16) {
        run_by(check_bfloat16(C2D_FOR_BF16(layer_bfloat16)));
    } else if (x.scalar_type() == ScalarType::Double) {
        run_by(C2D_FOR_ISA(layer_float64));
    } else {
        run_by(C2D_FOR_ISA(layer_float32));
    }
    return out;
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "window_layer(Tensor x, Tensor qkv, Tensor proj, Tensor? first, Tensor? second, "
        "Tensor bias_table, int window_size, int num_heads, int shift, float eps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("window_layer", TORCH_BOX(&c2d::window_layer));
}
