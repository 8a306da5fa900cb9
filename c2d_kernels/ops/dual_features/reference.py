"""The specification of HiT-SR's dual feature extraction.

Any floating dtype, any device, differentiable by torch. Half-precision features are computed in
float32 and returned in their own dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from c2d_kernels.layer_weights import names

SLOPE = 0.2
"""Of the LeakyReLU."""

NAMES = names("local", "conv", "expand", "linear")
"""The weights, in the order in which the op takes them."""


def dual_features(
    x: Tensor, rows: Tensor | None, columns: Tensor | None, weights: Sequence[Tensor]
) -> Tensor:
    """`expand(f(conv(f(local(x))))) * linear(x)`, f = LeakyReLU, of x + rows + columns if given.

    x (B, H, W, C), rows (H, C), columns (W, C), weights as NAMES orders them. Returns (B, H, W, C).
    HiT-SR (2407.05878), dual feature extraction.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    rows, columns = (None if place is None else place.to(compute) for place in (rows, columns))
    weights = [weight.to(compute) for weight in weights]
    return composed(x.to(compute), rows, columns, weights).to(x.dtype)


def composed(
    x: Tensor, rows: Tensor | None, columns: Tensor | None, weights: Sequence[Tensor]
) -> Tensor:
    """The same out of torch's operators, in the dtype of its arguments."""
    local, local_bias, conv, conv_bias, expand, expand_bias, linear, linear_bias = weights
    if rows is not None and columns is not None:
        x = x + (rows[:, None] + columns)
    # Both branches begin with a product with x: they share one.
    entry = F.linear(x, torch.cat([local, linear]), torch.cat([local_bias, linear_bias]))
    near, far = entry.split([local.shape[0], linear.shape[0]], dim=-1)
    near = F.leaky_relu(near, SLOPE).permute(0, 3, 1, 2)
    near = F.leaky_relu(F.conv2d(near, conv, conv_bias, padding=1), SLOPE)
    return F.linear(near.permute(0, 2, 3, 1), expand, expand_bias) * far
