// How a map is cut into tiles that are walked row by row in cache, for layers with a convolution:
// host side.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

#include "aligned.h"
#include "checks.h"
#include "row_tile.h"

namespace c2d {

constexpr int64_t kFewestRows = 16, kMostRows = 128;  // of a tile, about
constexpr int64_t kRowsTogether = 4;                  // that a kernel may walk at once

inline int64_t parts_of(int64_t length, int64_t most) { return (length + most - 1) / most; }

// Columns of tiles for which rows, with `reach` pixels more at both ends and filled up to vectors,
// have the fewest tokens in all.
inline int64_t tile_columns(int64_t width, int64_t reach, int64_t lanes) {
    int64_t columns = 0, fewest = 0;
    for (int64_t tokens = kMostTokens; tokens > 2 * reach; tokens -= lanes) {
        const int64_t inner = tokens - 2 * reach, total = parts_of(width, inner) * tokens;
        if (columns == 0 || total < fewest) {
            columns = inner;
            fewest = total;
        }
    }
    return std::min(columns, width);
}

// Rows of tiles for which the thread with the most of them walks the fewest rows, with `reach` rows
// more at both ends, which are computed twice; a multiple of kRowsTogether. `across` tiles lie side
// by side, in all images.
inline int64_t tile_rows(int64_t height, int64_t reach, int64_t across, int64_t threads) {
    int64_t best = 0, fewest = 0;
    const int64_t most = parts_of(height, kFewestRows);
    for (int64_t down = parts_of(height, kMostRows); down <= most; ++down) {
        const int64_t rows = parts_of(parts_of(height, down), kRowsTogether) * kRowsTogether;
        const int64_t tiles = parts_of(height, rows) * across;
        const int64_t total = parts_of(tiles, threads) * (rows + 2 * reach);
        if (best == 0 || total < fewest) {
            best = rows;
            fewest = total;
        }
    }
    return std::min(best, height);
}

// kernel.run for every tile of x and out (B, H, W, C), arithmetic in T, numbers of type Map; shared
// among the threads. A kernel computes a number the same way whatever tile it is in.
template <class T, class Map = T, class Kernels, class Sizes, class Weights>
void run_tiles(const Kernels& kernel, const Sizes& sizes, const Weights& weights, int64_t reach,
               const torch::stable::Tensor& x, const torch::stable::Tensor& out) {
    const int64_t height = x.size(1), width = x.size(2);
    const int64_t columns = tile_columns(width, reach, kernel.lanes);
    const int64_t across = parts_of(width, columns);
    const int64_t rows =
        tile_rows(height, reach, x.size(0) * across, int64_t(torch::stable::get_num_threads()));
    const int64_t down = parts_of(height, rows);
    torch::stable::parallel_for(0, x.size(0) * down * across, 1, [&](int64_t begin, int64_t end) {
        Aligned<T> scratch(kernel.scratch(sizes, columns));
        for (int64_t task = begin; task < end; ++task) {
            const int64_t image = task / across / down;
            const int64_t top = task / across % down * rows, left = task % across * columns;
            const RowTile<Map> tile = {
                numbers<Map>(x) + image * x.stride(0),
                x.stride(1),
                x.stride(2),
                static_cast<Map*>(out.mutable_data_ptr()) + image * out.stride(0),
                out.stride(1),
                out.stride(2),
                top,
                left,
                std::min(rows, height - top),
                std::min(columns, width - left)};
            kernel.run(sizes, weights, tile, scratch.data());
        }
    });
}

}  // namespace c2d
