// SRFormer's feed-forward on the CPU, host side: tiles, threads and scratch memory. The arithmetic
// and its costs are in kernel.cpp.
//
// A task is a tile. Each number is computed the same way whatever tile it is in, so that
// results do not depend on the number of threads.
#include "conv_ffn.h"

#include <torch/csrc/stable/library.h>

#include "../common/checks.h"
#include "../common/isa.h"
#include "../common/row_tiles.h"

namespace c2d {
namespace {

template <class T, class Weight, class Map>
void run(const ConvFfnKernels<T, Weight, Map>& kernel, bool norm_first, double eps, const Tensor& x,
         const Tensor& first, const Tensor& conv, const Tensor& second, const Tensor& norm,
         const Tensor& out) {
    const ConvFfnSizes<T> sizes = {x.size(1),     x.size(2),  x.size(3),
                                   first.size(0), norm_first, T(eps)};
    const ConvFfnWeights<T, Weight> weights = {numbers<Weight>(first), numbers<T>(conv),
                                               numbers<Weight>(second), numbers<T>(norm)};
    run_tiles<T, Map>(kernel, sizes, weights, kKernel / 2, x, out);
}

// y = x + fc2(h + GELU(depthwise 5x5 of h)), h = GELU(fc1(x)), with a norm before fc1 (folded into
// it) or after fc2; x (B, H, W, C). The rows of first (hidden, C + 1), conv (hidden, 26) and second
// (C, hidden + 1) are output channels, the last column is the bias; norm is (2, C).
Tensor conv_ffn(const Tensor& x, const Tensor& first, const Tensor& conv, const Tensor& second,
                const Tensor& norm, bool norm_first, double eps) {
    check_floating_cpu(x, "x", 4, true);
    check_floating_cpu(first, "first", 2, true);
    const bool bfloat16 = x.scalar_type() == ScalarType::BFloat16;
    const ScalarType wide = bfloat16 ? ScalarType::Float : x.scalar_type();
    const int64_t C = x.size(3), hidden = first.size(0);
    check_weights(first, "first", x, hidden, C);
    check_weights(second, "second", x, C, hidden);
    check_matrix(conv, "conv", wide, hidden, kKernel * kKernel + 1);
    check_matrix(norm, "norm", wide, 2, C);
    const Tensor out = torch::stable::new_empty(x, x.sizes());
    if (out.numel() == 0) {
        return out;
    }
    const auto run_by = [&](const auto& kernel) {
        run(kernel, norm_first, eps, dense_channels(x), first, conv, second, norm, out);
    };
    if (bfloat16) {
        run_by(check_bfloat16(C2D_FOR_BF16(conv_ffn_bfloat16)));
    } else if (x.scalar_type() == ScalarType::Double) {
        run_by(C2D_FOR_ISA(conv_ffn_float64));
    } else {
        run_by(C2D_FOR_ISA(conv_ffn_float32));
    }
    return out;
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "conv_ffn(Tensor x, Tensor first, Tensor conv, Tensor second, Tensor norm, "
        "bool norm_first, float eps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) { m.impl("conv_ffn", TORCH_BOX(&c2d::conv_ffn)); }
