// The res-post-norm layer of layer.h with products of bfloat16 (AVX-512 BF16), for maps of
// bfloat16. How that is done: ../common/pairs.h.
//
// What was measured, in turns with float32 in one process, on the machine and the sizes of layer.h,
// two threads, medians of 100: 4.9 ms, float32 7.9 ms (1.61 times as long). Predicted were 5.5 ms
// beside 8.9 ms.
#include "layer.h"

namespace c2d::C2D_ISA {

extern const PostNormKernels<float, Pair, Bfloat16> post_norm_bfloat16 = {scratch<Paired>,
                                                                          run<Paired>};

}  // namespace c2d::C2D_ISA
