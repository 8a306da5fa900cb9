// What the host sides of the attention branch and of window_layer share: checks, windows, threads
// and scratch memory. The arithmetic and its costs are in attention.h.
//
// A task is a window: it is read where its tokens lie in the map, rolled or not, and its result is
// written to the same places of another map. Each number is computed in one task, the same way for
// any number of threads.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/checks.h"
#include "../window_attention/windows.h"
#include "attention_branch.h"

namespace c2d {

// A call's tensors and the windows of its map.
struct BranchArguments {
    Tensor x, qkv, proj, bias_table;
    double eps;
    WindowGrid grid;

    bool stacked() const { return grid.cell > 1; }
};

// Refuses what the kernels would read out of bounds.
inline BranchArguments checked_branch(const Tensor& x, const Tensor& qkv, const Tensor& proj,
                                      const Tensor& bias_table, int64_t window_size,
                                      int64_t num_heads, int64_t shift, double eps) {
    check_floating_cpu(x, "x", 4, true);
    check_floating_cpu(qkv, "qkv", 2, true);
    STD_TORCH_CHECK(window_size > 0 && num_heads > 0,
                    "window_size and num_heads must be positive.");
    STD_TORCH_CHECK(0 <= shift && shift < window_size, "shift must be from 0 to window_size - 1.");
    STD_TORCH_CHECK(x.size(1) % window_size == 0 && x.size(2) % window_size == 0,
                    "the map must be a multiple of window_size, ", window_size, ".");
    const int64_t C = x.size(3);
    STD_TORCH_CHECK(C > 0 && C % num_heads == 0, "num_heads must divide C.");
    const bool stacked = C % 4 == 0 && qkv.size(0) == C + C / 2;
    STD_TORCH_CHECK(!stacked || (window_size % 2 == 0 && shift % 2 == 0),
                    "window_size and shift must be even with stacked keys.");
    check_weights(qkv, "qkv", x, stacked ? C + C / 2 : 3 * C, C);
    check_weights(proj, "proj", x, C, C);
    const WindowGrid grid(x, C, stacked ? 2 : 1, window_size, num_heads, shift);
    const bool bfloat16 = x.scalar_type() == ScalarType::BFloat16;
    check_matrix(bias_table, "bias_table", bfloat16 ? ScalarType::Float : x.scalar_type(),
                 grid.side * grid.side, num_heads);
    return {dense_channels(x), qkv, proj, bias_table, eps, grid};
}

// to[i] = from[order[i]]
inline void gather(const std::vector<int64_t>& from, const std::vector<int64_t>& order,
                   std::vector<int64_t>& to) {
    for (size_t i = 0; i < order.size(); ++i) {
        to[i] = from[order[i]];
    }
}

// Calls run(sizes, weights, window, scratch) for every window, with scratch(sizes) elements of
// memory; a token takes `more` multiply-adds beside the branch's.
template <class T, class Weight, class Map, class Scratch, class Run>
void walk_windows(const BranchArguments& in, int64_t lanes, int64_t more, const Tensor& out,
                  const Scratch& scratch_of, const Run& run) {
    const WindowGrid& grid = in.grid;
    const int64_t C = grid.channels;
    const int64_t block = grid.keys > lanes ? 2 * lanes : lanes;
    const int64_t blocks = (grid.keys + block - 1) / block, length = block * blocks;
    const BranchSizes<T> sizes = {grid.keys, grid.cell * grid.cell, C, grid.heads, block, blocks,
                                  T(in.eps)};
    const std::vector<int64_t> order = grid.panels(length);

    // Tokens of one key have the same bias: that of its first serves them all.
    Aligned<T> bias(grid.heads * grid.keys * length);
    expand_bias(grid, std::vector<int64_t>(order.begin(), order.begin() + length), block,
                in.bias_table, bias.data());
    const BranchWeights<T, Weight> weights = {numbers<Weight>(in.qkv), numbers<Weight>(in.proj),
                                              bias.data()};
    const Map* const from = numbers<Map>(in.x);
    Map* const to = static_cast<Map*>(out.mutable_data_ptr());

    const int64_t work = grid.queries * (C * (4 * C + 2 * grid.keys) + more);
    torch::stable::parallel_for(
        0, grid.windows, std::max<int64_t>(1, kSmallTask / work), [&](int64_t begin, int64_t end) {
            Aligned<T> scratch(scratch_of(sizes));
            std::vector<int64_t> token(grid.queries), x_token(order.size()),
                out_token(order.size());
            std::vector<T> region(order.size());
            for (int64_t index = begin; index < end; ++index) {
                grid.query_tokens(index, in.x, token);
                gather(token, order, x_token);
                grid.query_tokens(index, out, token);
                gather(token, order, out_token);
                const bool masked = grid.masked(index);
                for (size_t i = 0; masked && i < order.size(); ++i) {
                    region[i] =
                        T(grid.region(index, order[i] / grid.window, order[i] % grid.window));
                }
                const BranchWindow<T, Map> window = {from, to, x_token.data(), out_token.data(),
                                                     masked ? region.data() : nullptr};
                run(sizes, weights, window, scratch.data());
            }
        });
}

}  // namespace c2d
