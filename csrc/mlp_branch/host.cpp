// An MLP with the norm before it and the skip around it, on the CPU, host side: tokens, threads and
// scratch memory. The arithmetic and its costs are in layer.h.
//
// A task is some pixels that follow each other in a map, row by row. Each number is computed in one
// task, the same way for any number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../common/aligned.h"
#include "../common/checks.h"
#include "../common/isa.h"
#include "../common/places.h"
#include "mlp_branch.h"

namespace c2d {
namespace {

constexpr int64_t kSmallTask = int64_t{1} << 20;  // multiply-adds not worth another thread

template <class T, class Weight, class Map>
void run(const MlpKernels<T, Weight, Map>& kernel, double eps, const Tensor& x, const Tensor& first,
         const Tensor& second, const Tensor& out) {
    const MlpSizes<T> sizes = {x.size(3), first.size(0), T(eps)};
    const MlpWeights<T, Weight> weights = {sizes.hidden, numbers<Weight>(first),
                                           numbers<Weight>(second)};
    const int64_t pixels = x.size(0) * x.size(1) * x.size(2);
    const int64_t work = 2 * kTokens * sizes.channels * sizes.hidden;
    const int64_t tasks = (pixels + kTokens - 1) / kTokens;
    const int64_t grain = std::max<int64_t>(1, kSmallTask / work);
    torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
        Aligned<T> scratch(kernel.scratch(sizes));
        Places places({&x, &out});
        const TokensOf<const Map> from = {numbers<Map>(x), places.of(0)};
        const TokensOf<Map> to = {static_cast<Map*>(out.mutable_data_ptr()), places.of(1)};
        for (int64_t task = begin; task < end; ++task) {
            const int64_t start = task * kTokens, count = std::min(kTokens, pixels - start);
            places.find(start, count);
            kernel.run(sizes, weights, count, from, to, scratch.data());
        }
    });
}

// y = x + fc2(GELU(fc1(LN(x)))); x (B, H, W, C). The rows of first (hidden, C + 1) and second
// (C, hidden + 1) are output channels, the last column is the bias; the norm is folded into first.
Tensor mlp_branch(const Tensor& x, const Tensor& first, const Tensor& second, double eps) {
    check_floating_cpu(x, "x", 4, true);
    check_floating_cpu(first, "first", 2, true);
    const int64_t C = x.size(3), hidden = first.size(0);
    check_weights(first, "first", x, hidden, C);
    check_weights(second, "second", x, C, hidden);
    const Tensor out = torch::stable::new_empty(x, x.sizes());
    if (out.numel() == 0) {
        return out;
    }
    const auto run_by = [&](const auto& kernel) {
        run(kernel, eps, dense_channels(x), first, second, out);
    };
    if (x.scalar_type() == ScalarType::BFloat16) {
        run_by(check_bfloat16(C2D_FOR_BF16(mlp_bfloat16)));
    } else if (x.scalar_type() == ScalarType::Double) {
        run_by(C2D_FOR_ISA(mlp_float64));
    } else {
        run_by(C2D_FOR_ISA(mlp_float32));
    }
    return out;
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def("mlp_branch(Tensor x, Tensor first, Tensor second, float eps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) { m.impl("mlp_branch", TORCH_BOX(&c2d::mlp_branch)); }
