"""SRFormer's feed-forward by the native CPU kernel (csrc/conv_ffn)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import native
from ..dispatch import Kernel


def _forward(x: Tensor, weights: Sequence[Tensor], norm_first: bool, eps: float) -> Tensor:
    compute = torch.promote_types(x.dtype, torch.float32)
    norm, norm_bias, fc1, fc1_bias, dwconv, dwconv_bias, fc2, fc2_bias = (
        weight.to(compute) for weight in weights
    )
    if norm_first:
        first = native.column_after_norm(fc1, fc1_bias, norm, norm_bias)
    else:
        first = native.bias_column(fc1, fc1_bias)
    second = native.bias_column(fc2, fc2_bias)
    if native.multiplies_bfloat16(x):
        compute = x.dtype
        first, second = native.bfloat16_columns(first), native.bfloat16_columns(second)
    out = torch.ops.c2d_native.conv_ffn.default(
        x.to(compute),
        first,
        native.bias_column(dwconv.flatten(1), dwconv_bias),
        second,
        torch.stack([norm, norm_bias]),
        norm_first,
        eps,
    )
    return out.to(x.dtype)


conv_ffn = Kernel("conv_ffn", "cpu", native.refusal, _forward)
