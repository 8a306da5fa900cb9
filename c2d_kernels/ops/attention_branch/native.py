"""The attention branch by the native CPU kernel of whole layers (csrc/window_layer)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import native
from ...dispatch import Kernel

LOG2_E = math.log2(math.e)


def run(
    x: Tensor,
    bias_table: Tensor,
    weights: Sequence[Tensor],
    mlp: Sequence[Tensor],
    window_size: int,
    num_heads: int,
    shift: int,
    eps: float,
) -> Tensor:
    """The branch, then what `mlp` describes: the matrices of fc1 and fc2, or nothing.

    In float32, or bfloat16 by products of bfloat16 where the machine has them. Weights are of that
    type or wider, matrices as native.bias_column makes them.
    """
    norm, norm_bias, *inputs, proj, proj_bias = weights
    channels, table = x.shape[-1], bias_table.to(proj.dtype)
    qkv = native.column_after_norm(torch.cat(inputs[::2]), torch.cat(inputs[1::2]), norm, norm_bias)
    qkv[:channels] *= (channels // num_heads) ** -0.5
    matrices = [qkv, native.bias_column(proj, proj_bias), *mlp]
    compute = proj.dtype
    if native.multiplies_bfloat16(x):
        qkv[:channels] *= LOG2_E  # its softmax takes powers of two
        table = table * LOG2_E
        compute, matrices = x.dtype, [native.bfloat16_columns(matrix) for matrix in matrices]
    out = torch.ops.c2d_native.window_layer.default(
        x.to(compute),
        *matrices[:2],
        *(matrices[2:] or (None, None)),
        table.contiguous(),
        window_size,
        num_heads,
        shift,
        eps,
    )
    return out.to(x.dtype)


def _forward(
    x: Tensor, bias_table: Tensor, weights: Sequence[Tensor], *numbers: int | float
) -> Tensor:
    compute = torch.promote_types(x.dtype, torch.float32)
    return run(x, bias_table, [weight.to(compute) for weight in weights], [], *numbers)


attention_branch = Kernel("attention_branch", "cpu", native.refusal, _forward)
