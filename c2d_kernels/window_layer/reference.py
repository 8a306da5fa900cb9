"""The specification of the window layer: SwinIR's transformer layer, at inference.

Any floating dtype, any device, differentiable by torch. Half-precision features are computed in
float32 and returned in their own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..window_attention import reference

NAMES = tuple(
    f"{module}.{kind}"
    for module in ("norm1", "qkv", "proj", "norm2", "fc1", "fc2")
    for kind in ("weight", "bias")
)
"""The weights of a layer, in the order in which the op takes them."""


def window_layer(
    x: Tensor,
    bias_table: Tensor,
    weights: Sequence[Tensor],
    window_size: int,
    num_heads: int,
    shift: int,
    eps: float,
) -> Tensor:
    """`y = x + proj(attention(qkv(LN(x))))`, then `y + fc2(GELU(fc1(LN(y))))`.

    x (B, H, W, C), H and W multiples of window_size; weights as NAMES orders them. Returns
    (B, H, W, C). SwinIR (2108.10257), equation 5, with Swin's attention.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    out = composed(
        x.to(compute),
        bias_table.to(compute),
        [weight.to(compute) for weight in weights],
        window_size,
        num_heads,
        shift,
        eps,
        reference.window_attention,
    )
    return out.to(x.dtype)


def composed(
    x: Tensor,
    bias_table: Tensor,
    weights: Sequence[Tensor],
    window_size: int,
    num_heads: int,
    shift: int,
    eps: float,
    attention: Callable[..., Tensor],
) -> Tensor:
    """The layer out of torch's operators and an attention with the reference's arguments."""
    norm1, norm1_bias, qkv, qkv_bias, proj, proj_bias, *rest = weights
    norm2, norm2_bias, fc1, fc1_bias, fc2, fc2_bias = rest
    channels = x.shape[-1]
    attended = attention(
        F.linear(F.layer_norm(x, [channels], norm1, norm1_bias, eps), qkv, qkv_bias),
        bias_table,
        window_size,
        num_heads,
        shift,
        (channels // num_heads) ** -0.5,
    )
    x = x + F.linear(attended, proj, proj_bias)
    hidden = F.linear(F.layer_norm(x, [channels], norm2, norm2_bias, eps), fc1, fc1_bias)
    return x + F.linear(F.gelu(hidden), fc2, fc2_bias)
