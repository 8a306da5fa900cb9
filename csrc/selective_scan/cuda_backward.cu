// The selective scan's gradients on CUDA tensors; the kernels are in cuda_backward.cuh.
#include "cuda_backward.cuh"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda_tensors.h"

namespace c2d::cuda {
namespace {

// The scan's gradients; those of A, B, C, D and delta_bias in float32.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> selective_scan_backward(
    const Tensor& grad_y, const Tensor& grad_last_state, const Tensor& kept_states, const Tensor& u,
    const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C, std::optional<Tensor> D,
    std::optional<Tensor> z, std::optional<Tensor> delta_bias, bool delta_softplus) {
    (void)kept_states;
    const torch::stable::accelerator::DeviceGuard guard(u.get_device_index());
    Scan scan = arguments(u, delta, A, B, C, D, z, delta_bias, delta_softplus);
    plan(scan, kMostBackward);
    check_sequence(grad_y, "grad_y", u);
    check_float(grad_last_state, "grad_last_state", scan.batch * scan.channels * scan.states);
    scan.dy = sequence(grad_y);
    scan.grad_last_state = grad_last_state.const_data_ptr<float>();

    const Tensor nothing = torch::stable::new_empty(A, {0});
    const auto like = [](const Tensor& tensor) {
        return torch::stable::new_empty(tensor, tensor.sizes());
    };
    const auto zeros = [&](const Tensor& tensor) {
        return torch::stable::new_zeros(A, tensor.sizes());
    };
    const Tensor du = like(u), ddelta = like(delta), dz = z ? like(*z) : nothing;
    const Tensor dA = zeros(A), dB = zeros(B), dC = zeros(C);
    const Tensor dD = D ? zeros(*D) : nothing, dbias = delta_bias ? zeros(*delta_bias) : nothing;
    if (scan.batch == 0) {
        return {du, ddelta, dA, dB, dC, dD, dz, dbias};
    }
    scan.du = sequence(du);
    scan.ddelta = sequence(ddelta);
    scan.dz = z ? sequence(dz) : Sequence{};
    scan.dA = dA.mutable_data_ptr<float>();
    scan.dB = dB.mutable_data_ptr<float>();
    scan.dC = dC.mutable_data_ptr<float>();
    scan.dD = D ? dD.mutable_data_ptr<float>() : nullptr;
    scan.ddelta_bias = delta_bias ? dbias.mutable_data_ptr<float>() : nullptr;

    std::optional<Tensor> delta_sums, states, adjoints, unfinished, parts, sums;
    const int64_t chunks = scan.batch * scan.channels * scan.chunks;
    if (scan.chunks > 1) {
        scan.delta_sums = workspace(A, chunks, delta_sums);
        scan.states_at = workspace(A, chunks * scan.padded, states);
        scan.adjoints_at = workspace(A, chunks * scan.padded, adjoints);
    }
    if (scan.states > scan.padded) {
        scan.unfinished = workspace(A, 3 * scan.batch * scan.channels * scan.length, unfinished);
    }
    if (!scan.B.constant || !scan.C.constant) {
        scan.parts = workspace(A, scan.batch * scan.blocks * scan.length * 2 * scan.padded, parts);
    }
    scan.sums = workspace(A, chunks * sum_numbers(scan.padded), sums);
    void* stream = current_stream(u);
    if (u.scalar_type() == ScalarType::Float) {
        launch_backward<float>(scan, stream);
    } else if (u.scalar_type() == ScalarType::BFloat16) {
        launch_backward<__nv_bfloat16>(scan, stream);
    } else {
        STD_TORCH_CHECK(u.scalar_type() == ScalarType::Half,
                        "u must be float32, bfloat16 or float16.");
        launch_backward<__half>(scan, stream);
    }
    check_launches();
    return {du, ddelta, dA, dB, dC, dD, dz, dbias};
}

}  // namespace
}  // namespace c2d::cuda

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CUDA, m) {
    m.impl("selective_scan_backward", TORCH_BOX(&c2d::cuda::selective_scan_backward));
}
