// A part of a channels-last map, as the host side names it to the kernels.
#pragma once

#include <stdint.h>

namespace c2d {

// Some rows of it: data[row * row_stride + column * token_stride + channel].
template <class T>
struct Strip {
    T* data;
    int64_t row_stride;
    int64_t token_stride;
};

}  // namespace c2d
