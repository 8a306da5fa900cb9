// The MLP of layer.h in float32 and float64, one instruction set at a time.
#include "layer.h"

namespace c2d::C2D_ISA {

extern const MlpKernels<float> mlp_float32 = {scratch<Exact<float>>, run<Exact<float>>};
extern const MlpKernels<double> mlp_float64 = {scratch<Exact<double>>, run<Exact<double>>};

}  // namespace c2d::C2D_ISA
