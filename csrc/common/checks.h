// Checks of the private kernels' tensors. The public Python functions refuse bad arguments with
// sentences of their own; these keep a direct caller of torch.ops.c2d_native from reading out of
// bounds.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "bfloat16.h"

namespace c2d {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Refuses a tensor that is not a CPU tensor of `dims` dimensions, float32 or float64, or bfloat16
// if `with_bfloat16`.
inline void check_floating_cpu(const Tensor& tensor, const char* name, int64_t dims,
                               bool with_bfloat16 = false) {
    STD_TORCH_CHECK(tensor.is_cpu(), name, " must be a CPU tensor.");
    STD_TORCH_CHECK(tensor.dim() == dims, name, " must have ", dims, " dimensions, but has ",
                    tensor.dim(), ".");
    const ScalarType type = tensor.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
                        (with_bfloat16 && type == ScalarType::BFloat16),
                    name, " must be float32 or float64", with_bfloat16 ? ", or bfloat16." : ".");
}

// Refuses two tensors that differ in shape or type.
inline void check_same(const Tensor& tensor, const char* name, const Tensor& other,
                       const char* other_name) {
    STD_TORCH_CHECK(tensor.dim() == other.dim() && tensor.scalar_type() == other.scalar_type(),
                    name, " must have the dimensions and type of ", other_name, ".");
    for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
        STD_TORCH_CHECK(tensor.size(dim) == other.size(dim), name, " has size ", tensor.size(dim),
                        " in dimension ", dim, ", but ", other_name, " has ", other.size(dim), ".");
    }
}

// The tensor itself when its last dimension is dense, a contiguous copy otherwise (an expanded
// gradient has stride 0).
inline Tensor dense_channels(const Tensor& tensor) {
    const int64_t last = tensor.dim() - 1;
    return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor
                                                              : torch::stable::contiguous(tensor);
}

// Refuses what is not a dense CPU matrix of these sizes in this type.
inline void check_matrix(const Tensor& matrix, const char* name, ScalarType type, int64_t rows,
                         int64_t columns) {
    STD_TORCH_CHECK(
        matrix.is_cpu() && matrix.dim() == 2 && matrix.scalar_type() == type &&
            matrix.is_contiguous() && matrix.size(0) == rows && matrix.size(1) == columns,
        name, " must be a dense (", rows, ", ", columns, ") in the type that goes with x.");
}

// Refuses what is not a dense matrix of these sizes in the type of x.
inline void check_matrix(const Tensor& matrix, const char* name, const Tensor& x, int64_t rows,
                         int64_t columns) {
    check_matrix(matrix, name, x.scalar_type(), rows, columns);
}

// Refuses what are not the weights of a Linear with its bias, in one column more or, in bfloat16,
// in two that are filled up to a pair.
inline void check_weights(const Tensor& matrix, const char* name, const Tensor& x, int64_t outputs,
                          int64_t inputs) {
    const bool pairs = x.scalar_type() == ScalarType::BFloat16;
    check_matrix(matrix, name, x, outputs, pairs ? 2 * weight_pairs(inputs) : inputs + 1);
}

// A tensor's numbers by the type that the kernels have for them.
template <class Number>
const Number* numbers(const Tensor& tensor) {
    return static_cast<const Number*>(tensor.const_data_ptr());
}

// Refuses bfloat16 where C2D_FOR_BF16 found no kernels.
template <class Kernels>
const Kernels& check_bfloat16(const Kernels* kernels) {
    STD_TORCH_CHECK(kernels != nullptr,
                    "x is bfloat16, which is multiplied on CPUs with AVX-512 BF16 only.");
    return *kernels;
}

}  // namespace c2d
