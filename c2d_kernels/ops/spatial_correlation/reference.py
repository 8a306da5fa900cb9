"""The specification of the window correlations: HiT-SR's channel and spatial self-correlation.

Any floating dtype, any device, differentiable by torch. Half-precision features are computed in
float32 and returned in their own dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def spatial_correlation(
    q: Tensor,
    v: Tensor,
    weight: Tensor,
    weight_bias: Tensor,
    bias_table: Tensor,
    window_height: int,
    window_width: int,
    base_height: int,
    base_width: int,
    num_heads: int,
) -> Tensor:
    """`(q p^T / s + P) p` in each window, p being v reduced to base_height x base_width cells.

    A cell is R_y x R_x tokens (R = window / base); its p is the Linear `weight` (1, R_y R_x),
    `weight_bias` (1,) over its tokens in row-major order. s is the head's width. P is the bias of
    bias_table ((2h-1)(2w-1), heads) between a token and each token of a cell, averaged over the
    cell. q and v (B, H, W, C), H and W multiples of the window. Returns (B, H, W, C).
    HiT-SR (2407.05878), spatial self-correlation.
    """
    batch, height, width, channels = q.shape
    head_dim = channels // num_heads
    rows, columns = height // window_height, width // window_width
    windows, tokens, base = rows * columns, window_height * window_width, base_height * base_width
    cell_height, cell_width = window_height // base_height, window_width // base_width
    compute = torch.promote_types(q.dtype, torch.float32)

    query = q.reshape(
        batch, rows, window_height, columns, window_width, num_heads, head_dim
    ).permute(0, 1, 3, 5, 2, 4, 6)  # (B, rows, columns, heads, y, x, head_dim)
    query = query.reshape(batch, windows, num_heads, tokens, head_dim).to(compute)
    cells = v.reshape(
        batch, rows, base_height, cell_height, columns, base_width, cell_width, num_heads, head_dim
    ).permute(0, 1, 4, 7, 2, 5, 8, 3, 6)  # (..., heads, Y, X, head_dim, token y, token x)
    cells = cells.reshape(batch, windows, num_heads, base, head_dim, cell_height * cell_width).to(
        compute
    )
    p = F.linear(cells, weight.to(compute), weight_bias.to(compute))[..., 0]

    table = bias_table.to(compute).t()
    table = table.reshape(num_heads, 2 * window_height - 1, 2 * window_width - 1)
    # The mean over a cell of T[y - k + h - 1] is an average pool of T, read at y - R Y - R + h.
    table = F.avg_pool2d(table, (cell_height, cell_width), stride=1)
    down = _offsets(window_height, base_height, cell_height, q.device)
    across = _offsets(window_width, base_width, cell_width, q.device)
    bias = table[:, down[:, None, :, None], across[None, :, None, :]]
    bias = bias.reshape(num_heads, tokens, base)
    # There is no softmax: (q p^T) p = q (p^T p), which never forms the token-by-cell map.
    out = query @ (p.transpose(-1, -2) @ p) / head_dim + bias @ p
    out = out.reshape(batch, rows, columns, num_heads, window_height, window_width, head_dim)
    return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(q.shape).to(q.dtype)


def _offsets(window: int, base: int, cell: int, device: torch.device) -> Tensor:
    """(window, base): where the pooled table holds token y's bias to cell Y."""
    token = torch.arange(window, device=device)[:, None]
    return token - cell * torch.arange(base, device=device) - cell + window
