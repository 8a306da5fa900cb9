"""The specification of the attention branch of a transformer layer whose norms come first.

Any floating dtype, any device, differentiable by torch. Half-precision features are computed in
float32 and returned in their own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from c2d_kernels.layer_weights import names

from ..window_attention import reference

NAMES = names("norm", "qkv", "proj")
PERMUTED_NAMES = names("norm", "q", "kv", "proj")


class Attentions(NamedTuple):
    """The two attentions a branch may have, called with their maps and what follows them."""

    of_qkv: Callable[..., Tensor]
    of_q_and_kv: Callable[..., Tensor]


REFERENCES = Attentions(reference.window_attention, reference.permuted_window_attention)


def attention_branch(
    x: Tensor,
    bias_table: Tensor,
    weights: Sequence[Tensor],
    window_size: int,
    num_heads: int,
    shift: int,
    eps: float,
) -> Tensor:
    """`x + proj(attention(LN(x)))` of qkv (Swin), or of q and kv (SRFormer).

    x (B, H, W, C), H and W multiples of window_size; weights as NAMES or PERMUTED_NAMES orders
    them. Returns (B, H, W, C). SwinIR (2108.10257), equation 5; SRFormer (2303.09735).
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    weights = [weight.to(compute) for weight in weights]
    numbers = (window_size, num_heads, shift, eps)
    out = composed(x.to(compute), bias_table.to(compute), weights, *numbers, REFERENCES)
    return out.to(x.dtype)


def composed(
    x: Tensor,
    bias_table: Tensor,
    weights: Sequence[Tensor],
    window_size: int,
    num_heads: int,
    shift: int,
    eps: float,
    attentions: Attentions,
) -> Tensor:
    """The branch out of torch's operators and of the attention that fits its weights."""
    norm, norm_bias, *inputs, proj, proj_bias = weights
    channels = x.shape[-1]
    normed = F.layer_norm(x, [channels], norm, norm_bias, eps)
    maps = [F.linear(normed, *inputs[i : i + 2]) for i in range(0, len(inputs), 2)]
    scale = (channels // num_heads) ** -0.5
    attend = attentions.of_qkv if len(maps) == 1 else attentions.of_q_and_kv
    attended = attend(*maps, bias_table, window_size, num_heads, shift, scale)
    return (x + F.linear(attended, proj, proj_bias)).to(x.dtype)  # autocast may have widened it
