// Windows of a (shifted) map and their tokens, host side: shared by the operators that attend.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/aligned.h"
#include "../common/checks.h"
#include "../common/isa.h"
#include "window_attention.h"

namespace c2d {

constexpr int64_t kSmallTask = int64_t{1} << 20;  // multiply-adds not worth another thread

template <class T>
const AttentionKernels<T>& attention_kernels();
template <>
inline const AttentionKernels<float>& attention_kernels<float>() {
    return C2D_FOR_ISA(attention_float32);
}
template <>
inline const AttentionKernels<double>& attention_kernels<double>() {
    return C2D_FOR_ISA(attention_float64);
}

template <class T>
AttentionSizes<T> attention_sizes(int64_t queries, int64_t keys, int64_t head_dim,
                                  int64_t cell_tokens, double scale) {
    const int64_t lanes = attention_kernels<T>().lanes;
    const int64_t block = queries > lanes ? 2 * lanes : lanes;
    const int64_t blocks = (queries + block - 1) / block;
    return {queries, keys, head_dim, cell_tokens, block, blocks, T(scale)};
}

// The queries in the order of their blocks, the last block filled up with the last of them.
template <class T>
std::vector<int64_t> queries_of(const AttentionSizes<T>& sizes) {
    std::vector<int64_t> queries(sizes.block * sizes.blocks);
    for (int64_t n = 0; n < int64_t(queries.size()); ++n) {
        queries[n] = std::min(n, sizes.queries - 1);
    }
    return queries;
}

// The windows of a call, and the sizes that follow from its arguments.
struct WindowGrid {
    int64_t height, width, channels, window, heads, shift;
    int64_t cell;  // tokens of a key along an axis: 1, or 2
    int64_t down, across, windows;
    int64_t queries, keys, side, head_dim;  // side of a head's bias table
    std::vector<Run> runs;                  // of head 0, 1, ...
    std::vector<int64_t> first_run;

    WindowGrid(const Tensor& map, int64_t map_channels, int64_t map_cell, int64_t window_size,
               int64_t num_heads, int64_t map_shift)
        : height(map.size(1)),
          width(map.size(2)),
          channels(map_channels),
          window(window_size),
          heads(num_heads),
          shift(map_shift),
          cell(map_cell),
          down(height / window),
          across(width / window),
          windows(map.size(0) * down * across),
          queries(window * window),
          keys(queries / (cell * cell)),
          side(2 * (window / cell) - 1),
          head_dim(channels / heads) {
        const int64_t each = channels / (cell * cell);  // channels of a key in one token
        for (int64_t head = 0; head < heads; ++head) {
            first_run.push_back(int64_t(runs.size()));
            for (int64_t done = 0; done < head_dim;) {
                const int64_t channel = head * head_dim + done;
                const int64_t count = std::min(head_dim - done, each - channel % each);
                runs.push_back({channel / each, channel % each, done, count});
                done += count;
            }
        }
        first_run.push_back(int64_t(runs.size()));
    }

    // Row of the bias table for query n and key m: its terms of the two, which cost divisions.
    int64_t table_row(int64_t n, int64_t m) const { return row_of_query(n) - row_of_key(m); }

    int64_t row_of_query(int64_t n) const {
        const int64_t last = window / cell - 1;
        return (n / window / cell + last) * side + n % window / cell + last;
    }

    int64_t row_of_key(int64_t m) const {
        const int64_t across_keys = window / cell;
        return m / across_keys * side + m % across_keys;
    }

    void query_tokens(int64_t index, const Tensor& map, std::vector<int64_t>& to) const {
        const int64_t to_row = map.stride(1), to_column = map.stride(2);
        const int64_t image = index / (across * down) * map.stride(0);
        const int64_t top = index / across % down * window + shift;
        const int64_t left = index % across * window + shift;
        for (int64_t y = 0, n = 0; y < window; ++y) {
            const int64_t row = top + y < height ? top + y : top + y - height;
            for (int64_t x = 0; x < window; ++x, ++n) {
                const int64_t column = left + x < width ? left + x : left + x - width;
                to[n] = image + row * to_row + column * to_column;
            }
        }
    }

    void key_tokens(int64_t index, const Tensor& map, std::vector<int64_t>& to) const {
        const int64_t across_keys = window / cell, tokens = cell * cell;
        const int64_t to_row = map.stride(1), to_column = map.stride(2);
        const int64_t image = index / (across * down) * map.stride(0);
        const int64_t top = index / across % down * window + shift;
        const int64_t left = index % across * window + shift;
        for (int64_t m = 0; m < keys; ++m) {
            for (int64_t t = 0; t < tokens; ++t) {
                const int64_t row = (top + m / across_keys * cell + t / cell) % height;
                const int64_t column = (left + m % across_keys * cell + t % cell) % width;
                to[m * tokens + t] = image + row * to_row + column * to_column;
            }
        }
    }

    // Tokens y * window + x of a window in the order of panels: the first token of each key, then
    // the second of each, and so on, each time filled up to `length` with repetitions of the last.
    // With a key for each token that is their own order.
    std::vector<int64_t> panels(int64_t length) const {
        const int64_t across_keys = window / cell;
        std::vector<int64_t> tokens;
        for (int64_t panel = 0; panel < cell * cell; ++panel) {
            for (int64_t n = 0; n < length; ++n) {
                const int64_t m = std::min(n, keys - 1);
                const int64_t y = m / across_keys * cell + panel / cell;
                tokens.push_back(y * window + m % across_keys * cell + panel % cell);
            }
        }
        return tokens;
    }

    // The mask separates tokens of some window only in the last row or column of windows.
    bool masked(int64_t index) const {
        return shift > 0 && (index / across % down == down - 1 || index % across == across - 1);
    }

    // Which of the nine regions of the rolled map the token is from.
    int64_t region(int64_t index, int64_t y, int64_t x) const {
        y += index / across % down * window;
        x += index % across * window;
        const int64_t row = (y >= height - window) + (y >= height - shift);
        const int64_t column = (x >= width - window) + (x >= width - shift);
        return row * 3 + column;
    }
};

// The table for every key of a window and query[n], n = 0, 1, ..., whose number is a multiple of
// `block`: [heads][blocks][keys][block], as kernels read it.
template <class T>
void expand_bias(const WindowGrid& grid, const std::vector<int64_t>& query, int64_t block,
                 const Tensor& table, T* dense) {
    const T* from = table.const_data_ptr<T>();
    const int64_t blocks = int64_t(query.size()) / block;
    const int64_t to_row = table.stride(0), to_head = table.stride(1);
    // Once for all heads: divided out for each number, this took 160 of the 1,400 us of SwinIR's
    // layer on a map of 32x32 (AVX2).
    std::vector<int64_t> of_query(query.size()), of_key(grid.keys);
    for (size_t n = 0; n < query.size(); ++n) {
        of_query[n] = grid.row_of_query(query[n]) * to_row;
    }
    for (int64_t m = 0; m < grid.keys; ++m) {
        of_key[m] = grid.row_of_key(m) * to_row;
    }
    torch::stable::parallel_for(
        0, grid.heads * blocks, std::max<int64_t>(1, kSmallTask / 64 / grid.keys),
        [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t head = task / blocks, first = task % blocks * block;
                const int64_t* const rows = of_query.data() + first;
                T* to = dense + task * grid.keys * block;
                for (int64_t m = 0; m < grid.keys; ++m) {
                    const int64_t at = head * to_head - of_key[m];
                    for (int64_t n = 0; n < block; ++n) {
                        *to++ = from[at + rows[n]];
                    }
                }
            }
        });
}

}  // namespace c2d
