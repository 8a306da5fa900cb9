"""The specification of window attention: Swin's, of cosines (Swin V2), permuted (SRFormer).

Any floating dtype, any device, differentiable by torch. Half-precision features are computed in
float32 and returned in their own dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor


def window_attention(
    qkv: Tensor, bias_table: Tensor, window_size: int, num_heads: int, shift: int, scale: float
) -> Tensor:
    """`softmax(scale q k^T + bias + mask) v` in each window of the map rolled by `shift`.

    qkv (B, H, W, 3C) = [q | k | v], each num_heads * head_dim; bias_table ((2w-1)^2, heads).
    Returns (B, H, W, C). Swin (2103.14030), equation 4.
    """
    qkv = torch.roll(qkv, (-shift, -shift), (1, 2)) if shift else qkv
    batch, height, width, channels = qkv.shape
    rows, columns, head_dim = (
        height // window_size,
        width // window_size,
        channels // 3 // num_heads,
    )
    tokens = window_size * window_size
    qkv_windows = qkv.reshape(
        batch, rows, window_size, columns, window_size, 3, num_heads, head_dim
    ).permute(5, 0, 1, 3, 6, 2, 4, 7)  # (3, B, rows, columns, heads, y, x, head_dim)
    q, k, v = qkv_windows.reshape(3, batch, rows * columns, num_heads, tokens, head_dim).to(
        torch.promote_types(qkv.dtype, torch.float32)
    )
    scores = (q * scale) @ k.transpose(-1, -2)
    scores = scores + relative_bias(bias_table, (window_size, window_size)).to(q)
    if shift:
        region = window_regions(
            height, width, (window_size, window_size), (shift, shift), qkv.device
        )
        scores = scores + separation(region, region).to(q)
    out = (scores.softmax(-1) @ v).to(qkv.dtype)
    return merge_windows(out, rows, columns, window_size, shift)


def cosine_window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    cosine_scale: Tensor,
    window_size: int,
    num_heads: int,
    shift: int,
) -> Tensor:
    """`softmax(cosine_scale cos(q, k) + bias + mask) v`, otherwise as window_attention.

    cosine_scale (heads,). Returns (B, H, W, C). Swin V2 (2111.09883), section 3.2.
    """
    wide = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
    unit = normalised(wide, cosine_scale)
    return window_attention(unit, bias_table, window_size, num_heads, shift, 1.0).to(qkv.dtype)


def normalised(qkv: Tensor, cosine_scale: Tensor) -> Tensor:
    """qkv (B, H, W, 3C) with each head of q as long as cosine_scale (heads,), and of k as 1.

    One product of the whole map, v times 1: to normalise q and k each and to put the three together
    again took 2.1 to 4.6 times as long (60 and 180 channels, AVX2, one thread). The factors are
    float32 for half qkv. Lengths below 1e-12 count as that, as in F.normalize.
    """
    heads = cosine_scale.shape[0]
    parts = qkv.unflatten(-1, (3 * heads, -1))
    wide = torch.promote_types(qkv.dtype, torch.float32)
    squares = parts[..., : 2 * heads, :].to(wide).square().sum(-1)
    lengths = torch.cat([cosine_scale, torch.ones_like(cosine_scale)]).to(wide)
    factors = squares.clamp_min(1e-24).rsqrt() * lengths
    factors = torch.cat([factors, factors.new_ones(*factors.shape[:-1], heads)], -1)
    return (parts * factors[..., None]).to(qkv.dtype).flatten(-2)


def permuted_window_attention(
    q: Tensor,
    kv: Tensor,
    bias_table: Tensor,
    window_size: int,
    num_heads: int,
    shift: int,
    scale: float,
) -> Tensor:
    """Window attention to keys whose 2x2 cells of tokens were stacked into channels.

    q (B, H, W, C); kv (B, H, W, C/2) = [k | v], C/4 each: channel `(a*2+b)*C/4 + c` of the key at
    cell (Y, X) is channel c of token (2Y+a, 2X+b). bias_table ((w-1)^2, heads), read at
    (y//2 - Y, x//2 - X). Returns (B, H, W, C). SRFormer (2303.09735), permuted self-attention.
    """
    if shift:
        q, kv = (torch.roll(x, (-shift, -shift), (1, 2)) for x in (q, kv))
    batch, height, width, channels = q.shape
    rows, columns, head_dim = height // window_size, width // window_size, channels // num_heads
    cells, windows = window_size // 2, rows * columns
    compute = torch.promote_types(q.dtype, torch.float32)
    query = q.reshape(batch, rows, window_size, columns, window_size, num_heads, head_dim)
    query = query.permute(0, 1, 3, 5, 2, 4, 6).to(compute)
    query = query.reshape(batch, windows, num_heads, window_size * window_size, head_dim)
    stacked = kv.reshape(batch, rows, cells, 2, columns, cells, 2, 2, channels // 4)
    # -> (k or v, B, rows, columns, Y, X, a, b, c); the last three are the key's channels.
    stacked = stacked.permute(7, 0, 1, 4, 2, 5, 3, 6, 8).to(compute)
    stacked = stacked.reshape(2, batch, windows, cells * cells, num_heads, head_dim)
    k, v = stacked.transpose(3, 4)
    scores = (query * scale) @ k.transpose(-1, -2)
    scores = scores + relative_bias(bias_table, (window_size, window_size), 2).to(query)
    if shift:
        region = window_regions(height, width, (window_size, window_size), (shift, shift), q.device)
        fine = region.reshape(windows, cells, 2, cells, 2)
        scores = scores + separation(region, fine[:, :, 0, :, 0].reshape(windows, -1)).to(query)
    out = (scores.softmax(-1) @ v).to(q.dtype)
    return merge_windows(out, rows, columns, window_size, shift)


def relative_bias(bias_table: Tensor, window: tuple[int, int], cell: int = 1) -> Tensor:
    """(heads, hw, hw/cell^2): the table of windows h x w read at (y//cell - Y, x//cell - X)."""
    offsets = []
    for side in window:
        keys = side // cell
        query = torch.arange(side, device=bias_table.device) // cell
        key = torch.arange(keys, device=bias_table.device)
        offsets.append(query[:, None] - key + keys - 1)  # (side, keys), 0 .. 2*keys-2
    down, right = offsets
    index = down[:, None, :, None] * (2 * (window[1] // cell) - 1) + right[None, :, None, :]
    return bias_table[index.flatten(2).flatten(0, 1)].permute(2, 0, 1)


def window_regions(
    height: int, width: int, window: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> Tensor:
    """(windows, N): which of the nine regions of the rolled map each token came from."""
    bands = []
    for length, side, moved in zip((height, width), window, shift, strict=True):
        position = torch.arange(length, device=device)
        bands.append((position >= length - side).long() + (position >= length - moved).long())
    region = bands[0][:, None] * 3 + bands[1]
    rows, columns = height // window[0], width // window[1]
    region = region.reshape(rows, window[0], columns, window[1]).transpose(1, 2)
    return region.reshape(rows * columns, window[0] * window[1])


def separation(query_region: Tensor, key_region: Tensor) -> Tensor:
    """(windows, 1, queries, keys): -100 between tokens of different regions, else 0."""
    return (query_region[:, None, :, None] != key_region[:, None, None, :]) * -100.0


def merge_windows(out: Tensor, rows: int, columns: int, window_size: int, shift: int) -> Tensor:
    """(B, windows, heads, w*w, head_dim) back to the map (B, H, W, C), unrolled."""
    batch, _, num_heads, _, head_dim = out.shape
    out = out.reshape(batch, rows, columns, num_heads, window_size, window_size, head_dim)
    out = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(
        batch, rows * window_size, columns * window_size, num_heads * head_dim
    )
    return torch.roll(out, (shift, shift), (1, 2)) if shift else out
