// The MLP of layer.h with products of bfloat16 (AVX-512 BF16), for maps of bfloat16. How that is
// done: ../common/pairs.h.
#include "layer.h"

namespace c2d::C2D_ISA {

extern const MlpKernels<float, Pair, Bfloat16> mlp_bfloat16 = {scratch<Paired>, run<Paired>};

}  // namespace c2d::C2D_ISA
