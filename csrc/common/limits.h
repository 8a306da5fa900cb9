// Sizes that the host side and the kernels of an instruction set agree on.
#pragma once

#include <stdint.h>

namespace c2d {

constexpr int64_t kMostTokens = 128;  // of a row of a tile, with what a convolution sees around it

}  // namespace c2d
