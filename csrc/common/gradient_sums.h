// The last sum of weights' gradients that groups of a map have added up for themselves: host side.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace c2d {

// Some tensors' numbers one after the other, once for each group, zero in the beginning.
template <class T>
class GradientSums {
  public:
    GradientSums(int64_t groups, const std::vector<torch::stable::Tensor>& tensors)
        : groups_(groups), tensors_(tensors), starts_({0}) {
        for (const torch::stable::Tensor& tensor : tensors) {
            starts_.push_back(starts_.back() + tensor.numel());
        }
        sums_.resize(groups * starts_.back());
    }

    T* of(int64_t group, int64_t tensor) {
        return sums_.data() + group * starts_.back() + starts_[tensor];
    }

    // Writes the tensors: groups are added in their order, for any number of threads.
    void finish() const {
        for (size_t t = 0; t < tensors_.size(); ++t) {
            T* const to = static_cast<T*>(tensors_[t].mutable_data_ptr());
            const T* const from = sums_.data() + starts_[t];
            torch::stable::parallel_for(0, tensors_[t].numel(), kGrain,
                                        [&](int64_t begin, int64_t end) {
                                            std::copy(from + begin, from + end, to + begin);
                                            for (int64_t g = 1; g < groups_; ++g) {
                                                for (int64_t i = begin; i < end; ++i) {
                                                    to[i] += from[g * starts_.back() + i];
                                                }
                                            }
                                        });
        }
    }

  private:
    static constexpr int64_t kGrain = 1 << 12;  // numbers not worth another thread
    int64_t groups_;
    const std::vector<torch::stable::Tensor>& tensors_;
    std::vector<int64_t> starts_;
    std::vector<T> sums_;
};

}  // namespace c2d
