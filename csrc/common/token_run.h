// Some tokens that follow each other in a map, row by row, for layers that see one token at a time.
#pragma once

#include <stdint.h>

namespace c2d {

constexpr int64_t kTokens = 64;  // that are handled at a time

// Where they begin in a map.
template <class T>
struct TokensOf {
    T* map;
    const int64_t* token;
};

}  // namespace c2d
