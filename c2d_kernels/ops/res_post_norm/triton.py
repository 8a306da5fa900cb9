"""The per-token part of a res-post-norm layer by a Triton kernel (triton_kernels.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from c2d_kernels import triton_packing, triton_support
from c2d_kernels.dispatch import Kernel
from c2d_kernels.triton_packing import packed_mlp, padded
from c2d_kernels.triton_support import block

MAX_PARTS, MAX_WIDTH = 4, 64  # beyond 64 channels a block of tokens spills


def _can_run(
    x: Tensor, parts: Sequence[Tensor], weights: Sequence[Tensor], *_: object
) -> str | None:
    widest = max(x.shape[-1], *(part.shape[-1] for part in parts))
    if len(parts) > MAX_PARTS or widest > MAX_WIDTH:
        return f"it takes up to {MAX_PARTS} parts of up to {MAX_WIDTH} channels"
    return triton_support.refusal(x)


def fold(features: torch.dtype, widths: Sequence[int], weights: Sequence[Tensor]) -> list[Tensor]:
    """Arguments of `run` for maps of a dtype: proj, vectors, fc1, its bias, fc2."""
    dot, total = triton_packing.precisions(features, weights[0])
    proj, *rest = (weight.to(total) for weight in weights)
    channels = proj.shape[0]
    depth = block(channels)
    parts = [padded(part.mT, block(part.shape[1]), depth) for part in proj.split(list(widths), 1)]
    mlp = [proj[:0]] * 3
    if len(rest) > 3:
        fc1, fc1_bias, fc2 = rest[3:6]
        mlp = packed_mlp(fc1, fc1_bias, fc2, dot)
    vectors = torch.stack([padded(vector, depth) for vector in (*rest[:3], *rest[6:])])
    return [torch.cat(parts).to(dot), vectors, *mlp]


def run(x: Tensor, parts: Sequence[Tensor], folded: Sequence[Tensor], eps: float) -> Tensor:
    """The forward."""
    from . import triton_kernels as kernels

    channels = x.shape[-1]
    x = x.contiguous()
    out = torch.empty_like(x)
    tokens = x.numel() // channels
    if tokens == 0:
        return out
    rows = [part.reshape(tokens, -1) for part in parts]
    rows = [part if part.stride(1) == 1 else part.contiguous() for part in rows]
    constants = triton_packing.layer_constants(x, folded[0])
    blocks = -(-tokens // triton_packing.tokens(x.device, folded[0].dtype))
    with triton_support.on_device(x):
        kernels.res_post_norm[blocks,](
            *(x, tuple(rows), out, *folded, tokens),
            WIDTHS=tuple(part.shape[1] for part in rows),
            ROWS=tuple(block(part.shape[1]) for part in rows),
            STRIDES=tuple(part.stride(0) for part in rows),
            HIDDEN=folded[-1].shape[0],
            EPS=eps,
            **constants,
        )
    return out


def _forward(x: Tensor, parts: Sequence[Tensor], weights: Sequence[Tensor], eps: float) -> Tensor:
    widths = [part.shape[-1] for part in parts]
    return run(x, parts, fold(x.dtype, widths, weights), eps)


res_post_norm = Kernel("res_post_norm", "triton", _can_run, _forward)
