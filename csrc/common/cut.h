// How kernels cut their scratch memory into parts. Like simd.h, compiled once per instruction set,
// with internal linkage.
#pragma once

#include "simd.h"

namespace c2d::C2D_ISA {
namespace {

inline int64_t rounded_up(int64_t count, int64_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

// Parts of one piece of memory, each from a vector's boundary on. Without memory they are only
// counted and stay null: pointers behind a null pointer are undefined.
template <class T>
class Cut {
  public:
    explicit Cut(T* memory) : memory_(memory) {}

    // The next `count` numbers, of T or of another type of its size.
    template <class Part>
    void operator()(Part*& part, int64_t count) {
        static_assert(sizeof(Part) == sizeof(T));
        part = memory_ == nullptr ? nullptr : (Part*)(memory_ + elements_);
        elements_ += rounded_up(count, kVectorBytes / int64_t(sizeof(T)));
    }

    // Numbers cut so far.
    int64_t elements() const { return elements_; }

  private:
    T* const memory_;
    int64_t elements_ = 0;
};

}  // namespace
}  // namespace c2d::C2D_ISA
