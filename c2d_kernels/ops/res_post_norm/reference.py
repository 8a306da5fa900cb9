"""The specification of the per-token part of a res-post-norm layer.

Any floating dtype, any device, differentiable by torch. Half-precision features are computed in
float32 and returned in their own dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from c2d_kernels.layer_weights import names

NAMES = names("proj", "norm1", "fc1", "fc2", "norm2")
"""The weights of a layer, in the order in which the op takes them."""
MLP = ("fc1", "fc2", "norm2")
"""Modules that a layer may lack, all of them; the others' weights come first in NAMES."""


def res_post_norm(
    x: Tensor, parts: Sequence[Tensor], weights: Sequence[Tensor], eps: float
) -> Tensor:
    """`y = x + LN(proj([parts]))`, then `y + LN(fc2(GELU(fc1(y))))` if there are weights for it.

    x (B, H, W, C), parts (B, H, W, any), weights as NAMES orders them. Returns (B, H, W, C).
    HiT-SR (2407.05878), whose norms follow Swin V2 (2111.09883), section 3.2.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    parts, weights = ([tensor.to(compute) for tensor in some] for some in (parts, weights))
    return composed(x.to(compute), parts, weights, eps).to(x.dtype)


def composed(x: Tensor, parts: Sequence[Tensor], weights: Sequence[Tensor], eps: float) -> Tensor:
    """The same out of torch's operators, in the dtype of its arguments."""
    proj, proj_bias, norm1, norm1_bias, *mlp = weights
    channels = x.shape[-1]
    mixed = F.linear(torch.cat(list(parts), dim=-1), proj, proj_bias)
    x = x + F.layer_norm(mixed, [channels], norm1, norm1_bias, eps)
    if not mlp:
        return x
    fc1, fc1_bias, fc2, fc2_bias, norm2, norm2_bias = mlp
    hidden = F.gelu(F.linear(x, fc1, fc1_bias))
    return x + F.layer_norm(F.linear(hidden, fc2, fc2_bias), [channels], norm2, norm2_bias, eps)
