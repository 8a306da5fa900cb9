"""The specification of the attention branch of a transformer layer whose norms come first.

Any floating dtype, any device, differentiable by torch. Half-precision features are computed in
float32 and returned in their own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..window_attention import reference


def names(*modules: str) -> tuple[str, ...]:
    """Their weights and biases, in the order in which the op takes them."""
    return tuple(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))


NAMES = names("norm", "qkv", "proj")
PERMUTED_NAMES = names("norm", "q", "kv", "proj")


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
    attentions = (reference.window_attention, reference.permuted_window_attention)
    return composed(x.to(compute), bias_table.to(compute), weights, *numbers, attentions).to(
        x.dtype
    )


def composed(
    x: Tensor,
    bias_table: Tensor,
    weights: Sequence[Tensor],
    window_size: int,
    num_heads: int,
    shift: int,
    eps: float,
    attentions: Sequence[Callable[..., Tensor]],
) -> Tensor:
    """The branch out of torch's operators, and of the attention for one input map or for two."""
    norm, norm_bias, *inputs, proj, proj_bias = weights
    channels = x.shape[-1]
    normed = F.layer_norm(x, [channels], norm, norm_bias, eps)
    maps = [F.linear(normed, *inputs[i : i + 2]) for i in range(0, len(inputs), 2)]
    scale = (channels // num_heads) ** -0.5
    attend = attentions[len(maps) - 1]
    attended = attend(*maps, bias_table, window_size, num_heads, shift, scale)
    return (x + F.linear(attended, proj, proj_bias)).to(x.dtype)  # autocast may have widened it
