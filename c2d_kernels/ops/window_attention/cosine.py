"""Attention of cosines, composed of the operator `window_attention`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .op import window_attention

LARGEST_SCALE = math.log(100.0)
"""At which the logarithm of the cosines' scale is cut off."""


def cosine_window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    logit_scale: Tensor,
    *,
    window_size: int,
    num_heads: int,
    shift: int,
) -> Tensor:
    """Swin V2's attention: `softmax(scale_h cos(q, k) + 16 sigmoid(bias) + mask) v`.

    Args:
        qkv: (B, H, W, 3C) = [q | k | v].
        bias_table: ((2w-1)^2, heads), what an MLP makes of each offset.
        logit_scale: logarithm of each head's scale, num_heads numbers.
        window_size, num_heads, shift: as for window_attention.

    Returns:
        (B, H, W, C), in the dtype of qkv.

    Swin V2 (2111.09883), section 3.2; Swin2SR (2209.11345).
    """
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).unbind(3)
    scale = logit_scale.clamp(max=LARGEST_SCALE).exp().view(num_heads, 1)
    q, k = F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1)
    stacked = torch.stack([q, k.to(q.dtype), v.to(q.dtype)], 3)
    return window_attention(
        stacked.flatten(3),
        16 * bias_table.sigmoid(),
        window_size=window_size,
        num_heads=num_heads,
        shift=shift,
        scale=1.0,
    )
