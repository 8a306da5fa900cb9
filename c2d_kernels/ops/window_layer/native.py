"""The window layer by the native CPU kernel (csrc/window_layer)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from c2d_kernels import native
from c2d_kernels.dispatch import Kernel

from ..attention_branch.native import fold as fold_branch
from .reference import BRANCH


def fold(
    features: torch.dtype,
    bias_table: Tensor,
    weights: Sequence[Tensor],
    window_size: int,
    num_heads: int,
) -> list[Tensor]:
    """Arguments of `run` for maps of a dtype."""
    compute = torch.promote_types(features, torch.float32)
    weights = [weight.to(compute) for weight in weights]
    norm2, norm2_bias, fc1, fc1_bias, fc2, fc2_bias = weights[BRANCH:]
    mlp = [
        native.column_after_norm(fc1, fc1_bias, norm2, norm2_bias),
        native.bias_column(fc2, fc2_bias),
    ]
    return fold_branch(features, bias_table, weights[:BRANCH], mlp, num_heads)


def run(
    x: Tensor,
    folded: Sequence[Tensor],
    window_size: int,
    num_heads: int,
    shift: int,
    eps: float,
) -> Tensor:
    """The forward."""
    op = torch.ops.c2d_native.window_layer.default
    out = op(native.computed(x), *folded, window_size, num_heads, shift, eps)
    return out.to(x.dtype)


def _forward(
    x: Tensor,
    bias_table: Tensor,
    weights: Sequence[Tensor],
    window_size: int,
    num_heads: int,
    shift: int,
    eps: float,
) -> Tensor:
    folded = fold(x.dtype, bias_table, weights, window_size, num_heads)
    return run(x, folded, window_size, num_heads, shift, eps)


window_layer = Kernel("window_layer", "cpu", native.refusal, _forward, native_ops=("window_layer",))
