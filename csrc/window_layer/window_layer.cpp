// A layer of a transformer in windows on the CPU, host side: windows, threads and scratch memory.
// The arithmetic and its costs are in cpu.cpp.
//
// A task is a window: it is read where its tokens lie in the map, rolled or not, and its result is
// written to the same places of another map. Each number is computed in one task, the same way for
// any number of threads.
#include "window_layer.h"

#include <algorithm>
#include <vector>

#include "../common/checks.h"
#include "../common/isa.h"
#include "../window_attention/windows.h"

namespace c2d {
namespace {

template <class T, class Weight, class Map>
void run(const LayerKernels<T, Weight, Map>& kernel, const WindowGrid& grid, double eps,
         const Tensor& x, const Tensor& qkv, const Tensor& proj, const Tensor& first,
         const Tensor& second, const Tensor& table, const Tensor& out) {
    const int64_t tokens = grid.queries, C = grid.channels, hidden = first.size(0);
    const int64_t block = tokens > kernel.lanes ? 2 * kernel.lanes : kernel.lanes;
    const int64_t blocks = (tokens + block - 1) / block;
    const LayerSizes<T> sizes = {tokens, C, hidden, grid.heads, block, blocks, T(eps)};

    const AttentionSizes<T> pairs = {tokens, tokens, grid.head_dim, 1, block, blocks, T(1)};
    Aligned<T> bias(grid.heads * blocks * tokens * block);
    expand_bias(grid, pairs, table, bias.data());
    const LayerWeights<T, Weight> weights = {numbers<Weight>(qkv), numbers<Weight>(proj),
                                             numbers<Weight>(first), numbers<Weight>(second),
                                             bias.data()};
    const Map* const from = numbers<Map>(x);
    Map* const to = static_cast<Map*>(out.mutable_data_ptr());

    const int64_t work = tokens * C * (4 * C + 2 * hidden + 2 * tokens);
    torch::stable::parallel_for(
        0, grid.windows, std::max<int64_t>(1, kSmallTask / work), [&](int64_t begin, int64_t end) {
            Aligned<T> scratch(kernel.scratch(sizes));
            std::vector<int64_t> x_token(tokens), out_token(tokens);
            std::vector<T> region(block * blocks);
            for (int64_t index = begin; index < end; ++index) {
                grid.query_tokens(index, x, x_token);
                grid.query_tokens(index, out, out_token);
                const bool masked = grid.masked(index);
                for (int64_t n = 0; masked && n < tokens; ++n) {
                    region[n] = T(grid.region(index, n / grid.window, n % grid.window));
                }
                kernel.run(
                    sizes, weights,
                    {from, to, x_token.data(), out_token.data(), masked ? region.data() : nullptr},
                    scratch.data());
            }
        });
}

}  // namespace

Tensor window_layer(const Tensor& x, const Tensor& qkv, const Tensor& proj, const Tensor& first,
                    const Tensor& second, const Tensor& bias_table, int64_t window_size,
                    int64_t num_heads, int64_t shift, double eps) {
    const bool bfloat16 = x.scalar_type() == ScalarType::BFloat16;
    check_floating_cpu(x, "x", 4, true);
    check_floating_cpu(first, "first", 2, true);
    STD_TORCH_CHECK(window_size > 0 && num_heads > 0,
                    "window_size and num_heads must be positive.");
    STD_TORCH_CHECK(0 <= shift && shift < window_size, "shift must be from 0 to window_size - 1.");
    STD_TORCH_CHECK(x.size(1) % window_size == 0 && x.size(2) % window_size == 0,
                    "the map must be a multiple of window_size, ", window_size, ".");
    const int64_t C = x.size(3), hidden = first.size(0);
    STD_TORCH_CHECK(C > 0 && C % num_heads == 0, "num_heads must divide C.");
    const ScalarType wide = bfloat16 ? ScalarType::Float : x.scalar_type();
    check_weights(qkv, "qkv", x, 3 * C, C);
    check_weights(proj, "proj", x, C, C);
    check_weights(first, "first", x, hidden, C);
    check_weights(second, "second", x, C, hidden);
    const WindowGrid grid(x, C, 1, window_size, num_heads, shift);
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

}  // namespace c2d
