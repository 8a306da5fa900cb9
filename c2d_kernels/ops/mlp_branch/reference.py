"""The specification of an MLP with the norm before it and the skip around it.

Any floating dtype, any device, differentiable by torch. Half-precision features are computed in
float32 and returned in their own dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from c2d_kernels.layer_weights import names

NAMES = names("norm", "fc1", "fc2")
"""The weights of a layer, in the order in which the op takes them."""


def mlp_branch(x: Tensor, weights: Sequence[Tensor], eps: float) -> Tensor:
    """`x + fc2(GELU(fc1(LN(x))))`; x (B, H, W, C), weights as NAMES orders them."""
    compute = torch.promote_types(x.dtype, torch.float32)
    weights = [weight.to(compute) for weight in weights]
    return composed(x.to(compute), weights, eps).to(x.dtype)


def composed(x: Tensor, weights: Sequence[Tensor], eps: float) -> Tensor:
    """The same out of torch's operators, in the dtype of its arguments."""
    norm, norm_bias, fc1, fc1_bias, fc2, fc2_bias = weights
    hidden = F.linear(F.layer_norm(x, x.shape[-1:], norm, norm_bias, eps), fc1, fc1_bias)
    return x + F.linear(F.gelu(hidden), fc2, fc2_bias)
