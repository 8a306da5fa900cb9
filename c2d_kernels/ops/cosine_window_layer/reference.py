"""The specification of Swin V2's layer in windows.

Any floating dtype, any device, differentiable by torch. Half-precision features are computed in
float32 and returned in their own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from c2d_kernels.layer_weights import names

from ..res_post_norm import reference as post_norm
from ..window_attention import reference as attention

NAMES = names("qkv", "proj", "norm1", "fc1", "fc2", "norm2")
"""The weights of a layer, in the order in which the op takes them."""


def cosine_window_layer(
    x: Tensor,
    bias_table: Tensor,
    cosine_scale: Tensor,
    weights: Sequence[Tensor],
    window_size: int,
    num_heads: int,
    shift: int,
    eps: float,
) -> Tensor:
    """`y = x + LN(proj(attention(qkv(x))))`, then `y + LN(fc2(GELU(fc1(y))))`.

    The attention is cosine_window_attention's. x (B, H, W, C), H and W multiples of window_size;
    weights as NAMES orders them. Returns (B, H, W, C). Swin V2 (2111.09883), sections 3.1 and 3.2.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    wide = [weight.to(compute) for weight in weights]
    tables = bias_table.to(compute), cosine_scale.to(compute)
    options = (window_size, num_heads, shift, eps)
    of_qkv, rest = attention.cosine_window_attention, post_norm.composed
    return composed(x.to(compute), *tables, wide, options, of_qkv, rest).to(x.dtype)


def composed(
    x: Tensor,
    bias_table: Tensor,
    cosine_scale: Tensor,
    weights: Sequence[Tensor],
    options: tuple[int, int, int, float],
    of_qkv: Callable[..., Tensor],
    rest: Callable[..., Tensor],
) -> Tensor:
    """The layer out of torch's product, an attention and what a res-post-norm layer ends with.

    options: window_size, num_heads, shift and eps.
    """
    *windows, eps = options
    mixed = of_qkv(F.linear(x, *weights[:2]), bias_table, cosine_scale, *windows)
    return rest(x, [mixed], weights[2:], eps)
