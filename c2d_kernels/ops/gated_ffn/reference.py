"""The specification of a gated feed-forward with the norm before it and the skip around it.

Any floating dtype, any device, differentiable by torch. Half-precision features are computed in
float32 and returned in their own dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from c2d_kernels.layer_weights import names

NAMES = names("norm", "fc1", "gate_norm", "dwconv", "fc2")
"""The weights of a layer, in the order in which the op takes them."""


def gated_ffn(x: Tensor, weights: Sequence[Tensor], eps: float) -> Tensor:
    """`x + fc2(a * dwconv(LN(b)))`, `[a, b] = GELU(fc1(LN(x)))`.

    x (B, H, W, C), weights as NAMES orders them. Returns (B, H, W, C). DAT (2308.03364), section
    3.3, with the norm that its code and MambaIRv2's have before the convolution.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    weights = [weight.to(compute) for weight in weights]
    return composed(x.to(compute), weights, eps).to(x.dtype)


def composed(x: Tensor, weights: Sequence[Tensor], eps: float) -> Tensor:
    """The same out of torch's operators, in the dtype of its arguments."""
    norm, norm_bias, fc1, fc1_bias, gate_norm, gate_norm_bias, dwconv, dwconv_bias = weights[:8]
    hidden = F.linear(F.layer_norm(x, x.shape[-1:], norm, norm_bias, eps), fc1, fc1_bias)
    gated, gate = F.gelu(hidden).chunk(2, -1)
    gate = F.layer_norm(gate.to(gate_norm), gate.shape[-1:], gate_norm, gate_norm_bias, eps)
    channels_first = gate.permute(0, 3, 1, 2)
    gate = F.conv2d(channels_first, dwconv, dwconv_bias, padding="same", groups=len(dwconv))
    return x + F.linear(gated * gate.permute(0, 2, 3, 1), *weights[8:])
