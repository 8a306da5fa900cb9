// How a map is cut into tiles that are walked row by row in cache, for layers with a convolution:
// host side.
#pragma once

#include <algorithm>
#include <cstdint>

#include "limits.h"

namespace c2d {

struct RowTiles {
    int64_t rows, columns, down, across;

    // Tiles of about `most_rows`, and of the columns for which rows, with `reach` pixels more at
    // both ends and filled up to vectors, have the fewest tokens in all.
    RowTiles(int64_t height, int64_t width, int64_t reach, int64_t most_rows, int64_t lanes) {
        int64_t fewest = 0;
        columns = 0;
        for (int64_t tokens = kMostTokens; tokens > 2 * reach; tokens -= lanes) {
            const int64_t inner = tokens - 2 * reach, total = parts(width, inner) * tokens;
            if (columns == 0 || total < fewest) {
                columns = inner;
                fewest = total;
            }
        }
        columns = std::min(columns, width);
        across = parts(width, columns);
        rows = parts(height, parts(height, most_rows));
        down = parts(height, rows);
    }

    static int64_t parts(int64_t length, int64_t most) { return (length + most - 1) / most; }
};

}  // namespace c2d
