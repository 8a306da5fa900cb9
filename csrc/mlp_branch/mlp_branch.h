// What one instruction set offers for an MLP with the norm before it and the skip around it: all
// the arithmetic of some tokens. layer.h defines it, kernel.cpp once per instruction set; the host
// side in host.cpp walks the map and knows where tokens lie.
#pragma once

#include "../common/bfloat16.h"
#include "../common/token_run.h"

namespace c2d {

// Weights as kernels read them: rows of output channels, the bias in the last column. The norm is
// folded into the first.
template <class T, class Weight = T>
struct MlpWeights {
    int64_t hidden;
    const Weight* first;   // (hidden, C + 1)
    const Weight* second;  // (C, hidden + 1)
};

template <class T>
struct MlpSizes {
    int64_t channels, hidden;
    T eps;
};

// Arithmetic in T; weights and maps may have other types.
template <class T, class Weight = T, class Map = T>
struct MlpKernels {
    // Elements of scratch memory, aligned to a vector, that a call needs.
    int64_t (*scratch)(const MlpSizes<T>& sizes);
    // Of at most kTokens tokens.
    void (*run)(const MlpSizes<T>& sizes, const MlpWeights<T, Weight>& weights, int64_t count,
                const TokensOf<const Map>& x, const TokensOf<Map>& out, T* scratch);
};

#define C2D_DECLARE_MLP(isa)                     \
    namespace isa {                              \
    extern const MlpKernels<float> mlp_float32;  \
    extern const MlpKernels<double> mlp_float64; \
    }

C2D_DECLARE_MLP(baseline)
#if defined(__x86_64__)
C2D_DECLARE_MLP(avx2)
C2D_DECLARE_MLP(avx512)
#endif

#undef C2D_DECLARE_MLP

// Products of bfloat16: weights have the bias in two columns, see ../common/pairs.h.
namespace avx512bf16 {
extern const MlpKernels<float, Pair, Bfloat16> mlp_bfloat16;
}

}  // namespace c2d
