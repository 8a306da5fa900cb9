// SRFormer's feed-forward on the CPU, host side: tiles, threads and scratch memory. The arithmetic
// and its costs are in cpu.cpp.
//
// A task is a tile. Each number is computed the same way whatever tile it is in, and tiles depend
// on the shapes alone.
#include "conv_ffn.h"

#include "../common/checks.h"
#include "../common/isa.h"
#include "../common/row_tiles.h"
#include "../kernels.h"

namespace c2d {
namespace {

template <class T>
const ConvFfnKernels<T>& kernels();
template <>
const ConvFfnKernels<float>& kernels<float>() {
    return C2D_FOR_ISA(conv_ffn_float32);
}
template <>
const ConvFfnKernels<double>& kernels<double>() {
    return C2D_FOR_ISA(conv_ffn_float64);
}

template <class T>
void run(const ConvFfnSizes<T>& sizes, const Tensor& x, const Tensor& first, const Tensor& conv,
         const Tensor& second, const Tensor& norm, const Tensor& out) {
    const auto& kernel = kernels<T>();
    const ConvFfnWeights<T> weights = {first.const_data_ptr<T>(), conv.const_data_ptr<T>(),
                                       second.const_data_ptr<T>(), norm.const_data_ptr<T>()};
    run_tiles<T>(kernel, sizes, weights, kKernel / 2, x, out);
}

}  // namespace

Tensor conv_ffn(const Tensor& x, const Tensor& first, const Tensor& conv, const Tensor& second,
                const Tensor& norm, bool norm_first, double eps) {
    check_floating_cpu(x, "x", 4);
    check_floating_cpu(first, "first", 2);
    const int64_t C = x.size(3), hidden = first.size(0);
    check_matrix(first, "first", x, hidden, C + 1);
    check_matrix(conv, "conv", x, hidden, kKernel * kKernel + 1);
    check_matrix(second, "second", x, C, hidden + 1);
    check_matrix(norm, "norm", x, 2, C);
    const Tensor out = torch::stable::new_empty(x, x.sizes());
    if (out.numel() == 0) {
        return out;
    }
    const Tensor dense = dense_channels(x);
    if (x.scalar_type() == ScalarType::Double) {
        run<double>({x.size(1), x.size(2), C, hidden, norm_first, eps}, dense, first, conv, second,
                    norm, out);
    } else {
        run<float>({x.size(1), x.size(2), C, hidden, norm_first, float(eps)}, dense, first, conv,
                   second, norm, out);
    }
    return out;
}

}  // namespace c2d
