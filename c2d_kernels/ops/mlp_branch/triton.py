"""An MLP with its norm and skip by a Triton kernel (triton_kernels.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from c2d_kernels import triton_packing, triton_support
from c2d_kernels.dispatch import Kernel
from c2d_kernels.triton_packing import packed_mlp, padded
from c2d_kernels.triton_support import block

MAX_WIDTH = 64  # beyond it a block of tokens spills


def _can_run(x: Tensor, *_: object) -> str | None:
    if x.shape[-1] > MAX_WIDTH:
        return f"it takes up to {MAX_WIDTH} channels"
    return triton_support.refusal(x)


def fold(features: torch.dtype, weights: Sequence[Tensor]) -> list[Tensor]:
    """Arguments of `run` for maps of a dtype: fc2's bias, fc1 after the norm, its bias, fc2."""
    dot, total = triton_packing.precisions(features, weights[2])
    norm, norm_bias, fc1, fc1_bias, fc2, fc2_bias = (weight.to(total) for weight in weights)
    fc1_bias = fc1_bias + (fc1 * norm_bias).sum(1)
    return [padded(fc2_bias, block(len(fc2_bias))), *packed_mlp(fc1 * norm, fc1_bias, fc2, dot)]


def run(x: Tensor, folded: Sequence[Tensor], eps: float) -> Tensor:
    """The forward."""
    from . import triton_kernels as kernels

    x = x.contiguous()
    out = torch.empty_like(x)
    tokens = x.numel() // x.shape[-1]
    if tokens == 0:
        return out
    matrix = folded[-1]
    constants = triton_packing.layer_constants(x, matrix)
    blocks = -(-tokens // triton_packing.tokens(x.device, matrix.dtype))
    with triton_support.on_device(x):
        kernels.mlp_branch[blocks,](
            *(x, out, *folded, tokens), HIDDEN=matrix.shape[0], EPS=eps, **constants
        )
    return out


def _forward(x: Tensor, weights: Sequence[Tensor], eps: float) -> Tensor:
    return run(x, fold(x.dtype, weights), eps)


mlp_branch = Kernel("mlp_branch", "triton", _can_run, _forward)
