"""Spatial correlation as its authors write it: the map of tokens by cells in memory.

The operator's reference never forms that map, which is part of its speed. Against this one it is
seen how much.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def spatial_correlation(
    q: Tensor,
    v: Tensor,
    weight: Tensor,
    weight_bias: Tensor,
    bias_table: Tensor,
    *,
    window_size: int,
    base_window: int,
    num_heads: int,
) -> Tensor:
    """`(q p^T / s + P) p` with the sum in brackets as a tensor, P gathered and averaged.

    Arguments and result as of c2d_kernels.spatial_correlation, windows square, in float32 or
    float64.
    """
    base = min(window_size, base_window)
    cell, head_dim = window_size // base, q.shape[-1] // num_heads
    columns = q.shape[2] // window_size
    query = rearrange(
        q,
        "b (wy y) (wx x) (head d) -> (b wy wx) head (y x) d",
        head=num_heads,
        y=window_size,
        x=window_size,
    )
    cells = rearrange(
        v,
        "b (wy cy y) (wx cx x) (head d) -> (b wy wx) head (cy cx) d (y x)",
        head=num_heads,
        cy=base,
        y=cell,
        cx=base,
        x=cell,
    )
    p = F.linear(cells, weight, weight_bias)[..., 0]
    bias = bias_table[relative_index(window_size)]
    bias = rearrange(
        bias, "n (cy y cx x) head -> head n (cy cx) (y x)", cy=base, y=cell, cx=base, x=cell
    ).mean(dim=-1)
    correlation = query @ p.transpose(-1, -2) / head_dim + bias
    return rearrange(
        correlation @ p,
        "(b wy wx) head (y x) d -> b (wy y) (wx x) (head d)",
        b=q.shape[0],
        wx=columns,
        y=window_size,
    )


def relative_index(window: int) -> Tensor:
    """(w*w, w*w): the row of a relative bias table for each pair of tokens in a window."""
    place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    y, x = place.flatten(1)
    return (y[:, None] - y + window - 1) * (2 * window - 1) + x[:, None] - x + window - 1
