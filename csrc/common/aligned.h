// Scratch memory of the host sides of the CPU kernels.
#pragma once

#include <cstdint>
#include <vector>

namespace c2d {

// Zeros that begin at a vector's boundary.
template <class T>
class Aligned {
  public:
    explicit Aligned(int64_t elements) : memory_(elements + kBytes / sizeof(T)) {
        const auto address = reinterpret_cast<uintptr_t>(memory_.data());
        data_ = memory_.data() + (kBytes - address % kBytes) % kBytes / sizeof(T);
    }
    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;
    T* data() { return data_; }
    const T* data() const { return data_; }

  private:
    static constexpr uintptr_t kBytes = 64;
    std::vector<T> memory_;
    T* data_;
};

}  // namespace c2d
