// A layer of a transformer in windows on the CPU, host side: the walk of the attention branch, with
// an MLP behind it.
#include <torch/csrc/stable/library.h>

#include "../attention_branch/host.h"
#include "../common/isa.h"
#include "window_layer.h"

namespace c2d {
namespace {

template <class T, class Weight, class Map>
void run(const LayerKernels<T, Weight, Map>& kernel, const BranchArguments& in, const Tensor& first,
         const Tensor& second, const Tensor& out) {
    const MlpWeights<T, Weight> mlp = {first.size(0), numbers<Weight>(first),
                                       numbers<Weight>(second)};
    walk_windows<T, Weight, Map>(
        in, kernel.lanes, 2 * in.grid.channels * mlp.hidden, out,
        [&](const BranchSizes<T>& sizes) { return kernel.scratch(sizes, mlp.hidden); },
        [&](const BranchSizes<T>& sizes, const BranchWeights<T, Weight>& weights,
            const BranchWindow<T, Map>& window,
            T* scratch) { kernel.run(sizes, weights, mlp, window, scratch); });
}

// y = x + attention(LN(x)), as attention_branch without stacked keys, then y + MLP(LN(y)). The rows
// of first (hidden, C + 1) and second (C, hidden + 1) are output channels, the last column is the
// bias; the norm is folded into first.
Tensor window_layer(const Tensor& x, const Tensor& qkv, const Tensor& proj, const Tensor& first,
                    const Tensor& second, const Tensor& bias_table, int64_t window_size,
                    int64_t num_heads, int64_t shift, double eps) {
    const BranchArguments in =
        checked_branch(x, qkv, proj, bias_table, window_size, num_heads, shift, eps);
    STD_TORCH_CHECK(!in.stacked(), "an MLP does not go with stacked keys.");
    check_floating_cpu(first, "first", 2, true);
    const int64_t C = x.size(3), hidden = first.size(0);
    check_weights(first, "first", x, hidden, C);
    check_weights(second, "second", x, C, hidden);
    const Tensor out = torch::stable::new_empty(x, x.sizes());
    if (out.numel() == 0) {
        return out;
    }
    if (x.scalar_type() == ScalarType::BFloat16) {
        run(check_bfloat16(C2D_FOR_BF16(layer_bfloat16)), in, first, second, out);
    } else if (x.scalar_type() == ScalarType::Double) {
        run(C2D_FOR_ISA(layer_float64), in, first, second, out);
    } else {
        run(C2D_FOR_ISA(layer_float32), in, first, second, out);
    }
    return out;
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "window_layer(Tensor x, Tensor qkv, Tensor proj, Tensor first, Tensor second, "
        "Tensor bias_table, int window_size, int num_heads, int shift, float eps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("window_layer", TORCH_BOX(&c2d::window_layer));
}
