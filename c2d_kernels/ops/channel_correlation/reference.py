"""The specification of the window correlations: HiT-SR's channel and spatial self-correlation.

Any floating dtype, any device, differentiable by torch. Half-precision features are computed in
float32 and returned in their own dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor


def channel_correlation(q: Tensor, v: Tensor, window_height: int, window_width: int) -> Tensor:
    """`out = v (q^T v / n)^T` in each window, n being the number of tokens the window really has.

    q and v (B, H, W, C); windows start at (0, 0), those at the border may be smaller. Returns
    (B, H, W, C). HiT-SR (2407.05878), channel self-correlation.
    """
    batch, height, width, channels = v.shape
    rows = (height + window_height - 1) // window_height
    columns = (width + window_width - 1) // window_width
    y = torch.arange(rows * window_height, device=v.device)
    x = torch.arange(columns * window_width, device=v.device)
    # A trace always pads: testing whether the window divides H and W would add guards on them.
    whole = not torch.compiler.is_compiling() and y.numel() == height and x.numel() == width

    def windows(features: Tensor) -> Tensor:
        """(B, rows, columns, tokens, C); zeros fill the border windows and add nothing to q^T v."""
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        if not whole:
            features = features.index_select(1, y.clamp(max=height - 1))
            features = features.index_select(2, x.clamp(max=width - 1))
            features = features * ((y < height)[:, None] & (x < width))[..., None]
        features = features.reshape(batch, rows, window_height, columns, window_width, channels)
        return features.transpose(2, 3).flatten(3, 4)

    # How many real tokens each window holds: rows of it that exist times columns that exist.
    tokens = (height - y[::window_height]).clamp(max=window_height)[:, None] * (
        width - x[::window_width]
    ).clamp(max=window_width)
    query, value = windows(q), windows(v)
    moment = query.transpose(-1, -2) @ value / tokens[:, :, None, None]
    out = value @ moment.transpose(-1, -2)
    out = out.unflatten(3, (window_height, window_width)).transpose(2, 3)
    # (B, rows, window_height, columns, window_width, C) back to the map, without the extra tokens.
    if whole:
        return out.reshape(v.shape).to(v.dtype)
    y, x = torch.arange(height, device=v.device), torch.arange(width, device=v.device)
    out = out[:, y // window_height, y % window_height]
    out = out[:, :, x // window_width, x % window_width]
    return out.to(v.dtype)
