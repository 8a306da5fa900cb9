"""The specification of the window layer: SwinIR's transformer layer, at inference.

Any floating dtype, any device, differentiable by torch. Half-precision features are computed in
float32 and returned in their own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from c2d_kernels.layer_weights import names

from ..attention_branch import reference as branch
from ..mlp_branch import reference as mlp_branch

NAMES = names("norm1", "qkv", "proj", "norm2", "fc1", "fc2")
"""The weights of a layer, in the order in which the op takes them."""
BRANCH = len(branch.NAMES)
"""How many of them are the attention branch's, which come first."""


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
        branch.REFERENCES,
        mlp_branch.composed,
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
    attentions: branch.Attentions,
    mlp: Callable[[Tensor, Sequence[Tensor], float], Tensor],
) -> Tensor:
    """The layer out of torch's operators, the branch's attention and the MLP's branch."""
    numbers = (window_size, num_heads, shift, eps)
    x = branch.composed(x, bias_table, weights[:BRANCH], *numbers, attentions)
    return mlp(x, weights[BRANCH:], eps)
