// What one instruction set offers for a layer of a transformer in windows: the attention branch and
// an MLP behind it, all the arithmetic of one window. kernel.cpp defines it once per instruction
// set; the host side in host.cpp is the branch's.
#pragma once

#include "../attention_branch/attention_branch.h"
#include "../mlp_branch/mlp_branch.h"

namespace c2d {

// Arithmetic in T; weights and the map may have other types. There are no stacked keys.
template <class T, class Weight = T, class Map = T>
struct LayerKernels {
    int64_t lanes;  // elements of a vector
    // Elements of scratch memory, aligned to a vector, that a call needs.
    int64_t (*scratch)(const BranchSizes<T>& sizes, int64_t hidden);
    void (*run)(const BranchSizes<T>& sizes, const BranchWeights<T, Weight>& weights,
                const MlpWeights<T, Weight>& mlp, const BranchWindow<T, Map>& window, T* scratch);
};

#define C2D_DECLARE_LAYER(isa)                       \
    namespace isa {                                  \
    extern const LayerKernels<float> layer_float32;  \
    extern const LayerKernels<double> layer_float64; \
    }

C2D_DECLARE_LAYER(baseline)
#if defined(__x86_64__)
C2D_DECLARE_LAYER(avx2)
C2D_DECLARE_LAYER(avx512)
#endif

#undef C2D_DECLARE_LAYER

// Products of bfloat16, as the branch has them.
namespace avx512bf16 {
extern const LayerKernels<float, Pair, Bfloat16> layer_bfloat16;
}

}  // namespace c2d
