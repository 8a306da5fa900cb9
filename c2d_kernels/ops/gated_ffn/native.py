"""A gated feed-forward by the native CPU kernel (csrc/gated_ffn)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from c2d_kernels import native
from c2d_kernels.dispatch import Kernel


def fold(features: torch.dtype, weights: Sequence[Tensor]) -> list[Tensor]:
    """Arguments of `run` for maps of a dtype: fc1 after the norm, the gate's norm, dwconv, fc2."""
    compute = torch.promote_types(features, torch.float32)
    norm, norm_bias, fc1, fc1_bias, *gate, dwconv, dwconv_bias, fc2, fc2_bias = (
        weight.to(compute) for weight in weights
    )
    return [
        native.column_after_norm(fc1, fc1_bias, norm, norm_bias),
        torch.stack(gate),
        native.bias_column(dwconv.flatten(1), dwconv_bias),
        native.bias_column(fc2, fc2_bias),
    ]


def run(x: Tensor, folded: Sequence[Tensor], eps: float) -> Tensor:
    """The forward."""
    op = torch.ops.c2d_native.gated_ffn.default
    return op(native.ready(x, x.dtype), *folded, eps).to(x.dtype)


def _forward(x: Tensor, weights: Sequence[Tensor], eps: float) -> Tensor:
    return run(x, fold(x.dtype, weights), eps)


gated_ffn = Kernel("gated_ffn", "cpu", native.refusal, _forward, native_ops=("gated_ffn",))
