"""The per-token part of a res-post-norm layer by the native CPU kernel (csrc/res_post_norm)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import native
from ..dispatch import Kernel


def _can_run(x: Tensor, parts: Sequence[Tensor], *_: object) -> str | None:
    if len(parts) > 4:
        return f"it takes up to 4 parts, got {len(parts)}"
    return native.refusal(x)


def _forward(x: Tensor, parts: Sequence[Tensor], weights: Sequence[Tensor], eps: float) -> Tensor:
    compute = torch.promote_types(x.dtype, torch.float32)
    proj, proj_bias, *norm1, fc1, fc1_bias, fc2, fc2_bias, norm2, norm2_bias = (
        weight.to(compute) for weight in weights
    )
    matrices = [
        native.bias_column(proj, proj_bias),
        native.bias_column(fc1, fc1_bias),
        native.bias_column(fc2, fc2_bias),
    ]
    if native.multiplies_bfloat16(x):
        compute, matrices = x.dtype, map(native.bfloat16_columns, matrices)
    proj, fc1, fc2 = matrices
    out = torch.ops.c2d_native.res_post_norm.default(
        x.to(compute),
        [part.to(compute) for part in parts],
        proj,
        torch.stack(norm1),
        fc1,
        fc2,
        torch.stack([norm2, norm2_bias]),
        eps,
    )
    return out.to(x.dtype)


res_post_norm = Kernel("res_post_norm", "cpu", _can_run, _forward)
