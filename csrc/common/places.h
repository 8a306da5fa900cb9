// Where tokens lie that follow each other in maps, row by row: host side.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "token_run.h"

namespace c2d {

using torch::stable::Tensor;

// Where some tokens begin in each of some maps.
class Places {
  public:
    // Strides are asked for once: to ask at every token took a quarter of a layer without an MLP.
    explicit Places(const std::vector<const Tensor*>& maps)
        : height_(maps[0]->size(1)), width_(maps[0]->size(2)), places_(maps.size() * kTokens) {
        for (const Tensor* map : maps) {
            strides_.push_back({map->stride(0), map->stride(1), map->stride(2)});
        }
    }

    const int64_t* of(int64_t map) const { return places_.data() + map * kTokens; }

    // Moves to the `count` tokens from `start` on.
    void find(int64_t start, int64_t count) {
        int64_t column = start % width_, row = start / width_ % height_;
        int64_t image = start / width_ / height_;
        for (int64_t n = 0; n < count; ++n) {
            for (size_t m = 0; m < strides_.size(); ++m) {
                const Strides& by = strides_[m];
                places_[m * kTokens + n] = image * by.image + row * by.row + column * by.column;
            }
            if (++column == width_) {
                column = 0;
                row = row + 1 == height_ ? 0 : row + 1;
                image += row == 0;
            }
        }
    }

  private:
    struct Strides {
        int64_t image, row, column;
    };
    int64_t height_, width_;
    std::vector<Strides> strides_;
    std::vector<int64_t> places_;
};

// Groups of the runs of kTokens tokens of a map. They depend on the number of tokens alone, so that
// sums over a group, and then over groups, are the same for any number of threads.
struct TokenGroups {
    static constexpr int64_t kMost = 64, kLeastRuns = 16;
    int64_t tokens, runs, group, count;  // group: runs in each; count: of groups

    explicit TokenGroups(int64_t of_map)
        : tokens(of_map),
          runs((tokens + kTokens - 1) / kTokens),
          group(std::max(kLeastRuns, (runs + kMost - 1) / kMost)),
          count((runs + group - 1) / group) {}

    // Calls run(first token, count) for each run of a group.
    template <class Run>
    void each_run(int64_t index, Run run) const {
        for (int64_t r = index * group; r < std::min((index + 1) * group, runs); ++r) {
            run(r * kTokens, std::min(kTokens, tokens - r * kTokens));
        }
    }
};

}  // namespace c2d
