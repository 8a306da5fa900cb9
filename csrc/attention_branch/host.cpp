// The attention branch of a transformer in windows on the CPU, host side. How windows are walked:
// host.h.
#include "host.h"

#include <torch/csrc/stable/library.h>

#include "../common/isa.h"

namespace c2d {
namespace {

template <class T, class Weight, class Map>
void run(const BranchKernels<T, Weight, Map>& kernel, const BranchArguments& in,
         const Tensor& out) {
    walk_windows<T, Weight, Map>(in, kernel.lanes, 0, out, kernel.scratch, kernel.run);
}

// x + attention(LN(x)) in windows; x (B, H, W, C). The rows of qkv (3C, C + 1) and proj (C, C + 1)
// are output channels, the last column is the bias; the norm and the scale of q are folded into
// qkv. With qkv (3C / 2, C + 1) keys are stacked as SRFormer's are. For x in bfloat16, see
// attention_branch.h.
Tensor attention_branch(const Tensor& x, const Tensor& qkv, const Tensor& proj,
                        const Tensor& bias_table, int64_t window_size, int64_t num_heads,
                        int64_t shift, double eps) {
    const BranchArguments in =
        checked_branch(x, qkv, proj, bias_table, window_size, num_heads, shift, eps);
    const Tensor out = torch::stable::new_empty(x, x.sizes());
    if (out.numel() == 0) {
        return out;
    }
    if (x.scalar_type() == ScalarType::BFloat16) {
        run(check_bfloat16(C2D_FOR_BF16(branch_bfloat16)), in, out);
    } else if (x.scalar_type() == ScalarType::Double) {
        run(C2D_FOR_ISA(branch_float64), in, out);
    } else {
        run(C2D_FOR_ISA(branch_float32), in, out);
    }
    return out;
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "attention_branch(Tensor x, Tensor qkv, Tensor proj, Tensor bias_table, int window_size, "
        "int num_heads, int shift, float eps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("attention_branch", TORCH_BOX(&c2d::attention_branch));
}
