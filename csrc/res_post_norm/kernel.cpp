// The res-post-norm layer of layer.h in float32 and float64, one instruction set at a time.
#include "layer.h"

namespace c2d::C2D_ISA {

extern const PostNormKernels<float> post_norm_float32 = {scratch<Exact<float>>, run<Exact<float>>};
extern const PostNormKernels<double> post_norm_float64 = {scratch<Exact<double>>,
                                                          run<Exact<double>>};

}  // namespace c2d::C2D_ISA
