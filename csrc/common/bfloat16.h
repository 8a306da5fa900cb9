// Types of bfloat16 data, as the host side and the kernels name them; the arithmetic is in pairs.h.
#pragma once

#include <stdint.h>

namespace c2d {

// A number of a map: the upper half of a float32.
struct Bfloat16 {
    uint16_t bits;
};

// Two numbers that a product multiplies in one step, the first in the lower half.
typedef uint32_t Pair;

// Pairs that hold a row of so many weights and its bias.
inline constexpr int64_t weight_pairs(int64_t columns) { return (columns + 3) / 2; }

}  // namespace c2d
