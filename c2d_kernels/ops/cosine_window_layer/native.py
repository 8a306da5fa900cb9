"""Swin V2's layer by the native CPU kernel (csrc/cosine_window_layer)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from c2d_kernels import native
from c2d_kernels.dispatch import Kernel


def fold(
    features: torch.dtype, bias_table: Tensor, cosine_scale: Tensor, weights: Sequence[Tensor]
) -> list[Tensor]:
    """Arguments of `run` for maps of a dtype."""
    compute = torch.promote_types(features, torch.float32)
    qkv, qkv_bias, proj, proj_bias, *rest = (weight.to(compute) for weight in weights)
    norm1, norm1_bias, fc1, fc1_bias, fc2, fc2_bias, *norm2 = rest
    return [
        native.bias_column(qkv, qkv_bias),
        native.bias_column(proj, proj_bias),
        torch.stack([norm1, norm1_bias]),
        native.bias_column(fc1, fc1_bias),
        native.bias_column(fc2, fc2_bias),
        torch.stack(norm2),
        bias_table.to(compute).contiguous(),
        cosine_scale.to(compute)[None].contiguous(),
    ]


def run(
    x: Tensor,
    folded: Sequence[Tensor],
    window_size: int,
    num_heads: int,
    shift: int,
    eps: float,
) -> Tensor:
    """The forward."""
    op = torch.ops.c2d_native.cosine_window_layer.default
    return op(native.ready(x, x.dtype), *folded, window_size, num_heads, shift, eps).to(x.dtype)


def _forward(
    x: Tensor,
    bias_table: Tensor,
    cosine_scale: Tensor,
    weights: Sequence[Tensor],
    window_size: int,
    num_heads: int,
    shift: int,
    eps: float,
) -> Tensor:
    folded = fold(x.dtype, bias_table, cosine_scale, weights)
    return run(x, folded, window_size, num_heads, shift, eps)


cosine_window_layer = Kernel(
    "cosine_window_layer", "cpu", native.refusal, _forward, native_ops=("cosine_window_layer",)
)
