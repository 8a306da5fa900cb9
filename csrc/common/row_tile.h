// A tile of a map that is walked row by row in cache, for layers with a convolution: what the host
// side gives to the kernels of an instruction set.
#pragma once

#include <stdint.h>

namespace c2d {

constexpr int64_t kMostTokens = 128;  // of a row of a tile, with what a convolution sees around it

// Rows x columns pixels of an image, whose pixel (0, 0) begins at x, and at out in the result.
template <class T>
struct RowTile {
    const T* x;
    int64_t x_row, x_column;
    T* out;
    int64_t out_row, out_column;
    int64_t top, left, rows, columns;
};

}  // namespace c2d
