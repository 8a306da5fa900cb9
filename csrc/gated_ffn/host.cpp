// The gated feed-forward of DAT and MambaIRv2 on the CPU, host side: tiles, threads and scratch
// memory. The arithmetic and its costs are in kernel.cpp.
//
// A task is a tile. Each number is computed the same way whatever tile it is in, so that results do
// not depend on the number of threads.
#include <torch/csrc/stable/library.h>

#include "../common/checks.h"
#include "../common/isa.h"
#include "../common/row_tiles.h"
#include "gated_ffn.h"

namespace c2d {
namespace {

template <class T>
void run(const GatedFfnKernels<T>& kernel, double eps, const Tensor& x, const Tensor& first,
         const Tensor& norm, const Tensor& conv, const Tensor& second, const Tensor& out) {
    const int64_t side = conv.size(1) == 10 ? 3 : 5;
    const GatedFfnSizes<T> sizes = {x.size(1), x.size(2), x.size(3), conv.size(0), side, T(eps)};
    const GatedFfnWeights<T> weights = {numbers<T>(first), numbers<T>(norm), numbers<T>(conv),
                                        numbers<T>(second)};
    run_tiles<T>(kernel, sizes, weights, side / 2, x, out);
}

// y = x + fc2(a * depthwise of LN(b)), [a, b] = GELU(fc1(LN(x))); x (B, H, W, C). The rows of first
// (2 gated, C + 1), conv (gated, 10 or 26) and second (C, gated + 1) are output channels, the last
// column is the bias; the first norm is folded into first, the gate's is norm (2, gated).
Tensor gated_ffn(const Tensor& x, const Tensor& first, const Tensor& norm, const Tensor& conv,
                 const Tensor& second, double eps) {
    check_floating_cpu(x, "x", 4);
    check_floating_cpu(conv, "conv", 2);
    const int64_t C = x.size(3), gated = conv.size(0);
    STD_TORCH_CHECK(gated > 0, "conv must have at least one row.");
    STD_TORCH_CHECK(conv.size(1) == 10 || conv.size(1) == 26, "conv must be 3x3 or 5x5.");
    check_matrix(first, "first", x, 2 * gated, C + 1);
    check_matrix(norm, "norm", x, 2, gated);
    check_matrix(conv, "conv", x, gated, conv.size(1));
    check_matrix(second, "second", x, C, gated + 1);
    const Tensor out = torch::stable::new_empty(x, x.sizes());
    if (out.numel() == 0) {
        return out;
    }
    if (x.scalar_type() == ScalarType::Double) {
        run(C2D_FOR_ISA(gated_ffn_float64), eps, dense_channels(x), first, norm, conv, second, out);
    } else {
        run(C2D_FOR_ISA(gated_ffn_float32), eps, dense_channels(x), first, norm, conv, second, out);
    }
    return out;
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "gated_ffn(Tensor x, Tensor first, Tensor norm, Tensor conv, Tensor second, float eps) -> "
        "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) { m.impl("gated_ffn", TORCH_BOX(&c2d::gated_ffn)); }
