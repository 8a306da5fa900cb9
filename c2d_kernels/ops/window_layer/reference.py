"""The specification of the window layer: SwinIR's transformer layer, at inference.

Any floating dtype, any device, differentiable by torch. Half-precision features are computed in
float32 and returned in their own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention_branch import reference as branch
from ..attention_branch.reference import names
from ..window_attention import reference

NAMES = names("norm1", "qkv", "proj", "norm2", "fc1", "fc2")
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
        (reference.window_attention,),
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
    attentions: Sequence[Callable[..., Tensor]],
) -> Tensor:
    """The layer out of torch's operators and attentions as the branch's takes them."""
    norm2, norm2_bias, fc1, fc1_bias, fc2, fc2_bias = weights[6:]
    x = branch.composed(x, bias_table, weights[:6], window_size, num_heads, shift, eps, attentions)
    hidden = F.linear(F.layer_norm(x, x.shape[-1:], norm2, norm2_bias, eps), fc1, fc1_bias)
    return x + F.linear(F.gelu(hidden), fc2, fc2_bias)
