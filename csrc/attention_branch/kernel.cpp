// The attention branch of attention.h in float32 and float64, one instruction set at a time.
#include "attention.h"

namespace c2d::C2D_ISA {
namespace {

template <class T, int lanes>
int64_t scratch(const BranchSizes<T>& sizes) {
    return Scratch<T, lanes>(sizes, 0, nullptr).elements;
}

template <class T, int lanes>
void run(const BranchSizes<T>& sizes, const BranchWeights<T>& weights,
         const BranchWindow<T>& window, T* memory) {
    run_window<T, lanes>(sizes, weights, window, {sizes, 0, memory}, [](T*) {});
}

constexpr int kFloats = kVectorBytes / sizeof(float), kDoubles = kVectorBytes / sizeof(double);

}  // namespace

extern const BranchKernels<float> branch_float32 = {kFloats, scratch<float, kFloats>,
                                                    run<float, kFloats>};
extern const BranchKernels<double> branch_float64 = {kDoubles, scratch<double, kDoubles>,
                                                     run<double, kDoubles>};

}  // namespace c2d::C2D_ISA
