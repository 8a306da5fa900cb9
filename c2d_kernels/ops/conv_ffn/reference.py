"""The specification of SRFormer's feed-forward with the norm and the skip around it.

Any floating dtype, any device, differentiable by torch. Half-precision features are computed in
float32 and returned in their own dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from c2d_kernels.layer_weights import names

NAMES = names("norm", "fc1", "dwconv", "fc2")
"""The weights, in the order in which the op takes them."""


def conv_ffn(x: Tensor, weights: Sequence[Tensor], norm_first: bool, eps: float) -> Tensor:
    """`x + fc2(h + GELU(dwconv(h)))`, `h = GELU(fc1(x))`, with LN before fc1 or after fc2.

    x (B, H, W, C), weights as NAMES orders them. Returns (B, H, W, C). SRFormer (2303.09735),
    section 3.3.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    weights = [weight.to(compute) for weight in weights]
    return composed(x.to(compute), weights, norm_first, eps).to(x.dtype)


def composed(x: Tensor, weights: Sequence[Tensor], norm_first: bool, eps: float) -> Tensor:
    """The same out of torch's operators, in the dtype of its arguments."""
    norm, norm_bias, fc1, fc1_bias, dwconv, dwconv_bias, fc2, fc2_bias = weights
    channels = x.shape[-1]
    entry = F.layer_norm(x, [channels], norm, norm_bias, eps) if norm_first else x
    hidden = F.gelu(F.linear(entry, fc1, fc1_bias))
    around = F.conv2d(
        hidden.permute(0, 3, 1, 2), dwconv, dwconv_bias, padding=2, groups=dwconv.shape[0]
    )
    out = F.linear(hidden + F.gelu(around.permute(0, 2, 3, 1)), fc2, fc2_bias)
    return x + (out if norm_first else F.layer_norm(out, [channels], norm, norm_bias, eps))
