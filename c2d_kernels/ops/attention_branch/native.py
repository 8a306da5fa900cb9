"""The attention branch by the native CPU kernel (csrc/attention_branch)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from c2d_kernels import native
from c2d_kernels.dispatch import Kernel

LOG2_E = math.log2(math.e)


def fold(
    features: torch.dtype,
    bias_table: Tensor,
    weights: Sequence[Tensor],
    mlp: Sequence[Tensor],
    num_heads: int,
) -> list[Tensor]:
    """Weights that a layer's kernel reads for maps of a dtype: qkv, proj, `mlp`, and the table.

    In float32, or for products of bfloat16 where the machine has them. Weights are of that type or
    wider; `mlp` is empty or the matrices of fc1 and fc2 as native.bias_column makes them.
    """
    norm, norm_bias, *inputs, proj, proj_bias = weights
    channels, table = len(norm), bias_table.to(proj.dtype)
    qkv = native.column_after_norm(torch.cat(inputs[::2]), torch.cat(inputs[1::2]), norm, norm_bias)
    qkv[:channels] *= (channels // num_heads) ** -0.5
    matrices = [qkv, native.bias_column(proj, proj_bias), *mlp]
    if native.multiplies_bfloat16(features):
        qkv[:channels] *= LOG2_E  # its softmax takes powers of two
        table = table * LOG2_E
        matrices = [native.bfloat16_columns(matrix) for matrix in matrices]
    return [*matrices, table.contiguous()]


def run(
    x: Tensor,
    folded: Sequence[Tensor],
    window_size: int,
    num_heads: int,
    shift: int,
    eps: float,
) -> Tensor:
    """The forward."""
    op = torch.ops.c2d_native.attention_branch.default
    out = op(native.computed(x), *folded, window_size, num_heads, shift, eps)
    return out.to(x.dtype)


def fold_branch(
    features: torch.dtype, bias_table: Tensor, weights: Sequence[Tensor], num_heads: int
) -> list[Tensor]:
    """`fold` of attention_branch's own arguments."""
    compute = torch.promote_types(features, torch.float32)
    weights = [weight.to(compute) for weight in weights]
    return fold(features, bias_table, weights, [], num_heads)


def _forward(
    x: Tensor,
    bias_table: Tensor,
    weights: Sequence[Tensor],
    window_size: int,
    num_heads: int,
    shift: int,
    eps: float,
) -> Tensor:
    folded = fold_branch(x.dtype, bias_table, weights, num_heads)
    return run(x, folded, window_size, num_heads, shift, eps)


attention_branch = Kernel(
    "attention_branch", "cpu", native.refusal, _forward, native_ops=("attention_branch",)
)
