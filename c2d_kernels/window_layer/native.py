"""The window layer by the native CPU kernel (csrc/window_layer)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import native
from ..dispatch import Kernel

LOG2_E = math.log2(math.e)


def _forward(
    x: Tensor,
    bias_table: Tensor,
    weights: Sequence[Tensor],
    window_size: int,
    num_heads: int,
    shift: int,
    eps: float,
) -> Tensor:
    """In float32, or bfloat16 by products of bfloat16 where the machine has them."""
    compute = torch.promote_types(x.dtype, torch.float32)
    norm1, norm1_bias, qkv, qkv_bias, proj, proj_bias, *rest = (w.to(compute) for w in weights)
    norm2, norm2_bias, fc1, fc1_bias, fc2, fc2_bias = rest
    channels = x.shape[-1]
    attention = native.column_after_norm(qkv, qkv_bias, norm1, norm1_bias)
    attention[:channels] *= (channels // num_heads) ** -0.5
    table = bias_table.to(compute)
    matrices = [
        attention,
        native.bias_column(proj, proj_bias),
        native.column_after_norm(fc1, fc1_bias, norm2, norm2_bias),
        native.bias_column(fc2, fc2_bias),
    ]
    if native.multiplies_bfloat16(x):
        attention[:channels] *= LOG2_E  # its softmax takes powers of two
        table = table * LOG2_E
        compute, matrices = x.dtype, map(native.bfloat16_columns, matrices)
    out = torch.ops.c2d_native.window_layer.default(
        x.to(compute),
        *matrices,
        table.contiguous(),
        window_size,
        num_heads,
        shift,
        eps,
    )
    return out.to(x.dtype)


window_layer = Kernel("window_layer", "cpu", native.refusal, _forward)
