"""The specification of attention in rectangular windows whose keys may come from larger ones.

Any floating dtype, any device, differentiable by torch. Half-precision features are computed in
float32 and returned in their own dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..window_attention.reference import separation, window_regions


def overlapping_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    regions: Tensor | None,
    window_height: int,
    window_width: int,
    num_heads: int,
    overlap_height: int,
    overlap_width: int,
    shift_down: int,
    shift_right: int,
    scale: float,
) -> Tensor:
    """`softmax(scale q k^T + bias + mask) v` in each window of the map rolled by the shift.

    q, k and v (B, H, W, C); bias (heads, N, M), N = h w queries and M = (h + 2a)(w + 2b) keys of
    a window, row by row; regions (H, W), whose different labels do not meet. Keys beyond the map
    are zero, and are met like others. Returns (B, H, W, C).
    """
    batch, height, width, channels = q.shape
    window, shift = (window_height, window_width), (shift_down, shift_right)
    shifted = shift_down > 0 or shift_right > 0
    if shifted:
        q, k, v = (torch.roll(x, (-shift_down, -shift_right), (1, 2)) for x in (q, k, v))
    overlap = (0, 0, overlap_width, overlap_width, overlap_height, overlap_height)
    query = _windows(q, window, window, num_heads)
    larger = (window_height + 2 * overlap_height, window_width + 2 * overlap_width)
    key, value = (_windows(F.pad(x, overlap), larger, window, num_heads) for x in (k, v))
    scores = (query * scale) @ key.transpose(-1, -2) + bias.to(query)
    if shifted or regions is not None:
        region = window_regions(height, width, window, shift, q.device)
        if regions is not None:
            label = torch.roll(regions, (-shift_down, -shift_right), (0, 1)).long()
            label = label.unflatten(1, (-1, window_width)).unflatten(0, (-1, window_height))
            region = region + 9 * label.transpose(1, 2).flatten(2).flatten(0, 1)  # (windows, N)
        scores = scores + separation(region, region).to(scores)
    out = (scores.softmax(-1) @ value).to(q.dtype)  # (B, windows, heads, N, head_dim)
    out = out.unflatten(3, window).unflatten(1, (height // window_height, width // window_width))
    out = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, channels)
    return torch.roll(out, shift, (1, 2)) if shifted else out


def _windows(x: Tensor, sides: tuple[int, int], step: tuple[int, int], num_heads: int) -> Tensor:
    """Windows of these sides that begin every step: (B, windows, heads, N, head_dim).

    In float32, or in float64 for float64.
    """
    windows = x.unfold(1, sides[0], step[0]).unfold(2, sides[1], step[1])
    windows = windows.unflatten(3, (num_heads, -1))  # (B, rows, columns, heads, head_dim, y, x)
    windows = windows.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5).flatten(1, 2)
    return windows.to(torch.promote_types(x.dtype, torch.float32))
