"""The window layer by a Triton kernel (triton_kernels.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from c2d_kernels import triton_packing, triton_support
from c2d_kernels.dispatch import Kernel
from c2d_kernels.triton_packing import packed_mlp, padded
from c2d_kernels.triton_support import block

from ..window_attention.reference import relative_bias
from .reference import BRANCH

MAX_TOKENS, MAX_WIDTH = 64, 64  # of a window that stays in registers
LOG2E = 1.4426950408889634


def _can_run(
    x: Tensor, bias_table: Tensor, weights: Sequence[Tensor], window_size: int, *_: object
) -> str | None:
    if window_size**2 > MAX_TOKENS or x.shape[-1] > MAX_WIDTH:
        return f"it takes windows of up to {MAX_TOKENS} tokens of up to {MAX_WIDTH} channels"
    return triton_support.refusal(x)


def fold(
    features: torch.dtype,
    bias_table: Tensor,
    weights: Sequence[Tensor],
    window_size: int,
    num_heads: int,
) -> list[Tensor]:
    """Arguments of `run` for maps of a dtype: q, k and v's matrices head by head, their biases,
    the attention's bias, proj, the biases of proj and fc2, and fc1, its bias, fc2.

    Both norms' gains and offsets are folded into the Linears behind them, the scores' scale and
    log2(e) into q and the bias; keys beyond the window have a bias of -inf.
    """
    dot, total = triton_packing.precisions(features, weights[2])
    table, *weights = (weight.to(total) for weight in (bias_table, *weights))
    norm1, norm1_bias, qkv, qkv_bias, proj, proj_bias = weights[:BRANCH]
    norm2, norm2_bias, fc1, fc1_bias, fc2, fc2_bias = weights[BRANCH:]
    channels, tokens = proj.shape[0], window_size**2
    head_dim = channels // num_heads
    depth, head, rows = block(channels), block(head_dim), block(tokens)
    qkv_bias = qkv_bias + (qkv * norm1_bias).sum(1)
    by_head = (qkv * norm1).view(3, num_heads, head_dim, channels).permute(1, 0, 3, 2)
    bias_by_head = qkv_bias.view(3, num_heads, head_dim).transpose(0, 1)
    scores_scale = head_dim**-0.5 * LOG2E
    inputs = padded(by_head, depth, head)
    bias_by_head = padded(bias_by_head, head)
    inputs[:, 0] *= scores_scale
    bias_by_head[:, 0] *= scores_scale
    dense = relative_bias(table, (window_size, window_size)) * LOG2E
    dense = F.pad(dense, (0, rows - tokens), value=float("-inf"))
    dense = F.pad(dense, (0, 0, 0, rows - tokens))
    proj = padded(proj.mT.reshape(num_heads, head_dim, channels), head, depth)
    vectors = torch.stack([padded(vector, depth) for vector in (proj_bias, fc2_bias)])
    fc1_bias = fc1_bias + (fc1 * norm2_bias).sum(1)
    return [
        inputs.to(dot),
        bias_by_head,
        dense.contiguous(),
        proj.to(dot),
        vectors,
        *packed_mlp(fc1 * norm2, fc1_bias, fc2, dot),
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
    from . import triton_kernels as kernels

    x = x.contiguous()
    out = torch.empty_like(x)
    batch, height, width, channels = x.shape
    windows = batch * (height // window_size) * (width // window_size)
    if windows == 0:
        return out
    constants = triton_packing.layer_constants(x, folded[0])
    with triton_support.on_device(x):
        kernels.window_layer[windows,](
            *(x, out, *folded, (height, width), num_heads),
            **constants
            | {
                "HEAD": block(channels // num_heads),
                "HIDDEN": folded[-1].shape[0],
                "WINDOW": window_size,
                "SHIFT": shift,
                "BLOCK": block(window_size**2),
                "EPS": eps,
            },
        )
    return out


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


window_layer = Kernel("window_layer", "triton", _can_run, _forward)
