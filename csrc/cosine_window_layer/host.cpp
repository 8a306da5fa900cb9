// Swin V2's layer in windows on the CPU, host side: the walk of the attention branch.
#include <torch/csrc/stable/library.h>

#include "../attention_branch/host.h"
#include "../common/isa.h"
#include "cosine_window_layer.h"

namespace c2d {
namespace {

template <class T>
void run(const CosineLayerKernels<T>& kernel, const BranchArguments& in, const Tensor& scale,
         const Tensor& norm1, const Tensor& first, const Tensor& second, const Tensor& norm2,
         const Tensor& out) {
    const CosineWeights<T> cosine = {numbers<T>(scale), numbers<T>(norm1), numbers<T>(norm2)};
    const MlpWeights<T> mlp = {first.size(0), numbers<T>(first), numbers<T>(second)};
    walk_windows<T, T, T>(
        in, kernel.lanes, 2 * in.grid.channels * mlp.hidden, out,
        [&](const BranchSizes<T>& sizes) { return kernel.scratch(sizes, mlp.hidden); },
        [&](const BranchSizes<T>& sizes, const BranchWeights<T>& weights,
            const BranchWindow<T>& window,
            T* scratch) { kernel.run(sizes, weights, cosine, mlp, window, scratch); });
}

// y = x + LN(proj(attention of cosines(qkv(x)))), then y + LN(MLP(y)); x (B, H, W, C). The rows of
// qkv (3C, C + 1), proj (C, C + 1), first (hidden, C + 1) and second (C, hidden + 1) are output
// channels, the last column is the bias; scale is (1, heads), a norm (2, C).
Tensor cosine_window_layer(const Tensor& x, const Tensor& qkv, const Tensor& proj,
                           const Tensor& norm1, const Tensor& first, const Tensor& second,
                           const Tensor& norm2, const Tensor& bias_table, const Tensor& scale,
                           int64_t window_size, int64_t num_heads, int64_t shift, double eps) {
    check_floating_cpu(x, "x", 4);
    const BranchArguments in =
        checked_branch(x, qkv, proj, bias_table, window_size, num_heads, shift, eps);
    STD_TORCH_CHECK(!in.stacked(), "cosines do not go with stacked keys.");
    check_floating_cpu(first, "first", 2);
    const int64_t C = x.size(3), hidden = first.size(0);
    STD_TORCH_CHECK(hidden > 0, "first must have at least one row.");
    check_matrix(first, "first", x, hidden, C + 1);
    check_matrix(second, "second", x, C, hidden + 1);
    check_matrix(norm1, "norm1", x, 2, C);
    check_matrix(norm2, "norm2", x, 2, C);
    check_matrix(scale, "scale", x, 1, num_heads);
    const Tensor out = torch::stable::new_empty(x, x.sizes());
    if (out.numel() == 0) {
        return out;
    }
    if (x.scalar_type() == ScalarType::Double) {
        run(C2D_FOR_ISA(cosine_layer_float64), in, scale, norm1, first, second, norm2, out);
    } else {
        run(C2D_FOR_ISA(cosine_layer_float32), in, scale, norm1, first, second, norm2, out);
    }
    return out;
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "cosine_window_layer(Tensor x, Tensor qkv, Tensor proj, Tensor norm1, Tensor first, "
        "Tensor second, Tensor norm2, Tensor bias_table, Tensor scale, int window_size, "
        "int num_heads, int shift, float eps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("cosine_window_layer", TORCH_BOX(&c2d::cosine_window_layer));
}
