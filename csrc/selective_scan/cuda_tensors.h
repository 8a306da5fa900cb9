// From tensors to the arguments of the CUDA kernels, and the current stream.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cuda_runtime_api.h>

#include <optional>

#include "cuda_scan.h"

// Weak: a torch without CUDA lacks it, and the library has to load there all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace c2d::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void* current_stream(const Tensor& tensor) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                    "this torch has no CUDA, so that a CUDA kernel cannot be launched.");
    void* stream = nullptr;
    const int32_t device = tensor.get_device_index();
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS,
                    "torch has no current stream on CUDA device ", device, ".");
    return stream;
}

inline void check_launches() {
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess,
                    "a selective scan kernel did not start: ", cudaGetErrorString(error));
}

inline Sequence sequence(const Tensor& tensor) {
    return {tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

inline Mixing mixing(const Tensor& tensor, int64_t channels) {
    if (tensor.dim() == 2) {
        return {tensor.data_ptr(), 0, tensor.stride(0), tensor.stride(1), 0, 1, true};
    }
    const int64_t last = tensor.dim() - 1;
    const bool grouped = tensor.dim() == 4;
    return {tensor.data_ptr(),
            tensor.stride(0),
            grouped ? tensor.stride(1) : 0,
            tensor.stride(last - 1),
            tensor.stride(last),
            grouped ? channels / tensor.size(1) : channels,
            false};
}

inline void check_sequence(const Tensor& tensor, const char* name, const Tensor& u) {
    STD_TORCH_CHECK(tensor.dim() == 3 && tensor.is_cuda() &&
                        tensor.scalar_type() == u.scalar_type() && tensor.size(0) == u.size(0) &&
                        tensor.size(1) == u.size(1) && tensor.size(2) == u.size(2),
                    name, " must have the shape, type and device of u.");
}

inline void check_float(const Tensor& tensor, const char* name, int64_t numbers) {
    STD_TORCH_CHECK(
        tensor.is_cuda() && tensor.scalar_type() == ScalarType::Float && tensor.numel() == numbers,
        name, " must hold ", numbers, " float32 numbers on the device of u.");
}

inline void check_mixing(const Tensor& tensor, const char* name, const Tensor& u, int64_t states) {
    const int64_t dims = tensor.dim();
    const bool constant = dims == 2 && tensor.size(0) == u.size(1) && tensor.size(1) == states &&
                          tensor.scalar_type() == ScalarType::Float;
    const bool varying = (dims == 3 || dims == 4) && tensor.size(0) == u.size(0) &&
                         tensor.size(dims - 2) == states && tensor.size(dims - 1) == u.size(2) &&
                         tensor.scalar_type() == u.scalar_type() &&
                         (dims == 3 || (tensor.size(1) > 0 && u.size(1) % tensor.size(1) == 0));
    STD_TORCH_CHECK(tensor.is_cuda() && (constant || varying), name,
                    " must be float32 (D, N), or (batch, N, L) or (batch, G, N, L) in u's type.");
}

// The arguments that both directions share, checked. A, D and delta_bias have to be dense.
inline Scan arguments(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                      const Tensor& C, const std::optional<Tensor>& D,
                      const std::optional<Tensor>& z, const std::optional<Tensor>& delta_bias,
                      bool delta_softplus) {
    check_sequence(u, "u", u);
    check_sequence(delta, "delta", u);
    STD_TORCH_CHECK(A.dim() == 2 && A.size(0) == u.size(1) && A.size(1) >= 1 && u.size(1) >= 1 &&
                        u.size(2) >= 1 && u.size(0) <= kMostImages,
                    "A must be (D, N), and u not empty, of at most ", kMostImages, " images.");
    const int64_t channels = u.size(1), states = A.size(1);
    check_float(A, "A", channels * states);
    check_mixing(B, "B", u, states);
    check_mixing(C, "C", u, states);
    Scan scan = {};
    scan.batch = u.size(0);
    scan.channels = channels;
    scan.states = states;
    scan.length = u.size(2);
    scan.softplus = delta_softplus;
    scan.u = sequence(u);
    scan.delta = sequence(delta);
    scan.B = mixing(B, channels);
    scan.C = mixing(C, channels);
    scan.A = A.const_data_ptr<float>();
    if (D) {
        check_float(*D, "D", channels);
        scan.D = D->const_data_ptr<float>();
    }
    if (delta_bias) {
        check_float(*delta_bias, "delta_bias", channels);
        scan.delta_bias = delta_bias->const_data_ptr<float>();
    }
    if (z) {
        check_sequence(*z, "z", u);
        scan.z = sequence(*z);
    }
    return scan;
}

// Float scratch memory from torch's allocator: kernels of the stream may use it after it is freed.
inline float* workspace(const Tensor& A, int64_t numbers, std::optional<Tensor>& owner) {
    owner = torch::stable::new_empty(A, {numbers});
    return owner->mutable_data_ptr<float>();
}

}  // namespace c2d::cuda
