"""An MLP with its norm and skip by the native CPU kernels (csrc/mlp_branch)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from c2d_kernels import native
from c2d_kernels.dispatch import Kernel

WIDEST = 224  # channels that train faster here than in torch: csrc/mlp_branch/backward_kernel.cpp


def fold(features: torch.dtype, weights: Sequence[Tensor]) -> list[Tensor]:
    """Arguments of `run` for maps of a dtype."""
    matrices = _matrices(weights, torch.promote_types(features, torch.float32))
    if native.multiplies_bfloat16(features):
        return [native.bfloat16_columns(matrix) for matrix in matrices]
    return matrices


def run(x: Tensor, folded: Sequence[Tensor], eps: float) -> Tensor:
    """The forward."""
    op = torch.ops.c2d_native.mlp_branch.default
    return op(native.computed(x), *folded, eps).to(x.dtype)


def _forward(x: Tensor, weights: Sequence[Tensor], eps: float) -> Tensor:
    return run(x, fold(x.dtype, weights), eps)


def _backward(
    grad: Tensor, x: Tensor, weights: Sequence[Tensor], eps: float, mask: list[bool]
) -> tuple[Tensor | None, ...]:
    compute = torch.promote_types(x.dtype, torch.float32)
    op = torch.ops.c2d_native.mlp_branch_backward.default
    matrices = _matrices(weights, compute)
    dx, first, second = op(grad.to(compute), x.to(compute), *matrices, eps)
    norm = native.gradients_before_norm(first, *(weight.to(compute) for weight in weights[:3]))
    found = (dx, *norm, second[:-1].t(), second[-1])
    return tuple(
        gradient.to(tensor.dtype) if needed else None
        for gradient, tensor, needed in zip(found, (x, *weights), mask, strict=True)
    )


def _matrices(weights: Sequence[Tensor], compute: torch.dtype) -> list[Tensor]:
    """fc1, which takes over the norm's affine part, and fc2 as the kernels read them."""
    norm, norm_bias, fc1, fc1_bias, fc2, fc2_bias = (weight.to(compute) for weight in weights)
    first = native.column_after_norm(fc1, fc1_bias, norm, norm_bias)
    return [first, native.bias_column(fc2, fc2_bias)]


def _trains_slower(x: Tensor, *_: object) -> bool:
    return x.shape[-1] > WIDEST


mlp_branch = Kernel(
    "mlp_branch",
    "cpu",
    native.refusal,
    _forward,
    _backward,
    trains_slower=_trains_slower,
    native_ops=("mlp_branch", "mlp_branch_backward"),
)
