"""SRFormer's feed-forward by the native CPU kernels (csrc/conv_ffn)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from c2d_kernels import native
from c2d_kernels.dispatch import Kernel


def fold(features: torch.dtype, weights: Sequence[Tensor], norm_first: bool) -> list[Tensor]:
    """Arguments of `run` for maps of a dtype."""
    compute = torch.promote_types(features, torch.float32)
    first, conv, second, norm = _matrices(weights, norm_first, compute)
    if native.multiplies_bfloat16(features):
        first, second = native.bfloat16_columns(first), native.bfloat16_columns(second)
    return [first, conv, second, norm]


def run(x: Tensor, folded: Sequence[Tensor], norm_first: bool, eps: float) -> Tensor:
    """The forward."""
    op = torch.ops.c2d_native.conv_ffn.default
    return op(native.computed(x), *folded, norm_first, eps).to(x.dtype)


def _forward(x: Tensor, weights: Sequence[Tensor], norm_first: bool, eps: float) -> Tensor:
    return run(x, fold(x.dtype, weights, norm_first), norm_first, eps)


def _backward(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    norm_first: bool,
    eps: float,
    mask: list[bool],
) -> tuple[Tensor | None, ...]:
    compute = torch.promote_types(x.dtype, torch.float32)
    matrices = _matrices(weights, norm_first, compute)
    op = torch.ops.c2d_native.conv_ffn_backward.default
    dx, first, conv, second, norm = op(grad.to(compute), x.to(compute), *matrices, norm_first, eps)
    if norm_first:  # fc1 has taken over its affine part
        norms = native.gradients_before_norm(first, *(weight.to(compute) for weight in weights[:3]))
    else:
        norms = (*norm, first[:, :-1], first[:, -1])
    dwconv = conv[:, :-1].reshape(weights[4].shape)
    found = (dx, *norms, dwconv, conv[:, -1], second[:-1].t(), second[-1])
    return tuple(
        gradient.to(tensor.dtype) if needed else None
        for gradient, tensor, needed in zip(found, (x, *weights), mask, strict=True)
    )


def _matrices(weights: Sequence[Tensor], norm_first: bool, compute: torch.dtype) -> list[Tensor]:
    """fc1, the convolution, fc2 and the norm as the kernels read them."""
    norm, norm_bias, fc1, fc1_bias, dwconv, dwconv_bias, fc2, fc2_bias = (
        weight.to(compute) for weight in weights
    )
    if norm_first:
        first = native.column_after_norm(fc1, fc1_bias, norm, norm_bias)
    else:
        first = native.bias_column(fc1, fc1_bias)
    conv = native.bias_column(dwconv.flatten(1), dwconv_bias)
    return [first, conv, native.bias_column(fc2, fc2_bias), torch.stack([norm, norm_bias])]


conv_ffn = Kernel(
    "conv_ffn",
    "cpu",
    native.refusal,
    _forward,
    _backward,
    native_ops=("conv_ffn", "conv_ffn_backward"),
)
