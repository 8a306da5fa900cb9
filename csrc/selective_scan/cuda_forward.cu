// The selective scan's forward operator on CUDA tensors; the kernels are in cuda_forward.cuh.
#include "cuda_forward.cuh"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda_tensors.h"

namespace c2d::cuda {
namespace {

// The scan on CUDA tensors: u, delta, z and what varies of B and C in float32, bfloat16 or float16;
// A, D, delta_bias and what is constant in float32, dense. keep_states has to be false.
std::tuple<Tensor, Tensor, Tensor> selective_scan(const Tensor& u, const Tensor& delta,
                                                  const Tensor& A, const Tensor& B, const Tensor& C,
                                                  std::optional<Tensor> D, std::optional<Tensor> z,
                                                  std::optional<Tensor> delta_bias,
                                                  bool delta_softplus, bool keep_states) {
    STD_TORCH_CHECK(!keep_states, "the CUDA kernel keeps no states for its backward.");
    const torch::stable::accelerator::DeviceGuard guard(u.get_device_index());
    Scan scan = arguments(u, delta, A, B, C, D, z, delta_bias, delta_softplus);
    plan(scan, kMostForward);
    const Tensor y = torch::stable::empty_like(u);
    const Tensor last = torch::stable::new_empty(A, {scan.batch, scan.channels, scan.states});
    const Tensor kept = torch::stable::new_empty(A, {0});
    if (scan.batch == 0) {
        return {y, last, kept};
    }
    scan.y = sequence(y);
    scan.last_state = last.mutable_data_ptr<float>();
    std::optional<Tensor> sums, states, unfinished;
    const int64_t chunks = scan.batch * scan.channels * scan.chunks;
    if (scan.chunks > 1) {
        scan.delta_sums = workspace(A, chunks, sums);
        scan.states_at = workspace(A, chunks * scan.padded, states);
    }
    if (scan.states > scan.padded) {
        scan.unfinished = workspace(A, scan.batch * scan.channels * scan.length, unfinished);
    }
    void* stream = current_stream(u);
    if (u.scalar_type() == ScalarType::Float) {
        launch_forward<float>(scan, stream);
    } else if (u.scalar_type() == ScalarType::BFloat16) {
        launch_forward<__nv_bfloat16>(scan, stream);
    } else {
        STD_TORCH_CHECK(u.scalar_type() == ScalarType::Half,
                        "u must be float32, bfloat16 or float16.");
        launch_forward<__half>(scan, stream);
    }
    check_launches();
    return {y, last, kept};
}

}  // namespace
}  // namespace c2d::cuda

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CUDA, m) {
    m.impl("selective_scan", TORCH_BOX(&c2d::cuda::selective_scan));
}
