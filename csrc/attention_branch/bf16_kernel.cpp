// The attention branch of bf16_attention.h, with products of bfloat16.
#include "bf16_attention.h"

namespace c2d::C2D_ISA {
namespace {

int64_t scratch(const BranchSizes<float>& sizes) { return Scratch(sizes, 0, nullptr).elements; }

void run(const BranchSizes<float>& sizes, const BranchWeights<float, Pair>& weights,
         const BranchWindow<float, Bfloat16>& window, float* memory) {
    run_window(sizes, weights, window, {sizes, 0, memory}, [](float*) {});
}

}  // namespace

extern const BranchKernels<float, Pair, Bfloat16> branch_bfloat16 = {kLanes, scratch, run};

}  // namespace c2d::C2D_ISA
