"""The specification of attention in rectangular windows whose keys may come from larger ones.

Any floating dtype, any device, differentiable by torch. Half-precision features are computed in
float32 and returned in their own dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def overlapping_window_attention(
    q: Tensor,
    kv: Tensor,
    bias: Tensor,
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

    q (B, H, W, C); kv (B, H, W, 2C) = [k | v]; bias (heads, N, M), N = h w queries and
    M = (h + 2a)(w + 2b) keys of a window, row by row. Keys beyond the map are zero, and are met
    like others. Returns (B, H, W, C).
    """
    batch, height, width, channels = q.shape
    window, shift = (window_height, window_width), (shift_down, shift_right)
    shifted = shift_down > 0 or shift_right > 0
    if shifted:
        q, kv = (torch.roll(x, (-shift_down, -shift_right), (1, 2)) for x in (q, kv))
    overlap = (0, 0, overlap_width, overlap_width, overlap_height, overlap_height)
    query = _windows(q, window, window, num_heads, 1)[0]
    larger = (window_height + 2 * overlap_height, window_width + 2 * overlap_width)
    k, v = _windows(F.pad(kv, overlap), larger, window, num_heads, 2)
    scores = (query * scale) @ k.transpose(-1, -2) + bias.to(query)
    if shifted:
        region = _regions(height, width, window, shift, q.device)
        apart = region[:, None, :, None] != region[:, None, None, :]
        scores = scores + (apart * -100.0).to(scores)
    out = (scores.softmax(-1) @ v).to(q.dtype)  # (B, windows, heads, N, head_dim)
    out = out.unflatten(3, window).unflatten(1, (height // window_height, width // window_width))
    out = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, channels)
    return torch.roll(out, shift, (1, 2)) if shifted else out


def _windows(
    x: Tensor, sides: tuple[int, int], step: tuple[int, int], num_heads: int, parts: int
) -> Tensor:
    """Windows of these sides that begin every step: (parts, B, windows, heads, N, head_dim).

    In float32, or in float64 for float64.
    """
    windows = x.unfold(1, sides[0], step[0]).unfold(2, sides[1], step[1])
    windows = windows.unflatten(
        3, (parts, num_heads, -1)
    )  # (B, rows, columns, parts, heads, d, y, x)
    windows = windows.permute(3, 0, 1, 2, 4, 6, 7, 5).flatten(5, 6).flatten(2, 3)
    return windows.to(torch.promote_types(x.dtype, torch.float32))


def _regions(
    height: int, width: int, window: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> Tensor:
    """(windows, N): which of the nine regions of the rolled map each token came from."""
    bands = []
    for length, side, moved in zip((height, width), window, shift, strict=True):
        position = torch.arange(length, device=device)
        bands.append((position >= length - side).long() + (position >= length - moved).long())
    region = bands[0][:, None] * 3 + bands[1]
    region = region.unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0]))
    return region.transpose(1, 2).flatten(2).flatten(0, 1)
